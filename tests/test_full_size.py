"What models of full size ask for, with tiny ones: a base in 4 bits, a SigLIP-class encoder, features kept on disk."
import json
from dataclasses import replace

import pytest
import torch

from cad_mllm.config import CADMLLMConfig, ConfigError
from cad_mllm.models import CADMLLMModel
from cad_mllm.training import Trainer, read_metrics, train
from small_data import make
from train_runs import Training, configs


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 14)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A saved language model and its tokenizer, as a user would name one."
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from cad_mllm.data import tiny_tokenizer
    folder, tokenizer = tmp_path_factory.mktemp("base"), tiny_tokenizer()
    torch.manual_seed(0)
    # bitsandbytes wants multiples of 32 on a CPU
    shape = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32
    )
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


FOUR = [
    "--use_lora", "--lora_r", "4", "--load_in_4bit", "--stage2_epochs", "0", "--stage3_epochs", "0", "--max_steps", "4",
    "--save_steps", "2"
]


def test_a_base_in_4_bits_trains_and_comes_back(base, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    model_config, settings = configs(data, tmp_path/"o", *FOUR, "--llm_model_name", base)
    full = CADMLLMModel(replace(model_config, load_in_4bit=False))
    model = CADMLLMModel(model_config)
    assert (
        model.trainable_names() == full.trainable_names()
        and all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    )
    matrices = {n: p for n, p in model.llm.named_parameters() if "proj" in n and "lora" not in n}
    assert len(matrices) == 7*2 and all(p.dtype == torch.uint8 for p in matrices.values())
    shapes = dict(full.llm.named_parameters())
    assert all(p.numel() == shapes[n].numel()//2 for n, p in matrices.items())
    trained = train(model_config, settings)
    assert trained.step == 4 and len(read_metrics(tmp_path/"o")) == 4
    one = CADMLLMModel.from_pretrained(trained.checkpoint).eval()
    two = CADMLLMModel(model_config).eval()
    assert two.load_weights(trained.checkpoint) == []
    batch = one.builder.collate(_samples(data, model_config))
    with torch.no_grad():
        assert (
            torch.equal(one.logits(batch), two.logits(batch))
            and not torch.allclose(one.logits(batch), model.eval().logits(batch))
        )
    with pytest.raises(ConfigError, match="load_in_4bit=False"): one.merge()


def _samples(data, config):
    from cad_mllm.data import MultimodalAutocompleteDataset
    ds = MultimodalAutocompleteDataset(
        data, num_points=config.num_points, image_size=config.image_size, points_on_grid=config.points_on_grid,
        modality_probs={"all": 1.0}
    )
    return [ds[i] for i in range(3)]


def test_4_bits_are_refused_where_they_make_no_sense(monkeypatch):
    with pytest.raises(ConfigError, match="use it with LoRA"): CADMLLMConfig(use_lora=False, load_in_4bit=True)
    with pytest.raises(ConfigError, match="built-in model is too small"):
        CADMLLMModel(
            CADMLLMConfig(llm_model_name="tiny", load_in_4bit=True, image_encoder_name="", point_encoder_name="")
        )
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    from cad_mllm.models.language_model import _load_in_4bit
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        _load_in_4bit(CADMLLMConfig(llm_model_name="x", load_in_4bit=True), torch.float32)


def test_siglip_sees_through_the_same_interface(data, tmp_path):
    """A SigLIP checkpoint (picture and text towers) serves its picture tower, at another size than it was made for
    too; frozen, and by its own pixel statistics."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel
    from cad_mllm.models import build_image_encoder
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    siglip = SiglipModel(
        SiglipConfig(
            text_config=dict(vocab_size=64, **shape), vision_config=dict(image_size=32, patch_size=16, **shape)
        )
    )
    siglip.save_pretrained(tmp_path/"siglip")
    SiglipImageProcessor(image_mean=[.5, .4, .3], image_std=[.5, .6, .7]).save_pretrained(tmp_path/"siglip")
    encoder = build_image_encoder(
        CADMLLMConfig(image_encoder_name=str(tmp_path/"siglip"), image_size=32, dtype="float32")
    )
    assert (
        (encoder.num_tokens, encoder.width, encoder.mean, encoder.std) == (4, 32, (.5, .4, .3), (.5, .6, .7))
        and not any(p.requires_grad for p in encoder.parameters())
    )
    pictures = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(encoder(pictures), siglip.vision_model.eval()(pictures).last_hidden_state, atol=1e-6)
    model_config, settings = configs(
        data, tmp_path/"o", "--image_encoder_name", tmp_path/"siglip", "--image_size", "64", "--stage1_epochs", "0",
        "--stage2_epochs", "0", "--max_steps", "2"
    )
    model = CADMLLMModel(model_config)
    assert (
        model.image_encoder.num_tokens == 16 and not any(n.startswith("image_encoder") for n in model.trainable_names())
    )
    assert train(model_config, settings, model).step == 2


def test_cached_features_change_nothing_but_the_work(data, tmp_path):
    "Without, with an empty and with a full cache: the same numbers; the last run computes no picture."
    flags = [
        "--stage1_epochs", "0", "--stage2_epochs", "0", "--stage3_epochs", "2", "--max_views", "2", "--batch_size", "1"
    ]
    losses, caches = [], []
    for name, more in (
        ("without", []), ("empty", ["--feature_cache", tmp_path/"cache"]),
        ("full", ["--feature_cache", tmp_path/"cache"])
    ):
        model_config, settings = configs(data, tmp_path/name, *flags, *more)
        trainer = Trainer(model_config, settings)
        trainer.run()
        losses.append([(r["step"], r["loss"]) for r in read_metrics(tmp_path/name)])
        caches.append(trainer.state.model.features)
    assert (
        [s for s, _ in losses[0]] == [s for s, _ in losses[1]]
        and max(abs(a - b) for (_, a), (_, b) in zip(*losses[:2])) < 1e-5
    )
    assert losses[1] == losses[2] and len(losses[0]) > 10
    assert (
        caches[0] is None and caches[1].computed > 5 and caches[1].found > 0 and caches[2].computed == 0
        and caches[2].found > caches[1].found
    )


def test_killed_with_a_cache_it_goes_on_as_if_never_stopped(data, tmp_path):
    flags = ["--stage1_epochs", "0", "--stage2_epochs", "0", "--stage3_epochs", "2", "--save_steps", "3"]
    rows = {}
    for name in ("whole", "killed"):
        out, cache = tmp_path/name, ["--feature_cache", tmp_path/f"cache of {name}"]
        if name == "killed":
            Training(data, out, *flags, *cache, fence=8).until(lambda: len(read_metrics(out)) >= 7).kill()
        Training(data, out, *flags, *cache, "--resume_from_ckpt", "auto").wait(0)
        rows[name] = [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out)]
    assert rows["whole"] == rows["killed"] and len(rows["whole"]) > 9


def test_rows_are_filled_with_real_tokens():
    "Real histories, packed by the recipe for full-size models: at least 95% of all positions are real."
    import os
    from pathlib import Path
    root = Path(os.environ.get("OMNI_CAD_ROOT", ""))
    if not (root/"json").is_dir(): pytest.skip("OMNI_CAD_ROOT is not set")
    from cad_mllm.config import recipe
    from cad_mllm.data import MultimodalAutocompleteDataset, PromptBuilder, batches, load_tokenizer
    config, _ = recipe("qwen3_0_6b")
    ds = MultimodalAutocompleteDataset(root, report_path=os.devnull, no_prefix_prob=.25)
    builder = PromptBuilder(
        load_tokenizer(replace(config, llm_model_name="tiny"), ds.codec), ds.codec, max_seq_length=4096
    )
    found = [(b.segment_ids >= 0) for b in batches(ds, builder, batch_size=64)]
    real = sum(f.sum().item() for f in found)/sum(f.numel() for f in found)
    assert len(found) > 3 and real >= .95, json.dumps([round(f.float().mean().item(), 3) for f in found])
