"""What the token language changes of real histories: dimensions, crossings, and whether encoding again gives the same
tokens.

usage: python benchmarks/dimensions.py FOLDER... [--limit N] [--jobs N] [--out FILE.md]

Every history below each folder (JSON, build123d scripts) is encoded and decoded. Compared are the history as it was
read and as it was decoded:
  depth     the length of each extrude
  radius    of each circle and arc
  distance  of each two parallel straight edges of a loop
Only lengths above 1/5,000 of the part's longest side count. One that changes by more than 2% is a change.
  gone      a loop, or an edge or arc that nothing lies near any more; these are no dimensions, and are counted apart.
  An arc that lies within two
            millionths of the side of its chord may become a line
  crossed   a loop whose edges cross each other after decoding and did not before
  unstable  encode(decode(t)) differs from t
"""
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cad_mllm.cad import decode, encode
from cad_mllm.cad.curves import arc_circle, CADFormatError
from cad_mllm.cad.program import Extrude, polyline
from cad_mllm.data.points import bounding_box_upper_bound
from cad_mllm.interop import read_history
from common import make_parser, write_out

LIMIT, SMALLEST, FLATTEST = .02, 1/5000, 2e-6


def loops_of(program, extrude):
    "The contours of an extrude, each in metres on its sketch's axes in space (origin left out)."
    found = []
    for sketch, profile in program.profiles_of(extrude):
        try: found += [(sketch.frame, contour) for contour in profile.contours()]
        except CADFormatError: continue
    return found


def traits_of(frame, contour):
    "What tells a loop from others: its corners in space, the root of its area, the share of its perimeter."
    points = frame.to_world(polyline(contour))
    around = np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=1).sum()
    return np.concatenate([points.min(0), points.max(0), [abs(contour.area())**.5, around/4]])


def edges_of(frame, contour):
    "(start, middle, end, radius or 0) of each edge in space; a circle has none."
    found = []
    for a, m, b in contour.edges() if contour.radius is None else ():
        circle = None if m is None else arc_circle(a, m, b)
        middle = (a + b)/2 if m is None else m
        a, middle, b = frame.to_world(np.stack([a, middle, b]))
        found.append((a, middle, b, 0. if circle is None else circle[1]))
    return found


def apart(one, two):
    "How far the ends and middles of two edges lie apart."
    a, m, b, _ = one
    straight, turned = (np.abs(a - p).max() + np.abs(b - q).max() for p, q in ((two[0], two[2]), (two[2], two[0])))
    return np.abs(m - two[1]).max() + min(straight, turned)


def beside(edge, others):
    """The edge that an edge became; None where none lies nearer than its own length. Of arcs that lie as near, the
    one of its radius."""
    same = [o for o in others if bool(o[3]) == bool(edge[3])]
    if not same: return None
    off = np.array([apart(edge, o) for o in same])
    length = max(np.linalg.norm(edge[2] - edge[0]), np.linalg.norm(edge[1] - edge[0]))
    if off.min() > length: return None
    near = [o for o, d in zip(same, off) if d < 2*off.min() + 1e-12]
    return min(near, key=lambda o: abs(o[3] - edge[3]))


def partners(old, new):
    """The edge that each edge became: the one at its place around the loop where both have as many edges, else the
    nearest; None for an arc that became straight."""
    if len(old) != len(new) or not old: return [beside(e, new) for e in old]
    middles, there = np.array([e[1] for e in old]), np.array([e[1] for e in new])
    turned = [np.roll(way, -i) for way in (np.arange(len(new)), np.arange(len(new))[::-1]) for i in range(len(new))]
    best = min(turned, key=lambda order: np.abs(there[order] - middles).sum())
    return [new[i] if bool(new[i][3]) == bool(e[3]) else None for e, i in zip(old, best)]


def distances(edges, normals=None):
    "Distances (E, E) of the middles of edges from the line of each, and the unit directions."
    ends = np.array([(a, b) for a, _, b, _ in edges])
    along = ends[:, 1] - ends[:, 0]
    length = np.linalg.norm(along, axis=1)
    along = along/np.maximum(length, 1e-15)[:, None]
    middle = ends.mean(1)
    apart = middle[None] - middle[:, None]
    across = apart - (apart*along[:, None]).sum(-1, keepdims=True)*along[:, None]
    return np.linalg.norm(across, axis=-1), along, length


def changed(before, after, size): return before > SMALLEST*size and abs(after - before) > LIMIT*before


def compare_edges(old, new, size):
    "What changed within one loop: (kind, before, after)."
    became = partners(old, new)
    for edge, other in zip(old, became):
        if not edge[3]: continue
        chord, bulge = np.linalg.norm(edge[2] - edge[0]), np.linalg.norm(edge[1] - (edge[0] + edge[2])/2)
        if chord > SMALLEST*size and bulge > FLATTEST*size and other is None: yield "arc gone", chord, 0.
        elif other is not None and edge[3] < 100*size and changed(edge[3], other[3], size):
            yield "radius", edge[3], other[3]
    straight = [(e, m) for e, m in zip(old, became) if not e[3] and np.linalg.norm(e[2] - e[0]) > SMALLEST*size]
    lines, matched = [e for e, _ in straight], [m for _, m in straight]
    kept = [i for i, m in enumerate(matched) if m is not None]
    for e, m in zip(lines, matched):
        if m is None: yield "edge gone", float(np.linalg.norm(e[2] - e[0])), 0.
    if len(kept) < 2 or len(kept) > 1500: return
    lines, matched = [lines[i] for i in kept], [matched[i] for i in kept]
    before, along, length = distances(lines)
    after, _, _ = distances(matched)
    parallel = np.linalg.norm(np.cross(along[:, None], along[None]), axis=-1) < 1e-3
    longer = length[:, None] >= length[None]
    bad = parallel & longer & (before > SMALLEST*size) & (np.abs(after - before) > LIMIT*before)
    for i, j in np.argwhere(bad): yield "distance", float(before[i, j]), float(after[i, j])


def crosses(contour, most=600):
    "Whether edges that share no corner cross; None for a loop too long to look at."
    if contour.radius is not None: return False
    points = polyline(contour)
    if len(points) > most: return None
    a, b = points, np.roll(points, -1, axis=0)
    def side(p, q, r):
        return (q[..., 0] - p[..., 0])*(r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1])*(r[..., 0] - p[..., 0])
    one, two = a[:, None], b[:, None]
    eps = 1e-9*np.ptp(points, axis=0).max()**2
    s1, s2 = side(one, two, a[None]), side(one, two, b[None])
    hit = (s1*s2 < 0) & (np.abs(s1) > eps) & (np.abs(s2) > eps)
    return bool((hit & hit.T).any())


def look(file):
    "A row for one history."
    row = dict(file=str(file), changes=[], crossed=0, unstable=False, tokens=0, extrudes=0)
    try:
        program = read_history(file)
        tokens = encode(program)
    except (CADFormatError, ValueError) as e: return {**row, "refused": str(e).splitlines()[0][:120]}
    again = decode(tokens)
    row["tokens"] = len(tokens)
    try: row["unstable"] = encode(again) != tokens
    except CADFormatError as e: row["unstable"] = str(e)
    box = bounding_box_upper_bound(program)
    size = float((box[1] - box[0]).max())
    old = [
        e for e in program.operations() if isinstance(e, Extrude) and e.span()[1] > e.span()[0] and loops_of(program, e)
    ]
    new = [e for e in again.operations() if isinstance(e, Extrude)]
    row["extrudes"] = len(old)
    if len(old) != len(new): return {**row, "unmatched": f"{len(old)} extrudes became {len(new)}"}
    for e, f in zip(old, new):
        (low, high), (below, above) = e.span(), f.span()
        was, now = high - low, above - below
        if changed(was, now, size): row["changes"].append(("depth", was, now))
        before, after = loops_of(program, e), loops_of(again, f)
        traits = np.array([traits_of(*p) for p in after])
        for frame, contour in before:
            off = np.abs(traits - traits_of(frame, contour))
            nearest = int(off.max(1).argmin())
            new_frame, made = after[nearest]
            if off[nearest, :-1].max() > .01*size:
                row["changes"].append(("loop gone", float(np.ptp(contour.vertices, axis=0).max()), 0.))
                continue
            if contour.radius is not None or made.radius is not None:
                r, s = contour.radius or 0., made.radius or 0.
                if changed(r, s, size): row["changes"].append(("radius", r, s))
                continue
            row["changes"] += list(compare_edges(edges_of(frame, contour), edges_of(new_frame, made), size))
            row["crossed"] += bool(crosses(made) and not crosses(contour))
    row["changes"] = [(k, a/size, b/size) for k, a, b in row["changes"]]
    return row


def safe(file):
    "As `look`; a row with the error for a history that none of it can be said of."
    try: return look(file)
    except Exception as e: return dict(file=str(file), error=f"{type(e).__name__}: {e}")


def histories(root):
    "Files of histories below a folder."
    return sorted(p for p in root.rglob("*") if p.suffix in (".py", ".json") and p.name != "index.json")


KINDS = {
    "depth": "depth", "radius": "radius", "distance": "distance", "loop gone": "loop gone",
    "edge gone": "short edge gone", "arc gone": "short arc gone"
}


def table(rows_of):
    "The counts of each set as Markdown, and the histories that are not right."
    lines = [
        "| set | histories | read | unstable | crossed | " + " | ".join(KINDS.values()) + " |",
        "|---"*(5 + len(KINDS)) + "|"
    ]
    for name, rows in rows_of.items():
        read = [r for r in rows if "refused" not in r and "error" not in r]
        counts = [sum(any(k == kind for k, _, _ in r["changes"]) for r in read) for kind in KINDS]
        cells = [
            len(rows), len(read), sum(bool(r["unstable"]) for r in read), sum(bool(r["crossed"]) for r in read), *counts
        ]
        lines.append(f"| {name} | " + " | ".join(f"{c:,}" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def worst(rows_of):
    "A line for each history that is not right."
    for row in (r for rows in rows_of.values() for r in rows):
        if "error" in row: yield f"{Path(row['file']).name}: {row['error']}"
        elif row.get("unstable") or row.get("crossed") or row.get("changes") or "unmatched" in row:
            shown = [f"{kind} {before:.5f} -> {after:.5f}" for kind, before, after in row["changes"][:3]]
            flags = [name for name in ("unstable", "crossed") if row[name]]
            yield f"{Path(row['file']).name}: " + ", ".join(
                [*flags, *shown, *([row["unmatched"]] if "unmatched" in row else [])]
            )


def main():
    parser = make_parser(__doc__)
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    rows_of = {}
    with ProcessPoolExecutor(args.jobs) as pool:
        for root in args.roots:
            files = histories(root)[:args.limit or None]
            rows_of["/".join(root.parts[-2:])] = list(tqdm(pool.map(safe, files), total=len(files), desc=root.name))
    made = table(rows_of)
    write_out(args.out, made)
    print("\n" + made + "\n" + "\n".join(worst(rows_of)))


if __name__ == "__main__": main()
