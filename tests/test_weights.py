"""Weights by name: the package's, a folder's, the Hub's; and a new run that begins from them."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from cad_mllm.cad import CADProgram, rectangle
from cad_mllm.geometry import build_solid
from cad_mllm.models import given_weights as weights
from cad_mllm.checkpoints.format import CheckpointError
from cad_mllm.inference import CADAutocomplete
from cad_mllm.training.run_files import read_events
from cad_mllm.models.given_weights import find_weights, halve
from train_runs import Training

NAME = "stream:realistic?num=12&seed=3"
ONE_STAGE = ("--stage2_epochs", "0", "--stage3_epochs", "0", "--num_val_samples", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A finished run of a few steps."
    out = tmp_path_factory.mktemp("trained")/"run"
    Training(NAME, out, *ONE_STAGE).wait(0)
    return out


def tensors(folder): return load_file(folder/"model.safetensors")


def test_a_new_run_begins_from_given_weights(trained, tmp_path):
    """The first step at a learning rate of nothing leaves the weights where they were; the run counts from 0 and
    says what it began from."""
    done = Training(
        NAME, tmp_path/"tuned", *ONE_STAGE, "--init_from", str(trained/"final_model"), "--max_steps", "1",
        "--stage1_lr", "1e-20", "--save_steps", "1"
    )
    done.wait(0)
    made = next((tmp_path/"tuned").rglob("checkpoint-step1-*"))
    first, second = tensors(trained/"final_model"), tensors(made)
    assert first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)
    event, = (e for e in read_events(tmp_path/"tuned") if e["event"] == "init")
    assert event["kind"] == "folder" and event["folder"] == str(trained/"final_model") and "Begins from" in done.text


def test_small_are_the_weights_of_the_package_where_it_has_any(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SMALL_FOLDER", tmp_path/"none")
    with pytest.raises(CheckpointError, match="points_small"): find_weights("small")
    monkeypatch.setattr(weights, "SMALL_FOLDER", halve(trained/"final_model", tmp_path/"small"))
    model = CADAutocomplete("small", device="cpu", kernel="manifold")
    assert find_weights("small").kind == "package" and model.path == tmp_path/"small"
    assert model.complete(None, "a plate", max_new_tokens=24)["metadata"]


def test_a_name_of_the_hub_is_fetched_with_its_commit(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = shutil.copytree(trained/"final_model", tmp_path/"cache")
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda self, repo, revision=None: type("Info", (), dict(sha="c0ffee"))
    )
    monkeypatch.setattr(
        weights, "download", lambda repo, revision: fetched if (repo, revision) == ("user/model", "c0ffee") else None
    )
    found = find_weights("user/model@v1")
    assert (found.kind, found.folder, found.revision) == ("hub", fetched, "c0ffee")


def test_a_name_that_is_nowhere_says_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda *a, **k: (_ for _ in ()).throw(OSError("no connection"))
    )
    with pytest.raises(CheckpointError, match="no such checkpoint.*Hub.*no connection"): find_weights("user/model")


def test_the_package_brings_a_small_model_that_reads_points():
    "Its manifest says where it comes from, and the points of a block become a part of much the same volume."
    found = find_weights("small")
    told = json.loads((found.folder/"manifest.json").read_text())["metadata"]
    assert found.kind == "package" and {"commit", "data", "seed", "hours", "samples", "trained_on"} <= told.keys()
    assert sum(f.stat().st_size for f in found.folder.iterdir()) < 12e6
    block = CADProgram()
    block.sketch(rectangle(0, 0, .08, .05))
    block.extrude(.03)
    solid = build_solid(block, "manifold")
    result = CADAutocomplete(device="cpu", kernel="manifold").complete(point_cloud=solid.points(2048))
    assert result["metadata"]["valid"] and abs(result["metadata"]["volume"]/solid.volume - 1) < .1
