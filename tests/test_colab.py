"The Colab notebook from top to bottom, with a pretended `google.colab` and a Drive-like folder, and a disconnect in the middle."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT/"nbs"/"tutorials"/"colab.ipynb"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NOTEBOOK.exists(), reason="nbs/tutorials/colab.ipynb is not there (an installed package has no notebooks)")]


def write_script(folder, max_steps):
    "The notebook's code cells as one script, with few parts, and /content inside `folder`."
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    text = "\n".join(cells)
    assert '"tiny", 400, 0' in text and '"/content' in text
    text = text.replace('"tiny", 400, 0', f'"tiny", 24, {max_steps}').replace('"/content', f'"{folder}/content')
    (folder/"google"/"colab").mkdir(parents=True, exist_ok=True)
    (folder/"google"/"colab"/"__init__.py").write_text("")
    (folder/"google"/"colab"/"drive.py").write_text("def mount(where): __import__('pathlib').Path(where, 'MyDrive').mkdir(parents=True, exist_ok=True)\n")
    (folder/"cells.py").write_text(text)


def start(folder, max_steps=0):
    write_script(folder, max_steps)
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder/"cells.log", "ab") as log:
        return subprocess.Popen([sys.executable, "cells.py"], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(holds, process, folder, seconds=420):
    until = time.time() + seconds
    while not holds():
        assert process.poll() is None and time.time() < until, (folder/"cells.log").read_text()[-3000:]
        time.sleep(.2)


def test_disconnect_and_run_again(tmp_path):
    run = tmp_path/"content"/"drive"/"MyDrive"/"CAD-MLLM"/"checkpoints"/"run1"
    first = start(tmp_path)
    wait_for(lambda: (run/"stage1_text_model").exists(), first, tmp_path)
    training = json.loads((run/"status.json").read_text())["pid"]
    os.killpg(first.pid, signal.SIGKILL)
    os.kill(training, signal.SIGKILL)                       # the runtime is gone; what is on Drive stays
    assert not (run/"final_model").exists()

    second = start(tmp_path)
    assert second.wait(420) == 0, (tmp_path/"cells.log").read_text()[-3000:]
    assert (run/"final_model").exists() and json.loads((run/"status.json").read_text())["state"] == "done"
    events = [json.loads(line) for line in (run/"events.jsonl").read_text().splitlines()]
    resumed, = [i for i, e in enumerate(events) if e["event"] == "resume"]
    assert events[resumed]["step"] == [e["step"] for e in events[:resumed] if e["event"] == "checkpoint"][-1] > 0
    steps = {json.loads(line)["step"] for line in (run/"metrics.jsonl").read_text().splitlines()}
    assert steps == set(range(1, max(steps) + 1))
    assert list((run.parent.parent/"completions").glob("flange*.json"))
