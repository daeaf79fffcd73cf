#!/usr/bin/env python3
"""Test notebooks as `nbdev_test` does, each with a limit: `python tools/test_notebooks.py [--minutes 10] [--jobs 2]
[--flags slow] [NOTEBOOK ...]`.

Each notebook runs in a process of its own, forked from this one after what they all import. One that is not through
after its limit prints all its stacks and ends, so that a hang is a failure with a name.
"""
import argparse
import contextlib
import faulthandler
import io
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77                               # exit code of a notebook that needs what this machine lacks
SHARED_IMPORTS = ("torch", "transformers", "matplotlib.pyplot", "scipy.spatial", "nbdev.test", "execnb.shell")


def test_one(path, minutes, flags):
    """In the child: run one notebook's cells; exit code 1 when a cell fails, `SKIPPED` when it failed for want of
    OpenCascade."""
    from nbdev.config import get_config
    from nbdev.test import test_nb
    faulthandler.dump_traceback_later(60*minutes, exit=True, file=sys.__stderr__)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        passed, _ = test_nb(path, skip_flags=get_config().tst_flags.split(), force_flags=flags.split(), basepath=ROOT)
    faulthandler.cancel_dump_traceback_later()
    reason = "" if passed else why_skipped(said.getvalue())
    print(f"{path.name}: skipped: {reason}" if reason else said.getvalue(), end="\n" if reason else "", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(SKIPPED if reason else not passed)


def why_skipped(text):
    "Why a notebook that failed with this text counts as skipped, or an empty string."
    sys.path.insert(0, str(ROOT/"tests"))
    from absent import reason_to_skip
    return reason_to_skip(text)


@dataclass
class Running:
    "A notebook in its process."
    path: Path
    process: multiprocessing.Process
    began: float


def start(path, minutes, flags):
    "Begin a notebook in a fork of this process."
    process = multiprocessing.get_context("fork").Process(target=test_one, args=(path, minutes, flags))
    process.start()
    return Running(path, process, time.monotonic())


def outcome(running, minutes):
    "Tell how a notebook ended; True unless it failed."
    running.process.join()
    seconds, name = time.monotonic() - running.began, os.path.relpath(running.path, ROOT)
    skipped = running.process.exitcode == SKIPPED
    passed = running.process.exitcode == 0 or skipped
    why = (
        "" if passed else f": no end after {minutes:g} minutes, its stacks are above" if seconds >= 60*minutes
        else f": exit code {running.process.exitcode}"
    )
    print(f"{'skipped' if skipped else 'ok     ' if passed else 'FAILED '} {seconds:6.1f} s  {name}{why}", flush=True)
    return passed


def run(paths, jobs, minutes, flags):
    "Notebooks that failed, of all that were run, `jobs` at a time."
    waiting, running, failed = list(paths), [], []
    while waiting or running:
        while waiting and len(running) < jobs: running.append(start(waiting.pop(0), minutes, flags))
        ended = wait([r.process.sentinel for r in running])
        for r in [r for r in running if r.process.sentinel in ended]:
            running.remove(r)
            if not outcome(r, minutes): failed.append(r.path)
    return failed


def notebooks(names):
    "The notebooks of these names, or all that nbdev tests."
    from nbdev.doclinks import nbglob
    return [Path(name).resolve() for name in names] or [p.absolute() for p in sorted(nbglob(as_path=True))]


def main():
    sys.path.insert(0, str(ROOT))
    from cad_mllm.utils.cpus import allotted_cpus
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--minutes", type=float, default=10, help="that one notebook may take")
    parser.add_argument("--jobs", type=int, default=allotted_cpus(), help="notebooks at a time")
    parser.add_argument("--flags", default="", help="flags of cells that are left out otherwise, such as slow")
    parser.add_argument("--again", action="store_true", help="run what failed once more, alone, before it counts")
    args = parser.parse_args()
    os.chdir(ROOT)
    paths = notebooks(args.notebooks)
    for name in SHARED_IMPORTS if len(paths) > 1 else (): import_module(name)
    failed = run(paths, args.jobs, args.minutes, args.flags)
    if failed and args.again:
        print(
            f"once more, alone: {len(failed)} that failed beside others; what passes now is unsteady, and a fault to "
            "look at"
        )
        failed = run(failed, 1, args.minutes, args.flags)
    print(f"{len(paths) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
