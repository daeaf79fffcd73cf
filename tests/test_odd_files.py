"""What stands where a small file should be: pipes, folders, devices, deep, large and foreign content. Nothing waits
for it, no training and no panel stops for it."""
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from train_runs import Training
from cad_mllm.config import CADMLLMConfig, ConfigError, TrainConfig
from cad_mllm.training import EXIT_DONE, EXIT_UNDELIVERED, read_events, read_metrics
from cad_mllm.utils import FileError, read_json, read_lines, read_object, read_plain

DEEP = "[" * 60_000


def sparse(path):
    with open(path, "wb") as file: file.truncate(2**43)


# name -> makes it at a path
ODD = {
    "pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path),
    "nowhere": lambda path: os.symlink("/no/such", path), "sparse": sparse,
    **{
        name: (lambda path, data=data: Path(path).write_bytes(data))
        for name, data in {
            "empty": b"", "object": b"{}", "list": b"[]", "null": b"null", "text": b'"text"', "open": b'{"step": ',
            "deep": DEEP.encode(), "deep object": b'{"a":' * 60_000,
            "within depth": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "digits": b'{"step": ' + b"9" * 5000 + b"}",
            "not UTF-8": b'{"stage": "\xff\xfe"}', "UTF-16": '{"step": 1}'.encode("utf-16"), "zeros": bytes(5000),
            "half a character": b'{"stage": "\\ud83d", "state": "\\ud83d", "notes": "\\ud83d"}',
            "words": b'{"step": NaN, "loss": Infinity, "lr": -Infinity, "state": NaN}'
        }.items()
    }
}
VALUES = [None, True, -1, 0, 10**30, 1e308, "", "x", "\ud83d", "<b>", [], [1], {}, {"a": []}]


def put(kind, path):
    "Make an odd thing of a kind at a path."
    path = Path(path)
    if path.is_dir() and not path.is_symlink(): path.rmdir()
    else: path.unlink(missing_ok=True)
    ODD[kind](path)


@pytest.mark.parametrize("kind", ODD)
def test_the_door_never_waits_and_has_one_error(kind, tmp_path):
    put(kind, path := tmp_path/"file")
    for reader in (read_plain, read_json, read_object, read_lines):
        try: reader(path)
        except FileError as error: assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 300
        except OSError: assert kind == "nowhere"


@pytest.mark.parametrize("kind", ODD)
def test_whoever_looks_at_a_run_takes_what_can_be_read(kind, tmp_path):
    from cad_mllm.evaluation_tables import evaluation_folder, find_evaluation
    from cad_mllm.panel.colors import run_styles
    from cad_mllm.panel.overview import read_notes
    from cad_mllm.panel.runs import LAUNCH, read_training, Run
    from cad_mllm.panel.table import read_curve
    from cad_mllm.training import running_pid
    from cad_mllm.training.run_files import read_run_config
    from cad_mllm.utils import LOCK
    for name in ("metrics.jsonl", "events.jsonl", "status.json", "run_config.json", "notes.json", LAUNCH, LOCK):
        put(kind, tmp_path/name)
    evaluation_folder(tmp_path/"checkpoint").mkdir()
    put(kind, evaluation_folder(tmp_path/"checkpoint")/"evaluation.json")
    assert read_metrics(tmp_path) == [] or kind == "half a character"
    assert (
        isinstance(read_events(tmp_path), list) and read_training(tmp_path).state in ("", "\ud83d")
        and read_notes(tmp_path)["tags"] == []
    )
    assert read_run_config(tmp_path) == {"model": {}, "train": {}, "command": [], "cwd": ""}
    assert not read_curve(tmp_path).rows and running_pid(tmp_path) is None
    assert (find_evaluation(tmp_path/"checkpoint") or {"table": []})["table"] == []
    assert run_styles([Run(tmp_path, "run")])


@pytest.mark.parametrize("kind", ["pipe", "folder", "deep", "list", "sparse"])
def test_a_training_goes_on_whatever_lies_in_its_folder(kind, small_data, tmp_path):
    (out := tmp_path/"o").mkdir()
    odd = (
        "metrics.jsonl", "events.jsonl", "status.json", "run_config.json", "wandb_id", "data_report.json", "notes.json"
    )
    for name in odd: put(kind, out/name)
    process = Training(small_data, out, "--max_steps", 2, "--resume_from_ckpt", "auto")
    process.wait()
    writable = kind in ("deep", "list")
    assert process.code in ((EXIT_DONE,) if writable else (EXIT_DONE, EXIT_UNDELIVERED)), process.text
    assert "Traceback" not in process.text
    if writable: assert [r["step"] for r in read_metrics(out)] == [1, 2]


def test_settings_of_odd_kinds_are_a_sentence(tmp_path):
    path = tmp_path/"config.json"
    for kind in ODD:
        put(kind, path)
        for config in (CADMLLMConfig, TrainConfig):
            try: config.load(path)
            except (ConfigError, FileError, OSError) as error: assert "\n" not in str(error)
    path.unlink()
    rng = random.Random(1)
    for config in (CADMLLMConfig, TrainConfig):
        for name in config().to_dict():
            value = rng.choice(VALUES)
            path.write_text(json.dumps({name: value}))
            try: config.load(path)
            except ConfigError as error: assert name in str(error) or "stage" in str(error)


# ---------------------------------------------------------------- the panel
def look(folder):
    "A panel on a folder with every tab looked at; what it could not do."
    from cad_mllm.panel import CheckpointPanel
    panel = CheckpointPanel(folder)
    for number in range(len(panel.tabs.children)):
        panel.tabs.selected_index = number
        panel.refresh()
    return panel.last_error


@pytest.fixture
def runs(tmp_path):
    from cad_mllm.panel import example_folder
    return example_folder(tmp_path/"runs")


def test_a_panel_shows_the_other_runs(runs):
    "One run for each odd thing, which lies where all of its small files should be."
    for kind in ODD:
        shutil.copytree(
            runs/"flanges", runs/kind, ignore=lambda folder, names: [n for n in names if n.startswith("stage")]
        )
        for name in (
            "metrics.jsonl", "events.jsonl", "status.json", "run_config.json", "notes.json", "launch.json", "train.log"
        ):
            put(kind, runs/kind/name)
    assert look(runs) is None


@pytest.mark.parametrize("seed", range(2))
def test_a_panel_shows_fields_of_odd_kinds(seed, runs):
    rng, run = random.Random(seed + 2), runs/"flanges"
    def mixed(value):
        return {
            k: rng.choice(VALUES) if rng.random() < .4 else mixed(v) if isinstance(v, dict) else v
            for k, v in value.items()
        }
    for name in ("status.json", "run_config.json"):
        (run/name).write_text(json.dumps(mixed(json.loads((run/name).read_text()))))
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = [json.dumps(mixed(json.loads(line))) for line in (run/name).read_text().splitlines()]
        (run/name).write_text("\n".join(lines))
    for name in ("notes.json", "launch.json"):
        (run/name).write_text(
            json.dumps(mixed(dict(notes="n", tags=["t"], pid=1, host="h", command=["a"], state="running")))
        )
    error = look(runs)
    if error: raise error
