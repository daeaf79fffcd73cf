"""Real histories out to the forms of CAD programs and back: written, opened by the program, right in volume, edited
there, read back.

usage: python benchmarks/histories.py [DATA_ROOT] [--forms A,B] [--sets A,B] [--num_parts 1000] [--num_scripts 24]
[--again] [--parts A,B] [--build123d PYTHON] [--cadquery PYTHON] [--stall 90] [--journals FOLDER] [--out FILE.md]

Each part that was measured is a line of a journal, a file a form (benchmarks/results/histories), with its date, the
commit and the version of the program. Parts that stand there are not measured again (--again: those with a miss are;
--parts: those are), so a run that was killed goes on. Of several lines about one part the last one counts. Without
DATA_ROOT nothing is measured: the journals become the table.

DATA_ROOT holds omni-cad/json, deepcad/json, cadprompt and fusion360 (whose build123d scripts are read first). Of each
set so many parts are taken at even distances: --num_parts to read and for FreeCAD, --num_scripts for the rest.
  written      the file could be written
  opened       FreeCAD opened and recomputed it without an error; the script ran in its program
  volume       and its volume is within 0.1% of the kernel's (the light one's, or OpenCascade's where that differs)
  edited       after the first pad was made 1.1 times as long, the program rebuilds to the kernel's volume for the same
  edit
  read back    reading the file gives the same operations, every point within 1e-6 of the part's size (Fusion 360 and
  FeatureScript: by the stand-ins of the tests)
  seconds      of processor time in the program, a part
FreeCAD is `freecadcmd`; --build123d and --cadquery name interpreters that have those libraries; OpenSCAD is `openscad`.
What is missing is not measured.
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
from datetime import date
from pathlib import Path

import numpy as np
import psutil

from cad_mllm.cad import CADFormatError, CADProgram, Extrude
from cad_mllm.geometry import build_solid, read_mesh
from cad_mllm.interop import features_of, read_history, write_history
from common import make_parser, write_out
from histories_table import FORMS, SETS, append, read_journals, report, tidy

HERE = Path(__file__).resolve().parent
CHUNK = 20                      # parts that are measured before the journal gets their lines


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


def circle_points(circle, frame):
    "Points (N, 2) of a circle that do not depend on how its sketch is turned: towards the axes of the world."
    ends = frame.to_world(np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)]))
    towards = np.stack([ends[1] - ends[0], ends[2] - ends[0]], axis=1)
    lengths = np.linalg.norm(towards, axis=1, keepdims=True)
    towards = (towards/np.maximum(lengths, 1e-9))[lengths[:, 0] > .1]
    return circle.vertices[0] + circle.radius*np.concatenate([towards, -towards])


def arc_middle(a, m, b):
    "The point half way along an arc from a to b through m, which may lie anywhere on it."
    across = (b - a)/np.linalg.norm(b - a)
    normal = np.array([-across[1], across[0]])
    along, height = (m - (a + b)/2)@across, (m - (a + b)/2)@normal
    half = np.linalg.norm(b - a)/2
    if not height: return m
    below = (half**2 - along**2 - height**2)/(2*abs(height))      # how far the center lies from the chord
    radius = np.hypot(half, below)
    return (a + b)/2 + normal*np.sign(height)*(half**2/(radius + below) if below > 0 else radius - below)


def line_points(contour):
    "The ends of lines and arcs and the middles of arcs, (N, 2)."
    ends = list(contour.vertices)
    arcs = zip(ends, contour.mids, ends[1:] + ends[:1])
    return np.array(ends + [arc_middle(a, m, b) for a, m, b in arcs if m is not None])


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
                flat = circle_points(c, f.sketch.frame) if c.radius else line_points(c)
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
    return all(
        max(cKDTree(p).query(q)[0].max(), cKDTree(q).query(p)[0].max()) <= 1e-6*size for (_, p), (_, q) in zip(a, b)
    )


def time_used(process):
    "Seconds of processor time, its children included; what it waits for other programs is not counted."
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return sum(t.user + t.system for t in (p.cpu_times() for p in family))
    except psutil.Error: return 0.0


def start(command, folder, report):
    "Start a program on the files that list.txt names."
    return subprocess.Popen(
        command(folder/"list.txt", report), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ, "FREECAD_DOCUMENTS": str(folder/"list.txt"), "FREECAD_REPORT": str(report), "PYTHONPATH": ""
        }
    )


def wait_for(process, report, stall):
    "Wait for a program's end, or end it where it computes for `stall` seconds without a new line; what happened."
    changed, used = report.stat().st_mtime, 0.0
    while process.poll() is None:
        time.sleep(.5)
        if report.stat().st_mtime != changed: changed, used = report.stat().st_mtime, time_used(process)
        if time_used(process) - used > stall:
            process.kill()
            process.wait()
            return f"computes for more than {stall:g} s"
    return f"the program ends with code {process.returncode}"


def run_batches(command, files, folder, stall):
    """Start a program on files until each has been tried; what it does not survive is passed over. path -> what it
    reported."""
    report, rest, lost = folder/"report.jsonl", list(files), {}
    report.write_text("")
    while rest:
        (folder/"list.txt").write_text("\n".join(map(str, rest)))
        os.utime(report)
        end = wait_for(start(command, folder, report), report, stall)
        rows = [json.loads(line) for line in report.read_text().splitlines()]
        done = {r["path"] for r in rows if "path" in r}
        begun = [r["begins"] for r in rows if "begins" in r and r["begins"] not in done | set(lost)]
        nothing = not done.intersection(map(str, rest))
        for path in begun[-1:] or ([str(rest[0])] if nothing else []): lost[path] = end
        rest = [f for f in rest if str(f) not in done | set(lost)]
    return {r["path"]: r for r in rows if "path" in r} | {path: {"failed": end} for path, end in lost.items()}


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


def output_of(*command):
    "What a command prints; nothing where it cannot be run."
    try: return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=HERE)
    except OSError: return subprocess.CompletedProcess(command, 1, "", "")


def version_of(form, given):
    "A program and its version; '' where it is missing, None for a form that no program is asked about."
    library = {"build123d": given.build123d, "CadQuery": given.cadquery}
    if form in library:
        ask = f"from importlib.metadata import version; print(version('{form.lower()}'))"
        said = output_of(library[form], "-c", ask).stdout.strip() if library[form] else ""
        return f"{form} {said}" if said else ""
    ask = "import FreeCAD; print('FreeCAD', '.'.join(FreeCAD.Version()[:3]))"
    command = {"FreeCAD": ("freecadcmd", "-c", ask), "OpenSCAD": ("openscad", "--version")}.get(form)
    if command is None: return None
    said = output_of(*command)
    number = re.search(rf"{form}\D*(\d[\d.]*)", said.stdout + said.stderr)
    return f"{form} {number[1]}" if number else ""


def read_again(form, path):
    "The history that a written file says."
    if form in ("Fusion 360", "FeatureScript"):
        sys.path.append(str(HERE.parent/"tests"))
        from program_stand_ins import read_featurescript, run_fusion
        return (run_fusion if form == "Fusion 360" else read_featurescript)(path.read_text())
    return read_history(path)


def read_back(form, program, path, misses):
    "Whether a file reads as the program that it was written from."
    try: good = same(program, read_again(form, path))
    except (CADFormatError, ValueError, AssertionError) as e:
        misses.append(f"not read back: {getattr(e, 'reason', e)}")
        return False
    if not good: misses.append("read back as something else")
    return good


def measure(form, programs, folder, given):
    "name -> what one form makes of a part."
    rows, paths, edited = {}, {}, {}
    for name, program in programs.items():
        path = folder/f"{name}{FORMS[form]}"
        rows[name] = row = {"written": True, "misses": []}
        try: write_history(program, path)
        except Exception as e:
            row.update(written=False, misses=[f"not written: {e}"])
            continue
        paths[name] = path
        if form in ("build123d", "CadQuery", "OpenSCAD"):
            edited[name] = folder/f"{name}_edited{FORMS[form]}"
            edited[name].write_text(lengthened_script(path.read_text()))
        if form != "OpenSCAD": row["read back"] = read_back(form, program, path, row["misses"])
    reports = run_form(form, [*paths.values(), *edited.values()], folder, given)
    for name, path in paths.items() if reports is not None else ():
        judge(rows[name], programs[name], reports, path, edited.get(name))
    return rows


def judge(row, program, reports, path, edited):
    "Fill in what the program said about a part."
    said = reports.get(str(path), {"failed": "no report"})
    after = (
        reports.get(str(edited), {}) if edited
        else {"volume": said.get("edited_volume"), "errors": said.get("edited_errors")}
    )
    wrong = said.get("failed") or said.get("errors")
    row.update(opened=not wrong, volume=False, edited=False, seconds=round(said.get("seconds", 0.0), 2))
    if "sketches" in said:
        row["sketches"] = [said["sketches"], said["fully_constrained"], len(said["unsolved"])]
    if wrong:
        row["misses"].append(str(wrong)[:100])
        return
    row["volume"] = close(said["volume"], program)
    if not row["volume"]: row["misses"].append(f"volume {said['volume']:.6g} mm3, not {volume_of(program):.6g}")
    wrong = after.get("failed") or after.get("errors")
    longer = lengthened(program)
    row["edited"] = not wrong and after.get("volume") is not None and close(after["volume"], longer)
    if row["edited"]: return
    volume = after.get("volume") or 0.0
    row["misses"].append(f"edited: {str(wrong)[:100] if wrong else f'volume {volume:.6g} mm3'}, "
                         f"not {volume_of(longer):.6g}")


def volume_of(program):
    "In mm3, by the mesh kernel; 0 where it builds nothing."
    try: return build_solid(program, "manifold").volume*1e9
    except Exception: return 0.0


def stated_volumes(root):
    "Part -> volume in mm3 that the Fusion 360 set states."
    path = root/"fusion360/index.json"
    stated = json.loads(path.read_text()) if path.exists() else {}
    return {name: entry["volume_cm3"]*1e3 for name, entry in stated.items()}


def read_program(file, stated=None):
    "A program that builds, or None, and the journal's row about reading it."
    row = {"read": False, "built": False, "misses": []}
    program = None
    try:
        program = read_history(file)
        first_pad(program)
        row["read"] = True
        volume = build_solid(program, "manifold").volume*1e9
        row["built"] = True
        if stated is not None: row["stated"] = abs(volume - stated) <= 1e-3*stated
        if row.get("stated") is False: row["misses"].append(f"volume {volume:.6g} mm3, stated {stated:.6g}")
    except StopIteration: row["misses"].append("adds no material")
    except Exception as e: row["misses"].append(str(getattr(e, "reason", e))[:150])
    return program if row["built"] else None, row


def chosen(files, form, name, journal, given):
    "The files of a set that are to be measured in a form."
    num = given.num_parts if form in ("read", "FreeCAD") else given.num_scripts
    if given.parts: return [f for f in files if f.stem in given.parts.split(",")]
    known = {part: row for (f, s, part), row in journal.items() if (f, s) == (form, name)}
    done = {part for part, row in known.items() if not (given.again and row["misses"])}
    return [f for f in sample(files, num) if f.stem not in done]


def measure_files(form, name, files, note, given):
    "Read files, measure them in a form, and put each into the journal."
    stated = stated_volumes(given.data_root) if form == "read" and name == "Fusion 360" else {}
    looked = {f.stem: read_program(f, stated.get(f.stem)) for f in files}
    rows = {part: row for part, (_, row) in looked.items()}
    if form != "read":
        programs = {part: program for part, (program, _) in looked.items() if program}
        with tempfile.TemporaryDirectory() as folder: rows = measure(form, programs, Path(folder), given)
    for part, row in rows.items():
        append(given.journals, {"form": form, "set": name, "part": part, **note, **row})
        if row["misses"]: print(f"{form}, {name}, {part}: {'; '.join(row['misses'])}", flush=True)


def measure_all(given):
    "Measure what the journals lack."
    commit = output_of("git", "rev-parse", "--short", "HEAD").stdout.strip()
    journal, sets = read_journals(given.journals), data_sets(given.data_root)
    for form in given.forms.split(","):
        program = version_of(form, given)
        if program == "": continue
        for name in given.sets.split(","):
            files = chosen(sets[name], form, name, journal, given)
            for i in range(0, len(files), CHUNK):
                note = {"date": str(date.today()), "commit": commit, "program": program}
                measure_files(form, name, files[i:i + CHUNK], note, given)
                print(f"{form}, {name}: {min(i + CHUNK, len(files))} of {len(files)}", flush=True)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("data_root", type=Path, nargs="?")
    parser.add_argument("--num_parts", type=int, default=1000)
    parser.add_argument("--num_scripts", type=int, default=24)
    parser.add_argument("--build123d", default="")
    parser.add_argument("--cadquery", default="")
    parser.add_argument("--stall", type=float, default=90)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--parts", default="")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--journals", type=Path, default=HERE/"results/histories")
    given = parser.parse_args(argv)
    if given.data_root: measure_all(given)
    tidy(given.journals)
    text = report(given.journals)
    write_out(given.out, text)
    print(text)


if __name__ == "__main__": sys.exit(main())
