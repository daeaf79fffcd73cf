"""How fine a grid, and which form: token counts, and what comes back as a solid, on real histories.

usage: python benchmarks/tokens.py OMNI_CAD_ROOT [--levels 256,1024,4096] [--tokenizer DIR] [--limit N] [--jobs N]
[--max-tokens N] [--out FILE.md]

Each history is encoded and decoded on grids of different fineness. Both the original and the decoded one are built by
OpenCascade.
  valid    the kernel's own check passes on the decoded solid
  close    and the mean distance from its surface to the original's is below 1/1000 of the bounding box diagonal
  exact    share of the coordinates of the first sketch that fall on the grid within a thousandth of a level
Shares are of all files; a history that cannot be encoded, decoded or built counts as failed.
The tables are printed and, with --out, written as Markdown (the notebook 02_tokens and the README show
benchmarks/results/tokens.md).
With --tokenizer (a folder with a Hugging Face tokenizer such as Qwen3's) the JSON and text forms are counted too.
"""
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cad_mllm.cad import CADProgram
from cad_mllm.geometry import build_solid, surface_distance
from cad_mllm.cad import decode, encode, to_records, to_text, VERSION
from common import make_parser, table_head, write_out


def compare(file, levels):
    "For one file: a row for each number of levels."
    program = CADProgram.from_json(file)
    whole = build_solid(program)
    low, high = np.array(whole.bounding_box)
    diagonal, target, rows = np.linalg.norm(high - low), whole.mesh(), {}
    for num in levels:
        try:
            tokens = encode(program, num_levels=num)
            made = build_solid(decode(tokens))
            there = surface_distance(made.points(2000), target).mean()
            back = surface_distance(whole.points(2000), made.mesh()).mean()
            rows[num] = dict(
                tokens=len(tokens), valid=bool(made.is_valid), distance=float(max(there, back)/diagonal),
                on_grid=on_grid(program, num)
            )
        except Exception as e:
            rows[num] = dict(tokens=None, valid=False, distance=None, error=f"{type(e).__name__}: {e}")
    return rows


def on_grid(program, num_levels):
    "(coordinates of the first sketch on the grid, all of them)."
    encoder, _ = to_records(program, num_levels=num_levels)
    sketch = program.entities[encoder.written[0][0]]
    values = np.concatenate(
        [
            np.r_[c.vertices.ravel(), [c.radius] if c.radius else []] for p in encoder.written[0][1]
            for c in sketch.profiles[p].contours()
        ]
    )
    off = np.abs(values/encoder.grid.unit - np.rint(values/encoder.grid.unit))
    return int((off < 2e-3).sum()), len(values)


def forms(files, tokenizer):
    "Token counts of the other forms of each file."
    rows = {"minified JSON": [], "text form": []}
    for f in files:
        program = CADProgram.from_json(f)
        rows["minified JSON"].append(
            len(tokenizer(json.dumps(json.loads(Path(f).read_text()), separators=(",", ":")))["input_ids"])
        )
        rows["text form"].append(len(tokenizer(to_text(program))["input_ids"]))
    return rows


def line(name, counts):
    counts = np.array(counts)
    return (
        f"| {name} | {counts.mean():,.0f} | {np.median(counts):,.0f} | {np.percentile(counts, 95):,.0f} | "
        f"{counts.max():,} | {100*(counts <= 2048).mean():.1f}% |"
    )


def tables(files, levels, results, tokenizer):
    "Both tables as Markdown."
    out = [
        f"{len(files)} real histories, version {VERSION} of the token language:", "",
        *table_head("form", "mean tokens", "median", "p95", "max", "fits 2,048")
    ]
    if tokenizer:
        from transformers import AutoTokenizer
        out += [line(name, counts) for name, counts in forms(files, AutoTokenizer.from_pretrained(tokenizer)).items()]
    out += [line("CAD tokens", [len(encode(CADProgram.from_json(f))) for f in files]), ""]
    if len(results) < len(files):
        out += [
            f"Solids, of the {len(results)} histories that are short enough to build on every grid in reasonable time:",
            ""
        ]
    out += [
        *table_head("levels", "mean tokens", "valid", "close", "median distance / diagonal", "exact")
    ]
    for num in levels:
        rows = [r[num] for _, r in results]
        hit, of = np.sum([r.get("on_grid", (0, 0)) for r in rows], axis=0)
        close = [r["valid"] and r["distance"] is not None and r["distance"] < 1e-3 for r in rows]
        out.append(
            f"| {num:,} | {np.mean([r['tokens'] for r in rows if r['tokens']]):.0f} | "
            f"{100*np.mean([r['valid'] for r in rows]):.1f}% | {100*np.mean(close):.1f}% "
            f"| {np.median([r['distance'] for r in rows if r['distance'] is not None]):.1e} | {100*hit/of:.0f}% |"
        )
    return "\n".join(out) + "\n"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--levels", default="256,1024,4096")
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--max-tokens", type=int, default=0,
        help="build only histories of at most so many tokens; the table says how many were left out"
    )
    args = parser.parse_args()
    files = sorted(map(str, args.root.glob("json/*/*.json")))[:args.limit or None]
    levels = [int(n) for n in args.levels.split(",")]
    if not files: sys.exit(f"{args.root}/json holds no histories")
    built = [f for f in files if not args.max_tokens or len(encode(CADProgram.from_json(f))) <= args.max_tokens]
    with ProcessPoolExecutor(args.jobs) as pool:
        results = list(
            tqdm(zip(built, pool.map(compare, built, [levels]*len(built))), total=len(built), desc="histories")
        )
    made = tables(files, levels, results, args.tokenizer)
    print("\n" + made)
    write_out(args.out, made)
    for file, r in results:
        bad = {
            n: x.get("error") or f"distance {x['distance']:.2e}" for n, x in r.items() if not x["valid"]
            or x["distance"] is None or x["distance"] >= 1e-3
        }
        if 1024 in bad: print(Path(file).name, bad)


if __name__ == "__main__":
    main()
