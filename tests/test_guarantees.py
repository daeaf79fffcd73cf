"""What a guarantee rests on that no other test would miss; `tools/break_on_purpose.py` breaks each on purpose."""
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from chapters import Chapter
ck = Chapter("cad_mllm.checkpoints")
from test_checkpoint import DyingDisk, Weights, in_child, needs_fork, run_dir, save  # noqa: F401

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see which file is synced")


class Events(list):
    "What happened to files, in order."
    def watch(self, monkeypatch):
        fsync, rename, rmtree = os.fsync, os.rename, shutil.rmtree
        def seen_fsync(fd):
            self.append(("sync", os.path.realpath(f"/proc/self/fd/{fd}")))
            return fsync(fd)
        def seen_rename(old, new, **more):
            self.append(("rename", os.path.realpath(old), str(new)))
            return rename(old, new, **more)
        def seen_rmtree(path, *args, **more):
            self.append(("remove", str(path)))
            return rmtree(path, *args, **more)
        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "rename", seen_rename)
        monkeypatch.setattr(shutil, "rmtree", seen_rmtree)
        return self

    def synced(self, begin, end): return {e[1] for e in self[begin:end] if e[0] == "sync"}


@needs_proc
def test_durable_before_it_is_named_and_named_before_others_go(run_dir, monkeypatch):
    """A kill cannot show this, only a power cut could: every file and folder is synced before the rename, and the
    rename before anything else is removed."""
    for step in (1, 2, 3): save(run_dir, step)
    events = Events().watch(monkeypatch)
    for step in (4, 5):
        events.clear()
        path = save(run_dir, step)
        named = next(i for i, e in enumerate(events) if e[0] == "rename" and e[2] == str(path))
        temporary = events[named][1]
        inside = [p.relative_to(path).as_posix() for p in path.rglob("*")]
        assert {temporary} | {f"{temporary}/{name}" for name in inside} <= events.synced(0, named)
        gone = next(
            i for i, e in enumerate(events) if e[0] == "remove" or e[0] == "rename"
            and "checkpoint-step" in Path(e[1]).name and Path(e[1]).name[0] != "."
        )
        assert os.path.realpath(path.parent) in events.synced(named, gone) and named < gone


def test_one_digit_of_a_manifest(tmp_path):
    "A manifest that still parses, lists the right files and hashes, but says another step, loss or stage."
    folder = save(tmp_path, 7, is_best=False)
    text = (folder/ck.MANIFEST).read_text()
    for old, new in (
        ('"step": 7', '"step": 9'), ('"stage": "stage1_text"', '"stage": "stage2_text"'),
        ('"is_best": false', '"is_best":  true')
    ):
        assert text.count(old) == 1
        (folder/ck.MANIFEST).write_text(text.replace(old, new))
        assert [p.split(":")[0] for p in ck.verify_checkpoint(folder)] == [ck.MANIFEST]
        assert ck.latest_checkpoint(tmp_path, quiet=True) is None
    (folder/ck.MANIFEST).write_text(text)
    assert ck.verify_checkpoint(folder) == []


def test_an_empty_manifest_proves_nothing(tmp_path):
    "Its own hash is right, and it lists no files."
    folder = save(tmp_path, 7, is_best=False)
    empty = json.loads((folder/ck.MANIFEST).read_text()) | {"files": {}}
    (folder/ck.MANIFEST).write_text(json.dumps(empty | {"sha256": ck._self_hash(empty)}))
    assert [p.split(":")[0] for p in ck.verify_checkpoint(folder)] == [ck.MANIFEST]


def test_a_file_cut_short_shows_in_a_list(tmp_path):
    "Without reading any large file."
    folder = save(tmp_path, 7, is_best=False)
    os.truncate(folder/"model.safetensors", 100)
    assert (
        not ck.list_checkpoints(tmp_path)[0].complete
        and [p.split(":")[0] for p in ck.verify_checkpoint(folder, hashes=False)] == ["model.safetensors"]
    )


@needs_fork
def test_a_replaced_model_is_there_before_or_after(run_dir):
    """Killed at every operation of writing a stage's model again: the old one or the new one is there, whole, as
    soon as anybody looks after left-overs."""
    def model(step):
        ck.save_checkpoint(
            Weights(step), run_dir, stage="stage1_text", step=step, epoch=0, loss=1.0, trainer_state={"position": step},
            is_best=False, name="stage1_text_model"
        )
    def dying(step, at):
        ck.DISK = DyingDisk(at)
        model(step)
    model(1)
    died, done = 0, 1
    for at in range(1, 200):
        _, status = os.waitpid(in_child(dying, 1 + at, at), 0)
        ck.clean_temporaries(run_dir)
        there = ck.list_checkpoints(run_dir)
        assert (
            [ck.verify_checkpoint(r.path) for r in there] == [[]] and there[0].path.name == "stage1_text_model"
            and there[0].step in (done, 1 + at)
        )
        done = there[0].step
        if not os.WIFSIGNALED(status): break
        died += 1
    assert died > 12 and os.WEXITSTATUS(status) == 0 and done == 1 + at


def test_every_field_of_the_progress_is_put_back():
    "Also those that a short run does not need, such as the best so far where losses only fall."
    from cad_mllm.training import Progress, Resumption
    resumption = Resumption(SimpleNamespace(), None, None, None)
    saved = vars(Progress(**{name: n + .5 for n, name in enumerate(vars(Progress()))}))
    resumption.take_progress(None, {"progress": dict(saved)}, 2)
    assert vars(resumption.state.progress) == {**saved, "stage_index": 2}
