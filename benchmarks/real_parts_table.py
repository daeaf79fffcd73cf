"""The journal of benchmarks/real_parts.py and the tables that it makes. A line is one part under one condition by one
method; of several lines about the same, the last one counts."""
import json
import statistics
from collections import Counter

import numpy as np

from common import table

SETS = ("omni", "deepcad", "cadprompt", "fusion")
CONDITIONS = ("clean", "no-normals", "noise-0.005", "noise-0.01", "noise-0.02", "dropped", "one-sided", "few")
# who proposes, and whether numbers are fitted
METHODS = {
    "retrieval": ((), False), "slabs": (("slabs",), False), "slabs+fit": (("slabs",), True),
    "greedy": (("greedy",), False), "model": (("model",), False), "model+fit": (("model",), True),
    "both": (("slabs", "model"), False), "both+fit": (("slabs", "model"), True)
}
HEAD = (
    "set", "condition", "method", "parts", "IoU mean", "IoU median", "Chamfer x1,000", "invalid",
    "operations / designer's", "curves / designer's", "seconds mean, most", "IoU > .9 where confidence >= .9"
)


def read_journal(path):
    "(set, part, condition, method) -> the last line about it."
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        row = json.loads(line)
        found[row["set"], row["part"], row["condition"], row["method"]] = row
    return found


def ordered(row):
    "Where a line stands in the table."
    return SETS.index(row["set"]), CONDITIONS.index(row["condition"]), list(METHODS).index(row["method"])


def median(values): return statistics.median(values) if values else float("nan")


def summarize(rows):
    "What the rows of one set, condition and method say together: the last cells of their line."
    overlaps = [r["iou"] for r in rows]
    distances = [r["chamfer"] for r in rows if r["chamfer"] is not None]
    operations, curves = (sum(r["counts"][k] for r in rows)/sum(r["true_counts"][k] for r in rows) for k in (0, 1))
    seconds = [r["seconds"] for r in rows]
    sure = [r["iou"] > .9 for r in rows if r.get("confidence", 0) >= .9]
    return (
        len(rows), f"{np.mean(overlaps):.3f}", f"{np.median(overlaps):.3f}", f"{1000*median(distances):.3f}",
        f"{1 - len(distances)/len(rows):.1%}", f"{operations:.2f}", f"{curves:.2f}",
        f"{np.mean(seconds):.1f}, {max(seconds):.1f}", f"{np.mean(sure):.0%} of {len(sure)}" if sure else "-"
    )


def grouped(rows):
    "(set, condition, method) -> its rows, in the order of the table."
    found = {}
    for row in sorted(rows, key=ordered):
        found.setdefault((row["set"], row["condition"], row["method"]), []).append(row)
    return found


def overview(rows):
    "IoU mean / median of all sets side by side: a row for each condition and method."
    groups = grouped(rows)
    lines = []
    for condition in CONDITIONS:
        for method in METHODS:
            of = {s: [r["iou"] for r in groups.get((s, condition, method), [])] for s in SETS}
            if not any(of.values()): continue
            cells = [f"{np.mean(v):.3f} / {np.median(v):.3f} ({len(v)})" if v else "-" for v in of.values()]
            lines.append((condition, method, *cells))
    return table(("condition", "method", *SETS), lines)


def report(
    rows: list, # lines of a journal
    peers: dict, # label -> Chamfer distances on the Fusion parts, None where a model gave no solid
) -> str:
    "The tables of a journal as Markdown."
    when = Counter(f"{r['date']} {r['commit']}" for r in rows)
    measured = ", ".join(f"{which} ({count:,})" for which, count in sorted(when.items()))
    text = [
        "# Real parts", "", f"Measured {measured}.", "",
        "## IoU, mean / median (parts)", "", overview(rows),
        "## Each set", "",
        table(HEAD, [(*key, *summarize(of)) for key, of in grouped(rows).items()])
    ]
    if peers:
        lines = []
        for label, values in peers.items():
            valid = [v for v in values if v is not None]
            lines.append((label, f"{1000*median(valid):.3f}", f"{len(valid)} of {len(values)}"))
        text += ["## Chamfer x1,000 of the Fusion parts in the row `clean`", ""]
        text.append(table(("method", "median", "parts"), lines))
    text.append(
        "What the columns mean stands in `benchmarks/real_parts.py`. The published models saw 256 points without "
        "normals, as the rows `few` do, and wrote one candidate, as `greedy` does; the other rows saw 4,096 points. Of "
        "the first 20 parts with seed 0, about half were looked at during development."
    )
    return "\n".join(text) + "\n"
