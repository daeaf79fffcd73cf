"""What every chapter uses: files, figures, lazy packages."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "lazy": ("LazyModule hand_on torch"),
    "moved": ("MovedAttributes"),
    "figures": ("Figure"),
    "arguments": ("AtLeast LengthUnit MOST OneOf Parser Positional add_switch docments make_parser suggestion"),
    "old_names": ("current_names with_old_names"),
    "files": ("FileError Lines MOST_BYTES MOST_DEPTH MOST_LINE MOST_LINES NotPlainError append_bytes clean_strays "
              "copy_sha256 finite keep_kinds open_plain packaged_page packaged_text parse_json read_journal read_json "
              "read_lines read_object read_plain read_plain_text remove_torn replace_bytes replacing stream_sha256 "
              "sync_file sync_path write_bytes_atomic write_text"),
    "settings": ("ConfigError JSONConfig KindError NamedTwiceError check check_kinds"),
    "run_lock": ("BEAT FolderLock HeldError Holder LOCK PATIENCE UNKNOWN beat is_gone read_holder release take "
              "this_process"),
    "cpus": ("SCHEDULER_VARIABLES allotted_cpus"),
    "progress": ("Pace Progress duration_words in_notebook shows_bars"),
    "hub": ("why_missing"),
    "system": ("birth_of bytes_read is_running memory_of mount_point_of mounts sys_is_linux"),
})
