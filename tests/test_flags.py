"Values that cannot work, given to the flags of every command: a sentence and a documented exit code, never a traceback. `tools/walk_flags.py` walks all of them."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent/"tools"))
import walk_flags  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory): return walk_flags.make_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_sample_of_all_flags_is_answered_with_a_sentence(inputs):
    found, number = walk_flags.walk(inputs, 120, seed=5, say=lambda *words, **settings: None)
    assert number == 120 and not found, "\n\n".join(f"{verb} {words}\n{problem}" for verb, words, problem in found)


@pytest.mark.parametrize("verb, flag, code", [
    ("synth", "--seed=-1", 2), ("synth", "--size=0", 2), ("pack", "--readers=0", 2), ("pack", "--shard_mb=nan", 2), ("complete", "--device=tpu", None), ("plan", "--recipe=--", 2),
    ("train", "--device=x", None), ("train", "--llm_config=[]", 2), ("train", "--stage1_lr=inf", 1), ("train", "--batch_size=0", 1), ("complete", "--num=nan", 2), ("score", "--timeout=-3", 2)])
def test_named_mistakes(inputs, verb, flag, code, capsys):
    words = [*walk_flags.base_lines(inputs)[verb], flag]
    with walk_flags.replaced(): found, said = walk_flags._run(verb, words)
    assert found == code, said
    if code: assert "Traceback" not in said and flag.split("=")[0].lstrip("-").removeprefix("stage1_") in said


def test_an_unknown_device_is_a_sentence():
    from cad_mllm.config import ConfigError
    from cad_mllm.training.distributed import pick_device
    for name in ("tpu", "cuda:x", "", "cpu "):
        with pytest.raises(ConfigError, match="use auto, cpu, cuda|no CUDA device"): pick_device(name)


@pytest.mark.parametrize("verb", ["synth", "deliver", "inspect", "prepare"])
def test_an_empty_path_is_refused(inputs, verb):
    with walk_flags.replaced(): code, said = walk_flags._run(verb, ["", *walk_flags.base_lines(inputs)[verb][1:]])
    assert code in (1, 2) and said.strip()
