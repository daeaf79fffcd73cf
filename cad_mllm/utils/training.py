"""What the first description of the system keeps here: saving, loading and pruning checkpoints, and training.

The names are at home in `cad_mllm.checkpoints` and `cad_mllm.training`; nothing is imported before it is used.
"""
from importlib import import_module


def __getattr__(name):
    "Hand on a name of the checkpoints or of the training chapter."
    if not name.startswith("__"):
        for chapter in ("cad_mllm.checkpoints", "cad_mllm.training"):
            module = import_module(chapter)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *import_module("cad_mllm.checkpoints").__all__, *import_module("cad_mllm.training").__all__})
