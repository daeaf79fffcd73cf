"""A small data set without a geometry kernel: real histories of the synthetic families, points and pictures of the
right shape."""
import json
from pathlib import Path

import numpy as np
from PIL import Image

from cad_mllm.cad import truncation_counts
from cad_mllm.data import bounding_box_upper_bound
from cad_mllm.data.synthetic import FAMILIES

# a model of the real classes in its smallest size, as flags of `cad-mllm train`
LLM = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16
}
TINY_FLAGS = [
    "--recipe", "tiny", "--llm_config", json.dumps(LLM), "--projector_hidden_dim", "16", "--num_points", "64",
    "--num_point_tokens", "4", "--point_encoder_hidden_dim", "16", "--device", "cpu", "--logging_steps", "1",
    "--batch_size", "4", "--num_val_samples", "4", "--warmup_steps", "3"
]


def make(root: Path, num: int) -> Path:
    "Write `num` parts below `root`."
    captions, names = [], list(FAMILIES)
    for folder in ("pointcloud/0000", "img/0000", "txt"): (root/folder).mkdir(parents=True, exist_ok=True)
    for i in range(num):
        rng = np.random.default_rng([7, i])
        program, caption = FAMILIES[names[i % len(names)]](rng)
        id = f"0000/{i:08d}_00001"
        program.save(root/"json"/f"{id}.json")
        for n, kept in enumerate(truncation_counts(len(program), 2), 1):
            program.truncate(kept).save(root/"json_truncated"/f"{id}_tr_{n:02d}.json")
        low, high = bounding_box_upper_bound(program)
        np.savez(root/"pointcloud"/f"{id}.npz", points=low + (high - low)*rng.random((128, 3)))
        for view in range(3):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root/"img"/f"{id}_{view:03d}.png")
        captions.append({"id": id, "text caption": caption})
    (root/"txt/0000.json").write_text(json.dumps(captions))
    return root
