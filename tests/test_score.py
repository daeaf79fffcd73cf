"Scoring two folders and examining a data set: real worker processes, hangs, crashes, kills, other forms of files."
import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cad_mllm.data import report as report_module
from cad_mllm.metrics import scoring as module
from cad_mllm.cad import CADProgram
from cad_mllm.data import data_report
from cad_mllm.geometry.workers import _close_workers
from cad_mllm.geometry import build_solid
from cad_mllm.metrics import read_part, score
from cad_mllm.data import make_part

NUM = 6


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    root = tmp_path_factory.mktemp("truth")
    for i in range(NUM): make_part(4, i)[1].save(root/f"{make_part(4, i)[0]}.json")
    return root


def test_every_form_of_file_measures_the_same_part(truth, tmp_path):
    """JSON, STL, PLY, OBJ, GLB, points and STEP of the same solids against their histories: near perfect, each by
    what it holds."""
    for i, suffix in enumerate((".stl", ".ply", ".obj", ".glb", ".npz", ".json")):
        id, program, _ = make_part(4, i)
        (tmp_path/"pred"/id).parent.mkdir(parents=True, exist_ok=True)
        solid = build_solid(program, kernel="manifold")
        if suffix == ".json": program.save(tmp_path/"pred"/f"{id}.json")
        elif suffix == ".npz": np.savez(tmp_path/"pred"/f"{id}.npz", points=solid.points(2000, seed=9))
        else: solid.export(tmp_path/"pred"/f"{id}{suffix}")
    found = score(tmp_path/"pred", truth, tmp_path/"out", jobs=2, num_points=800)
    assert found.invalidity_ratio == 0 and len(found.summary) == NUM
    rows = {r["metric"]: r for r in found.summary.table()}
    assert rows["chamfer"]["num"] == NUM and rows["iou"]["num"] == NUM - 1 and rows["command_accuracy"]["num"] == 1
    assert (
        rows["iou"]["mean"] > .995 and rows["closed"]["mean_all"] == 1 and rows["command_accuracy"]["mean_all"] == 1
        and rows["chamfer"]["mean"] < .08
    )
    assert found.f1["line"] in (1, pytest.approx(1)) or np.isnan(found.f1["line"])
    table = list(csv.DictReader(open(tmp_path/"out/scores.csv")))
    assert len(table) == NUM and all(row["status"] == "scored" and float(row["chamfer"]) > 0 for row in table)
    assert (
        "2000 points" not in (report := " ".join((tmp_path/"out/score.md").read_text().split()))
        and "800 points from each surface" in report and "seed 0 for predictions" in report
    )
    from PIL import Image
    assert (
        Image.open(tmp_path/"out/sheet.png").size == (660, 3*244)
        and Image.open(tmp_path/"out/distributions.png").width > 300
    )


def test_step_files(truth, tmp_path):
    pytest.importorskip("OCP")
    id, program, _ = make_part(4, 0)
    (tmp_path/"pred"/id).parent.mkdir(parents=True)
    build_solid(program).export(tmp_path/"pred"/f"{id}.step")
    values = module.score_parts(read_part(tmp_path/"pred"/f"{id}.step"), read_part(truth/f"{id}.json"), num_points=500)
    assert values["iou"] > .99 and values["closed"] and values["sege"] == 0


def test_hangs_crashes_and_their_culprits(truth, tmp_path, monkeypatch):
    "A prediction that hangs or kills its worker is a failure; a truth that does is left out; the others are measured."
    (tmp_path/"bad_reader.py").write_text(
        "import os, time\nfrom cad_mllm.metrics import scoring as module\nread = module.read_part\n"
        "def bad(path, *args):\n"
        "    if 'pred' in str(path) and '00000001' in str(path): time.sleep(600)\n"
        "    if 'pred' in str(path) and '00000002' in str(path): os._exit(7)\n"
        "    if 'pred' not in str(path) and '00000003' in str(path): os._exit(7)\n"
        "    return read(path, *args)\n"
        "def one(task): module.read_part = bad; return module._score_one(task)\n"
        "def truth(task): module.read_part = bad; return task and read_truth(task)\n"
        "read_truth = module._read_truth\n")
    monkeypatch.syspath_prepend(tmp_path)
    _close_workers()
    import bad_reader
    monkeypatch.setattr(module, "_score_one", bad_reader.one)
    monkeypatch.setattr(module, "_read_truth", bad_reader.truth)
    for i in range(NUM): make_part(4, i)[1].save(tmp_path/"pred"/f"{make_part(4, i)[0]}.json")
    found = score(tmp_path/"pred", truth, tmp_path/"out", jobs=2, timeout=12, num_points=100, draw=False)
    assert {k[5:13]: "no answer within 12 s" in v or "died" in v for k, v in found.summary.failures.items()} == {
        "00000001": True, "00000002": True
    }
    assert [k[5:13] for k in found.left_out] == ["00000003"] and len(found.summary.results) == NUM - 3
    monkeypatch.setattr(module, "_score_one", None)            # known by now: nothing is started
    assert repr(
        score(tmp_path/"pred", truth, tmp_path/"out", jobs=2, timeout=12, num_points=100, draw=False)
    ) == repr(found)
    _close_workers()


def test_killed_and_resumed(truth, tmp_path):
    "A kill in the middle: what was measured is kept, the end is the same."
    code = (
        f"from cad_mllm.metrics import score; score({str(truth)!r}, {str(truth)!r}, {str(tmp_path/'out')!r}, jobs=0, "
        "num_points=400, draw=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stderr=subprocess.DEVNULL
    )
    log, end = tmp_path/"out/outcomes.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 2) and process.poll() is None and time.monotonic() < end:
        time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line)["stamp"] for line in log.read_text().splitlines()[:2]]
    found = score(truth, truth, tmp_path/"out", jobs=0, num_points=400, draw=False)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}") and line]
    assert (
        [line["stamp"] for line in lines][:2] == kept and len({line["stamp"] for line in lines}) == NUM
        and found.invalidity_ratio == 0
    )
    assert repr(found).splitlines()[:-1] == repr(
        score(truth, truth, tmp_path/"fresh", jobs=0, num_points=400, draw=False)
    ).splitlines()[:-1]


def test_data_report_in_workers(truth, tmp_path, monkeypatch):
    """The same diagnosis from processes as from none; a history that kills its worker costs itself; twins across a
    split are leaks."""
    for path in sorted(truth.rglob("*.json")):
        (tmp_path/"set/json/0000").mkdir(parents=True, exist_ok=True)
        (tmp_path/"set/json/0000"/path.name).write_bytes(path.read_bytes())
    first = sorted((tmp_path/"set/json/0000").iterdir())[0]
    (tmp_path/"set/json/0000/99999999_00001.json").write_bytes(first.read_bytes())
    (tmp_path/"split.json").write_text(
        json.dumps(
            {
                "train": [f"0000/{p.stem}" for p in sorted((tmp_path/"set/json/0000").iterdir())[:-1]],
                "test": ["0000/99999999_00001"]
            }
        )
    )
    alone = data_report(tmp_path/"set", tmp_path/"a", split_file=tmp_path/"split.json", jobs=0, draw=False)
    many = data_report(tmp_path/"set", tmp_path/"b", split_file=tmp_path/"split.json", jobs=2, draw=False)
    assert (
        repr(alone) == repr(many)
        and (tmp_path/"a/data_report.json").read_text() == (tmp_path/"b/data_report.json").read_text()
    )
    assert alone.num_duplicates == 2 and alone.leaks["test of split.json"]["leaked"] == 1
    (tmp_path/"bad_report.py").write_text(
        "import os\nfrom cad_mllm.data import report as module\nexamine = module._examine\n"
        "def one(task):\n    if '00000003' in task[0]: os._exit(5)\n    return examine(task)\n"
        "def many(tasks): return [one(t) for t in tasks]\n")
    monkeypatch.syspath_prepend(tmp_path)
    _close_workers()
    import bad_report
    monkeypatch.setattr(report_module, "_examine_many", bad_report.many)
    monkeypatch.setattr(report_module, "_examine", bad_report.one)
    found = data_report(tmp_path/"set", tmp_path/"c", jobs=1, draw=False)
    assert found.missing["histories"] == {"worker: crash": 1} and found.present["histories"] == NUM
    _close_workers()


def test_real_histories(real_root, tmp_path):
    "Twenty of them against themselves by their tokens, and the report over all."
    from cad_mllm.cad import decode, encode
    files = sorted(real_root.glob("json/*/*.json"))[::6]
    for f in files:
        id = f.relative_to(real_root/"json")
        (tmp_path/"gt"/id).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/"gt"/id).write_bytes(f.read_bytes())
        decode(encode(CADProgram.from_json(f))).save(tmp_path/"pred"/id)
    found = score(tmp_path/"pred", tmp_path/"gt", tmp_path/"out", jobs=1, num_points=500, draw=False)
    rows = {r["metric"]: r for r in found.summary.table()}
    assert (
        found.invalidity_ratio == 0 and not found.left_out and rows["iou"]["median"] > .99
        and rows["sege"]["median"] == 0 and rows["extrude_f1"]["mean"] > .9
    )
    d = data_report(real_root, tmp_path/"report", jobs=1, draw=False)
    assert d.present["histories"] >= .99*len(d.rows) and d.max_seq_length() <= 2048
