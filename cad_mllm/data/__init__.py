"""From files to batches."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "parts": ("OPENINGS PLANES Part box_json count count_of disc family grid_of history_box mm outline pick rect "
              "ring_of row_of slot via"),
    "outlines": ("OUTLINES Ruler SHARES arc_outline copies middle_hole ordered ordered_loop rectangular_outline ring_holes "
              "round_outline row_holes shifted slanted_outline stepped_outline turned with_holes"),
    "realistic": ("AXES Draft EXTRUDES MAX_TOKENS REAL Realistic among_real describe_part draft has_effect "
              "history_statistics make_realistic outline_kind realistic_part twin_key"),
    "canonical": ("canonical_history"),
    "synthetic": ("DataFolderError FAMILIES STYLES make_part part_maker synthesize"),
    "products": ("CaptionWriter KnownFailure PRODUCTS PreparedItem Products describe prepare_one"),
    "preparation": ("PrepareError PrepareReport describe_estimate estimate in_shard list_histories prepare"),
    "references": ("check_range check_references"),
    "shard_files": ("ShardError ShardWriter from_bytes member_name save_arrays scan_shard to_bytes"),
    "shards": ("INDEX_NAME Made Pack PackError check_pack index_arrays is_pack write_pack"),
    "attachments": ("Attachments CAPTION_SUFFIXES CLOUD_SUFFIXES MOST_ENDINGS PICTURE_SUFFIXES PartNames caption_entries "
              "clean_text decode_text media_path part_key split_name"),
    "skipped": ("DataError DataWarning Skip SkipReport logger parse_history_bytes parse_program read_history_file "
              "signature_at"),
    "encodable": ("is_surely_encodable"),
    "pairs": ("CheckNote DesignCheck PartialCheck check_beginning check_design dates_folders design_of document_id "
              "file_stamp find_candidates hash_order hold_out list_partials map_processes num_jobs split_by_document "
              "walk_files"),
    "images": ("MAX_PIXELS prepare_image"),
    "circles": ("ALONG MAX_VOTERS MIN_SINE NUM_PAIRS find_circles"),
    "points": ("FLAT MAX_FACES MAX_LENGTHS Scan WALL axis_face_levels bounding_box_upper_bound check_belongs "
              "check_cloud_alignment corner_of encode_point_inputs estimate_normals finite_points grid_around "
              "lengths_between measure_points measure_walls min_corner outline_box prepare_points read_points "
              "see_points"),
    "captions": ("MAX_CAPTION_BYTES join_captions read_captions"),
    "media": ("Media POINT_SUFFIXES VIEW_SUFFIXES find_attachments find_media"),
    "draws": ("draw_modalities draw_views seeded_rng"),
    "index": ("CACHE_SIZE DesignChecks Sample VerdictTable read_checks read_verdicts"),
    "sources": ("FolderSource JSON_FOLDERS MOST_MEDIA ShardSource count_tokens encode_json_line language_version "
              "open_files require_data token_counts"),
    "tokenizer": ("load_tokenizer tiny_tokenizer"),
    "prompts": ("Batch IMAGENET_MEAN IMAGENET_STD PromptBuilder pack_rows"),
    "index_file": ("check_designs index_version judge_designs load_index save_index sequence_hash usable_rows"),
    "design_index": ("DataRequest DesignIndex Found"),
    "sample_table": ("SampleTable"),
    "sample_reader": ("HistoryReader MediaReader MediaSettings"),
    "multimodal_autocomplete": ("MultimodalAutocompleteDataset"),
    "stream": ("HELD_OUT SCHEME StreamDataset StreamName maker_files makers open_dataset"),
    "batching": ("DYING DataWorkerError GRACE batches num_batches"),
    "packing": ("pack"),
    "direct": ("prepare_group prepare_shards"),
    "dataset_report": ("DatasetReport PERCENTILES ReportError"),
    "report": ("FOLDERS MOST_SPLIT data_report fingerprint"),
})
