"""Executes build123d or CadQuery scripts and prints their volumes; benchmarks/histories.py starts it with an
interpreter that has the library.

usage: python benchmarks/run_scripts.py LIST REPORT

LIST names a script a line; REPORT gets a line of JSON when each begins and ends.
"""
import json
import sys
import time
from pathlib import Path


def volume(path):
    "The volume in cubic millimetres of the part that a script makes."
    names = {}
    exec(compile(Path(path).read_text(), path, "exec"), names)
    part = names["part"]
    return part.part.volume if hasattr(part, "part") else sum(s.Volume() for s in part.vals())


def main(listed, report):
    for path in Path(listed).read_text().splitlines():
        with open(report, "a") as f: f.write(json.dumps({"begins": path}) + "\n")
        start = time.process_time()
        try: found = {"path": path, "volume": volume(path)}
        except Exception as e: found = {"path": path, "failed": f"{type(e).__name__}: {e}"[:120]}
        with open(report, "a") as f: f.write(json.dumps({**found, "seconds": time.process_time() - start}) + "\n")


if __name__ == "__main__": main(*sys.argv[1:])
