#!/usr/bin/env python3
"""README.md from nbs/index.ipynb: its prose, visible code and text outputs; `--check` fails when the file differs.

Only the standard library, so that it runs before anything is installed. Cells with `#| hide` or `#| default_exp` are
left out, with `#| echo: false` only
their output is kept. Links and pictures relative to nbs/ are made relative to the top folder.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def directives(source):
    "The nbdev directives of a cell."
    return {m.strip() for m in re.findall(r"^#\|(.*)$", source, re.M)}


def relink(text):
    "Relative links of the notebook as links from the top folder."
    return re.sub(r"(\]\(|src=\")(?!https?:|#|/|\.\./)([^)\"]+)", r"\1nbs/\2", text).replace("](../", "](")


def outputs(cell):
    "The text that a cell printed or returned."
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        text = o.get("text") or data.get("text/markdown") or data.get("text/plain") or []
        text = "".join(text).rstrip()
        if "text/markdown" in data: yield text
        elif text and "image/png" not in data: yield "\n".join("    " + line for line in text.splitlines())


def readme(notebook):
    "The README's text."
    parts = ["<!-- Made from nbs/index.ipynb by tools/make_readme.py: edit the notebook. -->"]
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        marks = directives(source)
        if marks & {"hide", "export"} or any(m.startswith("default_exp") for m in marks): continue
        if cell["cell_type"] == "markdown":
            parts.append(relink(source))
            continue
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if code and "echo: false" not in marks: parts.append(f"```python\n{code}\n```")
        parts += list(outputs(cell))
    return "\n\n".join(parts) + "\n"


def main():
    made = readme(json.loads((ROOT/"nbs/index.ipynb").read_text(encoding="utf-8")))
    target = ROOT/"README.md"
    if "--check" not in sys.argv: target.write_text(made, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != made:
        sys.exit("README.md differs from nbs/index.ipynb: run `make export` and commit both")


if __name__ == "__main__":
    main()
