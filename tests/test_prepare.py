"""Processes, kills and the promises of the synthetic families over many seeds: what a notebook cell is the wrong
place for."""
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest

from chapters import Chapter
module = Chapter("cad_mllm.data")
from cad_mllm.cad import CADProgram, Extrude, circle, rectangle
from cad_mllm.geometry.engines import LocalEngine
from cad_mllm.geometry.workers import _close_workers
from cad_mllm.geometry import build_solid
from cad_mllm.data import PrepareError, prepare
from cad_mllm.data import FAMILIES, history_box, make_part, synthesize

SMALL = dict(image_size=48, num_points=200)


def tree_of(root):
    "Every file but reports and records of failures, with its bytes."
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()
        and not p.name.startswith("prepare_")
    }


def start(root, out, jobs, **more):
    "`prepare` in a process of its own, with its workers in its group."
    code = (
        f"from cad_mllm.data import prepare; prepare({str(root)!r}, {str(out)!r}, jobs={jobs}, image_size=48, "
        f"num_points=200, **{more!r})"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, process, seconds=120):
    "Wait until something is true or the process ends."
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end: time.sleep(.01)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A small set without captions for two of its parts, and two broken files."
    root = tmp_path_factory.mktemp("source")
    synthesize(root, num=14, seed=2)
    entries = json.loads((root/"txt/0000.json").read_text())
    (root/"txt/0000.json").write_text(json.dumps(entries[2:]))
    (root/"json/0000/00000003_x.json").write_bytes(b"")
    (root/"json/0000/00000007_x.json").write_bytes(b'{"entities": {')
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    "What an uninterrupted run makes of it."
    out = tmp_path_factory.mktemp("whole")
    report = prepare(source, out, jobs=0, **SMALL)
    assert report["products"]["history"] == {"done": 14, "failed": 2}
    assert report["products"]["captions"] == {"done": 2}
    return tree_of(out)


@pytest.mark.parametrize("jobs", [0, 2])
def test_killed_and_resumed(source, whole, tmp_path, jobs):
    "SIGKILL at several moments leaves no half file, and the next runs end in the same tree."
    kills = 0
    for num_files in (3, 40, 110):
        process = start(source, tmp_path, jobs)
        wait_for(lambda: sum(p.is_file() for p in tmp_path.rglob("*")) >= num_files, process)
        if process.poll() is None: kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = {k: v for k, v in tree_of(tmp_path).items() if "/.tmp-" not in k and not k.startswith("txt/")}
        assert all(whole[k] == v for k, v in found.items())
    assert kills >= 1
    time.sleep(1)  # workers that outlive their parent end when their input closes
    process = start(source, tmp_path, jobs)
    assert process.wait() == 0
    assert tree_of(tmp_path) == whole
    report = json.loads((tmp_path/"prepare_report.json").read_text())
    assert report["products"]["history"] == {"done": 14, "failed": 2}
    assert report["reasons"]["the file is empty"] == 1
    assert {Path(f["file"]).name for f in report["failures"]} == {"00000003_x.json", "00000007_x.json"}


def test_workers_give_the_same_tree(source, whole, tmp_path):
    prepare(source, tmp_path, jobs=2, **SMALL)
    assert tree_of(tmp_path) == whole


def test_shards_together_are_the_whole(source, whole, tmp_path):
    """Three processes at once, one of them killed and started again: the tree of one run, captions in files of their
    own."""
    processes = [start(source, tmp_path, 0, shard=f"{i}/3") for i in (1, 2, 3)]
    wait_for(lambda: len(list(tmp_path.rglob("*.png"))) > 12, processes[0])
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    processes[0] = start(source, tmp_path, 0, shard="1/3")
    assert [p.wait() for p in processes] == [0, 0, 0]
    # of the killed one: younger than an hour, so that no other machine's are taken
    temporary = list(tmp_path.rglob(".tmp-*"))
    for p in temporary: p.unlink()
    def captions(tree):
        return {e["id"]: e["text caption"] for k, v in tree.items() if k.startswith("txt/") for e in json.loads(v)}
    found = tree_of(tmp_path)
    assert {k: v for k, v in found.items() if not k.startswith("txt/")} == {
        k: v for k, v in whole.items() if not k.startswith("txt/")
    }
    assert captions(found) == captions(whole)
    reports = [json.loads((tmp_path/f"prepare_report_{i}_of_3.json").read_text()) for i in (1, 2, 3)]
    assert (
        sum(r["histories"] for r in reports) == 16
        and sum(r["products"]["history"].get("failed", 0) for r in reports) == 2
    )
    assert set(prepare(source, tmp_path, jobs=0, **SMALL)["products"]["images"]) == {"skipped"}


class Watched(LocalEngine):
    "The local engine with another function in the place of the one it is given; notes the histories of each call."
    def __init__(self, jobs, func, started):
        super().__init__(jobs)
        self.func, self.started = func, started

    def map(self, func, items, *args, **options):
        items = list(items)
        self.started.append([t[2] for t in items])
        return super().map(self.func, items, *args, **options)


def test_a_part_that_hangs_costs_its_timeout_once(source, tmp_path, monkeypatch):
    "Recorded at once; left alone by the next run, tried again when asked or when the history changes."
    (tmp_path/"hanging_kernel.py").write_text(
        "import time\nfrom cad_mllm.data import preparation as module\n"
        "def hangs(task):\n    if '00000005' in task[2]: time.sleep(600)\n    return module.prepare_one(task)\n")
    monkeypatch.syspath_prepend(tmp_path)
    _close_workers()
    import hanging_kernel
    started = []
    monkeypatch.setattr(module, "get_engine", lambda engine, jobs: Watched(jobs, hanging_kernel.hangs, started))
    root, out = tmp_path/"root", tmp_path/"out"
    for path in sorted((source/"json/0000").glob("0000000[456]_0*.json")):
        (root/"json/0000").mkdir(parents=True, exist_ok=True)
        (root/"json/0000"/path.name).write_bytes(path.read_bytes())
    settings = dict(jobs=1, images=False, num_points=64, timeout=8)
    first = prepare(root, out, **settings)
    assert first["reasons"] == {"worker: timeout": 1} and len(started[-1]) == 3
    again = prepare(root, out, **settings)
    assert len(started[-1]) == 2 and again["reasons"] == first["reasons"] and again["failures"][0]["known"]
    assert again["products"]["history"] == {"done": 2, "failed": 1}
    prepare(root, out, **{**settings, "timeout": 6})
    assert len(started[-1]) == 2
    monkeypatch.setattr(module, "get_engine", lambda engine, jobs: Watched(0, module.prepare_one, started))
    assert prepare(root, out, **settings, retry=True)["products"]["history"] == {"done": 3} and len(started[-1]) == 3
    assert "known" not in json.dumps(prepare(root, out, **settings)["failures"]) and len(started[-1]) == 3


def test_a_dry_run_writes_nothing_and_counts_what_a_run_makes(source, tmp_path):
    out = tmp_path/"out"
    made = prepare(source, out, jobs=2, dry_run=True, **SMALL)
    assert (
        not out.exists() and made["todo"] == made["histories"] == 16 and made["sampled"] == 16
        and 0 < made["seconds_range"][1]
    )
    assert "16 of 16 histories lack products" in module.describe_estimate(made)
    prepare(source, out, jobs=0, **SMALL)
    files = [p for f in ("img", "pointcloud", "json_truncated") for p in (out/f).rglob("*") if p.is_file()]
    assert made["files"] == len(files)                 # the sample is the whole here
    assert made["bytes"] == pytest.approx(sum(p.stat().st_size for p in files), rel=1e-6)


def test_a_worker_that_dies_costs_one_part(source, tmp_path, monkeypatch):
    "A crash in the kernel is a line in the report."
    (tmp_path/"bad_kernel.py").write_text(
        "import os\nfrom cad_mllm.data import preparation as module\n"
        "def dies(task):\n    if '00000005' in task[2]: os._exit(11)\n    return module.prepare_one(task)\n")
    monkeypatch.syspath_prepend(tmp_path)
    _close_workers()  # idle ones do not know this path
    import bad_kernel
    monkeypatch.setattr(module, "get_engine", lambda engine, jobs: Watched(jobs, bad_kernel.dies, []))
    report = prepare(source, tmp_path/"out", jobs=1, max_samples=8, images=False, num_points=64)
    failed = [f for f in report["failures"] if f["reason"].startswith("worker: ")]
    assert len(failed) == 1 and "00000005" in failed[0]["file"]
    assert report["products"]["history"]["done"] == 6


def test_a_full_disk_ends_the_run_with_one_sentence(source, tmp_path, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(module, "_write_points", full)
    monkeypatch.setitem(module.PRODUCTS, "points", (module.PRODUCTS["points"][0], full))
    with pytest.raises(PrepareError, match="No space left on device.*what is complete is kept"):
        prepare(source, tmp_path, jobs=0, images=False)


def test_synthesize_in_workers(tmp_path):
    "Several processes write the same set as one."
    assert synthesize(tmp_path/"many", num=260, seed=6, jobs=2) == synthesize(tmp_path/"one", num=260, seed=6)
    assert tree_of(tmp_path/"many") == tree_of(tmp_path/"one")


def test_steps(tmp_path):
    pytest.importorskip("OCP")
    synthesize(tmp_path, num=1, seed=0)
    report = prepare(tmp_path, jobs=1, images=False, points=False, truncations=False, steps=True)
    assert report["products"] == {"history": {"done": 1}, "steps": {"done": 1}}
    text = next(tmp_path.rglob("*.step")).read_text()
    assert text.startswith("ISO-10303-21;") and "ADVANCED_FACE" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_sound(name):
    """Over several seeds: both kernels build it, agree on its volume, and its history tells its box; each extrude
    changes it."""
    for seed in range(2):
        program, _ = FAMILIES[name](np.random.default_rng([77, seed]))
        box = history_box(program)
        light = build_solid(program, kernel="manifold")
        assert np.abs(np.array(light.bounding_box) - box).max() < 3e-4*np.ptp(box, axis=0).max()
        ends = [i + 1 for i, e in enumerate(program.operations()) if isinstance(e, Extrude)]
        volumes = [build_solid(program.truncate(n), kernel="manifold").volume for n in ends[:-1]] + [light.volume]
        assert (np.abs(np.diff(volumes)) > 1e-4*light.volume).all(), (name, seed, volumes)
    pytest.importorskip("OCP")
    exact = build_solid(program)
    assert exact.is_valid
    assert np.abs(np.array(exact.bounding_box) - box).max() < 1e-6*np.ptp(box, axis=0).max()
    assert abs(light.volume/exact.volume - 1) < 1e-3


def test_families_never_fail():
    "Hundreds of parts: readable, without problems, and with sizes that a workshop makes."
    captions = set()
    for index in range(400):
        id, program, caption = make_part(11, index)
        assert program.problems() == [], (id, caption)
        size = np.ptp(history_box(program), axis=0).max()
        assert .005 < size < .6, (id, caption, size)
        assert not re.search(r"\d\.\d{3}|nan|e-", caption), caption
        captions.add(caption)
    assert len(captions) > 280
    assert CADProgram.from_json(json.loads(json.dumps(program.to_json()))).to_json() == program.to_json()


def test_a_folder_of_shapes_becomes_training_histories(tmp_path):
    "Counted and named where no history says the shape; a second run goes on and changes nothing."
    shapes, data = tmp_path/"shapes", tmp_path/"data"
    shapes.mkdir()
    part = CADProgram()
    part.sketch([rectangle(0, 0, .06, .04), circle(.02, .02, .01)])
    part.extrude(.02)
    for name in ("plate.stl", "scan.ply"): build_solid(part, "manifold").export(shapes/name)
    (shapes/"broken.stl").write_bytes(b"nothing")
    command = [
        sys.executable, "-m", "cad_mllm.cli", "prepare", str(shapes), "--out", str(data), "--from_shapes",
        "--no-images", "--jobs", "1"
    ]
    first = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    assert "2 histories of 3 shapes" in first.stdout and "broken.stl" in first.stdout
    assert [json.loads(line)["file"] for line in (data/"left_out.jsonl").read_text().splitlines()] == ["broken.stl"]
    assert sum(isinstance(e, Extrude) for e in CADProgram.from_json(data/"json"/"plate.json").operations()) == 1
    assert len([p for p in (data/"pointcloud").rglob("*") if p.is_file()]) >= 2
    before = tree_of(data)
    assert subprocess.run(command, capture_output=True, timeout=600).returncode == 0
    assert tree_of(data) == before
