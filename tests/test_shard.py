"""Shared-out weights (FSDP2) with real processes: what one process computes, to the last bit as if never killed, and
a checkpoint like any other."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cad_mllm.checkpoints import list_checkpoints
from cad_mllm.models import CADMLLMModel
from cad_mllm.training import EXIT_FAILED, EXIT_STOPPED, read_events, read_metrics
from small_data import make
from test_train import assert_same
from test_train_processes import FOREVER, after, launch, several
from train_runs import Training

SHORT = [
    "--max_train_samples", "14", "--stage1_epochs", "1", "--stage2_epochs", "0", "--stage3_epochs", "2", "--save_steps",
    "3", "--keep_last_n_checkpoints", "0"
]
EXACT = [*SHORT, "--lora_dropout", "0", "--projector_dropout", "0"]
LORA = ["--use_lora", "--lora_r", "4"]
SHARED = ["--fsdp", "--batch_size", "2"]
SAID = "sharded over 2 processes"

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"), 14)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "The unbroken run on two processes, with everything random."
    out = tmp_path_factory.mktemp("whole")/"o"
    for p in several(data, out, *SHORT, *LORA, *SHARED, "--lora_dropout", "0.1"): p.wait(0)
    return out


def assert_to_rounding(one, two):
    "The same steps: equal to rounding at first, and later as near as Adam leaves numbers that differ by rounding."
    one, two = read_metrics(one), read_metrics(two)
    assert (
        len(one) > 9
        and [(r["tokens"], r["samples"], r["lr"]) for r in one] == [(r["tokens"], r["samples"], r["lr"]) for r in two]
    )
    for name, first, later in (("loss", 1e-5, 1e-3), ("grad_norm", 2e-5, 5e-2), ("val_loss", 1e-5, 1e-3)):
        pairs = [(a.get(name), b.get(name)) for a, b in zip(one, two)]
        for i, (a, b) in enumerate(pairs):
            assert a == (b if a is None else pytest.approx(b, rel=first if i < 6 else later)), (name, i)


@pytest.mark.parametrize(
    "more, one, two",
    [([], 4, 2), (LORA, 4, 2), (["--use_gradient_checkpointing", "--gradient_accumulation_steps", "2"], 2, 1)],
    ids=["full", "lora", "checkpointing"]
)
def test_two_processes_with_shares_train_as_one_does(more, one, two, data, tmp_path):
    """Text on one process, pictures and points on the other: losses, gradient norms and weights of one process, to
    rounding; the files have the same tensors."""
    Training(data, tmp_path/"one", *EXACT, *more, "--batch_size", one).wait(0)
    pair = several(data, tmp_path/"two", *EXACT, *more, "--fsdp", "--batch_size", two)
    for p in pair: p.wait(0)
    assert SAID in pair[0].text and json.loads((tmp_path/"two/run_config.json").read_text())["train"]["fsdp"] is True
    assert_to_rounding(tmp_path/"one", tmp_path/"two")
    a, b = (CADMLLMModel.from_pretrained(tmp_path/n/"final_model") for n in ("one", "two"))
    assert (
        a.notes == b.notes == []
        and {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}
    )
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters()):
        assert torch.allclose(p, q, atol=2e-3), name
    sizes = [
        {
            f.name: f.stat().st_size for f in (tmp_path/n/"final_model").iterdir()
            if f.suffix in (".pt", ".safetensors") and f.name != "trainer_state.pt"
        }
        for n in ("one", "two")
    ]
    assert sizes[0] == sizes[1] and len(sizes[0]) == 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_with_shares(dtype, data, tmp_path):
    """The losses of one process to that precision; in float16 a step whose gradients overflow is left out on all
    processes, as on one."""
    flags = [*EXACT, *LORA, "--dtype", dtype, "--token_version", "1"]      # whose first gradients overflow in float16
    Training(data, tmp_path/"one", *flags, "--batch_size", "4").wait(0)
    for p in several(data, tmp_path/"two", *flags, *SHARED): p.wait(0)
    one, two = read_metrics(tmp_path/"one"), read_metrics(tmp_path/"two")
    assert len(one) > 9 and [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=2e-3)
    assert [(r["nan_steps"], r["grad_norm"] is None) for r in one] == [
        (r["nan_steps"], r["grad_norm"] is None) for r in two
    ]
    assert bool(one[-1]["nan_steps"]) == (dtype == "float16")


def test_killed_and_stopped_and_still_as_if_never(data, whole, tmp_path):
    """SIGKILL to both, then SIGTERM to one: the third pair ends as the unbroken pair did, every loss and every
    weight to the last bit."""
    out, flags = tmp_path/"o", [*SHORT, *LORA, *SHARED, "--lora_dropout", "0.1"]
    pair = several(data, out, *flags, fence=5)
    pair[0].until(after(out, 4, saved=3))
    for p in pair: p.kill()
    pair = several(data, out, *flags, "--resume_from_ckpt", "auto", fence=8)
    pair[0].until(after(out, 7))
    pair[1].send(signal.SIGTERM)
    for p in pair: p.wait(EXIT_STOPPED)
    for p in several(data, out, *flags, "--resume_from_ckpt", "auto", "--num_workers", "1"): p.wait(0)
    assert [e["step"] for e in read_events(out) if e["event"] == "resume"] in ([3, 7], [3, 8])
    assert_same(whole, out, checkpoints=False)


@pytest.mark.parametrize("first, then", [(2, 1), (1, 2)])
def test_from_shares_to_one_process_and_back(first, then, data, tmp_path):
    """A checkpoint with shares goes on whole and the other way round, optimizer and all: the losses of an unbroken
    run to rounding, and it says what differs."""
    size = {1: ["--batch_size", "4"], 2: SHARED}
    for p in several(data, tmp_path/"whole", *EXACT, *size[1], size=1): p.wait(0)
    for p in several(data, tmp_path/"o", *EXACT, *size[first], "--max_steps", "5", size=first): p.wait(0)
    again = several(data, tmp_path/"o", *EXACT, *size[then], "--resume_from_ckpt", "auto", size=then)
    for p in again: p.wait(0)
    assert "✓ Restored optimizer state" in again[0].text and "fresh optimizer" not in again[0].text
    assert f"fsdp was {first == 2}, is {then == 2}: same data, not bit-exact" in again[0].text
    assert_to_rounding(tmp_path/"whole", tmp_path/"o")


def test_a_process_whose_samples_are_all_broken_computes_along(tmp_path):
    "Otherwise the other one would wait for it for ever."
    data = make(tmp_path/"data", 14)
    for name in sorted((data/"json").rglob("*.json"))[::2]: name.write_text("{")
    flags = [*EXACT, "--no_prefix_prob", "1", "--num_val_samples", "0"]
    Training(data, tmp_path/"one", *flags, "--batch_size", "2").wait(0)
    for p in several(data, tmp_path/"two", *flags, "--fsdp", "--batch_size", "1"): p.wait(0)
    assert_to_rounding(tmp_path/"one", tmp_path/"two")


def test_held_out_parts_are_drawn_though_no_process_has_the_weights(data, tmp_path):
    "The whole weights come together for that, and go again: the run is the one without drawing."
    for name, more in (("without", []), ("drawn", ["--num_logged_completions", "1"])):
        pair = several(data, tmp_path/name, *EXACT, *SHARED, "--stage3_epochs", "1", *more)
        for p in pair: p.wait(0)
        assert "could not be drawn" not in pair[0].text
    assert_same(tmp_path/"without", tmp_path/"drawn", checkpoints=False)
    assert len(list((tmp_path/"drawn/drawn").glob("*.png"))) == len(
        {e["step"] for e in read_events(tmp_path/"drawn") if e["event"] == "checkpoint"}
    ) > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_is_gone_in_the_middle_of_a_layer(number, data, tmp_path):
    "The other gets no answer while it computes: it says who is gone."
    pair = several(
        data, tmp_path/"o", *FOREVER, "--fsdp", "--dist_timeout_minutes", "0.2" if number == signal.SIGSTOP else "10"
    )
    pair[0].until(after(tmp_path/"o", 3))
    pair[1].send(number)
    pair[0].wait(EXIT_FAILED)
    pair[1].kill()
    assert (
        "process 1 died or is unresponsive: process 0 of 2 stops too" in pair[0].text
        and "Traceback" not in pair[0].text
    )
    assert any(r.complete for r in list_checkpoints(tmp_path/"o"))


def test_accelerates_own_configuration_asks_for_it(data, tmp_path):
    """`accelerate launch` with FSDP 2 trains with shares, here with layers kept from forward to backward pass; with
    FSDP 1, or weights in the computer's memory, nothing begins and a sentence says why."""
    for name, flags, code, text in (
        ("two", ["--fsdp_version", "2", "--fsdp_reshard_after_forward", "false"], 0, SAID),
        ("one", ["--fsdp_version", "1"], 1, "choose version 2 in `accelerate config`"),
        ("offload", ["--fsdp_version", "2", "--fsdp_offload_params", "true"], 1, "fsdp_offload_params: true")
    ):
        process = launch(
            data, tmp_path/name, *EXACT, "--batch_size", "2", "--max_steps", "2", how=["--use_fsdp", *flags]
        )
        assert (process.wait(120) == 0) == (code == 0), (tmp_path/name).with_suffix(".log").read_text()[-3000:]
        said = (tmp_path/name).with_suffix(".log").read_text()
        assert text in said and len(read_metrics(tmp_path/name)) == (2 if code == 0 else 0)


def test_alone_it_trains_whole_and_says_so(data, tmp_path):
    process = Training(data, tmp_path/"o", *EXACT, "--fsdp", "--max_steps", "2")
    process.wait(0)
    assert "one process alone keeps all weights" in process.text and len(read_metrics(tmp_path/"o")) == 2


def test_the_tutorial_for_clusters_runs(tmp_path):
    """Its job script, with Slurm's commands played: two processes, a signal, the request to be run again, and the
    rest of the run."""
    notebook = Path(__file__).parent.parent/"nbs/tutorials/cluster.ipynb"
    if not notebook.exists():
        pytest.skip("nbs/tutorials/cluster.ipynb is not there (an installed package has no notebooks)")
    cells = [
        "".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ]
    env = {**os.environ, "PYTHONPATH": str(notebook.parent.parent.parent), "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert "scontrol requeue 4711" in done.stdout and "resume" in done.stdout
