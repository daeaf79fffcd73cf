"""The journals of benchmarks/histories.py and the table that they make. A journal has a line of JSON for each part that
was measured in a form; of several lines about one part the last one counts."""
import json
from collections import Counter
from pathlib import Path

FORMS = {
    "read": "", "FreeCAD": ".FCStd", "build123d": "_b3d.py", "CadQuery": "_cq.py", "OpenSCAD": ".scad",
    "Fusion 360": "_fusion.py", "FeatureScript": ".fs"
}
SETS = ("Omni-CAD", "DeepCAD", "CADPrompt", "Fusion 360")
OPENED = ("FreeCAD", "build123d", "CadQuery", "OpenSCAD")
COLUMNS = ("written", "opened", "volume", "edited", "read back")
AIMS = {"volume": 99, "edited": 95}


def journal_of(folder, form):
    "Where the lines about a form stand."
    return Path(folder)/f"{form.lower().replace(' ', '')}.jsonl"


def read_journals(folder):
    "(form, set, part) -> the last line about it."
    found = {}
    for form in FORMS:
        path = journal_of(folder, form)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            row = json.loads(line)
            found[row["form"], row["set"], row["part"]] = row
    return found


def append(folder, row):
    "Put a line at the end of its form's journal."
    path = journal_of(folder, row["form"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(row, separators=(",", ":")) + "\n")


def tidy(folder):
    "Leave one line for each part in every journal, in the order of sets and names."
    rows = read_journals(folder)
    for form in FORMS:
        of_form = sorted((k for k in rows if k[0] == form), key=lambda k: (SETS.index(k[1]), k[2]))
        if of_form:
            lines = [json.dumps(rows[k], separators=(",", ":")) for k in of_form]
            journal_of(folder, form).write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(rows):
    "When and at which commits lines were written: 'date commit', with counts where there are several."
    counts = Counter(f"{row['date']} {row['commit']}" for row in rows)
    if len(counts) == 1: return next(iter(counts))
    return ", ".join(f"{which} ({count})" for which, count in sorted(counts.items()))


def total(rows, key):
    "How many lines say yes; None where nobody asked."
    said = [row[key] for row in rows if row.get(key) is not None]
    return sum(said) if said else None


def cell(rows, key):
    "A cell of the table."
    count = total(rows, key)
    if count is not None: return str(count)
    return "not executed in the program" if key == "opened" and rows[0]["form"] not in OPENED else "–"


def sketches(rows):
    "How many sketches, how many of them fully constrained and in conflict."
    found = [row["sketches"] for row in rows if row.get("sketches")]
    return [sum(s) for s in zip(*found)] if found else [0, 0, 0]


def share(count, of, aim=None):
    "A share in percent, with what it should be."
    text = f"{100*count/of:.1f}%"
    return f"{text}; the aim is {aim}%" if aim else text


def summary(rows):
    "A sentence for each form."
    lines = []
    for form in FORMS:
        of_form = [row for row in rows if row["form"] == form]
        if not of_form or form == "read": continue
        aims = AIMS if form == "FreeCAD" else {}
        said = []
        for key, words in (("opened", "open without an error"), ("volume", "agree with the volume"),
                           ("edited", "rebuild after the edit"), ("read back", "are read back as the same history")):
            count = total(of_form, key)
            if count is not None: said.append(f"{count} {words} ({share(count, len(of_form), aims.get(key))})")
        text = f"{form}: of {len(of_form):,} parts {', '.join(said)}."
        number, full, conflicts = sketches(of_form)
        if number:
            text += (f" Of {number:,} sketches {full:,} are fully constrained ({share(full, number, 90)}) and "
                     f"{conflicts} in conflict.")
        lines += [text, ""]
    return lines


def main_table(rows):
    "A row for each form and set."
    head = ("form", "set", "parts", *COLUMNS, "seconds", "sketches", "program", "measured")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|"*len(head)]
    for form in FORMS:
        for name in SETS:
            of_set = [row for row in rows if row["form"] == form and row["set"] == name]
            if not of_set or form == "read": continue
            seconds = [row["seconds"] for row in of_set if row.get("seconds")]
            number, full, conflicts = sketches(of_set)
            cells = [form, name, len(of_set), *(cell(of_set, key) for key in COLUMNS)]
            cells += [
                f"{sum(seconds)/len(seconds):.2f}" if seconds else "–",
                f"{number:,}, {full:,} fully constrained, {conflicts} in conflict" if number else "–",
                ", ".join(sorted({row["program"] for row in of_set if row.get("program")})) or "–", measured(of_set)
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def read_table(rows):
    "A row for each set: how many files were read, built, and agree with what their set states."
    head = ("set", "files", "read", "built", "volume as the set states", "measured")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|"*len(head)]
    for name in SETS:
        of_set = [row for row in rows if row["form"] == "read" and row["set"] == name]
        if not of_set: continue
        cells = [name, len(of_set), total(of_set, "read"), total(of_set, "built"), cell(of_set, "stated"),
                 measured(of_set)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def miss_lines(rows, reasons):
    "A line for each miss, with its reason where somebody looked."
    lines = []
    for row in rows:
        form = "reading" if row["form"] == "read" else row["form"]
        why = reasons.get(f"{row['form']}/{row['set']}/{row['part']}", "")
        for miss in row["misses"]:
            lines.append(f"- {form}, {row['set']}, {row['part']}: {miss}{'. ' + why if why else ''}")
    return lines or ["None."]


def report(folder):
    "The journals of a folder as Markdown."
    found = read_journals(folder)
    order = sorted(found, key=lambda k: (list(FORMS).index(k[0]), SETS.index(k[1]), k[2]))
    rows = [found[k] for k in order]
    path = Path(folder)/"reasons.json"
    reasons = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return "\n".join([
        "# Histories in the forms of CAD programs", "",
        "Made by `python benchmarks/histories.py --out benchmarks/results/histories.md` of the journals beside it; the "
        "script says what the columns mean and how to measure again.",
        "Parts lie at even distances of each set. The last column names the commits that were measured, with the "
        "number of parts where there are several. A dash: not tried.", "",
        *summary(rows), *main_table(rows), "", "## Read", "",
        "Files of the sets that were read as histories and built; Fusion 360 states the volume of each part, and a "
        "tenth of a percent is let pass.", "",
        *read_table(rows), "", "## Misses", "", *miss_lines(rows, reasons)
    ]) + "\n"
