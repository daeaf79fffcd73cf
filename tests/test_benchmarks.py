"""The scripts of benchmarks/: what they share, and that each can be asked what it does."""
import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent/"benchmarks"
PARTS = ("common.py", "histories_table.py", "real_parts_table.py", "run_scripts.py")   # of scripts
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.name not in PARTS)


@pytest.fixture
def beside(monkeypatch):
    "As if a script of the folder ran."
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_says_what_it_does_by_the_shared_parser(script, beside, monkeypatch):
    assert "argparse.ArgumentParser(" not in script.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), {}, "__main__")
    assert ended.value.code == 0
    first = next(line for line in said.getvalue().splitlines() if line and not line.startswith(("usage:", " ")))
    assert first.split()[:4] == script.read_text(encoding="utf-8").split('"""')[1].split()[:4]


def test_tables_times_and_results_are_written_in_one_way(beside, tmp_path):
    import common
    assert common.table(("a", "b"), [(1, 2.5)]) == "| a | b |\n|---|---|\n| 1 | 2.5 |\n"
    seconds, found = common.timed(sorted, [2, 1], reverse=True)
    assert found == [2, 1] and seconds >= 0
    args = common.make_parser("What it does.").parse_args(["--out", str(tmp_path/"new"/"result.md")])
    common.write_out(args.out, "text\n\n")
    assert (tmp_path/"new"/"result.md").read_text() == "text\n"
    common.write_out(None, "nowhere")
    assert "processors" in common.machine_line() and "load" in common.machine_line()


def test_journals_of_several_runs_become_one_table(beside, tmp_path):
    "The last line about a part counts, and the row says which commits were measured."
    import histories_table as table
    common = {"form": "FreeCAD", "set": "DeepCAD", "date": "2026-01-02", "program": "FreeCAD 1", "written": True}
    good = {"opened": True, "volume": True, "edited": True, "read back": True, "seconds": 1.0, "sketches": [2, 1, 0]}
    bad = {"opened": False, "volume": False, "edited": False, "read back": True, "misses": ["broken face"]}
    table.append(tmp_path, {**common, "part": "b", "commit": "aaa", **bad})
    table.append(tmp_path, {**common, "part": "c", "commit": "aaa", **bad})
    table.append(tmp_path, {**common, "part": "a", "commit": "aaa", **good, "misses": []})
    table.append(tmp_path, {**common, "part": "b", "commit": "bbb", **good, "misses": []})
    (tmp_path/"reasons.json").write_text('{"FreeCAD/DeepCAD/c": "FreeCAD refines too much"}')
    table.tidy(tmp_path)
    lines = (tmp_path/"freecad.jsonl").read_text().splitlines()
    assert [line.split('"part":"')[1][0] for line in lines] == ["a", "b", "c"]
    text = table.report(tmp_path)
    assert "2026-01-02 aaa (2), 2026-01-02 bbb (1)" in text
    assert "| FreeCAD | DeepCAD | 3 | 3 | 2 | 2 | 2 | 3 | 1.00 | 4, 2 fully constrained, 0 in conflict |" in text
    assert "of 3 parts 2 open without an error (66.7%), 2 agree with the volume (66.7%; the aim is 99%)" in text
    assert text.count("\n- ") == 1
    assert "- FreeCAD, DeepCAD, c: broken face. FreeCAD refines too much\n" in text


def test_the_table_of_histories_is_what_its_journals_say(beside):
    "`python benchmarks/histories.py --out benchmarks/results/histories.md` makes it again."
    import histories_table as table
    results = BENCHMARKS/"results"
    assert table.report(results/"histories") == (results/"histories.md").read_text(encoding="utf-8")
