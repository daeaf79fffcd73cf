"""A stop that is asked for while something takes long: it is broken off, saved at once, and the resumed run does
what it owes and is the run that was never stopped."""
import json
import re

import pytest

from cad_mllm.checkpoints import list_checkpoints
from cad_mllm.training import EXIT_STOPPED
from small_data import make
from test_train import assert_same, saves
from train_runs import Training, peers

# two stages of four steps, two batches in each validation
RUN = [
    "--max_train_samples", "8", "--num_val_samples", "2", "--batch_size", "1", "--gradient_accumulation_steps", "2",
    "--stage3_epochs", "0", "--keep_last_n_checkpoints", "0"
]
BY_STEPS = [*RUN, "--eval_steps", "2", "--save_steps", "3", "--num_logged_completions", "1"]
AT_SAVES = [*RUN, "--save_steps", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 10)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "The unbroken run with these flags, made once."
    root, made = tmp_path_factory.mktemp("whole"), {}
    def of(flags):
        if str(flags) not in made:
            made[str(flags)] = root/str(len(made))
            Training(data, made[str(flags)], *flags).wait(0)
        return made[str(flags)]
    return of


def last_saves(out):
    """What the last regular checkpoint of each stage and step says of itself: that of a stop may stand beside the
    one that follows it."""
    newest = {}
    for r in sorted(list_checkpoints(out), key=lambda r: r.serial):
        if re.match(r"checkpoint-step\d", r.path.name):
            newest[r.stage, r.step] = {
                k: r.metadata.get(k) for k in ("loss", "val_loss", "is_best", "epoch", "samples", "tokens")
            }
    return newest


def struck_and_resumed(data, out, flags, where):
    "Stop it there by a signal to itself, and go on; how often that was begun and finished."
    told = out.with_suffix(".json")
    process = Training(data, out, *flags, env={"STRIKE": f"{where}@{told}"})
    process.wait(EXIT_STOPPED)
    assert (
        json.loads((out/"status.json").read_text())["message"] == "stopped by SIGTERM"
        and "Traceback" not in process.text
    )
    assert max(r.step for r in list_checkpoints(out)) == json.loads((out/"status.json").read_text())["step"] > 0
    Training(data, out, *flags, "--resume_from_ckpt", "auto").wait(0)
    return json.loads(told.read_text())


@pytest.mark.parametrize(
    "flags, where",
    [
        (BY_STEPS, "validation:1"), (BY_STEPS, "validation:4"), (AT_SAVES, "validation:2"), (AT_SAVES, "validation:3"),
        (BY_STEPS, "drawing:2")
    ],
    ids=["first", "at a stage's end", "of a save", "of a stage's model", "drawing"]
)
def test_sigterm_in_a_validation_or_drawing_ends_it_at_once(flags, where, data, whole, tmp_path):
    """Nothing of it is begun or finished after the request; resumed, the run ends with the same bits, checkpoints
    and pictures as one that was never stopped."""
    out, reference = tmp_path/"o", whole(flags)
    seen = struck_and_resumed(data, out, flags, where)
    number = int(where.partition(":")[2])
    assert seen == dict(begun=number, after=0, finished=number - 1 if "drawing" in where else 0)
    assert_same(reference, out, checkpoints=False)
    expected, found = saves(reference), last_saves(out)
    assert {k: found.get(k) for k in expected} == expected and len(expected) > 1
    drawn = [{p.name: p.read_bytes() for p in (o/"drawn").glob("*")} for o in (reference, out)]
    assert drawn[0] == drawn[1] and bool(drawn[0]) == ("--num_logged_completions" in flags)


def test_sigterm_to_one_of_two_in_a_validation_ends_both_together(data, tmp_path):
    out, flags = tmp_path/"o", [*RUN, "--gradient_accumulation_steps", "1", "--eval_steps", "2", "--save_steps", "0"]
    for p in [Training(data, tmp_path/"whole", *flags, env=env) for env in peers(2)]: p.wait(0)
    first, second = peers(2)
    pair = [
        Training(data, out, *flags, env=first),
        Training(data, out, *flags, env={**second, "STRIKE": f"validation:1@{tmp_path}/told.json"})
    ]
    for p in pair: p.wait(EXIT_STOPPED)
    assert (
        json.loads((tmp_path/"told.json").read_text())["after"] == 0
        and json.loads((out/"status.json").read_text())["message"] == "stopped by another process"
    )
    for p in [Training(data, out, *flags, "--resume_from_ckpt", "auto", env=env) for env in peers(2)]: p.wait(0)
    assert_same(tmp_path/"whole", out, checkpoints=False)
