#!/usr/bin/env python3
"""Install the wheel as a stranger would and use it: `python tools/check_install.py [--bounds newest|lowest] [--torch
VERSION] [--python PYTHON] [--keep FOLDER]`.

Builds the wheel, makes a new virtual environment outside the checkout and installs the wheel there without
constraints.txt, with a torch given beside it (2.13.0, for which a build without CUDA libraries may lie
at hand; others bring some gigabytes along). `--bounds lowest` pins everything else to the lower bounds that
settings.ini states; torch too, where a build of its bound without CUDA libraries can be had. Then it
runs, in an empty folder: the version, every command's help, `synth`, a training of ten steps, `complete`, and the
panel. A line per step with its seconds; exit code 1 with the output of the step that failed.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
TRAIN = [
    "--recipe", "tiny", "--use_lora", "--lora_r", "4", "--device", "cpu", "--max_steps", "10", "--num_val_samples", "2",
    "--batch_size", "2"
]
COMMANDS = "from cad_mllm.cli import COMMANDS; print(' '.join(COMMANDS))"
PANEL = "import sys, cad_mllm.panel as p; panel = p.CheckpointPanel(sys.argv[1]); print(type(panel).__name__)"


class Failed(Exception):
    "A step that failed, with what it said."


def requirements():
    "(name, lower bound or '') of everything the runtime requires, as settings.ini states it."
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    return [
        re.fullmatch(r"([\w.-]+?)(?:>=([\w.]+))?", word).groups(default="")
        for word in settings["DEFAULT"]["requirements"].split()
    ]


def lower_bounds(torch):
    "Lines for pip that pin each requirement to its lower bound."
    without = [name for name, bound in requirements() if not bound]
    if without: raise Failed(f"settings.ini states no lower bound for {', '.join(without)}")
    return [f"{name}=={torch if name == 'torch' else bound}" for name, bound in requirements()]


class Installation:
    "A virtual environment in a folder of its own, and what is run in it."
    def __init__(self, folder, python):
        self.folder, self.base = Path(folder), python
        self.python, self.command = self.folder/"venv/bin/python", self.folder/"venv/bin/cad-mllm"
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_CONSTRAINT", "VIRTUAL_ENV")}
        self.env = kept | dict(
            OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONNOUSERSITE="1",
            CUDA_VISIBLE_DEVICES=""
        )

    def step(self, what, *command, minutes=5, cwd=None):
        "Run a command in the empty folder, tell its time, and hand on what it printed."
        began = time.monotonic()
        try:
            done = subprocess.run(
                [str(word) for word in command], cwd=cwd or self.folder/"work", env=self.env, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=60*minutes
            )
        except subprocess.TimeoutExpired as e:
            raise Failed(
                f"{what}: no end after {minutes} minutes\n{(e.stdout or b'').decode(errors='replace')[-3000:]}"
            ) from e
        if done.returncode: raise Failed(f"{what}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
        print(f"ok {time.monotonic() - began:6.1f} s  {what}", flush=True)
        return done.stdout

    def pip(self, what, *words, minutes=15):
        "Run pip in the environment."
        return self.step(what, self.python, "-m", "pip", "--disable-pip-version-check", "-q", *words, minutes=minutes)

    def install(self, lowest, torch):
        "Build the wheel and install it beside a torch."
        (self.folder/"work").mkdir(parents=True, exist_ok=True)
        self.step(
            "build the wheel", sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", self.folder,
            copy_of_sources(self.folder/"sources")
        )
        self.step("make a virtual environment", self.base, "-m", "venv", self.folder/"venv")
        known = {name.lower().replace("-", "_") for name, _ in requirements()}
        wheel = next(self.folder.glob("cad_mllm-*.whl"))
        torch = torch or (self.torch_at_bound() if lowest else TORCH)
        pins = self.folder/"pins.txt"
        pins.write_text("\n".join(lower_bounds(torch) if lowest else [f"torch=={torch}"]) + "\n")
        self.pip(
            f"install {wheel.name} with torch {torch}, "
            f"{'all else at its lower bound' if lowest else 'all else at its newest'}",
            "install", "-c", pins, f"torch=={torch}", wheel
        )
        self.pip("pip check", "check")
        found = self.step("list what is installed", self.python, "-m", "pip", "list", "--format", "freeze").splitlines()
        print(
            "             " + " ".join(
                line for line in found if line.split("==")[0].lower().replace("-", "_") in known
            ),
            flush=True
        )

    def torch_at_bound(self):
        "The lower bound of torch where a build without CUDA libraries can be had, else the usual one."
        bound = dict(requirements())["torch"]
        version = f"{bound}.0+cpu" if bound.count(".") == 1 else f"{bound}+cpu"
        try:
            self.pip(
                f"torch {version} can be had", "download", "--no-deps", "-d", self.folder/"torch", f"torch=={version}"
            )
        except Failed:
            print(f"             torch {version} cannot be had here: {TORCH} takes its place", flush=True)
            return TORCH
        self.env["PIP_FIND_LINKS"] = f"{self.env.get('PIP_FIND_LINKS', '')} {self.folder/'torch'}".strip()
        return version

    def use(self):
        "The commands, a training, a completion, the panel."
        self.step("cad-mllm --version", self.command, "--version")
        self.step("python -m cad_mllm --help", self.python, "-m", "cad_mllm", "--help")
        for verb in self.step("list the commands", self.python, "-c", COMMANDS).split():
            self.step(f"cad-mllm {verb} --help", self.command, verb, "--help")
        self.step(
            "cad-mllm synth", self.command, "synth", "data", "--num_parts", "8", "--views", "1", "--size", "64",
            "--jobs", "1"
        )
        self.step(
            "cad-mllm train, ten steps", self.command, "train", *TRAIN, "--data_root", "data", "--output_dir", "output"
        )
        checkpoints = sorted((self.folder/"work/output").rglob("manifest.json"), key=lambda p: p.stat().st_mtime)
        if not checkpoints: raise Failed("the training left no checkpoint")
        partial = next((self.folder/"work/data/json_truncated").rglob("*.json"))
        self.step(
            "cad-mllm complete", self.command, "complete", partial, "--checkpoint", checkpoints[-1].parent,
            "--num_candidates", "1", "--max_new_tokens", "40", "--format", "json", "-o", "part.json"
        )
        self.step(
            "cad-mllm complete, with the small model of the package", self.command, "complete", partial,
            "--num_candidates", "1", "--max_new_tokens", "80", "--format", "json", "-o", "small.json"
        )
        self.step("cad-mllm checkpoints --verify", self.command, "checkpoints", "output", "--verify")
        self.step("the panel", self.python, "-c", PANEL, "output")


def copy_of_sources(target):
    "What a wheel is made of, so that a build leaves nothing in the checkout."
    for name in ("cad_mllm", "scripts"):
        shutil.copytree(ROOT/name, target/name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT/name, target/name)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bounds", choices=["newest", "lowest"], default="newest", help="of everything but torch")
    parser.add_argument(
        "--torch", default="",
        help=f"its version (default: {TORCH}; with --bounds lowest its bound where that can be had without CUDA "
        "libraries)"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--keep", default="", help="a new folder for everything, which then stays")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cad-mllm-install-") as temporary:
        installation = Installation(args.keep or temporary, args.python)
        try:
            installation.install(args.bounds == "lowest", args.torch)
            installation.use()
        except Failed as e: sys.exit(f"FAILED {e}")
    print(f"the installation with {args.bounds} dependencies works ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
