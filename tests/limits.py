"""A limit for every process that a test starts: after nine minutes it prints all its stacks and ends, so that a hang is a failure with a name.

Tests have ten minutes (pyproject.toml). `for_every_child` gives each process that is started with `subprocess` the limit in its environment; a Python process reads it before anything else, in `limits_at_start/sitecustomize.py`.
A fork has no such start: it calls `arm` itself. A server that many tests use is started with `CAD_MLLM_TEST_SECONDS=0`.
"""
import faulthandler
import os
import subprocess
import sys
from pathlib import Path

SECONDS, CHILD_SECONDS = "CAD_MLLM_TEST_SECONDS", 540
AT_START = Path(__file__).parent/"limits_at_start"
SHARED = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")   # live as long as the process that needs them


def arm(seconds=None):
    "End this process with all stacks after so many seconds, by default what the environment says; 0 is no limit."
    seconds = float(os.environ.get(SECONDS, CHILD_SECONDS) if seconds is None else seconds)
    if seconds and not any(name in word for name in SHARED for word in sys.orig_argv):
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


def limited(env):
    "The environment of a child, with the limit in it."
    env = dict(os.environ if env is None else env)
    env.setdefault(SECONDS, str(CHILD_SECONDS))
    paths = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(AT_START)]
    return env | dict(PYTHONPATH=os.pathsep.join([str(AT_START), *paths]))


def for_every_child():
    "From here on, `subprocess` starts no process without the limit."
    class Popen(subprocess.Popen):
        def __init__(self, *args, env=None, **how): super().__init__(*args, env=limited(env), **how)
    if subprocess.Popen.__module__ == "subprocess": subprocess.Popen = Popen
