"""The scripts of benchmarks/: what they share, and that each can be asked what it does."""
import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent/"benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.name not in ("common.py", "run_scripts.py"))


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
