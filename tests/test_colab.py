"""The Colab notebook from top to bottom, with a pretended `google.colab` and a Drive-like folder, and a disconnect
in the middle that leaves nothing but the Drive."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT/"nbs"/"tutorials"/"colab.ipynb"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not NOTEBOOK.exists(), reason="nbs/tutorials/colab.ipynb is not there (an installed package has no notebooks)"
    )
]
SETTINGS = {"DATA": '"synthetic"', "NUM_PARTS": "400"}   # as the form in the notebook has them


def code_cells():
    return ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def write_runtime(folder, cells, **settings):
    """A fresh runtime in `folder`: the notebook's cells as one script, /content inside the folder, and a
    google.colab whose Drive is whatever lies in content/drive."""
    text = "\n".join(cells)
    assert '"/content' in text
    for name, value in settings.items():
        assert f"\n{name} = {SETTINGS[name]} #@param" in text
        text = text.replace(f"\n{name} = {SETTINGS[name]} #@param", f"\n{name} = {value} #@param")
    text = text.replace('"/content', f'"{folder}/content')
    (folder/"google"/"colab").mkdir(parents=True, exist_ok=True)
    (folder/"google"/"colab"/"__init__.py").write_text("")
    (folder/"google"/"colab"/"drive.py").write_text(
        "def mount(where): __import__('pathlib').Path(where, 'MyDrive').mkdir(parents=True, exist_ok=True)\n"
    )
    (folder/"cells.py").write_text(text)


def start(folder):
    env = {
        **os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "CUDA_VISIBLE_DEVICES": "", "HOME": str(folder),
        "TMPDIR": str(folder)
    }
    with open(folder/"cells.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "cells.py"], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True
        )


def wait_for(holds, process, folder, seconds=420):
    until = time.time() + seconds
    while not holds():
        assert process.poll() is None and time.time() < until, (folder/"cells.log").read_text()[-3000:]
        time.sleep(.2)


def lose_the_runtime(folder, process, run):
    """What a disconnect does: every process ends, the local disk is empty, and the Drive remembers a machine that
    nobody can ask any more."""
    status = json.loads((run/"status.json").read_text())
    os.killpg(process.pid, signal.SIGKILL)
    os.kill(status["pid"], signal.SIGKILL)
    process.wait()
    for name in ("launch.json", "status.json"):
        said = json.loads((run/name).read_text())
        (run/name).write_text(json.dumps(dict(said, host="the-runtime-before")))
        os.utime(run/name, (time.time() - 900, time.time() - 900))
    kept = folder/"content"/"drive"
    for path in [p for p in (*folder.iterdir(), *(folder/"content").iterdir()) if p not in (kept, folder/"content")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [
        p.name for p in folder.rglob("*") if p.parent == folder or p.parent == folder/"content"
    ] == ["content", "drive"]


def test_disconnect_and_run_again(tmp_path):
    from cad_mllm.checkpoints import list_checkpoints
    run = tmp_path/"content"/"drive"/"MyDrive"/"CAD-MLLM"/"checkpoints"/"run1"
    write_runtime(tmp_path, code_cells(), NUM_PARTS=24)
    first = start(tmp_path)
    wait_for(lambda: (run/"stage1_text_model"/"manifest.json").exists(), first, tmp_path)
    lose_the_runtime(tmp_path, first, run)
    newest = max(r.step for r in list_checkpoints(run) if r.complete)
    assert not (run/"final_model").exists() and newest > 0

    write_runtime(tmp_path, code_cells(), NUM_PARTS=24)
    second = start(tmp_path)
    assert second.wait(420) == 0, (tmp_path/"cells.log").read_text()[-3000:]
    assert (run/"final_model").exists() and json.loads((run/"status.json").read_text())["state"] == "done"
    events = [json.loads(line) for line in (run/"events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "resume"] == [newest]
    steps = {json.loads(line)["step"] for line in (run/"metrics.jsonl").read_text().splitlines()}
    assert steps == set(range(1, max(steps) + 1))
    assert list((run.parent.parent/"completions").glob("flange*.json"))


def test_omni_cad_is_fetched_and_prepared(tmp_path, small_data):
    "The cells up to the data, with a hub that hands out a small archive of the same layout."
    source = tmp_path/"archive"/"Omni-CAD"
    for name in ("json", "txt"): shutil.copytree(small_data/name, source/name)
    shutil.make_archive(str(tmp_path/"Omni-CAD"), "zip", tmp_path/"archive")
    (tmp_path/"huggingface_hub.py").write_text(
        "def hf_hub_download(repo, name, repo_type, local_dir):\n    assert (repo, name, repo_type) == "
        f"('jingwei-xu-00/Omni-CAD', 'Omni-CAD.zip', 'dataset')\n    return {str(tmp_path/'Omni-CAD.zip')!r}\n"
    )
    cells = code_cells()
    last = next(i for i, text in enumerate(cells) if "hf_hub_download" in text)
    write_runtime(tmp_path, cells[:last + 1], DATA='"omni-cad"', NUM_PARTS=3)
    for _ in range(2):                                      # the second time there is nothing left to do
        process = start(tmp_path)
        assert process.wait(300) == 0, (tmp_path/"cells.log").read_text()[-3000:]
    data = tmp_path/"content"/"data"
    names = sorted(p.stem for p in data.glob("json/*/*.json"))
    assert len(names) == 3 and (data/"complete").exists()
    for name in names:
        assert (
            list(data.glob(f"json_truncated/*/{name}_tr_*.json")) and list(data.glob(f"pointcloud/*/{name}.npz"))
            and list(data.glob(f"img/*/{name}*.png"))
        )


def test_nothing_that_colab_has_is_replaced(tmp_path):
    "The install cell gives pip every installed version as a constraint."
    cell = next(text for text in code_cells() if "pip" in text and "installed.txt" in text).split("import cad_mllm")[0]
    (tmp_path/"cad_mllm-0.0.0-py3-none-any.whl").write_text("")
    # without an address, the wheel that lies there
    for source, given in (("git+repository", "git+repository"), ("", "cad_mllm-0.0.0-py3-none-any.whl")):
        assert asked_of_pip(cell, source, tmp_path) == ["installed.txt", given]
    listed = {line.split("==")[0].lower() for line in (tmp_path/"installed.txt").read_text().splitlines()}
    assert {"torch", "ipywidgets", "numpy"} <= listed


def test_cells_are_forms_with_progress_under_them():
    "Settings are `#@param` fields, every cell has a title, and what a command says is printed as it goes."
    cells = code_cells()
    fields = [line for line in cells[0].splitlines() if "=" in line]
    assert len(fields) == 5 and all("#@param" in line for line in fields)
    assert [c[:60] for c in cells if "#@title" not in c] == []
    follow = next(c for c in cells if "def follow" in c)
    script = "import subprocess, sys\n" + follow[follow.index("def follow"):follow.index("def newest_wheel")]
    script += (
        "follow('-c', 'print(1); import sys; sys.stderr.write(chr(13) + \" 50%|##  |\" + chr(13) + \"100%|####|\" + "
        "chr(10)); print(2)')\nfollow('-c', 'raise SystemExit(3)')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (
        done.stdout.split(b"\n")[0] == b"1" and b"50%|##" in done.stdout and b"|\n" not in done.stdout
        and b"exit code 3" in done.stderr
    )


def asked_of_pip(cell, source, folder):
    "The constraints and the source that the install cell gives pip where nothing is installed."
    script = f"import subprocess, sys\nfrom pathlib import Path\nasked = []\n\nSOURCE = {source!r}\n" \
             "import importlib.util; importlib.util.find_spec = lambda name: None\n" + cell.replace(
                 "if importlib.util", "def follow(*words): asked.append(words)\nif importlib.util"
             ) + "\nprint(asked[0][asked[0].index('-c') + 1], Path(asked[0][-1]).name)"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()
