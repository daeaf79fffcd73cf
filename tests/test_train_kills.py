"""Exact resume from every moment: a short run of three stages is killed after a step or in a phase of a save, goes on,
and ends with the same bits.

A seeded sample of the moments; `python benchmarks/kill_everywhere.py` takes all of them.
"""
import random
import signal

import pytest

import kills
from cad_mllm.checkpoints import latest_checkpoint
from small_data import make
from test_train import LORA, assert_same
from train_runs import Training

COMMON = ["--max_train_samples", "10", "--save_steps", "2", "--keep_last_n_checkpoints", "0"]
VARIANTS = {
    "full": [], "lora, dropout": LORA,
    "accumulation": [
        "--gradient_accumulation_steps", "2", "--stage1_epochs", "2", "--stage2_epochs", "2", "--save_steps", "1"
    ]
}
# when it is the newest
STAGE_ENDS = {
    "full": ("tidied:4", "stage2_text_pc_model"), "lora, dropout": ("tidied:2", "stage1_text_model"),
    "accumulation": ("tidied:4", "stage1_text_model")
}


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 8)


def whole_run(data, folder, name):
    "The unbroken run of a variant, and every moment at which it can be killed."
    out = folder/"whole"
    Training(data, out, *COMMON, *VARIANTS[name], env={"KILL": f"count:{folder}/points.json"}).wait(0)
    return out, kills.points(folder/"points.json")


def killed_and_resumed(data, folder, name, point, newest=""):
    "The folder of a run that was killed at a point, where the newest checkpoint had a name, and went on."
    out = folder/point.replace(":", "-").replace(" ", "-")
    Training(data, out, *COMMON, *VARIANTS[name], env={"KILL": point}).wait(-signal.SIGKILL)
    if newest: assert latest_checkpoint(out).name == newest
    Training(data, out, *COMMON, *VARIANTS[name], "--resume_from_ckpt", "auto").wait(0)
    return out


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "What `whole_run` gives for a variant, made once."
    made = {}
    def of(name):
        if name not in made: made[name] = whole_run(data, tmp_path_factory.mktemp("whole"), name)
        return made[name]
    return of


@pytest.mark.parametrize("name", list(VARIANTS))
def test_exact_resume_from_a_stages_end(name, data, whole, tmp_path):
    "Killed right after the stage's model, before the first save of the next stage."
    out, points = whole(name)
    point, newest = STAGE_ENDS[name]
    assert point in points
    assert_same(out, killed_and_resumed(data, tmp_path, name, point, newest))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_exact_resume_from_a_sample_of_all_moments(name, data, whole, tmp_path):
    out, points = whole(name)
    assert len(points) > 40 and {p.split(":")[0] for p in points} == set(kills.PHASES)
    for point in random.Random(list(VARIANTS).index(name)).sample(points, 2):
        assert_same(out, killed_and_resumed(data, tmp_path, name, point))
