#!/usr/bin/env python3
"""The notebooks as a site that needs no network: `make_docs.py --out site` writes it and checks every link, `--check
site` only checks.

Zensical makes the site (navigation, search, light and dark, phones); here the notebooks become the Markdown it reads.
Cells are shown as nbdev shows them: `#| hide` and import cells are left out, `#| echo: false` keeps the output. An
exported cell becomes a card for each public name (signature, docstring, parameters from the comments beside them) with
its source folded away. Nothing is executed: outputs are those in the notebooks.
"""
import argparse
import ast
import base64
import configparser
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"
STATIC = Path(__file__).parent/"site"     # settings of the generator, style sheet and script


# ---------------------------------------------------------------- pages

def text_of(cell):
    "The source of a cell."
    return "".join(cell["source"])


class Page:
    "A notebook and where it goes: `source` is its Markdown, `name` its page, `module` what it exports to."
    def __init__(self, notebook):
        self.notebook = notebook
        self.cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        self.source = notebook.relative_to(NBS).with_suffix(".md").as_posix()
        self.name = self.source.removesuffix(".md") + ".html"
        self.module = "".join(re.findall(r"^#\| ?default_exp (\S+)", "\n".join(map(text_of, self.cells)), re.M))
        self.title = re.search(r"^# (.+)$", text_of(self.cells[0]), re.M)[1]
        self.parts = sum(text_of(c).startswith("# ") for c in self.cells if c["cell_type"] == "markdown") > 1
        self.anchors = Counter()    # name of a card -> how often it was taken
        self.pictures = 0


def find_pages():
    "All pages in reading order: the overview, results, running it, the glossary, the tutorials, the chapters."
    first = [NBS/f"{name}.ipynb" for name in ("index", "results", "running", "glossary")]
    tutorials = sorted((NBS/"tutorials").glob("*.ipynb"), reverse=True)
    chapters = [p for p in NBS.glob("[0-9]*/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    chapters.sort(key=lambda p: (int(p.relative_to(NBS).parts[0].split("_")[0]), p))
    return [Page(p) for p in [*first, *tutorials, NBS/"00_config.ipynb", *chapters]]


def navigation(pages):
    "The pages by chapter, as the generator wants them."
    found = []
    for page in pages:
        number = re.match(r"\d+[a-z]?", page.notebook.stem)
        label = "Overview" if page.source == "index.md" else f"{number[0]} {page.title}" if number else page.title
        chapter, at = page.source.rpartition("/")[0].replace("_", " ").capitalize(), found
        if chapter and (not found or chapter not in found[-1]): found.append({chapter: []})
        if chapter: at = found[-1][chapter]
        at.append({label: page.source})
    return found


# ---------------------------------------------------------------- signatures

@dataclass
class Symbol:
    "A public function, class or method."
    name: str
    signature: str
    doc: str
    params: list # of (name, type, default, words)
    returns: tuple # (type, words)


def comments(source):
    "Line number -> what the comment at its end says; it continues in comments below it, in the same column."
    found, last, column = {}, 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT: continue
        (line, at), words = token.start, token.string.lstrip("# ").strip()
        alone = not token.line[:at].strip()
        if alone and at == column and line - last == len(found[last]): found[last].append(words)
        else: found[line], last, column = [words], line, at
    return {line: " ".join(words) for line, words in found.items()}


def code_of(node):
    "A piece of the syntax tree as code."
    return "" if node is None else ast.unparse(node)


def arguments(node):
    "(stars, argument, default) of each parameter of a function."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    found = [("", *pair) for pair in zip(plain, [None]*(len(plain) - len(a.defaults)) + a.defaults)]
    if a.vararg: found.append(("*", a.vararg, None))
    found += [("", *pair) for pair in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: found.append(("**", a.kwarg, None))
    return found


def read_function(node, said, owner=""):
    "A function's symbol; the comment on a parameter's own line describes it, the one after the last `)` the result."
    found = [a for a in arguments(node) if not (owner and a[1].arg in ("self", "cls"))]
    lines = Counter(a[1].end_lineno for a in arguments(node))
    params = [
        (
            stars + a.arg, code_of(a.annotation), code_of(default),
            said.get(a.end_lineno, "") if lines[a.end_lineno] == 1 and a.lineno != node.lineno else ""
        )
        for stars, a, default in found
    ]
    free = [i for i in range(node.lineno, node.body[0].lineno) if i in said and (i == node.lineno or i not in lines)]
    name = f"{owner}.{node.name}" if owner else node.name
    result = code_of(node.returns)
    head = signature(f"def {name}", [shown(p) for p in params], result)
    return Symbol(name, head, ast.get_docstring(node) or "", params, (result, said[free[-1]] if free else ""))


def shown(param):
    "A parameter in a signature."
    name, kind, default, _ = param
    return name + (f": {kind}" if kind else "") + (f" = {default}" if kind and default else f"={default}"*bool(default))


def signature(start, params, result):
    "A signature, with one parameter per line where it is long."
    end = f") -> {result}" if result else ")"
    line = f"{start}({', '.join(params)}{end}"
    return line if len(line) <= 76 else f"{start}(\n" + "".join(f"    {p},\n" for p in params) + end


def read_class(node, said):
    "A class with its fields (of a dataclass) or the parameters of its `__init__`, then its public methods."
    functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
    params = [
        (f.target.id, code_of(f.annotation), code_of(f.value), said.get(f.end_lineno, "")) for f in node.body
        if isinstance(f, ast.AnnAssign) and not f.target.id.startswith("_")
    ]
    for f in functions:
        if f.name == "__init__": params = read_function(f, said, node.name).params
    bases = f"({', '.join(map(code_of, node.bases))})" if node.bases else ""
    yield Symbol(node.name, f"class {node.name}{bases}", ast.get_docstring(node) or "", params, ("", ""))
    for f in functions:
        if not f.name.startswith("_"): yield read_function(f, said, node.name)


def symbols(source):
    "The public symbols of an exported cell."
    said, found = comments(source), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"): found += read_class(node, said)
        if not isinstance(node, ast.FunctionDef): continue
        patched = any(code_of(d).startswith("patch") for d in node.decorator_list) and node.args.args
        owner = code_of(node.args.args[0].annotation) if patched else ""
        if not node.name.startswith("_") and not owner.startswith("_"): found.append(read_function(node, said, owner))
    return found


# ---------------------------------------------------------------- cells as Markdown

def fenced(code, kind="python"):
    "Code between fences that are longer than any in it."
    ticks = "`"*max(3, *(len(t) + 1 for t in re.findall(r"^ *(`{3,})", code, re.M)), 3)
    return f"{ticks}{kind}\n{code.rstrip()}\n{ticks}"


def inline(text):
    "A line of a docstring as HTML."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def card(symbol, page):
    "A symbol as a reader wants it."
    page.anchors[symbol.name] += 1
    again = page.anchors[symbol.name]
    anchor = symbol.name + (f"-{again}" if again > 1 else "")
    rows, table = [(f"`{n}`", f"`{t}`"*bool(t), f"`{d}`"*bool(d), words) for n, t, d, words in symbol.params], ""
    if symbol.returns[1]: rows.append(("returns", f"`{symbol.returns[0]}`", "", symbol.returns[1]))
    if any(kind or words for _, kind, _, words in rows):
        lines = ["<tr>" + "".join(f"<td>{inline(cell)} </td>" for cell in row) + "</tr>" for row in rows]
        heads = "<tr><th>name </th><th>type </th><th>default </th><th></th></tr>"
        table = f'<div class="params"><table>{heads}{"".join(lines)}</table></div>'
    level = 5 if "." in symbol.name else 4
    words = "".join(f"<p>{inline(part)}</p>" for part in symbol.doc.split("\n\n") if part)
    return (
        f'<section class="card" markdown="1">\n\n{"#"*level} {symbol.name} {{ #{anchor} }}\n\n'
        f'{fenced(symbol.signature, "{.python .signature}")}\n\n{words}{table}\n\n</section>'
    )


def folded(code, found):
    "Source that unfolds at a press; where no card names it, the line to press does."
    names = [] if found else [
        n.name if hasattr(n, "name") else code_of(n.targets[0]) for n in ast.parse(code).body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Assign))
    ]
    title = f"source: {', '.join(names[:4])}{' …' if names[4:] else ''}" if names else "source"
    return (
        f'<details class="source" data-search-exclude markdown="1">\n<summary>{html.escape(title)}</summary>\n\n'
        f'{fenced(code)}\n\n</details>'
    )


def code_cell(page, cell, folder):
    "What is shown of a code cell."
    source = text_of(cell)
    marks = {m.strip() for m in re.findall(r"^#\|(.*)$", source, re.M)}
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    if "hide" in marks or any(m.startswith("default_exp") for m in marks) or not code: return []
    outputs = [made for o in cell.get("outputs", []) if (made := output(page, o, folder))]
    if not any(m.startswith("export") for m in marks):
        return outputs if "echo: false" in marks else [fenced(code), *outputs]
    if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body): return outputs
    found = symbols(code)
    return [*(card(s, page) for s in found), folded(code, found), *outputs]


def output(page, made, folder):
    "What a cell printed, returned or drew; pictures become files beside the page."
    if made["output_type"] == "stream":
        return fenced("".join(made["text"]), "{.text .out}") if made.get("name") == "stdout" else ""
    data = {kind: "".join(value) for kind, value in made.get("data", {}).items()}
    if "application/vnd.jupyter.widget-view+json" in data: return ""
    for kind in data.keys() & {"image/png", "image/jpeg"}:
        page.pictures += 1
        name = f"{page.notebook.stem}-{page.pictures}.{kind.removeprefix('image/')}"
        (folder/page.source).with_name(name).write_bytes(base64.b64decode(data[kind]))
        return f"![output of the cell above]({name}){{ .out }}"
    if drawn := data.get("image/svg+xml") or data.get("text/html"): return f'<div class="out">{drawn}</div>'
    if "text/markdown" in data: return data["text/markdown"]
    plain = data.get("text/plain", "")
    return "" if re.fullmatch(r"<(Figure|IPython|matplotlib|PIL)[^>]*>|", plain) else fenced(plain, "{.text .out}")


def formula(tex, display):
    "A formula as MathML, which browsers draw themselves."
    tag = "div" if display else "span"       # a paragraph goes on around a span, not around a bare `math`
    made = convert(" ".join(tex.split()), display="block" if display else "inline")
    made = made.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')   # a norm's bars are of one height
    return f'<{tag} class="formula">{made}</{tag}>'


def prose(text, page, pages, where, blob):
    "Prose with its formulas, links between notebooks, and names that lead to their cards; code stays as it is."
    files = {p.notebook: p.source for p in pages}
    def link(m):
        if re.match(r"[a-z]+:|#|//", m[2]): return m[0]
        path, _, anchor = m[2].partition("#")
        there = (page.notebook.parent/unquote(path)).resolve()
        if there in files: return f"{m[1]}({path.removesuffix('.ipynb')}.md{'#' + anchor if anchor else ''})"
        if NBS/"images" in there.parents or not there.exists(): return m[0]
        outside = there.relative_to(ROOT).as_posix()
        return f"{m[1]}({blob}/{outside})" if blob else m[1].removeprefix("[").removesuffix("]")
    def named(m):
        name = m[1].removesuffix("()")
        if name not in where: return m[0]
        return f"[`{m[1]}`]({os.path.relpath(where[name], Path(page.source).parent)}#{name})"
    def piece(part):
        if part.startswith("#"): return "#"*(page.parts and part != f"# {page.title}") + part
        if part.startswith("`"): return re.sub(r"^`([\w.]+(?:\(\))?)`$", named, part)
        if re.match(r"!?\[", part): return re.sub(r"(!?\[.*?\])\(([^)\s]+)\)$", link, part, flags=re.S)
        part = re.sub(r"\$\$(.+?)\$\$", lambda m: formula(m[1], True), part, flags=re.S)
        return re.sub(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", lambda m: formula(m[1], False), part)
    parts = re.split(r"(```.*?```|^#+ [^\n]*$|!?\[(?:`[^`]*`|[^\]`])*\]\([^)\s]+\)|`[^`\n]*`)", text, flags=re.S | re.M)
    return "".join(map(piece, parts))


# ---------------------------------------------------------------- the site

def markdown(page, pages, where, site, folder):
    "The page's Markdown."
    blob, parts = f"{site['git_url']}/blob/{site['branch']}" if site["git_url"] else "", []
    for cell in page.cells:
        if cell["cell_type"] == "markdown": parts.append(prose(text_of(cell), page, pages, where, blob))
        elif cell["cell_type"] == "code": parts += code_cell(page, cell, folder)
    if page.module:
        source = f"nbs/{page.notebook.relative_to(NBS).as_posix()}"
        shown = f"[{source}]({blob}/{source})" if blob else source
        parts.append(f"module `{site['lib_name']}.{page.module}`, notebook {shown}\n{{ .where }}")
    return "\n\n".join(parts) + "\n"


def card_places(pages):
    "Name of each public symbol -> the Markdown with its card."
    where = {}
    for page in pages:
        for cell in filter(lambda c: re.search(r"^#\| ?export", text_of(c), re.M), page.cells):
            for symbol in symbols(text_of(cell)): where.setdefault(symbol.name, page.source)
    return where


def build(out):
    "Write the site; the pages that were written."
    out, pages, site = Path(out).resolve(), find_pages(), configparser.ConfigParser()
    site.read(ROOT/"settings.ini")
    site, where = site["DEFAULT"], card_places(pages)
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        folder = made/"docs"
        shutil.copytree(NBS/"images", folder/"images")
        shutil.copytree(STATIC, folder/"static", ignore=shutil.ignore_patterns("*.yml"))
        for page in pages:
            file = folder/page.source
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(markdown(page, pages, where, site, folder), encoding="utf-8")
        config = (STATIC/"mkdocs.yml").read_text(encoding="utf-8")
        config += f"site_name: {site['title']}\nsite_description: {site['description']}\nnav: "
        (made/"mkdocs.yml").write_text(config + json.dumps(navigation(pages)) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        ran = subprocess.run(command, cwd=made, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)
        if ran.returncode: raise RuntimeError(f"the site could not be built:\n{ran.stdout}{ran.stderr}")
        (made/"site"/"404.html").unlink()       # for servers; its links begin at their root
        if out.exists(): shutil.rmtree(out)
        shutil.copytree(made/"site", out)
    return pages


# ---------------------------------------------------------------- links

class Links(HTMLParser):
    "The anchors and links of a page."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.twice = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key == "id" or key == "name" and tag == "a":
                if value in self.ids: self.twice.append(value)
                self.ids.add(value)
            elif key in ("href", "src") and value is not None: self.links.append(value)


def bad_external(link):
    "Why an outside link cannot be right, or an empty string; no network is asked."
    parts = urlparse(link)
    if parts.scheme in ("data", "mailto"): return ""
    if parts.scheme not in ("http", "https"): return f"unknown scheme {parts.scheme}"
    if "." not in parts.netloc or re.search(r"[\s<>\"]", link): return "not an address"
    return ""


def check_links(site):
    "Every link of a built site that leads nowhere, as (page, link, reason)."
    site, broken = Path(site).resolve(), []
    read = {p.resolve(): Links(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    if not read: return [(str(site), "", "there is no page")]
    for page, found in read.items():
        name = page.relative_to(site).as_posix()
        broken += [(name, f"#{i}", "this anchor stands twice") for i in found.twice]
        for link in found.links:
            if re.match(r"[a-zA-Z][\w+.-]*:|//", link):
                if why := bad_external(link): broken.append((name, link[:100], why))
                continue
            path, _, anchor = link.partition("#")
            there = (page.parent/unquote(path)).resolve() if path else page
            if not there.is_file(): broken.append((name, link, "there is no such file"))
            elif site not in there.parents: broken.append((name, link, "it lies outside the site"))
            elif anchor and there in read and unquote(anchor) not in read[there].ids:
                broken.append((name, link, "there is no such anchor"))
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="site", help="folder to write; what is in it is replaced")
    parser.add_argument("--check", metavar="SITE", help="only check the links of a built site")
    options = parser.parse_args()
    if not options.check:
        out = Path(options.out)
        if out.exists() and any(out.iterdir()) and not (out/"search.js").exists():
            sys.exit(f"{out} holds something that is no site; choose an empty folder with --out")
        print(f"{len(build(out))} pages in {out}; open {out/'index.html'}")
    broken = check_links(options.check or options.out)
    for page, link, why in broken: print(f"{page}: {link}: {why}")
    if broken: sys.exit(f"{len(broken)} broken links")
    print("every link leads somewhere")


if __name__ == "__main__":
    main()
