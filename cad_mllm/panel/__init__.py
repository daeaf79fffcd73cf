"""The widget that picks, plots, resumes and watches."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "catalog": ("Catalog is_checkpoint_folder read_catalog"),
    "runs": ("LAUNCH LOG PanelError Run SILENCE Training child_processes example_folder find_runs format_count "
              "is_alive list_folders read_small_json read_training run_name sentence shorten"),
    "colors": ("RUN_COLORS RUN_DASHES run_styles"),
    "table": ("COLUMNS Curve NUMBER_COLUMNS Row STYLE badge_html filter_rows make_rows place_of read_curve read_quality "
              "read_static resumed_from row_html same_weights sort_rows table_html"),
    "overview": ("CHECKPOINT_COLUMNS CHECKPOINT_HELP COLUMN_HELP NOTES RUN_COLUMNS RunLine STATE_WORDS USUAL_COLUMNS "
              "checkpoint_head_html checkpoint_html filter_lines format_duration grid_css make_line make_lines "
              "read_notes row_words run_cell run_html smoothed_loss write_notes"),
    "plots": ("CSV_COLUMNS Plotted X_AXES alt_text curves_csv figure_png image_html loss_figure middle_cut smooth "
              "x_rows x_values"),
    "live_plot": ("LivePlot TABS X_COLUMNS json_text live_iframe live_page mark_data node_html plain_number plot_data "
              "register_colab run_data sparse_columns stage_starts to_columns"),
    "details": ("clock_time delivery_html describe_record describe_training details_html differences differences_html "
              "fact_html flat list_html log_tail progress_html time_ago"),
    "commands": ("CHANGES NUM_STAGES PATH_FLAGS TrainForm absolute changes_html check_data current_values find_again "
              "other_run parse_flags read_changes resume_form start_training stop_training train_command"),
    "storage": ("DRIVE_NOTE plan_html prune prune_plan"),
    "completion": ("Choice MEASURES PartRenderer find_samples link_html load_completer measure measures_html picture_png "
              "read_part sample_folders save_part to_png uploaded verdict_html"),
    "outcome": ("DOWNLOADS FIT_HELP MEASURE_HELP Outcome Shown contour_words extent_words fit_words given_html "
              "numbers_html operation_words operations_html profile_words save_as shown_html"),
    "jobs": ("Job Workers job_html verify_job"),
    "widgets": ("DetailsView PlotView View guarded make_button make_dropdown make_row set_options style_control"),
    "runs_view": ("RunLines RunningStrip Slot strip_html"),
    "live_view": ("LiveView live_frame"),
    "quality_view": ("DetailsTab NotesView QualityView evaluation_command quality_svg run_evaluation"),
    "training_view": ("CheckView LogView MOST_LOG TrainView examine find_in_log recipe_words"),
    "outcome_view": ("OutcomeView"),
    "completion_view": ("CompleteView DatasetView UploadView sample_html"),
    "storage_view": ("StorageView"),
    "first_view": ("FirstView"),
    "app": ("CheckpointPanel make_tabs"),
})
