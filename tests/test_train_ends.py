"""What a user meets: the two commands of the script, spoiled data, folders that cannot be used, disks that are full,
Drive that is away."""
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from chapters import Chapter
delivery = Chapter("cad_mllm.checkpoints")
from cad_mllm.checkpoints import latest_checkpoint, list_checkpoints, verify_checkpoint
from cad_mllm.config import ConfigError
from cad_mllm.training import (
    EXIT_STOPPED, EXIT_UNDELIVERED, find_resume_checkpoint, read_events, read_metrics, train, Trainer)
from small_data import make
from test_train import assert_same
from train_runs import FLAGS, Training, after, configs


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 14)


def test_the_users_commands(data, tmp_path):
    "The two commands of the script, word for word; the checkpoint's folder is looked for below the output folder."
    script, out = Path(__file__).parent.parent/"scripts/train_curriculum.py", tmp_path/"out"
    small = FLAGS[:FLAGS.index("--max_tokens_per_batch")]
    base = [
        *small, "--stage1_epochs", "1", "--stage2_epochs", "1", "--stage3_epochs", "1", "--data_root", str(data),
        "--use_autocomplete_dataset", "--output_dir", str(out), "--max_seq_length", "4000", "--batch_size", "2"
    ]
    done = subprocess.run(
        [sys.executable, str(script), *base, "--save_steps", "10", "--keep_last_n_checkpoints", "3"],
        capture_output=True, text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(script.parent.parent), os.environ.get("PYTHONPATH")]))
        }
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out/"final_model"/"manifest.json").exists()
    name = next(
        r for r in list_checkpoints(out) if r.stage == "stage3_all" and r.path.name.startswith("checkpoint-step")
    ).path
    again = Training(
        data, out, only=[*base, "--resume_from_ckpt", f"stage3_all/{name.name}", "--start_from_stage", "3"]
    )
    again.wait(0)
    lines = [line.rstrip() for line in again.text.splitlines()]
    step, loss = int(name.name.split("step")[1].split("-")[0]), name.name.split("loss")[1].split("-")[0]
    at = lines.index(f"Loading checkpoint from: {name}")
    assert lines[at + 2:at + 4] == ["  ✓ Loaded image module", "  ✓ Loaded point cloud module"]
    assert lines[at + 4].startswith("  ✓ Resuming from epoch") and lines[at + 4].endswith(f", step {step}, loss {loss}")
    assert lines[at + 5:at + 9] == [
        "Restoring optimizer/scheduler state...", "  ✓ Restored optimizer state", "  ✓ Restored scheduler state",
        f"  ✓ Resuming from step {step}"
    ]


def test_drawing_needs_something_that_draws(data, tmp_path):
    model, settings = configs(data, tmp_path/"o", "--num_val_samples", "2", "--num_logged_completions", "2")
    with pytest.raises(ConfigError, match="draw=cad_mllm.evaluation.draw_held_out"): train(model, settings)
    assert not (tmp_path/"o").exists()


def test_a_thread_in_the_middle_of_a_tensor_operation_does_not_abort_a_command():
    code = """
import atexit, sys, threading, torch
from cad_mllm import cli
def work(argv):
    many, begun = [torch.empty(300_000) for _ in range(100)], threading.Event()
    def zero():
        while begun.set() is None:
            for t in many: t.zero_()
    threading.Thread(target=zero, daemon=True).start(); begun.wait()
    atexit.register(print, "goodbye")
    return 3
cli.run_train = work
sys.argv = ["cad-mllm", "train"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "goodbye\n", "")


def test_missing_data_is_one_sentence(tmp_path):
    done = Training(tmp_path/"nowhere", tmp_path/"o")
    done.wait(1)
    assert "Traceback" not in done.text and str(tmp_path/"nowhere") in done.text and "cad-mllm synth" in done.text


def test_two_trainings_on_one_folder_are_refused(data, tmp_path):
    out = tmp_path/"o"
    first = Training(data, out, "--stage1_epochs", "500").until(after(out, 1))
    second = Training(data, out)
    second.wait(1)
    first.kill()
    assert f"process {first.pid}" in second.text and json.loads((out/"status.json").read_text())["pid"] == first.pid


def spoil(root):
    "One of each broken kind; the names of the files that must be reported."
    import shutil
    json_dir, cut_dir = root/"json/0000", root/"json_truncated/0000"
    good = sorted(json_dir.glob("*.json"))
    named = []

    def broken(number, change):
        "A design whose whole history is spoiled; its beginning stays fine."
        id = f"{900 + number:08d}_00001"
        shutil.copy(good[number], json_dir/f"{id}.json")
        shutil.copy(sorted(cut_dir.glob(f"{good[number].stem}_tr_*.json"))[0], cut_dir/f"{id}_tr_01.json")
        change(json_dir/f"{id}.json")
        named.append(id)

    def edit(change):
        def do(path):
            d = json.loads(path.read_text())
            change(d)
            path.write_text(json.dumps(d))
        return do

    def sketch(d): return next(e for e in d["entities"].values() if e["type"] == "Sketch")
    def curve(d): return next(iter(sketch(d)["profiles"].values()))["loops"][0]["profile_curves"][0]
    def point(c): return c.get("start_point") or c["center_point"]
    def extrude(d): return next(k for k, e in d["entities"].items() if e["type"] == "ExtrudeFeature")
    broken(0, Path.unlink)
    broken(1, lambda p: p.write_bytes(b""))
    broken(2, lambda p: p.write_bytes(bytes(range(256))*40))
    broken(3, lambda p: p.write_bytes(p.read_bytes()[:200] + "é".encode()[:1]))
    broken(4, edit(lambda d: curve(d).update(type="NurbsCurve3D")))
    broken(5, edit(lambda d: point(curve(d)).update(x=float("nan"))))
    broken(6, edit(lambda d: sketch(d).update(reference_plane={"entity": extrude(d)})))
    broken(7, edit(lambda d: d["entities"][extrude(d)]["profiles"][0].update(sketch="nobody")))
    broken(8, lambda p: open(p, "wb").truncate(100*2**20))
    (root/"txt/broken.json").write_bytes(b'[{"id": "0000/x", "text ca')
    return named


def test_broken_files_are_skipped_and_named(tmp_path):
    root, out = make(tmp_path/"data", 14), tmp_path/"o"
    named = spoil(root)
    done = Training(root, out, "--max_steps", "3")
    done.wait(0)
    assert "Traceback" not in done.text and "data_report" in done.text
    reports = "".join(p.read_text() for p in out.glob("data_report*.json"))
    assert [id for id in named if id not in reports] == []
    assert "broken.json" in reports and len(read_metrics(out)) == 3


def test_a_file_that_goes_bad_while_training_is_counted(tmp_path):
    root, out = make(tmp_path/"data", 14), tmp_path/"o"
    process = Training(
        root, out, "--stage1_epochs", "8", "--stage2_epochs", "0", "--stage3_epochs", "0"
    ).until(after(out, 2))
    for f in sorted((root/"json/0000").glob("*.json"))[:6]: f.write_bytes(f.read_bytes()[:100])
    process.wait(0)
    assert read_metrics(out)[-1]["skipped_samples"] > 0
    assert "became unreadable during training" in "".join(p.read_text() for p in out.glob("data_report*.json"))


def test_an_output_folder_that_cannot_be_written_is_one_sentence(data, tmp_path):
    (tmp_path/"file").write_text("in the way")
    done = Training(data, tmp_path/"file"/"o", log=tmp_path/"log")
    done.wait(1)
    assert "Traceback" not in done.text and str(tmp_path/"file") in done.text


def test_samples_that_all_are_too_long_are_an_error(data, tmp_path):
    done = Training(data, tmp_path/"o", "--max_seq_length", "24")
    done.wait(1)
    assert "Traceback" not in done.text and "max_seq_length=24" in done.text and "too long" in done.text


RUN = [
    "--max_train_samples", "22", "--stage1_epochs", "2", "--stage2_epochs", "1", "--stage3_epochs", "0", "--save_steps",
    "3", "--keep_last_n_checkpoints", "0"
]


def test_local_first_killed_and_delivered_by_the_next_run(data, tmp_path, capsys):
    """Checkpoints land in the local folder; killed at once, the next run resumes from them bit for bit and brings
    everything to the output folder."""
    out, local = tmp_path/"drive"/"o", ["--staging_dir", str(tmp_path/"local")]
    Training(data, tmp_path/"whole", *RUN).wait(0)
    process = Training(data, out, *RUN, *local, fence=8).until(
        lambda: any(r.complete for r in list_checkpoints(tmp_path/"local", depth=5))
    )
    process.kill()
    shutil.rmtree(out, ignore_errors=True)                 # nothing has arrived
    assert find_resume_checkpoint("auto", out, local[1]).is_relative_to(tmp_path/"local")
    model, settings = configs(data, out, *RUN, *local)
    assert train(model, replace(settings, resume_from_ckpt="auto")).exit_code == 0
    assert "✓ Resuming from step" in capsys.readouterr().out
    assert_same(tmp_path/"whole", out)
    assert [verify_checkpoint(r.path) for r in list_checkpoints(out)] == [[]]*len(list_checkpoints(out))
    assert (out/"data_report.json").exists() and json.loads((out/"status.json").read_text())["delivery"]["pending"] == 0


def test_training_goes_on_while_the_output_folder_is_away(data, tmp_path):
    """A file takes the place of the drive: the run trains on and tells; stopped, it names what lies where; when the
    drive is back, all of it arrives."""
    drive, out, local = tmp_path/"drive", tmp_path/"drive"/"o", ["--staging_dir", str(tmp_path/"local")]
    flags = [*RUN, *local, "--stage1_epochs", "5000", "--save_steps", "2"]
    process = Training(data, out, *flags, log=tmp_path/"log").until(
        lambda: any(r.complete for r in list_checkpoints(out))
    )
    drive.rename(tmp_path/"away")
    drive.write_text("not mounted")
    known = len(read_metrics(tmp_path/"away"/"o"))
    mine = next((tmp_path/"local").iterdir())
    process.until(
        lambda: len(read_metrics(mine)) > known + 8
        and json.loads((mine/"status.json").read_text())["delivery"]["pending"] > 1
        and "cannot be written" in process.text
    )
    status = json.loads((mine/"status.json").read_text())
    assert status["state"] == "running" and status["delivery"]["failing_since"]
    drive.unlink()
    (tmp_path/"away").rename(drive)
    (out/"stop").touch()
    process.wait(EXIT_STOPPED)
    assert json.loads((out/"status.json").read_text())["state"] == "stopped" and "answers again" in process.text
    assert (
        latest_checkpoint(out) is not None
        and max(r.step for r in list_checkpoints(out)) == max(r["step"] for r in read_metrics(out))
    )


def test_trained_to_the_end_without_the_output_folder_has_a_code_of_its_own(data, tmp_path):
    drive, out = tmp_path/"drive", tmp_path/"drive"/"o"
    model, settings = configs(data, out, *RUN, "--max_steps", "2", "--staging_dir", tmp_path/"local")
    trainer = Trainer(model, settings)
    rest = trainer.deliver_rest
    def later():
        shutil.rmtree(drive)
        drive.write_text("not mounted")
        return rest(patience=2.0)
    trainer.deliver_rest = later
    result = trainer.run()
    assert result.status == "done" and result.undelivered > 0 and result.exit_code == EXIT_UNDELIVERED == 74


def test_the_end_of_a_run_waits_for_an_output_folder_that_comes_back(data, tmp_path):
    drive, out = tmp_path/"drive", tmp_path/"drive"/"o"
    model, settings = configs(data, out, *RUN, "--max_steps", "2", "--staging_dir", tmp_path/"local")
    trainer = Trainer(model, settings)
    rest = trainer.deliver_rest
    def back():
        drive.unlink()
        (tmp_path/"away").rename(drive)
    def later():
        drive.rename(tmp_path/"away")
        drive.write_text("not mounted")
        trainer.saver.save()
        threading.Timer(2, back).start()
        return rest(patience=120.0)
    trainer.deliver_rest = later
    assert trainer.run().undelivered == 0
    assert latest_checkpoint(out) is not None


def keeps_nothing(monkeypatch, folder, number=errno.ENOSPC):
    "From here on nothing can be written below a folder: neither lines nor checkpoints."
    def refuse(path):
        if Path(path).is_relative_to(folder): raise OSError(number, os.strerror(number), str(path))
    for place, name in ((delivery, "append_bytes"), (os, "replace"), (os, "makedirs")):
        inner = getattr(place, name)
        def outer(path, *args, inner=inner, **kwargs):
            refuse(path)
            return inner(path, *args, **kwargs)
        monkeypatch.setattr(place, name, outer)


def test_full_or_read_only_output_folder_keeps_every_line(data, tmp_path, monkeypatch, capsys):
    """From step 3 on the folder takes nothing: the lines lie beside the checkpoints, are counted in the last line,
    and `deliver` puts them where they belong."""
    monkeypatch.setenv("CAD_MLLM_LOCAL", str(tmp_path/"state"))
    out = tmp_path/"o"
    model, settings = configs(data, out, *RUN, "--max_steps", "6")
    trainer = Trainer(model, settings)
    step, rest = trainer.stepper.train_step, trainer.deliver_rest
    def stepped(*args):
        row = step(*args)
        if row["step"] == 3: keeps_nothing(monkeypatch, out, errno.EROFS)
        return row
    trainer.stepper.train_step, trainer.deliver_rest = stepped, lambda: rest(patience=1.0)
    result = trainer.run()
    said = capsys.readouterr().out
    assert (
        [r["step"] for r in read_metrics(out)] == [1, 2]
        and f"{out/'metrics.jsonl'}: cannot be written (Read-only file system" in said
    )
    kept = next((tmp_path/"state").iterdir())
    lines = [len((kept/name).read_bytes().splitlines()) for name in ("metrics.jsonl", "events.jsonl")]
    assert lines[0] >= 4 and lines[1] >= 1
    last = said.rstrip().splitlines()[-1]
    assert (
        f"{sum(lines)} lines of metrics.jsonl and events.jsonl are not in {out} yet" in last
        and result.exit_code == EXIT_UNDELIVERED and "metrics.jsonl" in result.lines_left
    )
    monkeypatch.undo()
    monkeypatch.setenv("CAD_MLLM_LOCAL", str(tmp_path/"state"))
    delivery.deliver(out, timeout=60)
    assert f"{sum(lines)} lines of metrics and events delivered" in capsys.readouterr().out
    assert [r["step"] for r in read_metrics(out)] == [1, 2, 3, 4, 5, 6]
    for name in ("metrics.jsonl", "events.jsonl"):
        times = [json.loads(line)["time"] for line in (out/name).read_text().splitlines()]
        assert times == sorted(times) and not (kept/name).exists()


def test_a_metrics_file_that_cannot_be_written_is_said_at_once(data, tmp_path, monkeypatch, capsys):
    "A folder has its name: said before the first step, the lines are kept, and the run goes on."
    monkeypatch.setenv("CAD_MLLM_LOCAL", str(tmp_path/"state"))
    out = tmp_path/"o"
    (out/"metrics.jsonl").mkdir(parents=True)
    model, settings = configs(data, out, *RUN, "--max_steps", "2")
    said_before, training = [], Chapter("cad_mllm.training")
    def opened(*args, inner=training.open_data):
        said_before.append(capsys.readouterr().out)
        inner(*args)
    monkeypatch.setattr(training, "open_data", opened)
    result = train(model, settings)
    assert f"{out/'metrics.jsonl'}: cannot be written (Is a directory" in said_before[0]
    assert result.step == 2 and result.lines_left == "2 lines of metrics.jsonl" and result.exit_code == EXIT_UNDELIVERED


def test_a_disk_too_small_is_noticed_before_it_is_needed(data, tmp_path, monkeypatch, capsys):
    "At the start, before the first save; in the terminal and in status.json; training continues."
    from types import SimpleNamespace
    from chapters import Chapter
    ck = Chapter("cad_mllm.checkpoints")
    monkeypatch.setattr(ck.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=0, free=10_000))
    model, settings = configs(data, tmp_path/"o", *RUN, "--max_steps", "2")
    assert train(model, settings).step == 2
    said = [line for line in capsys.readouterr().out.splitlines() if "are free, and the next save needs" in line]
    assert len(said) == 1 and "10.0 kB are free" in said[0] and said[0].endswith("training continues")
    assert "10.0 kB are free" in json.loads((tmp_path/"o"/"status.json").read_text())["space"]


def test_a_full_disk_costs_a_save_and_not_the_run(data, tmp_path, monkeypatch, capsys):
    """Writing fails with ENOSPC for a while: it is said, the run goes on, the next saves succeed, and nothing
    half-written is left."""
    import errno
    from chapters import Chapter
    ck = Chapter("cad_mllm.checkpoints")
    class Full(ck.Disk):
        def sync(self, path): raise OSError(errno.ENOSPC, "No space left on device", str(path))
    model, settings = configs(data, tmp_path/"o", *RUN)
    trainer = Trainer(model, settings)
    save = trainer.saver.save
    def in_turn(name=None):
        monkeypatch.setattr(ck, "DISK", Full() if trainer.state.progress.step in (3, 6) else ck.Disk())
        save(name)
        trainer.output.delivery.wait_written()
    trainer.saver.save = in_turn
    result = trainer.run()
    assert result.exit_code == 0 and result.step == 18
    said = capsys.readouterr().out
    assert "No space left on device" in said and "training continues" in said
    assert any(e["event"] == "save_failed" for e in read_events(tmp_path/"o"))
    saved = {r.step for r in list_checkpoints(tmp_path/"o")}
    assert (
        {9, 12, 15, 18} <= saved and 3 not in saved and all(r.complete for r in list_checkpoints(tmp_path/"o"))
        and not list((tmp_path/"o").rglob(".tmp-*"))
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_limit_on_the_size_of_files_costs_a_save_and_not_the_run(data, tmp_path, monkeypatch, capsys):
    """As `ulimit -f` sets it: a save that does not fit is told, lines that do not fit are kept, nothing half-written
    is left, and all is in its place once there is room."""
    import resource
    monkeypatch.setenv("CAD_MLLM_LOCAL", str(tmp_path/"state"))
    out, old = tmp_path/"o", resource.getrlimit(resource.RLIMIT_FSIZE)
    model, settings = configs(data, out, *RUN)
    trainer = Trainer(model, settings)
    save, step = trainer.saver.save, trainer.stepper.train_step
    def limited(name=None):
        if trainer.state.progress.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((out/"metrics.jsonl").stat().st_size + 100, old[1]))
        save(name)
        trainer.output.delivery.wait_written()
    def stepped(*args):
        if trainer.state.progress.step == 6: resource.setrlimit(resource.RLIMIT_FSIZE, old)
        return step(*args)
    trainer.saver.save, trainer.stepper.train_step = limited, stepped
    try: result = trainer.run()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    said = capsys.readouterr().out
    assert (
        result.exit_code == 0 and result.step == 18 and "File too large" in said and "training continues" in said
        and "its lines are kept in" in said
    )
    saved = {r.step for r in list_checkpoints(out)}
    assert {9, 12, 15, 18} <= saved and 3 not in saved and [r["step"] for r in read_metrics(out)] == list(range(1, 19))
    assert (
        not [p for p in out.rglob("*") if ".tmp" in p.name]
        and any(e["event"] == "save_failed" for e in read_events(out))
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_temporary_files_of_a_killed_run_are_removed_by_the_next(mirrored, data, tmp_path):
    out, local = tmp_path/"o", ["--staging_dir", str(tmp_path/"local")] if mirrored else []
    out.mkdir()
    for name in ("status.json.4194305.tmp", f"metrics.jsonl.{os.getpid()}.tmp", "notes.tmp"): (out/name).touch()
    assert train(*configs(data, out, *RUN, "--max_steps", "1", *local)).exit_code == 0
    assert [p.name for p in out.glob("*.tmp")] == ["notes.tmp"]


def test_a_folder_named_stop_in_a_mirrored_output_folder_is_told_and_keeps_nothing_away(data, tmp_path, capsys):
    out = tmp_path/"drive"/"o"
    (out/"stop").mkdir(parents=True)
    result = train(*configs(data, out, *RUN, "--max_steps", "3", "--staging_dir", tmp_path/"local"))
    assert (
        (result.step, result.exit_code) == (3, 0)
        and "'stop' in the output folder cannot be removed" in capsys.readouterr().out
    )
    assert (
        [r["step"] for r in read_metrics(out)] == [1, 2, 3]
        and json.loads((out/"status.json").read_text())["state"] == "done" and list_checkpoints(out)
    )


def test_the_stop_file_in_a_mirrored_output_folder_stops_the_run(data, tmp_path):
    """Also one that comes there again after an earlier one was obeyed, and the one that stopped an earlier run is
    forgotten."""
    out = tmp_path/"drive"/"o"
    flags = [*RUN, "--stage1_epochs", "5000", "--save_steps", "0", "--staging_dir", str(tmp_path/"local")]
    for _ in range(2):
        out.mkdir(parents=True, exist_ok=True)
        (out/"stop").touch()                               # of an earlier run: does not count
        before = len(read_metrics(out))
        process = Training(data, out, *flags, "--resume_from_ckpt", "auto").until(after(out, before + 2))
        (out/"stop").touch()
        process.wait(EXIT_STOPPED)
        status = json.loads((out/"status.json").read_text())
        assert status["message"] == "stopped by the stop file" and not (out/"stop").exists()
        assert latest_checkpoint(out).name.startswith(f"checkpoint-step{status['step']}-")
