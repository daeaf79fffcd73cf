"""Kill a short run of three stages at every moment, or at some, and compare each resumed run with the unbroken one to
the last bit.

usage: python benchmarks/kill_everywhere.py [--num 0] [--seed 0] [--only full] [--dir FOLDER]

  --num   moments of each variant, drawn by --seed; 0 for all of them
  --only  full, "lora, dropout" or accumulation; default: all three

Prints a line for each moment whose resumed run differs, and a table; the exit code is 1 where there was one. A moment
takes about three seconds.
"""
import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tests"))

from small_data import make
from test_train import assert_same
from test_train_kills import VARIANTS, killed_and_resumed, whole_run


def measure(data, folder, name, num, seed) -> tuple: # (moments that were tried, those that made another run)
    "One variant at so many of its moments."
    folder.mkdir(parents=True)
    out, points = whole_run(data, folder, name)
    if num: points = random.Random(seed).sample(points, min(num, len(points)))
    wrong = []
    for point in points:
        try: assert_same(out, found := killed_and_resumed(data, folder, name, point))
        except AssertionError as e:
            wrong.append(point)
            print(f"{name}, killed at {point}: {str(e)[:400]}", flush=True)
        else: shutil.rmtree(found)
    return points, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=0, help="moments of each variant; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(VARIANTS))
    parser.add_argument("--dir", default="", help="where the runs are kept; default: a temporary folder")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.dir or temporary)
        data = make(folder/"data", 8)
        print("| run | moments | resumed to the last bit |\n|---|---|---|", flush=True)
        for i, name in enumerate([args.only] if args.only else VARIANTS):
            points, wrong = measure(data, folder/str(i), name, args.num, args.seed)
            print(f"| {name} | {len(points)} | {len(points) - len(wrong)} |", flush=True)
            failed += len(wrong)
    return int(failed > 0)


if __name__ == "__main__": sys.exit(main())
