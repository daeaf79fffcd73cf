"""The earlier place of the token language: everything is in `cad_mllm.cad`."""
import cad_mllm.cad as _chapter


def __getattr__(name):
    "Hand on a name of the chapter."
    return getattr(_chapter, name)


def __dir__():
    return dir(_chapter)
