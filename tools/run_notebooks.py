#!/usr/bin/env python3
"""Run notebooks from top to bottom and store their outputs, for those who read them without running: `run_notebooks.py
[NAME ...]`.

Notebooks stay small in git: an output over MAX_OUTPUT characters is left out, as are the largest ones of a notebook
over MAX_NOTEBOOK, warnings of
the kernel, and text that names a folder of this machine.
"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
MAX_OUTPUT, MAX_NOTEBOOK = 150_000, 350_000


def size(output): return len(str(output.get("data", output.get("text", ""))))


def unfit(output):
    "Whether an output does not belong into git."
    text = str(output.get("text", "")) + str({k: v for k, v in output.get("data", {}).items() if k.startswith("text/")})
    return (
        size(output) > MAX_OUTPUT or output.get("name") == "stderr" or str(ROOT) in text or sys.prefix in text
        or str(Path.home()) in text
    )


def trim(notebook):
    "Leave out what is unfit, then the largest outputs until the rest is small enough."
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = [o for o in cell.outputs if not unfit(o)]
    outputs = [(size(o), cell, o) for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    while sum(n for n, *_ in outputs) > MAX_NOTEBOOK:
        largest = max(outputs, key=lambda o: o[0])
        outputs.remove(largest)
        largest[1].outputs.remove(largest[2])


def main():
    wanted = sys.argv[1:]
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        if wanted and path.stem not in wanted or "tutorials" in path.parts and not wanted: continue
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=1200, store_widget_state=False, kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}}
        ).execute()
        trim(notebook)
        nbformat.write(notebook, path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
