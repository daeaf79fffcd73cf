"The house: the package as people install it, and the promises of its layout."
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


def test_modules_import_only_from_rooms_above():
    exporting = [re.search(r"default_exp ([\w.]+)", p.read_text()) for p in sorted((REPO/"nbs").rglob("[0-9]*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    order = [found[1] for found in exporting if found]
    for number, name in enumerate(order):
        tree = ast.parse((REPO/"cad_mllm"/f"{name.replace('.', '/')}.py").read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom): continue
            target = node.module or ""
            if node.level == 1 or target.startswith("cad_mllm."):
                room = target.removeprefix("cad_mllm.")
                if room in order: assert order.index(room) < number, f"{name} imports {room}, which comes after it"


def test_importing_the_package_is_light():
    code = "import sys, cad_mllm, cad_mllm.cad, cad_mllm.tokens; print([m for m in ('torch', 'transformers', 'OCP', 'matplotlib.pyplot') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_old_imports_work():
    from cad_mllm import CADMLLMConfig, CADMLLMModel, load_checkpoint, save_checkpoint  # noqa: F401
    from cad_mllm.inference import CADAutocomplete, autocomplete_cad  # noqa: F401
    import cad_mllm.config
    assert cad_mllm.config.CADMLLMConfig is CADMLLMConfig


def test_nothing_of_this_machine_is_named():
    "Committed text names no absolute path of a home or work folder."
    files = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True).stdout.split()
    if not files: pytest.skip("not a git checkout")
    for f in files:
        if not f.endswith((".py", ".ipynb", ".md", ".ini", ".toml", ".txt")) and f != "Makefile": continue
        text = (REPO/f).read_text(errors="replace")
        for word in ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/tmp/" + "w/"): assert word not in text, f"{f} names {word}"


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    "Built, unpacked elsewhere, used without the checkout on the path."
    pytest.importorskip("build")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPO)], check=True, capture_output=True)
    wheel = next(tmp_path.glob("cad_mllm-*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path/"site"), str(wheel)], check=True)
    code = ("import cad_mllm, sys; from cad_mllm.cad import CADProgram, rectangle; from cad_mllm.tokens import decode, encode\n"
            f"assert cad_mllm.__file__.startswith({str(tmp_path)!r}), cad_mllm.__file__\n"
            "p = CADProgram(); p.sketch(rectangle(0, 0, .1, .1)); p.extrude(.02); assert encode(decode(encode(p))) == encode(p)\n"
            "from cad_mllm.cli import main; main(['--help'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path/"site"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0 and "cad-mllm VERB" in done.stdout, done.stderr
    assert (tmp_path/"site/bin/cad-mllm").exists()


def test_the_readme_points_to_things_that_exist():
    text = (REPO/"README.md").read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)
    assert len(targets) >= 5 and [t for t in targets if not (REPO/t).exists()] == []


def test_the_readme_shows_the_results_as_they_are():
    "No placeholder is left, and each table that the index shows is the file that a benchmark wrote."
    import json
    text, cells = (REPO/"README.md").read_text(), json.loads((REPO/"nbs/index.ipynb").read_text())["cells"]
    shown = re.findall(r'result\("(\w+)"\)', "\n".join("".join(c["source"]) for c in cells))
    assert shown and not re.search(r"\b[A-Z]+_(TABLE|FIGURE)\b|TODO|XXX", text)
    for name in shown: assert (REPO/f"benchmarks/results/{name}.md").read_text().strip() in text, f"README does not show benchmarks/results/{name}.md as it is: run tools/run_notebooks.py index, tools/make_readme.py"
