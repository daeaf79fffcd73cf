#!/usr/bin/env python3
"""Run notebooks from top to bottom and store their outputs, for those who read them without running: `run_notebooks.py [NAME ...]`.

An output larger than MAX_OUTPUT is an error: notebooks stay small in git.
"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
MAX_OUTPUT = 120_000


def size(output): return len(str(output.get("data", output.get("text", ""))))


def main():
    wanted = sys.argv[1:]
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        if wanted and path.stem not in wanted or "tutorials" in path.parts and not wanted: continue
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
        for cell in notebook.cells:
            cell.get("outputs", [])[:] = [o for o in cell.get("outputs", []) if not (o.output_type == "stream" and o.name == "stderr")]
            if any(size(o) > MAX_OUTPUT for o in cell.get("outputs", [])): sys.exit(f"{path}: an output is larger than {MAX_OUTPUT:,} characters: {cell.source[:80]}")
        nbformat.write(notebook, path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
