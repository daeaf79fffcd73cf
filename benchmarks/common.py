"""What the scripts of this folder share: their arguments, the line about the machine, times and tables."""
import argparse
import os
import platform
import time
from pathlib import Path

from cad_mllm.utils.cpus import allotted_cpus


def make_parser(
    doc: str, # of the script
    out: bool = True, # with --out
) -> argparse.ArgumentParser:
    "A parser that shows the script's text as it stands."
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if out:
        parser.add_argument("--out", type=Path, help="a Markdown file for the result, which it replaces")
    return parser


def machine_line() -> str:
    "Where and beside what a script runs, in a few words: for the first line of a result."
    return (
        f"{allotted_cpus()} processors ({platform.machine()}), Python {platform.python_version()}, load "
        f"{os.getloadavg()[0]:.1f} when it began"
    )


def timed(func, *args, **more) -> tuple: # (seconds, result)
    "Call a function and look at the clock."
    began = time.perf_counter()
    result = func(*args, **more)
    return time.perf_counter() - began, result


def cpu_seconds() -> float:
    "CPU seconds of this process so far, and of those that it started and that have ended."
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def cpu_timed(func, *args, **more) -> tuple: # (CPU seconds, result)
    "As `timed`, for a machine that does other work: seconds that other processes take do not count."
    began = cpu_seconds()
    result = func(*args, **more)
    return cpu_seconds() - began, result


def table_head(
    *words: str,
) -> list: # of two lines
    "How a Markdown table begins."
    return [f"| {' | '.join(words)} |", "|" + "---|"*len(words)]


def table(
    head: tuple, # words of the first row
    rows: list, # of tuples
) -> str:
    "A Markdown table."
    return "\n".join(table_head(*head) + [f"| {' | '.join(map(str, row))} |" for row in rows]) + "\n"


def write_out(
    out: Path | str | None, # where a result goes; nowhere
    text: str,
):
    "Write a result to the file that was asked for, if any."
    if not out:
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
