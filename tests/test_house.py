"The house: the package as people install it, and the promises of its layout."
import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


def notebook_order(path):
    "Chapters by number, notebooks by number in them; the configuration stands after the tools of all chapters."
    parts = path.relative_to(REPO/"nbs").parts
    chapter = int(parts[0].split("_")[0]) if len(parts) > 1 else 0
    return chapter, len(parts) == 1, parts[-1]


def modules():
    "Module -> its notebook, in reading order."
    paths = [p for p in (REPO/"nbs").rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    found = {}
    for path in sorted(paths, key=notebook_order):
        exported = re.search(r"default_exp ([\w.]+)", path.read_text())
        if exported:
            found[exported[1]] = path
    return found


def source(module): return (REPO/"cad_mllm"/f"{module.replace('.', '/')}.py").read_text()


def absolute(node, module):
    "The module that a `from ... import` names, without the package; None for what is not ours."
    if node.level == 0:
        return node.module.removeprefix("cad_mllm.") if node.module.startswith("cad_mllm") else None
    above = module.split(".")[:-node.level] if node.level <= module.count(".") + 1 else []
    return ".".join([*above, *(node.module or "").split(".")]).strip(".")


def test_modules_import_only_from_chapters_above():
    order = list(modules())
    chapters = {name.split(".")[0] for name in order if "." in name}
    for number, name in enumerate(order):
        for node in ast.walk(ast.parse(source(name))):
            if not isinstance(node, ast.ImportFrom):
                continue
            room = absolute(node, name)
            if room in order:
                assert order.index(room) < number, f"{name} imports {room}, which comes after it"
            elif room in chapters:
                last = max(i for i, other in enumerate(order) if other.split(".")[0] == room)
                assert last < number, f"{name} imports from chapter {room}, which comes after it"


def test_no_module_has_more_than_500_lines():
    assert {name: n for name in modules() if (n := len(source(name).splitlines())) > 500} == {}


def test_scripts_and_style_sheets_are_files():
    "No text in a module or a tool is JavaScript or CSS: those are files beside them, which are formatted and linted."
    scripts = (r"=>\s*\{", "addEventListener", r"document\.(get|query|create)", r";\s*(const|let) \w+ =")
    code = re.compile("|".join([*scripts, r"\{[\w-]+:[^{}]*;[\w-]+:[^{}]*\}"]))
    paths = [*(REPO/"cad_mllm").rglob("*.py"), *(REPO/"tools").glob("*.py")]
    found = []
    for path in paths:
        texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        found += [f"{path.name}: {t[:60]!r}" for t in texts if isinstance(t, str) and code.search(t)]
    assert found == []


def test_no_private_name_crosses_a_module():
    crossing = []
    for name in modules():
        for node in ast.walk(ast.parse(source(name))):
            if isinstance(node, ast.ImportFrom) and absolute(node, name) is not None:
                crossing += [
                    f"{name}: {a.name}" for a in node.names if a.name.startswith("_") and not a.name.startswith("__")
                ]
    assert crossing == []


def methods_by_class():
    "Class -> number of methods, those that `@patch` adds included."
    counts = Counter()
    for name in modules():
        for node in ast.parse(source(name)).body:
            if isinstance(node, ast.ClassDef):
                counts[node.name] += sum(isinstance(n, ast.FunctionDef) for n in node.body)
            elif isinstance(node, ast.FunctionDef) and any("patch" in ast.unparse(d) for d in node.decorator_list):
                counts[ast.unparse(node.args.args[0].annotation)] += 1
    return counts


def test_no_class_has_more_than_20_methods():
    assert {name: n for name, n in methods_by_class().items() if n > 20} == {}


@pytest.mark.parametrize("chapter", ["utils", "cad", "geometry", "interop", "metrics", "data"])
def test_a_chapter_imports_light(chapter):
    "Importing a chapter imports neither torch nor transformers, OpenCascade or matplotlib."
    if not (REPO/"cad_mllm"/chapter).is_dir():
        pytest.skip(f"no chapter {chapter}")
    code = (
        f"import sys, cad_mllm.{chapter}; print([m for m in ('torch', 'transformers', 'OCP', 'matplotlib.pyplot') if m "
        "in sys.modules])"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip() == "[]"


def test_faces_hand_on_what_the_modules_give():
    done = subprocess.run([sys.executable, str(REPO/"tools/make_faces.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_that_scripts_rely_on():
    import importlib
    faces = {
        "cad": "CADProgram CADFormatError encode decode to_text from_text", "geometry": "build_solid read_shape Mesh",
        "metrics": "topology chamfer fscore iou", "data": "MultimodalAutocompleteDataset",
        "checkpoints": "save_checkpoint load_checkpoint list_checkpoints verify_checkpoint", "training": "train",
        "panel": "CheckpointPanel", "tokens": "encode decode to_text from_text",
        "utils.training": "save_checkpoint load_checkpoint train",
        "data.multimodal_autocomplete": "MultimodalAutocompleteDataset", "config": "CADMLLMConfig",
        "inference": "CADAutocomplete"
    }
    for module, names in faces.items():
        for name in names.split():
            assert callable(getattr(importlib.import_module(f"cad_mllm.{module}"), name)), f"{module}.{name}"


def test_importing_the_package_is_light():
    code = (
        "import sys, cad_mllm, cad_mllm.cad, cad_mllm.tokens; print([m for m in ('torch', 'transformers', 'OCP', "
        "'matplotlib.pyplot') if m in sys.modules])"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip() == "[]"


def test_old_imports_work():
    from cad_mllm import CADMLLMConfig, CADMLLMModel, load_checkpoint, save_checkpoint  # noqa: F401
    from cad_mllm.inference import CADAutocomplete, autocomplete_cad# noqa: F401
    import cad_mllm.config
    assert cad_mllm.config.CADMLLMConfig is CADMLLMConfig


def test_nothing_of_this_machine_is_named():
    "Committed text names no absolute path of a home or work folder."
    files = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True).stdout.split()
    if not files: pytest.skip("not a git checkout")
    for f in files:
        if not f.endswith((".py", ".ipynb", ".md", ".ini", ".toml", ".txt")) and f != "Makefile": continue
        text = (REPO/f).read_text(errors="replace")
        for word in ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/tmp/" + "w/"):
            assert word not in text, f"{f} names {word}"


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path):
    "Built, unpacked elsewhere, used without the checkout on the path."
    pytest.importorskip("build")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPO)], check=True,
        capture_output=True
    )
    wheel = next(tmp_path.glob("cad_mllm-*.whl"))
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path/"site"),
            str(wheel)
        ],
        check=True
    )
    code = (
        "import cad_mllm, sys; from cad_mllm.cad import CADProgram, rectangle; from cad_mllm.cad import decode, "
        "encode\n"
        f"assert cad_mllm.__file__.startswith({str(tmp_path)!r}), cad_mllm.__file__\n"
        "p = CADProgram(); p.sketch(rectangle(0, 0, .1, .1)); p.extrude(.02); assert encode(decode(encode(p))) == "
        "encode(p)\n"
        "from cad_mllm.cli import main; main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path/"site"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True
    )
    assert done.returncode == 0 and "cad-mllm COMMAND" in done.stdout, done.stderr
    assert (tmp_path/"site/bin/cad-mllm").exists()
    sources = [p.relative_to(REPO) for p in (REPO/"cad_mllm").rglob("static/*") if p.is_file()]
    # scripts and style sheets that modules read
    assert sources and [str(p) for p in sources if not (tmp_path/"site"/p).exists()] == []


def test_the_readme_points_to_things_that_exist():
    text = (REPO/"README.md").read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)
    assert len(targets) >= 5 and [t for t in targets if not (REPO/t).exists()] == []


def test_the_results_are_shown_as_they_are():
    "No placeholder is left, and each table that the page of results stores is the file that a benchmark wrote."
    import json
    assert not re.search(r"\b[A-Z]+_(TABLE|FIGURE)\b|TODO|XXX", (REPO/"README.md").read_text())
    cells = json.loads((REPO/"nbs/results.ipynb").read_text())["cells"]
    shown = [re.search(r'^result\("(\w+)"\)', "".join(c["source"]), re.M) for c in cells]
    tables = {name[1]: "".join(c["outputs"][0]["data"]["text/markdown"]) for name, c in zip(shown, cells) if name}
    assert {"tokens", "small_model", "completion"} <= tables.keys()
    for name, table in tables.items():
        written = (REPO/f"benchmarks/results/{name}.md").read_text()
        assert table.strip() == written.strip(), f"run tools/run_notebooks.py results for {name}"


# What README says -> the result file, and what stands there.
FIGURES = {
    "131 CAD tokens": ("tokens", "| CAD tokens | 131 |"),
    "minified JSON 8,413": ("tokens", "| minified JSON | 8,413 |"),
    "3.1 times as many models per second as Hugging Face": ("train_cpu", "| 3.08 |"),
    "3.9 times as many as TRL": ("train_cpu", "| 3.93 |"),
    "in 0.17 and 0.53 of their memory": ("train_cpu", "| 0.53 |"),
    "130 times the usual loop": ("train_h200", "| 130.41 |"),
    "464 agree with the volume in FreeCAD (99.1%), 462": (
        "histories", "464 agree with the volume (99.1%; the aim is 99%), 462 rebuild"
    ),
    "mean IoU .978 to .999": ("real_parts", "| fusion | clean | slabs | 20 | 0.978 |"),
    "median .998 or more": ("real_parts", "| 0.998 |"),
    "mean IoU .97 to .995, compared with .59 to .84": (
        "completion", "| omni | 10 | beginning, points | points, slices too | 0.972 |"
    )
}


@pytest.mark.parametrize("said", FIGURES)
def test_each_figure_of_the_readme_stands_in_its_result(said):
    name, there = FIGURES[said]
    assert said in (REPO/"README.md").read_text() and there in (REPO/f"benchmarks/results/{name}.md").read_text()


# Words that said in private what the field has a word for (see nbs/glossary.ipynb), and the word to use.
RETIRED = {
    r"obituary|last[ _]words": "failure, error", r"keep[ _]house": "storage",
    r"share[sd]?( the weights)? out": "sharded", r"caliper": "measure", r"by heart": "memorize",
    r"truth itself": "ground truth", r"picture sheet": "contact sheet", r"crumbs": "slivers", r"salvage": "recover",
    r"\brooms? \d|this room|the rooms": "notebook, module", r"\banew\b": "again", r"\blight kernel": "mesh kernel",
    r"\b(JSON|file|text|sequence|array|it) breaks off": "is truncated", r"\bwent bad\b": "became unreadable",
    r"cad-mllm (doctor|pack|deliver)\b": "data-report, shard, upload",
    r"\b(pixels|tokens|seconds|points|samples|models|micro-batches|bytes|rows) an? (side|second|part|step|row)\b": "per"
}


def readable_texts():
    "(where, text) of every exported module, of the README, and of the notebooks' prose and code."
    import json
    yield "README.md", (REPO/"README.md").read_text()
    for name in modules():
        yield name, source(name)
    for path in (REPO/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text())["cells"]
            yield path.name, "\n".join("".join(c["source"]) for c in cells)


def test_retired_words_do_not_return():
    "A line that must name an old word, such as an alias, says `old name` beside it."
    found = []
    for where, text in readable_texts():
        for line in text.splitlines():
            found += [
                f"{where}: {line.strip()[:100]} (say: {word})" for pattern, word in RETIRED.items()
                if re.search(pattern, line, re.I) and "old name" not in line
            ]
    assert found == []


def test_type_information_and_notes_for_contributors_are_there():
    "The wheel carries py.typed; CONTRIBUTING and CITATION are as current as the package."
    from configparser import ConfigParser
    settings = ConfigParser(delimiters=["="])
    settings.read(REPO/"settings.ini")
    assert (REPO/"cad_mllm/py.typed").exists() and "py.typed" in (REPO/"MANIFEST.in").read_text()
    assert f"\nversion: {settings['DEFAULT']['version']}\n" in (REPO/"CITATION.cff").read_text()
    paths = re.findall(r"(?:tests|tools|nbs|benchmarks)/[\w/]+\.(?:py|ipynb)", (REPO/"CONTRIBUTING.md").read_text())
    assert paths and [p for p in paths if "NN_" not in p and not (REPO/p).exists()] == []
