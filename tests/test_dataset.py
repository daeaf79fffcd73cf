"""What a notebook cell is the wrong place for: reader processes, other interpreters, random damage, random packings,
real data."""
import hashlib, json, logging, os, pickle, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from cad_mllm.cad import CADProgram, Frame, circle, rectangle, truncation_counts
from cad_mllm.config import CADMLLMConfig
from cad_mllm.data import (
    batches, DataError, DataWarning, document_id, split_by_document, load_tokenizer, MultimodalAutocompleteDataset,
    num_batches, pack, pack_rows, PromptBuilder, Sample, Scan)
from cad_mllm.geometry import build_solid
from cad_mllm.data import prepare
from cad_mllm.data import synthesize
from cad_mllm.cad import get_codec

STAGE = {"text": 0.2, "text+points": 0.3, "text+image": 0.2, "all": 0.3}


def plate(holes):
    program = CADProgram()
    program.sketch(rectangle(0, 0, .08, .04))
    program.extrude(.01)
    for i in range(holes):
        program.sketch(circle(.08*(i + .5)/holes, .02, .01/holes), frame=Frame(origin=(0, 0, .01)))
        program.extrude(-.01, "cut")
    return program


def write_data(root, num, truncations=True):
    captions = []
    for n in range(num):
        rng, id = np.random.default_rng(n), f"{n//4:04d}/{n//2:08d}_{n % 2:05d}"
        program = plate(1 + n % 4)
        program.save(root/"json"/f"{id}.json")
        for i, kept in enumerate(truncation_counts(len(program)) if truncations else (), 1):
            program.truncate(kept).save(root/"json_truncated"/f"{id}_tr_{i:02d}.json")
        for folder in ("img", "pointcloud", "txt"): (root/folder/id).parent.mkdir(parents=True, exist_ok=True)
        if n % 3:
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(root/"img"/f"{id}_{n % 8:03d}.png")
        if n % 4: np.savez(root/"pointcloud"/f"{id}.npz", points=rng.random((50, 3)))
        captions.append({"id": id, "text caption": f"A plate with {1 + n % 4} holes, number {n}"})
    (root/"txt"/"0000.json").write_text(json.dumps(captions))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory): return write_data(tmp_path_factory.mktemp("data"), 10)


def make(root, **kw):
    return MultimodalAutocompleteDataset(
        root, **{**dict(modality_probs=STAGE, image_size=16, num_points=20, no_prefix_prob=.3, seed=5), **kw}
    )


@pytest.fixture(scope="module")
def builder():
    codec = get_codec("tokens")
    return PromptBuilder(
        load_tokenizer(CADMLLMConfig(llm_model_name="tiny"), codec), codec, num_image_tokens=4, num_point_tokens=2,
        max_seq_length=200
    )


def digest(batch):
    sha = hashlib.sha256(json.dumps(batch.sample_ids).encode())
    for t in (
        batch.input_ids, batch.labels, batch.position_ids, batch.segment_ids, batch.images, batch.points,
        batch.image_slots, batch.point_slots
    ):
        sha.update(str(tuple(t.shape)).encode() + t.contiguous().numpy().tobytes())
    return sha.hexdigest()


def same(a, b):
    return all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in zip(vars(a).values(), vars(b).values())
    )


# --- the sequence of samples -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_tail(root, builder, workers):
    ds = make(root)
    whole = [digest(b) for b in batches(ds, builder, epoch=2, batch_size=3)]
    for start in (0, 9, len(ds)//3*3):
        assert [
            digest(b) for b in batches(make(root), builder, epoch=2, start=start, batch_size=3, num_workers=workers)
        ] == whole[start//3:]


def test_any_order_of_access_and_any_history_gives_the_same_samples(root):
    a, b = make(root), make(root)
    forward = {i: a.sample(1, i) for i in range(len(a))}
    for i in np.random.default_rng(0).permutation(len(b)):
        b.sample(0, int(i))
        assert same(b.sample(1, int(i)), forward[int(i)])
    assert any(not same(a.sample(0, i), forward[i]) for i in forward)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "Ten synthetic parts with points, and the same as shards."
    root = tmp_path_factory.mktemp("parts")
    synthesize(root/"folder", num=10, seed=3)
    prepare(root/"folder", truncations=False, images=False, captions=False, num_points=1024)
    pack(root/"folder", root/"shards")
    return root


@pytest.mark.parametrize("sequence_format", ["tokens", "text"])
@pytest.mark.parametrize("scan", [Scan(), Scan(noise=.05, drop=.9, crop=.9)], ids=["whole cloud", "worst cloud"])
def test_a_part_from_points_alone_is_written_from_their_corner_and_comes_back_to_its_place(
    parts, sequence_format, scan
):
    folder, shards = (
        MultimodalAutocompleteDataset(
            parts/kind, sequence_format=sequence_format, modality_probs={"text+points": 1.0}, no_prefix_prob=1.0,
            num_points=256, points_on_grid=True, scan=scan
        )
        for kind in ("folder", "shards")
    )
    assert len(folder) >= 10
    for index in range(len(folder)):
        s, whole = folder[index], folder.whole(index)
        assert same(s, folder[index]) and same(s, shards[index])
        assert (
            s.size_only(folder.codec) and s.measures and (s.origin == np.rint(s.origin/s.grid.unit)*s.grid.unit).all()
        )
        designed, written = (
            np.array(build_solid(p, "manifold").bounding_box)
            for p in (whole, folder.codec.decode(s.prefix + s.target).moved(s.origin))
        )
        assert np.abs(designed - written).max() <= 1.5*s.grid.unit
        if not scan: assert np.abs(s.origin - designed[0]).max() < 20*s.grid.unit
    assert not folder.report and not shards.report


def test_where_nothing_is_ever_given_each_design_is_one_sample(root, tmp_path):
    designs = {s.id for s in make(root)}
    wholes = make(root, no_prefix_prob=1.0, index_path=tmp_path/"index.npz")
    assert (
        [s.id for s in wholes] == sorted(designs) and {s.kept for s in wholes} == {0} and len(designs) < len(make(root))
    )
    few = make(root, no_prefix_prob=1.0, max_samples=3, index_path=tmp_path/"few.npz")
    assert len(few) == len({s.id for s in few}) == 3
    for ds in (wholes, few):
        assert [
            s.id for s in make(root, no_prefix_prob=1.0, max_samples=len(ds), index_path=ds.index_path)
        ] == [s.id for s in ds]
    assert len(make(root, max_samples=3, index_path=tmp_path/"few.npz")) == 3 != len(
        {s.id for s in make(root, max_samples=3)}
    )


def test_order_is_a_permutation_of_its_own_each_epoch(root):
    ds, other = make(root), make(root, seed=6)
    orders = [tuple(ds.order(e)) for e in range(4)]
    assert len(set(orders)) == 4 and all(sorted(o) == list(range(len(ds))) for o in orders)
    assert tuple(other.order(0)) != orders[0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_processes_share_each_group_whatever_their_number(root, builder, data):
    ds = make(root)
    world, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    start = data.draw(st.integers(0, len(ds)))
    parts = [list(batches(ds, builder, start=start, batch_size=size, rank=r, world=world)) for r in range(world)]
    assert {len(p) for p in parts} == {num_batches(len(ds), size, world, start)}
    seen = [sorted(i for p in parts for row in p[k].sample_ids for i in row) for k in range(len(parts[0]))]
    order, group = ds.order(0)[start:], world*size
    assert seen == [sorted(ds[int(i)].id for i in order[k*group:(k + 1)*group]) for k in range(len(seen))]


SCRIPT = """
import sys
from cad_mllm.config import CADMLLMConfig
from cad_mllm.data import *
from cad_mllm.cad import get_codec
codec = get_codec("tokens")
tokenizer = load_tokenizer(CADMLLMConfig(llm_model_name="tiny"), codec)
ds = MultimodalAutocompleteDataset(
    sys.argv[1], modality_probs={"text": .4, "all": .6}, num_points=20, image_size=16, seed=3
)
builder = PromptBuilder(tokenizer, codec, 4, 2, 200)
for b in batches(ds, builder, epoch=1, batch_size=8):
    print(b.input_ids.tolist(), b.sample_ids, float(b.images.double().sum()), float(b.points.double().sum()))
print(ds.fingerprint, tokenizer.backend_tokenizer.to_str())
"""


def test_another_interpreter_gives_the_same_sequence_and_the_same_tokenizer(root):
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(root)], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 1000


def test_dataset_and_builder_travel_to_spawned_readers(root, builder):
    ds, again = make(root), pickle.loads(pickle.dumps(make(root)))
    assert same(ds.sample(1, 3), again.sample(1, 3))
    assert digest(builder.collate([ds[0]])) == digest(pickle.loads(pickle.dumps(builder)).collate([ds[0]]))


def test_reading_leaves_the_global_generators_alone(root, builder):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(batches(make(root), builder, batch_size=4, num_workers=1))
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


# --- damage ----------------------------------------------------------------------------------------------------------

def test_readers_tell_the_main_process_what_went_bad(tmp_path, builder):
    root = write_data(tmp_path, 6)
    ds = make(root, modality_probs={"all": 1.0})
    lost = sum(document_id(s.id) == "0000/00000001" and s.id.endswith("_00000") for s in ds)
    (root/"json"/"0000"/"00000001_00000.json").write_text("{")
    (root/"img"/"0000"/"00000000_00001_001.png").write_bytes(b"no picture")
    logging.disable(logging.WARNING)
    try: done = list(batches(ds, builder, batch_size=2, num_workers=2))
    finally: logging.disable(logging.NOTSET)
    assert sum(b.num_samples for b in done) == len(ds) - lost and len(done) == num_batches(len(ds), 2)
    assert ds.report["became unreadable during training"] == lost and ds.report["bad image"] == 1
    assert {r["file"] for r in json.loads(ds.report_path.read_text())["skipped"]} == {f for f, _ in ds.skipped}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_random_damage_never_raises(tmp_path_factory, builder, seed, before):
    "Bytes flipped, cut off and files removed anywhere, before the data set is built or after."
    rng, root = np.random.default_rng(seed), write_data(tmp_path_factory.mktemp("damage"), 6)
    ds = None if before else make(root, modality_probs={"all": 1.0})
    files = sorted(f for f in root.rglob("*") if f.is_file())
    for f in rng.choice(np.array(files, dtype=object), len(files)//3, replace=False):
        raw, how = bytearray(f.read_bytes()), rng.integers(4)
        if how == 0: raw = raw[:rng.integers(len(raw) + 1)]
        elif how == 1:
            for at in rng.integers(0, len(raw), 5): raw[at] = rng.integers(256)
        elif how == 2: raw = bytearray(rng.integers(0, 256, 50, dtype=np.uint8).tobytes())
        f.unlink() if how == 3 else f.write_bytes(raw)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = ds or make(root, modality_probs={"all": 1.0})
            for s in ds: assert s is None or s.target
            list(batches(ds, builder, batch_size=4))
    except DataError as e: assert before and "no usable sample" in str(e)
    finally: logging.disable(logging.NOTSET)


def test_one_warning_counts_names_and_points_to_the_list(tmp_path):
    root = write_data(tmp_path, 8)
    for n in range(5):
        (root/"json"/"0000"/f"0000000{n//2}_0000{n % 2}.json").write_bytes(b"") if n < 4 else (
            root/"json"/"0001"/"00000002_00000.json"
        ).unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = make(root)
    text = str(caught[0].message)
    assert len(caught) == 1 and caught[0].category is DataWarning and "\n" not in text
    assert (
        "left out 5 files" in text and "4 empty file, 1 missing whole" in text and "00000000_00000.json" in text
        and str(ds.report_path) in text
    )
    assert ds.report == {"empty file": 4, "missing whole": 1}


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind the superuser: run as another user"
)
def test_unreadable_files_and_folders_and_a_folder_that_cannot_be_written(tmp_path):
    root = write_data(tmp_path, 8)
    closed, folder = root/"json"/"0000"/"00000000_00000.json", root/"json_truncated"/"0001"
    closed.chmod(0)
    folder.chmod(0)
    root.chmod(0o555)
    try:
        with pytest.warns(DataWarning, match="kept in memory"): ds = make(root)
        assert (
            ds.report["unreadable file"] == 1 and ds.report["unreadable folder"] == 1
            and ds.report["report not written"] == 1 and len(ds) > 0
        )
    finally:
        root.chmod(0o755)
        folder.chmod(0o755)


# --- the index -------------------------------------------------------------------------------------------------------

def age(root, seconds):
    "Set the times of folders and caption files back, so that they count as settled."
    for f in [root, *root.rglob("*")]:
        if f.is_dir() or "txt" in f.parts: os.utime(f, ns=(f.stat().st_mtime_ns - int(seconds*1e9),)*2)


def change(rng, root):
    "One change that somebody might make between two runs; true where the file system dates it."
    wholes, cuts = (sorted((root/d).rglob("*.json")) for d in ("json", "json_truncated"))
    pick, how = (lambda files: files[rng.integers(len(files))]), rng.integers(8)
    if how == 0: pick(cuts).unlink()
    elif how == 1: pick(wholes).unlink()
    elif how == 2:                                                      # a part is added
        whole, id = CADProgram.from_json(pick(wholes)), f"0009/{rng.integers(10**8):08d}_00001"
        whole.save(root/"json"/f"{id}.json")
        for i, kept in enumerate(truncation_counts(len(whole)), 1):
            whole.truncate(kept).save(root/"json_truncated"/f"{id}_tr_{i:02d}.json")
    elif how == 3:
        id = pick(wholes).relative_to(root/"json").with_suffix("").as_posix()
        (root/"txt"/"0000.json").write_text(json.dumps([{"id": id, "text caption": "Another caption."}]))
    elif how == 4:                                                      # a download replaces a file
        (root/"new").write_bytes(pick(wholes).read_bytes())
        os.replace(root/"new", pick(wholes))
    elif how == 5: (root/"img"/"0000"/"00000000_00000.png").write_bytes(b"no picture, but a name")
    # overwritten in place, whole files: no folder gets another time
    elif how == 6: pick(cuts).write_bytes(pick(cuts).read_bytes())
    else: pick(wholes).write_bytes(pick(wholes).read_bytes()[:-rng.integers(1, 50)])
    return how < 6


def test_a_stale_index_never_gives_a_wrong_sample(tmp_path):
    """Random changes between two starts: what is dated is noticed at once and gives the data set of a fresh start;
    what is not is found when it is read."""
    original = write_data(tmp_path/"original", 6)
    for seed in range(8):
        rng, root = np.random.default_rng(seed), Path(tmp_path, str(seed))
        os.system(f"cp -a {original} {root}")
        age(root, 100)
        kw = dict(index_path=tmp_path/f"{seed}.npz", no_prefix_prob=0, report_path=os.devnull)
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(root, **kw)
            dated = [change(rng, root) for _ in range(rng.integers(1, 4))]
            again, fresh = make(root, **kw), make(root, **{**kw, "index_path": None})
            if all(dated):
                assert again.fingerprint == fresh.fingerprint and again.report == fresh.report
                assert all(same(again.sample(1, i), fresh.sample(1, i)) for i in range(len(fresh)))
            true = {(s.id, s.kept): (s.caption, s.prefix, s.target) for s in fresh if s}
            seen = [s for s in again if s]
            assert (
                all((s.caption, s.prefix, s.target) == true[s.id, s.kept] for s in seen)
                and len(seen) >= len(again) - sum(not d for d in dated)*5
            )
        logging.disable(logging.NOTSET)


# --- packing and splits ----------------------------------------------------------------------------------------------

@given(st.lists(st.integers(1, 100), max_size=40), st.integers(100, 300))
def test_packed_rows_hold_each_sample_once_and_never_overflow(lengths, capacity):
    rows = pack_rows(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    first_fit = []
    for n in sorted(lengths, reverse=True):
        row = next((r for r in first_fit if sum(r) + n <= capacity), None)
        if row is None: first_fit.append([n])
        else: row.append(n)
    assert len(rows) == len(first_fit)
    assert max((sum(lengths[i] for i in row) for row in rows), default=0) <= max(map(sum, first_fit), default=0)


cad_tokens = st.lists(st.sampled_from(get_codec("tokens").added_tokens), min_size=1, max_size=30)
samples = st.builds(
    Sample, id=st.text("abc", min_size=1), caption=st.text(max_size=20), prefix=cad_tokens, target=cad_tokens,
    image=st.sampled_from([None, np.zeros((8, 8, 3), np.uint8)]),
    points=st.sampled_from([None, np.ones((5, 6), np.float32)])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | samples, max_size=8), st.booleans(), st.integers(0, 400))
def test_a_batch_says_of_every_token_what_it_is(builder, items, pack, max_tokens):
    batch = builder.collate(items, pack=pack, max_tokens=max_tokens)
    real = batch.segment_ids >= 0
    there = sum(s is not None for s in items)
    assert batch.num_samples + batch.num_dropped == there == sum(map(len, batch.sample_ids)) + len(batch.skipped)
    assert (
        (batch.labels[~real] == -100).all() and (batch.input_ids[~real] == builder.pad_id).all()
        and (batch.position_ids[~real] == 0).all()
    )
    assert int((batch.labels != -100).sum()) == batch.num_tokens
    for row in range(len(batch.input_ids)):
        for n in range(len(batch.sample_ids[row])):
            at = torch.nonzero(batch.segment_ids[row] == n)[:, 0]
            assert batch.position_ids[row][at].tolist() == list(range(len(at))) and (at.diff() == 1).all()
            assert batch.labels[row][at[0]] == -100 and batch.labels[row][at[-1]] == batch.input_ids[row][at[-1]]
    for slots, tensor, before in ((batch.image_slots, batch.images, 0), (batch.point_slots, batch.points, 4)):
        assert len(slots) == len(tensor)
        for row, start in slots.tolist():
            assert batch.position_ids[row, start] in (0, before) and batch.labels[row, start] == -100


@settings(max_examples=40, deadline=None)
@given(st.lists(samples, min_size=1, max_size=5))
def test_generation_sees_the_tokens_that_training_saw(builder, items):
    prompts = builder.prompts(items)
    for row, s in enumerate(items):
        alone = builder.collate([s])
        if not alone.num_samples: continue
        given = prompts.input_ids[row][prompts.segment_ids[row] == 0]
        num = max(int((alone.labels[0] == -100).sum()), 1) if len(given) else 0
        assert given.tolist() == alone.input_ids[0, :len(given)].tolist() and len(given) in (num, num - 1)
        assert prompts.position_ids[row][prompts.segment_ids[row] == 0].tolist() == list(range(len(given)))


@given(
    st.dictionaries(
        st.integers(0, 10**6).map(lambda n: f"0000/{n//3:08d}_{n % 3:05d}"), st.integers(1, 5), max_size=60
    ),
    st.integers(0, 50)
)
def test_held_out_designs_are_whole_and_few(sizes, num_val):
    held = split_by_document(sizes, num_val)
    assert sum(sizes[i] for i in held) <= min(num_val, sum(sizes.values())//10)
    assert not {document_id(i) for i in held} & {document_id(i) for i in sizes if i not in held}
    assert held == split_by_document(dict(sorted(sizes.items(), reverse=True)), num_val)


# --- real data -------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(
    "OMNI_CAD_ROOT" not in os.environ, reason="set OMNI_CAD_ROOT to a folder that holds json/ to test on real histories"
)
@pytest.mark.parametrize("sequence_format", ["tokens", "json"])
def test_real_histories_are_admitted_and_a_users_beginning_reads_like_training(tmp_path, sequence_format):
    root = os.environ["OMNI_CAD_ROOT"]
    ds = MultimodalAutocompleteDataset(
        root, sequence_format=sequence_format, report_path=tmp_path/"report.json", max_samples=60
    )
    assert len(ds) == 60 and sum(ds.report.values()) <= 1
    for index in range(0, len(ds), 3):
        s = ds[index]
        whole = CADProgram.from_json(ds.folders["json"]/f"{s.id}.json")
        assert s.prefix == ds.codec.prefix(CADProgram.from_json(whole.truncate(s.kept).to_json()))


@pytest.mark.skipif(
    "QWEN3_TOKENIZER" not in os.environ, reason="set QWEN3_TOKENIZER to a folder with Qwen3's vocab.json and merges.txt"
)
def test_the_real_vocabulary_keeps_cad_tokens_single_and_text_as_it_was(tmp_path):
    codec, config = get_codec("tokens"), CADMLLMConfig(llm_model_name=os.environ["QWEN3_TOKENIZER"])
    tokenizer, plain = load_tokenizer(config, codec), load_tokenizer(config, get_codec("json"))
    ids = tokenizer.convert_tokens_to_ids(codec.added_tokens)
    assert (
        ids == list(range(len(plain), len(plain) + len(ids))) and tokenizer.encode("".join(codec.added_tokens)) == ids
    )
    text = 'Complete this CAD sequence: a flange, Ø 80 mm <end> <5>\n{"entities":{"x":-0.0254}}'
    written = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert max(written) < len(plain) and tokenizer.decode(written) == text
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(CADMLLMConfig(llm_model_name=str(tmp_path)), codec)
    assert len(again) == len(tokenizer) and again.encode("<end> a <5>") == tokenizer.encode("<end> a <5>")
