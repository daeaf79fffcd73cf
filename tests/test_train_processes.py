"Several processes: bit-exact on as many, the same data on fewer or more, and nobody waits for the dead."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cad_mllm.checkpoints import list_checkpoints
from cad_mllm.config import TrainConfig
from cad_mllm.training import (
    EXIT_FAILED, EXIT_STOPPED, Loop, Progress, read_events, read_metrics, RunOutput, Split, rebalance, Stopper, World)
from small_data import make
from test_train import assert_same, rows
from train_runs import FLAGS, Training, after, configs, peers

RUN = [
    "--max_train_samples", "22", "--stage1_epochs", "2", "--stage2_epochs", "1", "--stage3_epochs", "0", "--save_steps",
    "3", "--keep_last_n_checkpoints", "0"
]
TWO = [*RUN, "--batch_size", "2", "--use_lora", "--lora_r", "4", "--lora_dropout", "0.1"]
FOREVER = ["--stage1_epochs", "5000", "--save_steps", "0", "--save_minutes", "0.001", "--batch_size", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"), 14)


def several(data, out, *flags, size=2, each=None, fence=None):
    return [
        Training(data, out, *flags, *((each or {}).get(r, [])), env=env, fence=fence if r == 1 else None)
        for r, env in enumerate(peers(size))
    ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "The unbroken run on two processes."
    out = tmp_path_factory.mktemp("whole")/"o"
    for p in several(data, out, *TWO): p.wait(0)
    return out


def launch(data, out, *flags, fence=None, how=("--multi_gpu",)):
    "The same under `accelerate launch`, as a process group of its own."
    here = Path(__file__).parent
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *how, "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m",
        "fenced" if fence else "cad_mllm", "train", *FLAGS, "--data_root", str(data), "--output_dir", str(out), *flags
    ]
    log = open(out.with_suffix(".log"), "ab")
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        env={
            **os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "PYTHONUNBUFFERED": "1", "FENCE": str(fence)
        }
    )


def children(pid):
    "Process ids of the trainings below a launcher."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: parent, command = int(stat.read_text().rsplit(")", 1)[1].split()[1]), (stat.parent/"cmdline").read_text()
        except (OSError, ValueError, IndexError): continue
        if parent == pid and "train" in command: found.append(int(stat.parent.name))
    return found


def until(process, log, condition):
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the launcher's processes")
def test_accelerate_launch_one_dies_the_other_says_so_and_two_go_on_bit_for_bit(data, whole, tmp_path):
    out = tmp_path/"o"
    log = out.with_suffix(".log")
    process = launch(data, out, *TWO, fence=6)
    until(process, log, after(out, 5, saved=3))
    victim = next(pid for pid in children(process.pid) if pid != json.loads((out/"status.json").read_text())["pid"])
    os.kill(victim, signal.SIGKILL)
    assert process.wait(120) != 0
    assert (
        "process 1 died or is unresponsive: process 0 of 2 stops too; start all of them again with --resume_from_ckpt "
        "auto"
        in log.read_text()
    )
    process = launch(data, out, *TWO, "--resume_from_ckpt", "auto")
    assert process.wait(300) == 0, log.read_text()[-4000:]
    assert "✓ Resuming from step 3" in log.read_text()
    assert_same(whole, out)


def test_stopped_by_one_killed_all_and_still_as_if_never_stopped(data, whole, tmp_path):
    """A SIGTERM to one process ends both, saved; a SIGKILL to both leaves the last save; the third pair ends as the
    unbroken pair did."""
    out = tmp_path/"o"
    pair = several(data, out, *TWO, fence=6)
    pair[0].until(after(out, 4))
    pair[1].send(signal.SIGTERM)
    for p in pair: p.wait(EXIT_STOPPED)
    assert "another process" in json.loads((out/"status.json").read_text())["message"]
    pair = several(data, out, *TWO, "--resume_from_ckpt", "auto", fence=12)
    pair[0].until(after(out, 9))
    for p in pair: p.kill()
    for p in several(data, out, *TWO, "--resume_from_ckpt", "auto", "--num_workers", "1"): p.wait(0)
    assert_same(whole, out, checkpoints=False)


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1)])
def test_other_processes_same_data(first, then, data, tmp_path):
    """Killed on one and resumed on two, and the other way round, with the same command: the same samples in every
    step, losses to rounding, and it says so."""
    flags = [*RUN, "--lora_dropout", "0", "--projector_dropout", "0", "--batch_size", str(4//first)]
    out = tmp_path/"o"
    for p in several(data, tmp_path/"whole", *flags, size=first): p.wait(0)
    for p in several(data, out, *flags, "--max_steps", "5", size=first): p.wait(0)
    again = several(data, out, *flags, "--resume_from_ckpt", "auto", size=then)
    for p in again: p.wait(0)
    said = again[0].text
    assert re.search(
        rf"number of processes was 4 samples per step .* x {first} process(es)?\), is 4 samples per step .* x {then} "
        r"process(es)?\): same data, not bit-exact",
        said
    )
    one, two = read_metrics(tmp_path/"whole"), read_metrics(out)
    assert [(r["tokens"], r["samples"], r["lr"], r["epoch"]) for r in one] == [
        (r["tokens"], r["samples"], r["lr"], r["epoch"]) for r in two
    ]
    assert (
        [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-3)
        and rows(tmp_path/"whole") != rows(out)
    )


def test_every_split_takes_the_same_samples_in_the_same_order(data, tmp_path):
    """Not by counts but by name: the samples of each step on one, two and three processes, over an epoch's end,
    begun in the middle."""
    from cad_mllm.data import batches
    from cad_mllm.training import open_data, Plan, Trainer
    model, settings = configs(data, tmp_path, *RUN)
    trainer = Trainer(model, settings)
    open_data(trainer.state, trainer.output)
    data = trainer.state.data
    taken, sample = [], data.sample
    data.sample = lambda epoch, i: taken.append((epoch, i)) or sample(epoch, i)

    def steps_of(split, position):
        "The samples of each step, all processes together."
        plan, found = Plan(len(data), 2, split.batch_size*split.world, split.accumulate), []
        while position < plan.total:
            end, epoch, start = plan.after(position), position//plan.num_samples, position % plan.num_samples
            taken.clear()
            for rank in range(split.world):
                stream = batches(
                    data, trainer.state.model.builder, epoch, start, split.batch_size, 0, rank, split.world
                )
                for _ in range(-(-(end - position)//plan.micro)): next(stream)
                stream.close()
            found.append(sorted(taken))
            position = end
        return found
    whole = steps_of(Split(6, 1, 1), 0)
    assert sum(whole, []) != sorted(sum(whole, [])) and len(sum(whole, [])) == 2*22
    for split in (
        Split(2, 3, 1), rebalance(Split(6, 1, 1), 2), rebalance(Split(2, 3, 1), 3), rebalance(Split(1, 2, 3), 1)
    ):
        assert (
            split.per_step == 6 and steps_of(split, 0) == whole and steps_of(split, 6) == whole[1:]
            and steps_of(split, 22) == whole[4:]
        )


@pytest.mark.parametrize("victim", [1, 0])
def test_one_dies_and_the_other_does_not_wait(victim, data, tmp_path):
    "Also with saving by the clock, which all have to do at the same step."
    pair = several(data, tmp_path/"o", *FOREVER)
    pair[0].until(lambda: sum(e["event"] == "checkpoint" for e in read_events(tmp_path/"o")) > 1)
    pair[victim].kill()
    left = pair[1 - victim]
    left.wait(EXIT_FAILED)
    assert (
        f"process {victim} died or is unresponsive: process {1 - victim} of 2 stops too" in left.text
        and "Traceback" not in left.text
    )
    if victim: assert "process 1 died" in json.loads((tmp_path/"o"/"status.json").read_text())["message"]
    assert any(r.complete for r in list_checkpoints(tmp_path/"o"))


def test_a_signal_while_they_agree_counts_at_the_next_step(data, tmp_path):
    "It strikes after the process has told the others that it goes on: then it goes on with them."
    class Struck(World):
        def sum(self, tensor):
            os.kill(os.getpid(), signal.SIGTERM)
            return tensor
    settings = TrainConfig(data_root=str(data))
    state = SimpleNamespace(train_config=settings, progress=Progress(), world=Struck(1, 2), output_dir=tmp_path)
    loop = Loop(state, RunOutput(state), None, None, None, None, None)
    with Stopper() as stopper:
        state.stopper = stopper
        assert not loop.asked_to_stop() and not stopper.reason
        assert loop.asked_to_stop() and stopper.reason == "SIGTERM"


def test_one_hangs_and_the_other_gives_up(data, tmp_path):
    pair = several(data, tmp_path/"o", *FOREVER, "--dist_timeout_minutes", "0.1")
    pair[0].until(after(tmp_path/"o", 2))
    pair[1].send(signal.SIGSTOP)
    pair[0].wait(EXIT_FAILED)
    pair[1].kill()
    assert "process 1 died or is unresponsive" in pair[0].text


def test_one_fails_and_the_other_repeats_its_error(data, tmp_path):
    "And torchrun finds the first error, not the echo, in the file that it named for each process."
    files = [tmp_path/"error0.json", tmp_path/"error1.json"]
    pair = [
        Training(data, tmp_path/"o", *RUN, *flags, env={**env, "TORCHELASTIC_ERROR_FILE": str(file)})
        for file, env, flags in zip(files, peers(2), ([], ["--data_root", str(tmp_path/"nowhere")]))
    ]
    for p in pair: p.wait(EXIT_FAILED)
    assert (
        re.search(r"process 1 ended with \w+Error: .*nowhere.*: process 0 of 2 stops too", pair[0].text)
        and "nowhere" in pair[1].text
    )
    assert "nowhere" in json.loads(files[1].read_text())["message"]["message"] and not files[0].exists()


def test_told_different_things_they_do_not_begin(data, tmp_path):
    pair = several(data, tmp_path/"o", *RUN, each={1: ["--seed", "7"]})
    for p in pair: p.wait(EXIT_FAILED)
    assert (
        all("process 1 has other settings or other data than process 0" in p.text for p in pair)
        and not read_metrics(tmp_path/"o")
    )


def test_one_never_comes(data, tmp_path):
    alone = Training(data, tmp_path/"o", *RUN, "--dist_timeout_minutes", "0.03", env=peers(2)[0])
    alone.wait(EXIT_FAILED)
    assert "process 0 of 2 did not meet the others within 0.03 minutes" in alone.text


ENDS = """
import atexit, os, sys, time
import torch, torch.distributed as dist
from cad_mllm import cli
from cad_mllm.training import init_distributed

def say(*words): os.write(1, " ".join(map(str, (*words, "\\n"))).encode())

def process(how, rank):
    world = init_distributed(torch.device("cpu"), 1)
    from torch.distributed.nn import functional # as building a model does
    kept = dist.group.WORLD if how == "kept" else None
    shared = torch.ones(1000)
    sys.setswitchinterval(10)   # the threads behind the group get the interpreter only when it is given up: late
    for _ in range(30): world.sum(shared)
    if rank: time.sleep(.3)
    came = time.monotonic()
    world.leave()
    left = time.monotonic()
    threads = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
    say(how, rank, came, left, "gloo" in str(threads))
    atexit.register(sys.stdout.write, "goodbye\\n")
    if how == "left": sys.exit(0)
    cli.run_train = lambda argv: [kept.allreduce(shared).wait() for _ in range(30)] and 0
    cli.main(["train"])

for how, ports in (("left", sys.argv[1:2]), ("kept", sys.argv[2:])):
    for port in ports:
        pids = []
        for rank in (0, 1):
            if pid := os.fork(): pids.append(pid); continue
            os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            process(how, rank)
        say("codes", how, *[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the threads of a process")
def test_a_process_that_is_done_ends_with_its_code(tmp_path):
    """Nothing that runs in the background may abort it at its very end: not after leaving the others, and not where
    the group lives on because somebody refers to it."""
    ports = [peers(2)[0]["MASTER_PORT"] for _ in range(6)]
    done = subprocess.run(
        [sys.executable, "-c", ENDS, *ports], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    )
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert [
        line[1:] for line in lines if line[0] == "codes"
    ] == [["left", "0", "0"]] + [["kept", "0", "0"]]*5, done.stdout + done.stderr[-3000:]
    (_, _, _, first_left, first_threads), (_, _, second_came, _, second_threads) = sorted(
        line for line in lines if line[0] == "left"
    )
    assert first_threads == second_threads == "False"
    assert float(first_left) > float(second_came)               # nobody leaves before all have come
    assert done.stdout.count("goodbye\n") == 2*len(ports)
