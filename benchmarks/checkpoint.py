"""What saving costs: how long training stands still, how fast a save, a proof and a restore are, how long a thousand
checkpoints take to list, and what is left after hundreds of kills.

usage: python benchmarks/checkpoint.py [stall] [rates] [listing] [kills] [others] [--quick] [--megabytes 350] [--rounds
5] [--threads N] [--checkpoints 1000] [--kills 200] [--dir FOLDER] [--out FILE.md]

  stall     a training loop on the CPU saves in the background; against torch.save + fsync of the same state in the same
  loop
  rates     save, verify and restore against the disk's sequential rate and the rate of SHA-256, measured in the same
  run, one after the other, round by round
  listing   a folder of many checkpoints is listed and described; files opened are counted; then again with 5 ms added
  to every file operation
  kills     SIGKILL at random moments of saving, replacing checkpoint-best, pruning and delivering; after each the
  newest checkpoint is loaded and everything verified
  others    transformers.Trainer and accelerate under the same tests (benchmarks/guarantees.py)

Without names all are run. --dir chooses the disk. Seconds depend on the machine; the ratios are between things measured
side by side.
"""
import builtins
import hashlib
import io
import mmap
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tests"))
from chapters import Chapter
ck = Chapter("cad_mllm.checkpoints")
from cad_mllm.config import recipe
from cad_mllm.utils.cpus import allotted_cpus
from common import cpu_timed, make_parser, table, timed, write_out

BLOCK = 8 << 20


def say(*words): print(*words, file=sys.stderr, flush=True)


# -- a state of a given size
# --------------------------------------------------------------------------------------------------------

def big_model(megabytes):
    "A language model of the real class, fully trained, whose weights and two moments take so many megabytes."
    from dataclasses import replace
    from cad_mllm.models import CADMLLMModel
    config = recipe("tiny")[0]
    width, layers = 512, 6
    target = megabytes*1e6/12
    def make(ffn):
        return CADMLLMModel(
            replace(
                config, image_encoder_name="", point_encoder_name="", max_seq_length=256,
                llm_config=dict(
                    hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=8,
                    num_key_value_heads=8, head_dim=64
                )
            )
        )
    small = sum(p.numel() for p in make(256).parameters())
    return make(max(64, 256 + int((target - small)/(layers*3*width))))


class Work:
    "A model, its optimizer, and steps to train it with."
    def __init__(self, megabytes):
        from cad_mllm.checkpoints import optimizer_state
        self.model, self.optimizer_state = big_model(megabytes), optimizer_state
        self.optimizer = torch.optim.AdamW(self.model.named_parameters(), lr=1e-4)
        self.ids = torch.randint(0, 100, (1, 24))
        self.step()

    def step(self):
        "Forward, backward, update: the whole state changes."
        loss = self.model.llm(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def state(self): return {"optimizer": self.optimizer_state(self.optimizer), "position": 0}

    def everything(self): return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def size(self):
        found, todo = {}, [self.everything()]
        while todo:
            value = todo.pop()
            if isinstance(value, torch.Tensor): found[value.data_ptr()] = value.nbytes
            elif isinstance(value, dict): todo += value.values()
        return sum(found.values())


def plain_save(value, path):
    "The baseline: torch.save and fsync."
    with open(path, "wb") as f:
        torch.save(value, f)
        f.flush()
        os.fsync(f.fileno())


def remove(path): shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)


# -- stall
# ----------------------------------------------------------------------------------------------------------------------

def reset_peak():
    "Forget the highest memory use so far; False where the system cannot."
    try: Path("/proc/self/clear_refs").write_text("5")
    except OSError: return False
    return True


def memory(field):
    "A field of /proc/self/status in bytes."
    return next(
        int(line.split()[1])*1024 for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field + ":")
    )


def stall(folder, args):
    from cad_mllm.checkpoints import Delivery
    work = Work(args.megabytes)
    rows = {k: [] for k in ("sync", "ours", "plain call", "call", "lost", "memory")}
    size = 0
    size, rounds = work.size(), args.rounds
    for _ in range(3): work.step()
    step = statistics.median(timed(work.step)[0] for _ in range(8))
    after = max(3, int(2.5*size/4e8/step) + 1)         # steps that follow a save, so that writing ends among them
    say(f"state of {size/1e6:.0f} MB; a step takes {step:.3f} s; {after} steps after each save")
    first, level = None, memory("VmRSS")
    with Delivery(folder/"out", staging_dir="", keep_last_n=1, say=lambda *a: None) as delivery:
        for i in range(rounds + 1):
            # a loop without saving, one with torch.save + fsync, one with ours: each of the same number of steps
            alone = sum(timed(work.step)[0] for _ in range(after))
            remove(folder/"plain.pt")
            sync, _ = timed(plain_save, work.everything(), folder/"plain.pt")
            for _ in range(2): work.step()
            has_peak = reset_peak()
            call, _ = timed(
                delivery.save, work.model, stage="s", step=i + 1, epoch=0, loss=1/(i + 1), trainer_state=work.state()
            )
            loop = sum(timed(work.step)[0] for _ in range(after))
            written, _ = timed(delivery.wait_written)
            used = memory("VmHWM") - level if has_peak else float("nan")
            extra = written if written > step/4 else 0.0  # not yet through when the steps were over: counted in full
            if i == 0:
                first = call/sync
                continue
            rows["sync"].append(sync)
            rows["call"].append(call)
            rows["lost"].append(call + max(0.0, loop - alone) + extra)
            rows["memory"].append(used)
            delivery.flush()
    ours = [
        timed(
            ck.save_checkpoint, work.model, folder/"direct", stage="s", step=i + 1, epoch=0, loss=1.0,
            trainer_state=work.state(), keep_last_n=1
        )[0]
        for i in range(min(3, rounds))
    ]
    def row(name, values, key=None):
        times = (
            statistics.median(a/b for a, b in zip(values, rows["sync"])) if key
            else statistics.median(values)/statistics.median(rows["sync"])
        )
        return (
            name, f"{statistics.median(values):.3f}", f"{times:.2f}", f"{min(values):.3f}",
            f"{min(values)/min(rows['sync']):.2f}"
        )
    made = [
        row("torch.save + fsync, training waits", rows["sync"], "sync"),
        row("`Delivery.save`: training waits", rows["call"], "call"),
        row("`Delivery.save`: waits, and what the steps lose while it is written", rows["lost"], "lost"),
        row("`save_checkpoint` without a background, training waits", ours)
    ]
    text = (
        f"Training stall for a save of {size/1e6:.0f} MB (weights and two moments), {rounds} rounds after a first one; "
        f"a step takes {step:.3f} s on {torch.get_num_threads()} of {allotted_cpus()} processors; the copy to an "
        "output folder is in none:\n\n"
        + table(("", "seconds, median", "times torch.save + fsync", "seconds, fastest", "times its fastest"), made)
        + f"\nThe first save of a process waits {first:.2f} times as long as torch.save + fsync. Highest memory use "
        f"while one is written, above the level before the first: {statistics.median(rows['memory'])/size:.2f} times "
        "the state.\n"
    )
    return text


# -- rates
# ----------------------------------------------------------------------------------------------------------------------

def evict(path):
    "Ask the kernel to forget what it remembers of a file, or of every file in a folder."
    for p in [path] if Path(path).is_file() else [p for p in Path(path).rglob("*") if p.is_file()]:
        fd = os.open(p, os.O_RDONLY)
        try: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally: os.close(fd)


def write_sequentially(path, data):
    with open(path, "wb", buffering=0) as f:
        for i in range(0, len(data), BLOCK): f.write(data[i:i + BLOCK])
        os.fsync(f.fileno())


BUFFER = bytearray(BLOCK)


def read_sequentially(path, buffer=BUFFER):
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer): pass


def folder_size(path): return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def rates(folder, args):
    work, rows, spent = Work(args.megabytes), {}, []
    data = memoryview(os.urandom(1 << 20)*int(work.size()/(1 << 20) + 1))[:work.size()]
    raw = folder/"raw"
    model = big_model(args.megabytes)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-4)

    def restore(path):
        evict(path)
        def go():
            loaded = ck.load_checkpoint(path, model, quiet=True)
            ck.restore_optimizer(optimizer, None, loaded.trainer_state, quiet=True)
        return timed(go)[0]
    for i in range(args.rounds + 1):
        remove(raw)
        remove(folder/"run")
        found = {"disk, writing": len(data)/timed(write_sequentially, raw, data)[0]}
        evict(raw)
        found["disk, reading"] = len(data)/timed(read_sequentially, raw)[0]
        found["SHA-256, one thread"] = len(data)/timed(lambda: hashlib.sha256(data).digest())[0]
        remove(raw)
        work.step()
        used, (seconds, path) = cpu_timed(
            timed, ck.save_checkpoint, work.model, folder/"run", stage="s", step=i + 1, epoch=0, loss=1.0,
            trainer_state=work.state()
        )
        size = folder_size(path)
        found["save"] = size/seconds
        hashing, _ = cpu_timed(lambda: hashlib.sha256(data).digest())
        spent.append((used/size*1e9, hashing/len(data)*1e9))
        evict(path)
        checked, problems = timed(ck.verify_checkpoint, path)
        assert problems == []
        found |= {
            "verify": size/checked, "save, then verify": size/(seconds + checked),
            "restore (verify, load, put back)": size/restore(path)
        }
        if i:                                             # the first round warms up
            for k, v in found.items(): rows.setdefault(k, []).append(v)
    middle = {k: statistics.median(v) for k, v in rows.items()}
    wlimit = [min(a, b) for a, b in zip(rows["disk, writing"], rows["SHA-256, one thread"])]
    rlimit = [min(a, b) for a, b in zip(rows["disk, reading"], rows["SHA-256, one thread"])]
    def share(key, limit): return f"{100*statistics.median(a/b for a, b in zip(rows[key], limit)):.0f}%"
    def write(key): return wlimit if key.startswith("save") else rlimit
    def best(key): return f"{100*max(rows[key])/max(write(key)):.0f}%"
    made = [
        (k, f"{middle[k]/1e6:,.0f}", f"{min(rows[k])/1e6:,.0f} to {max(rows[k])/1e6:,.0f}", "", "")
        for k in list(middle)[:3]
    ]
    made += [
        (k, f"{middle[k]/1e6:,.0f}", f"{min(rows[k])/1e6:,.0f} to {max(rows[k])/1e6:,.0f}", share(k, write(k)), best(k))
        for k in list(middle)[3:]
    ]
    return (
        f"Rates for {size/1e6:.0f} MB, {args.rounds} rounds after a first one; what is read was asked out of the page "
        "cache before:\n\n"
        + table(
            (
                "", "MB/s, median", "range", "share of the smaller of disk and SHA-256, median of rounds",
                "fastest of each"
            ),
            made
        )
        + "\nCPU seconds for a GB, least of all rounds: saving {:.2f}, SHA-256 {:.2f}.\n".format(*map(min, zip(*spent)))
    )


# -- listing
# ----------------------------------------------------------------------------------------------------------------------

class Tiny:
    "A model of a few bytes."
    def __init__(self, step=0, size=300): self.config, self.tensor = recipe("tiny")[0], torch.full((size,), float(step))

    def save_pretrained(self, folder):
        from safetensors.torch import save_file
        for name in ("model.safetensors", "extra.safetensors"): save_file({"w": self.tensor.clone()}, Path(folder)/name)

    def load_weights(self, folder):
        from safetensors.torch import load_file
        self.tensor = load_file(Path(folder)/"model.safetensors")["w"]
        return []


class Quick(ck.Disk):
    "A disk that is not waited for: for making many checkpoints."
    def sync(self, path): pass


class Opened:
    "Counts files that Python opens, by an audit hook."
    def __init__(self):
        self.files, self.on = [], False
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if self.on and event == "open" and isinstance(args[0], (str, bytes)): self.files.append(os.fspath(args[0]))


class Slow:
    """Adds seconds to every operation on files: os.stat, lstat, open, scandir, listdir, access, read, write, rename,
    replace, remove, mkdir, link, fsync, DirEntry.stat, and open() twice, for opening and for reading."""
    names = (
        "stat", "lstat", "open", "scandir", "listdir", "access", "read", "write", "rename", "replace", "unlink",
        "remove", "mkdir", "rmdir", "link", "fsync"
    )

    def __init__(self, seconds): self.seconds, self.calls, self.lock = seconds, Counter(), threading.Lock()

    def wait(self, name, times=1):
        with self.lock: self.calls[name] += times
        time.sleep(self.seconds*times)

    def slowed(self, name, func, times=1):
        def call(*args, **more):
            self.wait(name, times)
            found = func(*args, **more)
            return Entries(found, self) if name == "scandir" else found
        return call

    def __enter__(self):
        self.kept = {n: getattr(os, n) for n in self.names}
        for name, func in self.kept.items(): setattr(os, name, self.slowed(name, func))
        self.opens = builtins.open, io.open
        builtins.open = io.open = self.slowed("open()", io.open, times=2)
        return self

    def __exit__(self, *_):
        for name, func in self.kept.items(): setattr(os, name, func)
        builtins.open, io.open = self.opens


class Entries:
    "What os.scandir gives, its entries' `stat` slowed."
    def __init__(self, found, slow): self.found, self.slow = found, slow
    def __iter__(self): return self
    def __next__(self): return Entry(next(self.found), self.slow)
    def __enter__(self): return self
    def __exit__(self, *_): self.close()
    def close(self): self.found.close()


class Entry(os.PathLike):
    def __init__(self, entry, slow): self.entry, self.slow = entry, slow
    def __getattr__(self, name): return getattr(self.entry, name)
    def __fspath__(self): return self.entry.path
    def stat(self, **more):
        self.slow.wait("DirEntry.stat")
        return self.entry.stat(**more)


def make_many(folder, num):
    "A run with so many checkpoints, in three stages, as `save_checkpoint` leaves them."
    kept, ck.DISK = ck.DISK, Quick()
    try:
        template = ck.save_checkpoint(
            Tiny(), folder/"template", stage="s", step=1, epoch=0, loss=1.0, trainer_state={"position": 1},
            is_best=False
        )
        metadata = ck.read_record(template).metadata
        for i in range(num):
            stage, step = f"stage{1 + 3*i//num}_text", 100*(i + 1)
            def fill(temporary, step=step, stage=stage):
                for p in template.rglob("*"):
                    if p.is_file() and p.name not in (ck.MANIFEST, ck.METADATA): shutil.copy(p, temporary/p.name)
                (temporary/ck.METADATA).write_bytes(ck.to_json(one))
            one = metadata | dict(step=step, stage=stage, serial=i + 1, loss=1/(i + 1), is_best=i % 40 == 39)
            ck.publish(folder/"run"/stage/ck.checkpoint_name(step, 1/(i + 1)), fill, one)
    finally: ck.DISK = kept
    return folder/"run"


def in_fresh_process(func, *args):
    "The value of a function in a forked child, which starts without caches."
    read, write = os.pipe()
    if not (pid := os.fork()):
        try: os.write(write, repr(func(*args)).encode())
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as f: text = f.read().decode()
    os.waitpid(pid, 0)
    return eval(text, {"Counter": Counter})


def list_twice(folder, seconds):
    "First and second listing: seconds and files opened; with delay, also the calls."
    def look(): return timed(lambda: (r := ck.list_checkpoints(folder), ck.format_checkpoints(r)))
    opened, found = Opened(), []
    for _ in range(2):
        opened.files, opened.on = [], True
        if seconds:
            with Slow(seconds) as slow: spent, (records, text) = look()
        else: slow, (spent, (records, text)) = None, look()
        opened.on = False
        assert records and all(r.complete for r in records) and len(text.splitlines()) == len(records) + 1
        inside = Counter(Path(os.fsdecode(f)).name for f in opened.files if os.fsdecode(f).startswith(str(folder)))
        found.append((spent, len(records), sum(inside.values()), dict(inside), dict(slow.calls) if slow else {}))
    return found


def listing(folder, args):
    rows, notes, run = [], [], make_many(folder, args.checkpoints)
    for delay in (0, .005):
        for which, (seconds, num, opened, names, calls) in zip(
            ("first", "second"), in_fresh_process(list_twice, run, delay)
        ):
            rows.append(
                (
                    f"{which} listing" + (f", {1000*delay:.0f} ms a call" if delay else ""), f"{seconds:.2f}",
                    f"{opened/num:.2f}", f"{sum(calls.values())/num:.1f}" if delay else ""
                )
            )
            if which == "first" and not delay:
                notes.append(
                    f"{num:,} checkpoints in three stages; opened: "
                    + ", ".join(f"{k} {v:,}" for k, v in sorted(names.items(), key=lambda x: -x[1])[:4])
                )
            if which == "first" and delay:
                notes.append(
                    "delayed calls of the first listing: "
                    + ", ".join(f"{k} {v:,}" for k, v in sorted(calls.items(), key=lambda x: -x[1]))
                )
    return (
        "Listing and describing (`list_checkpoints` and `format_checkpoints`), each row pair in a fresh process:\n\n"
        + table(("", "seconds", "files opened a checkpoint", "delayed calls a checkpoint"), rows) + "\n"
        + "\n".join(f"- {n}" for n in notes) + f"\n- the delay is added to {Slow.__doc__.split(': ', 1)[1]}\n"
    )


# -- kills
# ----------------------------------------------------------------------------------------------------------------------

SLOT, SLOTS = 48, 8


class Phases:
    "Where each thread of a child stands, in memory shared with its parent."
    def __init__(self): self.shared, self.slots = mmap.mmap(-1, SLOT*SLOTS), {}

    def slot(self): return self.slots.setdefault(threading.get_ident(), len(self.slots)) % SLOTS

    def write(self, slot, name): self.shared[slot*SLOT:(slot + 1)*SLOT] = name.encode()[:SLOT].ljust(SLOT, b"\0")

    def read(self):
        found = [bytes(self.shared[i*SLOT:(i + 1)*SLOT]).rstrip(b"\0").decode() for i in range(SLOTS)]
        return [f for f in found if f]

    def wait_for(self, name, seconds):
        "Until a thread is doing that; whether it was."
        end, name = time.perf_counter() + seconds, name.encode()
        while time.perf_counter() < end:
            if name in bytes(self.shared): return True
        return False

    def clear(self): self.shared[:] = bytes(SLOT*SLOTS)

    def wrap(self, owner, attribute, name):
        "Say `name` while a function runs; the innermost one is what is seen."
        if (func := getattr(owner, attribute, None)) is None: return
        def call(*args, **more):
            slot = self.slot()
            before = bytes(self.shared[slot*SLOT:(slot + 1)*SLOT])
            self.write(slot, name(*args) if callable(name) else name)
            try: return func(*args, **more)
            finally: self.shared[slot*SLOT:(slot + 1)*SLOT] = before
        setattr(owner, attribute, call)

    def watch(self):
        "Wrap what saving is made of; called in the child."
        for attribute, name in (
            ("list_checkpoints", "listing"), ("publish", "writing"), ("seal", "sealing (fsync, hashes, manifest)"),
            ("_take_name", "giving the final name"), ("update_best", "replacing checkpoint-best"),
            ("prune_checkpoints", "pruning"), ("clean_temporaries", "cleaning")
        ):
            self.wrap(ck, attribute, name)
        kept = ck.update_best
        def update_best(*args, **more):                   # what happens inside is part of replacing the best
            saved = {n: getattr(ck, n) for n in ("publish", "seal", "_take_name", "clean_temporaries")}
            try:
                for n in saved: setattr(ck, n, self.plain[n])
                return kept(*args, **more)
            finally:
                for n, f in saved.items(): setattr(ck, n, f)
        ck.update_best = update_best
        delivery = ck
        for attribute, name in (
            ("copy", "delivering: copying"), ("sha256", "delivering: reading back"), ("rename", "delivering: renaming"),
            ("write", "delivering: manifest"), ("remove", "delivering: removing old ones"),
            ("link", "delivering: checkpoint-best")
        ):
            self.wrap(delivery.OutputFolder, attribute, name)

    plain = {n: getattr(ck, n) for n in ("publish", "seal", "_take_name", "clean_temporaries")}


def visible(output):
    "Folders under a final name."
    named = [p for pattern in ("checkpoint-*", "*_model") for p in Path(output).rglob(pattern) if p.is_dir()]
    return [p for p in named if not any(part.startswith(".") for part in p.relative_to(output).parts)]


def check(places, finished, best_of):
    "What is wrong after a kill; an empty list when all is as promised. Also the step of the newest checkpoint."
    wrong, newest, bests = [], None, []
    for place in places:
        for folder in visible(place):
            if problems := ck.verify_checkpoint(folder):
                wrong.append(
                    f"half-written under a final name: {folder.relative_to(Path(place).parent)}: {problems[0]}"
                )
        records = ck.list_checkpoints(place) if Path(place).exists() else []
        bests += [b for b in [ck.best_checkpoint(records)] if b]
        path = ck.latest_checkpoint(place, quiet=True) if records else None
        if path and (newest is None or ck.read_record(path).step > newest[0]): newest = ck.read_record(path).step, path
    if newest is None: return ["no checkpoint is left"], 0
    step, path = newest
    model = Tiny()
    try: loaded = ck.load_checkpoint(path, model, quiet=True)
    except ck.CheckpointError as e: return wrong + [f"the newest does not load: {e}"], step
    if model.tensor.unique().tolist() != [step] or loaded.trainer_state["moments"].unique().tolist() != [step]:
        wrong.append("the newest mixes two saves")
    if step < finished: wrong.append(f"a finished save is gone: step {finished} was saved, {step} is the newest")
    if not bests: wrong.append("the best is gone")
    elif max(b.step for b in bests) < best_of: wrong.append(f"the best of step {best_of} is gone")
    return wrong, step


def is_best(step): return step % 3 == 0


def save_one(output, step, size, delivery=None):
    "Step `step`, every third one the best so far."
    state = {"position": step, "moments": torch.full((size,), float(step))}
    more = dict(stage="stage1_text", step=step, epoch=0, loss=1/step, trainer_state=state, is_best=is_best(step))
    return (
        delivery.save(Tiny(step, size), **more) if delivery
        else ck.save_checkpoint(Tiny(step, size), output, keep_last_n=2, **more)
    )


def saver(output, local, step, size, phases, pipe):
    "Save for ever, telling what is finished."
    phases.watch()
    if local is None:
        for s in range(step + 1, step + 10_000):
            os.write(pipe, b"b%d " % s)
            save_one(output, s, size)
            os.write(pipe, b"e%d " % s)
    from cad_mllm.checkpoints import Delivery
    delivery = Delivery(output, staging_dir=str(local), keep_last_n=2, say=lambda *a: None)
    for s in range(step + 1, step + 10_000):
        os.write(pipe, b"b%d " % s)
        save_one(output, s, size, delivery)
        delivery.wait_written()
        os.write(pipe, b"e%d " % s)


def clean_after(output, local, step, size):
    "What is left of dead saves after one more save that ends well."
    if local is None: save_one(output, step, size)
    else:
        from cad_mllm.checkpoints import Delivery
        with Delivery(output, staging_dir=str(local), keep_last_n=2, say=lambda *a: None) as delivery:
            save_one(output, step, size, delivery)
            if not delivery.flush(60): return ["not delivered within a minute"]
    left = [p.name for place in (output, local) if place for p in Path(place).rglob(".*") if ck._HIDDEN.match(p.name)]
    found = (
        [] if (output/"stage1_text"/ck.BEST).exists() and ck.verify_checkpoint(output/"stage1_text"/ck.BEST) == []
        else ["checkpoint-best is missing or broken after the next save"]
    )
    return found + ([f"left behind: {left[0]}"] if left else [])


def kill_loop(folder, num, size, local, seed):
    "Kill `num` children; (counts by phase, list of what was wrong, children killed between saves)."
    phases, draw, counts, wrong, step = Phases(), random.Random(seed), Counter(), [], 1
    output = folder/"out"
    in_fresh_process(lambda: save_one(output, 3, size) and None)
    step, saved, longest, idle, done = 3, {3}, .1, 0, 0    # saved: steps whose save is known to have ended
    while done < num:
        phases.clear()
        read, write = os.pipe()
        if not (pid := os.fork()):
            try: saver(output, local, step, size, phases, write)
            except BaseException: traceback.print_exc()
            finally: os._exit(1)
        os.close(write)
        os.read(read, 1)                                  # the first save has begun
        time.sleep(draw.uniform(0, longest))
        # every other kill waits for a phase, so that short ones are struck too
        if done % 2 and counts:
            phases.wait_for(draw.choice(sorted(counts)), 1.0)
            time.sleep(draw.uniform(0, .001))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        where = phases.read()
        with os.fdopen(read, "rb") as f: said = (b"b" + f.read()).decode().split()
        if not os.WIFSIGNALED(status):
            wrong.append("a save failed without being killed")
            break
        finished = [int(s[1:]) for s in said if s[0] == "e"]
        if len(finished) < 2: longest = min(longest*1.1, 3)   # so that one to three saves are usual
        elif len(finished) > 3: longest *= .9
        saved.update(finished)
        found, newest = in_fresh_process(
            check, [p for p in (output, local) if p], max(saved), max(s for s in saved if is_best(s))
        )
        wrong += found
        if where:
            done += 1
            counts.update(where)
        else: idle += 1
        step = max(newest, step + 1)
        if done % 5 == 0:
            step += 1
            wrong += (left := in_fresh_process(clean_after, output, local, step, size))
            if not left: saved.add(step)
        if (found or done % 25 == 0) and where:
            say(f"  {done} kills, {len(wrong)} faults{': ' + found[0] if found else ''}")
    wrong += in_fresh_process(clean_after, output, local, step + 1, size)
    return counts, wrong, done, idle


def kills(folder, args):
    rows, faults, total = [], [], 0
    plans = [
        ("save_checkpoint", args.kills - args.kills//3, None), ("Delivery, in the background", args.kills//3, "local")
    ]
    for name, num, local in plans:
        (folder/name.split(",")[0]).mkdir()
        place = folder/name.split(",")[0]
        counts, wrong, done, idle = kill_loop(
            place, num, 200_000 if not args.quick else 20_000, place/local if local else None, seed=len(rows)
        )
        total += done
        faults += wrong
        rows += [(name, phase, n) for phase, n in counts.most_common()] + (
            [(name, "(between two saves: not counted as a kill)", idle)] if idle else []
        )
    text = (
        f"{total} processes killed by SIGKILL while they saved (2 MB each time, two kept, every third one the best). "
        "After each kill every folder with a final name was verified and the newest loaded; every fifth time another "
        "save "
        "followed and left-overs were looked for. A kill can strike several threads:\n\n"
        + table(("saving by", "what a thread was doing when it died", "times"), rows) + f"\n{len(faults)} faults"
        + (":\n\n" + "\n".join(f"- {f}" for f, _ in Counter(faults).most_common(10)) if faults else ".") + "\n"
    )
    return text


# -- all
# ----------------------------------------------------------------------------------------------------------------------

def others(folder, args):
    import guarantees
    return guarantees.compare(folder, 4 if args.quick else 20)


SECTIONS = {"stall": stall, "rates": rates, "listing": listing, "kills": kills, "others": others}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small and short: to see that it runs, not for figures")
    parser.add_argument("--megabytes", type=int, default=350, help="size of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=0, help="default 210, with --quick 24")
    parser.add_argument("--threads", type=int, default=0, help="of torch; default: as many as it takes by itself")
    parser.add_argument("--dir", type=Path, help="work in a temporary folder below this one; default: the system's")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    if args.quick:
        args.megabytes, args.rounds, args.checkpoints = min(args.megabytes, 30), 2, min(args.checkpoints, 100)
    args.kills = args.kills or (24 if args.quick else 210)
    if args.threads: torch.set_num_threads(args.threads)
    made = []
    for name in args.sections or SECTIONS:
        say(f"{name} ...")
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            seconds, text = timed(SECTIONS[name], Path(folder), args)
        made.append(f"## {name}\n\n{text}")
        print(f"\n{made[-1]}", flush=True)
        say(f"  {seconds:.0f} s")
    write_out(args.out, "\n".join(made))


if __name__ == "__main__":
    main()
