"""A run that was killed, at any moment and however often, goes on as if nothing had happened: real processes, real
SIGKILL, and every number compared.

What has to be equal, to the last bit: each logged step (loss, learning rate, gradient norm, counts), what every
checkpoint says (mean loss since the
previous save, validation loss, whether it is the best), all final weights, and the whole state that the next step would
depend on.
"""
import json
import re
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cad_mllm.checkpoints import BEST, latest_checkpoint, list_checkpoints, read_record, safe_load
from cad_mllm.training import EXIT_STOPPED, STOP, read_events, read_metrics, train
from small_data import make
from train_runs import Training, after, configs

TIMES = {"time", "seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "22 training samples: an epoch is 6 steps of 4, the last one short."
    return make(tmp_path_factory.mktemp("data"), 14)


def rows(out): return {r["step"]: {k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(out)}


def weights(folder):
    "All weights of a checkpoint as one dict."
    found = {}
    for f in sorted(folder.glob("*.safetensors")): found |= {f"{f.name}:{k}": v for k, v in load_file(f).items()}
    for f in sorted(folder.glob("*_*.pt")):
        if f.name != "trainer_state.pt":
            found |= {f"{f.name}:{k}": v for k, v in torch.load(f, weights_only=True).items()}
    return found


def state(folder):
    """What the next step would depend on, without times and without the settings that may differ (folders, flags of
    the resume)."""
    found = safe_load(folder/"trainer_state.pt")
    for key in ("timestamp", "train_config"): found.pop(key)
    found["progress"].pop("seconds")
    return found


def saves(out):
    "What each regular checkpoint says of itself, by stage and step."
    keep = ("loss", "val_loss", "is_best", "epoch", "samples", "tokens")
    return {
        (r.stage, r.step): {k: r.metadata.get(k) for k in keep} for r in list_checkpoints(out)
        if re.match(r"checkpoint-step\d", r.path.name)
    }


def equal(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(equal, a, b))
    return a == b or a != a and b != b


def assert_same(whole, resumed, checkpoints=True):
    assert rows(whole) == rows(resumed) and len(rows(whole)) > 5
    first, second = weights(whole/"final_model"), weights(resumed/"final_model")
    assert first.keys() == second.keys() and len(first) > 10
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    one, two = state(whole/"final_model"), state(resumed/"final_model")
    if not checkpoints:
        for s in (one, two):
            s.pop("loss")
            [s["progress"].pop(k) for k in ("best", "val_loss", "val_step")]
    assert [k for k in one if not equal(one[k], two[k])] == []
    if checkpoints:
        assert saves(whole) == saves(resumed) and len(saves(whole)) > 2
        for stage in {s for s, _ in saves(whole)}:
            assert read_record(whole/stage/BEST).step == read_record(resumed/stage/BEST).step


LORA = ["--use_lora", "--lora_r", "4", "--lora_dropout", "0.1"]
COMMON = [
    "--max_train_samples", "22", "--stage1_epochs", "2", "--stage2_epochs", "2", "--stage3_epochs", "0", "--save_steps",
    "3", "--keep_last_n_checkpoints", "0"
]
VARIANTS = {
    "full": [],
    "lora, dropout 0.1, accumulation 3": [
        *LORA, "--gradient_accumulation_steps", "3", "--stage1_epochs", "4", "--stage2_epochs", "3", "--save_steps", "2"
    ],
    "not packed, best by the training loss": ["--no-packing", "--num_val_samples", "0", "--stage1_lr", "0.3"],
    "gates, several views, worse clouds, drawn parts": [
        "--stage1_epochs", "30", "--stage1_patience", "2", "--stage1_lr", "0.02", "--stage2_epochs", "2",
        "--eval_steps", "2", "--num_logged_completions", "2", "--max_views", "3", "--point_jitter_std", "0.05",
        "--point_dropout_ratio", "0.5", "--point_crop_ratio", "0.3", "--stage2_target_val_loss", "0.01", "--report_to",
        "tensorboard"
    ],
    "fp16, GradScaler": [*LORA, "--dtype", "float16", "--stage2_epochs", "0"]
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "The unbroken run of a variant, made once."
    root, made = tmp_path_factory.mktemp("whole"), {}
    def of(name):
        if name not in made:
            made[name] = root/str(len(made))
            Training(data, made[name], *COMMON, *VARIANTS[name]).wait(0)
        return made[name]
    return of


def killed_at(data, out, flags, reached, fence):
    "Resume, kill when `reached()`, before the step after `fence`; what the resume said."
    process = Training(data, out, *flags, "--resume_from_ckpt", "auto", fence=fence).until(reached)
    process.kill()
    assert process.code == -signal.SIGKILL
    return process.text


def test_killed_in_an_epoch_at_its_end_and_between_stages(data, whole, tmp_path):
    """Four lives with 0, 1, 2 and 0 data workers: killed in the middle of an epoch, right after a save at its end,
    right after a stage's model."""
    out, flags = tmp_path/"killed", [*COMMON, *VARIANTS["full"]]
    killed_at(data, out, flags, after(out, 5, saved=3), 8)
    said = killed_at(
        data, out, [*flags, "--num_workers", "1"],
        lambda: any(r.step == 6 and r.complete for r in list_checkpoints(out)), 8
    )
    assert (
        "✓ Restored optimizer state" in said and "✓ Restored scheduler state" in said
        and "✓ Resuming from epoch 0, step 3" in said
    )
    said = killed_at(data, out, [*flags, "--num_workers", "2"], (out/"stage1_text_model"/"manifest.json").exists, 14)
    assert "✓ Resuming from epoch 1, step 6" in said
    done = Training(data, out, *flags, "--resume_from_ckpt", "auto")
    done.wait(0)
    assert "was" not in re.findall(r"⚠️.*", done.text)
    assert_same(whole("full"), out)


@pytest.mark.parametrize("name", list(VARIANTS)[1:])
def test_killed_and_resumed_is_as_if_never_stopped(name, data, whole, tmp_path):
    out, flags = tmp_path/"killed", [*COMMON, *VARIANTS[name]]
    at = len(rows(whole(name)))//2
    killed_at(data, out, flags, after(out, at, saved=1), at + 2)
    said = Training(data, out, *flags, "--resume_from_ckpt", "auto", "--num_workers", "1")
    said.wait(0)
    assert "✓ Resuming from" in said.text
    assert_same(whole(name), out)
    # so that a best that was forgotten would show
    if "best" in name: assert {save["is_best"] for save in saves(out).values()} == {True, False}
    if "gates" in name:
        gates = [
            {(e["stage"], e["step"], e["text"]) for e in read_events(o) if e["event"] == "gate"}
            for o in (whole(name), out)
        ]
        (stage, step, text), = gates[0]
        assert (
            gates[0] == gates[1] and stage == "stage1_text" and 5 < step < 6*30
            and text.startswith("2 validations without")
        )
        drawn = [{p.name: p.read_bytes() for p in (o/"drawn").iterdir()} for o in (whole(name), out)]
        assert drawn[0] == drawn[1] and len(drawn[0]) > 3
    if "fp16" in name:
        scaler, overflows = state(out/"final_model")["scaler"], rows(out)[max(rows(out))]["nan_steps"]
        assert (
            overflows > 0 and scaler["scale"] == 65536*.5**overflows and 0 < scaler["_growth_tracker"] < len(rows(out))
        )


def test_it_stops_when_asked_and_goes_on(data, whole, tmp_path):
    "SIGTERM, Ctrl-C and the stop file in one run: each finishes its step, saves, and ends with the code for going on."
    out, flags = tmp_path/"stopped", [*COMMON, *VARIANTS["full"], "--save_steps", "0"]
    for n, how in enumerate(("SIGTERM", "SIGINT", "stop file"), 1):
        process = Training(data, out, *flags, "--resume_from_ckpt", "auto", fence=4*n + 2).until(after(out, 4*n))
        if how == "stop file": (out/STOP).touch()
        else: process.send(getattr(signal, how))
        assert process.wait() == EXIT_STOPPED == 75
        status = json.loads((out/"status.json").read_text())
        assert (
            status["state"] == "stopped" and {"SIGINT": "Ctrl-C"}.get(how, how) in status["message"]
            and not (out/STOP).exists()
        )
        assert read_record(latest_checkpoint(out)).step == status["step"] == max(rows(out))
    Training(data, out, *flags, "--resume_from_ckpt", "auto").wait(0)
    assert_same(whole("full"), out, checkpoints=False)


def test_by_the_clock(data, tmp_path):
    "`--save_minutes` saves between, `--max_minutes` ends the run after its step, saved."
    out = tmp_path/"o"
    Training(
        data, out, "--stage1_epochs", "5000", "--save_steps", "0", "--save_minutes", "0.001", "--max_minutes", "0.08"
    ).wait(EXIT_STOPPED)
    status = json.loads((out/"status.json").read_text())
    saved = [e["step"] for e in read_events(out) if e["event"] == "checkpoint"]
    assert status["state"] == "stopped" and "max_minutes" in status["message"]
    assert len(saved) > 1 and saved[-1] == status["step"] == max(rows(out)) and saved == sorted(set(saved))
    assert [e["event"] for e in read_events(out)][-1] == "stop"


def test_auto_names_what_it_passes_over(data, tmp_path, capsys):
    """Two damaged ones and a good one: the damaged are named with what is wrong, the good one is taken; with nothing
    good the run starts again."""
    out = tmp_path/"o"
    flags = ["--max_train_samples", "22", "--save_steps", "2", "--stage1_epochs", "2"]
    Training(data, out, *flags, "--max_steps", "6").wait(0)
    old, middle, new = sorted(
        (r for r in list_checkpoints(out) if re.match(r"checkpoint-step\d", r.path.name)), key=lambda r: r.step
    )
    flipped = next(new.path.glob("*.safetensors"))
    content = bytearray(flipped.read_bytes())
    content[len(content)//2] ^= 1
    flipped.write_bytes(content)
    (middle.path/"trainer_state.pt").unlink()
    for r in list_checkpoints(out):
        if r.path.name == BEST and r.step > old.step: (r.path/"manifest.json").write_text("{}")
    done = Training(data, out, *flags, "--resume_from_ckpt", "auto", "--max_steps", "7")
    done.wait(0)
    assert f"{new.path} is not complete: {flipped.name}: its content has changed" in done.text
    assert f"{middle.path} is not complete: trainer_state.pt: is missing" in done.text
    assert "✓ Resuming from step 2" in done.text and re.search(r"Using .* instead", done.text)
    for manifest in out.rglob("manifest.json"): manifest.write_text("{}")
    model, settings = configs(data, out, *flags, "--max_steps", "2")
    assert train(model, replace(settings, resume_from_ckpt="auto")).step == 2
    said = capsys.readouterr().out
    assert said.count("is not complete: manifest.json") >= 3 and "starting at the beginning" in said


def test_killed_before_the_first_save_it_begins_again_as_it_was(data, tmp_path):
    "With no checkpoint the settings come from the run's own record."
    out = tmp_path/"o"
    Training(data, out, "--save_steps", "0", "--seed", "5", fence=4).until(after(out, 1)).kill()
    first = rows(out)[1]
    process = Training(data, out, only=["--output_dir", str(out), "--resume_from_ckpt", "auto", "--max_steps", "3"])
    process.wait(0)
    assert "No complete checkpoint" in process.text and max(rows(out)) >= 3 and rows(out)[1] == first
