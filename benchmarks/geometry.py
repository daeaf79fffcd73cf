"""What geometry costs, how the two kernels agree, and where real parts leave the box that their file states.

usage: python benchmarks/geometry.py [OMNI_CAD_ROOT] [--limit N] [--repeats 3] [--synthetic 60] [--out FILE.md]

Without a folder (an argument, or the variable OMNI_CAD_ROOT) it takes synthetic parts. CPU time of one process on one
thread; of --repeats runs of the same call the best counts, as other work on the machine only ever adds time. Each row
names its baseline and says how many times the baseline's time it takes (below 1 is faster).

  solid        history -> solid, with all checks. Baseline: the same kernel, every step checked as it is made
  (`strict`), which is what building without a second kernel's verdict asks for
  mesh         solid -> closed triangles with edges. Baseline: OpenCascade's default mesher at the same tolerances
  STEP         solid -> file. Baseline: none
  GLB          solid with its mesh -> file. Baseline: none
  points       8,192 with normals, from a solid with its mesh. Baseline: numpy.random.choice weighted by area
  picture      224 x 224, shaded, with edges, from a solid with its mesh. Baseline: matplotlib's Poly3DCollection,
  without edges
  drawing      visible and hidden lines as SVG. Baseline: none
  metrics      of every third part against the next one, both scaled to size 1: 2,000 points (chamfer, F-score), mesh
  (topology), solid (IoU of the part by one kernel and by the other). Baseline of chamfer: all distances by NumPy

Times hang on the machine: the yardstick above the tables is the time of a million additions in a Python loop on the
same core, taken before each part.

Boxes. A file states the box of the whole model in the CAD system. `equal` and `inside` allow a thousandth of its
diagonal; everything else is listed with what the file itself says about why.
"""
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

os.environ.setdefault("OMP_NUM_THREADS", "1")
# manifold3d takes as many threads as there are cores; times are those of one
if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tests"))
from chapters import Chapter
G = Chapter("cad_mllm.geometry")
from cad_mllm.cad import CADProgram, Extrude, Sketch  # noqa: E402
from cad_mllm.geometry import GeometryError, build_solid  # noqa: E402
from cad_mllm.metrics import align_box, chamfer, fscore, iou, topology  # noqa: E402
from common import make_parser, write_out

TARGETS = {"solid": 10, "picture": 20, "points": 2} # milliseconds, median


def load(root, limit, num_synthetic):
    "(name, history) of each part."
    if root:
        files = sorted(Path(root).glob("json/*/*.json"))[:limit or None]
        return [(f"{f.parent.name}/{f.stem}", CADProgram.from_json(f)) for f in files]
    from cad_mllm.data import make_part
    return [make_part(0, i)[:2] for i in range(limit or num_synthetic)]


def best(func, repeats):
    "Least CPU seconds of several calls, and the last result."
    seconds = math.inf
    for _ in range(repeats):
        began = time.process_time()
        result = func()
        seconds = min(seconds, time.process_time() - began)
        if seconds > 2: break
    return seconds, result


def strict_solid(program, kernel):
    "Every step checked as it is made."
    plan = G.make_plan(program)
    history = list(G.manifold_steps(plan))
    if kernel == "occ": return G.occ_build(plan, history, strict=True)
    return [G.manifold_mesh(body).is_watertight for _, _, body in history]


def plain_mesh(solid):
    occ = G.load_occ()
    occ.BRepTools.Clean_s(solid._shape)
    occ.BRepMesh_IncrementalMesh(solid._shape, G._DEFLECTION, False, G._ANGLE, False)


def fresh_mesh(solid, light):
    "Triangles made again."
    if solid._shape is None: return G.manifold_mesh(light)
    G.load_occ().BRepTools.Clean_s(solid._shape)
    return G.occ_mesh(solid._shape)


def choice_points(mesh, num):
    "What most code does."
    rng, normals = np.random.default_rng(0), mesh._normals()
    areas = np.linalg.norm(normals, axis=1)
    face = rng.choice(len(areas), num, p=areas/areas.sum())
    u, v = rng.random((2, num, 1))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces[face]], 1, 0)
    return np.concatenate([a + u*(b - a) + v*(c - a), (normals/areas[:, None])[face]], 1)


def matplotlib_picture(mesh):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection
    figure = Figure(figsize=(2.24, 2.24), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot(projection="3d")
    axes.add_collection3d(Poly3DCollection(mesh.vertices[mesh.faces], facecolors="lightsteelblue", shade=True))
    low, high = np.array(mesh.bounding_box)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def all_distances(a, b):
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2*a@b.T
    return float(np.sqrt(square.min(1).clip(0)).mean() + np.sqrt(square.min(0).clip(0)).mean())


def measure(program, kernel, repeats, folder):
    "One part by one kernel: seconds of each product, of its baseline, and the solid."
    seconds, base = {}, {}
    seconds["solid"], solid = best(lambda: build_solid(program, kernel=kernel), repeats)
    base["solid"], _ = best(lambda: strict_solid(program, kernel), max(1, repeats - 1))
    light = None if kernel == "occ" else list(G.manifold_steps(G.make_plan(program)))[-1][2]
    if kernel == "occ": base["mesh"], _ = best(lambda: plain_mesh(solid), repeats)
    seconds["mesh"], _ = best(lambda: fresh_mesh(solid, light), repeats)
    mesh = solid.mesh()
    if kernel == "occ": seconds["STEP"], _ = best(lambda: solid.export(f"{folder}/part.step"), repeats)
    seconds["GLB"], _ = best(lambda: solid.export(f"{folder}/part.glb"), repeats)
    seconds["points"], _ = best(lambda: solid.points(8192), repeats)
    base["points"], _ = best(lambda: choice_points(mesh, 8192), repeats)
    seconds["picture"], _ = best(lambda: solid.image(224), repeats)
    base["picture"], _ = best(lambda: matplotlib_picture(mesh), 1)
    seconds["drawing"], _ = best(lambda: solid.drawing().svg(), repeats)
    return seconds, base, solid


def measure_metrics(mesh, other, twin, repeats):
    seconds, base = {}, {}
    a, b = (G.Mesh(*align_box((m.vertices, m.faces))) for m in (mesh, other))
    p, q = a.points(2000)[:, :3].astype(float), b.points(2000)[:, :3].astype(float)
    seconds["chamfer"], near = best(lambda: chamfer(p, q), repeats)
    base["chamfer"], far = best(lambda: all_distances(p, q), repeats)
    assert abs(near - far) < 1e-6, (near, far)
    seconds["F-score"], _ = best(lambda: fscore(p, q, .05), repeats)
    seconds["topology"], _ = best(lambda: topology(mesh.vertices, mesh.faces), 1)
    seconds["IoU"], _ = best(lambda: iou(mesh, twin), 1)
    return seconds, base


def side_text(below, above):
    "Which sides of the stated box the solid passes, and by how much."
    return ", ".join(
        f"{sign}{axis} by {1000*d:.3g} mm" for sign, over in (("-", below), ("+", above))
        for axis, d in zip("xyz", over) if d > 0
    )


def why_beyond(program, low, high):
    "What the file itself says about why its box is smaller than what its operations build."
    said, plan, slack = [], G.make_plan(program), 1e-3*np.linalg.norm(high - low)
    empty = [f"{i + 1}" for i, e in enumerate(program.operations()) if isinstance(e, Extrude) and not e.profiles]
    alone = [
        step.index + 1 for step, tools, _ in G.manifold_steps(plan)
        if np.abs(
            np.reshape(
                G.manifold_mesh(tools[0] if len(tools) == 1 else sum(tools[1:], tools[0])).bounding_box, (2, 3)
            )*plan.scale
            + plan.center - [low, high]
        ).max() < slack
    ]
    if empty and alone:
        said.append(
            f"operations {' and '.join(empty)} name no profile, and the stated box is that of operation {alone[0]} "
            "alone: the model lacks the bodies that the others joined"
        )
    later = [e.name or i for i, e in program.entities.items() if isinstance(e, Sketch) and i not in program.sequence]
    if later:
        said.append(
            f"the file also holds {' and '.join(map(repr, later))}, which none of its operations uses: it is cut off "
            "before the operation that does, and the box was taken after it"
        )
    return "; ".join(said) or "not explained"


def place(program, solid):
    "'equal', 'inside' or (sides, reason) for a file that states a box; None for one that does not."
    given = program.extra.get("properties", {}).get("bounding_box")
    if not given: return None
    low, high = (np.array([given[k][c] for c in "xyz"]) for k in ("min_point", "max_point"))
    (least, most), slack = np.array(solid.bounding_box), 1e-3*np.linalg.norm(high - low)
    if np.abs([least - low, most - high]).max() < slack: return "equal"
    if (least > low - slack).all() and (most < high + slack).all(): return "inside"
    return side_text(
        np.where(least < low - slack, low - least, 0), np.where(most > high + slack, most - high, 0)
    ), why_beyond(program, low, high)


def yardstick():
    """Milliseconds that this core needs for a million additions in a Python loop: what else runs on the machine
    shows here."""
    def add():
        total = 0
        for i in range(1_000_000): total += i
    return 1000*best(add, 3)[0]


def study(parts, repeats):
    "All measurements: a dict for each part."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, program in tqdm(parts, desc="parts"):
            row = dict(
                name=name, yardstick=yardstick(), num=len(program.operations()),
                steps=sum(isinstance(e, Extrude) for e in program.operations())
            )
            try:
                for kernel in ("occ", "manifold"): row[kernel] = measure(program, kernel, repeats, folder)
            except GeometryError as e: row["error"] = str(e)
            else:
                solid, light = row["occ"][2], row["manifold"][2]
                row.update(
                    valid=solid.is_valid and light.is_valid,
                    closed=solid.mesh().is_watertight and light.mesh().is_watertight,
                    differ=abs(light.volume/solid.volume - 1), box=place(program, solid)
                )
            rows.append(row)
        good = [r for r in rows if "error" not in r]
        for r, s in tqdm(list(zip(good, good[1:] + good[:1]))[::3], desc="metrics"):
            r["metrics"] = measure_metrics(
                r["manifold"][2].mesh(), s["manifold"][2].mesh(), r["occ"][2].mesh(), repeats
            )
    return rows


def cell(values):
    "Median, 95th percentile and parts a second."
    if not len(values): return "| | | "
    ms = 1000*np.asarray(values)
    return f"| {np.median(ms):.2f} | {np.quantile(ms, .95):.1f} | {1000/ms.mean():,.0f} "


def ratio(mine, theirs):
    return f"{np.median(np.asarray(mine)/np.asarray(theirs)):.2f}" if len(theirs) == len(mine) and len(mine) else ""


def tables(rows, what):
    good = [r for r in rows if "error" not in r]
    boxes = [r["box"] for r in good if r["box"]]
    yield (
        f"{len(rows)} {what}, {sum(r['steps'] for r in rows)} extrudes. Times are CPU milliseconds of one process on "
        "one core, on which meanwhile a million additions in a Python loop took "
        f"{np.median([r['yardstick'] for r in rows]):.0f} ms (from {min(r['yardstick'] for r in rows):.0f} to "
        f"{max(r['yardstick'] for r in rows):.0f}).\n"
    )
    yield "| question | answer |\n|---|---|"
    yield f"| build a solid with both kernels | {len(good)} of {len(rows)} |"
    yield f"| pass the kernel's own check (B-rep; closed triangles) | {sum(r['valid'] for r in good)} of {len(rows)} |"
    yield f"| triangles of both kernels closed | {sum(r['closed'] for r in good)} of {len(rows)} |"
    yield f"| largest difference of the two kernels' volumes | {max(r['differ'] for r in good):.1e} |"
    if boxes:
        for kind in ("equal", "inside"):
            yield (
                f"| stated box: {kind} | {boxes.count(kind)} of {len(boxes)} ({100*boxes.count(kind)/len(boxes):.1f}%) "
                "|"
            )
        beyond = [r for r in good if isinstance(r["box"], tuple)]
        yield f"| stated box: beyond | {len(beyond)} of {len(boxes)} ({100*len(beyond)/len(boxes):.1f}%) |"
    for r in rows:
        if "error" in r: yield f"| {r['name']} | {r['error']} |"
    if boxes and beyond:
        yield "\nBeyond the stated box:\n\n| part | passes | what the file says |\n|---|---|---|"
        for r in beyond: yield f"| {r['name']} | {r['box'][0]} | {r['box'][1]} |"
    yield "\nEach product, a part at a time (median, 95th percentile, parts a second a core):\n"
    yield (
        "| product | target | OpenCascade | p95 | parts/s | / baseline | manifold3d | p95 | parts/s | / baseline | "
        "manifold3d / OpenCascade |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for product in ("solid", "mesh", "STEP", "GLB", "points", "picture", "drawing"):
        times = {k: [r[k][0][product] for r in good if product in r[k][0]] for k in ("occ", "manifold")}
        bases = {k: [r[k][1][product] for r in good if product in r[k][1]] for k in ("occ", "manifold")}
        target = f"{TARGETS[product]}" if product in TARGETS else ""
        yield (
            f"| {product} | {target} {cell(times['occ'])}| {ratio(times['occ'], bases['occ'])} "
            f"{cell(times['manifold'])}| {ratio(times['manifold'], bases['manifold'])} | "
            f"{ratio(times['manifold'], times['occ'])} |"
        )
    yield "\n| metric | median | p95 | parts/s | / baseline |\n|---|---|---|---|---|"
    for metric in ("chamfer", "F-score", "topology", "IoU"):
        some = [r["metrics"] for r in good if "metrics" in r]
        times, bases = [m[0][metric] for m in some], [m[1][metric] for m in some if metric in m[1]]
        yield f"| {metric} {cell(times)}| {ratio(times, bases)} |"
    yield "\nHow a solid's time grows with the extrudes of its history:\n"
    yield (
        "| extrudes | parts | OpenCascade, median | slowest | manifold3d, median | slowest | manifold3d / OpenCascade "
        "|\n|---|---|---|---|---|---|---|"
    )
    for low, high in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 10**6)):
        some = [r for r in good if low <= r["steps"] <= high]
        if not some: continue
        occ, light = (1000*np.array([r[k][0]["solid"] for r in some]) for k in ("occ", "manifold"))
        yield (
            f"| {low if low == high else f'{low} to {high}' if high < 10**6 else f'{low} and more'} | {len(some)} | "
            f"{np.median(occ):.1f} | {occ.max():.0f} | {np.median(light):.1f} | {light.max():.0f} | "
            f"{np.median(light/occ):.2f} |"
        )
    slow = max(good, key=lambda r: r["occ"][0]["solid"])
    yield (
        f"\nThe slowest: {slow['name']}, {slow['num']} operations, {slow['occ'][0]['solid']:.1f} s "
        f"({slow['occ'][1]['solid']:.1f} s where every step is checked)."
    )


def main():
    parser = make_parser(__doc__)
    parser.add_argument("root", nargs="?", default=os.environ.get("OMNI_CAD_ROOT", ""))
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--synthetic", type=int, default=60, help="synthetic parts, where there is no folder")
    args = parser.parse_args()
    parts = load(args.root, args.limit, args.synthetic)
    if not parts: sys.exit(f"{args.root}: no histories in json/*/*.json")
    build_solid(parts[0][1]).image(32) # what is loaded once is not a part's time
    text = "\n".join(tables(study(parts, args.repeats), "real histories" if args.root else "synthetic parts")) + "\n"
    print(text)
    write_out(args.out, text)


if __name__ == "__main__":
    main()
