#!/usr/bin/env python3
"""The small model on parts that nobody trained on: from points to a history, greedily and as the best of eight by the
points.

    python benchmarks/small_model.py CHECKPOINT... [--num 25] [--candidates 8] [--noise 0] [--sets
    procedural,omni,deepcad,cadprompt,fusion] [--out benchmarks/results/small_model.md]

CHECKPOINT is `small`, a folder, or user/model; several take turns on the same clouds. Procedural parts are held-out
ones of the stream. Real parts are read
where they lie: OMNI_CAD_ROOT holds json/, CAD_DATA_ROOT holds deepcad/, cadprompt/ and
fusion360/. None of them trains or selects anything. IoU is that of the solids as they stand; a part that is not built
counts 0.
"""
import itertools
import os
import time
from pathlib import Path

import numpy as np

from cad_mllm.cad import CADProgram
from cad_mllm.data.realistic import realistic_part
from cad_mllm.data.stream import HELD_OUT
from cad_mllm.geometry import GeometryError, build_solid
from cad_mllm.inference import CADAutocomplete
from cad_mllm.interop import read_history
from cad_mllm.metrics import iou
from common import make_parser, table_head

PLACES = {"omni": ("OMNI_CAD_ROOT", "json/*/*.json"), "deepcad": ("CAD_DATA_ROOT", "deepcad/json/*.json"),
          "cadprompt": ("CAD_DATA_ROOT", "cadprompt/*/[0-9]*.json"), "fusion": ("CAD_DATA_ROOT", "fusion360/test/*.py")}


def built(program):
    "The mesh of a history; None where it has none."
    try: return build_solid(program, kernel="manifold").mesh()
    except GeometryError: return None


def procedural(num):
    "Meshes of held-out parts that no validation during training saw."
    return [realistic_part(HELD_OUT, 5000 + i).solid.mesh() for i in range(num)]


def files_of(name):
    "Histories of a collection in an order drawn once and for all; none where its folder is not named."
    root, pattern = PLACES[name]
    paths = sorted(Path(os.environ[root]).glob(pattern)) if os.environ.get(root) else []
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def real(name, num):
    "Meshes of the first `num` of them that build."
    found = []
    for path in files_of(name):
        if len(found) == num: break
        try: mesh = built(read_history(path))
        except ValueError: continue
        if mesh is not None: found.append(mesh)
    return found


def clouds(meshes, noise):
    "2,048 points each, shaken by a share of the longest side."
    out = []
    for i, mesh in enumerate(meshes):
        cloud = mesh.points(2048, i)
        size = np.ptp(cloud[:, :3], axis=0).max()
        cloud[:, :3] += np.random.default_rng(i).normal(0, noise*size, (2048, 3)) if noise else 0
        out.append(cloud)
    return out


def judge(model, meshes, noise, num):
    "One row: IoU of each part, and seconds per part."
    start = time.perf_counter()
    sampling = dict(temperature=0.) if num == 1 else dict(temperature=.7, num=num)
    results = model.complete_many(
        [dict(point_cloud=c) for c in clouds(meshes, noise)], batch_size=max(8, num), **sampling
    )
    seconds = (time.perf_counter() - start)/len(meshes)
    overlaps = []
    for result, truth in zip(results, meshes):
        try: mesh = built(CADProgram.from_json(result))
        except ValueError: mesh = None
        overlaps.append(iou(mesh, truth) if mesh is not None else 0.)
    return np.array(overlaps), seconds


def main():
    p = make_parser(__doc__)
    p.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    p.add_argument("--num", type=int, default=25, help="parts of each set")
    p.add_argument("--candidates", type=int, default=8)
    p.add_argument("--noise", type=float, default=0., help="standard deviation in longest sides")
    p.add_argument("--sets", default="procedural," + ",".join(PLACES))
    args = p.parse_args()
    models = [(Path(c).name, CADAutocomplete(c, device="cpu", kernel="manifold")) for c in args.checkpoints]
    lines = table_head(
        "set", "weights", "parts", "candidates", "IoU mean", "median", "IoU > .9", "not built", "s a part"
    )
    print("\n".join(lines), flush=True)
    for name in args.sets.split(","):
        meshes = procedural(args.num) if name == "procedural" else real(name, args.num)
        asked = itertools.product(dict.fromkeys((1, args.candidates)), models) if meshes else ()
        for num, (weights, model) in asked:
            overlaps, seconds = judge(model, meshes, args.noise, num)
            lines.append(
                f"| {name} | {weights} | {len(meshes)} | {num} | {overlaps.mean():.3f} | {np.median(overlaps):.3f} | "
                f"{100*(overlaps > .9).mean():.0f}% | {100*(overlaps == 0).mean():.0f}% | {seconds:.1f} |"
            )
            print(lines[-1], flush=True)
    if args.out:
        Path(args.out).write_text(
            f"Noise {args.noise:g} of the longest side.\n\n" + "\n".join(lines) + "\n", encoding="utf-8"
        )


if __name__ == "__main__": main()
