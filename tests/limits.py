"""A limit for every process that a test starts: after nine minutes it prints all its stacks and ends, so that a hang is
a failure with a name.

Tests have ten minutes (pyproject.toml). `for_every_child` gives each process that is started with `subprocess` the
limit in its environment; a Python process reads it before anything else, in `limits_at_start/sitecustomize.py`.
A fork takes the limit of its parent, from its own start. A server that many tests use is started with
`CAD_MLLM_TEST_SECONDS=0`.
"""
import faulthandler
import os
import subprocess
import sys
from pathlib import Path

SECONDS, CHILD_SECONDS = "CAD_MLLM_TEST_SECONDS", 540
AT_START = Path(__file__).parent/"limits_at_start"
# live as long as the process that needs them
SHARED = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


ARMED = {}                                 # seconds and file of this process's limit


def arm(seconds=None, file=2):
    "End this process with all stacks after so many seconds, by default what the environment says; 0 is no limit."
    seconds = float(os.environ.get(SECONDS, CHILD_SECONDS) if seconds is None else seconds)
    if seconds and not any(name in word for name in SHARED for word in sys.orig_argv):
        ARMED.update(seconds=seconds, file=file)
        _watch()


def disarm():
    "No limit any more."
    ARMED.clear()
    faulthandler.cancel_dump_traceback_later()


def _watch():
    if ARMED: faulthandler.dump_traceback_later(ARMED["seconds"], exit=True, file=ARMED["file"])


# A fork has no watching thread, but waits for it when it sets a limit or ends: so nobody forks while that thread is
# there.
os.register_at_fork(before=faulthandler.cancel_dump_traceback_later, after_in_parent=_watch, after_in_child=_watch)


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
