"""A training and a model for the panel's browser tests: both answer at once, and write and obey the files that real
ones do."""
import json
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from cad_mllm.cad import CADProgram
from cad_mllm.panel import train_command


def command(form):
    "What Start runs instead of training: this file, with the same flags."
    return [sys.executable, __file__, *train_command(form)[4:]]


class Echo:
    "A model that gives back the part it was made with."
    def __init__(self, part): self.part = part

    def complete(self, part, caption, image, points, **settings):
        total, given = len(self.part["sequence"]), len(part["sequence"]) if part else 0
        if "on_candidates" in settings:
            tried = [
                SimpleNamespace(
                    program=CADProgram.from_json(self.part), valid=True, fit=.1*(i + 1), score=None, source="model",
                    num_new=total - given
                )
                for i in range(settings["num"])
            ]
            settings["on_candidates"](tried, tried[0])
        return dict(
            self.part,
            metadata=dict(
                partial_operations=given, generated_operations=total - given, total_operations=total, valid=True,
                notes=[]
            )
        )


def _tell(out, state, step, steps):
    status = dict(
        state=state, pid=os.getpid(), host=socket.gethostname(), stage="stage1_text", stage_index=0, num_stages=3,
        step=step, total_steps=steps, loss=1/(step + 1), val_loss=None, lr=1e-3, tokens_per_second=99.0,
        eta_seconds=steps - step, gpu_memory=None, checkpoint="", message=""
    )
    (out/"status.tmp").write_text(json.dumps(status))
    os.replace(out/"status.tmp", out/"status.json")


def main(flags):
    out, steps, first = Path(flags["output_dir"]), int(flags["max_steps"]), 0
    if "resume_from_ckpt" in flags: first = max(json.loads(line)["step"] for line in open(out/"metrics.jsonl"))
    (out/"run_config.json").write_text(json.dumps(dict(command=sys.argv)))
    for step in range(first + 1, steps + 1):
        with open(out/"metrics.jsonl", "a") as f:
            f.write(
                json.dumps(
                    dict(stage="stage1_text", step=step, loss=1/(step + 1), lr=1e-3, tokens=100*step, seconds=.1*step)
                )
                + "\n"
            )
        _tell(out, "running", step, steps)
        print("step", step)
        time.sleep(.1)
        if (out/"stop").exists():
            (out/"stop").unlink()
            _tell(out, "stopped", step, steps)
            return 75
    _tell(out, "done", steps, steps)
    return 0


if __name__ == "__main__": sys.exit(main(dict(zip([w[2:] for w in sys.argv[1::2]], sys.argv[2::2]))))
