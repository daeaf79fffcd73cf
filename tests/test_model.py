"""Two processes: a batch with images on one and none on the other must train as the two batches together do in one
process."""
import gc

import numpy as np
import pytest
import torch

import limits
from cad_mllm.config import CADMLLMConfig
from cad_mllm.data import Sample

CONFIG = CADMLLMConfig(
    llm_model_name="tiny",
    llm_config=dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    ),
    use_lora=True, lora_r=4, lora_dropout=0.0, image_encoder_name="tiny", image_size=32, point_encoder_name="",
    projector_hidden_dim=32, projector_dropout=0.0, dtype="float32"
)


def _batches(model):
    "One batch with an image, one with text only."
    rng = np.random.default_rng(0)
    targets = [["<sketch>", "<12>", "<end>"], ["<sketch>", "<7>", "<9>", "<end>"]]
    images = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), None]
    samples = [
        Sample(
            id=f"0000/0000000{i}_00001", caption="a plate", prefix=["<cad>"], target=t, kept=0,
            modalities=("text", "image") if im is not None else ("text",), image=im, points=None
        )
        for i, (t, im) in enumerate(zip(targets, images))
    ]
    return [model.builder.collate([s]) for s in samples]


def _worker(rank, store, result):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from cad_mllm.models import CADMLLMModel
    limits.arm()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = CADMLLMModel(CONFIG).train()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped(_batches(model)[rank])["loss_sum"].backward()
    # The wrapper's reducer may hold the last reference to the group. Freed after the barrier it would end gloo's
    # threads while it holds the
    # interpreter's lock, for which such a thread waits to free the barrier's work: so it goes before the last thing
    # that is done together.
    del wrapped
    gc.collect()
    if rank == 0: torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, result)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_with_different_modalities(tmp_path):
    from cad_mllm.models import CADMLLMModel
    torch.multiprocessing.spawn(_worker, args=(str(tmp_path/"store"), str(tmp_path/"gradients.pt")), nprocs=2)
    together = torch.load(tmp_path/"gradients.pt", weights_only=True)
    model = CADMLLMModel(CONFIG).train()
    sum(model(b)["loss_sum"] for b in _batches(model)).backward()
    alone = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert together.keys() == alone.keys() == set(model.trainable_names())
    for name, gradient in alone.items():
        assert torch.allclose(together[name]*2, gradient, atol=1e-5), name
