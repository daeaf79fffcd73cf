"""The site of the notebooks: it builds without a network, shows what readers shall see and nothing else, and every
link in it leads somewhere."""
import html
import importlib.util
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT/"tools"/"make_docs.py"
pytestmark = pytest.mark.skipif(
    not TOOL.exists(), reason="tools/make_docs.py is not there (an installed package has no notebooks)"
)


@pytest.fixture(scope="module")
def docs():
    pytest.importorskip(
        "zensical", reason="the site needs zensical and latex2mathml: pip install zensical latex2mathml"
    )
    spec = importlib.util.spec_from_file_location("make_docs", TOOL)
    module = sys.modules["make_docs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(docs, tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")/"site"
    return docs.build(out), out


def test_every_link_leads_somewhere(docs, site):
    pages, out = site
    assert len(pages) >= 18 and docs.check_links(out) == []


def test_the_check_finds_what_is_broken(docs, tmp_path):
    (tmp_path/"a.html").write_text(
        '<h1 id="x">a</h1><h2 id="x">again</h2><a href="b.html">1</a><a href="#y">2</a><a href="a.html#x">good</a><img '
        'src="no.png"><a href="htp://x.org">3</a>'
        '<a href="https://nowhere">4</a><a href="https://example.org/a#b">good</a><a href="../../etc">5</a>'
    )
    broken = {(link, why.split(" ")[0]) for _, link, why in docs.check_links(tmp_path)}
    assert {link for link, _ in broken} == {
        "#x", "b.html", "#y", "no.png", "htp://x.org", "https://nowhere", "../../etc"
    }
    assert docs.check_links(tmp_path/"empty")


def test_nothing_comes_from_a_network(site):
    """Scripts, styles and pictures of the pages are files beside them or written into them; the one badge of Colab's
    own is a picture outside."""
    for page in site[1].rglob("*.html"):
        outside = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert [u for u in outside if "colab-badge" not in u] == [], page.name


def test_hidden_cells_and_directives_are_left_out(docs, site):
    pages, out = site
    for page in pages:
        text = re.sub(r"<[^>]+>", "", (out/page.name).read_text())
        assert (
            "#| export" not in text and "#| hide" not in text and "default_exp" not in text.replace("default_exp`", "")
        ), page.name
    hidden = next(
        c for p in pages if p.notebook.stem == "02_program" for c in p.cells if "#| hide" in "".join(c["source"])
        and "assert" in "".join(c["source"])
    )
    telling = max("".join(hidden["source"]).splitlines(), key=len)
    shown = html.unescape(re.sub(r"<[^>]+>", "", (out/"1_cad/02_program.html").read_text()))
    assert telling not in shown and "class Profile" in shown


def test_every_exported_name_has_a_card(docs, site):
    "What a module says it exports is on its page, with its signature."
    for page in site[0]:
        if not (module := page.module): continue
        source = (ROOT/"cad_mllm"/f"{module.replace('.', '/')}.py").read_text()
        names = re.search(r"__all__ = \[(.*?)\]", source, re.S)[1]
        defined = {n for n in re.findall(r"'(\w+)'", names) if re.search(rf"^(?:def|class) {n}\b", source, re.M)}
        cards = set(re.findall(r'<section class="card">\s*<h[45] id="(\w+)"', (site[1]/page.name).read_text()))
        assert defined <= cards, f"{page.name}: no card for {defined - cards}"


def test_signatures_are_read_from_the_source(docs):
    cell = '''class Part:
    "A part."
    size: float = 1.0 # in
                      # metres
    def grow(self, by): return self

@patch
def shrink(
    self: Part,
    by: float = 2, # how often
) -> Part: # a smaller one
    "Make it smaller."

def _private(): pass'''
    part, grow, shrink = docs.symbols(cell)
    assert (
        (part.name, part.params) == ("Part", [("size", "float", "1.0", "in metres")])
        and grow.signature == "def Part.grow(by)"
    )
    assert shrink.signature == "def Part.shrink(by: float = 2) -> Part"
    assert (shrink.name, shrink.params, shrink.returns) == (
        "Part.shrink", [("by", "float", "2", "how often")], ("Part", "a smaller one")
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT/"nbs"/"tutorials").glob("*.ipynb")))
def test_every_tutorial_shows_a_picture(name):
    "Who reads a tutorial without running it sees what it draws; pixels are shown as a picture, not as numbers."
    cells = json.loads((ROOT/"nbs"/"tutorials"/f"{name}.ipynb").read_text())["cells"]
    shown = [o.get("data", {}) for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert any(kind.startswith("image/") for data in shown for kind in data)
    assert [
        data for data in shown if set(data) == {"text/plain"} and "".join(data["text/plain"]).startswith("array(")
    ] == []


FORMULA = re.compile(r'<(span|div) class="formula">(<math .*?</math>)</\1>', re.S)


def test_formulas_have_no_color_of_their_own(site):
    "A filled box behind a formula is a white box on a dark page."
    formulas = [m[2] for page in site[1].rglob("*.html") for m in FORMULA.finditer(page.read_text())]
    assert formulas and [f[:300] for f in formulas if re.search(r"mathcolor|mathbackground|\bstyle=|#fff", f)] == []


def test_a_formula_at_the_beginning_of_a_line_stays_in_its_paragraph(docs):
    import markdown
    page = docs.Page(ROOT/"nbs"/"index.ipynb")
    text = docs.prose("Squared for\n$k=2$. *Source*: `$x$`.\n\n$$a + b$$\n\nEnd.", page, [page], {}, "")
    made = markdown.markdown(text, extensions=["attr_list", "md_in_html"])
    assert len(FORMULA.findall(made)) == 2 and "<em>Source</em>: <code>$x$</code>" in made
    assert re.search(r"<p>Squared for\s*<span.*?</span>\. <em>", made, re.S) and "<p><div" not in made


def test_names_and_notebooks_in_prose_are_links_and_code_is_not(docs):
    page, other = (docs.Page(ROOT/"nbs"/name) for name in ("index.ipynb", "1_cad/02_program.ipynb"))
    where = {"Profile": other.source}
    def made(text): return docs.prose(text, page, [page, other], where, "")
    assert made("a `Profile` here") == "a [`Profile`](1_cad/02_program.md#Profile) here"
    assert made("[a `Profile`](1_cad/02_program.ipynb)") == "[a `Profile`](1_cad/02_program.md)"
    assert made("[read](../CONTRIBUTING.md)") == "read" and made("# `Profile`") == "# `Profile`"
    assert made("```\n`Profile` $x$ costs $2\n```") == "```\n`Profile` $x$ costs $2\n```"


@pytest.mark.browser
def test_the_site_is_dark_and_its_search_has_words(site):
    "In a browser, from files, without a network: formulas in the color of the text, and search that finds a name."
    import browser_util
    if browser_util.missing(): pytest.skip(browser_util.missing())
    with browser_util.browser_page() as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.emulate_media(color_scheme="dark")
        page.goto((site[1]/"index.html").as_uri())
        page.locator(".md-search__button").click()
        page.get_by_placeholder("Search").press_sequentially("build_solid")
        hit = page.get_by_role("option").first
        hit.get_by_text("Run a history through a geometry kernel").wait_for()
        assert page.get_by_placeholder("Search").input_value() == "build_solid"
        assert hit.get_by_role("heading").inner_text() == "build_solid"
        assert hit.locator("li").all_inner_texts() == ["2 geometry", "11 solid"]
        page.get_by_placeholder("Search").press("Enter")
        page.wait_for_url("**/2_geometry/11_solid.html*#build_solid")
        shown = next(p for p in site[1].rglob("*.html") if FORMULA.search(p.read_text()))
        page.goto(shown.as_uri())
        ink, ground = page.locator(".formula mi").first.evaluate(
            "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor].map(c => { const "
            "draw = document.createElement('canvas').getContext('2d', {willReadFrequently: true}); draw.fillStyle = "
            "c; draw.fillRect(0, 0, 1, 1); return [...draw.getImageData(0, 0, 1, 1).data].slice(0, 3) })"
        )
        assert min(ink) > 150 and max(ground) < 60
        assert page.errors == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(site):
    import browser_util
    if browser_util.missing(): pytest.skip(browser_util.missing())
    with browser_util.browser_page(420, 900) as page:
        wide = []
        for made in [p for i, p in enumerate(site[0]) if i % 10 == 0 or p.parts]:
            page.goto((site[1]/made.name).as_uri())
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"): wide.append(made.name)
        assert wide == []


def test_pages_follow_each_other_and_can_be_searched(site):
    pages, out = site
    for before, after in zip(pages, pages[1:]):
        there = os.path.relpath(after.name, Path(before.name).parent)
        found = re.findall(r'<a href="(?:\./)?([^"]*)" class="md-footer__link md-footer__link--next"', (
            out/before.name).read_text())
        assert found == [there], before.name
    entries = json.loads((out/"search.js").read_text().removeprefix("var __index = ").rstrip(";\n"))["items"]
    assert ("10_panel/13_app.html#CheckpointPanel", "CheckpointPanel") in {(e["location"], e["title"]) for e in entries}


def test_formulas_are_drawn(docs, site):
    "All formulas of the notebooks can be drawn without a network: nothing of TeX is left in them."
    drawn = {p.name: FORMULA.findall((site[1]/p.name).read_text()) for p in site[0]}
    assert [n for n, formulas in drawn.items() if any("\\" in f for _, f in formulas)] == []
    assert len(drawn["4_metrics/01_distances.html"]) >= 8
    written = sum("$" in re.sub(r"```.*?```|`[^`]*`", "", docs.text_of(c), flags=re.S) for p in site[0] for c in p.cells
                  if c["cell_type"] == "markdown")
    assert sum(map(bool, drawn.values())) and sum(map(len, drawn.values())) >= written


def commands():
    "(where, verb, arguments, whether the command is whole) of every `cad-mllm ...` in prose and in code fences."
    texts = {p.name: p.read_text(encoding="utf-8") for p in (ROOT/"README.md", ROOT/"CHANGELOG.md")}
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            texts[path.name] = "\n".join(
                "".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
                if c["cell_type"] == "markdown"
            )
    for name, text in texts.items():
        fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        found = [(line, True) for block in fenced for line in block.splitlines()] + [
            (code, False) for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        ]
        for line, whole in found:
            if m := re.match(r"\s*(?:!|\$ )?cad-mllm ([a-z][\w-]*)(.*)", line):
                yield name, m[1], shlex.split(m[2], comments=True), whole


def test_every_command_that_is_shown_exists_as_shown(capsys):
    from cad_mllm import cli
    wrong, number = [], 0
    for where, verb, words, whole in commands():
        number += 1
        if where == "CHANGELOG.md": verb = cli.OLD_COMMANDS.get(verb, verb)      # older versions, by their names
        if verb not in cli.COMMANDS:
            wrong.append((where, verb))
            continue
        parser = cli.command_parser(verb)
        unknown = [
            w for w in words if w.startswith("--") and w.split("=")[0] not in parser._option_string_actions
            and w != "--trust"
        ]
        if unknown: wrong.append((where, verb, unknown))
        if whole and not {"...", "--trust"} & set(words):
            try: parser.parse_args(words)
            except SystemExit: wrong.append((where, verb, words, capsys.readouterr().err[-200:]))
    assert not wrong and number > 40, (number, wrong)
