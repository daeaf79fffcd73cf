"""Trainings as real processes that start at once: a server imports everything, each training is a fork of it with its
own process group, log and environment.

A fork is killed, stopped and timed like any process; only the seconds of importing are shared. Run as a script it is
the server: a JSON request a line on
stdin, an answer a line on stdout.
"""
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kills
import limits
from small_data import LLM

# a model of the real classes in its smallest size, three short stages; later flags win
FLAGS = [
    "--recipe", "tiny", "--llm_config", json.dumps(LLM), "--projector_hidden_dim", "16", "--num_points", "64",
    "--num_point_tokens", "4", "--image_size", "32", "--point_encoder_hidden_dim", "16", "--device", "cpu",
    "--logging_steps", "1", "--batch_size", "4", "--num_val_samples", "2", "--warmup_steps", "3",
    "--max_tokens_per_batch", "0", "--stage1_epochs", "1", "--stage2_epochs", "1", "--stage3_epochs", "1"
]


def after(out, num, saved=0):
    """A condition: `num` steps are logged, and with `saved` a checkpoint of that step or a later one is complete;
    saving goes on in the background."""
    def reached():
        from cad_mllm.checkpoints import list_checkpoints
        from cad_mllm.training import read_metrics
        if len(read_metrics(out)) < num: return False
        return not saved or any(r.complete and r.step >= saved for r in list_checkpoints(out))
    return reached


def _serve():
    from cad_mllm import cli  # noqa: F401
    from chapters import Chapter
    Chapter("cad_mllm.training")
    from cad_mllm.config import tiny
    from cad_mllm.models import CADMLLMModel
    for lora in (False, True):         # whatever building a model imports
        config = tiny()[0]
        config.llm_config, config.use_lora, config.lora_r = LLM, lora, 4
        CADMLLMModel(config)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request: answer = _fork(cli.main, **request["start"])
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _fence(step):
    """From a step on, a training waits for a signal or the stop file, so that a test that is slow to act does not
    find it finished."""
    from cad_mllm.training import Loop
    ask = Loop.asked_to_stop
    def wait_and_ask(self):
        while self.state.progress.step >= step and not self.state.stopper.check(): time.sleep(.005)
        return ask(self)
    Loop.asked_to_stop = wait_and_ask


def _fork(main, argv, log, env):
    "A training in a process group of its own; its process id."
    from cad_mllm import training
    if pid := os.fork(): return pid
    code = 1
    try:
        limits.arm(limits.CHILD_SECONDS)
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for fd in (1, 2): os.dup2(out, fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(env)
        if "FENCE" in env: _fence(int(env["FENCE"]))
        if "KILL" in env: kills.arm(env["KILL"])
        if "STRIKE" in env: kills.strike(*env["STRIKE"].split("@"))
        for name in ("short_of_memory", "not_finite"):
            if name in env: training.Stepper.backward = getattr(kills, name)(*map(int, env[name].split()))
        sys.argv = ["cad-mllm", *argv]
        main(argv)
    except SystemExit as e: code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Server:
    "The preloaded process, started when first needed."
    process = None

    def ask(self, **request):
        if self.process is None or self.process.poll() is not None:
            here = Path(__file__).resolve()
            path = os.pathsep.join([str(here.parent.parent), str(here.parent), os.environ.get("PYTHONPATH", "")])
            # it serves many tests
            env = {
                **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", limits.SECONDS: "0"
            }
            self.process = subprocess.Popen(
                [sys.executable, str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
            )
            assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.process = None


SERVER = Server()
atexit.register(SERVER.close)


class Training:
    "A training that runs: `out` is its folder, `text` what it has said."
    def __init__(self, data, out, *flags, env=None, only=None, log=None, fence=None):
        self.out, self.code = Path(out), None
        if not log: self.out.parent.mkdir(parents=True, exist_ok=True)
        self.log = Path(log) if log else self.out.with_name(f"{self.out.name}-{time.monotonic_ns()}.log")
        argv = (
            ["train", *only] if only
            else ["train", *FLAGS, "--data_root", str(data), "--output_dir", str(out), *map(str, flags)]
        )
        self.pid = SERVER.ask(
            start=dict(argv=argv, log=str(self.log), env={**(env or {}), **({"FENCE": str(fence)} if fence else {})})
        )

    @property
    def text(self): return self.log.read_text(errors="replace")

    def poll(self):
        if self.code is None: self.code = SERVER.ask(poll=self.pid)
        return self.code

    def wait(self, code=None, timeout=300):
        "The exit code, which has to be `code` if one is given."
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"no end after {timeout} s: {self.text[-3000:]}")
            time.sleep(.01)
        assert code is None or self.code == code, f"exit code {self.code}\n{self.text[-4000:]}"
        return self.code

    def send(self, number): os.kill(self.pid, number)

    def kill(self):
        "SIGKILL to the whole group: nobody gets a chance to tidy up."
        try: os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        while self.poll() is None: time.sleep(.005)

    def until(self, condition):
        "Wait until `condition()`; the training has to be alive so long."
        while not condition():
            assert self.poll() is None, f"it ended with {self.code}: {self.text[-4000:]}"
            time.sleep(.02)
        return self


def configs(data, out, *flags):
    "The two configurations that a training's flags mean, for training within the test's own process."
    from cad_mllm import cli
    return cli.configs(
        cli.train_parser().parse_args([*FLAGS, "--data_root", str(data), "--output_dir", str(out), *map(str, flags)])
    )


def peers(size):
    "The environment that a launcher gives to each of `size` processes."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [
        dict(WORLD_SIZE=str(size), RANK=str(r), LOCAL_RANK=str(r), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for r in range(size)
    ]


if __name__ == "__main__": _serve()
