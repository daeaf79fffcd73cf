#!/usr/bin/env python3
"""The wheel beside CadQuery and build123d, which bring OpenCascade in packages of their own that lay one folder `OCP`:
installed before and after each of them, each time in a fresh virtual environment.

usage: python benchmarks/beside.py [--orders A+B,C+D] [--torch 2.13.0] [--python PYTHON] [--out FILE.md]

`cadquery+ours` means: `pip install cadquery`, then `pip install` the wheel that is built of this checkout. Afterwards
each library makes a block and writes it as STEP (CadQuery also an assembly, for which it needs VTK), and the package
builds a part with OpenCascade, writes STEP and reads it. A row tells what OpenCascade lies there, what works, and what
`pip check` says.
"""
import json
import sys
import tempfile
from pathlib import Path

from common import machine_line, make_parser, table, write_out

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
from check_install import TORCH, Failed, Installation, copy_of_sources  # noqa: E402   (beside this folder)

ORDERS = "cadquery+ours,ours+cadquery,build123d+ours,ours+build123d"
USES = {
    "cadquery": "import cadquery as cq; part = cq.Workplane().box(1, 2, 3); cq.exporters.export(part, 'cq.step'); "
    "cq.Assembly(part).toCompound(); assert abs(part.val().Volume() - 6) < 1e-9",
    "build123d": "from build123d import Box, export_step; part = Box(1, 2, 3); export_step(part, 'b3d.step'); "
    "assert abs(part.volume - 6) < 1e-9",
    "ours": "from cad_mllm.cad import CADProgram, rectangle; from cad_mllm.geometry import build_solid, read_step; "
    "program = CADProgram(); program.sketch(rectangle(0, 0, .01, .02)); program.extrude(.03); "
    "solid = build_solid(program, kernel='occ'); assert abs(solid.volume - 6e-6) < 1e-12; "
    "solid.export('ours.step'); assert abs(read_step('ours.step').volume - 6e-6) < 1e-12"
}
LISTED = (
    "import json; from importlib.metadata import distributions; "
    "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in distributions()}; "
    "print(json.dumps({n: found[n] for n in ('cadquery', 'build123d', 'cadquery-ocp', 'cadquery-ocp-novtk') "
    "if n in found}))"
)


def outcome(step, *words):
    "'works', or the last line that a step says."
    try: step(*words)
    except Failed as e: return str(e).strip().splitlines()[-1][:120]
    return "works"


def try_order(order, wheel, folder, given):
    "A row: the order, what is installed, what each library does, what pip says."
    place = Installation(folder, given.python)
    (folder/"work").mkdir(parents=True)
    place.step(f"{order}: make a virtual environment", given.python, "-m", "venv", folder/"venv")
    for name in order.split("+"):
        words = [wheel, f"torch=={given.torch}"] if name == "ours" else [name]
        place.pip(f"{order}: install {name}", "install", *words, minutes=30)
    found = json.loads(place.step(f"{order}: list what is installed", place.python, "-c", LISTED))
    def use(name): return outcome(place.step, f"{order}: use {name}", place.python, "-c", USES[name])
    used = {name: use(name) for name in order.split("+")}
    checked = outcome(place.pip, f"{order}: pip check", "check").replace("works", "nothing")
    other = next(name for name in used if name != "ours")
    packages = ", ".join(f"{name} {version}" for name, version in found.items() if "ocp" in name)
    return (order.replace("+", ", then "), f"{other} {found[other]}", packages, used["ours"], used[other], checked)


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--orders", default=ORDERS)
    parser.add_argument("--torch", default=TORCH)
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    line, rows = machine_line(), []
    with tempfile.TemporaryDirectory(prefix="cad-mllm-beside-") as temporary:
        home = Path(temporary)
        builder = Installation(home, given.python)
        (home/"work").mkdir()
        builder.step("build the wheel", sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", home,
                     copy_of_sources(home/"sources"))
        wheel = next(home.glob("cad_mllm-*.whl"))
        for i, order in enumerate(given.orders.split(",")):
            try: rows.append(try_order(order, wheel, home/str(i), given))
            except Failed as e:
                rows.append((order.replace("+", ", then "), "", "", str(e).splitlines()[0][:99], "", ""))
            print(rows[-1], flush=True)
    head = ("order", "library", "OpenCascade", "cad_mllm", "the library", "pip check complains of")
    write_out(given.out, "# Beside CadQuery and build123d\n\n`benchmarks/beside.py`, which says what was done; "
              f"{line}.\n\n{table(head, rows)}")
    print(table(head, rows))


if __name__ == "__main__": main()
