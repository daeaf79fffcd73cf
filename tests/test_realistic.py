"""Random parts like real ones: pure, without idle operations, each told truly, and no two alike in a set."""
import re

import numpy as np

from cad_mllm.cad import CADProgram, Extrude
from cad_mllm.data.realistic import has_effect, realistic_part, twin_key
from cad_mllm.data.synthetic import synthesize
from cad_mllm.geometry import build_counted

PARTS = [realistic_part(9, i) for i in range(24)]


def extrudes(program): return [e for e in program.operations() if isinstance(e, Extrude)]


def test_a_part_is_a_pure_function_of_seed_and_number():
    assert (
        realistic_part(9, 5).program.to_json() == PARTS[5].program.to_json()
        and realistic_part(9, 5).caption == PARTS[5].caption
    )
    assert realistic_part(10, 5).program.to_json() != PARTS[5].program.to_json()


def test_no_operation_is_without_effect():
    for part in PARTS:
        _, volumes, _ = build_counted(part.program)
        assert len(volumes) == len(extrudes(part.program)) and has_effect(volumes)


def test_a_history_that_was_written_and_read_is_the_same_part():
    for part in PARTS[:8]:
        again = CADProgram.from_json(part.program.to_json())
        assert again.problems() == [] and again.to_json() == part.program.to_json()


def test_what_a_caption_counts_and_measures_is_true():
    words = "zero one two three four five six seven eight nine ten eleven twelve".split()
    said = 0
    for part in PARTS:
        ops = [e.operation for e in extrudes(part.program)]
        for noun, kind in (("joined extrusion", "join"), ("cut", "cut")):
            match = re.search(rf"(\w+) {noun}s?\b", part.caption)
            assert (words.index(match[1]) if match else 0) == ops.count(kind), part.caption
        if sizes := re.search(r"([\d.]+(?:e\+\d+)?) x ([\d.]+(?:e\+\d+)?) x ([\d.]+(?:e\+\d+)?) mm", part.caption):
            assert np.allclose(
                [float(v) for v in sizes.groups()], np.ptp(part.solid.bounding_box, axis=0)*1000, rtol=6e-3
            )
            said += 1
    assert said > 8


def test_a_twin_is_left_out_of_a_set(tmp_path, monkeypatch):
    "Where chance draws the same part again, the set keeps the first."
    from cad_mllm.data import realistic
    monkeypatch.setattr(realistic, "realistic_part", lambda seed, i: PARTS[min(i, 2)])
    made = synthesize(tmp_path/"set", num=5, seed=1, style="realistic")
    assert made["parts"] == 3 and len(list((tmp_path/"set").rglob("json/*/*.json"))) == 3
    corner = np.array(PARTS[0].solid.bounding_box[0])
    assert twin_key(PARTS[0].program, corner) == twin_key(PARTS[0].program.moved([.1, 0, 0]), corner + [.1, 0, 0])
