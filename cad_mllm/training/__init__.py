"""The curriculum loop, exact resume, many processes."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "trackers": ("Guarded SafeTracker TRACKERS TensorBoard WeightsAndBiases numbers open_trackers png_bytes"),
    "notify": ("EVENTS_TOLD Notifier without_address"),
    "fsdp": ("Sharded Sharding WholeModel gather_to_cpu resolve_fsdp sharding_asked whole_copy"),
    "run_files": ("DATA_REPORTS DELIVERY_KINDS EVENTS EVENT_KINDS EXIT_DONE EXIT_FAILED EXIT_FAULT EXIT_NOT_FINITE "
              "EXIT_STOPPED EXIT_UNDELIVERED Interrupted METRICS METRIC_KINDS RUN_CONFIG STATUS STATUS_KINDS STOP "
              "Stopper WANDB append_line known_status read_events read_metrics read_run_config read_run_lines "
              "write_json"),
    "run_folder": ("OccupiedError RUN_FILES find_resume_checkpoint find_to_resume goes_on_here local_place move_aside "
              "refuse_occupied saved_run"),
    "distributed": ("PeerError World init_distributed join_world pick_device seed_all use_deterministic_algorithms"),
    "schedule": ("Plan lr_factor"),
    "state": ("FaultError NoMemoryError NotFiniteError Progress TrainResult brief gpu_memory is_out_of_memory"),
    "training_state": ("TrainingState prepare_model total_steps without_peers"),
    "output": ("RunOutput RunningError running_pid"),
    "reports": ("RunLog StatusWriter known_id"),
    "run_data": ("data_settings open_data scan_of tell_data"),
    "optimization": ("Optimization buckets restore_random schedule_end"),
    "step": ("Stepper WARN_AFTER"),
    "validation": ("DRAWN Validation held_out_loss leave_if_asked"),
    "saver": ("Saver judge"),
    "changes": ("CHOICE Change ChangedError MEANINGS OTHER_RUN ROUNDING_ONLY SAME_DATA Split changed_base "
              "changed_settings changed_stages other_model rebalance resolve_batch_layout settle_split split_for"),
    "resume": ("Resumption asked_before batch_of changed_data changed_machine changed_makers changed_validation "
              "finish_best rescale_position same_share stage_of"),
    "faults": ("LESS_MEMORY go_back halve_batches last_good leave_at_fault save_and_leave whole_step"),
    "run_lines": ("banner step_line"),
    "loop": ("Loop"),
    "trainer": ("Trainer begin_from check_settings in_words record_settings train"),
    "planner": ("Advice CARDS COMPILED Card EAGER PREDICTED SHAPES Shape TOKENS activation_bytes advise flops "
              "gathered_bytes memory num_trained plan reached shape_of"),
    "products": ("CountProducts"),
})
