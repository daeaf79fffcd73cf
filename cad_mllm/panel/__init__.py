"""The widget that picks, plots, resumes and watches."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "runs": ("LAUNCH LOG PanelError Run SILENCE Training child_processes example_folder find_runs format_count "
              "is_alive list_folders read_small_json read_training sentence shorten"),
    "colors": ("RUN_COLORS RUN_DASHES run_styles"),
    "table": ("COLUMNS Curve NUMBER_COLUMNS Row STYLE badge_html filter_rows make_rows place_of read_curve resumed_from "
              "row_html sort_rows table_html"),
    "plots": ("CSV_COLUMNS Plotted X_AXES curves_csv figure_png image_html loss_figure middle_cut plot_words smooth "
              "x_rows x_values"),
    "live_plot": ("LivePlot TABS X_COLUMNS json_text live_iframe live_page mark_data node_html plain_number plot_data "
              "register_colab run_data sparse_columns stage_starts to_columns"),
    "details": ("delivery_html describe_training details_html differences differences_html fact_html facts_of flat "
              "list_html log_tail progress_html time_ago"),
    "commands": ("CHANGES NUM_STAGES TrainForm changes_html other_run parse_flags read_changes resume_form start_training "
              "stop_training train_command"),
    "storage": ("DRIVE_NOTE plan_html prune prune_plan"),
    "completion": ("Choice MEASURES PartPicture find_samples link_html load_completer measure measures_html picture_png "
              "read_part sample_folders save_part to_png uploaded verdict_html"),
    "jobs": ("Job job_html verify_job"),
    "widgets": ("DetailsView PickView PlotView View guarded make_button make_dropdown make_row set_options style_control"),
    "training_view": ("TrainView"),
    "completion_view": ("CompleteView Outcome OwnView SampleView"),
    "storage_view": ("StorageView"),
    "app": ("CheckpointPanel"),
})
