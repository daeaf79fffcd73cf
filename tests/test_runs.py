"""A run's folder belongs to one run: nothing of an earlier run is lost, mixed or replaced, whoever starts what
there."""
import json
import shutil
from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from cad_mllm.checkpoints import (
    BEST, CheckpointError, latest_checkpoint, list_checkpoints, load_checkpoint, prune_checkpoints, read_record,
    save_checkpoint, update_best
)
from cad_mllm.cli import main
from cad_mllm.checkpoints.upload import deliver
from cad_mllm.training.run_folder import local_place
from cad_mllm.training import (
    EXIT_NOT_FINITE, Loop, METRICS, NotFiniteError, OccupiedError, RunningError, Stepper, read_events, read_metrics,
    train
)
from cad_mllm.utils.run_lock import LOCK, PATIENCE, FolderLock, beat, read_holder, release, take, this_process
from small_data import make
from train_runs import FLAGS, configs


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 14)


def everything(folder): return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ids(out): return {json.loads(line).get("run") for line in (out/METRICS).read_text().splitlines()}


# ---- a new run in the folder of an earlier one

def test_a_new_run_in_the_folder_of_an_earlier_one_is_refused_and_touches_nothing(data, tmp_path, capsys):
    out = tmp_path/"o"
    train(*configs(data, out, "--max_steps", 3))
    before = everything(out)
    with pytest.raises(
        OccupiedError,
        match="holds a run at step 3: --resume_from_ckpt auto goes on, another --output_dir starts over, --start_over "
        "first moves the old run aside"
    ):
        train(*configs(data, out, "--max_steps", 1))
    with pytest.raises(SystemExit): main(["train", *FLAGS, "--data_root", str(data), "--output_dir", str(out)])
    assert "holds a run at step 3" in capsys.readouterr().err
    train(*configs(data, tmp_path/"other", "--max_steps", 1))
    foreign = str(latest_checkpoint(tmp_path/"other"))
    # another run's checkpoint is no way in
    with pytest.raises(OccupiedError): train(*configs(data, out, "--resume_from_ckpt", foreign))
    assert everything(out) == before


def test_every_checkpoint_and_metrics_line_carries_the_id_of_its_run(data, tmp_path):
    out = tmp_path/"o"
    train(*configs(data, out, "--max_steps", 2))
    train(*configs(data, out, "--max_steps", 4, "--resume_from_ckpt", "auto"))
    runs = {r.run for r in list_checkpoints(out)}
    assert len(runs) == 1 and "" not in runs and ids(out) == runs          # a resumed run keeps its id
    assert [r["step"] for r in read_metrics(out)] == [1, 2, 3, 4]


def test_start_over_moves_the_old_run_aside_whole(data, tmp_path, capsys):
    out = tmp_path/"o"
    train(*configs(data, out, "--max_steps", 3))
    (out/"notes.txt").write_text("mine")
    saved = {p.relative_to(out): b for p, b in everything(out).items() if p.suffix in (".safetensors", ".pt", ".jsonl")}
    assert train(*configs(data, out, "--max_steps", 1, "--start_over")).step == 1
    aside = next(p for p in tmp_path.iterdir() if p.name.startswith("o-step3-"))
    assert str(aside) in capsys.readouterr().out and (out/"notes.txt").read_text() == "mine"
    assert {p: (aside/p).read_bytes() for p in saved} == saved
    assert {r.step for r in list_checkpoints(out)} == {1} and [r["step"] for r in read_metrics(out)] == [1]
    # what was saved does not ask to start over again
    assert train(*configs(data, out, "--max_steps", 2, "--resume_from_ckpt", "auto")).step == 2


def test_what_an_earlier_run_left_on_the_local_disk_never_comes_into_a_new_one(data, tmp_path):
    "It was not delivered, the output folder was emptied, and a new run begins at the same path."
    out, local = tmp_path/"o", str(tmp_path/"local")
    train(*configs(data, out, "--max_steps", 3))
    left = local_place(out, local)
    left.parent.mkdir()
    shutil.move(out, left)
    settings = ("--staging_dir", local, "--max_steps", 1)
    with pytest.raises(OccupiedError, match="holds a run at step 3"): train(*configs(data, out, *settings))
    train(*configs(data, out, *settings, "--start_over"))
    deliver(out, local)
    assert {r.step for r in list_checkpoints(out)} == {1} and len(ids(out)) == 1
    aside = [r for place in tmp_path.rglob("*-step3-*") if place.is_dir() for r in list_checkpoints(place)]
    assert 3 in {r.step for r in aside}


def test_a_run_from_before_run_ids_goes_on(data, tmp_path, monkeypatch):
    out = tmp_path/"o"
    from chapters import Chapter
    checkpoint = Chapter("cad_mllm.checkpoints")
    made = checkpoint.make_metadata
    def without(**k): return {n: v for n, v in made(**k).items() if n != "run"}
    monkeypatch.setattr(checkpoint, "make_metadata", without)
    train(*configs(data, out, "--max_steps", 2))
    monkeypatch.undo()
    assert {r.run for r in list_checkpoints(out)} == {""}
    lines = [json.loads(line) for line in (out/METRICS).read_text().splitlines()]
    (out/METRICS).write_text("".join(json.dumps({k: v for k, v in row.items() if k != "run"}) + "\n" for row in lines))
    assert train(*configs(data, out, "--max_steps", 4, "--resume_from_ckpt", "auto")).step == 4
    assert [r["step"] for r in read_metrics(out)] == [1, 2, 3, 4]


class Weights:
    "Something that can be saved."
    config = None
    def save_pretrained(self, folder): (folder/"model.txt").write_text("weights")


def save(out, step, run, loss, **more):
    return save_checkpoint(
        Weights(), out, stage="s", step=step, epoch=0, loss=loss, extra_metadata={"run": run} if run else {}, **more
    )


def test_best_latest_and_pruning_look_at_their_own_run_only(tmp_path):
    old = [save(tmp_path, step, "a", loss, keep_last_n=0) for step, loss in ((10, 1.0), (20, 2.0), (30, 3.0))]
    new = [save(tmp_path, step, "b", loss, keep_last_n=1) for step, loss in ((1, 9.0), (2, 8.0))]
    assert all(p.exists() for p in old) and not new[0].exists()            # only the run's own older one went
    assert latest_checkpoint(tmp_path).samefile(new[1])
    assert read_record(tmp_path/"s"/BEST).step == 2 and read_record(update_best(tmp_path/"s")).run == "b"
    prune_checkpoints(tmp_path, 1)
    # the best and the newest of the other run stay
    assert [p.exists() for p in old] == [True, False, True] and new[1].exists()
    (new[1]/"model.txt").write_text("broken!")
    # its best is the same file: rather none than the other run's
    assert latest_checkpoint(tmp_path, quiet=True) is None


# ---- two trainings in one folder

def held_elsewhere(out, beat=1):
    "A lock file of a training on another machine."
    out.mkdir(parents=True, exist_ok=True)
    holder = asdict(replace(this_process(), host="elsewhere", token="theirs", pid=7))
    (out/LOCK).write_text(json.dumps(dict(holder=holder, beat=beat)))


def test_two_trainings_in_one_folder_are_refused_and_the_holder_is_named(data, tmp_path, monkeypatch):
    out = tmp_path/"o"
    held_elsewhere(out)
    beats = iter(range(2, 100))
    monkeypatch.setattr(
        FolderLock, "__init__", partialmethod(FolderLock.__init__, sleep=lambda s: held_elsewhere(out, next(beats)))
    )
    with pytest.raises(RunningError, match="process 7 on elsewhere .* is training into this folder.*--take_over"):
        train(*configs(data, out, "--max_steps", 1))
    assert [p.name for p in out.iterdir()] == [LOCK]                       # nothing else was touched
    assert train(*configs(data, out, "--max_steps", 1, "--take_over")).step == 1
    assert not (out/LOCK).exists()                                         # given back


def test_a_lock_is_taken_over_when_its_holder_is_gone_or_its_heartbeat_does_not_change(tmp_path):
    now, said = [0.0], []
    def sleep(seconds): now[0] += seconds
    def lock(): return FolderLock(tmp_path, say=said.append, clock=lambda: now[0], sleep=sleep)
    # a reused process id, a dead one, another machine
    for change, waits in ((dict(born=1.0), 0), (dict(pid=2**22 + 3), 0), (dict(host="elsewhere"), PATIENCE)):
        (tmp_path/LOCK).write_text(json.dumps(dict(holder=asdict(replace(this_process(), **change)), beat=9)))
        now[0], mine = 0.0, lock()
        take(mine)
        release(mine)
        assert now[0] == waits and "taken over from process" in said[-1]


def test_who_was_taken_over_ends_and_writes_nothing_more(data, tmp_path, monkeypatch):
    out = tmp_path/"o"
    asked = Loop.asked_to_stop
    def seized(self):
        if self.state.progress.step == 2:
            held_elsewhere(out)
            beat(self.output.lock)
        return asked(self)
    monkeypatch.setattr(Loop, "asked_to_stop", seized)
    with pytest.raises(RunningError, match="process 7 on elsewhere .* has taken over"):
        train(*configs(data, out, "--max_steps", 9))
    assert not list_checkpoints(out) and read_holder((out/LOCK).read_bytes()).host == "elsewhere"


def test_no_test_runner_is_named_in_what_is_shipped():
    import cad_mllm
    assert not [
        p.name for p in Path(cad_mllm.__file__).parent.rglob("*.py") if "pytest" in p.read_text(encoding="utf-8")
    ]


# ---- weights become NaN

def spoil(monkeypatch, when):
    "Make loss and gradients NaN in the steps for which `when(step)`."
    backward = Stepper.backward
    def spoilt(self, parts):
        loss, num = backward(self, parts)
        if not when(self.state.progress.step): return loss, num
        self.optimization.trainable()[0].grad.fill_(float("nan"))
        return float("nan"), num
    monkeypatch.setattr(Stepper, "backward", spoilt)


def test_weights_become_nan_it_is_said_and_the_run_stops(data, tmp_path, monkeypatch, capsys):
    out = tmp_path/"o"
    spoil(monkeypatch, lambda step: step >= 2)
    flags = ["--stage1_epochs", 9, "--save_steps", 2, "--eval_steps", 100, "--max_nonfinite_steps", 5]
    with pytest.raises(NotFiniteError, match="5 steps in a row without a finite loss"):
        train(*configs(data, out, *flags))
    said = capsys.readouterr().out
    # once
    assert "3 steps in a row without a finite loss or gradient (step 5" in said and said.count("going back to") == 1
    assert EXIT_NOT_FINITE == NotFiniteError.exit_code == 76
    for file in out.glob("*.json*"):
        assert "NaN" not in file.read_text() and "Infinity" not in file.read_text(), file
    with pytest.raises(SystemExit) as ended:
        main(["train", *FLAGS, "--data_root", str(data), "--output_dir", str(tmp_path/"p"), *map(str, flags)])
    assert ended.value.code == EXIT_NOT_FINITE


def test_a_run_without_finite_numbers_goes_back_once_and_is_then_as_if_nothing_had_been(data, tmp_path, monkeypatch):
    plain, out, halved = tmp_path/"plain", tmp_path/"o", tmp_path/"halved"
    flags = ["--stage1_epochs", 3, "--save_steps", 2, "--max_nonfinite_steps", 3, "--max_steps", 9]
    train(*configs(data, plain, *flags))
    for folder, more in ((out, []), (halved, ["--halve_lr_on_rollback"])):
        seen = []
        with monkeypatch.context() as m:
            # three times only: a passing fault
            spoil(m, lambda step: step >= 4 and len(seen) < 3 and not seen.append(step))
            assert train(*configs(data, folder, *flags, *more)).step == 9
        back = [e for e in read_events(folder) if e["event"] == "went_back"]
        assert len(back) == 1 and back[0]["step"] == 4 and back[0]["lr_scale"] == (.5 if more else 1)
    figures = [[(r["step"], r["loss"], r["lr"]) for r in read_metrics(folder)] for folder in (plain, out, halved)]
    assert figures[0] == figures[1] and figures[2][:4] == figures[0][:4]
    assert [lr for _, _, lr in figures[2][4:]] == pytest.approx([lr/2 for _, _, lr in figures[0][4:]])
    train(*configs(data, halved, *flags[:-1], 10, "--halve_lr_on_rollback", "--resume_from_ckpt", "auto"))
    train(*configs(data, plain, *flags[:-1], 10, "--resume_from_ckpt", "auto"))
    # the halved rate is saved with the run
    assert read_metrics(halved)[-1]["lr"] == pytest.approx(read_metrics(plain)[-1]["lr"]/2)


class Tensors:
    "Something that can be saved, of one weight."
    config = None
    def __init__(self, value): self.value = value
    def saved_files(self): return {"model.safetensors": {"w": torch.tensor([1.0, self.value])}}


def test_a_checkpoint_with_a_weight_that_is_not_finite_is_marked_and_takes_no_good_ones_place(tmp_path, capsys):
    def keep(step, value, loss):
        return save_checkpoint(
            Tensors(value), tmp_path, stage="s", step=step, epoch=0, loss=loss, keep_last_n=2, is_best=True
        )
    good = [keep(step, 1.0, 1.0) for step in (1, 2)]
    bad = [keep(step, value, .1) for step, value in ((3, float("nan")), (4, float("inf")), (5, float("nan")))]
    assert all(p.exists() for p in good)                                   # not pruned for the bad ones
    assert latest_checkpoint(tmp_path, quiet=True) == good[1] and read_record(tmp_path/"s"/BEST).step == 2
    record = read_record(bad[0])
    assert record.metadata["not_finite"] == "w in model.safetensors" and not record.complete and not record.is_best
    with pytest.raises(CheckpointError, match="not finite numbers .*the newest good one is") as refused:
        load_checkpoint(bad[2], quiet=True)
    assert str(good[1]) in str(refused.value) or BEST in str(refused.value)


def test_complete_refuses_weights_that_are_not_finite(data, tmp_path, monkeypatch):
    trained = train(*configs(data, tmp_path/"o", "--max_steps", 1, "--save_steps", 1))
    from cad_mllm.inference import CADAutocomplete
    model = CADAutocomplete(trained.checkpoint, device="cpu").model
    with torch.no_grad(): next(iter(model.parameters())).view(-1)[0] = float("nan")
    marked = save_checkpoint(model, tmp_path/"m", stage="s", step=2, epoch=0, loss=1.0)
    with pytest.raises(CheckpointError, match="not finite numbers"): CADAutocomplete(marked)
    model.save_pretrained(tmp_path/"unmarked")                             # and one without a mark
    with pytest.raises(CheckpointError, match="not finite numbers"): CADAutocomplete(tmp_path/"unmarked", device="cpu")


# ---- odd things in the folder

def test_a_folder_named_stop_is_told_and_stops_nothing(data, tmp_path, capsys):
    (tmp_path/"o"/"stop").mkdir(parents=True)
    result = train(*configs(data, tmp_path/"o", "--max_steps", 2))
    assert (
        (result.step, result.reason) == (2, "max_steps")
        and "'stop' in the output folder cannot be removed" in capsys.readouterr().out
    )
