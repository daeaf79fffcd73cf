#!/usr/bin/env python3
"""The notebooks as a site that needs no network: `make_docs.py --out site` writes it and checks every link, `--check
site` only checks.

Cells are shown as nbdev shows them: `#| hide` and import cells are left out, `#| echo: false` keeps the output. An
exported cell becomes a card for each
public name (signature, one line, parameters from the comments beside them) with its source folded away. Nothing is
executed: outputs are those in the notebooks.
"""
import argparse
import ast
import configparser
import html
import io
import itertools
import json
import re
import shutil
import sys
import tokenize
from dataclasses import dataclass, field
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import markdown2html_mistune

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"


def settings():
    "settings.ini as a dict."
    parser = configparser.ConfigParser()
    parser.read(ROOT/"settings.ini")
    return dict(parser["DEFAULT"])


# ---------------------------------------------------------------- pages

@dataclass
class Page:
    "A notebook and where it goes."
    notebook: Path
    title: str
    summary: str
    cells: list = field(default_factory=list)
    sections: list = field(default_factory=list) # of (level, heading, anchor, words)
    numbers: object = field(default_factory=itertools.count) # of its formulas
    names: set = field(default_factory=set)      # of its symbols, whose anchors no heading takes

    @property
    def name(self): return self.notebook.relative_to(NBS).with_suffix(".html").as_posix()

    @property
    def up(self): return "../"*self.name.count("/")


def read_page(path):
    "A notebook with its title and the line below it."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    head = "".join(cells[0]["source"])
    title = re.search(r"^# (.+)$", head, re.M)
    summary = re.search(r"^> (.+)$", head, re.M)
    return Page(path, title[1] if title else path.stem, summary[1] if summary else "", cells)


def find_pages():
    "All pages in reading order: the overview, results, running it, the glossary, the tutorials, the chapters."
    chapters = sorted(p for p in NBS.rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    paths = [
        NBS/"index.ipynb", NBS/"results.ipynb", NBS/"running.ipynb", NBS/"glossary.ipynb",
        *sorted((NBS/"tutorials").glob("*.ipynb"), reverse=True), *chapters
    ]
    return [read_page(p) for p in paths if p.exists()]


def module_of(page):
    "The module a notebook exports to, or an empty string."
    found = (re.search(r"^#\| ?default_exp (\S+)", "".join(c["source"]), re.M) for c in page.cells)
    return next((m[1] for m in found if m), "")


# ---------------------------------------------------------------- signatures

@dataclass
class Symbol:
    "A public function, class or method."
    name: str
    kind: str
    signature: str
    doc: str
    params: list # of (name, type, default, words)
    returns: tuple # (type, words)
    anchor: str = ""


def comments(source):
    "Line number -> what is said in the comment at its end; it continues in comments below it, in the same column."
    found, last, column = {}, 0, -1
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type != tokenize.COMMENT: continue
            (line, at), words = token.start, token.string.lstrip("# ").strip()
            alone = not token.line[:at].strip()
            if alone and at == column and line - last == len(found[last]): found[last].append(words)
            else: found[line], last, column = [words], line, at
    except (tokenize.TokenError, IndentationError): pass
    return {line: " ".join(words) for line, words in found.items()}


def text_of(node): return "" if node is None else ast.unparse(node)


def read_function(node, said, owner=""):
    "A function's symbol; comments on a line of their own parameter describe it."
    a = node.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    defaults = dict(zip([p.arg for p in (a.posonlyargs + a.args)][::-1], a.defaults[::-1])) | {
        p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None
    }
    stars = {**({a.vararg.arg: "*"} if a.vararg else {}), **({a.kwarg.arg: "**"} if a.kwarg else {})}
    # several on a line: the comment is of none alone
    shared = {line for line in said if sum(p.lineno == line for p in every) > 1}
    params = [
        (
            stars.get(p.arg, "") + p.arg, text_of(p.annotation), text_of(defaults.get(p.arg)),
            "" if p.lineno in shared or p.lineno == node.lineno else said.get(p.end_lineno, "")
        )
        for p in every if not (owner and p.arg == "self")
    ]
    end = node.body[0].lineno if node.body else node.lineno
    returned = next(
        (
            said[i] for i in range(max([node.lineno, *(p.end_lineno for p in every if p.lineno != node.lineno)]), end)
            if i in said and (i == node.lineno or i not in {p.end_lineno for p in every})
        ),
        ""
    )
    shown = ", ".join(
        n + (f": {t}" if t else "") + (f" = {d}" if t and d else f"={d}" if d else "") for n, t, d, _ in params
    )
    name = f"{owner}.{node.name}" if owner else node.name
    return Symbol(
        name, "method" if owner else "function",
        f"{name}({shown})" + (f" → {text_of(node.returns)}" if node.returns else ""), ast.get_docstring(node) or "",
        params, (text_of(node.returns), returned)
    )


def read_class(node, said):
    "A class with its fields (of a dataclass) or the parameters of its `__init__`, then its public methods."
    init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if init is not None: params = read_function(init, said, node.name).params
    else:
        params = [
            (f.target.id, text_of(f.annotation), text_of(f.value), said.get(f.end_lineno, "")) for f in node.body
            if isinstance(f, ast.AnnAssign) and not f.target.id.startswith("_")
        ]
    bases = ", ".join(map(text_of, node.bases))
    yield Symbol(
        node.name, "class", f"class {node.name}" + (f"({bases})" if bases else ""), ast.get_docstring(node) or "",
        params, ("", "")
    )
    for f in node.body:
        if isinstance(f, ast.FunctionDef) and not f.name.startswith("_"): yield read_function(f, said, node.name)


def is_patch(node): return any(text_of(d).startswith("patch") for d in node.decorator_list)


def symbols(source):
    "The public symbols of an exported cell."
    said, found = comments(source), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"): found += read_class(node, said)
        if not isinstance(node, ast.FunctionDef): continue
        owner = text_of(node.args.args[0].annotation) if is_patch(node) and node.args.args else ""
        if not node.name.startswith("_") and not owner.startswith("_"): found.append(read_function(node, said, owner))
    return found


def only_imports(source):
    "Whether an exported cell has nothing to show."
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


# ---------------------------------------------------------------- cells as HTML

highlight = Highlight2HTML()


def code_html(source): return f'<div class="code">{highlight(source, language="python")}</div>'


@lru_cache(None)
def formula(tex, display):
    "A formula as SVG in the color of the text, without a ground of its own; its TeX where it cannot be drawn."
    from matplotlib.mathtext import math_to_image
    plain = re.sub(
        r"\\l?r?Vert", r"\\Vert ",
        re.sub(r"\\(Big|big|!|left|right)(?![a-z])", "", tex.replace("\n", " ").replace(r"\tfrac", r"\frac"))
    )
    plain = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", plain)
    plain = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", plain)
    plain = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", plain)
    plain = re.sub(r"\\text\{([^}]*)\}", lambda m: r"\mathrm{" + m[1].replace(" ", r"\ ") + "}", plain)
    out, size = io.BytesIO(), 14 if display else 11.5
    try: depth = math_to_image(f"${plain}$", out, dpi=72, format="svg", color="#010203")
    except ValueError: return f'<code class="tex">{html.escape(tex)}</code>'
    svg = out.getvalue().decode()
    svg = re.sub(
        r'<metadata>.*?</metadata>|<!--.*?-->|<g id="patch_1">.*?</g>', "", svg[svg.index("<svg"):], flags=re.S
    ).replace("#010203", "currentColor")
    width, height = (float(re.search(rf'{k}="([\d.]+)pt"', svg)[1])*size/10 for k in ("width", "height"))
    # @@ becomes a number of its own wherever it is shown
    svg = re.sub(r'\bid="', 'id="@@', re.sub(r'href="#', 'href="#@@', svg))
    svg = re.sub(
        r'<svg [^>]*viewBox="([^"]+)"[^>]*>',
        lambda m: '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="formula" '
        f'role="img" aria-label="{html.escape(tex)}" viewBox="{m[1]}" '
        f'style="width:{width:.1f}px;height:{height:.1f}px;vertical-align:{-depth*size/10:.1f}px">',
        svg, count=1
    ).strip()
    return f'<div class="display">{svg}</div>' if display else svg


def draw_formulas(text, numbers):
    """Markdown with a sign in place of each formula, and sign -> drawing: a drawing that began a line would end the
    paragraph. Formulas in code stay as they are."""
    drawings = {}
    def drawn(tex, display):
        number = next(numbers)
        sign = f"\ue000{number}\ue001"
        drawings[sign] = formula(tex, display).replace("@@", f"f{number}-")
        return sign
    def piece(part):
        part = re.sub(r"\$\$(.+?)\$\$", lambda m: drawn(m[1].strip(), True), part, flags=re.S)
        return re.sub(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\w)", lambda m: drawn(m[1], False), part)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    return "".join(p if i % 2 else piece(p) for i, p in enumerate(parts)), drawings


def anchor_of(heading):
    return re.sub(r"[^\w]+", "-", re.sub(r"<[^>]+>|`", "", html.unescape(heading)).lower()).strip("-") or "section"


def clean_markdown(made):
    "What nbconvert makes, without its pilcrows."
    return re.sub(r'<a class="anchor-link"[^>]*>.*?</a>', "", made)


def output_html(output):
    "What a cell printed, returned or drew."
    if output["output_type"] == "stream":
        return (
            f'<pre class="out">{html.escape("".join(output["text"]))}</pre>' if output.get("name") == "stdout" else ""
        )
    if output["output_type"] == "error":
        return (
            f'<pre class="out error">{html.escape(output.get("ename", ""))}: '
            f'{html.escape(output.get("evalue", ""))}</pre>'
        )
    data = {k: "".join(v) if isinstance(v, list) else v for k, v in output.get("data", {}).items()}
    if "application/vnd.jupyter.widget-view+json" in data: return ""
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img class="out" alt="output of the cell above" src="data:{kind};base64,{data[kind].strip()}">'
    if "image/svg+xml" in data: return f'<div class="out">{data["image/svg+xml"]}</div>'
    if "text/html" in data: return f'<div class="out html">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return f'<div class="out">{clean_markdown(markdown2html_mistune(data["text/markdown"]))}</div>'
    plain = data.get("text/plain", "")
    return (
        "" if re.fullmatch(r"<(Figure|IPython|matplotlib|PIL)[^>]*>", plain) or not plain
        else f'<pre class="out">{html.escape(plain)}</pre>'
    )


def row_html(tag, cells): return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def card(symbol):
    "A symbol as a reader wants it."
    def code(text): return f"<code>{html.escape(text)}</code>"
    rows = [(code(n), code(t), code(d) if d else "", inline(w)) for n, t, d, w in symbol.params]
    kind, words = symbol.returns
    if words: rows.append(("<b>returns</b>", code(kind), "", inline(words)))
    table = ""
    if any(p[3] or p[1] for p in symbol.params) or words:
        heads = ("field" if symbol.kind == "class" else "parameter", "type", "default", "")
        lines = [row_html("th", heads), *(row_html("td", row) for row in rows)]
        table = f'<table class="params">{"".join(lines)}</table>'
    return (
        f'<section class="card" id="{symbol.anchor}"><h4><a href="#{symbol.anchor}">{html.escape(symbol.name)}</a> '
        f'<small>{symbol.kind}</small></h4><pre '
        f'class="signature">{wrap_signature(symbol.signature)}</pre><p>{inline(symbol.doc)}</p>{table}</section>'
    )


def wrap_signature(text):
    "A signature, a line a parameter where it is long."
    if len(text) <= 100: return html.escape(text)
    depth, out = 0, ""
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == ")" and depth == 0: out += "\n"
        out += c
        if c == "(" and depth == 1 or c == "," and depth == 1: out += "\n   " + (" " if c == "(" else "")
    return html.escape(out)


def inline(text): return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


# ---------------------------------------------------------------- a page

def directives(source): return {m.strip() for m in re.findall(r"^#\|(.*)$", source, re.M)}


def cell_html(page, cell, taken):
    "One cell, or an empty string; headings and symbols are noted in `page.sections`."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown": return markdown_html(page, source, taken)
    marks, code = directives(source), re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    if "hide" in marks or any(m.startswith("default_exp") for m in marks) or not code: return ""
    shown = "".join(map(output_html, cell.get("outputs", [])))
    if any(m.startswith("export") for m in marks):
        if only_imports(code): return shown
        found = symbols(code)
        for s in found:
            s.anchor = unique(s.name, taken)
            taken.add(s.anchor)
            page.sections.append((5, s.name, s.anchor, s.doc))
        if not found:
            return folded(told(code), code) + shown
        source = folded("source", code)
        return "".join(map(card, found)) + source + shown
    return ("" if "echo: false" in marks else code_html(code)) + shown


def folded(title, code):
    "Source that unfolds at a press."
    return f'<details class="source"><summary>{html.escape(title)}</summary>{code_html(code)}</details>'


def told(code):
    "What a cell without public names holds, for the line that unfolds it."
    names = [
        n.name if hasattr(n, "name") else text_of(n.targets[0]) for n in ast.parse(code).body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Assign))
    ]
    return f"source: {', '.join(names[:4])}{' …' if names[4:] else ''}" if names else "source"


def unique(name, taken):
    "An anchor that is not taken."
    return next(n for n in [name] + [f"{name}-{i}" for i in range(2, len(taken) + 3)] if n not in taken)


def markdown_html(page, source, taken):
    "Prose, with anchors at its headings."
    text, drawings = draw_formulas(source, page.numbers)
    made = clean_markdown(markdown2html_mistune(text))
    for sign, drawing in drawings.items(): made = made.replace(f"<p>{sign}</p>", drawing).replace(sign, drawing)
    def heading(m):
        anchor = unique(anchor_of(m[2]), taken | page.names)
        taken.add(anchor)
        following = re.split(r"<h[1-6]", made[m.end():], maxsplit=1)[0]
        words = re.sub(r"\s+", " ", re.sub(r"<(svg|pre).*?</\1>|<[^>]+>", " ", following, flags=re.S)).strip()
        page.sections.append((int(m[1]), re.sub(r"<[^>]+>", "", m[2]), anchor, html.unescape(words)[:240]))
        return (
            f'<h{m[1]} id="{anchor}">{m[2]} <a class="here" href="#{anchor}" aria-label="link to this '
            f'section">#</a></h{m[1]}>'
        )
    return re.sub(r"<h([1-6])[^>]*>(.*?)</h\1>", heading, made, flags=re.S)


def relink(page, made, pages, repository):
    """Links between notebooks as links between pages; files outside the site are linked at the repository, where the
    project has an address."""
    names = {p.notebook: p.name for p in pages}
    def link(m):
        quote, target = m[1], html.unescape(m[2])
        if re.match(r"[a-z]+:|#|data:|//", target): return m[0]
        path, _, anchor = target.partition("#")
        there = (page.notebook.parent/unquote(path)).resolve()
        if there in names: target = page.up + names[there]
        elif there.exists() and (NBS/"images") in there.parents: target = page.up + there.relative_to(NBS).as_posix()
        elif there.exists() and ROOT in there.parents:
            if not repository: return f'title="{html.escape(there.relative_to(ROOT).as_posix())}"'
            target = f"{repository}/{there.relative_to(ROOT).as_posix()}"
        return f'{quote}="{html.escape(target + (f"#{anchor}" if anchor else ""))}"'
    return re.sub(r'\b(href|src)="([^"]*)"', link, made)


def link_symbols(page, made, where):
    "A name in `code` in the prose as a link to its card."
    def link(m):
        name = html.unescape(m[1]).removesuffix("()")
        if name not in where: return m[0]
        to, anchor = where[name]
        return f'<a class="symbol" href="{"" if to is page else page.up + to.name}#{anchor}"><code>{m[1]}</code></a>'
    parts = re.split(
        r'(<pre.*?</pre>|<a .*?</a>|<div class="code">.*?</div>|<section class="card".*?</section>|<h\d.*?</h\d>)',
        made, flags=re.S
    )
    return "".join(p if i % 2 else re.sub(r"<code>([\w.]+(?:\(\))?)</code>", link, p) for i, p in enumerate(parts))


# ---------------------------------------------------------------- the site

STATIC = Path(__file__).parent/"site"     # style sheet and scripts of the pages


def pygments_css():
    "Colours of code, light and dark."
    from pygments.formatters import HtmlFormatter
    def style(name, scope):
        return "\n".join(
            line for line in HtmlFormatter(style=name).get_style_defs(scope).splitlines() if "background" not in line
            or ".err" in line
        )
    return style("default", ".highlight") + "\n" + style("github-dark", ":root[data-theme=dark] .highlight")


def navigation(pages, here, site):
    "The contents, with the sections of the page that is open."
    def item(p):
        number = re.match(r"\d+[a-z]?", p.notebook.stem)
        label = (f'<span class="number">{number[0]}</span>' if number else "") + html.escape(
            p.title if p.notebook.stem != "index" else "Overview"
        )
        inner = (
            "".join(
                f'<li{" class=part" if level == 1 else ""}><a href="#{a}">{html.escape(html.unescape(h))}</a></li>'
                for level, h, a, _ in p.sections[1:] if level < 3
            )
            if p is here else ""
        )
        on, current = (" class=on", " aria-current=page") if p is here else ("", "")
        sections = f"<ol>{inner}</ol>" if inner else ""
        return f'<li{on}><a href="{here.up}{p.name}"{current}>{label}</a>{sections}</li>'
    groups = [
        ("Start", [p for p in pages if not re.match(r"\d", p.notebook.stem)]),
        ("The chapters, in reading order", [p for p in pages if re.match(r"\d", p.notebook.stem)])
    ]
    lists = "".join(f"<h2>{title}</h2><ol>{''.join(map(item, some))}</ol>" for title, some in groups if some)
    return (
        '<nav class="side" aria-label="Contents"><div class="top"><a class="name" '
        f'href="{here.up}index.html">{html.escape(site["title"])}</a><button id="theme-switch" type="button" '
        'title="Switch between light and dark">Dark</button></div>'
        '<label class="badge" for="search-box">Search (press /)</label><input id="search-box" type="search" '
        'autocomplete="off" placeholder="a name or some words"><ul id="search-hits" aria-live="polite"></ul><div '
        f'id="contents-list">{lists}</div></nav>'
    )


def page_html(page, body, pages, site):
    "The whole page."
    at, early = pages.index(page), (STATIC/"early.js").read_text(encoding="utf-8")
    module = module_of(page)
    source = f"nbs/{page.notebook.relative_to(NBS).as_posix()}"
    shown = f'<a href="{site["blob"]}/{source}">{source}</a>' if site["blob"] else source
    where = f'<p class="badge">module <code>{site["lib_name"]}.{module}</code>, notebook {shown}</p>' if module else ""
    before = (
        f'<a href="{page.up}{pages[at - 1].name}" '
        f'rel="prev"><small>before</small>{html.escape(pages[at - 1].title)}</a>'
        if at else "<span></span>"
    )
    after = (
        f'<a href="{page.up}{pages[at + 1].name}" rel="next"><small>next</small>{html.escape(pages[at + 1].title)}</a>'
        if at + 1 < len(pages) else "<span></span>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{html.escape(page.title)} · '
        f'{html.escape(site["title"])}</title>'
        f'<meta name="description" content="{html.escape(page.summary)}"><script>{early}</script><link '
        f'rel="stylesheet" href="{page.up}site.css"></head><body data-up="{page.up}"><a class="skip" '
        'href="#the-text">Skip to the text</a>'
        f'<div class="shell">{navigation(pages, page, site)}<main id="the-text">{body}{where}<div '
        f'class="pages">{before}{after}</div></main></div>'
        f'<script src="{page.up}search.js"></script><script src="{page.up}site.js"></script></body></html>'
    )


def build(out):
    "Write the site; the pages that were written."
    out, site, pages = Path(out), settings(), find_pages()
    site["blob"] = f"{site['git_url']}/blob/{site['branch']}" if site["git_url"] else ""
    bodies = {}
    for page in pages:
        taken = {"the-text", "search-box", "search-hits", "contents-list", "theme-switch"}
        page.names = {
            s.name for c in page.cells if re.search(r"^#\| ?export", "".join(c["source"]), re.M)
            for s in symbols("".join(c["source"]))
        }
        bodies[page.name] = "\n".join(filter(None, (cell_html(page, c, taken) for c in page.cells)))
    where = {}
    for page in pages:
        for level, name, anchor, _ in page.sections:
            if level == 5: where.setdefault(name, (page, anchor))
    if out.exists(): shutil.rmtree(out)
    out.mkdir(parents=True)
    for page in pages:
        file = out/page.name
        file.parent.mkdir(parents=True, exist_ok=True)
        body = link_symbols(page, relink(page, bodies[page.name], pages, site["blob"]), where)
        file.write_text(page_html(page, body, pages, site), encoding="utf-8")
    shutil.copytree(NBS/"images", out/"images")
    style = (STATIC/"site.css").read_text(encoding="utf-8") + pygments_css()
    (out/"site.css").write_text(style, encoding="utf-8")
    shutil.copy(STATIC/"site.js", out/"site.js")
    index = [[p.title, h, f"{p.name}#{a}", words] for p in pages for _, h, a, words in p.sections]
    (out/"search.js").write_text(
        f"window.SEARCH = {json.dumps(index, ensure_ascii=False, separators=(',', ':'))};\n", encoding="utf-8"
    )
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
