"""Real histories out to the forms of CAD programs and back: written, opened by the program, right in volume, edited
there, read back.

usage: python benchmarks/histories.py DATA_ROOT [--num_parts 40] [--num_scripts 10] [--build123d PYTHON] [--cadquery
PYTHON] [--stall 90] [--sets A,B] [--forms A,B] [--out FILE.md]

DATA_ROOT holds omni-cad/json, deepcad/json, cadprompt and fusion360 (whose build123d scripts are read first). Of each
set so many parts are taken at even distances,
of these --num_scripts for the scripts, which take longer to execute.
  written      the file could be written
  opened       FreeCAD opened and recomputed it without an error; the script ran in its program
  volume       and its volume is within 0.1% of the kernel's (the light one's, or OpenCascade's where that differs)
  edited       after the first pad was made 1.1 times as long, the program rebuilds to the kernel's volume for the same
  edit
  read back    reading the file gives the same operations, every point within 1e-6 of the part's size
  seconds      of processor time in the program, a part
FreeCAD is `freecadcmd`; --build123d and --cadquery name interpreters that have those libraries; OpenSCAD is `openscad`.
What is missing is left out of the table, and the table says so.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from cad_mllm.cad import CADFormatError, CADProgram, Extrude
from cad_mllm.geometry import build_solid, read_mesh
from cad_mllm.interop import features_of, read_history, write_history
from common import make_parser, write_out

HERE = Path(__file__).resolve().parent
FORMS = {
    "FreeCAD": ".FCStd", "build123d": "_b3d.py", "CadQuery": "_cq.py", "OpenSCAD": ".scad", "Fusion 360": "_fusion.py",
    "FeatureScript": ".fs"
}
READ_BACK = ("FreeCAD", "build123d", "CadQuery")


def data_sets(root):
    "Set -> its files."
    found = {"Omni-CAD": (root/"omni-cad/json").rglob("*.json"), "DeepCAD": (root/"deepcad/json").glob("*.json"),
             "CADPrompt": (root/"cadprompt").rglob("*.json"), "Fusion 360": (root/"fusion360").glob("t*/*.py")}
    return {name: sorted(files) for name, files in found.items()}


def sample(files, num):
    return (
        [files[i] for i in sorted({round(x) for x in np.linspace(0, len(files) - 1, min(num, len(files)))})] if files
        else []
    )


def first_pad(program):
    "The first extrude that adds material."
    return next(
        e for e in program.operations() if isinstance(e, Extrude) and e.operation in ("new", "join") and e.profiles
        and e.span()[0] != e.span()[1]
    )


def lengthened(program, by=1.1):
    "The history with its first pad so many times as long."
    first = first_pad(program)
    entities = {
        **program.entities, first.id: replace(first, extent_one=first.extent_one*by, extent_two=first.extent_two*by)
    }
    return CADProgram(entities, list(program.sequence))


def lengthened_script(text, by=1.1):
    "A script whose first pad is so many times as long: the names that its first extrude uses are defined again."
    names = re.search(
        r"\((?:until=|amount=|height = )?-?((?:depth|back)_\d+)(?: \+ (depth_\d+))?",
        text[text.index("extrude"):] if "extrude(" in text else text
    )
    used = {n for n in names.groups() if n} if names else set()
    two = re.search(r"extrude\(amount=depth_1.*\)\n\s*extrude\(sketch_1\.sketch, amount=-(depth_2)", text)
    if two: used.add(two[1])
    for name in used: text = re.sub(rf"(?m)^({name} = )([-\d.e]+)", lambda m: m[1] + repr(float(m[2])*by), text)
    return text


def close(volume, program):
    "Whether a volume in mm3 is the program's, by either kernel, within 0.1%."
    for kernel in ("manifold", "occ"):
        try: true = build_solid(program, kernel).volume*1e9
        except Exception: continue
        if abs(volume - true) <= 1e-3*true: return True
    return False


def landmarks(program):
    "Of each run of operations of one kind: the points (N, 3) of what they push, at both ends."
    runs = []
    features, _ = features_of(program)
    while features and features[0].operation not in ("new", "join"): features = features[1:]
    for f in features:
        kind = "join" if f.operation == "new" else f.operation
        if not runs or runs[-1][0] != kind: runs.append((kind, []))
        for profile in f.profiles:
            for c in f.sketch.profiles[profile].contours():
                flat = (
                    c.vertices[0] + c.radius*np.array([(1, 0), (0, 1), (-1, 0), (0, -1)]) if c.radius
                    else np.concatenate([c.vertices, [m for m in c.mids if m is not None] or c.vertices])
                )
                runs[-1][1].extend(
                    f.sketch.frame.to_world(np.column_stack([flat, np.full(len(flat), z)])) for z in f.extrude.span()
                )
    return [(kind, np.concatenate(points)) for kind, points in runs]


def same(one, other):
    "Whether two histories push the same things, to 1e-6 of their size."
    a, b = landmarks(one), landmarks(other)
    if [k for k, _ in a] != [k for k, _ in b]: return False
    from scipy.spatial import cKDTree
    size = max(np.ptp(p, axis=0).max() for _, p in a)
    # the middle of an arc and the corner where a circle's four points lie are free: only ends are compared both ways
    return all(
        max(cKDTree(p).query(q)[0].max(), cKDTree(q).query(p)[0].max()) <= 1e-6*size for (_, p), (_, q) in zip(a, b)
    )


def time_used(process):
    "Seconds of processor time, its children included; what it waits for other programs is not counted."
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return sum(t.user + t.system for t in (p.cpu_times() for p in family))
    except psutil.Error: return 0.0


def run_batches(command, files, folder, stall):
    """Start a program on files until each has been tried; what computes for `stall` seconds without progress is killed
    and passed over. path -> what it reported."""
    report, rest, hung = folder/"report.jsonl", list(files), set()
    report.write_text("")
    while rest:
        (folder/"list.txt").write_text("\n".join(map(str, rest)))
        os.utime(report)
        process = subprocess.Popen(
            command(folder/"list.txt", report), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ, "FREECAD_DOCUMENTS": str(folder/"list.txt"), "FREECAD_REPORT": str(report),
                "PYTHONPATH": ""
            }
        )
        changed, used = report.stat().st_mtime, 0.0
        while process.poll() is None:
            time.sleep(.5)
            if report.stat().st_mtime != changed: changed, used = report.stat().st_mtime, time_used(process)
            if time_used(process) - used > stall: process.kill()
        rows = [json.loads(line) for line in report.read_text().splitlines()]
        done = {r["path"] for r in rows if "path" in r} | hung
        begun = [r["begins"] for r in rows if "begins" in r and r["begins"] not in done]
        hung |= set(begun[-1:])
        if not begun and process.returncode and not done.intersection(map(str, rest)): hung.add(str(rest[0]))
        rest = [f for f in rest if str(f) not in done | hung]
    return {r["path"]: r for r in rows if "path" in r} | {
        h: {"failed": f"computes for more than {stall:g} s"} for h in hung
    }


def run_openscad(files, stall):
    "path -> what OpenSCAD makes of a script."
    found = {}
    for f in files:
        process = subprocess.Popen(["openscad", "-q", "-o", f"{f}.stl", str(f)], stderr=subprocess.DEVNULL)
        used = 0.0
        while process.poll() is None and used <= stall:
            time.sleep(.1)
            used = max(used, time_used(process))
        if process.poll() is None:
            process.kill()
            process.wait()
            found[str(f)] = {"failed": f"computes for more than {stall:g} s"}
            continue
        try: found[str(f)] = {"volume": read_mesh(f"{f}.stl", "mm").volume*1e9, "seconds": used}
        except Exception as e: found[str(f)] = {"failed": f"{type(e).__name__}: {e}"[:120]}
    return found


def run_form(form, files, folder, given):
    "path -> report, or None where the program is missing."
    interpreters = {"build123d": given.build123d, "CadQuery": given.cadquery}
    if form == "FreeCAD" and shutil.which("freecadcmd"):
        return run_batches(
            lambda listed, report: ["freecadcmd", str(HERE.parent/"tests/freecad_check.py")], files, folder, given.stall
        )
    if interpreters.get(form):
        return run_batches(
            lambda listed, report: [interpreters[form], str(HERE/"run_scripts.py"), str(listed), str(report)], files,
            folder, given.stall
        )
    if form == "OpenSCAD" and shutil.which("openscad"): return run_openscad(files, given.stall)
    return None


def measure(form, programs, folder, given):
    "Counts of one form on one set, and its misses."
    ending, row, misses = FORMS[form], dict(parts=len(programs), written=0), []
    paths, edited = {}, {}
    for name, program in programs.items():
        path = folder/f"{name}{ending}"
        try: write_history(program, path)
        except Exception as e:
            misses.append((name, f"not written: {e}"))
            continue
        row["written"] += 1
        paths[name] = path
        if form in ("build123d", "CadQuery", "OpenSCAD"):
            edited[name] = folder/f"{name}_edited{ending}"
            edited[name].write_text(lengthened_script(path.read_text()))
    if form in READ_BACK: row["read back"] = sum(_read_back(n, programs[n], p, misses) for n, p in paths.items())
    reports = run_form(form, [*paths.values(), *edited.values()], folder, given)
    if reports is not None: _judge(form, row, programs, paths, edited, reports, misses)
    return row, misses


def _read_back(name, program, path, misses):
    "Whether a file reads as the program that it was written from."
    try: good = same(program, read_history(path))
    except (CADFormatError, ValueError) as e:
        misses.append((name, f"not read back: {e.reason if hasattr(e, 'reason') else e}"))
        return False
    if not good: misses.append((name, "read back as something else"))
    return good


def _judge(form, row, programs, paths, edited, reports, misses):
    "Fill in what the program said."
    row.update({"opened": 0, "volume": 0, "edited": 0, "seconds": 0.0})
    sketches = full = unsolved = 0
    for name, path in paths.items():
        said = reports.get(str(path), {"failed": "no report"})
        after = (
            reports.get(str(edited[name]), {}) if name in edited
            else {"volume": said.get("edited_volume"), "errors": said.get("edited_errors")}
        )
        row["seconds"] += said.get("seconds", 0.0)/max(len(paths), 1)
        sketches = sketches + said.get("sketches", 0)
        full = full + said.get("fully_constrained", 0)
        unsolved = unsolved + len(said.get("unsolved", []))
        if "failed" in said or said.get("errors"):
            misses.append((name, str(said.get("failed") or said["errors"])[:100]))
            continue
        row["opened"] += 1
        if close(said["volume"], programs[name]): row["volume"] += 1
        else: misses.append((name, f"volume {said['volume']:.6g} mm3"))
        if (
            after.get("volume") is not None and not after.get("errors")
            and close(after["volume"], lengthened(programs[name]))
        ):
            row["edited"] += 1
        else:
            misses.append(
                (
                    name,
                    f"edited: {after.get('failed') or after.get('errors') or 'volume'} {after.get('volume') or ''}"[
                        :100
                    ]
                )
            )
    if form == "FreeCAD": row["sketches"] = f"{sketches}, {full} fully constrained, {unsolved} in conflict"


def read_programs(files):
    "name -> program that builds; and what could not be read."
    programs, unread = {}, []
    for f in files:
        try:
            program = read_history(f)
            first_pad(program)
            build_solid(program, "manifold")
            programs[f.stem] = program
        except StopIteration: unread.append((f.stem, "adds no material"))
        except Exception as e: unread.append((f.stem, getattr(e, "reason", str(e))))
    return programs, unread


COLUMNS = ("parts", "written", "opened", "volume", "edited", "read back", "seconds", "sketches")


def _cell(row, key):
    value = row.get(key)
    if value is None: return "not executed in the program" if key == "opened" else "–"
    return f"{value:.2f}" if key == "seconds" else str(value)


def summary(results):
    "A sentence for each form that its program opened."
    lines = []
    for form in FORMS:
        rows = [row for (f, _), (row, _) in results.items() if f == form and row.get("opened") is not None]
        if not rows: continue
        total = {k: sum(r.get(k, 0) for r in rows) for k in ("parts", "opened", "volume", "edited", "read back")}
        back = f", {total['read back']} are read back as the same history" if form in READ_BACK else ""
        share = f"{100*total['volume']/total['parts']:.1f}%"
        lines.append(f"{form}: of {total['parts']} parts {total['opened']} open and {total['volume']} agree with the "
                     f"volume ({share}), {total['edited']} after the edit too{back}.")
    return lines


def report(results, unread, given):
    "The table and its misses as Markdown."
    lines = [
        "# Histories in the forms of CAD programs", "",
        f"At most {given.num_parts} parts of each set, {given.num_scripts} for scripts; `benchmarks/histories.py` says "
        "what the columns mean. A dash: not tried.",
        "", *summary(results), "", "| form | set | " + " | ".join(COLUMNS) + " |", "|" + "---|"*(len(COLUMNS) + 2)
    ]
    for (form, name), (row, _) in results.items():
        lines.append(f"| {form} | {name} | " + " | ".join(_cell(row, k) for k in COLUMNS) + " |")
    lines += ["", "## Misses", ""]
    for name, gone in unread.items(): lines += [f"- {name}, not read or not built: {id}: {why}" for id, why in gone]
    for (form, name), (_, misses) in results.items(): lines += [f"- {form}, {name}, {id}: {why}" for id, why in misses]
    return "\n".join(lines).replace(str(given.data_root), "DATA_ROOT") + "\n"


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--num_parts", type=int, default=40)
    parser.add_argument("--num_scripts", type=int, default=10)
    parser.add_argument("--build123d", default="")
    parser.add_argument("--cadquery", default="")
    parser.add_argument("--stall", type=float, default=90)
    parser.add_argument("--sets", default="Omni-CAD,DeepCAD,CADPrompt,Fusion 360")
    parser.add_argument("--forms", default=",".join(FORMS))
    given = parser.parse_args(argv)
    results, unread = {}, {}
    sets = data_sets(given.data_root)
    for name in given.sets.split(","):
        files = sets[name]
        programs, unread[name] = read_programs(sample(files, given.num_parts))
        for form in given.forms.split(","):
            few = programs if form == "FreeCAD" else {n: programs[n] for n in sample(list(programs), given.num_scripts)}
            with tempfile.TemporaryDirectory() as folder: results[form, name] = measure(form, few, Path(folder), given)
            text = report(dict(sorted(results.items(), key=lambda kv: list(FORMS).index(kv[0][0]))), unread, given)
            print(form, name, results[form, name][0], flush=True)
            write_out(given.out, text)
    print(text)


if __name__ == "__main__": sys.exit(main())
