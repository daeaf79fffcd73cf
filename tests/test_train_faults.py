"""What the system takes away while a training runs: data workers, memory, sound numbers. The run goes on or ends in
a sentence, with everything up to the last whole step saved."""
import json
import re
import signal
import time

import psutil
import pytest
import torch

import kills
from cad_mllm.checkpoints import latest_checkpoint, list_checkpoints, read_record
from cad_mllm.cli import main
from cad_mllm.training import (
    EXIT_FAULT, EXIT_STOPPED, FaultError, Optimization, Stepper, Trainer, read_events, read_metrics, train)
from small_data import make
from test_train import rows
from train_runs import FLAGS, Training, configs, peers

SMALL = [
    "--max_train_samples", "8", "--num_val_samples", "2", "--stage2_epochs", "0", "--stage3_epochs", "0",
    "--keep_last_n_checkpoints", "0"
]
FOREVER = [
    *SMALL, "--max_train_samples", "16", "--batch_size", "1", "--stage1_epochs", "5000", "--save_steps", "0",
    "--eval_steps", "100000", "--num_workers", "2"
]


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 10)


def figures(out): return [(r["step"], r["samples"], r["tokens"], r["lr"]) for r in read_metrics(out)]
def losses(out): return [r["loss"] for r in read_metrics(out)]


# ---- data workers

def kill_workers(process, first):
    """SIGKILL to data workers of a process that has begun, until one is missed: those of an epoch that is read
    already are not."""
    first.until(lambda: len(read_metrics(first.out)) > 2)
    while process.poll() is None:
        for worker in psutil.Process(process.pid).children()[:1]: worker.kill()
        time.sleep(.1)


def test_a_killed_data_worker_is_one_sentence_and_all_is_saved(data, tmp_path):
    """SIGKILL to one of two in the middle of the run: no traceback, the last whole step is saved, and the run goes
    on to the last bit."""
    out = tmp_path/"o"
    process = Training(data, out, *FOREVER)
    kill_workers(process, process)
    process.wait(EXIT_FAULT)
    step = max(rows(out))
    last = process.text.rstrip().splitlines()[-1]
    assert re.search(
        r"num_workers=2: a data worker is gone: (, |process \d+ was ended by SIGKILL)+; all is saved up to step "
        rf"{step}: go on with --resume_from_ckpt auto$",
        last
    )
    assert "Traceback" not in process.text and read_record(latest_checkpoint(out)).step == step
    Training(data, out, *FOREVER, "--resume_from_ckpt", "auto", "--max_steps", str(step + 3)).wait(0)
    Training(data, tmp_path/"whole", *FOREVER, "--num_workers", "0", "--max_steps", str(step + 3)).wait(0)
    assert rows(out) == rows(tmp_path/"whole") and max(rows(out)) == step + 3


def test_a_sigterm_that_reaches_the_data_workers_too_stops_the_run_as_ever(data, tmp_path):
    "As Slurm and `kill 0` send it: the workers wait for their training."
    out = tmp_path/"o"
    process = Training(data, out, *FOREVER).until(lambda: len(read_metrics(out)) > 2)
    for worker in psutil.Process(process.pid).children(): worker.send_signal(signal.SIGTERM)
    process.send(signal.SIGTERM)
    process.wait(EXIT_STOPPED)
    assert "Traceback" not in process.text and read_record(latest_checkpoint(out)).step == max(rows(out))


def test_one_of_two_loses_a_data_worker_and_both_save_and_say_so(data, tmp_path):
    out = tmp_path/"o"
    pair = [Training(data, out, *FOREVER, env=env) for env in peers(2)]
    kill_workers(pair[1], pair[0])
    for p in pair: p.wait(EXIT_FAULT)
    assert all("was ended by SIGKILL; all is saved up to step" in p.text and "Traceback" not in p.text for p in pair)
    assert read_record(latest_checkpoint(out)).step == max(rows(out))


# ---- memory

NO_ROOM = {
    "a GPU": None, "Python": MemoryError(),
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8 bytes"
    )
}


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    "Four steps that had room for everything."
    out = tmp_path_factory.mktemp("plain")/"o"
    train(*configs(data, out, *SMALL, "--stage1_epochs", 2, "--projector_dropout", 0))
    return out


@pytest.mark.parametrize("error", list(NO_ROOM))
def test_not_enough_memory_halves_the_batch_and_keeps_the_steps(error, data, plain, tmp_path, monkeypatch, capsys):
    """From the second step on two samples fit: the same samples in each step, the same losses to rounding, told
    once, remembered by a resume."""
    out, flags = tmp_path/"o", [*SMALL, "--stage1_epochs", 2, "--projector_dropout", 0]
    with monkeypatch.context() as m:
        m.setattr(Stepper, "backward", kills.short_of_memory(2, 1, NO_ROOM[error]))
        assert train(*configs(data, out, *flags, "--max_steps", 3)).step == 3
    said = [line for line in capsys.readouterr().out.splitlines() if "not enough memory" in line]
    assert (
        len(said) == 1 and "not enough memory for 4 samples at once" in said[0]
        and "2 from here on, 2 micro-batches per step; the samples of a step stay the same" in said[0]
    )
    event, = [e for e in read_events(out) if e["event"] == "out_of_memory"]
    assert (event["step"], event["batch_size"], event["gradient_accumulation_steps"]) == (1, 2, 2)
    trainer = Trainer(*configs(data, out, *flags, "--resume_from_ckpt", "auto"))
    assert trainer.run().step == 4 and trainer.state.train_config.batch_size == 2
    assert figures(out) == figures(plain) and losses(out) == pytest.approx(losses(plain), rel=1e-4)


def test_no_memory_for_one_sample_ends_in_a_sentence_with_all_saved(data, tmp_path, monkeypatch, capsys):
    out = tmp_path/"o"
    monkeypatch.setattr(Stepper, "backward", kills.short_of_memory(0, 2))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "train", *FLAGS, "--data_root", str(data), "--output_dir", str(out), *SMALL, "--stage1_epochs", "2",
                "--batch_size", "2", "--save_steps", "0"
            ]
        )
    said = capsys.readouterr()
    assert ended.value.code == EXIT_FAULT == FaultError.exit_code == 71
    assert (
        said.err.count("\n") == 1
        and "batch_size=1: there is not enough memory for one sample (CUDA out of memory. Tried to allocate 2.00 GiB); "
        "--use_gradient_checkpointing"
        in said.err
    )
    assert (
        said.err.rstrip().endswith("all is saved up to step 2: go on with --resume_from_ckpt auto")
        and said.out.count("not enough memory for") == 1
    )
    assert (
        read_record(latest_checkpoint(out)).step == 2
        and "not enough memory" in json.loads((out/"status.json").read_text())["message"]
    )


def test_no_memory_elsewhere_ends_in_a_sentence_too(data, tmp_path, monkeypatch):
    "In the optimizer, which may be done by half: not saved, and the last checkpoint is named."
    def update(self, num, inner=Optimization.update):
        if self.state.progress.step == 2: raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(self, num)
    monkeypatch.setattr(Optimization, "update", update)
    with pytest.raises(
        FaultError,
        match="batch_size=4: there is not enough memory .CUDA out of memory.; .*the last checkpoint is "
        ".*checkpoint-step2"
    ):
        train(*configs(data, tmp_path/"o", *SMALL, "--stage1_epochs", 2, "--save_steps", 1))
    assert max(r.step for r in list_checkpoints(tmp_path/"o")) == 2


def test_a_validation_takes_smaller_batches_where_memory_is_short(data, plain, tmp_path, monkeypatch):
    from chapters import Chapter
    training = Chapter("cad_mllm.training")
    trainer = Trainer(*configs(data, tmp_path/"o", *SMALL, "--stage1_epochs", 2, "--projector_dropout", 0))
    state, inner = trainer.state, trainer.state.compute
    def compute(batch):
        if batch.num_samples > 1 and not state.model.training: raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(batch)
    state.compute = compute
    trainer.run()
    values = [{r.step: r.metadata["val_loss"] for r in list_checkpoints(o)} for o in (plain, tmp_path/"o")]
    assert values[1] == pytest.approx(values[0]) and None not in values[0].values()
    state.compute, state.progress.val_step = (lambda batch: (_ for _ in ()).throw(MemoryError())), -1
    with pytest.raises(FaultError, match="not enough memory to validate one sample"): training.held_out_loss(state)


def test_one_of_two_has_no_memory_and_both_take_smaller_batches(data, tmp_path):
    flags, out = [*SMALL, "--stage1_epochs", "2", "--projector_dropout", "0", "--batch_size", "2"], tmp_path/"o"
    for p in [Training(data, tmp_path/"plain", *flags, env=env) for env in peers(2)]: p.wait(0)
    first, second = peers(2)
    pair = [
        Training(data, out, *flags, env=first), Training(data, out, *flags, env={**second, "short_of_memory": "1 1"})
    ]
    for p in pair: p.wait(0)
    assert (
        "not enough memory for 2 samples at once" in pair[0].text
        and [e["batch_size"] for e in read_events(out) if e["event"] == "out_of_memory"] == [1]
    )
    assert (
        figures(out) == figures(tmp_path/"plain") and losses(out) == pytest.approx(losses(tmp_path/"plain"), rel=1e-4)
    )


# ---- numbers that are not finite

def test_two_processes_without_finite_numbers_go_back_together(data, tmp_path):
    """One of them has them, three times: both go back to the same checkpoint and are then as if nothing had been;
    where it stays, both end with its code."""
    flags = [
        *SMALL, "--stage1_epochs", "4", "--batch_size", "2", "--save_steps", "2", "--max_nonfinite_steps", "3",
        "--use_lora", "--lora_r", "4", "--lora_dropout", "0.1"
    ]
    for p in [Training(data, tmp_path/"plain", *flags, env=env) for env in peers(2)]: p.wait(0)
    for name, times, code in (("passing", 3, 0), ("staying", 99, 76)):
        first, second = peers(2)
        pair = [
            Training(data, tmp_path/name, *flags, env=first),
            Training(data, tmp_path/name, *flags, env={**second, "not_finite": f"4 {times}"})
        ]
        for p in pair: p.wait(code)
        back, = [e for e in read_events(tmp_path/name) if e["event"] == "went_back"]
        assert back["step"] == 4 and "Traceback" not in pair[0].text + pair[1].text
    assert rows(tmp_path/"plain") == rows(tmp_path/"passing") and len(rows(tmp_path/"plain")) == 8
