"""On a GPU: killed and resumed to the last bit, in bfloat16 and in float16 with its scaler; the flash kernel against
the mask; compiled against not; writing held to the grammar.

Skipped where there is none. `pytest tests/test_gpu.py` on a machine with one takes a few minutes.
"""
from dataclasses import replace

import pytest
import torch

from cad_mllm.config import recipe
from cad_mllm.models import attends_by_sample, base_model, CADMLLMModel
from small_data import LLM, make
from test_train import COMMON, LORA, after, assert_same, killed_at, rows, state
from train_runs import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU = [*COMMON, "--stage2_epochs", "1", "--device", "cuda", "--deterministic"]
VARIANTS = {
    "bf16, LoRA, dropout, accumulation 3": [
        *LORA, "--dtype", "bfloat16", "--gradient_accumulation_steps", "3", "--stage1_epochs", "4", "--save_steps", "2"
    ],
    "fp16, LoRA, GradScaler": [*LORA, "--dtype", "float16", "--stage2_epochs", "0"],
    "fp32, full, not packed": ["--no-packing", "--stage2_epochs", "0"]
}


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 14)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_killed_and_resumed_to_the_last_bit(name, data, tmp_path):
    flags = [*GPU, *VARIANTS[name]]
    Training(data, tmp_path/"whole", *flags).wait(0)
    at = len(rows(tmp_path/"whole"))//2
    killed_at(data, tmp_path/"killed", flags, after(tmp_path/"killed", at), at + 2)
    again = Training(data, tmp_path/"killed", *flags, "--resume_from_ckpt", "auto")
    again.wait(0)
    assert "✓ Resuming from step" in again.text
    assert_same(tmp_path/"whole", tmp_path/"killed")
    if "fp16" in name:
        scaler = state(tmp_path/"killed"/"final_model")["scaler"]
        overflows = rows(tmp_path/"killed")[max(rows(tmp_path/"killed"))]["nan_steps"]
        assert scaler["scale"] == 65536*.5**overflows and 0 < scaler["_growth_tracker"] < len(rows(tmp_path/"killed"))


def model_and_batch(**changes):
    from cad_mllm.data import Sample
    from cad_mllm.data import make_part
    from cad_mllm.cad import encode
    config = replace(
        recipe("tiny")[0], image_encoder_name="", point_encoder_name="", use_lora=True, lora_r=4, lora_dropout=0.,
        **{"dtype": "bfloat16", "llm_config": LLM, **changes}
    )
    model = CADMLLMModel(config).cuda()
    parts = [make_part(3, i) for i in range(12)]
    return model, model.builder.collate(
        [Sample(f"0000/{i:08d}", caption, [], encode(p), 0, ("text",)) for i, (_, p, caption) in enumerate(parts)]
    ).to(model.device)


def loss_and_gradients(model, batch):
    model.zero_grad()
    out = model(batch)
    (out["loss_sum"]/out["num_tokens"]).backward()
    return out["loss_sum"].item()/out["num_tokens"], torch.cat(
        [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    )


def alike(a, b): return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def test_flash_and_mask_agree(monkeypatch):
    model, batch = model_and_batch()
    assert attends_by_sample(base_model(model.llm), model.device, model.config.dtype)
    loss, gradients = loss_and_gradients(model, batch)
    monkeypatch.setattr("cad_mllm.models.model.attends_by_sample", lambda *_: False)
    masked, others = loss_and_gradients(model, batch)
    assert loss == pytest.approx(masked, rel=2e-3) and alike(gradients, others) > .999
    exact, _ = model_and_batch(dtype="float32")
    reference, true = loss_and_gradients(exact, batch)
    assert loss == pytest.approx(reference, rel=5e-3) and alike(gradients, true) > .99


def test_half_precisions_and_checkpointing_agree():
    model, batch = model_and_batch(dtype="float16")
    loss, gradients = loss_and_gradients(model, batch)
    model.gradient_checkpointing(True)
    again, others = loss_and_gradients(model, batch)
    assert loss == pytest.approx(again, rel=1e-4) and alike(gradients, others) > .999


def test_compiled_computes_the_same():
    model, batch = model_and_batch()
    loss, gradients = loss_and_gradients(model, batch)
    model.compile_layers()
    compiled, others = loss_and_gradients(model, batch)
    assert loss == pytest.approx(compiled, rel=2e-3) and alike(gradients, others) > .995


def test_it_writes_by_the_grammar():
    from cad_mllm.inference import CADAutocomplete
    model, _ = model_and_batch()
    results = CADAutocomplete(model, kernel="manifold").complete_many(
        [dict(caption=f"a plate with {n} holes") for n in range(8)], temperature=1., check="kernel", max_new_tokens=120
    )
    assert all(
        "error" not in r["metadata"] and not any("no part was written" in n for n in r["metadata"]["notes"])
        for r in results
    )
