#!/usr/bin/env python3
"""Begun parts that nobody trained on, completed by a model: what the whole shares with the designer's, beside copying
the beginning.

    python benchmarks/completion.py [CHECKPOINT] [--num 20] [--candidates 8] [--sets procedural,omni,deepcad,cadprompt]
    [--out benchmarks/results/completion.md]

CHECKPOINT is `small`, a folder, or user/model. Of each history the first half of its extrudes is given; histories of
one extrude are not drawn. Procedural parts are held-out ones of the stream; real ones are
read where OMNI_CAD_ROOT and CAD_DATA_ROOT say. Rows: the beginning alone; beginning and caption (procedural parts only,
real ones have none here); beginning and points of the whole.

  next right    share of parts whose first new extrude is of the designer's kind (join, cut, new), with as many loops,
  and shares half of its volume or more with what the designer's next one adds or takes away
  IoU           of the whole with the designer's whole; a part that is not built counts as its beginning does
  agreement     the candidate that agrees most with the others is kept; likelihood: the likeliest; points: the one that
  fits the points best
"""

import numpy as np

from cad_mllm.cad import CADProgram, Extrude
from cad_mllm.data.realistic import realistic_part
from cad_mllm.data.stream import HELD_OUT
from cad_mllm.demo import first_half
from cad_mllm.finishing import propose_rest
from cad_mllm.geometry import build_solid, GeometryError
from cad_mllm.inference import CADAutocomplete
from cad_mllm.interop import read_history
from cad_mllm.metrics import iou
from small_model import files_of
from common import make_parser, table_head, write_out

KERNEL = "manifold"


def ends(program):
    "Operations up to and with each extrude."
    return [i for i, e in enumerate(program.operations(), 1) if isinstance(e, Extrude)]


def cases(name, num):
    "(beginning, whole, caption) of parts that build."
    found = []
    if name == "procedural":
        source = ((p.program, p.caption) for p in (realistic_part(HELD_OUT, 9000 + i) for i in range(100*num)))
    else: source = ((path, "") for path in files_of(name))
    for history, caption in source:
        if len(found) == num: break
        try:
            whole = history if isinstance(history, CADProgram) else read_history(history)
            partial = first_half(whole)
            if partial is None: continue
            for program in (partial, whole): build_solid(program, KERNEL)
        except ValueError: continue
        found.append((partial, whole, caption))
    return found


def solid_after(program, count):
    "The solid of the first `count` extrudes."
    end = ends(program)[count - 1]
    return build_solid(program if end >= len(program) else program.truncate(end), KERNEL)


def next_is_right(written, partial, whole):
    "Whether the first new extrude is the designer's, by kind, loops and what it changes."
    count = len(ends(partial))
    if len(ends(written)) <= count: return False
    first, meant = (p.operations()[ends(p)[count] - 1] for p in (written, whole))
    if first.operation != meant.operation: return False
    loops = [sum(len(profile.loops) for _, profile in p.profiles_of(e)) for p, e in ((written, first), (whole, meant))]
    if loops[0] != loops[1]: return False
    try: solids = [solid_after(p, count + 1).mesh() for p in (written, whole)]
    except GeometryError: return False
    before = build_solid(partial, KERNEL).mesh()
    shared, own = iou(*solids), iou(before, solids[1])
    return shared >= (1 + own)/2


def complete_all(model, asked, candidates, **settings):
    "The histories that a model makes of the requests, as (program, valid)."
    sampling = dict(num=candidates, temperature=.7 if candidates > 1 else 0.)
    results = model.complete_many(asked, batch_size=max(8, candidates), **sampling, **settings)
    return [(CADProgram.from_json(r), bool(r["metadata"]["valid"])) for r in results]


def judge(written, parts):
    "IoU of each whole, and whether the next operation is right."
    shared, right = [], []
    for (program, valid), (partial, whole, _) in zip(written, parts):
        truth = build_solid(whole, KERNEL).mesh()
        kept = program if valid else partial
        shared.append(iou(build_solid(kept, KERNEL).mesh(), truth))
        right.append(valid and next_is_right(program, partial, whole))
    return np.array(shared), np.array(right)


def rows_of(model, name, parts, candidates):
    "The lines of a set."
    copied, _ = judge([(partial, True) for partial, _, _ in parts], parts)
    yield f"| {name} | {len(parts)} | copy the beginning | - | {copied.mean():.3f} | {np.median(copied):.3f} | - |"
    bare = [dict(partial_json=partial) for partial, _, _ in parts]
    told = [dict(partial_json=partial, caption=caption) for partial, _, caption in parts]
    seen = [
        dict(partial_json=partial, point_cloud=build_solid(whole, KERNEL).points(2048)) for partial, whole, _ in parts
    ]
    ways = [("beginning", bare, "likelihood"), ("beginning", bare, "agreement")]
    if all(caption for _, _, caption in parts):
        ways += [("beginning, caption", told, "likelihood"), ("beginning, caption", told, "agreement")]
    ways += [
        ("beginning, points", seen, "agreement"), ("beginning, points", seen, "input"),
        ("beginning, points", seen, "slices too")
    ]
    for given, asked, best in ways:
        proposers = (propose_rest,) if best == "slices too" else ()
        settings = dict(best="input" if proposers else best, proposers=proposers)
        shared, right = judge(complete_all(model, asked, candidates, **settings), parts)
        chosen = {"input": "points", "slices too": "points, slices too"}.get(best, best)
        yield (
            f"| {name} | {len(parts)} | {given} | {chosen} | {shared.mean():.3f} | {np.median(shared):.3f} | "
            f"{100*right.mean():.0f}% |"
        )


def main():
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default="small")
    parser.add_argument("--num", type=int, default=20, help="parts of each set")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--sets", default="procedural,omni,deepcad,cadprompt")
    args = parser.parse_args()
    model = CADAutocomplete(args.checkpoint, device="cpu", kernel=KERNEL)
    lines = [*table_head("set", "parts", "given", "chosen by", "IoU mean", "median", "next right")]
    print("\n".join(lines), flush=True)
    for name in args.sets.split(","):
        parts = cases(name, args.num)
        for line in rows_of(model, name, parts, args.candidates) if parts else ():
            lines.append(line)
            print(line, flush=True)
    head = (
        f"{args.candidates} candidates, half of the extrudes given; what the columns mean stands in "
        "`benchmarks/completion.py`.\n\n"
    )
    write_out(args.out, head + "\n".join(lines) + "\n")


if __name__ == "__main__": main()
