"""Checkpoints: format, saving, loading, upload."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "safety": ("ADAPTERS JSON_LIMIT LIMITS LLM_WEIGHTS PICKLE_LIMIT UnsafeFile check_pt check_safetensors check_sizes "
              "inside load_pt read_json read_tensors weight_files write_safetensors"),
    "hashes": ("PIECE TREE_FROM TreeHash file_sha256 file_tree hash_of is_large is_tree read_hash write_hashed"),
    "trust": ("KNOWN_KERNELS KNOWN_OWNERS OWN_NAMES TRUST check_trust demands kernel_demands stated"),
    "format": ("BEST CONFIG CheckpointError DISK Disk FORMAT MANIFEST METADATA PROOF_SECONDS STATE TREE_FORMAT "
              "WEIGHT_FILES active_temporaries checkpoint_name clean_temporaries compare_with_manifest free_name "
              "is_finite is_old_format is_saved_model large_files list_files old_format_problems parse_name publish "
              "read_json_file read_manifest recently_verified seal temporary_path thread_map to_json verify_checkpoint"),
    "legacy": ("OLD_DEFAULTS OldObject config_from_old plain read_config rng_state safe_load set_rng_state"),
    "records": ("CheckpointRecord SLOW_LISTING best_checkpoint current_run find_checkpoint format_checkpoints human_size "
              "is_better latest_checkpoint list_checkpoints newest_good newness not_finite_problems own_records "
              "prunable prune_checkpoints read_record stage_records update_best"),
    "save": ("Snapshot SnapshotMemory as_dict describe_checkpoint files_to_save make_metadata not_finite_weights "
              "save_checkpoint snapshot_checkpoint tensor_bytes write_one write_snapshot"),
    "load": ("Loaded check_space load_checkpoint size_of_next_save upgrade_checkpoint"),
    "optimizer": ("Restored optimizer_state restore_optimizer"),
    "transfer": ("OutputFolder REMOTE_FILE_SYSTEMS SourceError Transfer advance default_local_dir is_full local_dir_for "
              "mount_of reason_of size_of"),
    "run_files": ("RunFiles json_line merge_lines"),
    "upload_queue": ("DeliveryError Places Timing UploadEvents UploadQueue newest_key places_of time_text"),
    "retention": ("LocalRetention OutputRetention"),
    "writer": ("BackgroundWriter CheckpointWriter"),
    "uploader": ("Outage Uploader"),
    "upload": ("Delivery deliver"),
})
