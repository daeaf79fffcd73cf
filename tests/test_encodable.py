"""What is called surely encodable without encoding can be encoded, also where numbers of a history were spoiled."""
import copy
import json
import random

import numpy as np
import pytest

from cad_mllm.cad import CADFormatError, CADProgram, encode
from cad_mllm.data import FAMILIES, MultimodalAutocompleteDataset
from cad_mllm.data.encodable import is_surely_encodable

LENGTHS = {"x", "y", "z", "radius", "value", "start_angle", "end_angle"}
FACTORS = (0, -1, .5, 2, 1e-3, 1e-6, 1e-9, 1e3, 1e6)
STEPS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-3, 1, 10)


@pytest.fixture(scope="module")
def histories():
    made = [build(np.random.default_rng([7, i]))[0] for i, build in enumerate(FAMILIES.values())]
    return [program.to_json() for program in made]


def places(value, *, found=None):
    "(object, key) of each number of a history that is a length or an angle."
    found = [] if found is None else found
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, (dict, list)): places(inner, found=found)
        elif key in LENGTHS: found.append((value, key))
    return found


def loops(history):
    return [
        loop for e in history["entities"].values() for p in (e["profiles"].values() if e["type"] == "Sketch" else ())
        for loop in p["loops"]
    ]


def spoil(history, rng):
    "A history with one to six of its numbers, curves or loops changed."
    history = copy.deepcopy(history)
    for _ in range(rng.choice((1, 1, 2, 6))):
        where = places(history["entities"])
        kind = rng.randrange(4)
        owner, key = rng.choice(where)
        if kind == 0: owner[key] *= rng.choice(FACTORS)
        elif kind == 1: owner[key] += rng.choice(STEPS)
        elif kind == 2:
            curves = rng.choice(loops(history))["profile_curves"]
            curves.insert(rng.randrange(len(curves) + 1), copy.deepcopy(rng.choice(curves)))
            if rng.random() < .5: curves.pop(rng.randrange(len(curves)))
        else:
            factor, squeezed = rng.choice(FACTORS), rng.choice((1, 1, 0, 1e-3))
            for owner, key in places(rng.choice(loops(history))["profile_curves"]):
                if "angle" not in key: owner[key] *= factor*(squeezed if key == "x" else 1)
    return history


def can_be_encoded(program):
    try: return encode(program)[-1] == "<end>"
    except Exception: return False


def test_what_families_make_is_sure(histories):
    sure = [is_surely_encodable(CADProgram.from_json(h)) for h in histories]
    assert all(can_be_encoded(CADProgram.from_json(h)) for h in histories) and sum(sure) > .8*len(sure)


def test_what_is_sure_can_be_encoded_however_it_was_spoiled(histories):
    rng, sure, not_encoded = random.Random(5), 0, 0
    for n in range(250):
        try: program = CADProgram.from_json(spoil(histories[n % len(histories)], rng))
        except CADFormatError: continue
        encoded = can_be_encoded(program)
        not_encoded += not encoded
        if is_surely_encodable(program):
            sure += 1
            assert encoded, json.dumps(program.to_json())
    assert sure > 40 and not_encoded > 5


def test_lengths_are_those_of_the_tokens(tmp_path, histories):
    for n, history in enumerate(histories[:6]):
        path = tmp_path/"json"/"0000"/f"0000000{n}_00001.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(history))
    dataset = MultimodalAutocompleteDataset(tmp_path)
    assert (dataset.table.num_tokens == 0).any()
    wanted = [len(encode(dataset.whole(i))) for i in range(len(dataset))]
    assert dataset.num_tokens.tolist() == dataset.table.num_tokens.tolist() == wanted
