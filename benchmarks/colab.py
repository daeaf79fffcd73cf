#!/usr/bin/env python3
"""The Colab notebook, cell by cell, as a fresh runtime meets it: `colab.py` writes benchmarks/results/colab.md;
`--store` also stores the outputs in the notebook.

A pretended `google.colab` mounts an ordinary folder as the Drive. The runtime is a fresh virtual environment that sees
the packages of this one, as Colab's has torch and its kin, but not cad_mllm:
the notebook installs it from a wheel in the Drive. What Colab does not have (OpenCascade, Manifold) is installed first,
and counted.
"""
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
from run_notebooks import trim  # noqa: E402   (beside this folder)
from cad_mllm.utils.cpus import allotted_cpus  # noqa: E402
from common import make_parser, table_head

NOTEBOOK = ROOT/"nbs"/"tutorials"/"colab.ipynb"
MISSING = ("cadquery-ocp", "manifold3d")             # what Colab's image lacks of our requirements
MAX_STEPS = 30


def fresh_runtime(home):
    "A virtual environment and a Drive with a wheel in it; its python, and the seconds that the missing packages took."
    drive = home/"content"/"drive"/"MyDrive"/"CAD-MLLM"
    drive.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(drive), str(ROOT)],
        check=True
    )
    subprocess.run([sys.executable, "-m", "venv", str(home/"venv")], check=True)
    python = home/"venv"/"bin"/"python"
    site = Path(
        subprocess.run(
            [str(python), "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True,
            check=True
        ).stdout.strip()
    )
    (site/"colab.pth").write_text(
        subprocess.run(
            [sys.executable, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True,
            check=True
        ).stdout
    )
    package = site/"google"/"colab"
    package.mkdir(parents=True)
    (package/"__init__.py").touch()
    (package/"drive.py").write_text("def mount(where): pass\n")
    (package/"output.py").write_text("def register_callback(name, func): pass\n")
    began = time.monotonic()
    wanted = [f"{name}=={version(name)}" for name in MISSING]
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", "--no-cache-dir", *wanted],
        check=True
    )
    return python, time.monotonic() - began


def run(home, python):
    "Execute the notebook there; the notebook with outputs and times."
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"/content', f'"{home}/content').replace(
            "\nMAX_STEPS = 0 ", f"\nMAX_STEPS = {MAX_STEPS} "
        )
    kernel = home/"data"/"kernels"/"runtime"
    kernel.mkdir(parents=True)
    (kernel/"kernel.json").write_text(
        json.dumps(
            dict(
                argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="runtime",
                language="python"
            )
        )
    )
    os.environ.update(JUPYTER_DATA_DIR=str(home/"data"), PYTHONPATH="", IPYTHONDIR=str(home/"ipython"))
    NotebookClient(
        notebook, timeout=3000, kernel_name="runtime", store_widget_state=False,
        resources={"metadata": {"path": str(home)}}
    ).execute()
    return notebook


def moment(text): return datetime.fromisoformat(text.replace("Z", "+00:00"))


def table(notebook, home, install):
    "Seconds of each cell as Markdown, and when the first step of the training was logged."
    lines, begins = [], None
    for cell in notebook.cells:
        if cell.cell_type != "code" or "execution" not in cell.metadata: continue
        began = moment(cell.metadata["execution"]["iopub.execute_input"])
        ended = moment(cell.metadata["execution"]["shell.execute_reply"])
        begins = begins or began
        title = next(
            (line.removeprefix("#@title ") for line in cell.source.splitlines() if line.startswith("#@title")), ""
        )
        lines.append(f"| {title} | {(ended - began).total_seconds():.1f} |")
    first = json.loads(next(home.rglob("metrics.jsonl")).read_text().splitlines()[0])
    until = datetime.fromisoformat(first["time"]).timestamp() - begins.timestamp() + install
    return "\n".join(
        [
            *table_head("cell", "seconds"), f"| {' and '.join(MISSING)}, which Colab lacks | {install:.1f} |",
            *lines, "",
            f"From a fresh runtime to the first step of the training: {until:.0f} s, on {allotted_cpus()} CPU cores "
            f"without a GPU, {datetime.now():%Y-%m-%d}, tiny recipe, 400 synthetic parts, {MAX_STEPS} steps."
        ]
    ) + "\n"


def compact(outputs):
    "What a reader sees in the end: printed text in one piece, of a progress bar its last state, of pip its last line."
    text = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stdout")
    lines = [line.rstrip("\r ").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    if any(line.startswith("Successfully installed") for line in lines):
        lines = ["Successfully installed cad-mllm", lines[-2]]
    told = "".join(f"{line}\n" for line in lines if line)
    return (
        [dict(output_type="stream", name="stdout", text=told)] if told else []
    ) + [o for o in outputs if o["output_type"] != "stream"]


def store(notebook, home):
    "Keep the outputs in the notebook of the repository, under Colab's paths; the panel's are pictures of it."
    kept = nbformat.read(NOTEBOOK, as_version=4)
    picture = base64.b64encode((ROOT/"nbs"/"images"/"panel.png").read_bytes()).decode()
    for cell, ran in zip(kept.cells, notebook.cells):
        if cell.cell_type != "code": continue
        text = json.dumps(ran.outputs).replace(str(home/"content"), "/content").replace(str(home), "/content")
        cell.outputs = [nbformat.from_dict(o) for o in compact(json.loads(text))]
        for output in cell.outputs:
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                shown = {"image/png": picture} if "CheckpointPanel" in cell.source else {}
                output["data"] = nbformat.from_dict({**shown, "text/plain": "shown as it goes"})
    trim(kept)
    nbformat.write(kept, NOTEBOOK)


def main():
    parser = make_parser(__doc__, out=False)
    parser.add_argument("--store", action="store_true", help="also store the outputs in the notebook")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        python, install = fresh_runtime(home)
        notebook = run(home, python)
        found = table(notebook, home, install)
        (ROOT/"benchmarks"/"results"/"colab.md").write_text(found)
        print(found)
        if options.store: store(notebook, home)


if __name__ == "__main__":
    main()
