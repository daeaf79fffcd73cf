"""Kill a short run of three stages at every moment, or at some, and compare each resumed run with the unbroken one to
the last bit.

usage: python benchmarks/kill_everywhere.py [--num 0] [--seed 0] [--only full] [--dir FOLDER] [--journal FILE] [--out
FILE.md]

  --num      moments of each variant, drawn by --seed; 0 for all of them
  --only     full, "lora, dropout" or accumulation; default: all three
  --journal  JSON lines, one for each moment that was tried: the same command goes on after them while the package is
  the same
  --out      where the table goes

Prints a line for each moment whose resumed run differs, and a table; the exit code is 1 where there was one.
"""
import hashlib
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tests"))

from small_data import make
from test_train import assert_same
from test_train_kills import VARIANTS, killed_and_resumed, whole_run
from common import make_parser, table_head, write_out


ROOT = Path(__file__).resolve().parent.parent


def source() -> str:
    "A hash of the package: what was found of another one does not count."
    files = sorted((ROOT/"cad_mllm").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Journal:
    "What was found at each moment, kept in a file where one is named."
    def __init__(self, file):
        self.file, self.source, self.found = file and Path(file), source(), {}
        lines = self.file.read_text().splitlines() if self.file and self.file.exists() else []
        for row in map(json.loads, lines):
            if row["source"] == self.source: self.found[row["run"], row["moment"]] = row["same"]

    def keep(self, run, moment, same):
        "Note a moment, at once."
        self.found[run, moment] = same
        if not self.file: return
        row = dict(source=self.source, run=run, moment=moment, same=same)
        with self.file.open("a") as out: out.write(json.dumps(row) + "\n")


def same_run(data, folder, out, name, point) -> bool:
    """Whether a run that is killed at a point and goes on ends as the unbroken one; the folder of one that does not
    stays."""
    try: assert_same(out, found := killed_and_resumed(data, folder, name, point))
    except AssertionError as e:
        print(f"{name}, killed at {point}: {str(e)[:400]}", flush=True)
        return False
    shutil.rmtree(found)
    return True


def measure(
    data, # folder of the data set
    folder, # of this variant's runs
    name, # of the variant
    num, # moments; 0 for all
    seed, # of the sample
    journal, # of what was found
) -> list: # of (moment, whether it made the same run)
    "One variant at so many of its moments."
    folder.mkdir(parents=True)
    out, points = whole_run(data, folder, name)
    if num: points = random.Random(seed).sample(points, min(num, len(points)))
    for point in points:
        if (name, point) not in journal.found: journal.keep(name, point, same_run(data, folder, out, name, point))
    return [(point, journal.found[name, point]) for point in points]


def table(found_of) -> str:
    "The counts of each variant as Markdown."
    lines = [*table_head("run", "moments", "resumed to the last bit")]
    for name, found in found_of.items():
        lines.append(f"| {name} | {len(found)} | {sum(same for _, same in found)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--num", type=int, default=0, help="moments of each variant; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(VARIANTS))
    parser.add_argument("--dir", default=None, help="where runs that differ are kept; default: nowhere")
    parser.add_argument(
        "--journal", default="", help="JSON lines of the moments that were tried; they are not tried again"
    )
    args = parser.parse_args()
    journal, found = Journal(args.journal), {}
    folder = Path(tempfile.mkdtemp(dir=args.dir))
    data = make(folder/"data", 8)
    for i, name in enumerate([args.only] if args.only else VARIANTS):
        found[name] = measure(data, folder/str(i), name, args.num, args.seed, journal)
        print(name, len(found[name]), flush=True)
    made = table(found)
    write_out(args.out, made)
    print(made)
    failed = any(not same for some in found.values() for _, same in some)
    if not (failed and args.dir): shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__": sys.exit(main())
