"""How long the panel takes with many checkpoints: to open, sort, filter, turn a page, read the folder again.

usage: python benchmarks/panel.py [--checkpoints 1000] [--rounds 5] [--out FILE.md]

The baseline is the way a table is usually made of widgets: a row of nine labels and a button for each checkpoint, in
the same process, from the same rows.
"""
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ipywidgets as widgets    # noqa: E402

from cad_mllm.panel.table import _cell  # noqa: E402
from cad_mllm.panel import COLUMNS, CheckpointPanel, example_folder  # noqa: E402
from common import make_parser, table_head, write_out


def make_folder(folder, num):
    "Ten runs that hold `num` checkpoints together, beside the example ones."
    example_folder(folder)
    source = next((folder/"brackets"/"stage1_text").glob("checkpoint-step20-*"))
    manifest = json.loads((source/"manifest.json").read_text())
    for i in range(num):
        target = (
            folder/f"run{i % 10}"/f"stage{i // 10 % 3 + 1}_text"/f"checkpoint-step{i // 10}-loss1.0-20260101_000000"
        )
        shutil.copytree(source, target)
        for file in manifest["files"].values(): file["sha256"] = f"{i:064x}"       # equal weights would share a row
        (target/"manifest.json").write_text(json.dumps(manifest))
    return folder


def timed(func, rounds):
    "Median seconds and the last result."
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = func()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def usual(rows):
    "A widget for every cell."
    return widgets.VBox(
        [
            widgets.HBox([widgets.Label(_cell(r, key)) for key, _ in COLUMNS] + [widgets.Button(description="pick")])
            for r in rows
        ]
    )


def measure(folder, rounds):
    "(what, seconds of the panel, seconds of the baseline or None)"
    CheckpointPanel(folder)            # imports and fonts
    opened, panel = timed(lambda: CheckpointPanel(folder), rounds)
    plain, _ = timed(lambda: usual(panel.rows), max(1, rounds//2))
    again, _ = timed(panel.refresh, rounds)
    sort, _ = timed(lambda: panel.table.sort("loss"), rounds)
    page, _ = timed(lambda: panel.table.turn(1), rounds)
    def find():
        panel.table.text.value = "stage2 flanges"
        panel.table.text.value = ""
    found, _ = timed(find, rounds)
    return len(panel.rows), [
        ("open", opened, opened + plain), ("read the folder again", again, again + plain), ("sort", sort, plain),
        ("turn a page", page, None), ("filter, and back", found, 2*plain)
    ]


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        num, rows = measure(make_folder(Path(folder)/"checkpoints", options.checkpoints), options.rounds)
    lines = [
        f"{num} rows, median of {options.rounds}:", "", *table_head("", "panel, s", "a widget a cell, s", "ratio")
    ]
    lines += [
        f"| {what} | {a:.3f} | {f'{b:.3f}' if b else '–'} | {f'{b/a:.1f}' if b else '–'} |" for what, a, b in rows
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    write_out(options.out, text)


if __name__ == "__main__":
    main()
