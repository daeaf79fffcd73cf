"""The same tests applied to three ways of saving and resuming: cad_mllm, transformers.Trainer and accelerate.

usage: python benchmarks/guarantees.py [--quick] [--kills 20] [--only NAME;...] [--tests NAME,...] [--dir FOLDER] [--out
FILE.md]

All train the same tiny language model (Qwen3 classes, LoRA with dropout 0.1, trained rows for the CAD tokens) on the
same synthetic parts, one part a row, on the CPU. Each is used as its documentation says, with the
options that serve resuming best; `TrainerRunner` and `AccelerateRunner` below are short and meant to be read by those
who know better. Every run is a child process forked from one that has everything imported.
With torchdata installed, `--only 'accelerate, all options, stateful loader'` runs accelerate with the
StatefulDataLoader too.

What is recorded is the same for all: before each step the ids of its samples, the state of the random generators and,
at the first one, a hash of all trainable weights and of the optimizer's state; after it the loss, to
the last bit. Killing is SIGKILL. "resume latest" is each one's own way to find the newest checkpoint:
`--resume_from_ckpt latest`, `train(resume_from_checkpoint=True)`, `load_state()` with automatic naming.
"""
import contextlib
import ctypes
import hashlib
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from cad_mllm.cad import CADProgram, truncation_counts
from cad_mllm.config import CurriculumStage, recipe
from cad_mllm.data import MultimodalAutocompleteDataset
from cad_mllm.models import CADMLLMModel
from cad_mllm.data import synthesize
from common import make_parser, write_out

torch.set_num_threads(1)
BATCH, SAVE_EVERY, LR, SEED = 4, 4, 1e-3, 0
LLM = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=32
)
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
MOMENTS = ("trainer_state.pt", "optimizer.pt", "optimizer.bin")


# -- what is recorded
# ------------------------------------------------------------------------------------------------------------

def digest(*tensors):
    found = hashlib.sha256()
    for t in tensors: found.update(t.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def state_hash(model, optimizer):
    "One hash of every trainable weight and of the optimizer's moments and step counts."
    params = sorted(
        ((re.sub(r"^(module\.|llm\.)+", "", n), p) for n, p in model.named_parameters() if p.requires_grad),
        key=lambda x: x[0]
    )
    optimizer = getattr(optimizer, "optimizer", optimizer)
    moments = [torch.as_tensor(optimizer.state[p][k]) for _, p in params for k in sorted(optimizer.state.get(p, {}))]
    return digest(*[p for _, p in params], *moments)


def random_hash():
    return digest(
        torch.get_rng_state(), torch.tensor(random.getstate()[1]),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    )


class Recorder:
    "Writes a JSON line for each step and save of a child; kills the child in the middle of step `kill_at`."
    def __init__(self, path, kill_at=0):
        self.file, self.kill_at, self.first, self.spoil_from = open(path, "a", buffering=1), kill_at, True, 0

    @property
    def spoils(self): return self.spoil_from and self.row["step"] >= self.spoil_from      # this step is to give NaN

    def line(self, **row): self.file.write(json.dumps(row | {"time": time.perf_counter()}) + "\n")

    def before(self, step, ids, model, optimizer):
        self.row = dict(step=step, ids=ids, random=random_hash())
        if self.first:
            self.line(began=step, state=state_hash(model, optimizer))
            self.first = False
        if step == self.kill_at: os.kill(os.getpid(), signal.SIGKILL)

    def after(self, loss): self.line(**self.row, loss=float(loss).hex())

    @contextlib.contextmanager
    def saving(self, step, model, optimizer):
        self.line(saving=step, state=state_hash(model, optimizer))
        if (full := getattr(self, "on_save", None)): full(step)
        yield
        self.line(saved=step)


def lines(path):
    if not Path(path).exists(): return []
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.endswith("}")]


# -- the model and the data
# --------------------------------------------------------------------------------------------------------

class Task:
    "The model's and the data's description; built once, before forking."
    def __init__(self, folder, num_parts):
        with contextlib.redirect_stderr(open(os.devnull, "w")): synthesize(f"{folder}/data", num=num_parts)
        # truncations as `cad-mllm prepare` names them
        for file in sorted(Path(folder, "data/json").rglob("*.json")):
            program = CADProgram.from_json(file)
            for n, kept in enumerate(truncation_counts(len(program), 5), 1):
                program.truncate(kept).save(
                    Path(folder, "data/json_truncated", file.parent.name, f"{file.stem}_tr_{n:02d}.json")
                )
        config, training = recipe("tiny")
        self.config = replace(
            config, llm_config=LLM, use_lora=True, lora_r=8, lora_alpha=16, lora_dropout=.1, image_encoder_name="",
            point_encoder_name=""
        )
        self.training = replace(
            training, data_root=f"{folder}/data", stages=[CurriculumStage("stage1_text", {"text": 1.0}, 1000, LR)],
            batch_size=BATCH, save_steps=SAVE_EVERY, packing=False, max_tokens_per_batch=0, no_prefix_prob=0.0,
            num_val_samples=0, warmup_steps=2, seed=SEED, max_train_samples=40, keep_last_n_checkpoints=3, device="cpu"
        )
        data = MultimodalAutocompleteDataset(
            f"{folder}/data", split="train", max_samples=40, no_prefix_prob=0.0, seed=SEED,
            sequence_format=self.config.sequence_format, num_val_samples=0
        )
        data.set_modalities({"text": 1.0})
        builder = self.model().builder
        rows = [builder.collate([data.sample(0, i)], pack=False) for i in range(len(data))]
        self.rows = [dict(input_ids=r.input_ids[0], labels=r.labels[0]) for r in rows]
        self.numbers = {self.name(r["input_ids"], r["labels"]): i for i, r in enumerate(self.rows)}
        assert len(self.numbers) == len(self.rows), "two samples are equal: they could not be told apart"
        self.per_epoch = -(-len(self.rows)//BATCH)

    def model(self): return CADMLLMModel(self.config, seed=SEED)

    @staticmethod
    def name(input_ids, labels): return hashlib.sha1(input_ids.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()

    def ids(self, input_ids, labels, keep):
        "Numbers of the samples in a padded batch."
        return [self.numbers[self.name(row[mask], label[mask])] for row, label, mask in zip(input_ids, labels, keep)]

    @staticmethod
    def pad(rows):
        def fill(key, value):
            return torch.nn.utils.rnn.pad_sequence(
                    [r[key] for r in rows], batch_first=True, padding_value=value
                )
        return dict(
            input_ids=fill("input_ids", 0), labels=fill("labels", -100),
            attention_mask=torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(r["input_ids"]) for r in rows], batch_first=True
            )
        )


# -- the three
# ---------------------------------------------------------------------------------------------------------------------

class OurRunner:
    "`cad_mllm.training.train`, as `cad-mllm train --resume_from_ckpt latest` runs it."
    # it writes while training goes on: kills are spread over so many seconds
    name, writes_for = "cad_mllm", .2

    def __init__(self, task): self.task = task

    def run(self, out, steps, recorder, resume, batch=BATCH):
        from cad_mllm.training import Trainer
        task = self.task
        resumed = "latest" if resume else ""
        trainer = Trainer(
            task.config,
            replace(task.training, output_dir=str(out), max_steps=steps, batch_size=batch, resume_from_ckpt=resumed)
        )
        state, optimization = trainer.state, trainer.optimization
        backward, save = trainer.stepper.backward, trainer.saver.save
        def recorded(parts):
            ids = [i for batch in parts for i in task.ids(batch.input_ids, batch.labels, batch.segment_ids >= 0)]
            recorder.before(state.progress.step + 1, ids, state.model, optimization.optimizer)
            found = backward(parts)
            recorder.after(found[0])
            if not recorder.spoils: return found
            for p in optimization.trainable(): p.grad = torch.full_like(p, math.nan)
            return math.nan, found[1]
        def saved(*args, **more):
            with recorder.saving(state.progress.step, state.model, optimization.optimizer): return save(*args, **more)
        trainer.stepper.backward, trainer.saver.save = recorded, saved
        trainer.run()

    @staticmethod
    def figures(out):
        from cad_mllm.training import read_metrics
        return {r["step"] for r in read_metrics(out)}

    @staticmethod
    def checkpoints(out):
        return sorted(
            (p for p in out.glob("*/checkpoint-step*")), key=lambda p: int(p.name.split("step")[1].split("-")[0])
        )


class TrainerRunner:
    "`transformers.Trainer`: save_strategy steps, everything saved, data not skipped on resume."
    name = "Trainer"

    def __init__(self, task): self.task = task

    def run(self, out, steps, recorder, resume, batch=BATCH):
        from transformers import Trainer, TrainingArguments
        task = self.task
        class Recorded(Trainer):
            def compute_loss(self, model, inputs, **more):
                recorder.before(
                    self.state.global_step + 1,
                    task.ids(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool()), model,
                    self.optimizer
                )
                loss = super().compute_loss(model, inputs, **more)
                recorder.after(loss.detach())
                return loss*math.nan if recorder.spoils else loss

            def _save_checkpoint(self, model, trial):
                with recorder.saving(self.state.global_step, model, self.optimizer):
                    return super()._save_checkpoint(model, trial)
        args = TrainingArguments(
            output_dir=str(out), max_steps=steps, per_device_train_batch_size=batch, learning_rate=LR,
            lr_scheduler_type="cosine", warmup_steps=2, seed=SEED, data_seed=SEED, save_strategy="steps",
            save_steps=SAVE_EVERY, save_total_limit=3, save_only_model=False, ignore_data_skip=False, logging_steps=1,
            report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False
        )
        trainer = Recorded(task.model().llm, args, train_dataset=task.rows, data_collator=task.pad)
        trainer.train(resume_from_checkpoint=True if resume else None)

    @staticmethod
    def figures(out):
        states = [p/"trainer_state.json" for p in TrainerRunner.checkpoints(out) if (p/"trainer_state.json").exists()]
        return {r["step"] for r in json.loads(states[-1].read_text())["log_history"]} if states else set()

    @staticmethod
    def checkpoints(out): return sorted(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


class AccelerateRunner:
    """`accelerate` as its checkpointing guide has it: save_state with automatic naming, load_state,
    skip_first_batches; the step count is a registered object."""
    name, seedable, stateful, generator = "accelerate, as its guide", False, False, None

    def __init__(self, task): self.task = task

    def run(self, out, steps, recorder, resume, batch=BATCH):
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
        task, progress = self.task, Count()
        accelerator = Accelerator(
            cpu=True,
            project_config=ProjectConfiguration(project_dir=str(out), automatic_checkpoint_naming=True, total_limit=3),
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=self.seedable, use_stateful_dataloader=self.stateful
            )
        )
        set_seed(SEED)
        model = task.model().llm
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1)/2))
        loader = torch.utils.data.DataLoader(
            task.rows, batch_size=batch, shuffle=True, collate_fn=task.pad,
            generator=self.generator and self.generator()
        )
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
        accelerator.register_for_checkpointing(progress)
        if resume:
            accelerator.load_state()
            accelerator.project_configuration.iteration = progress.step//SAVE_EVERY
        first_epoch, done = divmod(progress.step, len(loader))
        model.train()
        for epoch in range(first_epoch, 1000):
            loader.set_epoch(epoch)
            part = (
                accelerator.skip_first_batches(loader, done) if epoch == first_epoch and done and not self.stateful
                else loader
            )
            for batch in part:
                recorder.before(
                    progress.step + 1, task.ids(batch["input_ids"], batch["labels"], batch["attention_mask"].bool()),
                    model, optimizer
                )
                loss = model(**batch).loss
                recorder.after(loss.detach())
                accelerator.backward(loss*math.nan if recorder.spoils else loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                progress.step += 1
                if progress.step % SAVE_EVERY == 0:
                    with recorder.saving(progress.step, model, optimizer): accelerator.save_state()
                if progress.step >= steps: return

    figures = None                                        # it keeps none by itself

    @staticmethod
    def checkpoints(out):
        return sorted((out/"checkpoints").glob("checkpoint_*"), key=lambda p: int(p.name.split("_")[1]))


class BestAccelerateRunner(AccelerateRunner):
    """The same with what makes it exact: the seedable sampler, and a generator of its own for the DataLoader, so
    that making an iterator draws nothing from the one that dropout uses."""
    name = "accelerate, all options"
    seedable = True
    generator = staticmethod(lambda: torch.Generator().manual_seed(SEED))


class StatefulRunner(BestAccelerateRunner):
    "And with torchdata's StatefulDataLoader instead of skip_first_batches."
    name, stateful = "accelerate, all options, stateful loader", True


class Count:
    "A number that `register_for_checkpointing` accepts."
    step = 0
    def state_dict(self): return {"step": self.step}
    def load_state_dict(self, state): self.step = state["step"]


# -- children
# ----------------------------------------------------------------------------------------------------------------------

def child(
    runner, out, steps, resume=False, kill_at=0, wait=True, record="record.jsonl", prepare=None, rank=None, port=0,
    **more
):
    "Fork, run, and return (pid or (wait status, what it said, seconds until its first step))."
    out.mkdir(parents=True, exist_ok=True)
    log, record, began = out.parent/f"{out.name}.{record}.log", out.parent/f"{out.name}.{record}", time.perf_counter()
    sys.stdout.flush()
    if not (pid := os.fork()):
        code = 1
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            recorder = Recorder(record, kill_at)
            if prepare: prepare(recorder)
            random.seed(SEED)
            np.random.seed(SEED)
            if rank is not None:
                os.environ.update(
                    WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port)
                )
            runner.run(out, steps, recorder, resume, **more)
            code = 0
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if not wait: return pid
    _, status = os.waitpid(pid, 0)
    rows = lines(record)
    first = next((r["time"] - began for r in rows if "began" in r and r["time"] > began), None)
    return status, log.read_text(errors="replace"), first


def steps_of(path): return {r["step"]: r for r in lines(path) if "step" in r}


def reason(said):
    "The kind of error and the file that a child ended with."
    found = [s for s in said.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", s)]
    if not found: return "without a word"
    kind, rest = re.match(r"(?:\w+\.)*(\w+):? ?(.*)", found[-1]).groups()
    rest = re.sub(r"\[Errno \d+\] |'", "", re.sub(r"[^ ]*/([^/ ]+)", lambda m: m[1], rest))
    return f"{kind}: {rest[:60]}".strip(": ")


def copy(source, target):
    "Copy a tree; files that are one file with two names stay so."
    seen = {}
    def one(a, b):
        inode = os.stat(a).st_ino
        if inode in seen: os.link(seen[inode], b)
        else:
            shutil.copy2(a, b)
            seen[inode] = b
    shutil.copytree(source, target, copy_function=one)


def resumed(runner, out, steps):
    "Resume latest for one step: (what happened, step resumed from, state hash)."
    record = out.parent/f"{out.name}.resume.jsonl"
    record.unlink(missing_ok=True)
    status, said, _ = child(runner, out, steps, resume=True, record="resume.jsonl")
    began = next((r for r in lines(record) if "began" in r), None)
    if began: return "resumed", began["began"] - 1, began["state"], said
    return f"failed: {reason(said)}" if status else "nothing", None, None, said


# -- the tests
# ---------------------------------------------------------------------------------------------------------------------

YES, NO = "yes", "**no**"


def exact(runner, folder, kills=((7, "first epoch"), (17, "second epoch"))):
    "Killed in the middle of an epoch and resumed, against the unbroken run."
    whole, steps, per_epoch = folder/"whole", 24, runner.task.per_epoch
    status, said, _ = child(runner, whole, steps)
    assert status == 0, said[-3000:]
    want = steps_of(folder/"whole.record.jsonl")
    rows = {k: [] for k in ("losses", "samples", "repeats", "random", "weights")}
    saves = [
        (a, b) for a, b in zip(lines(folder/"whole.record.jsonl"), lines(folder/"whole.record.jsonl")[1:])
        if "saving" in a and "saved" in b
    ]
    for at, where in kills:
        out = folder/f"killed{at}"
        child(runner, out, steps, kill_at=at)
        before = steps_of(folder/f"killed{at}.record.jsonl")
        status, said, first = child(runner, out, steps, resume=True, record="after.jsonl")
        after = steps_of(folder/f"killed{at}.after.jsonl")
        if status or not after:
            for row in rows.values(): row.append(f"{reason(said)} ({where})")
            continue
        begin, end = min(after), (at//per_epoch + 1)*per_epoch
        used = [
            i for s in range((at//per_epoch)*per_epoch + 1, end + 1)
            for i in (after if s >= begin else before)[s]["ids"]
        ]
        finals = [
            next(r["state"] for r in reversed(lines(f)) if r.get("saving") == steps)
            for f in (folder/"whole.record.jsonl", folder/f"killed{at}.after.jsonl")
        ]
        for row, key in (("losses", "loss"), ("samples", "ids"), ("random", "random")):
            different = sum(after[s][key] != want[s][key] for s in after)
            rows[row].append(YES if not different else f"{different} of {len(after)} steps differ")
        missing = len(runner.task.rows) - len(set(used))
        rows["repeats"].append(
            YES if not missing else f"{missing} of {len(runner.task.rows)} samples left out, as many seen twice"
        )
        rows["weights"].append(YES if finals[0] == finals[1] else "they differ")
    size = newest_size(runner.checkpoints(whole)[-1])
    timing = dict(bytes=size, save=statistics.median(b["time"] - a["time"] for a, b in saves[1:]), resume=first)
    return {k: YES if set(v) == {YES} else f"{NO}: " + ", ".join(dict.fromkeys(v)) for k, v in rows.items()}, timing


def newest_size(folder):
    return sum({(s.st_dev, s.st_ino): s.st_size for p in folder.rglob("*") if p.is_file() for s in [p.stat()]}.values())


def killed_while_saving(runner, folder, num, seconds):
    "SIGKILL at `num` moments spread evenly over the third save; then resume latest."
    outcomes = {}
    prepared = folder/"prepared"
    child(runner, prepared, 2*SAVE_EVERY)
    known = {r["saving"]: r["state"] for r in lines(folder/"prepared.record.jsonl") if "saving" in r}
    for i in range(num):
        out = folder/f"k{i}"
        copy(prepared, out)
        read, write = os.pipe()
        def prepare(recorder, write=write):
            recorder.on_save = lambda step: os.write(write, b"s") if step == 3*SAVE_EVERY else None
        pid = child(runner, out, 3*SAVE_EVERY + 1, resume=True, wait=False, prepare=prepare)
        os.close(write)
        if os.read(read, 1): time.sleep(max(seconds*1.1, getattr(runner, "writes_for", 0))*(i + .5)/num)
        with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        states = known | {r["saving"]: r["state"] for r in lines(folder/f"k{i}.record.jsonl") if "saving" in r}
        what, step, state, said = resumed(runner, out, 3*SAVE_EVERY + 1)
        if what != "resumed": kind = what
        elif step not in (2*SAVE_EVERY, 3*SAVE_EVERY): kind = f"resumed from step {step}"
        elif state != states.get(step): kind = "resumed with a state that was never saved"
        else: kind = YES
        outcomes[kind] = outcomes.get(kind, 0) + 1
        shutil.rmtree(out)
    good = outcomes.pop(YES, 0)
    return (
        YES + f" ({good} of {num})" if good == num
        else f"{NO} ({good} of {num}; " + "; ".join(
            f"{n} times {k}" for k, n in sorted(outcomes.items(), key=lambda x: -x[1])
        ) + ")"
    )


def pair(runner, out, steps, record, **more):
    "Two processes, half a batch each; what they said, or None where one of them did not end as it should."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pids = [
        child(runner, out, steps, wait=False, record=f"{record}{r}", rank=r, port=port, batch=BATCH//2, **more)
        for r in (0, 1)
    ]
    end, status = time.perf_counter() + 240, {}
    while len(status) < 2 and time.perf_counter() < end:
        for pid in set(pids) - set(status):
            got, code = os.waitpid(pid, os.WNOHANG)
            if got: status[pid] = code
            # the other one may wait for ever
            if got and code and not more.get("kill_at"): end = min(end, time.perf_counter() + 20)
        time.sleep(.02)
    for pid in set(pids) - set(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = (out.parent/f"{out.name}.{record}0.log").read_text(errors="replace")
    return said, all(status.get(p) == 0 for p in pids)


def both(folder, name, ranks=(0, 1)):
    "step -> the samples and losses of all processes."
    rows = [steps_of(folder/f"{name}{r}") for r in ranks]
    return {
        s: dict(ids=sorted(i for r in rows for i in r[s]["ids"]), loss=[r[s]["loss"] for r in rows])
        for s in sorted(set.intersection(*map(set, rows)))
    }


def processes(runner, folder):
    "Two processes are killed and go on as two, and as one."
    steps, kill_at, found = 12, 7, {}
    said, good = pair(runner, folder/"whole", steps, "w")
    if not good: return dict.fromkeys(("two", "one"), f"not measured: two processes end with {reason(said)}")
    whole = both(folder, "whole.w")
    pair(runner, folder/"killed", steps, "k", kill_at=kill_at)
    copy(folder/"killed", folder/"alone")
    said, good = pair(runner, folder/"killed", steps, "r", resume=True)
    after = both(folder, "killed.r") if good else {}
    def same(key): return sum(after[s][key] != whole[s][key] for s in after)
    if not after: found["two"] = f"{NO}: {reason(said)}"
    else:
        found["two"] = (
            YES if not same("ids") + same("loss")
            else f"{NO}: samples of {same('ids')} and losses of {same('loss')} of {len(after)} steps differ"
        )
    status, said, _ = child(runner, folder/"alone", steps, resume=True, record="r", batch=BATCH//2)
    after = steps_of(folder/"alone.r")
    per_step = {}
    for row in lines(folder/"alone.r"):                   # with accumulation a step has several micro-batches
        if "ids" in row: per_step.setdefault(row["step"], []).extend(row["ids"])
    told = next(
        (
            line.strip() for line in said.splitlines() if re.search(r"(?i)process(es)?\b|world.?size", line)
            and re.search(r"\b2\b|two", line)
        ),
        ""
    )
    if not after: found["one"] = f"stops: {reason(said)}"
    else:
        kept = all(sorted(per_step[s]) == whole[s]["ids"] for s in per_step if s in whole)
        found["one"] = ("same samples a step" if kept else "other samples a step") + (
            ", says so" if told else ", says nothing"
        )
        if kept and told: found["one"] = f"{YES}: {found['one']}"
        elif not told: found["one"] = f"{NO}: {found['one']}"
    return found


def find(folder, names): return next(folder/n for n in names if (folder/n).exists())


def flip(path):
    "Flip one bit in the middle of the largest tensor of a file."
    data = bytearray(path.read_bytes())
    if path.suffix == ".safetensors": at = len(data)//2
    else:
        tensors, todo = [], [torch.load(path, weights_only=True)]
        while todo:
            value = todo.pop()
            if isinstance(value, torch.Tensor): tensors.append(value)
            elif isinstance(value, dict): todo += value.values()
            elif isinstance(value, (list, tuple)): todo += value
        largest = max(
            (t for t in tensors if t.is_floating_point()), key=torch.Tensor.numel
        ).contiguous().numpy().tobytes()
        at = data.index(largest) + len(largest)//2
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "flipped weights": (WEIGHTS, flip),
    "flipped optimizer": (MOMENTS, flip),
    "cut weights": (WEIGHTS, lambda p: os.truncate(p, p.stat().st_size*9//10)),
    "cut optimizer": (MOMENTS, lambda p: os.truncate(p, p.stat().st_size*9//10)),
    "missing optimizer": (MOMENTS, os.unlink),
}


class Code:
    "Leaves a file behind where it is unpickled without care."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return Path.touch, (Path(self.path),)


def damaged(runner, folder):
    "Damage the newest checkpoint in several ways; is it noticed, and does resume latest go on with the one before?"
    prepared, found = folder/"prepared", {}
    if not prepared.exists(): child(runner, prepared, 2*SAVE_EVERY)
    known = {r["saving"]: r["state"] for r in lines(folder/"prepared.record.jsonl") if "saving" in r}
    for name, (names, damage) in DAMAGES.items():
        out = folder/"damaged"
        copy(prepared, out)
        damage(find(runner.checkpoints(out)[-1], names))
        what, step, state, said = resumed(runner, out, 2*SAVE_EVERY + 1)
        if what != "resumed": found[name] = f"noticed, stops: {what.removeprefix('failed: ')}"
        elif state == known.get(step):
            found[name] = YES + (
                ", and goes on with the one before" if step == SAVE_EVERY else ", and goes on with a copy that is whole"
            )
        else: found[name] = f"{NO}, trains on"
        shutil.rmtree(out)
    return found | {"code": code_runs(runner, folder, prepared)}


def code_runs(runner, folder, prepared):
    "Replace each pickle of the newest checkpoint by one that runs code."
    ran, tried = [], []
    for file in sorted(
        p.name for p in runner.checkpoints(prepared)[-1].iterdir() if p.suffix in (".pt", ".pth", ".bin", ".pkl")
    ):
        out, mark = folder/"attacked", folder/"mark"
        copy(prepared, out)
        target = runner.checkpoints(out)[-1]/file
        torch.save(Code(mark), target)
        resumed(runner, out, 2*SAVE_EVERY + 1)
        tried.append(file)
        if mark.exists():
            ran.append(file)
            mark.unlink()
        shutil.rmtree(out)
    return YES if not ran else f"{NO} ({', '.join(ran)} ran)"


def changes_files(event, args, out):
    "Whether an audited operation writes, renames or removes something below a folder."
    if event == "open":
        return (
            args[0] is not None and str(args[0]).startswith(out)
            and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        )
    if event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"): return False
    # by the descriptor of its folder
    return (
        str(args[0]).startswith(out) or event != "os.truncate" and args[-1] not in (-1, None)
        and not os.path.isabs(str(args[0]))
    )


def killed_at_operations(runner, folder, num):
    """SIGKILL right before the first, the last and other file operations of the third save, `num` in all; then
    resume latest."""
    prepared, outcomes = folder/"prepared", {}
    child(runner, prepared, 2*SAVE_EVERY)
    known = {r["saving"]: r["state"] for r in lines(folder/"prepared.record.jsonl") if "saving" in r}
    def saves(name, kill_at):
        "Save a third time; the operations until the end, or until the kill."
        out, done = folder/name, folder/f"{name}.operations"
        copy(prepared, out)
        def prepare(recorder):
            at, begun = os.open(done, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), []
            def seen(event, args):
                if not begun or not changes_files(event, args, str(out)): return
                begun.append(event)
                if len(begun) - 1 == kill_at: os.kill(os.getpid(), signal.SIGKILL)
                os.write(at, b".")
            recorder.on_save = lambda step: begun.append("save") if step == 3*SAVE_EVERY else None
            sys.addaudithook(seen)
        child(runner, out, 3*SAVE_EVERY, resume=True, prepare=prepare)
        return done.stat().st_size
    total = saves("counted", 0)
    for i in sorted({round(1 + k*(total - 1)/(num - 1)) for k in range(num)}):
        name = f"k{i}"
        saves(name, i)
        states = known | {r["saving"]: r["state"] for r in lines(folder/f"{name}.record.jsonl") if "saving" in r}
        what, step, state, said = resumed(runner, folder/name, 3*SAVE_EVERY + 1)
        if what == "resumed" and state != states.get(step): what = "resumed with a state that was never saved"
        elif what == "resumed" and step not in (2*SAVE_EVERY, 3*SAVE_EVERY): what = f"resumed from step {step}"
        outcomes[what] = outcomes.get(what, 0) + 1
        shutil.rmtree(folder/name)
    good, tried = outcomes.pop("resumed", 0), sum(outcomes.values())
    tried += good
    return (
        YES + f" ({good} of {tried}, of {total} operations)" if good == tried
        else f"{NO} ({good} of {tried}; " + "; ".join(
            f"{n} times {k}" for k, n in sorted(outcomes.items(), key=lambda x: -x[1])
        ) + ")"
    )


def weights_of(runner, out):
    return {p: (f.stat().st_ino, f.stat().st_mtime_ns) for p in runner.checkpoints(out) for f in [find(p, WEIGHTS)]}


def occupied(runner, folder):
    """The same command again, without resuming, in the folder of an earlier run: what becomes of the earlier run's
    checkpoints?"""
    out = folder/"run"
    child(runner, out, 2*SAVE_EVERY)
    before = weights_of(runner, out)
    status, said, _ = child(runner, out, 2*SAVE_EVERY, record="again.jsonl")
    after = weights_of(runner, out)
    lost = sum(after.get(p) != known for p, known in before.items())
    if lost: return f"{NO}: {lost} of {len(before)} checkpoints replaced or removed, nothing is said"
    return (
        f"{YES}: refused before its first step" if not steps_of(folder/"run.again.jsonl")
        else f"noticed, stops: {reason(said)}" if status else YES
    )


def becomes_nan(runner, folder):
    "Loss and gradients are NaN from a step on: what does resume latest take afterwards?"
    from safetensors.torch import load_file
    out, begins = folder/"run", SAVE_EVERY + 3
    status, said, _ = child(runner, out, 5*SAVE_EVERY, prepare=lambda recorder: setattr(recorder, "spoil_from", begins))
    good = [p for p in runner.checkpoints(out) if all(t.isfinite().all() for t in load_file(find(p, WEIGHTS)).values())]
    what, step, state, _ = resumed(runner, out, 5*SAVE_EVERY + 1)
    ended = f"stops: {reason(said)}" if status else "trains to the end"
    if what == "resumed" and step < begins and good: return f"{YES}: {ended}; resumes from step {step}"
    return f"{NO}: {ended}; {len(good)} of {len(runner.checkpoints(out))} checkpoints are finite; " + (
        f"resumes from step {step}" if what == "resumed" else what
    )


def second_machine():
    "Make this process look like one of another machine."
    from cad_mllm.utils import run_lock
    socket.gethostname = lambda: "elsewhere"
    run_lock._space = lambda: "elsewhere"


def two_machines(runner, folder):
    "A second training, on another machine, begins in the folder that a first one trains into."
    out = folder/"run"
    first = child(runner, out, 10_000, wait=False)
    while not steps_of(folder/"run.record.jsonl"): time.sleep(.05)
    record = folder/"run.second.jsonl"
    second = child(runner, out, 10_000, wait=False, record="second.jsonl", prepare=lambda recorder: second_machine())
    code = 0
    until = time.perf_counter() + 300
    while not code and time.perf_counter() < until and not any("saved" in r for r in lines(record)):
        time.sleep(.05)
        code, status = os.waitpid(second, os.WNOHANG)
    for pid in (first, *([] if code else [second])):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not steps_of(record): return f"{YES}: the second is refused" if code and status else "no answer in 300 s"
    return (
        f"noticed, stops: {reason((folder/'run.second.jsonl.log').read_text(errors='replace'))}" if code and status
        else f"{NO}: both train and save"
    )


def small_disk(folder, size):
    "Give this process alone a disk of `size` bytes at `folder`; False where the system forbids it."
    libc = ctypes.CDLL(None, use_errno=True)
    new_ns, new_user, private = 0x20000, 0x10000000, 0x4c000
    ids = os.getuid(), os.getgid()
    if libc.unshare(new_ns | (new_user if ids[0] else 0)): return False
    if ids[0]:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1")):
            try: Path(f"/proc/self/{name}").write_text(text)
            except OSError: return False
    libc.mount(b"none", b"/", None, private, None)
    return libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) == 0


def disk_full(runner, folder, size):
    """The disk fills up before the second save: does training go on, and is the first save still resumed from? Runs
    in a forked child with a disk of its own."""
    mount, report = folder/"small", folder/"full.json"
    mount.mkdir(parents=True)
    if not (pid := os.fork()):
        try:
            if small_disk(mount, 12*size + 8_000_000):
                out = mount/"out"
                def fill(step):
                    if step != 2*SAVE_EVERY: return
                    free = os.statvfs(mount).f_bavail*os.statvfs(mount).f_frsize
                    with open(mount/"ballast", "wb") as f: f.write(b"x"*max(0, free - size*3//10))
                record = mount.parent/"full.jsonl"            # on a disk that has room
                record.touch()
                (mount/"out.record.jsonl").symlink_to(record)
                def last(): return max((r["step"] for r in lines(record) if "step" in r), default=0)
                pid = child(
                    runner, out, 2*SAVE_EVERY + 3, wait=False,
                    prepare=lambda recorder: setattr(recorder, "on_save", fill)
                )
                began = time.perf_counter()
                code = 0
                while not code and last() < 2*SAVE_EVERY + 3 and time.perf_counter() < began + 120:
                    time.sleep(.1)
                    code = os.waitpid(pid, os.WNOHANG)[0]
                goes_on, said = last() >= 2*SAVE_EVERY + 3, (mount/"out.record.jsonl.log").read_text(errors="replace")
                # there is room again, for a run that waits for it at its end
                (mount/"ballast").unlink()
                if not code: os.waitpid(pid, 0)
                done = {r["step"] for r in lines(record) if "step" in r}
                kept = runner.figures(out) if runner.figures else None
                figures = (
                    "keeps none by itself" if kept is None else YES if done <= kept
                    else f"{NO}: of {len(done)} steps those of {len(done & kept)}"
                )
                known = {r["saving"]: r["state"] for r in lines(record) if "saving" in r}
                what, step, state, later = resumed(runner, out, 2*SAVE_EVERY + 4)
                good = (
                    what == "resumed" and step in known and state == known[step] or what == "resumed"
                    and step == 2*SAVE_EVERY + 3
                )
                wrong = what if what != "resumed" else f"resumed from step {step} with a state that was never saved"
                report.write_text(
                    json.dumps(
                        dict(
                            figures=figures, goes_on=YES if goes_on else f"{NO} ({reason(said)})",
                            resumes=YES + f" (step {step})" if good
                            else f"{NO} ({wrong})"
                        )
                    )
                )
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    os.waitpid(pid, 0)
    return (
        json.loads(report.read_text()) if report.exists()
        else dict.fromkeys(("goes_on", "resumes", "figures"), "not measured: this system gives no private mounts")
    )


# -- the table
# ---------------------------------------------------------------------------------------------------------------------

TESTS = "exact,kills,operations,damage,full,occupied,nan,machines,processes"
ROWS = {
    "losses": "same losses to the last bit after SIGKILL in mid-epoch (first and second epoch)",
    "weights": "same weights and optimizer state at the end, to the last bit",
    "samples": "each later step takes the same samples as in the unbroken run",
    "repeats": "no sample twice, none left out in the broken epoch",
    "random": "the state of torch's, numpy's and Python's generators at each later step is that of the unbroken run",
    "kills": "killed while saving: resume latest takes the newest whole checkpoint by itself",
    "flipped weights": "one flipped bit in the weights is noticed",
    "flipped optimizer": "one flipped bit in the optimizer's state is noticed",
    "cut weights": "weights cut short are noticed", "cut optimizer": "an optimizer file cut short is noticed",
    "missing optimizer": "a missing optimizer file is noticed",
    "code": "no file of a checkpoint can run code on resume", "goes_on": "disk full during a save: training goes on",
    "resumes": "disk full during a save: resume latest works afterwards",
    "figures": "disk full during a save: the logged figures of every step are there afterwards",
    "operations": "killed before a file operation of a save, from the first to the last: resume latest takes the "
    "newest whole checkpoint",
    "occupied": "a new run in the folder of an earlier one leaves the earlier one's checkpoints alone",
    "nan": "weights that become NaN: said, and resume latest takes a checkpoint from before",
    "machines": "a second machine that trains into the same folder is refused",
    "two": "two processes, both killed, resumed as two: same samples and losses to the last bit",
    "one": "the same, resumed by one process: keeps the samples of each step, or says that it does not"
}


def measure(runner, folder, kills, tests):
    "Every row of one column."
    found, timing = exact(runner, folder/"exact") if "exact" in tests else ({}, {})
    if "operations" in tests: found["operations"] = killed_at_operations(runner, folder/"operations", kills)
    for name, test in (("occupied", occupied), ("nan", becomes_nan), ("machines", two_machines)):
        if name in tests: found[name] = test(runner, folder/name)
    if "kills" in tests: found["kills"] = killed_while_saving(runner, folder/"kills", kills, timing.get("save", .1))
    if "damage" in tests: found |= damaged(runner, folder/"kills" if "kills" in tests else folder/"damage")
    if "processes" in tests: found |= processes(runner, folder/"processes")
    if "full" in tests:
        found |= disk_full(runner, folder/"full", timing.get("bytes") or size_of_one(runner, folder/"size"))
    return found, timing


def size_of_one(runner, folder):
    "The bytes of a checkpoint."
    child(runner, folder/"run", SAVE_EVERY)
    return newest_size(runner.checkpoints(folder/"run")[-1])


def table(columns):
    names = list(columns)
    first = columns[names[0]][1]
    out = [f"| | {' | '.join(names)} |", f"|---|{'---|'*len(names)}"]
    def line(text, cells): return out.append(f"| {text} | {' | '.join(cells)} |")
    for text, key, form in (
        ("bytes of a checkpoint", "bytes", ",d"), ("seconds training waits for a save, median", "save", ".3f"),
        ("seconds from asking to resume to the first step", "resume", ".2f")
    ):
        if not (of := first.get(key)): continue
        line(
            f"{text} (times {names[0]})",
            [f"{t[key]:{form}} ({t[key]/of:.2f})" if t[key] and of else "failed" for _, t in columns.values()]
        )
    for key, text in ROWS.items():
        cells = [f.get(key, "not measured") for f, _ in columns.values()]
        if set(cells) != {"not measured"}: line(text, [c.replace("|", "/") for c in cells])
    return "\n".join(out) + "\n"


def preload():
    "Import once what every child needs."
    for name in ("peft", "accelerate", "transformers.trainer", "cad_mllm.training.trainer"):
        importlib.import_module(name)


def compare(folder, kills=20, only="", tests=TESTS):
    "The table as Markdown."
    preload()
    os.environ["CAD_MLLM_LOCAL"] = str(folder/"local")    # where ours keeps what it cannot deliver
    task, columns = Task(folder, 24), {}
    runners = [OurRunner, TrainerRunner, AccelerateRunner, BestAccelerateRunner]
    if only:
        runners = [r for r in runners + [StatefulRunner] if r.name in only.split(";")]
    for kind in runners:
        for test in ("exact", "operations", "occupied", "nan", "machines", "size"):
            (folder/kind.__name__/test).mkdir(parents=True)
        began = time.perf_counter()
        columns[kind.name] = measure(kind(task), folder/kind.__name__, kills, tests.split(","))
        print(f"  {kind.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "accelerate", "peft"))
    return (
        f"{packages}; {len(task.rows)} samples, batches of {BATCH}, a save every {SAVE_EVERY} steps, on "
        f"{os.uname().sysname}.\n\n"
        + table(columns)
    )


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--kills", type=int, default=20, help="kills while saving and before file operations, for each column"
    )
    parser.add_argument("--quick", action="store_true", help="four kills")
    parser.add_argument("--only", default="", help="names of columns, with semicolons")
    parser.add_argument("--tests", default=TESTS, help=f"any of {TESTS}")
    parser.add_argument("--dir", type=Path, help="work in a temporary folder below this one; default: the system's")
    args = parser.parse_args()
    if not hasattr(os, "fork"): sys.exit("needs os.fork: run it on Linux or macOS")
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        made = compare(Path(folder), 4 if args.quick else args.kills, args.only, args.tests)
    print(made)
    write_out(args.out, made)


if __name__ == "__main__":
    main()
