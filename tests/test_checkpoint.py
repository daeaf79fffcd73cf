"""Checkpoints when things go wrong: the process dies at any moment, the disk fails at any call, the files come from
elsewhere."""
import errno, hashlib, os, pickle, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

import pytest
import torch
from hypothesis import given, HealthCheck, settings, strategies as st
from safetensors.torch import load_file, save_file

from chapters import Chapter
ck = Chapter("cad_mllm.checkpoints")
from cad_mllm.config import CADMLLMConfig, recipe

torch.set_num_threads(1)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


class Weights:
    "A model whose weights say which step they are of."
    def __init__(self, step=0): self.config, self.tensor = recipe("tiny")[0], torch.full((2000,), float(step))

    def save_pretrained(self, folder):
        for name in ("model.safetensors", "extra.safetensors"): save_file({"w": self.tensor}, Path(folder)/name)
        (Path(folder)/"sub").mkdir()
        (Path(folder)/"sub"/"tokenizer.json").write_text("{}")

    def load_weights(self, folder):
        self.tensor = load_file(Path(folder)/"model.safetensors")["w"]
        return []


class Told(Weights):
    "The same, telling its files instead of writing them."
    def saved_files(self):
        return {
            **{name: {"w": self.tensor} for name in ("model.safetensors", "extra.safetensors")},
            "sub/tokenizer.json": b"{}"
        }


def save(output, step, **more):
    "Saves alternately with a model that writes its files and with one that tells them."
    state = {"position": step, "moments": torch.full((1000,), float(step))}
    return ck.save_checkpoint(
        (Weights, Told)[step % 2](step), output,
        **(
            {"stage": "stage1_text", "step": step, "epoch": 0, "loss": 1/step, "trainer_state": state, "keep_last_n": 2}
            | more
        )
    )


@pytest.fixture
def run_dir(tmp_path):
    "A folder in memory where there is one: these tests wait for thousands of fsyncs otherwise."
    shm = Path("/dev/shm")
    if not (shm.is_dir() and os.access(shm, os.W_OK)):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def visible(output):
    "Folders that have a checkpoint's final name."
    named = [p for pattern in ("checkpoint-*", "*_model") for p in Path(output).rglob(pattern) if p.is_dir()]
    return [p for p in named if not any(part.startswith(".") for part in p.relative_to(output).parts)]


def check(output, at_least):
    """Everything with a final name verifies; the newest loads, is no older than `at_least`, and all of it is of one
    step."""
    for folder in visible(output): assert ck.verify_checkpoint(folder) == [], folder
    newest = ck.latest_checkpoint(output, quiet=True)
    assert newest in visible(output)
    model = Weights()
    loaded = ck.load_checkpoint(newest, model, quiet=True)
    step = loaded.metadata["step"]
    assert step >= at_least
    assert loaded.trainer_state["position"] == step and loaded.trainer_state["step"] == step
    assert model.tensor.unique().tolist() == [step] and loaded.trainer_state["moments"].unique().tolist() == [step]
    assert ck.best_checkpoint(ck.list_checkpoints(output/"stage1_text")) is not None
    return step


def in_child(func, *args):
    "Run in a forked child and return its process id; the child never returns."
    if pid := os.fork(): return pid
    try: func(*args)
    except BaseException as e:
        os.write(2, f"child: {e!r}\n".encode())
        os._exit(1)
    os._exit(0)


class DyingDisk(ck.Disk):
    "Does half of its n-th operation and then kills the process, as SIGKILL would in the middle of it."
    def __init__(self, at): self.left = at

    def _count(self, half=None, *args):
        self.left -= 1
        if self.left: return
        if half: half(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path, data):
        self._count(Path(path).write_bytes, data[:len(data)//2])
        return super().write(path, data)

    def save(self, path, value):
        self._count(Path(path).write_bytes, b"PK\3\4 half a file")
        return super().save(path, value)

    def save_tensors(self, path, tensors):
        self._count(Path(path).write_bytes, b"\x40\0\0\0\0\0\0\0{")
        return super().save_tensors(path, tensors)

    def remove(self, folder):
        self._count(lambda: next(p for p in Path(folder).iterdir() if p.is_file()).unlink())
        super().remove(folder)

    def mkdir(self, path):
        self._count()
        super().mkdir(path)

    def rename(self, old, new):
        self._count()
        super().rename(old, new)

    def link(self, source, target):
        self._count(Path(target).write_bytes, b"half")
        super().link(source, target)

    def sync(self, path):
        self._count()
        super().sync(path)


@needs_fork
def test_killed_at_every_single_disk_operation(run_dir):
    for step in (1, 2, 3): save(run_dir, step)
    done = died = 0

    def child(step, at):
        ck.DISK = DyingDisk(at)
        save(run_dir, step)
    for at in range(1, 200):
        _, status = os.waitpid(in_child(child, step := 3 + at, at), 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        check(run_dir, at_least=max(3, done))
        if os.WIFSIGNALED(status): died += 1
        else:
            done = step
            break
    assert done and died > 20          # it went through all operations of one save, to its end
    save(run_dir, 1000)
    assert not list((run_dir/"stage1_text").glob(".*"))     # nothing is left of all the dead


@needs_fork
def test_killed_at_random_moments(run_dir):
    save(run_dir, 1)
    draw, step, died_saving = random.Random(0), 1, 0
    for _ in range(20):
        read, write = os.pipe()

        def child():
            for s in range(step + 1, step + 10_000):
                os.write(write, b"b%d " % s)
                save(run_dir, s, protect=[])
                os.write(write, b"e%d " % s)
        pid = in_child(child)
        os.close(write)
        time.sleep(draw.uniform(0.02, 0.25))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = os.read(read, 1 << 20).decode().split()
        os.close(read)
        finished = max([int(s[1:]) for s in said if s[0] == "e"], default=step)
        died_saving += bool(said and said[-1][0] == "b")
        step = check(run_dir, at_least=finished)
    assert died_saving > 5


_CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOTCONN)

@pytest.mark.parametrize("operation", ["write", "save", "save_tensors", "mkdir", "rename", "link", "sync", "remove"])
def test_disk_that_fails_once_at_any_call(run_dir, monkeypatch, operation):
    "Each call of each operation fails in turn, for both kinds of model: the disk is full, broken, forbidden, or gone."
    for step in (1, 2, 3): save(run_dir, step)

    class Faulty(ck.Disk):
        calls = 0
    def failing(self, *args):
        Faulty.calls += 1
        if Faulty.calls == at: raise OSError(code, os.strerror(code))
        return getattr(ck.Disk, operation)(self, *args)
    setattr(Faulty, operation, failing)
    newest, step, quiet_ends = 3, 3, 0
    for at, code in ((n, _CODES[(n + kind) % 4]) for n in range(1, 60) for kind in (0, 1)):
        monkeypatch.setattr(ck, "DISK", Faulty())
        Faulty.calls, step = 0, step + 1
        try: newest = ck.read_record(save(run_dir, step)).step
        except ck.CheckpointError as e:
            assert os.strerror(code) in str(e) and "earlier checkpoints are untouched" in str(e)
        monkeypatch.setattr(ck, "DISK", ck.Disk())
        assert check(run_dir, at_least=newest) <= step
        quiet_ends = quiet_ends + 1 if Faulty.calls < at else 0
        if quiet_ends == 2: break      # one of each kind of model went through without meeting the fault
    assert quiet_ends == 2
    save(run_dir, 1000)
    assert not list((run_dir/"stage1_text").glob(".*"))


@pytest.mark.parametrize("operation", ["write", "save", "save_tensors", "link"])
def test_a_disk_that_keeps_less_than_it_was_given(run_dir, monkeypatch, operation):
    "A short write that nobody reports: the checkpoint does not get its name."
    good = save(run_dir, 2, is_best=False, keep_last_n=0)

    class Short(ck.Disk):
        calls = 0
    def short(self, *args):
        done = getattr(ck.Disk, operation)(self, *args)
        Short.calls += 1
        path = args[1] if operation == "link" else args[0]
        if Short.calls == at:
            if operation == "link":
                shutil.copyfile(args[0], f"{path}.copy")
                os.replace(f"{path}.copy", path)
            os.truncate(path, os.path.getsize(path)//2)
        return done
    setattr(Short, operation, short)
    met = 0
    for at in range(1, 20):
        monkeypatch.setattr(ck, "DISK", Short())
        Short.calls = 0
        try: new = save(run_dir, 2*at + 1, is_best=operation == "link", keep_last_n=0)
        except ck.CheckpointError as e:
            assert "bytes were written" in str(e)
            new = None
        monkeypatch.setattr(ck, "DISK", ck.Disk())
        for folder in visible(run_dir): assert ck.verify_checkpoint(folder) == []
        if Short.calls < at: break
        met += 1
        assert new is None or operation == "link"
    assert met >= {"write": 4, "save": 1, "save_tensors": 2, "link": 4}[operation] and good.exists()


def test_the_new_one_is_durable_before_an_old_one_goes(tmp_path, monkeypatch):
    """In the order of disk operations: every file, the manifest, the name, the folder that holds the name; then the
    best; then removal."""
    for step in (1, 2): save(tmp_path, step)
    done = []
    class Logging(ck.Disk): pass
    for name in ("write", "save", "save_tensors", "rename", "sync", "link", "remove"):
        def logged(self, *args, name=name):
            done.append((name, *(Path(a).name for a in args[:2] if isinstance(a, (str, Path)))))
            return getattr(ck.Disk, name)(self, *args)
        setattr(Logging, name, logged)
    monkeypatch.setattr(ck, "DISK", Logging())
    new = save(tmp_path, 3, keep_last_n=1)
    at = {
        what: done.index(what)
        for what in (
            ("write", "manifest.json"), ("sync", "manifest.json"), ("sync", "trainer_state.pt"),
            ("sync", "model.safetensors")
        )
    }
    named = next(i for i, d in enumerate(done) if d[0] == "rename" and d[2] == new.name)
    durable = next(i for i, d in enumerate(done) if i > named and d == ("sync", "stage1_text"))
    removed = [i for i, d in enumerate(done) if d[0] == "remove"]
    assert at["sync", "trainer_state.pt"] < at["write", "manifest.json"] < at["sync", "manifest.json"] < named
    assert named < durable < min(removed)
    # two old ones and the old copy of the best
    assert at["sync", "model.safetensors"] < at["write", "manifest.json"] and len(removed) == 3
    assert next(i for i, d in enumerate(done) if d[0] == "link") > durable


def test_a_failing_model_leaves_nothing(tmp_path):
    save(tmp_path, 1)
    class Broken(Weights):
        def save_pretrained(self, folder):
            super().save_pretrained(folder)
            raise RuntimeError("CUDA out of memory")
    with pytest.raises(ck.CheckpointError, match="CUDA out of memory"):
        ck.save_checkpoint(Broken(), tmp_path, stage="stage1_text", step=2, epoch=0, loss=1.0, trainer_state={})
    class Interrupted(Weights):
        def save_pretrained(self, folder):
            super().save_pretrained(folder)
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        ck.save_checkpoint(Interrupted(), tmp_path, stage="stage1_text", step=2, epoch=0, loss=1.0, trainer_state={})
    assert (
        sorted(p.name for p in (tmp_path/"stage1_text").iterdir())[0] == "checkpoint-best"
        and len(visible(tmp_path)) == 2
    )


def test_every_damage_is_named_refused_and_passed_over(tmp_path):
    good = save(tmp_path, 1, keep_last_n=0, is_best=False)
    bad = save(tmp_path, 2, keep_last_n=0, is_best=False)
    files = [p for p in bad.rglob("*") if p.is_file()]
    for path in files:
        name, data = path.relative_to(bad).as_posix(), path.read_bytes()
        damages = [
            lambda: path.write_bytes(data[:-1]), lambda: path.unlink(), lambda: path.write_bytes(b""),
            lambda: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        ]
        for damage in damages:
            damage()
            problems = ck.verify_checkpoint(bad)
            assert len(problems) == 1 and problems[0].startswith(f"{name}: "), (name, problems)
            with pytest.raises(ck.CheckpointError, match=f"(?s){bad.name}.*{name}.*{good.name}"):
                ck.load_checkpoint(bad, quiet=True)
            assert ck.latest_checkpoint(tmp_path, quiet=True) == good
            path.write_bytes(data)
    assert ck.verify_checkpoint(bad) == [] and ck.latest_checkpoint(tmp_path) == bad
    (bad/"sub"/"more.bin").write_bytes(b"x")
    assert ck.verify_checkpoint(bad) == ["sub/more.bin: is not listed in manifest.json"]
    with pytest.raises(ck.CheckpointError, match=f"(?s){bad.name}.*sub/more.bin.*{good.name}"):
        ck.load_checkpoint(bad, quiet=True)
    (bad/"sub"/"more.bin").unlink()
    empty = {"format": ck.FORMAT, "metadata": {}, "files": {}}
    (bad/ck.MANIFEST).write_bytes(ck.to_json(empty | {"sha256": ck._self_hash(empty)}))
    assert (
        ck.verify_checkpoint(bad) == ["manifest.json: lists no files"]
        and ck.latest_checkpoint(tmp_path, quiet=True) == good
    )


def test_the_command_names_what_is_wrong_and_rewrites_what_is_old(tmp_path, capsys):
    """`cad-mllm checkpoints`: with --verify a line for every file that is not as it was written, and 1; with
    --upgrade an old one takes today's form, the original beside it."""
    from cad_mllm.cli import main
    def command(*more):
        with pytest.raises(SystemExit) as end: main(["checkpoints", str(tmp_path), *more])
        return end.value.code, capsys.readouterr().out
    good, flipped, cut, missing, extra, empty = (
        save(tmp_path, step, keep_last_n=0, is_best=False) for step in range(1, 7)
    )
    assert command("--verify")[0] == 0
    name = "model.safetensors"
    data = bytearray((flipped/name).read_bytes())
    data[-1] ^= 1
    (flipped/name).write_bytes(data)
    os.truncate(cut/name, 100)
    (missing/name).unlink()
    (extra/"more.bin").write_bytes(b"x")
    nothing = {"format": ck.FORMAT, "metadata": {}, "files": {}}
    (empty/ck.MANIFEST).write_bytes(ck.to_json(nothing | {"sha256": ck._self_hash(nothing)}))
    code, said = command("--verify")
    assert code == 1 and f"✓ {good}\n" in said
    for folder, problem in (
        (flipped, f"{name}: its content has changed"), (cut, f"{name}: has 100 bytes instead of"),
        (missing, f"{name}: is missing"), (extra, "more.bin: is not listed"), (empty, "manifest.json: lists no files")
    ):
        assert f"✗ {folder}\n    {problem}" in said
    old = legacy(tmp_path/"stage2"/"checkpoint-epoch0-step100", trainer_state_pt={"epoch": 0, "step": 100})
    assert (
        command("--upgrade")[0] == 0 and not ck.is_old_format(old) and ck.verify_checkpoint(old) == []
        and ck.is_old_format(old.with_name(f"{old.name}-old"))
    )
    code, said = command("--upgrade", "--remove_original")
    assert code == 0 and not ck.is_old_format(old) and ck.verify_checkpoint(old) == []


def test_the_offer_reaches_into_other_stages_of_the_run(tmp_path):
    good, bad = save(tmp_path, 1, is_best=False), save(tmp_path, 2, stage="stage2", is_best=False)
    (bad/"model.safetensors").unlink()
    with pytest.raises(ck.CheckpointError, match="there is no good one beside it"): ck.load_checkpoint(bad, quiet=True)
    (tmp_path/"run_config.json").write_text("{}")
    with pytest.raises(ck.CheckpointError, match=f"the newest good one is .*{good.name}"):
        ck.load_checkpoint(bad, quiet=True)


def test_a_proof_is_used_once_and_only_for_what_is_untouched(tmp_path, monkeypatch):
    "`latest` and `load` together read each file once; a file that was touched in between is read again."
    path, read = save(tmp_path, 1, is_best=False), []
    monkeypatch.setattr(ck.time, "time_ns", lambda: int((time.time() + 10)*1e9))      # as if ten seconds had passed
    hashed = ck.file_sha256
    monkeypatch.setattr(ck, "file_sha256", lambda p: read.append(Path(p).name) or hashed(p))
    assert ck.latest_checkpoint(tmp_path) == path and len(read) == len(set(read)) == 6
    ck.load_checkpoint(path, quiet=True)
    assert len(read) == 6
    with open(path/"model.safetensors", "r+b") as f:
        f.seek(-2, 2)
        f.write(b"?")
    os.utime(path/"model.safetensors", (0, 0))
    with pytest.raises(ck.CheckpointError, match="its content has changed"): ck.load_checkpoint(path, quiet=True)
    assert len(read) == 12


def test_what_training_does_while_a_snapshot_is_written_does_not_show(tmp_path):
    "Weights, moments and position are of one instant, although a thread writes while they change."
    import threading
    model, moments, memory = Told(0), torch.zeros(200_000), ck.SnapshotMemory()
    for step in range(1, 6):
        model.tensor.fill_(step)
        moments.fill_(step)
        snapshot = ck.snapshot_checkpoint(
            model, tmp_path, stage="s", step=step, epoch=0, loss=1.0,
            trainer_state={"position": step, "moments": moments, "step": torch.tensor(float(step))}, memory=memory,
            keep_last_n=0
        )
        writer = threading.Thread(target=ck.write_snapshot, args=(snapshot,))
        writer.start()
        while writer.is_alive():
            model.tensor.add_(1)
            moments.add_(1)
        writer.join()
    for record in ck.list_checkpoints(tmp_path/"s"):
        loaded = ck.load_checkpoint(record.path, other := Weights(), quiet=True)
        assert other.tensor.unique().tolist() == loaded.trainer_state["moments"].unique().tolist() == [
            loaded.trainer_state["position"]
        ] == [record.step]
    size = memory.nbytes
    class Full(ck.Disk):
        def save(self, path, value): raise OSError(errno.ENOSPC, "No space left on device")
    kept, ck.DISK = ck.DISK, Full()
    try:
        with pytest.raises(ck.CheckpointError, match="No space left"):
            ck.write_snapshot(
                ck.snapshot_checkpoint(
                    model, tmp_path, stage="s", step=9, epoch=0, loss=1.0, trainer_state={"moments": moments},
                    memory=memory
                )
            )
    finally: ck.DISK = kept
    assert memory.nbytes == size >= 800_000       # given back, also when writing failed


def test_a_slow_list_is_remembered_and_looked_at_again(tmp_path, monkeypatch):
    """On a slow file system a second list looks at two things for each checkpoint; what changed is seen, and a fast
    disk is always looked at."""
    paths = [save(tmp_path, step, keep_last_n=0, is_best=False) for step in range(1, 5)]
    reads, opened = [], ck.read_manifest
    monkeypatch.setattr(ck, "read_manifest", lambda folder: reads.append(Path(folder).name) or opened(folder))
    monkeypatch.setattr(ck, "SLOW_LISTING", 1e9)
    ck.list_checkpoints(tmp_path)
    ck.list_checkpoints(tmp_path)
    assert len(reads) == 8             # a fast disk: nothing is remembered
    monkeypatch.setattr(ck, "SLOW_LISTING", -1.0)
    first = ck.list_checkpoints(tmp_path)
    assert ck.list_checkpoints(tmp_path) == first and len(reads) == 12
    first[0].problem = "mine"          # what a caller does to a record stays with the caller
    assert ck.list_checkpoints(tmp_path)[0].problem == "" and len(reads) == 12
    (paths[1]/"extra.safetensors").unlink()
    shutil.rmtree(paths[2])
    assert [(r.step, r.complete) for r in ck.list_checkpoints(tmp_path)] == [(1, True), (2, False), (4, True)]
    os.truncate(paths[3]/"model.safetensors", 5)
    # as the notebook says
    assert ck.list_checkpoints(tmp_path)[-1].complete and not ck.list_checkpoints(tmp_path, fresh=True)[-1].complete
    assert ck.latest_checkpoint(tmp_path, quiet=True) == paths[0]


def test_a_list_reads_one_file_each(tmp_path, monkeypatch):
    for step in range(1, 4): save(tmp_path, step, keep_last_n=0, is_best=False)
    opened = []
    def seen(real):
        def opening(path, *args, **options):
            if not isinstance(path, int): opened.append(Path(path).name)
            return real(path, *args, **options)
        return opening
    monkeypatch.setattr("builtins.open", seen(open))
    monkeypatch.setattr(os, "open", seen(os.open))
    records = ck.list_checkpoints(tmp_path)
    monkeypatch.undo()
    assert (
        opened == [ck.MANIFEST]*3
        and [(r.step, r.loss, r.complete) for r in records] == [(1, 1.0, True), (2, .5, True), (3, 1/3, True)]
    )


def test_removing_frees_space_before_the_trash(tmp_path, monkeypatch):
    "On a drive with a trash, what lands there is empty; a file with a second name is left whole."
    trash, unlink = {}, os.unlink
    def to_trash(path, *args, dir_fd=None, **kwargs):
        if dir_fd is not None:
            trash[path] = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_size
            return unlink(path, dir_fd=dir_fd)
        trash[Path(path).name] = os.lstat(path).st_size
        return unlink(path)
    for mode, is_empty in (("ext4", False), ("fuse.drive", True)):
        monkeypatch.setattr(ck, "_file_system", lambda path: mode)
        monkeypatch.setattr(os, "unlink", to_trash)
        out = tmp_path/mode
        for step in (1, 2, 3): save(out, step, keep_last_n=0, is_best=step == 2)
        best = out/"stage1_text"/"checkpoint-best"
        trash.clear()
        ck.prune_checkpoints(out, 1)
        assert trash and (max(trash.values()) == 0) == is_empty
        assert ck.verify_checkpoint(best) == [] and len(visible(out)) == 3           # step 2 stays: it is the best
        records = ck.list_checkpoints(out)
        shutil_target = next(r for r in records if r.step == 2 and r.path != best).path
        ck.DISK.remove(shutil_target)
        assert ck.verify_checkpoint(best) == [], mode     # it shares its bytes with what was removed
        monkeypatch.undo()


def test_latest_says_what_it_passed_over(tmp_path, capsys):
    good, bad = save(tmp_path, 1, is_best=False), save(tmp_path, 2, is_best=False)
    with open(bad/"model.safetensors", "r+b") as f:
        f.seek(-2, 2)
        f.write(b"?")
    assert ck.find_checkpoint("latest", tmp_path) == good
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"⚠️  {bad} is not complete: model.safetensors: its content has changed (SHA-256 differs). Using {good} instead"
    ]
    assert ck.find_checkpoint("auto", tmp_path) == good
    with open(good/"model.safetensors", "r+b") as f:
        f.seek(-2, 2)
        f.write(b"?")
    capsys.readouterr()
    assert (
        ck.latest_checkpoint(tmp_path) is None
        and capsys.readouterr().out.count("is not complete: model.safetensors") == 2
    )


def test_manifest_names_cannot_reach_outside(tmp_path):
    folder = save(tmp_path, 1, is_best=False)
    manifest = ck.read_manifest(folder)
    secret = tmp_path/"secret"
    secret.write_text("s")
    manifest["files"]["../../secret"] = {"size": 1, "sha256": ck.file_sha256(secret)}
    manifest["sha256"] = ck._self_hash(manifest)
    (folder/ck.MANIFEST).write_bytes(ck.to_json(manifest))
    assert ck.verify_checkpoint(folder) == ["../../secret: is missing"]


def test_the_one_resumed_from_stays(tmp_path):
    first = save(tmp_path, 1, is_best=False)
    for step in range(2, 8): save(tmp_path, step, protect=[first], is_best=False)
    assert [r.step for r in ck.list_checkpoints(tmp_path)] == [1, 6, 7]
    assert (
        ck.prune_checkpoints(tmp_path, 1, protect=(str(first),))
        and [r.step for r in ck.list_checkpoints(tmp_path)] == [1, 7]
    )


def test_a_clock_that_jumps_and_a_run_that_goes_back(tmp_path, monkeypatch):
    class Past(ck.datetime):
        @classmethod
        def now(cls, tz=None): return ck.datetime(2001, 1, 1).astimezone()
    save(tmp_path, 300, is_best=False)
    monkeypatch.setattr(ck, "datetime", Past)
    again = save(tmp_path, 120, is_best=False)
    assert again.name.endswith("20010101_000000") and ck.latest_checkpoint(tmp_path) == again
    assert [r.step for r in ck.list_checkpoints(tmp_path)] == [120, 300]


class Attack:
    def __init__(self, path): self.path = str(path)

    def __reduce__(self): return os.system, (f"touch {self.path}",)


def legacy(folder, **files):
    "An old checkpoint: LoRA weights, and `files` pickled by torch."
    folder.mkdir(parents=True)
    save_file({"lora": torch.ones(2)}, folder/"adapter_model.safetensors")
    for name, value in files.items(): torch.save(value, folder/name.replace("_pt", ".pt"))
    return folder


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("where", ["config_pt", "trainer_state_pt"])
@pytest.mark.parametrize("how", ["torch", "pickle2", "pickle4", "inside", "as_key_class"])
def test_nothing_in_a_checkpoint_can_run(tmp_path, where, how):
    folder, owned = legacy(tmp_path/"checkpoint-epoch0-step100"), tmp_path/"owned"
    path, attack = folder/where.replace("_pt", ".pt"), Attack(tmp_path/"owned")
    if how == "torch": torch.save(attack, path)
    elif how == "inside": torch.save({"epoch": 0, "step": 1, "config": [{"x": attack}]}, path)
    elif how == "as_key_class": path.write_bytes(b"\x80\x02ccad_mllm.config\nopen\n" + pickle.dumps(attack, 2)[2:])
    else: path.write_bytes(pickle.dumps(attack, int(how[-1])))
    with pytest.raises(ck.CheckpointError, match=path.name): ck.load_checkpoint(folder, quiet=True)
    assert ck.list_checkpoints(tmp_path)[0].step == 100 and not owned.exists()


def test_real_old_config():
    root = os.environ.get("OMNI_CAD_ROOT")
    folder = Path(root).parent/"legacy-checkpoint" if root else None
    if not folder or not (folder/"config.pt").exists():
        pytest.skip("set OMNI_CAD_ROOT to a folder beside which legacy-checkpoint/config.pt lies")
    config, train, notes = ck.read_config(folder)
    assert (config.llm_model_name, config.lora_r, config.lora_alpha, config.max_seq_length, config.dtype) == (
        "Qwen/Qwen3-8B", 64, 128, 32768, "bfloat16"
    )
    assert (config.sequence_format, config.image_encoder_name, config.point_encoder_name) == (
        "json", "facebook/dinov2-large", "michelangelo"
    )
    assert (
        train is None
        and notes == ["old configuration: not used here: device, freeze_text_encoder, pad_token_id, vocab_size"]
    )


@pytest.mark.parametrize(
    "values",
    [
        {}, {"lora_r": 16}, {"lora_r": -1, "future": 1}, {"dtype": torch.float16},
        {"lora_target_modules": ["q_proj"], "max_seq_length": 4000.5}, {"num_points": None}
    ],
    ids=["empty", "few", "refused", "dtype", "odd", "none"]
)
def test_old_config_variants(tmp_path, values):
    class CADMLLMConfig_: pass
    import cad_mllm.config as module
    kept = module.CADMLLMConfig
    CADMLLMConfig_.__module__ = "cad_mllm.config"
    CADMLLMConfig_.__qualname__ = "CADMLLMConfig"
    instance = CADMLLMConfig_()
    instance.__dict__.update(values)
    folder = legacy(tmp_path/"checkpoint-best")
    try:
        module.CADMLLMConfig = CADMLLMConfig_
        torch.save(instance, folder/"config.pt")
    finally: module.CADMLLMConfig = kept
    config, _, _ = ck.read_config(folder)
    assert (
        isinstance(config, CADMLLMConfig) and config.sequence_format == "json"
        and config.lora_r == (16 if values.get("lora_r") == 16 else 32)
    )
    assert config.dtype == ("float16" if "dtype" in values else "bfloat16")


def test_an_old_run_goes_on_in_the_new_format(tmp_path, capsys):
    old = legacy(tmp_path/"stage1_text"/"checkpoint-epoch0-step100", trainer_state_pt={"epoch": 0, "step": 100})
    class Model(Weights):
        def load_weights(self, folder): return []
    found = ck.find_checkpoint("latest", tmp_path)
    loaded = ck.load_checkpoint(found, Model())
    assert (
        found == old and loaded.old_format
        and capsys.readouterr().out.splitlines()[1:3] == [
            "  ✓ Loaded LLM with LoRA adapters", "  ✓ Resuming from epoch 0, step 100"
        ]
    )
    new = save(tmp_path, 101, keep_last_n=1, protect=[old])
    assert ck.latest_checkpoint(tmp_path) == new and not ck.read_record(new).old_format and old.exists()


def test_the_best_of_years_ago_is_kept(tmp_path):
    old = legacy(tmp_path/"stage1_text"/"checkpoint-best", trainer_state_pt={"epoch": 0, "step": 100})
    new = save(tmp_path, 101, protect=[old])
    assert (
        ck.read_record(old).step == 101 and not ck.read_record(old).old_format and ck.latest_checkpoint(tmp_path) == new
    )
    kept = ck.read_record(old.with_name("checkpoint-best-old"))
    assert kept.old_format and kept.complete and kept.step == 100


def test_cut_off_by_a_file_size_limit(tmp_path):
    "A real failing write, in a real process: the limit stands in for a full disk."
    code = ("import resource, signal, sys; sys.path[:0] = sys.argv[2:]\n"
            "import test_checkpoint as t; from pathlib import Path\n"
            "out = Path(sys.argv[1]); t.save(out, 1)\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
            "try: t.save(out, 2)\n"
            "except t.ck.CheckpointError as e: print(e)\n")
    pytest.importorskip("resource")
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(here), str(here.parent)], capture_output=True, text=True
    )
    assert "could not be saved" in done.stdout and "earlier checkpoints are untouched" in done.stdout, done.stderr
    assert check(tmp_path, at_least=1) == 1 and not list((tmp_path/"stage1_text").glob(".*"))


@pytest.mark.parametrize("use_lora", [False, True], ids=["full", "lora"])
def test_the_real_model_goes_on_to_the_last_bit(tmp_path, capsys, use_lora):
    """Every loss and every weight after a save and a load into a model that was made differently are those of the
    unbroken run."""
    import numpy as np
    from cad_mllm.data import Sample
    from cad_mllm.models import CADMLLMModel
    from cad_mllm.data import FAMILIES
    config, train_config = recipe("tiny")
    config.use_lora = use_lora
    config.lora_r = 4
    config.llm_config = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16
    )

    def start(seed):
        torch.manual_seed(seed)
        model = CADMLLMModel(config).train()
        optimizer = torch.optim.AdamW(model.parameter_groups(train_config, 1e-2), lr=1e-2)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1/(1 + s))

    def steps(model, optimizer, scheduler, batch, num):
        for _ in range(num):
            out = model(batch)
            (out["loss_sum"]/out["num_tokens"]).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            yield out["loss_sum"].item()

    run, rng, samples = start(0), np.random.default_rng(0), []
    for _i, family in enumerate(sorted(FAMILIES)[:2]):
        program, caption = FAMILIES[family](rng)
        samples.append(
            Sample(
                caption=caption, target=run[0].codec.split(program, 0)[1], modalities=("text", "points", "image"),
                image=rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
                points=rng.normal(size=(64, 6)).astype(np.float32)
            )
        )
    batch = run[0].builder.collate(samples)
    list(steps(*run, batch, 2))
    saved = ck.save_checkpoint(
        run[0], tmp_path, stage="stage3_all", step=2, epoch=0, loss=0.5, train_config=train_config,
        trainer_state={"optimizer": ck.optimizer_state(run[1]), "scheduler": run[2].state_dict()}
    )
    unbroken = list(steps(*run, batch, 2))

    resumed = start(1)
    capsys.readouterr()
    loaded = ck.load_checkpoint(ck.find_checkpoint("latest", tmp_path), resumed[0])
    done = ck.restore_optimizer(*resumed[1:], loaded.trainer_state)
    ck.set_rng_state(loaded.trainer_state["rng"])
    assert (
        done == ck.Restored(True, True) and loaded.notes == []
        and (loaded.config, loaded.train_config) == (config, train_config)
    )
    assert capsys.readouterr().out.splitlines() == [
        f"Loading checkpoint from: {saved}", f"  ✓ Loaded LLM{' with LoRA adapters' if use_lora else ''}",
        "  ✓ Loaded image module", "  ✓ Loaded point cloud module", "  ✓ Resuming from epoch 0, step 2, loss 0.5000",
        "Restoring optimizer/scheduler state...", "  ✓ Restored optimizer state", "  ✓ Restored scheduler state",
        "  ✓ Resuming from step 2"
    ]
    assert list(steps(*resumed, batch, 2)) == unbroken
    after, expected = resumed[0].state_dict(), run[0].state_dict()
    trained = set(resumed[0].trainable_names())
    assert trained and all(torch.equal(after[n], expected[n]) for n in trained)
    assert ck.verify_checkpoint(saved) == [] and CADMLLMModel.from_pretrained(saved).config == config


# -- every older form

OLD_NAMES = {
    "first form": "stage1_text/checkpoint-epoch0-step100", "an epoch's end": "stage1_text/checkpoint-epoch0",
    "best": "stage1_text/checkpoint-best", "a stage's model": "stage1_text_model",
    "second form": "stage3_all/checkpoint-step552-loss0.0385-20251130_014518"
}
FRESH = ["     Using fresh optimizer/scheduler", "     (This is normal for older checkpoints)"]


@pytest.fixture(scope="module")
def lora():
    """A small real model with adapters, and what it would have left behind years ago: its weights, a pickled
    configuration, an optimizer that has made a step."""
    from dataclasses import replace
    from cad_mllm.models import CADMLLMModel
    config = replace(
        recipe("tiny")[0], use_lora=True, lora_r=2, sequence_format="json", projector_hidden_dim=16,
        image_encoder_name="", point_encoder_hidden_dim=16, num_point_tokens=2, num_points=16,
        llm_config=dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
            head_dim=16
        )
    )
    model = CADMLLMModel(config)
    with torch.no_grad():
        for p in model.parameters(): p.requires_grad and p.add_(.1*torch.randn_like(p))
    return model


def optimizers(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1/(1 + s))


def stepped(model):
    optimizer, scheduler = optimizers(model)
    for p in model.parameters(): p.grad = torch.full_like(p, .5) if p.requires_grad else None
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return optimizer, scheduler


def pickled(name, values, path):
    "An instance of a class of that name in cad_mllm.config, with any fields, as an older version would have saved it."
    import cad_mllm.config as module
    kept, cls = getattr(module, name), type(name, (), {"__module__": "cad_mllm.config"})
    instance = cls()
    instance.__dict__.update(values)
    setattr(module, name, cls)
    try:
        if path: torch.save(instance, path)
        return instance
    finally: setattr(module, name, kept)


STATES = {
    "no trainer_state": (None, ["  ⚠️  No trainer_state.pt found in checkpoint", *FRESH]),
    "epoch and step": ({}, ["  ⚠️  No optimizer state in trainer_state.pt", *FRESH]),
    "optimizer and scheduler, no RNG": ("optimizer", [])
}

@pytest.mark.parametrize("state", list(STATES))
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"])
def test_every_older_form_loads_goes_on_and_can_be_upgraded(lora, tmp_path, capsys, state, weights):
    "Weights, words, optimizer; then the next save is in this format; then the same of the upgraded one."
    from cad_mllm.models import CADMLLMModel
    form = list(OLD_NAMES.values())[
        (
            list(STATES).index(state)*3
            + ["adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"].index(weights)
        ) % 5
    ]
    folder, (kind, words) = tmp_path/form, STATES[state]
    lora.save_pretrained(folder)
    for name in ("cad_mllm_config.json", "tokenizer.json", "tokenizer_config.json"): (folder/name).unlink()
    if weights != "adapter_model.safetensors":
        torch.save(load_file(folder/"adapter_model.safetensors"), folder/weights)
        (folder/"adapter_model.safetensors").unlink()
    pickled("CADMLLMConfig", lora.config.to_dict() | {"device": "cuda"}, folder/"config.pt")
    optimizer, scheduler = stepped(lora)
    told = {"epoch": 0, "step": 100}
    if kind == "optimizer":
        told |= {
            "loss": .5, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
            "timestamp": "2025-11-30T01:45:18", "config": {"output_dir": Path("/content/drive")}
        }
    if kind is not None: torch.save(told, folder/ck.STATE)
    lora.load_weights(folder)

    def goes_on(path):
        model = CADMLLMModel(lora.config, seed=9)
        capsys.readouterr()
        loaded = ck.load_checkpoint(ck.find_checkpoint("latest", tmp_path), model)
        said = capsys.readouterr().out.splitlines()
        assert (
            loaded.path == path and said[1:3] == ["  ✓ Loaded LLM with LoRA adapters", "  ✓ Loaded point cloud module"]
            and [line for line in said if line in words] == words
        )
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                lora.saved_files()["adapter_model.safetensors"].values(),
                model.saved_files()["adapter_model.safetensors"].values()
            )
        )
        assert all(
            torch.equal(a, b)
            for a, b in zip(lora.point_projector.state_dict().values(), model.point_projector.state_dict().values())
        )
        mine, schedule = optimizers(model)
        done = ck.restore_optimizer(mine, schedule, loaded.trainer_state, quiet=True)
        assert (done.optimizer, done.scheduler) == (kind == "optimizer",)*2
        if kind == "optimizer":
            assert all(
                torch.equal(mine.state[a]["exp_avg"], optimizer.state[b]["exp_avg"])
                for a, b in zip(mine.param_groups[0]["params"], optimizer.param_groups[0]["params"])
            )
        assert (
            loaded.config == lora.config
            and loaded.metadata["step"] == (100 if kind is not None else loaded.metadata["step"])
        )
        return loaded
    assert goes_on(folder).old_format
    new = ck.upgrade_checkpoint(folder)
    aside = folder.with_name(f"{folder.name}-old")
    assert (
        new == folder and ck.verify_checkpoint(new) == [] and "upgraded" in capsys.readouterr().out
        and ck.read_record(aside).complete
    )
    shutil.rmtree(aside)
    assert not goes_on(new).old_format
    later = ck.save_checkpoint(
        lora, tmp_path, stage="stage1_text", step=101, epoch=0, loss=.4,
        trainer_state={"optimizer": ck.optimizer_state(optimizer, lora.named_parameters())}
    )
    assert ck.latest_checkpoint(tmp_path) == later and not ck.read_record(later).old_format and new.exists()


def test_the_real_old_checkpoint_can_be_upgraded(tmp_path, capsys):
    root = os.environ.get("OMNI_CAD_ROOT")
    source = Path(root).parent/"legacy-checkpoint" if root else None
    if not source or not (source/"config.pt").exists():
        pytest.skip("set OMNI_CAD_ROOT to a folder beside which legacy-checkpoint/config.pt lies")
    folder = legacy(tmp_path/"stage1_text"/"checkpoint-epoch0-step100", trainer_state_pt={"epoch": 0, "step": 100})
    shutil.copy(source/"config.pt", folder/"config.pt")
    before = ck.read_config(folder)[0]
    new = ck.upgrade_checkpoint(folder, keep_original=False)
    loaded = ck.load_checkpoint(new, quiet=True)
    assert (
        not loaded.old_format and loaded.config == before and loaded.config.lora_r == 64
        and not (new/"config.pt").exists() and loaded.metadata["step"] == 100
    )
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@needs_fork
def test_an_upgrade_that_is_killed_leaves_the_original(run_dir):
    "At every disk operation: there is always a complete one, and an upgrade can be done again."
    folder = legacy(
        run_dir/"s"/"checkpoint-epoch0-step100", trainer_state_pt={"epoch": 0, "step": 100},
        image_projector_pt={"w": torch.ones(3)}
    )
    died = 0

    def child(at, path):
        ck.DISK = DyingDisk(at)
        ck.upgrade_checkpoint(path, quiet=True)
    for at in range(1, 100):
        path = ck.latest_checkpoint(run_dir, quiet=True)
        _, status = os.waitpid(in_child(child, at, path), 0)
        newest = ck.latest_checkpoint(run_dir, quiet=True)
        assert newest is not None and ck.load_checkpoint(newest, quiet=True).metadata["step"] == 100
        if not os.WIFSIGNALED(status): break
        died += 1
        if not ck.is_old_format(newest): break         # it died after the new one was there
    assert died > 5 and not ck.is_old_format(ck.latest_checkpoint(run_dir, quiet=True)) and folder.parent.exists()


def test_an_adapter_more_and_a_projector_less(lora, capsys):
    "The state of a model is put into the optimizer of another: what both have is restored, the rest is named."
    from dataclasses import replace
    from cad_mllm.models import CADMLLMModel
    train_config = recipe("tiny")[1]
    def start(config):
        model = CADMLLMModel(config)
        optimizer = torch.optim.AdamW(model.parameter_groups(train_config, 1e-2), lr=1e-2)
        return model, optimizer, dict(model.named_parameters())
    names = ("q_proj", "v_proj")
    one, optimizer, parameters = start(replace(lora.config, lora_target_modules=names))
    for i, p in enumerate(parameters.values()): p.grad = torch.full_like(p, 1. + i) if p.requires_grad else None
    optimizer.step()
    state = ck.plain({"step": 7, "optimizer": ck.optimizer_state(optimizer)})
    other, fresh, there = start(replace(lora.config, lora_target_modules=(*names, "k_proj"), point_encoder_name=""))
    done = ck.restore_optimizer(fresh, None, state)
    said = capsys.readouterr().out
    both = [n for n, p in there.items() if p.requires_grad and n in parameters]
    added = [n for n in there if "k_proj.lora" in n]
    gone = [n for n, p in parameters.items() if p.requires_grad and n.startswith("point_")]
    assert done.optimizer and both and len(added) == 2 and gone
    for n in both: assert torch.equal(fresh.state[there[n]]["exp_avg"], optimizer.state[parameters[n]]["exp_avg"]), n
    for n in added: assert there[n] not in fresh.state and n in said
    assert any(n in said for n in gone) and "optimizer state of parameters that are not here" in said
    wider, fresh, there = start(replace(lora.config, lora_target_modules=names, lora_r=4))
    done = ck.restore_optimizer(fresh, None, state, quiet=True)
    assert done.optimizer and any("shape" in note for note in done.notes)
    assert all((p in fresh.state) == (p.requires_grad and ".lora_" not in n) for n, p in there.items())


@pytest.fixture
def trees(monkeypatch):
    "As if every file above 3,000 bytes were a large one, in pieces of 1,000."
    monkeypatch.setattr(ck, "TREE_FROM", 3000)
    monkeypatch.setattr(ck, "PIECE", 1000)


def plain_tree(data):
    "The tree of bytes in pieces of 1,000, as it is defined."
    pieces = [hashlib.sha256(data[at:at + 1000]).digest() for at in range(0, len(data), 1000)]
    return hashlib.sha256(b"".join(pieces)).hexdigest()


@given(st.lists(st.binary(max_size=3500), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tree_is_the_same_however_it_is_written_and_read(trees, tmp_path, parts):
    data = b"".join(parts)
    entry = ck.write_hashed(tmp_path/"file", lambda f: [f.write(p) for p in parts])
    large = {"size": len(data), "tree": plain_tree(data)}
    assert entry == (large if len(data) > 3000 else {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    assert ck.file_tree(tmp_path/"file") == ck.file_tree(tmp_path/"file", 3) == plain_tree(data)


def test_large_writes_are_hashed_by_threads_and_come_out_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(ck, "TREE_FROM", 3 << 20)
    data = random.Random(0).randbytes((9 << 20) + 5)
    parts = [data[:100], data[100:(2 << 20) + 7], data[(2 << 20) + 7:]]
    entry = ck.write_hashed(tmp_path/"file", lambda f: [f.write(p) for p in parts])
    pieces = [hashlib.sha256(data[at:at + (1 << 20)]).digest() for at in range(0, len(data), 1 << 20)]
    assert entry == {"size": len(data), "tree": hashlib.sha256(b"".join(pieces)).hexdigest()}
    assert (tmp_path/"file").read_bytes() == data
    assert ck.file_tree(tmp_path/"file", 4) == entry["tree"]


def test_a_checkpoint_with_trees_is_proved_as_one_without(trees, tmp_path):
    "It loads, a changed or cut file shows, and its manifest says that it is of format 2."
    path = save(tmp_path, 1, is_best=False)
    manifest = ck.read_manifest(path)
    assert manifest["format"] == 2
    kinds = {name: sorted(entry) for name, entry in manifest["files"].items()}
    assert kinds["model.safetensors"] == ["size", "tree"] and ["sha256", "size"] in kinds.values()
    assert ck.verify_checkpoint(path) == [] and ck.latest_checkpoint(tmp_path) == path
    whole = (path/"model.safetensors").read_bytes()
    for at in (0, 999, 1000, len(whole)//2, len(whole) - 1):
        (path/"model.safetensors").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        assert ck.verify_checkpoint(path) == ["model.safetensors: its content has changed (SHA-256 differs)"]
    (path/"model.safetensors").write_bytes(whole[:-1])
    assert "bytes instead of" in ck.verify_checkpoint(path)[0]
    (path/"model.safetensors").write_bytes(whole[1000:2000] + whole[:1000] + whole[2000:])    # pieces in another order
    assert ck.verify_checkpoint(path) == ["model.safetensors: its content has changed (SHA-256 differs)"]


def test_a_manifest_from_before_trees_proves_large_files_as_before(tmp_path, monkeypatch):
    path = save(tmp_path, 1, is_best=False)
    monkeypatch.setattr(ck, "TREE_FROM", 1000)
    assert ck.read_manifest(path)["format"] == 1 and ck.verify_checkpoint(path) == []
    whole = (path/"model.safetensors").read_bytes()
    (path/"model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert ck.verify_checkpoint(path) == ["model.safetensors: its content has changed (SHA-256 differs)"]


@pytest.mark.parametrize(
    "entry", [dict(tree=None), dict(tree=""), dict(tree=1), dict(tree=[]), dict(tree={}, sha256="")]
)
def test_an_entry_that_lists_no_hash_proves_nothing(entry, trees, tmp_path):
    path = save(tmp_path, 1, is_best=False)
    manifest = ck.read_manifest(path)
    manifest["files"]["model.safetensors"] = {"size": (path/"model.safetensors").stat().st_size, **entry}
    manifest["sha256"] = ck._self_hash(manifest)
    (path/ck.MANIFEST).write_bytes(ck.to_json(manifest))
    assert ck.verify_checkpoint(path) == ["model.safetensors: its content has changed (SHA-256 differs)"]


def test_a_file_with_a_tree_is_brought_and_proved(trees, tmp_path):
    "To an output folder: copied, read back, and refused where the source is not what was saved."
    from cad_mllm.checkpoints.transfer import OutputFolder, SourceError, Transfer, advance
    source = save(tmp_path/"local", 1, is_best=False)
    out = OutputFolder(tmp_path/"drive")
    (tmp_path/"drive").mkdir()
    transfer = Transfer(source, tmp_path/"drive"/source.name)
    while not advance(transfer, out): pass
    assert ck.verify_checkpoint(tmp_path/"drive"/source.name) == []
    whole = (source/"model.safetensors").read_bytes()
    (source/"model.safetensors").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(SourceError, match="content has changed"):
        again = Transfer(source, tmp_path/"drive"/"again")
        while not advance(again, out): pass
