"""Shards: the same samples as the folder, whatever was killed or damaged on the way."""
import json
import logging
import os
import re
import shutil
import signal
import tarfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chapters import Chapter

from cad_mllm.data import shards as pack_module
from cad_mllm.config import CADMLLMConfig
from cad_mllm.data import (
    batches, DataError, DataWarning, load_tokenizer, MultimodalAutocompleteDataset, pack, PromptBuilder)
from cad_mllm.data import INDEX_NAME, Pack, PackError, check_pack, scan_shard
from cad_mllm.data.shard_files import from_bytes, to_bytes
from cad_mllm.cad import get_codec
from cad_mllm.training import read_metrics
from small_data import make as write_parts
from test_dataset import STAGE, digest, same, write_data
from train_runs import Training

pytestmark = pytest.mark.filterwarnings("ignore::cad_mllm.data.skipped.DataWarning")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "22 parts, some of which lack a modality, and one of each kind of damage."
    root = write_data(tmp_path_factory.mktemp("data")/"folder", 22)
    (root/"json/0000/00000000_00001.json").write_bytes(b"")
    (root/"json_truncated/0000/00000001_00001_tr_02.json").write_text('{"entities": ')
    (root/"json/0001/00000002_00001.json").unlink()
    (root/"json_truncated/0001/odd.json").write_text("{}")
    (root/"txt/broken.json").write_text("[{")
    (root/"pointcloud/0001/00000003_00000.npz").write_bytes(b"PK no cloud")
    return root


@pytest.fixture(scope="module")
def shards(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")/"shards"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pack(root, out, shard_mb=.03)["shards"] >= 4
    return out


@pytest.fixture(scope="module")
def builder():
    codec = get_codec("tokens")
    return PromptBuilder(
        load_tokenizer(CADMLLMConfig(llm_model_name="tiny"), codec), codec, num_image_tokens=4, num_point_tokens=2,
        max_seq_length=200
    )


def open_data(root, **kw):
    return MultimodalAutocompleteDataset(
        root, **{**dict(modality_probs=STAGE, image_size=16, num_points=20, no_prefix_prob=.3, seed=5), **kw}
    )


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix == ".tar" or p.name == INDEX_NAME}


# --- the same samples ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    "kw",
    [
        {}, dict(sequence_format="json"), dict(sequence_format="text"), dict(split="train", num_val_samples=9),
        dict(split="val", num_val_samples=9), dict(max_samples=7),
        dict(split="train", num_val_samples=9, max_samples=9, modality_probs={"all": 1.0})
    ],
    ids=str
)
def test_every_sample_of_folder_and_shards_is_equal(root, shards, kw):
    folder, packed = open_data(root, **kw), open_data(shards, **kw)
    assert packed.fingerprint == folder.fingerprint and len(packed) == len(folder) > 0 and repr(packed) == repr(folder)
    assert packed.report == folder.report and list(packed.num_tokens) == list(folder.num_tokens)
    for epoch in (0, 1):
        assert list(packed.order(epoch)) == list(folder.order(epoch))
        for i in range(len(folder)): assert same(packed.sample(epoch, i), folder.sample(epoch, i))
    assert packed.report == folder.report
    assert [packed.whole(i).to_json() for i in range(0, len(packed), 5)] == [
        folder.whole(i).to_json() for i in range(0, len(folder), 5)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_begun_on_the_folder_goes_on_from_shards(root, shards, builder, workers):
    whole = [digest(b) for b in batches(open_data(root), builder, epoch=2, batch_size=3)]
    assert [
        digest(b) for b in batches(open_data(shards), builder, epoch=2, start=9, batch_size=3, num_workers=workers)
    ] == whole[3:]


def test_histories_that_are_cut_when_read(root, tmp_path):
    bare = shutil.copytree(root, tmp_path/"bare")
    shutil.rmtree(bare/"json_truncated")
    pack(bare, tmp_path/"shards")
    folder, packed = open_data(bare), open_data(tmp_path/"shards")
    assert packed.fingerprint == folder.fingerprint and all(same(packed[i], folder[i]) for i in range(len(folder)))


def test_a_run_begun_on_the_folder_resumes_on_shards_to_the_last_bit(tmp_path):
    """Real processes; killed after five steps; every logged number and every weight of the end is that of the
    unbroken run on the folder."""
    data = write_parts(tmp_path/"data", 8)
    pack(data, tmp_path/"shards", shard_mb=.05)
    flags = ("--save_steps", "2", "--stage3_epochs", "0", "--max_train_samples", "12")
    Training(data, tmp_path/"whole", *flags).wait(0)
    broken = Training(data, tmp_path/"broken", *flags).until(lambda: len(read_metrics(tmp_path/"broken")) >= 4)
    broken.kill()
    resumed = Training(tmp_path/"shards", tmp_path/"broken", *flags, "--resume_from_ckpt", "auto", "--num_workers", "1")
    resumed.wait(0)
    def rows(out):
        return {
            r["step"]: {k: v for k, v in r.items() if k not in ("time", "seconds", "tokens_per_second")}
            for r in read_metrics(out)
        }
    assert rows(tmp_path/"broken") == rows(tmp_path/"whole") and len(rows(tmp_path/"whole")) >= 6
    one, two = (load_file(next((tmp_path/n/"final_model").glob("*model.safetensors"))) for n in ("whole", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert "the data changed" not in resumed.text


def test_tokens_of_another_version_are_not_used(root, shards, monkeypatch):
    expected = [s.target for s in open_data(shards)]
    monkeypatch.setattr(Chapter("cad_mllm.data"), "language_version", lambda: "another")
    other = open_data(shards)
    monkeypatch.setattr(
        Pack, "read",
        (
            lambda read: lambda self, place, ending: pytest.fail("used") if ending == ".tokens.json"
            else read(self, place, ending)
        )(Pack.read)
    )
    assert not other.files.has_tokens and [s.target for s in other] == expected


# --- the bytes -------------------------------------------------------------------------------------------------------

def test_the_same_input_gives_the_same_bytes(root, shards, tmp_path):
    "Elsewhere, at another time, by more processes, one reading thread."
    copy = shutil.copytree(root, tmp_path/"copy")
    for f in copy.rglob("*"): os.utime(f, (10**9, 10**9))
    pack(copy, tmp_path/"shards", shard_mb=.03, jobs=2, readers=1)
    assert contents(tmp_path/"shards") == contents(shards)


def test_packing_again_writes_nothing_and_follows_a_change(root, shards, tmp_path):
    copy, out = shutil.copytree(root, tmp_path/"copy"), tmp_path/"shards"
    pack(copy, out, shard_mb=.03)
    before = {p: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    made = pack(copy, out, shard_mb=.03)
    assert (
        made["kept_shards"] == made["shards"] == len(before)
        and {p: p.stat().st_mtime_ns for p in out.glob("shard-*")} == before
    )
    (copy/"txt/0000.json").write_text((copy/"txt/0000.json").read_text().replace("number 21", "number twenty-one"))
    made = pack(copy, out, shard_mb=.03)
    assert 0 < made["kept_shards"] < made["shards"]
    folder, packed = open_data(copy), open_data(out)
    assert [s.caption for s in packed] == [s.caption for s in folder] and any("twenty-one" in s.caption for s in packed)


@pytest.mark.parametrize("moment", range(0, 16, 3))
def test_killed_while_packing(root, shards, tmp_path, moment):
    """SIGKILL before one of the renames, flushes and removals; what is there is no pack, and the next run makes the
    same bytes."""
    out = tmp_path/"shards"
    if (pid := os.fork()) == 0:
        try:
            warnings.simplefilter("ignore")
            count = [0]
            def counting(call):
                def inner(*args, **kw):
                    count[0] += 1
                    if count[0] > moment: os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kw)
                return inner
            for name in ("replace", "fsync", "unlink"): setattr(pack_module.os, name, counting(getattr(os, name)))
            pack(root, out, shard_mb=.03, jobs=1)
        finally: os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    if not (out/INDEX_NAME).exists():
        with pytest.raises(DataError, match="not finished|no data"): open_data(out)
    for shard in out.glob("shard-*.tar"): assert shard.read_bytes() == (shards/shard.name).read_bytes()
    pack(root, out, shard_mb=.03)
    assert contents(out) == contents(shards) and not list(out.glob(".*.part"))


def test_a_full_disk_is_said_in_one_sentence(root, tmp_path, monkeypatch):
    def full(self, data): raise OSError(28, "No space left on device", str(self.path))
    monkeypatch.setattr(pack_module.ShardWriter, "_put", full)
    opened, read = [], pack_module._read_ahead
    monkeypatch.setattr(pack_module, "_read_ahead", lambda *args: opened.append(read(*args)) or opened[-1])
    with pytest.raises(
        PackError, match=r"shard-000000.tar: packing stopped \(No space left on device\); free some space .* run again"
    ):
        pack(root, tmp_path/"shards")
    assert not list((tmp_path/"shards").glob("*.tar")) and not list((tmp_path/"shards").glob(".shard*"))
    assert [group.gi_frame for group in opened] == [None]             # its threads have ended, and did not wait for a
                                                                      # garbage collection in one of themselves


def test_any_tar_reader_finds_whole_samples(root, shards):
    "The key is the name up to the first dot; files of a key follow each other; nothing of the machine is in a header."
    keys = []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for m in tar:
                assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644)
                folder, _, name = m.name.rpartition("/")
                key, field = f"{folder}/{name.split('.')[0]}", name.partition(".")[2]
                if not keys or keys[-1] != key: keys.append(key)
                if field == "json": assert tar.extractfile(m).read() == (root/"json"/f"{key}.json").read_bytes()
                if field == "txt": assert tar.extractfile(m).read().decode().startswith("A plate with")
    assert len(keys) == len(set(keys)) == len(open_data(shards, sequence_format="json").table.ids)


def test_webdataset_reads_the_shards(shards):
    wds = pytest.importorskip("webdataset")
    samples = list(wds.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False))
    assert [s["__key__"] for s in samples] == open_data(shards, sequence_format="json").table.ids
    assert all({"json", "tokens.json", "txt"} <= s.keys() and json.loads(s["json"])["entities"] for s in samples)


# --- damage ----------------------------------------------------------------------------------------------------------

def test_a_missing_and_a_broken_off_shard_are_named_and_their_samples_counted(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path/"copy")
    whole = open_data(copy)
    samples = {(s.id, s.kept) for s in whole}
    (copy/"shard-000001.tar").unlink()
    with open(copy/"shard-000003.tar", "r+b") as f: f.truncate(2000)
    with pytest.warns(DataWarning) as said: less = open_data(copy)
    assert len(said) == 1 and "1 missing shard, 1 truncated shard" in str(said[0].message)
    found = {
        Path(f).name: int(re.search(r"its (\d+) samples are left out", r)[1]) for f, r in less.skipped
        if "samples are left out" in r
    }
    assert (
        set(found) == {"shard-000001.tar", "shard-000003.tar"} and sum(found.values()) == len(whole) - len(less) > 0
        and min(found.values()) > 0
    )
    assert all(s is not None for s in less) and {s.id for s in less} < {id for id, _ in samples}
    bad = {b["shard"]: b for b in check_pack(copy)["bad"]}
    assert bad["shard-000001.tar"]["reason"].startswith("missing") and bad["shard-000003.tar"]["lost"]


def test_held_out_samples_stay_held_out_when_a_shard_is_away(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path/"copy")
    held = {s.id for s in open_data(copy, split="val", num_val_samples=9)}
    for shard in sorted(copy.glob("*.tar")):
        shard.rename(tmp_path/"away")
        try: assert not held & {s.id for s in open_data(copy, split="train", num_val_samples=9)}
        except DataError as e: assert "no usable sample" in str(e)
        (tmp_path/"away").rename(shard)


def test_random_damage_never_raises_and_never_gives_another_sample(shards, tmp_path_factory, builder):
    """Bytes flipped, cut off, overwritten and files removed, before the data set is built or after: a sample is what
    it was, or it is skipped and named."""
    expected, lost = list(open_data(shards, no_prefix_prob=0)), 0
    by_name = {(s.id, s.kept): s for s in expected}
    for seed in range(12):
        rng, copy = np.random.default_rng(seed), shutil.copytree(shards, tmp_path_factory.mktemp("damage")/"copy")
        ds = open_data(copy, no_prefix_prob=0) if seed % 2 else None
        files = sorted(copy.glob("*.tar")) + ([copy/INDEX_NAME] if seed % 4 == 0 else [])
        for f in rng.choice(np.array(files, dtype=object), 2, replace=False):
            raw, how = bytearray(f.read_bytes()), rng.integers(4)
            if how == 0: raw = raw[:rng.integers(len(raw))]
            elif how == 1:
                for at in rng.integers(0, len(raw), 8): raw[at] ^= 1 << rng.integers(8)
            elif how == 2:
                raw[len(raw)//3:len(raw)//2] = rng.integers(0, 256, len(raw)//2 - len(raw)//3, dtype=np.uint8).tobytes()
            f.unlink() if how == 3 else f.write_bytes(raw)
        try: ds = ds or open_data(copy, no_prefix_prob=0)
        except DataError as e:
            assert "pack_index.npz" in str(e) or "no data" in str(e)
            continue
        for i in range(len(ds)):
            s = ds.sample(0, i)
            if s is None:
                lost += 1
                continue
            one = by_name[s.id, s.kept]
            assert (s.caption, s.prefix, s.target) == (one.caption, one.prefix, one.target)
            if len(ds) == len(expected) and s.modalities == one.modalities: assert same(s, one)
        list(batches(ds, builder, batch_size=4))
        assert all("shard" in r or "shard" in f for f, r in ds.skipped if "went bad" in r)
    assert lost > 0


def test_data_that_goes_away_while_training_stops_the_run(shards, tmp_path, builder):
    copy = shutil.copytree(shards, tmp_path/"copy")
    (copy/"shard-000000.tar").rename(tmp_path/"away")
    ds = open_data(copy, modality_probs={"text": 1.0})
    (copy/"shard-000001.tar").unlink()
    # two shards of several: what is left is read
    assert sum(b.num_samples for b in batches(ds, builder, batch_size=1)) < len(ds)
    shutil.rmtree(copy)
    ds.files.pack.close()
    ds.histories.cache.clear()
    with pytest.raises(DataError, match="the data went away while training.*resume"):
        list(batches(ds, builder, batch_size=2))


def test_a_shard_replaced_under_a_reader_keeps_giving_what_was_packed(shards, tmp_path):
    "An open handle reads the old file; a fresh one finds that checksums do not fit."
    copy = shutil.copytree(shards, tmp_path/"copy")
    ds = open_data(copy)
    first = [ds[i] for i in range(len(ds))]
    for shard in copy.glob("*.tar"):
        (tmp_path/"other").write_bytes(bytes(shard.stat().st_size))
        os.replace(tmp_path/"other", shard)
    ds.histories.cache.clear()
    assert all(same(ds[i], first[i]) for i in range(len(ds)))
    ds.files.pack.close()
    ds.histories.cache.clear()
    assert [ds[i] for i in range(len(ds))] == [None]*len(ds) and set(ds.report) >= {"became unreadable during training"}


# --- processes -------------------------------------------------------------------------------------------------------

def _read_all(ds):
    return [
        None if s is None else (s.id, s.kept, len(s.target)) for s in (ds[i] for i in range(len(ds)))
    ], os.getpid(), len(ds.files.pack._handles)


def test_one_handle_a_shard_and_process(shards, builder):
    ds = open_data(shards)
    expected, _, num = _read_all(ds)
    assert num == len({int(s) for s in ds.files.pack.shard}) <= len(list(shards.glob("*.tar")))
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for epoch in range(3): [ds.sample(epoch, i) for i in range(len(ds))]
    if opened: assert len(os.listdir("/proc/self/fd")) == opened
    with ProcessPoolExecutor(3) as pool:
        for got, _, handles in pool.map(_read_all, [ds]*6): assert got == expected and handles == num


def test_forked_readers_share_handles_without_disturbing_each_other(shards, builder):
    ds = open_data(shards)
    # all handles are open when the readers are forked
    whole = [digest(b) for b in batches(ds, builder, batch_size=2)]
    for workers in (1, 2): assert [digest(b) for b in batches(ds, builder, batch_size=2, num_workers=workers)] == whole


def test_a_copy_on_a_faster_disk(shards, tmp_path, monkeypatch):
    slow = shutil.copytree(shards, tmp_path/"slow")
    monkeypatch.setenv("CAD_MLLM_CACHE_DIR", str(tmp_path/"fast"))
    ds, expected = open_data(slow), open_data(shards)
    for f in slow.glob("*.tar"): f.unlink()
    assert all(same(ds[i], expected[i]) for i in range(len(ds)))
    assert sorted(f.name for f in (tmp_path/"fast").rglob("*.*")) == sorted(f.name for f in shards.glob("*.tar"))
    for f in (tmp_path/"fast").rglob("*.tar"): assert scan_shard(f) == scan_shard(shards/f.name)


def test_opening_a_pack_reads_its_index_and_no_shard(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Pack, "_pread", lambda *a: pytest.fail("read a shard"))
    real, opened = open, []
    monkeypatch.setattr("builtins.open", lambda f, *a, **kw: opened.append(str(f)) or real(f, *a, **kw))
    ds = open_data(shards, index_path=tmp_path/"i.npz", report_path=tmp_path/"r.json")
    again = open_data(shards, index_path=tmp_path/"i.npz", report_path=tmp_path/"r.json")
    assert (
        [f for f in opened if f.endswith(".tar")] == [] and again.fingerprint == ds.fingerprint
        and again.skipped == ds.skipped
    )


def spoilt(arrays, name, field, value, at=0):
    "A copy of an index's arrays with one number changed."
    changed = {k: v.copy() for k, v in arrays.items()}
    if field: changed[name][field][at] = value
    elif value is None: changed[name] = changed[name][:-1]
    else: changed[name][at] = value
    return changed


def sealed_pack(arrays):
    "The arrays of a pack's index with the checksum that fits them, where one can be made."
    try:
        header = from_bytes(arrays["header"])
        extra = {k[6:]: v for k, v in arrays.items() if k.startswith("extra_")}
        named = from_bytes(arrays["ids"]), header["shards"], header["endings"], arrays["members"], extra
        return {**arrays, "header": to_bytes({**header, "digest": pack_module._content_digest(*named)})}
    except Exception: return arrays


REFERENCES = [
    ("shard", "", 999), ("shard", "", -1), ("members", "ending", 999), ("first", "", -1), ("first", "", 10**9, -1),
    ("first", "", None), ("shard", "", None), ("members", "offset", -5), ("extra_samples", "design", 999),
    ("extra_samples", "design", -1), ("extra_samples", "suffix", 999), ("extra_samples", "suffix", -1),
    ("extra_designs", "", None), ("extra_views", "", None), ("extra_clouds", "", None)
]

@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: "-".join(map(str, r)))
def test_references_of_a_pack_index_are_checked_when_it_is_opened(shards, tmp_path, reference):
    with np.load(shards/INDEX_NAME) as data: arrays = {k: data[k] for k in data.files}
    folder = tmp_path/"shards"
    folder.mkdir()
    for path in shards.glob("*.tar"): os.link(path, folder/path.name)
    # with its checksum, and not
    for changed in (spoilt(arrays, *reference), sealed_pack(spoilt(arrays, *reference))):
        pack_module.save_arrays(folder/INDEX_NAME, changed)
        with pytest.raises(DataError, match=f"{INDEX_NAME}: the index is damaged"): open_data(folder)


@pytest.mark.parametrize(
    "reference", [("samples", "design", 999), ("samples", "suffix", -1), ("designs", "", None), ("views", "", None)],
    ids=lambda r: "-".join(map(str, r))
)
def test_a_data_index_whose_references_lead_nowhere_is_made_again(root, tmp_path, reference, caplog):
    logging.disable(logging.NOTSET)
    first = open_data(root, index_path=tmp_path/"i.npz", report_path=tmp_path/"r.json")
    with np.load(tmp_path/"i.npz") as data: arrays = {k: data[k] for k in data.files}
    pack_module.save_arrays(tmp_path/"i.npz", spoilt(arrays, *reference))
    again = open_data(root, index_path=tmp_path/"i.npz", report_path=tmp_path/"r.json")
    assert (
        "is made again" in caplog.text and len(first) == len(again)
        and [first[i].id for i in range(len(first))] == [again[i].id for i in range(len(again))]
    )
