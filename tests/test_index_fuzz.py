"""Indexes of data sets with something changed in them: each opens to one error that names the file and the remedy, or
is
made again, or works; with the checksum of before, and with one that fits (`CAD_FUZZ_CASES` runs any number)."""
import json
import logging
import os
import warnings

import numpy as np
import pytest
from test_dataset import write_data
from test_pack import open_data, sealed_pack

from cad_mllm.data import DataError, INDEX_NAME, pack
from cad_mllm.data import index_file
from cad_mllm.data.shard_files import save_arrays, to_bytes

CASES = int(os.environ.get("CAD_FUZZ_CASES", 60))
ODD = [None, -1, 10**30, "", "../x", [], {}, "a\0b", True, 1.5, "\ud800"]
WHOLE = [b"null", b"{}", b"[]", b"7", b'"x"', b"[null]", b"[[]]", b"", b"["*5000, b"NaN", b'{"format":2}', b"\xff"]


@pytest.fixture(scope="module")
def root(tmp_path_factory): return write_data(tmp_path_factory.mktemp("data")/"folder", 8)


@pytest.fixture(scope="module")
def shards(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")/"shards"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pack(root, out, shard_mb=.03)
    return out


def changed_json(rng, value):
    "A JSON value with one thing in it replaced, left out or given twice."
    if isinstance(value, list) and value and rng.random() < .8:
        at = rng.integers(len(value))
        if (how := rng.random()) < .15: return value[:at] + value[at + 1:]
        if how < .3: return [*value, value[at]]
        return [*value[:at], changed_json(rng, value[at]), *value[at + 1:]]
    if isinstance(value, dict) and value and rng.random() < .8:
        name = sorted(value)[rng.integers(len(value))]
        if rng.random() < .2: return {k: v for k, v in value.items() if k != name}
        return {**value, name: changed_json(rng, value[name])}
    return ODD[rng.integers(len(ODD))]


def changed_text(rng, array):
    "Bytes of a JSON value, changed."
    raw, how = bytearray(array.tobytes()), rng.integers(4)
    if how == 0: raw = raw[:rng.integers(len(raw))]
    elif how == 1: raw = bytearray(WHOLE[rng.integers(len(WHOLE))])
    elif how == 2: raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    else: raw = bytearray(json.dumps(changed_json(rng, json.loads(bytes(raw)))).encode())
    return np.frombuffer(bytes(raw), np.uint8)


def changed_numbers(rng, array):
    "An array of numbers, changed: in kind, shape or length, or one number of it."
    how, array = rng.integers(8), np.atleast_1d(array.copy())
    if how == 0: return array[:rng.integers(len(array) + 1)]
    if how == 1: return np.zeros(array.shape, "<f8")
    if how == 2: return array[None]
    if how == 3: return np.concatenate([array, array])
    if how == 4: return np.array("text")
    if how == 5: return array[rng.permutation(len(array))]
    field = array[array.dtype.names[rng.integers(len(array.dtype.names))]] if array.dtype.names else array
    if field.dtype.kind == "b" or not len(field): return ~array if array.dtype.kind == "b" else array
    least, most = np.iinfo(field.dtype).min, np.iinfo(field.dtype).max
    field[rng.integers(len(field))] = np.clip([-1, -5, 0, 1, 999, least, most][rng.integers(7)], least, most)
    return array


def changed(rng, arrays):
    "A copy of the arrays of an index with one of them changed or left out."
    name = sorted(arrays)[rng.integers(len(arrays))]
    if rng.random() < .05: return {k: v for k, v in arrays.items() if k != name}
    change = changed_text if arrays[name].dtype == np.uint8 else changed_numbers
    return {**arrays, name: change(rng, arrays[name])}


def test_a_pack_whose_index_was_changed_is_one_error_or_works(shards, tmp_path):
    logging.disable(logging.CRITICAL)
    folder, refused = tmp_path/"shards", 0
    folder.mkdir()
    for path in shards.glob("*.tar"): os.link(path, folder/path.name)
    with np.load(shards/INDEX_NAME) as data: arrays = {**data}
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        spoilt = changed(rng, arrays)
        save_arrays(folder/INDEX_NAME, sealed_pack(spoilt) if seed % 2 else spoilt)
        try:
            data = open_data(folder)
            for i in range(0, len(data), 7): data.sample(0, i)
        except DataError as error:
            refused += 1
            assert INDEX_NAME in str(error) or "no usable sample" in str(error), (seed, error)
    assert refused > CASES/2
    logging.disable(logging.NOTSET)


def test_a_data_index_that_was_changed_is_made_again(root, tmp_path):
    "What is read of it is what was written; one whose checksum fits is read or not, and never a traceback."
    logging.disable(logging.CRITICAL)
    path = tmp_path/"index.npz"
    first = open_data(root, index_path=path, report_path=tmp_path/"r.json")
    with np.load(path) as data: arrays = {**data}
    content = {k: v for k, v in arrays.items() if k != "digest"}
    for seed in range(4*CASES):
        rng = np.random.default_rng(seed)
        spoilt = changed(rng, content)
        save_arrays(path, {**spoilt, "digest": arrays["digest"]})
        found = index_file.load_index(path)
        assert found is None or all(np.array_equal(v, content[k]) for k, v in spoilt.items()), seed
        save_arrays(path, {**spoilt, "digest": to_bytes(index_file._digest_of(spoilt))})
        index_file.load_index(path)
        if seed % 20 == 0:
            again = open_data(root, index_path=path, report_path=tmp_path/"r.json")
            assert len(again) and again[0].id, (seed, len(first))
    logging.disable(logging.NOTSET)
