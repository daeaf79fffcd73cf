"""The functions behind `cad-mllm COMMAND`."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "preparing": ("num_processes prepare_data shard synth"),
    "training": ("check_before configs plan run_train train_parser"),
    "completing": ("INDEX REQUEST_FIELDS card complete evaluate read_requests"),
    "files": ("SHAPE_FILES checkpoints export freecad_macro inspect reconstruct upload"),
})
