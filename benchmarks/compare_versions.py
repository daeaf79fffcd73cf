#!/usr/bin/env python3
"""The same seeded work in two versions: `python benchmarks/compare_versions.py OLD [NEW] [--parts 12] [--out FILE]`.

OLD and NEW (default HEAD) are revisions of this repository, OLD not before 0.2.0. Each is unpacked and does three
things in processes of its own: it makes procedural parts, it encodes those of OLD as tokens, and it trains the tiny
recipe on them for three short stages. What is compared: the files of the parts, the tokens, the loss of each step, and
the SHA-256 of each weight at the end. Each version is given the values of `AS_BEFORE` for settings that are younger
than 0.2.0, so that they speak alike.
"""
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from common import make_parser

ROOT = Path(__file__).resolve().parent.parent
AS_BEFORE = {       # `points_frame` is the earlier name of `point_normalization`; a version knows one of them
    "token_version": "1", "points_frame": "box", "point_normalization": "unit_cube", "measure_version": "1"
}
TRAIN = {
    "recipe": "tiny", "max_train_samples": "24", "num_val_samples": "4", "batch_size": "8", "num_workers": "0",
    "save_steps": "0", "seed": "3", "stage1_epochs": "1", "stage2_epochs": "1", "stage3_epochs": "1"
}
PROBE = '''
import hashlib, importlib, inspect, json, sys
from pathlib import Path

def named(name, *modules):
    for module in modules:
        try: return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError): pass
    raise SystemExit(f"{name} is in none of {modules}")

def parts(out, num):
    named("synthesize", "cad_mllm.data", "cad_mllm.synthetic")(out, num=num, seed=0)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(out).rglob("json/*/*.json"))}

def products(out):
    named("prepare", "cad_mllm.data", "cad_mllm.prepare")(out, image_size=64, num_views=1, num_points=512, jobs=0)
    return {}

def tokens(root):
    from cad_mllm import CADProgram
    from cad_mllm.tokens import encode
    options = {"version": 1} if "version" in inspect.signature(encode).parameters else {}
    files = sorted(Path(root).rglob("json/*/*.json"))
    return {p.name: " ".join(encode(CADProgram.from_json(p), **options)) for p in files}

def weights(run):
    from safetensors import safe_open
    found = {}
    for file in sorted(Path(run, "final_model").rglob("*.safetensors")):
        with safe_open(file, "pt") as f:
            for name in f.keys():
                data = f.get_tensor(name).contiguous()
                found[name] = hashlib.sha256(data.view(-1).numpy().tobytes()).hexdigest()
    return found

what, *given = sys.argv[1:]
print("RESULT " + json.dumps(globals()[what](*[int(g) if g.isdigit() else g for g in given])))
'''


class Version:
    "A revision, unpacked, and what it says."
    def __init__(self, revision, folder):
        self.name, self.folder = revision, folder
        folder.mkdir()
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
        (folder/"all.tar").write_bytes(archive)
        with tarfile.open(folder/"all.tar") as tar: tar.extractall(folder, filter="data")
        (folder/"probe.py").write_text(PROBE)

    def run(self, *command):
        "Run a Python command of this version; its output."
        env = os.environ | {"PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], cwd=self.folder, env=env, capture_output=True, text=True)
        if done.returncode: sys.exit(f"{self.name}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def ask(self, *what):
        "What the probe finds."
        lines = self.run("probe.py", *map(str, what)).splitlines()
        return json.loads(next(s for s in reversed(lines) if s.startswith("RESULT ")).removeprefix("RESULT "))

    def train(self, data, out):
        "(loss of each step, SHA-256 of each weight) of a short training."
        known = self.run("-m", "cad_mllm", "train", "--help")
        settings = TRAIN | {k: v for k, v in AS_BEFORE.items() if f"--{k}" in known}
        flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
        self.run("-m", "cad_mllm", "train", "--data_root", str(data), "--output_dir", str(out), *flags)
        rows = [json.loads(line) for line in (out/"metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row], self.ask("weights", out)


def compared(what, old, new):
    "A row of the table: how many there are, how many are equal, the first that is not."
    keys = sorted({*old, *new}, key=str)
    differing = [k for k in keys if old.get(k) != new.get(k)]
    first = ""
    if differing:
        was, now = (str(found.get(differing[0]))[:20] for found in (old, new))
        first = f"{differing[0]}: {was} / {now}"
    return f"| {what} | {len(keys)} | {len(keys) - len(differing)} | {first} |", not differing


def main():
    parser = make_parser(__doc__)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--parts", type=int, default=12, help="procedural parts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        old, new = Version(args.old, folder/"old"), Version(args.new, folder/"new")
        made = [v.ask("parts", folder/f"parts-{n}", args.parts) for v, n in ((old, 0), (new, 1))]
        old.ask("products", folder/"parts-0")
        said = [v.ask("tokens", folder/"parts-0") for v in (old, new)]
        losses, weights = zip(*(v.train(folder/"parts-0", folder/f"run-{n}") for n, v in enumerate((old, new))))
    rows = [
        compared("files of procedural parts", *made), compared("sequences of tokens", *said),
        compared("losses, a step each", *(dict(enumerate(found)) for found in losses)),
        compared("weights at the end (SHA-256)", *weights)
    ]
    digest = hashlib.sha256(json.dumps(weights[0], sort_keys=True).encode()).hexdigest()[:16]
    head = ["| what | number | equal | the first that is not |", "|---|---:|---:|---|"]
    table = "\n".join([*head, *(row for row, _ in rows)])
    flags = " ".join(f"--{k} {v}" for k, v in AS_BEFORE.items())
    text = f"{args.old} against {args.new}, with {flags}; all weights of {args.old}: {digest}\n\n{table}\n"
    print(text)
    if args.out: args.out.write_text(text)
    sys.exit(not all(same for _, same in rows))


if __name__ == "__main__":
    main()
