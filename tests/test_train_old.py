"""Every form of checkpoint from before this format goes on: it says what it lacks, trains on, and its next save is
in this format."""
import json
import pathlib
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from cad_mllm.checkpoints import list_checkpoints, safe_load, verify_checkpoint
from cad_mllm.config import CADMLLMConfig, CurriculumStage
from cad_mllm.training import read_metrics
from small_data import LLM, make
from train_runs import Training


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 14)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A local base model, and a checkpoint of the oldest kind on it: adapters, projectors and a pickled configuration."
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from cad_mllm.data import tiny_tokenizer
    from cad_mllm.models import CADMLLMModel
    folder = tmp_path_factory.mktemp("base")
    words = tiny_tokenizer()
    words.save_pretrained(folder/"llm")
    Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(words), max_position_embeddings=8192, **LLM)
    ).save_pretrained(folder/"llm")
    config = CADMLLMConfig(
        llm_model_name=str(folder/"llm"), lora_r=4, lora_alpha=8, sequence_format="json", image_encoder_name="tiny",
        image_size=32, point_encoder_name="", projector_hidden_dim=16, max_seq_length=6000, dtype="float32"
    )
    model = CADMLLMModel(config)
    model.save_pretrained(folder/"old")
    for path in (folder/"old").iterdir():
        if not re.match(r"adapter_|image_projector", path.name): path.unlink()
    torch.save(config, folder/"old"/"config.pt")
    return folder/"old", config, model


def form(base, place, change=lambda folder: None):
    "An old checkpoint at OUTPUT/`place`."
    shutil.copytree(base[0], place)
    change(place)
    return place


def fields(**changes):
    "config.pt with fields set, or with None removed."
    def change(folder):
        config = torch.load(folder/"config.pt", weights_only=False)
        for k, v in changes.items():
            if v is None: del config.__dict__[k]
            else: config.__dict__[k] = v
        torch.save(config, folder/"config.pt")
    return change


def small_state(folder): torch.save({"epoch": 1, "step": 100}, folder/"trainer_state.pt")


def full_state(base):
    "The second form: optimizer and scheduler, a configuration with instances in it, metadata; no random state."
    def change(folder):
        model = base[2]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
        for p in optimizer.param_groups[0]["params"]: p.grad = torch.full_like(p, .5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1/(s + 1))
        optimizer.step()
        scheduler.step()
        config = {
            "stages": [CurriculumStage("stage2_text_pc", {"text": 1.0})],
            "output": pathlib.PurePosixPath("/content/drive"), "batch_size": 2
        }
        known = {"epoch": 0, "step": 552, "loss": 0.0385, "timestamp": "2025-11-30T01:45:18"}
        torch.save(
            {**known, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "config": config},
            folder/"trainer_state.pt"
        )
        (folder/"checkpoint_metadata.json").write_text(
            json.dumps(
                {
                    **known, "is_best": False,
                    "config_summary": {"batch_size": 2, "learning_rate": 2e-5, "max_seq_length": 4000}
                }
            )
        )
    return change


def as_file(suffix):
    def change(folder):
        torch.save(load_file(folder/"adapter_model.safetensors"), folder/f"adapter_model{suffix}")
        (folder/"adapter_model.safetensors").unlink()
    return change


NO_STATE = [
    "⚠️  No trainer_state.pt found in checkpoint", "Using fresh optimizer/scheduler",
    "(This is normal for older checkpoints)"
]
NO_OPTIMIZER = ["⚠️  No optimizer state in trainer_state.pt", "Using fresh optimizer/scheduler"]
NO_POSITION = "The data position is not in this checkpoint"
FORMS = {                              # place, change, first step afterwards, what is said
    "name only": ("stage2_text_pc/checkpoint-epoch0-step100", lambda b: lambda f: None, 101, [*NO_STATE, NO_POSITION]),
    "checkpoint-best with epoch and step": (
        "stage1_text/checkpoint-best", lambda b: small_state, 101,
        [*NO_OPTIMIZER, NO_POSITION, "Resuming from epoch 1, step 100"]
    ),
    "stage model without state": ("stage2_text_pc_model", lambda b: lambda f: None, 1, NO_STATE),
    "optimizer and scheduler, no random state": (
        "stage1_text/checkpoint-step552-loss0.0385-20251130_014518", full_state, 553,
        ["✓ Resuming from epoch 0, step 552, loss 0.0385", NO_POSITION]
    ),
    "unknown fields in config.pt": (
        "stage1_text/checkpoint-epoch0-step7", lambda b: fields(vocab_size=151669, device="cuda"), 8, NO_STATE
    ),
    "missing fields in config.pt": (
        "stage1_text/checkpoint-epoch0-step7",
        lambda b: fields(lora_dropout=None, projector_dropout=None, freeze_image_encoder=None), 8, NO_STATE
    ),
    "weights as .bin": ("stage1_text/checkpoint-epoch0", lambda b: as_file(".bin"), 1, NO_STATE),
    "weights as .pt": ("stage1_text/checkpoint-epoch0", lambda b: as_file(".pt"), 1, NO_STATE),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_old_checkpoint_goes_on(name, base, data, tmp_path):
    place, change, first, lines = FORMS[name]
    out = tmp_path/"o"
    old = form(base, out/place, change(base))
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    process = Training(
        data, out,
        only=[
            "--data_root", str(data), "--output_dir", str(out), "--device", "cpu", "--batch_size", "2",
            "--num_val_samples", "0", "--logging_steps", "1", "--gradient_accumulation_steps", "1", "--max_steps",
            str(first + 1), "--stage1_epochs", "2", "--stage3_epochs", "0", "--resume_from_ckpt", place, "--trust",
            base[1].llm_model_name
        ]
    )
    process.wait(0)
    for line in ["✓ Loaded LLM with LoRA adapters", "✓ Loaded image module", *lines]: assert line in process.text
    rows = read_metrics(out)
    assert (
        [r["step"] for r in rows] == [first, first + 1]
        and rows[0]["stage"] == place.split("/")[0].removesuffix("_model")
    )
    newest = list_checkpoints(out)[-1]
    assert newest.step == first + 1 and not newest.old_format and verify_checkpoint(newest.path) == []
    # a best of ours took the name, not the place
    kept = old.with_name("checkpoint-best-old") if old.name == "checkpoint-best" else old
    assert before == {p.name: p.read_bytes() for p in kept.iterdir()}


def test_its_weights_are_the_ones_that_train_on(base, data, tmp_path):
    "Not only the words: the adapters of the next save are those of the old file plus small steps, not fresh ones."
    out = tmp_path/"o"
    def mark(folder):
        weights = {k: torch.full_like(v, .25) for k, v in load_file(folder/"adapter_model.safetensors").items()}
        torch.save(weights, folder/"adapter_model.bin")
        (folder/"adapter_model.safetensors").unlink()
    form(base, out/"stage1_text/checkpoint-epoch0-step3", mark)
    flags = [
        "--data_root", str(data), "--output_dir", str(out), "--device", "cpu", "--batch_size", "2", "--num_val_samples",
        "0", "--max_steps", "4", "--gradient_accumulation_steps", "1", "--resume_from_ckpt",
        "stage1_text/checkpoint-epoch0-step3"
    ]
    refused = Training(data, out, only=flags)          # the base model is one that only the checkpoint names
    refused.wait(1)
    assert "names the model" in refused.text and "--trust NAME" in refused.text
    Training(data, out, only=[*flags, "--llm_model_name", base[1].llm_model_name]).wait(0)
    saved = load_file(list_checkpoints(out)[-1].path/"adapter_model.safetensors")
    lora = [v for k, v in saved.items() if "lora" in k]
    assert (
        lora and all(torch.allclose(v, torch.tensor(.25), atol=1e-2) for v in lora)
        and not all(bool((v == .25).all()) for v in lora)
    )
    assert safe_load(list_checkpoints(out)[-1].path/"trainer_state.pt")["step"] == 4


def test_a_run_with_the_first_token_version_goes_on_and_completes(data, tmp_path):
    """Resumed without a word of the version: the vocabulary stays the first one, in the next save and in the parts
    that it writes."""
    from cad_mllm.cad import CADProgram, vocabulary
    from cad_mllm.inference import CADAutocomplete
    Training(data, tmp_path, "--token_version", "1", "--max_steps", "2").wait(0)
    weights = list_checkpoints(tmp_path)[-1].path
    process = Training(data, tmp_path, "--resume_from_ckpt", "auto", "--max_steps", "4")
    process.wait(0)
    newest = list_checkpoints(tmp_path)[-1]
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4] and newest.step == 4 and newest.path != weights
    completer = CADAutocomplete(newest.path, device="cpu", kernel="manifold")
    assert completer.model.config.token_version == 1 and completer.codec.added_tokens == vocabulary(1)
    given = CADProgram.from_json(sorted((data/"json").rglob("*.json"))[0]).truncate(2)
    result = completer.complete(given, "a plate", num=2, temperature=.7, max_new_tokens=60)
    assert (
        CADProgram.from_json(result).sequence[:2] == given.sequence
        and set(completer.codec.prefix(given)) <= set(vocabulary(1))
    )
    assert result["metadata"]["candidates"][0]["tokens"] > 0
