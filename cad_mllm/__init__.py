__version__ = "0.2.0"

_HOMES = {
    "CADMLLMConfig": "config", "TrainConfig": "config", "CurriculumStage": "config", "recipe": "config",
    "CADProgram": "cad", "CADFormatError": "cad", "MultimodalAutocompleteDataset": "data", "CADMLLMModel": "models",
    "save_checkpoint": "checkpoints", "load_checkpoint": "checkpoints", "list_checkpoints": "checkpoints",
    "CADAutocomplete": "inference", "autocomplete_cad": "inference", "view3d": "geometry", "CheckpointPanel": "panel",
}


def __getattr__(name):
    "Import a name of the package's face from its module when it is first used, so that `import cad_mllm` stays light."
    if name not in _HOMES: raise AttributeError(f"module 'cad_mllm' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"cad_mllm.{_HOMES[name]}"), name)


def __dir__(): return sorted([*globals(), *_HOMES])
