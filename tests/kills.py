"""Every moment at which a run can be killed: after each step, and in each phase of each save.

`strike` sends a signal in the middle of what takes long instead, and counts what still runs of it afterwards.

A point is written `step:7` or `PHASE:3`, the third time that a phase of saving is reached. `arm` makes a process end
there by SIGKILL, `count` makes it write down how often it came to each.
"""
import json
import os
import signal
from pathlib import Path

# of a save -> the chapter and class or None whose function is reached, and whether before or after it
PHASES = {
    "asked": ("training", "Saver", "save", "before"),
    "copied": ("training", "Saver", "save", "after"),
    "sealed": ("checkpoints", None, "seal", "after"),
    "named": ("checkpoints", None, "publish", "after"),
    "tidied": ("checkpoints", None, "write_snapshot", "after"),
    "noted": ("training", "Saver", "note", "after"),
    "next stage": ("training", "Progress", "next_stage", "after"),
    "step": ("training", "Stepper", "train_step", "after"),
}


def _watch(phase, reached):
    "Call `reached` whenever a phase is come to."
    import importlib
    from chapters import Chapter
    module, owner, name, when = PHASES[phase]
    place = getattr(importlib.import_module(f"cad_mllm.{module}"), owner) if owner else Chapter(f"cad_mllm.{module}")
    inner = getattr(place, name)
    def outer(*args, **kwargs):
        if when == "before": reached()
        made = inner(*args, **kwargs)
        if when == "after": reached()
        return made
    setattr(place, name, outer)


def arm(point: str):
    "End this process at a point, without a chance to tidy up; `count:FILE` counts all of them instead."
    phase, _, rest = point.rpartition(":") if not point.startswith("count:") else point.partition(":")
    seen = dict.fromkeys(PHASES, 0)
    def reached(name):
        seen[name] += 1
        if phase == "count": Path(rest).write_text(json.dumps(seen))
        elif name == phase and seen[name] == int(rest): os.kill(os.getpid(), signal.SIGKILL)
    for name in PHASES if phase == "count" else [phase]: _watch(name, lambda name=name: reached(name))


def points(counted: Path) -> list:
    "Every point of a run that was counted."
    return [f"{phase}:{i + 1}" for phase, num in json.loads(Path(counted).read_text()).items() for i in range(num)]



def strike(where: str, told: Path):
    """Send SIGTERM to this process in its third `validation:3` batch, or when parts are drawn the first time
    (`drawing:1`), and write down how often that was begun before and after, and finished."""
    from chapters import Chapter
    from cad_mllm.training import Validation
    what, _, number = where.partition(":")
    training, seen, inside = Chapter("cad_mllm.training"), dict(begun=0, after=0, finished=0), []
    def note(key):
        seen[key] += 1
        Path(told).write_text(json.dumps(seen))
    def begun():
        if seen["begun"] == int(number): return note("after")
        note("begun")
        if seen["begun"] == int(number): os.kill(os.getpid(), signal.SIGTERM)
    def batches(*args, inner=training.batches, **more):
        for batch in inner(*args, **more):
            if inside: begun()
            yield batch
    def held_out_loss(state, inner=training.held_out_loss):
        inside.append(True)
        try: return inner(state)
        finally: inside.clear()
    def draw_held_out(self, inner=Validation.draw_held_out, real={}):  # noqa: B006
        def draw(*args):
            begun()
            picture = real["draw"](*args)
            note("finished")
            return picture
        real.setdefault("draw", self.draw)
        self.draw = draw
        return inner(self)
    if what == "validation": training.batches, training.held_out_loss = batches, held_out_loss
    else: Validation.draw_held_out = draw_held_out


def spoilt_step(spoils, then):
    "`Stepper.backward`, where `spoils(stepper)` says so with `then(stepper, backward, parts)` in its place."
    from cad_mllm.training import Stepper
    backward = Stepper.backward
    return lambda self, parts: then(self, backward, parts) if spoils(self) else backward(self, parts)


def short_of_memory(most: int, step: int, error: BaseException | None = None):
    "`Stepper.backward` of a device that from a step on has no room for more than so many samples at once."
    import torch
    error = (
        error
        or torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
        )
    )
    def then(stepper, backward, parts):
        inner = stepper.state.compute
        def compute(batch):
            if batch.num_samples > most: raise error
            return inner(batch)
        stepper.state.compute = compute
        try: return backward(stepper, parts)
        finally: stepper.state.compute = inner
    return spoilt_step(lambda stepper: stepper.state.progress.step >= step, then)


def not_finite(step: int, times: int):
    "`Stepper.backward` whose gradients are NaN from a step on, so many times in all."
    left = [times]
    def then(stepper, backward, parts):
        left[0] -= 1
        found = backward(stepper, parts)
        stepper.optimization.trainable()[0].grad.fill_(float("nan"))
        return found
    return spoilt_step(lambda stepper: stepper.state.progress.step >= step and left[0], then)
