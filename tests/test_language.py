"The token language under hostile text, and its first version."
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from chapters import Chapter
from test_tokens import FRAMES, PART, TEXT

from cad_mllm import CADMLLMConfig
from cad_mllm.cad import (
    CADFormatError, CADProgram, circle, Contour, contour_loop, decode, encode, Frame, from_text, get_codec, polygon,
    rectangle, recover_program, to_text, TOKENS, vocabulary
)

CAD = Chapter("cad_mllm.cad")


def old_parts():
    "A plate with a bore and a pocket, a slanted wedge, and a tilted slot."
    plate = CADProgram()
    plate.sketch([rectangle(0, 0, .08, .05), circle(.02, .025, .008)])
    plate.extrude(.01)
    plate.sketch(circle(.06, .02, .0041), frame=Frame(origin=(0, 0, .01)))
    plate.extrude(-.0033, "cut")
    wedge = CADProgram()
    wedge.sketch(polygon([(0, 0), (.0123, 0), (0, .0271)]), frame=FRAMES[1])
    wedge.extrude(.02, extent="symmetric")
    slot, ends = CADProgram(), [None, np.array((.035, .005)), None, np.array((-.005, .005))]
    slot.sketch(
        contour_loop(Contour(np.array([(0, 0), (.03, 0), (.03, .01), (0, .01)]), ends)),
        frame=Frame((.001, .002, .003), (.6, .8, 0), (0, 0, 1), (.8, -.6, 0))
    )
    slot.extrude(.004, extent="two", distance_two=.0021)
    slot.extrude(.00007, "join")
    return plate, wedge, slot


OLD_SEQUENCES = [           # as the program wrote them that made the checkpoints of before
    ('<cad> <u2> <e-4> <sketch> <+z> <0> <0> <0> <loop> <0> <0> <400> <0> <400> <250> <0> <250> <bore> <100> <125> '
     '<40> <new> <one> <50> <sketch> <+z> <280> <80> <50> <circle> <20> <20> <20> <cut> <one> <-> <16> <end>'),
    ('<cad> <u5> <e-5> <sketch> <-y> <0> <0> <0> <loop> <0> <0> <246> <0> <0> <542> <new> <sym> <400> <end>'),
    ('<cad> <u1> <e-4> <sketch> <tilted> <276> <187> <394> <93> <394> <93> <-> <28> <30> <-> <4> <loop> <50> <100> '
     '<arc> <0> <50> <50> <0> <350> <0> <arc> <400> <50> <350> <100> <new> <two> <40> <21> <join> <one> <1> <end>')]


def calls_of(action):
    "How many calls an action makes, as a measure of its work; a `CADFormatError` is an answer."
    num = 0

    def count(*_):
        nonlocal num
        num += 1
    sys.setprofile(count)
    try: action()
    except CADFormatError: pass
    finally: sys.setprofile(None)
    return num


HOSTILE_TEXT = {
    "escaped quotes": ('{"a": "', '\\"'), "escaped quotes in an object": ('"a": {"b": ', '\\"'),
    "strings that never end": ('"a": [', '"\\",\\",\\'), "braces": ('"a": ', "{"), "brackets": ('"S": ', "["),
    "objects in objects": ("", '{"a": '), "open sketches": ("", '{"S": {"type": "Sketch", '),
    "open sketches with a stray brace": ("", '"S": {"type": "Sketch", x{'), "members that are none": ('"a": {', "!,"),
    "a long name": ('"' + "a"*20_000 + '": {"x": [', "!,"), "types of nothing": ("", '"type": "Sketch",'),
    "digits": ('"S": {"type": "Sketch", "a": ', "9"), "a wide open sketch": ('"S": {"type": "Sketch", ', '"x": {},')
}


@pytest.mark.parametrize("name", HOSTILE_TEXT)
def test_broken_text_is_read_in_linear_time(name):
    """Twice the text costs about twice the calls, and no character is looked at more often than the reader allows
    itself."""
    start, piece = HOSTILE_TEXT[name]
    once, twice = (calls_of(lambda num=num: recover_program(start + piece*num)) for num in (1000, 2000))
    assert twice < 2.6*once + 1000
    reader = CAD._LooseReader(text := start + piece*2000)
    try: list(CAD._read_stated(reader, []))
    except CAD._TooBroken: pass
    assert reader.work <= 10*len(text) + 20_000


def test_large_texts_of_a_stranger_end_with_a_documented_error():
    for text in (
        '{"a": "' + '\\"'*200_000, '"a": ' + "{"*60_000, '{"S": {"type": "Sketch", '*20_000, '{"a": '*20_000, "[1]",
        '"text"', "9"*5000, "["*60_000
    ):
        for read in (recover_program, get_codec("json").decode, get_codec("text").decode, from_text):
            with pytest.raises(CADFormatError): read(text)


class CountedId(str):
    "An id that counts how often it is compared."
    compared = 0

    def __eq__(self, other):
        CountedId.compared += 1
        return str.__eq__(self, other)
    __hash__ = str.__hash__


def test_operations_are_found_without_searching_lists():
    data = PART.to_json()
    ids = [CountedId(f"S{i}") for i in range(3000)]
    data = dict(entities={i: data["entities"]["S0"] for i in ids}, sequence=[dict(entity=str(i)) for i in ids])
    data["sequence"] = [dict(entity=CountedId(s["entity"])) for s in data["sequence"]]
    CountedId.compared = 0
    CADProgram.from_json(data)
    assert CountedId.compared < 20*len(ids)


def test_references_and_numbers_may_lie_as_deep_as_they_like():
    data, ids = PART.to_json(), [f"S{i}" for i in range(5000)]
    entities = {
        i: {**data["entities"]["S0"], "reference_plane": {"entity": after}}
        for i, after in zip(ids, [*ids[1:], ids[-2]])
    }
    with pytest.raises(CADFormatError, match=r"cyclic reference S4998 -> S4999 -> S4998"):
        CADProgram.from_json(dict(entities=entities, sequence=[dict(entity=i) for i in ids]))
    value = "9"*5000
    for _ in range(5000): value = [value]
    with pytest.raises(CADFormatError, match="5000 digits"): CAD._check_digits(value)


def test_digits_of_a_stranger(tmp_path):
    "An integer of 5,000 digits, whole or broken off: the documented error from every reader."
    given = os.environ.get("CAD_CASES_ROOT")
    (tmp_path/"digits.json").write_text('{"entities": {}, "sequence": [], "a": ' + "9"*5000 + "}")
    for file in [tmp_path/"digits.json", *([Path(given)/"readers"/"digits.json"] if given else [])]:
        with pytest.raises(CADFormatError): CADProgram.from_json(file)
        for read in (from_text, recover_program, get_codec("json").decode, get_codec("text").decode):
            with pytest.raises(CADFormatError): read(file.read_text())


def mutated(rng, text, pieces):
    "A text with a few spans cut out, doubled, moved or replaced."
    for _ in range(rng.integers(1, 6)):
        at, other = rng.integers(0, len(text) + 1, 2)
        span = text[at:at + rng.integers(1, 40)]
        text = text[:at] + [
            span*2, "", pieces[rng.integers(len(pieces))], text[other:other + 20]
        ][rng.integers(4)] + text[at + len(span):]
    return text


def test_fuzzed_histories_text_tokens_and_recovery():
    "Seeded damage: every reader answers or raises its documented error. CAD_FUZZ_CASES sets how many cases."
    rng = np.random.default_rng(0)
    words = [
        "{", "}", "[", "]", '"', ",", ":", "null", "NaN", "1e999", "-", "9"*30, '"type": "Sketch"', "{"*50, "\\",
        "\ud83d", "\x00"
    ]
    tokens, plain = encode(PART), to_text(PART)
    for case in range(int(os.environ.get("CAD_FUZZ_CASES", "60"))):
        text = mutated(rng, TEXT, words)
        line = mutated(rng, plain, [" loop ", " arc ", " -3 ", " 1.5 ", "\nend", "0.0001", "sketch"])
        cut = list(tokens)
        for _ in range(rng.integers(1, 4)): cut[rng.integers(len(cut))] = TOKENS[rng.integers(len(TOKENS))]
        reads = [
            (recover_program, text), (get_codec("json").decode, text), (from_text, line),
            (get_codec("text").decode, line), (decode, cut), (get_codec("tokens").decode, cut)
        ]
        for read, value in reads:
            try: part = read(value)
            except CADFormatError: continue
            assert len(part) and part.to_json(), (case, read)
        try: data = json.loads(text)
        except (ValueError, RecursionError): continue
        if isinstance(data, dict):
            try: CADProgram.from_json(data)
            except CADFormatError: pass


@pytest.mark.parametrize("part, tokens", zip(old_parts(), OLD_SEQUENCES))
def test_a_configuration_without_a_version_speaks_the_first_to_the_byte(part, tokens):
    "What checkpoints of before were trained on, as their program wrote it; and it can be resumed."
    config = CADMLLMConfig.from_dict({k: v for k, v in CADMLLMConfig().to_dict().items() if k != "token_version"})
    codec = get_codec("tokens", config.token_version)
    assert config.token_version == 1 and codec.added_tokens == vocabulary(1)
    given, rest = codec.split(part, 0)
    assert [*given, *rest] == tokens.split()
    assert encode(codec.decode(tokens.split()), version=1) == tokens.split()


def hooks():
    "Bands around a half circle whose straight sides fold back along a smaller one, at angles that no grid holds."
    for tilt, top in ((.0177, .0762), (.0091, .0611), (.0253, .0823), (-.0131, .0507)):
        along, across = np.array((np.sin(tilt), np.cos(tilt))), np.array((np.cos(tilt), -np.sin(tilt)))
        def at(x, y, along=along, across=across): return .001*x*across + .001*y*along
        length = top*1000
        corners = [
            at(0, 0), at(3.2, 0), at(3.2, length), at(8.2, length), at(8.2, 0), at(11.4, 0), at(11.4, length + 1),
            at(0, length + 1)
        ]
        ends = [at(1.6, 1.6), None, at(5.7, length + 2.5), None, at(9.8, 1.6), None, at(5.7, length + 6.7), None]
        part = CADProgram()
        part.sketch(contour_loop(Contour(np.array(corners), ends)))
        part.extrude(.02)
        yield part


def test_rounding_never_makes_a_valid_loop_cross_itself():
    "What builds in OpenCascade builds when it is decoded, and loops that would cross keep their thousandths."
    from cad_mllm.geometry import build_solid
    given = os.environ.get("CAD_CASES_ROOT")
    stranger = [CADProgram.from_json(f) for f in Path(given, "files").glob("07*/history.json")] if given else []
    for part in (*hooks(), *stranger):
        again = decode(tokens := encode(part))
        assert "<.>" in tokens
        assert encode(again) == tokens
        before, after = build_solid(part, kernel="occ"), build_solid(again, kernel="occ")
        assert before.is_valid and after.is_valid and after.volume == pytest.approx(before.volume, rel=.02)
        assert not any(
            CAD.crosses_at_a_corner(CAD.fine_contour(loop)) for op in CAD.to_records(part)[0].ops[:1]
            for p in op.profiles for loop in p
        )
