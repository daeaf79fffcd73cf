"""Delivery to a folder that fails as Drive does: away for minutes, no links, late to show, slow, full, half-written,
wrong when read back."""
import errno, json, os, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors.torch import save_file

from chapters import Chapter
ck = Chapter("cad_mllm.checkpoints")
from chapters import Chapter
dl = Chapter("cad_mllm.checkpoints")
from cad_mllm.checkpoints.run_files import RunFiles
from cad_mllm.config import recipe

torch.set_num_threads(1)
STAGE = "stage1_text"


class Weights:
    "A model of two files whose content says which step they are of."
    def __init__(self, step=0, size=200): self.config, self.tensor = recipe("tiny")[0], torch.full((size,), float(step))

    def save_pretrained(self, folder):
        save_file({"w": self.tensor}, Path(folder)/"model.safetensors")
        (Path(folder)/"sub").mkdir()
        (Path(folder)/"sub"/"tokenizer.json").write_text("{}")


def writer(step, best=False, name=None, size=200, serial=None):
    "A checkpoint of a step, for `submit`."
    def write(root):
        final = Path(root)/(name if name and name.endswith("_model") else f"{STAGE}/{name or f'checkpoint-step{step}'}")
        when = ck.datetime.fromtimestamp(1_700_000_000 + step)
        metadata = ck.make_metadata(
            stage=STAGE, step=step, epoch=0, loss=1/(step + 1), val_loss=None, is_best=best,
            serial=step if serial is None else serial, when=when
        )
        def fill(folder):
            Weights(step, size).save_pretrained(folder)
            return {ck.METADATA: ck.DISK.write(folder/ck.METADATA, ck.to_json(metadata))}
        return ck.publish(final, fill, metadata, replace=bool(name))
    return write


class Killed(BaseException):
    "The process dies here."


class Clock:
    now = 0.0
    def __call__(self): return self.now
    def sleep(self, seconds): self.now += max(seconds, .01)


class Drive(dl.OutputFolder):
    """A folder with the bad habits of Drive: `fault` is called with the name of every operation and may raise; links
    never work; what is made shows `late` seconds later."""
    def __init__(self, root, clock, late=0.0, slow=0.0):
        super().__init__(root)
        self.clock = clock
        self.late = late
        self.slow = slow
        self.fault = lambda op, path: None
        self.calls = []
        self.made = {}

    def _call(self, op, path):
        self.calls.append(op)
        self.clock.now += self.slow
        self.fault(op, path)

    def _hidden_yet(self, path):
        "Whether a path, or a folder it lies in, was made so recently that it cannot be seen."
        return any(self.clock() - self.made.get(str(p), -1e9) < self.late for p in (Path(path), *Path(path).parents))

    def check(self):
        self._call("check", self.root)
        super().check()
    def mkdir(self, path):
        self._call("mkdir", path)
        if not os.path.isdir(path): self.made.setdefault(str(path), self.clock())
        super().mkdir(path)
    def size(self, path):
        self._call("stat", path)
        if self._hidden_yet(path): raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return super().size(path)
    def read(self, path):
        self._call("read", path)
        if self._hidden_yet(path): raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return super().read(path)
    def rename(self, old, new):
        self._call("rename", new)
        if self._hidden_yet(old): raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(old))
        super().rename(old, new)
        if not str(new).endswith(tuple("0123456789")) or "tmp-" not in str(new): self.made[str(new)] = self.clock()
        self._call("renamed", new)
    def link(self, source, target):
        self._call("link", target)
        raise OSError(errno.EPERM, "Operation not permitted")
    def sync(self, path): self._call("sync", path)
    def put(self, path, data):
        self._call("write", path)
        super().put(path, data)
        self.made[str(path)] = self.clock()
    def copy(self, source, target):
        self._call("copy", target)
        digest = super().copy(source, target)
        self.made.setdefault(str(target), self.clock())
        self._call("copied", target)
        return digest
    def sha256(self, path):
        self._call("read", path)
        if self._hidden_yet(path): raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return super().sha256(path)
    def records(self):
        self._call("list", self.root)
        return super().records()
    def problems(self, path):
        self._call("read", path)
        return super().problems(path)
    def remove(self, folder):
        self._call("remove", folder)
        super().remove(folder)
    def unlink(self, path):
        self._call("unlink", path)
        super().unlink(path)


@pytest.fixture
def place():
    "A folder in memory where there is one, so that fsync costs nothing."
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() and os.access(shm, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def open_delivery(place, drive, **more):
    return dl.Delivery(
        place/"drive",
        **{
            "staging_dir": place/"local", "keep_last_n": 2, "background": False, "out": drive, "clock": drive.clock,
            "sleep": drive.clock.sleep, "say": lambda text: None
        } | more
    )


def named(root):
    "Steps of all that carries a final name, none of which may be broken."
    found = {}
    for path in [
        p for pattern in ("checkpoint-*", "*_model") for p in Path(root).rglob(pattern)
        if not any(x.startswith(".") for x in p.relative_to(root).parts)
    ]:
        assert ck.verify_checkpoint(path) == [], path
        found[path.relative_to(root).as_posix()] = ck.read_record(path).step
    return found


def leftovers(root): return [p.name for p in Path(root).rglob(".*")] + [p.name for p in Path(root).rglob("*.tmp")]


def run_dry(delivery, seconds=100_000):
    assert delivery.flush(seconds), delivery.status()


def fail_with(number, *ops, times=10**9):
    "A fault: these operations fail with an errno, so many times."
    left = [times]
    def fault(op, path):
        if (not ops or op in ops) and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
    return fault


def nothing(op, path): pass


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSPC])
def test_training_goes_on_while_the_folder_fails_and_all_is_delivered_when_it_returns(place, number):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive)
    delivery.submit(writer(1))
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step1": 1}
    drive.fault = fail_with(number)
    for step in range(2, 7):
        delivery.submit(writer(step, best=step == 3))
        drive.clock.now += 600
    status = delivery.status()
    # newest two and the best
    assert status["pending"] == 3 and status["failing_since"] and os.strerror(number) in status["last_error"]
    assert set(named(place/"local").values()) == {3, 5, 6} and not delivery.flush(1000)
    assert set(named(place/"drive").values()) == {1}
    drive.fault = nothing
    run_dry(delivery)
    assert named(place/"drive") == {
        f"{STAGE}/checkpoint-best": 3, **{f"{STAGE}/checkpoint-step{i}": i for i in (3, 5, 6)}
    }
    assert delivery.status()["failing_since"] is None and delivery.close()
    assert leftovers(place/"drive") == []


@pytest.mark.parametrize("at", range(1, 36))
def test_any_single_operation_may_fail_once(place, at):
    "The n-th operation fails: before it did anything, or after it did everything."
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive, keep_last_n=1)
    delivery.submit(writer(1, best=True))
    count = [0]
    def fault(op, path):
        count[0] += 1
        if count[0] == at: raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    drive.fault = fault
    delivery.submit(writer(2, best=True))
    assert {1, 2} & set(named(place/"drive").values())
    run_dry(delivery)
    if count[0] < at: pytest.skip(f"a delivery takes only {count[0]} operations")
    assert named(place/"drive") == {f"{STAGE}/checkpoint-best": 2, f"{STAGE}/checkpoint-step2": 2}
    delivery.submit(writer(3))
    run_dry(delivery)
    assert leftovers(place/"drive") == []


def test_what_shows_late_is_not_copied_twice(place):
    drive = Drive(place/"drive", Clock(), late=30.0, slow=.005)
    delivery = open_delivery(place, drive)
    delivery.submit(writer(1))
    run_dry(delivery)
    # two files and the metadata, once each
    assert drive.calls.count("copy") == 3 and drive.calls.count("copied") == 3
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step1": 1}


def test_a_half_copied_and_a_wrongly_read_file_never_get_a_final_name(place):
    drive, seen = Drive(place/"drive", Clock()), []
    delivery = open_delivery(place, drive)
    def fault(op, path):
        if op == "copied" and len(seen) < 6:
            seen.append(path)
            data = bytearray(Path(path).read_bytes())
            if len(seen) % 2: Path(path).write_bytes(data[:len(data)//2])     # cut short, silently
            else:
                data[-1] ^= 4
                Path(path).write_bytes(data)                  # one bit, silently
        assert not (place/"drive"/STAGE/"checkpoint-step1").exists() or len(seen) == 6
    drive.fault = fault
    delivery.submit(writer(1))
    run_dry(delivery)
    assert len(seen) == 6 and named(place/"drive") == {f"{STAGE}/checkpoint-step1": 1}


def test_a_local_checkpoint_that_has_changed_is_not_delivered_and_the_one_before_is(place):
    "One bit flipped on the local disk: said by name, never brought, and what is whole still comes."
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive)
    drive.fault = fail_with(errno.ENOTCONN)
    for step in (1, 2): delivery.submit(writer(step))
    weights = delivery.local_dir/STAGE/"checkpoint-step2"/"model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    drive.fault = nothing
    delivery.poll()
    run, failed = [], delivery.status()["failed"]
    delivery.say = run.append
    run_dry(delivery)
    assert delivery.status()["failed"] == failed               # it is not mistaken for a fault of the folder
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step1": 1}
    assert any("damaged" in text and "model.safetensors" in text for text in run)


def test_a_rename_that_is_lost_is_made_again(place):
    drive, lost = Drive(place/"drive", Clock()), []
    delivery = open_delivery(place, drive)
    def fault(op, path):
        if op == "renamed" and "step1" in path.name and not lost and not path.name.startswith("."):
            shutil.rmtree(path)
            lost.append(path)
    drive.fault = fault
    delivery.submit(writer(1))
    assert lost and named(place/"drive") == {}
    run_dry(delivery)
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step1": 1}


def test_a_full_folder_gives_up_its_oldest_for_the_newest(place):
    "Five fit; the best and the resumed-from stay whatever happens, and nothing goes before a newer one is proved."
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive, keep_last_n=5, protect=(place/"drive"/STAGE/"checkpoint-step1",))
    def full(op, path):
        if op == "copy" and len([p for p in (place/"drive").rglob("model.safetensors") if ".tmp-" not in str(p)]) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
    drive.fault = full
    for step in range(1, 7):
        delivery.submit(writer(step, best=step == 2))
        run_dry(delivery, 3000)
    # 1 is protected, 2 is the best and checkpoint-best is its copy
    assert named(place/"drive") == {
        f"{STAGE}/checkpoint-best": 2, **{f"{STAGE}/checkpoint-step{i}": i for i in (1, 2, 5, 6)}
    }
    delivery = open_delivery(place, drive, keep_last_n=0)      # keep all: then nothing may go
    delivery.submit(writer(7))
    assert (
        not delivery.flush(3000) and set(named(place/"drive").values()) == {1, 2, 5, 6}
        and delivery.status()["pending"] == 1
    )


def test_nothing_is_pruned_before_a_newer_one_is_proved_there(place):
    drive = Drive(place/"drive", Clock())
    for step in (1, 2, 3): writer(step)(place/"drive")
    newest = place/"drive"/STAGE/"checkpoint-step3"/"model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)                                   # the size is right, the content is not
    delivery = open_delivery(place, drive, keep_last_n=1)
    run_dry(delivery)
    assert {p.name for p in (place/"drive"/STAGE).iterdir()} == {f"checkpoint-step{i}" for i in (1, 2, 3)}
    delivery.submit(writer(4))
    run_dry(delivery)
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step4": 4}


def test_files_are_emptied_before_the_trash_only_where_no_links_are(place):
    for links in (False, True):
        root = place/f"drive{links}"
        drive = (dl.OutputFolder if links else Drive)(root, *(() if links else (Clock(),)))
        writer(1)(root), writer(2)(root)
        held = os.open(root/STAGE/"checkpoint-step1"/"model.safetensors", os.O_RDONLY)      # as the trash holds it
        drive.remove(root/STAGE/"checkpoint-step1")
        assert (os.fstat(held).st_size == 0) is (not links) and not (root/STAGE/"checkpoint-step1").exists()
        os.close(held)


def test_best_is_linked_where_links_work(place):
    delivery = dl.Delivery(place/"drive", place/"local", background=False, say=lambda text: None)
    delivery.submit(writer(1, best=True))
    run_dry(delivery)
    best, source = (place/"drive"/STAGE/n/"model.safetensors" for n in ("checkpoint-best", "checkpoint-step1"))
    assert (
        best.samefile(source) and set(named(place/"drive")) == {f"{STAGE}/checkpoint-best", f"{STAGE}/checkpoint-step1"}
    )


def test_the_backlog_is_bounded_by_count_and_keeps_what_matters(place):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(
        place, drive, keep_last_n=0, max_pending=4, protect=(place/"local"/"x"/STAGE/"checkpoint-step2",)
    )
    delivery.protect = (delivery.local_dir/STAGE/"checkpoint-step2",)
    drive.fault = fail_with(errno.ENOTCONN)
    dropped = []
    for step in range(1, 12):
        delivery.submit(writer(step, best=step == 3, name=f"{STAGE}_model" if step == 5 else None))
        dropped += [e["path"] for e in delivery.poll() if e["event"] == "dropped"]
        assert len(delivery.queue.pending) <= 4 and step in named(place/"local").values()
    assert set(named(place/"local").values()) == {2, 3, 5, 11}      # resumed from, best, end of a stage, newest
    drive.fault = nothing
    run_dry(delivery)
    assert set(named(place/"drive").values()) == {2, 3, 5, 11} and delivery.status()["dropped"] == 7


def test_a_full_local_disk_drops_the_oldest_and_then_writes_straight_to_the_output_folder(place, monkeypatch):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive, keep_last_n=0)
    drive.fault = fail_with(errno.ENOTCONN)
    class Full(ck.Disk):
        "A disk with room for two checkpoints below `local`."
        def write(self, path, data):
            if str(place/"local") in str(path) and len([p for p in (place/"local").rglob("model.safetensors")]) > 2:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return super().write(path, data)
    monkeypatch.setattr(ck, "DISK", Full())
    for step in (1, 2, 3): delivery.submit(writer(step, best=step == 2))
    assert set(named(place/"local").values()) == {2, 3} and delivery.status()["dropped"] == 1
    # 2 is the best, 3 the newest that exists
    with pytest.raises(dl.DeliveryError, match="nowhere"): delivery.submit(writer(4))
    assert set(named(place/"local").values()) == {2, 3}
    drive.fault = nothing
    delivery.submit(writer(4))
    run_dry(delivery)
    assert set(named(place/"drive").values()) == {2, 3, 4}


def test_a_killed_run_leaves_its_backlog_to_the_next_one(place):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive)
    delivery.submit(writer(1))
    drive.fault = fail_with(errno.ENOTCONN)
    for step in (2, 3): delivery.submit(writer(step))
    del delivery                                               # no close: as after SIGKILL
    # still away: a restart goes on, and resumes from the local disk
    delivery = open_delivery(place, drive)
    assert (
        delivery.status()["pending"] >= 2 and delivery.latest(quiet=True) == delivery.local_dir/STAGE/"checkpoint-step3"
    )
    assert delivery.status()["failing_since"]
    drive.fault = nothing
    run_dry(delivery)
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step{i}": i for i in (2, 3)}
    delivery = open_delivery(place, drive)
    assert delivery.status()["pending"] == 0 and delivery.latest(quiet=True).name == "checkpoint-step3"


def test_resume_takes_the_newest_good_one_of_both_places(place):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive)
    delivery.submit(writer(1))
    writer(9)(place/"drive")                                   # from another machine
    assert delivery.latest(quiet=True) == place/"drive"/STAGE/"checkpoint-step9"
    assert delivery.find("checkpoint-step1") == delivery.local_dir/STAGE/"checkpoint-step1"
    weights = place/"drive"/STAGE/"checkpoint-step9"/"model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert delivery.latest(quiet=True) == delivery.local_dir/STAGE/"checkpoint-step1"
    shutil.rmtree(place/"local")
    assert delivery.latest(quiet=True) == place/"drive"/STAGE/"checkpoint-step1"
    drive.fault = fail_with(errno.ENOTCONN)
    # away is not empty
    with pytest.raises(ck.CheckpointError, match="cannot be looked at"): delivery.latest(quiet=True)
    with pytest.raises(dl.DeliveryError, match="mount the drive"): open_delivery(place, drive)


def test_a_kill_while_a_local_best_is_removed_leaves_no_half_of_it(place, monkeypatch):
    "A folder loses its final name before its files go."
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive, keep_last_n=1)
    model = Weights(1)
    class Dying(ck.Disk):
        def remove(self, folder):
            os.remove(next(Path(folder).glob("*.json")))
            raise Killed
    monkeypatch.setattr(ck, "DISK", Dying())
    killed = 0
    for step in (1, 2, 3):
        try: delivery.save(model, stage=STAGE, step=step, epoch=0, loss=1.0, is_best=step == 1)
        except Killed: killed += 1
        named(delivery.local_dir)
    assert killed


def test_a_snapshot_survives_a_failing_disk_and_its_memory_is_used_again(place, monkeypatch):
    """The local disk fails: the same snapshot is written to the output folder, as it was when it was taken; the
    names that were told are the real ones."""
    drive = Drive(place/"drive", Clock())
    writer(5, serial=50)(place/"drive")
    delivery = open_delivery(place, drive, keep_last_n=0)
    model = Weights(7)
    model.saved_files = lambda: {"model.safetensors": {"w": model.tensor}}
    def save(**more):
        return delivery.save(
            model,
            **{
                "stage": STAGE, "step": int(model.tensor[0]), "epoch": 0, "loss": .5,
                "trainer_state": {"moments": model.tensor*2}
            } | more
        )
    class Broken(ck.Disk):
        def mkdir(self, path):
            if str(place/"local") in str(path): raise OSError(errno.EIO, "Input/output error", str(path))
            super().mkdir(path)
    with monkeypatch.context() as m:
        m.setattr(ck, "DISK", Broken())
        first = save()
    memory = delivery.memory.nbytes
    model.tensor.fill_(8)
    second, end = save(), save(name=f"{STAGE}_model")
    run_dry(delivery)
    records = [ck.read_record(p) for p in (first, second, end)]
    assert [(r.complete, r.step, r.serial) for r in records] == [(True, 7, 51), (True, 8, 52), (True, 8, 53)]
    for path, step in ((first, 7), (second, 8)):
        assert ck.verify_checkpoint(path) == [] and ck.safe_load(path/ck.STATE)["moments"].unique().tolist() == [2*step]
    assert delivery.memory.nbytes == memory > model.tensor.nbytes*2      # one set of buffers served three saves
    assert ck.latest_checkpoint(place/"drive", quiet=True) == end


def test_the_threads_do_it_and_a_wait_is_only_for_the_copy_in_memory(place):
    "With real threads: a writer that takes long does not hold `submit` up, a failing one is told of and tried again."
    gate, said = threading.Event(), []
    delivery = dl.Delivery(place/"drive", place/"local", say=said.append, backoff=(.01, .05))
    def slow(root):
        gate.wait(120)
        return writer(1)(root)
    delivery.submit(slow)                                      # returns although nothing is written
    assert not delivery.wait_written(.05) and delivery.status()["unsaved"] == 1
    gate.set()
    assert delivery.wait_written(120) and delivery.flush(120)
    assert named(place/"drive") == {f"{STAGE}/checkpoint-step1": 1}
    broken = [True]
    def failing(root):
        if broken[0]: raise OSError(errno.EIO, "Input/output error")
        return writer(2)(root)
    delivery.submit(failing)
    assert not delivery.wait_written(5) or delivery.status()["unsaved"]
    broken[0] = False
    assert delivery.close(120) and set(named(place/"drive").values()) == {1, 2}
    assert any("could be saved nowhere" in text for text in said)


def test_no_thread_outlives_a_run(place, monkeypatch):
    "One that comes back from the output folder while the interpreter ends would abort the process."
    step, inside, gate = dl.Uploader.step, threading.Event(), threading.Event()
    def slow(self, *args):
        if threading.current_thread().name == "cad_mllm-uploader":
            inside.set()
            gate.wait(60)
        return step(self, *args)
    monkeypatch.setattr(dl.Uploader, "step", slow)
    delivery = dl.Delivery(place/"drive", place/"local", say=lambda text: None)
    assert inside.wait(60)
    threading.Timer(.3, gate.set).start()
    assert delivery.close(60) and not any(t.is_alive() for t in delivery.threads)
    monkeypatch.setattr(dl, "_LAST_OPERATION", .1)            # but a folder that never answers holds nobody up
    inside.clear()
    gate.clear()
    stuck = dl.Delivery(place/"other", place/"elsewhere", say=lambda text: None)
    assert inside.wait(60) and stuck.close(60) and stuck.threads[1].is_alive()
    gate.set()


def test_three_saves_that_reach_no_disk_are_an_error(place):
    delivery = dl.Delivery(place/"drive", place/"local", say=lambda text: None, backoff=(60, 60))
    def failing(root): raise OSError(errno.EIO, "Input/output error")
    for _ in range(3):
        delivery.submit(failing)
        assert not delivery.wait_written(20)
    with pytest.raises(dl.DeliveryError, match="three saves in a row"): delivery.poll()
    with pytest.raises(dl.DeliveryError, match="newest"): delivery.close(0)


def test_an_ordinary_folder_is_written_directly_and_falls_back_when_it_fails(place, monkeypatch):
    monkeypatch.setenv("CAD_MLLM_LOCAL", str(place/"state"))
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive, staging_dir="")
    assert delivery.root == place/"drive"
    delivery.submit(writer(1))
    assert set(named(place/"drive").values()) == {1} and not (place/"state").exists()
    drive.fault = fail_with(errno.EIO)
    delivery.submit(writer(2))
    assert set(named(place/"state").values()) == {2} and delivery.status()["pending"] == 1
    drive.fault = nothing
    delivery = open_delivery(place, drive, staging_dir="")       # also for the next run
    run_dry(delivery)
    assert set(named(place/"drive").values()) == {1, 2}


def test_a_local_folder_inside_the_output_folder_is_refused(place):
    with pytest.raises(ck.CheckpointError, match="inside output_dir"): dl.Delivery(place/"drive", place/"drive"/"local")


def test_small_files_survive_an_outage_and_the_stop_file_is_seen(place):
    drive = Drive(place/"drive", Clock())
    (place/"drive").mkdir()
    (place/"drive"/"metrics.jsonl").write_bytes(dl.json_line({"step": 0}) + b'{"step": 0.5')      # cut short by a kill
    delivery = open_delivery(place, drive)
    drive.fault = fail_with(errno.ENOTCONN)
    for step in range(1, 5):
        delivery.files.append("metrics.jsonl", {"step": step})
        delivery.files.replace("status.json", {"step": step})
        assert not delivery.files.seen("stop")
        drive.clock.now += 10
    drive.fault = nothing
    (place/"drive"/"stop").touch()
    drive.clock.now += 10
    assert delivery.files.seen("stop")
    lines = (place/"drive"/"metrics.jsonl").read_bytes().splitlines()
    assert lines == [b'{"step": 0}', b'{"step": 0.5'] + [b'{"step": %d}' % i for i in range(1, 5)]
    assert json.loads((place/"drive"/"status.json").read_text()) == {"step": 4}
    drive.fault = fail_with(errno.ENOTCONN)
    delivery.files.forget("stop")
    assert not delivery.files.seen("stop") and (place/"drive"/"stop").exists()
    drive.fault = nothing
    assert delivery.close() and not (place/"drive"/"stop").exists()


def test_two_threads_are_never_in_a_round_of_small_files_at_once(place):
    """The thread that mirrors and the one that closes: the second finds the first at work, and neither fails nor
    brings a line twice."""
    files = RunFiles(place/"drive", place/"local", background=False, interval=1000)
    files.append("metrics.jsonl", {"step": 1})
    files.append("metrics.jsonl", {"step": 2})                 # waits for its round
    began, may_end, write = threading.Event(), threading.Event(), files.out.write
    def slow(*args):
        began.set()
        assert may_end.wait(60)
        return write(*args)
    files.out.write, files.closing = slow, True
    first = threading.Thread(target=files.step)
    first.start()
    assert began.wait(60) and files.step() is False
    may_end.set()
    first.join()
    assert (
        files.step()
        and [json.loads(s)["step"] for s in (place/"drive/metrics.jsonl").read_text().splitlines()] == [1, 2]
    )


def test_a_finished_checkpoint_is_enqueued_and_one_that_is_not_whole_is_refused(place):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive)
    path, broken = (writer(step)(delivery.local_dir) for step in (1, 2))
    (broken/"model.safetensors").unlink()
    with pytest.raises(ck.CheckpointError, match="is not complete"): delivery.submit(broken)
    assert delivery.submit(path) == place/"drive"/STAGE/"checkpoint-step1"
    run_dry(delivery)
    assert set(named(place/"drive").values()) == {1}


def test_names_of_before_lead_to_the_parts_that_do_it(place):
    "Scripts that were written for one large class go on, and are told the new name."
    delivery = open_delivery(place, Drive(place/"drive", Clock()))
    with pytest.deprecated_call(match=r"Delivery.append is now .files.append"): append = delivery.append
    append("metrics.jsonl", {"step": 1})
    delivery.submit(writer(1))
    with pytest.deprecated_call(match="queue.there"): assert f"{STAGE}/checkpoint-step1" in delivery.there
    with pytest.deprecated_call(match="uploader.step"): assert delivery.step() is None
    with pytest.raises(AttributeError, match="'Delivery' object has no attribute 'carry'"): delivery.carry()
    assert json.loads((place/"drive"/"metrics.jsonl").read_text()) == {"step": 1}


def test_deliver_brings_what_is_left(place):
    drive = Drive(place/"drive", Clock())
    delivery = open_delivery(place, drive)
    drive.fault = fail_with(errno.ENOTCONN)
    for step in (1, 2): delivery.submit(writer(step))
    assert dl.deliver(place/"drive", place/"local", timeout=20, say=lambda text: None) == 0
    assert set(named(place/"drive").values()) == {1, 2}


class Night(RuleBasedStateMachine):
    "Saves, outages, single faults, bad copies, kills and lost machines in any order."
    def __init__(self):
        super().__init__()
        shm = Path("/dev/shm")
        self.place = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() and os.access(shm, os.W_OK) else None))
        self.clock, self.count, self.newest, self.best, self.delivery = Clock(), 0, 0, 0, None

    @initialize(
        late=st.sampled_from([0.0, 0.0, 20.0]), keep=st.sampled_from([0, 1, 2]), max_pending=st.sampled_from([3, 8])
    )
    def begin(self, late, keep, max_pending):
        self.drive = Drive(self.place/"drive", self.clock, late=late)
        self.rules, self.faults, self.away = dict(keep_last_n=keep, max_pending=max_pending), [], None
        self.drive.fault = self.fault
        self.open()

    def open(self): self.delivery = open_delivery(self.place, self.drive, settle=60.0, **self.rules)

    def fault(self, op, path):
        "The outage, and the single faults that were ordered: in so many operations, this."
        if self.away and not op.endswith("ed"): raise OSError(self.away, os.strerror(self.away))
        self.faults = [(left - 1, what) for left, what in self.faults]
        for what in [w for left, w in self.faults if left <= 0]:
            self.faults = [(left, w) for left, w in self.faults if left > 0]
            if what == "kill": raise Killed
            if what == "bad" and op == "copied":
                data = bytearray(Path(path).read_bytes())
                Path(path).write_bytes(
                    bytes(data[:len(data)//2]) if self.count % 2 else bytes(data[:-1]) + bytes([data[-1] ^ 1])
                )
            elif what != "bad": raise OSError(what, os.strerror(what))

    def survive(self, call, *args):
        "Make a call; when the process dies in it, start the next one."
        try: call(*args)
        except Killed: self.restart()

    def restart(self):
        ck.active_temporaries.clear()
        local = bool(named(self.place/"local")) if (self.place/"local").exists() else False
        try: self.open()
        except Killed: return self.restart()
        except dl.DeliveryError:                               # away, and nothing local: refused, as it should be
            assert not local
            self.away, self.faults = None, []
            self.open()

    @rule(best=st.booleans(), end=st.sampled_from([False, False, False, True]))
    def save(self, best, end):
        self.count += 1
        self.newest, best = self.count, best and not end
        if best: self.best = self.count
        self.survive(
            self.delivery.submit, writer(self.count, best=best, name=f"part{self.count}_model" if end else None)
        )

    @rule(seconds=st.sampled_from([1, 30, 120]))
    def wait(self, seconds):
        self.clock.now += seconds
        self.survive(self.delivery.uploader.step)

    @rule(number=st.sampled_from([errno.ENOTCONN, errno.EIO, errno.ENOSPC, errno.EACCES, errno.ENOENT]))
    def outage(self, number): self.away = number

    @rule()
    def back(self): self.away = None

    @rule(
        at=st.integers(1, 30),
        what=st.sampled_from([errno.ENOTCONN, errno.EIO, errno.ENOENT, errno.ENOSPC, "bad", "kill"])
    )
    def trouble(self, at, what): self.faults.append((at, what))

    @rule()
    def kill(self): self.restart()

    @invariant()
    def nothing_is_broken_and_nothing_that_matters_is_lost(self):
        if self.delivery is None: return
        here, there = (named(self.place/p) if (self.place/p).exists() else {} for p in ("local", "drive"))
        steps = {*here.values(), *there.values()}
        assert not self.newest or self.newest in steps
        assert not self.best or self.best in steps
        # ends of stages are never dropped
        waiting = [key for key in self.delivery.queue.pending if not key.endswith("_model")]
        assert len(waiting) <= self.rules["max_pending"]

    def teardown(self):
        try:
            if self.delivery is None: return
            self.away, self.faults = None, []
            run_dry(self.delivery)
            self.nothing_is_broken_and_nothing_that_matters_is_lost()
            there = named(self.place/"drive")
            steps = {step for name, step in there.items() if not name.endswith("best")}
            if self.newest: assert self.newest in steps
            if self.best: assert self.best in steps
            if best := ck.best_checkpoint(
                ck.stage_records(ck.list_checkpoints(self.place/"drive"), self.place/"drive"/STAGE)
            ):
                assert best.step == self.best and there[f"{STAGE}/checkpoint-best"] == self.best
            assert self.delivery.close() and self.delivery.status()["pending"] == 0
            ck.active_temporaries.clear()
            for folder in (self.place/"drive", self.place/"drive"/STAGE): ck.clean_temporaries(folder)
            assert leftovers(self.place/"drive") == []
        finally: shutil.rmtree(self.place, ignore_errors=True)


Night.TestCase.settings = settings(
    max_examples=int(os.environ.get("CAD_MLLM_EXAMPLES", 12)), stateful_step_count=25, deadline=None,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    derandomize="CAD_MLLM_EXAMPLES" not in os.environ
)
TestNight = Night.TestCase


# ------------------------------------------------------- real file systems, in a mount namespace of their own

def _mount(source, target, kind, flags=0, options=""):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _unmount(target):
    import ctypes
    ctypes.CDLL(None).umount2(os.fsencode(target), 2)


class Mounted:
    "The FUSE drive of drive_fuse.py, served by another process."
    def __init__(self, place):
        self.back, self.point, self.control, self.process = place/"back", place/"mnt", place/"control.json", None

    def rules(self, **rules):
        (temporary := self.control.with_suffix(".tmp")).write_text(json.dumps(rules))
        os.replace(temporary, self.control)

    def mount(self):
        for p in (self.back, self.point): p.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("drive_fuse.py"), self.back, self.point, self.control],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline() != "ready\n": raise OSError("the FUSE server did not start")

    def kill(self):
        self.process.kill()
        self.process.wait()


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(.02)
    return condition()


def on_fuse(place):
    "A night on a FUSE file system; gives what was seen."
    os.environ["CAD_MLLM_LOCAL"] = str(Path(place)/"state")
    drive = Mounted(Path(place))
    drive.rules(slow=.0005, late=.1)
    drive.mount()
    try: return night_on(drive)
    finally:
        drive.kill()
        _unmount(drive.point)


def night_on(drive):
    seen = {}
    output, said = drive.point/"runs"/"a", []
    delivery = dl.Delivery(output, keep_last_n=2, say=said.append, settle=5, backoff=(.02, .1))
    seen["staged by itself"] = delivery.staged
    def save(step, **more):
        delivery.submit(writer(step, **more))
        return delivery.wait_written(120)
    def waits_because_of(words):
        return (
            not delivery.flush(.3) and until(lambda: words in delivery.status()["last_error"])
            and delivery.status()["last_error"]
        )
    seen["slow and late"] = save(1, best=True) and delivery.flush(120) and named(output)
    drive.rules(gone=True)                                     # and from here on quick, so that the test is
    seen["saved while away"] = [save(step) for step in (2, 3, 4)]
    delivery.files.append("metrics.jsonl", {"step": 4})
    until(lambda: delivery.status()["failing_since"])
    seen["107"] = delivery.status()["last_error"]
    seen["flushed while away"] = delivery.flush(.3)
    drive.rules()
    seen["after the outage"] = delivery.flush(120) and named(output)
    drive.kill()                                               # the kernel itself says 107 from here on
    seen["saved while dead"] = save(5) and waits_because_of("errno 107")
    _unmount(drive.point)
    seen["saved while unmounted"] = save(6) and waits_because_of("not mounted")
    seen["under the mount point"] = os.listdir(drive.point)
    drive.mount()
    seen["after mounting again"] = delivery.flush(120) and named(output)
    drive.rules(flip=2)
    seen["flipped bits"] = save(7) and delivery.flush(120) and named(output)
    used = sum(p.stat().st_size for p in drive.back.rglob("*") if p.is_file())
    drive.rules(room=used + 1000)
    seen["full"] = save(8) and delivery.flush(120) and named(output)
    seen["closed"] = delivery.close(120)
    seen["metrics"] = (output/"metrics.jsonl").read_text()
    seen["left over"] = leftovers(drive.back)
    seen["said"] = said
    return seen


def on_tmpfs(place):
    "A local disk that is really full, and an output folder that is really read-only."
    place, seen = Path(place), {}
    for name in ("local", "drive"): (place/name).mkdir()
    _mount("tmpfs", place/"local", "tmpfs", 0, "size=1500k")
    _mount("tmpfs", place/"drive", "tmpfs", 0, "size=64m")
    delivery = dl.Delivery(
        place/"drive", place/"local", keep_last_n=0, background=False, say=lambda text: None, backoff=(0, 0)
    )
    _mount("tmpfs", place/"drive", "tmpfs", 1 | 32)            # MS_RDONLY | MS_REMOUNT
    for step in range(1, 7): delivery.submit(writer(step, best=step == 2, size=100_000))      # 400 kB each
    seen["read-only"] = delivery.status()["last_error"]
    seen["kept locally"] = sorted(named(place/"local").values())
    seen["dropped"] = delivery.status()["dropped"]
    _mount("tmpfs", place/"drive", "tmpfs", 32)
    seen["delivered"] = delivery.close(120) and sorted(named(place/"drive").values())
    for name in ("local", "drive"): _unmount(place/name)
    return seen


def in_namespace(func, place):
    "Run a function of this file where mounts are seen by nobody else; skips where that is not possible."
    unshare = ["unshare", "-m"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "-Urm"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_delivery as t; "
        f"print('SEEN', json.dumps(t.{func.__name__}({str(place)!r})))"
    )
    done = subprocess.run([*unshare, sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    if done.returncode and "Operation not permitted" in done.stderr and "mount" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))[5:])


def test_a_night_on_a_real_fuse_file_system(place):
    if not os.path.exists("/dev/fuse"): pytest.skip("there is no /dev/fuse")
    seen = in_namespace(on_fuse, place)
    def at(*steps): return {f"{STAGE}/checkpoint-step{i}": i for i in steps} | {f"{STAGE}/checkpoint-best": 1}
    assert seen["staged by itself"] and seen["slow and late"] == at(1)
    assert seen["saved while away"] == [True]*3 and "errno 107" in seen["107"] and seen["flushed while away"] is False
    assert seen["after the outage"] == at(1, 3, 4)
    assert (
        "errno 107" in seen["saved while dead"] and "not mounted" in seen["saved while unmounted"]
        and seen["under the mount point"] == []
    )
    assert seen["after mounting again"] == at(1, 5, 6) and seen["flipped bits"] == at(1, 6, 7)
    assert seen["full"] == at(1, 7, 8) and seen["closed"] and seen["left over"] == []
    assert (
        seen["metrics"] == '{"step": 4}\n' and any("is full" in text for text in seen["said"])
        and any("answers again" in text for text in seen["said"])
    )


def test_a_full_local_disk_and_a_read_only_folder(place):
    seen = in_namespace(on_tmpfs, place)
    assert "Read-only file system" in seen["read-only"]
    assert 6 in seen["kept locally"] and 2 in seen["kept locally"] and seen["dropped"] >= 2
    assert seen["delivered"] == [*seen["kept locally"][:1], *seen["kept locally"]]      # 2 twice: checkpoint-best
