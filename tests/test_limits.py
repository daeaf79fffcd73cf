"""Nothing hangs for good: a test, a child process and a notebook end with their stacks, and each deliberate fault
can be made."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import limits

ROOT = Path(__file__).parent.parent
STUCK = """
import time
def the_one_that_hangs(): time.sleep(300)
the_one_that_hangs()
"""


def test_a_child_that_hangs_ends_and_names_the_place():
    for env in ({**os.environ, limits.SECONDS: "1"}, {**os.environ, limits.SECONDS: "1", "PYTHONPATH": str(ROOT)}):
        done = subprocess.run([sys.executable, "-c", STUCK], env=env, capture_output=True, text=True)
        assert done.returncode != 0 and "in the_one_that_hangs" in done.stderr


def test_every_child_has_a_limit_and_a_server_may_have_none():
    code = f"import os; print(os.environ[{limits.SECONDS!r}])"
    told = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        for env in (None, {**os.environ, limits.SECONDS: "0"})
    ]
    assert told == [str(limits.CHILD_SECONDS), "0"]


def test_a_test_that_hangs_is_a_failure_with_its_name(tmp_path):
    (tmp_path/"test_it.py").write_text("import time\ndef test_stuck(): time.sleep(300)\ndef test_next(): pass\n")
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c",
        str(ROOT/"pyproject.toml"), "--rootdir", str(tmp_path), "-o", "timeout=1", str(tmp_path)
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.returncode == 1 and "FAILED test_it.py::test_stuck" in done.stdout and "1 failed, 1 passed" in done.stdout
    ), done.stdout + done.stderr


def test_a_fork_of_a_limited_process_ends_and_has_a_limit():
    code = (
        "import os, sys\npid = os.fork()\nif not pid: sys.exit(0)\nassert os.waitpid(pid, 0)[1] == 0\nif not "
        "os.fork():\n"
        + "\n".join("    " + line for line in STUCK.strip().splitlines()) + "\nos.wait()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, limits.SECONDS: "2"}, capture_output=True, text=True,
        timeout=120
    )
    assert "in the_one_that_hangs" in done.stderr


def test_a_notebook_that_hangs_is_a_failure_with_its_name(tmp_path):
    pytest.importorskip("nbdev")
    lines = ["import time\n", "def the_one_that_hangs(): time.sleep(300)\n", "the_one_that_hangs()"]
    cells = [dict(cell_type="code", id="stuck", metadata={}, execution_count=None, outputs=[], source=lines)]
    (tmp_path/"stuck.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    command = [sys.executable, str(ROOT/"tools/test_notebooks.py"), "--minutes", "0.1", str(tmp_path/"stuck.ipynb")]
    done = subprocess.run(command, env={**os.environ, limits.SECONDS: "0"}, capture_output=True, text=True, timeout=300)
    assert (
        done.returncode == 1 and "stuck.ipynb: no end after 0.1 minutes" in done.stdout
        and "in the_one_that_hangs" in done.stderr
    )


def test_every_mutation_can_be_made(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"tools"))
    from break_on_purpose import cannot_be_made
    assert [f"{m.what}: {problem}" for m, problem in cannot_be_made()] == []


# what a machine may lack

NO_KERNEL = """
import sys
class NoKernel:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("OCP."): raise ImportError("libnone.so.1: cannot open shared object file")
sys.meta_path.insert(0, NoKernel())
"""
NEEDS_KERNEL = """
def test_of_a_solid():
    from cad_mllm.geometry import load_occ
    load_occ()

def test_of_something_else():
    raise ValueError("OpenCascade has no part in this")
"""


def without_kernel(run, *args, **env):
    "Run a module or script in a process in which OpenCascade cannot be loaded."
    code = f"{NO_KERNEL}\nimport runpy\nsys.argv[1:] = {list(map(str, args))!r}\nrunpy.{run}, run_name='__main__')"
    env = {**os.environ, limits.SECONDS: "0", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT/"tests"))), **env}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("require, skipped", [("", True), ("kernel", False)])
def test_without_opencascade_a_test_is_skipped_with_the_remedy(tmp_path, require, skipped):
    "Only what fails for want of it, and not where CI requires it."
    (tmp_path/"test_solid.py").write_text(NEEDS_KERNEL)
    done = without_kernel(
        "run_module('pytest'", "-q", "-rs", "-p", "no:cacheprovider", "-p", "conftest", tmp_path/"test_solid.py",
        CAD_TESTS_REQUIRE=require
    )
    assert ("1 failed, 1 skipped" if skipped else "2 failed") in done.stdout, done.stdout + done.stderr
    assert not skipped or "apt-get install libgl1" in done.stdout


def test_without_opencascade_a_notebook_is_skipped_with_the_remedy(tmp_path):
    pytest.importorskip("nbdev")
    cells = [
        dict(
            cell_type="code", id="solid", metadata={}, execution_count=None, outputs=[],
            source=["from cad_mllm.geometry import load_occ\n", "load_occ()"]
        )
    ]
    (tmp_path/"solid.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    done = without_kernel(
        f"run_path({str(ROOT/'tools/test_notebooks.py')!r}", tmp_path/"solid.ipynb", CAD_TESTS_REQUIRE=""
    )
    assert (
        done.returncode == 0 and "skipped" in done.stdout and "apt-get install libgl1" in done.stderr
    ), done.stdout + done.stderr


def test_without_a_browser_its_tests_are_skipped_with_the_remedy(tmp_path):
    "An empty PATH and no CHROMIUM; a failure where CI requires a browser."
    env = {k: v for k, v in os.environ.items() if k != "CHROMIUM"} | {"PATH": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", "from browser_util import missing; print(missing())"], env=env, cwd=ROOT/"tests",
        capture_output=True, text=True, timeout=60
    ).stdout
    assert said.startswith("browser tests need") and "install" in said
    code = (
        "import os; os.environ['CAD_TESTS_REQUIRE'] = 'browser'; from absent import forbidden_skip; "
        f"print(forbidden_skip({said!r}), forbidden_skip('set OMNI_CAD_ROOT'))"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT/"tests", capture_output=True, text=True, timeout=60
    ).stdout == "True False\n"
