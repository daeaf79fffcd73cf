#!/usr/bin/env python3
"""Writes the `__init__.py` of each chapter from the public names of its modules; `--check` only compares.

A name that two modules of a chapter give, or that is also the name of a module, is refused: it would mean two things.
"""
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/"cad_mllm"
TITLES = {
    "utils": "What every chapter uses: files, figures, lazy packages.",
    "cad": "Parametric histories and the token language.",
    "geometry": "Solids, meshes, points and pictures of a history; shapes from outside.",
    "interop": "Histories to and from other programs.",
    "metrics": "Every metric of the field, failures counted.",
    "data": "From files to batches.",
    "checkpoints": "Checkpoints: format, saving, loading, upload.",
    "models": "Encoders, language model, generation.",
    "training": "The curriculum loop, exact resume, many processes.",
    "panel": "The widget that picks, plots, resumes and watches.",
    "commands": "The functions behind `cad-mllm COMMAND`.",
}
FULL = {("data", "FAMILIES"): "synthetic"}      # registries that later modules fill
EXCEPT = {("utils", "training")}      # the first description's path hands on names of later chapters


def modules_in_order(chapter):
    "The chapter's modules in the order of their notebooks."
    notebooks = sorted((ROOT/"nbs").glob(f"*_{chapter}/*.ipynb"))
    known = [path.stem.split("_", 1)[1] for path in notebooks]
    return [name for name in known if (PACKAGE/chapter/f"{name}.py").exists() and (chapter, name) not in EXCEPT]


def public_names(path):
    "The `__all__` that nbdev wrote into a module."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def patched_classes(path):
    "Names of classes to which a module adds methods."
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any("patch" in ast.unparse(d) for d in node.decorator_list):
            found.append(ast.unparse(node.args.args[0].annotation))
    return found


def homes_of(chapter):
    "Module -> names; a class whose methods are in several modules comes from the last of them."
    home, modules = {}, modules_in_order(chapter)
    for module in modules:
        path = PACKAGE/chapter/f"{module}.py"
        for name in public_names(path):
            if name in home:
                sys.exit(f"{chapter}: {home[name]} and {module} both give {name}")
            if name in modules:
                sys.exit(f"{chapter}: {module} gives {name}, which is also a module of the chapter")
            home[name] = module
        for name in patched_classes(path):
            if name in home:
                home[name] = module
    home.update({name: module for (where, name), module in FULL.items() if where == chapter})
    return {m: sorted(n for n, h in home.items() if h == m) for m in modules}


def wrapped(names):
    "Names between quotes, in lines of at most 118 columns."
    lines, line = [], ""
    for name in names:
        if len(line) + len(name) > 104:
            lines.append(line)
            line = ""
        line += name + " "
    lines.append(line.rstrip())
    return "\n              ".join(f'"{text}"' for text in lines)


def face(chapter):
    "The text of a chapter's `__init__.py`."
    rows = [f'    "{module}": ({wrapped(names)}),' for module, names in homes_of(chapter).items() if names]
    return (f'"""{TITLES[chapter]}"""\n# Made by tools/make_faces.py from the modules\' public names.\n'
            "from cad_mllm.utils.lazy import hand_on\n\n"
            "__getattr__, __dir__, __all__ = hand_on(__name__, {\n" + "\n".join(rows) + "\n})\n")


def main():
    bad = []
    for chapter in TITLES:
        path = PACKAGE/chapter/"__init__.py"
        if not path.parent.is_dir():
            continue
        text = face(chapter)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            bad.append(str(path.relative_to(ROOT)))
    if bad:
        sys.exit("not what tools/make_faces.py writes: " + ", ".join(bad) + "\nrun `make export` and commit")


if __name__ == "__main__":
    main()
