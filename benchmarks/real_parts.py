"""Histories from points of real parts that nothing here was trained on, method by method on the same clouds.

usage: python benchmarks/real_parts.py [CAD_DATA_ROOT] [--num_parts 20] [--seed 0]
[--sets omni,deepcad,cadprompt,fusion] [--conditions clean,noise-0.01:6,...] [--methods slabs,greedy,...]
[--checkpoint small] [--again] [--journal benchmarks/results/real_parts.jsonl] [--table] [--out FILE.md]
[--gallery FILE.png]

CAD_DATA_ROOT holds omni-cad/, deepcad/, cadprompt/ and fusion360/ (or the variable of that name says where). Parts are
a seeded sample of each set; a truth that builds no solid is not drawn.

Each measurement is a line of the journal, with its date and commit. What stands there is not measured again (--again:
it is), so a run that was killed goes on, and several runs may share the work by their --sets. --table measures nothing
and makes the table of the whole journal.

  IoU           of the built history and the true solid; a failure counts 0
  Chamfer       median over the parts, times 1,000, in what their values say is the convention of cadrille and
                CAD-Recode (inferred, not read in their code): 8,192 points on each surface, both scaled so that the
                truth's longest side is 1, mean squared distance to the nearest point, both ways added
  invalid       share of parts that gave no solid
  operations    extrudes of all histories together over those of the designers; curves likewise
  seconds       of processor time for one part, mean and most, on one core

Methods: retrieval takes the nearest of 2,000 procedural parts, moved and stretched to the box of the points; slabs
needs no model; greedy is the most likely history that CHECKPOINT writes; model is the best of eight by the points; both
lets the points choose among slabs and the eight; slabs+fit, model+fit and both+fit then fit the numbers for three
seconds.

Conditions: clean is 4,096 points with true normals; noise-X moves each point by a normal of X longest sides and takes
the normals away; dropped keeps a tenth; few is 256 points without normals, what the published models see; one-sided
leaves a quarter of the part, beyond a random plane, unseen; no-normals takes only the normals. A number behind a colon
asks for so many parts of each set instead of --num_parts.
"""
import functools
import json
import os
import random
import subprocess
import time
import zlib
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np                                                # noqa: E402
from scipy.spatial import cKDTree                                 # noqa: E402

from cad_mllm.data.realistic import realistic_part                # noqa: E402
from cad_mllm.geometry import Mesh, build_solid                   # noqa: E402
from cad_mllm.interop import read_history                         # noqa: E402
from cad_mllm.metrics import iou                                  # noqa: E402
from cad_mllm.proposals import propose_with                       # noqa: E402
from cad_mllm.reconstruction import count_curves, propose_slabs, reconstruct # noqa: E402
from common import make_parser, write_out                         # noqa: E402
from real_parts_table import METHODS, SETS, read_journal, report  # noqa: E402

HERE = Path(__file__).resolve().parent
JOURNAL = HERE/"results"/"real_parts.jsonl"
FILES = {
    "omni": "omni-cad/json/*/*.json", "deepcad": "deepcad/json/*.json", "cadprompt": "cadprompt/*/[0-9]*.json",
    "fusion": "fusion360/test/*.py"
}
RETRIEVABLE = 2000


def draw_parts(root, name, num, seed):
    "(id, history, solid) of a seeded sample of one set."
    files = sorted(Path(root).glob(FILES[name]))
    random.Random(seed).shuffle(files)
    parts = []
    for path in files:
        if len(parts) == num: break
        try:
            program = read_history(path)
            solid = build_solid(program, kernel="manifold")
        except ValueError: continue
        if solid.volume > 0: parts.append((path.parent.name if name == "cadprompt" else path.stem, program, solid))
    return parts


def draw_cloud(name, solid, condition):
    "The points of a part under a condition."
    rng = np.random.default_rng(zlib.crc32(f"{name} {condition}".encode()))
    points = np.array(solid.points(256 if condition == "few" else 4096, 0), float)
    size = np.ptp(points[:, :3], axis=0).max()
    if condition.startswith("noise"):
        return points[:, :3] + rng.normal(0, float(condition.split("-")[1])*size, (len(points), 3))
    if condition in ("no-normals", "few"): return points[:, :3]
    if condition == "dropped": return points[rng.permutation(len(points))[:len(points)//10]]
    if condition == "one-sided":
        along = points[:, :3] @ rng.normal(size=3)
        return points[along < np.quantile(along, .75)]
    return points


def peers_chamfer(mesh, truth, seed=1):
    "Squared Chamfer distance of 8,192 points each, where the truth's longest side is 1."
    size = np.ptp(np.array(truth.bounding_box), axis=0).max()
    a, b = (m.points(8192, s)[:, :3]/size for m, s in ((mesh, seed), (truth, 2)))
    return float(sum(np.mean(cKDTree(q).query(p)[0]**2) for p, q in ((a, b), (b, a))))


def boxed(points):
    "Points in the unit cube."
    low, high = points.min(0), points.max(0)
    return (points - low)/np.maximum(high - low, 1e-9)


@functools.lru_cache(None)
def library():
    "(trees of points in the unit cube, meshes, histories' counts) of procedural parts."
    parts = [realistic_part(0, i) for i in range(RETRIEVABLE)]
    meshes = [p.solid.mesh() for p in parts]
    return [cKDTree(boxed(m.points(256, 0)[:, :3])) for m in meshes], meshes, [count_curves(p.program) for p in parts]


def retrieve(points):
    "The nearest procedural part, moved and stretched to the box of the points: (mesh, counts)."
    trees, meshes, counts = library()
    low, high = points[:, :3].min(0), points[:, :3].max(0)
    given = cKDTree(boxed(points[:256, :3]))
    apart = [t.query(given.data)[0].mean() + given.query(t.data)[0].mean() for t in trees]
    best = int(np.argmin(apart))
    return Mesh(boxed(meshes[best].vertices)*(high - low) + low, meshes[best].faces), counts[best]


class Timed:
    "A proposer that proposes once for a cloud, and remembers its processor time."
    def __init__(self, propose): self.propose, self.seconds, self.found = propose, 0., None

    def __call__(self, cloud):
        if self.found is None:
            began = time.process_time()
            self.found = list(self.propose(cloud))
            self.seconds = time.process_time() - began
        return self.found


@functools.lru_cache(None)
def proposer(name, checkpoint):
    "Who proposes histories; a model is loaded once."
    if name == "slabs": return propose_slabs
    return propose_with(checkpoint, num_candidates=1 if name == "greedy" else 8)


def rebuilt(cloud, proposers, fit):
    "(mesh, counts, processor seconds, confidence) of the best history."
    known = sum(p.seconds for p in proposers)
    began = time.process_time()
    result = reconstruct(cloud, tuple(proposers), 3. if fit else 0)
    seconds = known + time.process_time() - began
    return result.mesh, (result.num_operations, result.num_curves), seconds, result.confidence


def measure(part, method, cloud, proposers):
    "What a method makes of a cloud: a line of the journal, without what says which it is."
    _, program, solid = part
    truth = solid.mesh()
    row = dict(true_counts=count_curves(program), iou=0., chamfer=None, seconds=0., counts=(0, 0))
    names, fit = METHODS[method]
    began = time.process_time()
    try:
        if method == "retrieval": mesh, counts = retrieve(cloud)
        else: mesh, counts, row["seconds"], row["confidence"] = rebuilt(cloud, [proposers[n] for n in names], fit)
    except ValueError as problem: return row | dict(seconds=time.process_time() - began, problem=str(problem))
    if method == "retrieval": row["seconds"] = time.process_time() - began
    row |= dict(iou=iou(mesh, truth), chamfer=peers_chamfer(mesh, truth), counts=counts)
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}


def commit():
    "The commit that this is, with a plus where files differ from it."
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()


def measure_set(args, name, known):
    "Measure what the journal lacks of one set."
    asked = [(c.split(":")[0], int(c.partition(":")[2] or args.num_parts)) for c in args.conditions.split(",")]
    parts = draw_parts(args.root, name, max(num for _, num in asked), args.seed)
    methods, here = args.methods.split(","), commit()
    if "retrieval" in methods: library()
    for condition, num in asked:
        for part in parts[:num]:
            missing = [m for m in methods if args.again or (name, part[0], condition, m) not in known]
            cloud = draw_cloud(part[0], part[2], condition)
            proposers = {n: Timed(proposer(n, args.checkpoint)) for m in missing for n in METHODS[m][0]}
            for method in missing:
                row = dict(set=name, part=part[0], condition=condition, method=method)
                row |= measure(part, method, cloud, proposers) | dict(date=str(date.today()), commit=here)
                with open(args.journal, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row, separators=(",", ":")) + "\n")
                print(name, part[0], condition, method, f"IoU {row['iou']:.3f}, {row['seconds']:.1f} s", flush=True)


def peers_of(root, rows):
    "Chamfer of two published models on the Fusion parts of the journal, and what sampling alone gives."
    index = Path(root)/"fusion360"/"index.json"
    names = sorted({r["part"] for r in rows if r["set"] == "fusion" and r["condition"] == "clean"})
    if not index.exists() or not names: return {}
    index, own = json.loads(index.read_text()), []
    for name in names:
        mesh = build_solid(read_history(next(Path(root).glob(f"fusion360/test/{name}.py"))), "manifold").mesh()
        own.append(peers_chamfer(mesh, mesh))
    return {"ground truth, sampled twice": own} | {
        f"{label}, from 256 points without normals, one candidate": [index.get(n, {}).get(key) for n in names]
        for key, label in (("cadrille_rl", "cadrille (RL)"), ("cad_recode_v1_5", "CAD-Recode v1.5"))
    }


def draw_gallery(args, path, num=2):
    "A contact sheet: parts of each set, and what comes of their points under four conditions."
    from cad_mllm.utils.figures import Figure
    conditions = ("clean", "no-normals", "noise-0.01", "few")
    proposers = tuple(proposer(n, args.checkpoint) for n in ("slabs", "model"))
    parts = [p for name in args.sets.split(",") for p in draw_parts(args.root, name, num, args.seed)]
    fig = Figure(figsize=(2.2*(len(conditions) + 1), 2.3*len(parts)), layout="constrained")
    for axes, (name, _, solid) in zip(fig.subplots(len(parts), len(conditions) + 1, squeeze=False), parts):
        axes[0].imshow(solid.mesh().image(260))
        axes[0].set_title(f"{name}\nground truth", fontsize=8)
        for ax, condition in zip(axes[1:], conditions):
            result = reconstruct(draw_cloud(name, solid, condition), proposers)
            ax.imshow(result.mesh.image(260))
            ax.set_title(f"{condition}\nIoU {iou(result.mesh, solid.mesh()):.3f}", fontsize=8)
        for ax in axes: ax.set_axis_off()
    fig.savefig(path, dpi=90)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("root", nargs="?", default=os.environ.get("CAD_DATA_ROOT", ""))
    for flag, default in (
        ("num_parts", 20), ("seed", 0), ("sets", ",".join(SETS)), ("conditions", "clean"),
        ("methods", ",".join(METHODS)), ("checkpoint", "small"), ("gallery", "")
    ):
        parser.add_argument(f"--{flag}", type=type(default), default=default)
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    for flag in ("again", "table"): parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    if not args.root: raise SystemExit("name the folder of real parts, or set CAD_DATA_ROOT")
    if args.gallery: return draw_gallery(args, args.gallery)
    for name in () if args.table else args.sets.split(","): measure_set(args, name, read_journal(args.journal))
    rows = list(read_journal(args.journal).values())
    text = report(rows, peers_of(args.root, rows))
    print(text)
    write_out(args.out, text)


if __name__ == "__main__": main()
