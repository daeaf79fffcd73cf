"""The site of the notebooks: it builds without a network, shows what readers shall see and nothing else, and every
link in it leads somewhere."""
import html
import importlib.util
import json
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
        if not (module := docs.module_of(page)): continue
        source = (ROOT/"cad_mllm"/f"{module.replace('.', '/')}.py").read_text()
        names = re.search(r"__all__ = \[(.*?)\]", source, re.S)[1]
        defined = {n for n in re.findall(r"'(\w+)'", names) if re.search(rf"^(?:def|class) {n}\b", source, re.M)}
        cards = set(re.findall(r'<section class="card" id="(\w+)"', (site[1]/page.name).read_text()))
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
        and grow.signature == "Part.grow(by)"
    )
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


def test_formulas_have_no_ground_of_their_own(site):
    "A filled box behind a formula is a white box on a dark page."
    formulas = [
        f for page in site[1].rglob("*.html")
        for f in re.findall(r'<svg [^>]*class="formula".*?</svg>', page.read_text(), re.S)
    ]
    assert formulas and [f[:300] for f in formulas if re.search(r"#fff\b|#ffffff|fill: ?white", f)] == []
    assert all("currentColor" in f for f in formulas)


def test_a_formula_at_the_beginning_of_a_line_stays_in_its_paragraph(docs):
    page = docs.Page(ROOT/"nbs"/"index.ipynb", "", "")
    made = docs.markdown_html(page, "Squared for\n$k=2$. *Source*: `x`.\n\n$$a + b$$\n\nEnd.", set())
    assert made.count('class="formula"') == 2 and "<em>Source</em>: <code>x</code>" in made and "\ue000" not in made
    assert re.search(r'Squared for\s*<svg.*?</svg>\. <em>', made, re.S) and '<p><div class="display">' not in made


@pytest.mark.browser
def test_the_site_is_dark_and_its_search_has_words(site):
    "In a browser: formulas in the color of the text, and hits whose name and place stand apart."
    import browser_util
    if browser_util.missing(): pytest.skip(browser_util.missing())
    with browser_util.browser_page() as page:
        page.emulate_media(color_scheme="dark")
        page.goto((site[1]/"index.html").as_uri())
        page.locator("#search-box").fill("build_solid")
        hit = page.locator("#search-hits a").first
        name, place = hit.inner_text().split("\n", 1)
        assert name.strip() == "build_solid" and "build_solid" not in place.split(":")[0]
        assert re.search(r"build_solid\s", hit.text_content())
        shown = next(p for p in site[1].rglob("*.html") if 'class="formula"' in p.read_text())
        page.goto(shown.as_uri())
        formula = page.locator("svg.formula").first
        ink, ground = formula.evaluate(
            "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor].map(c => "
            "c.match(/\\d+/g).slice(0, 3).map(Number))"
        )
        filled = formula.evaluate(
            "e => [...e.querySelectorAll('path, use')].map(p => getComputedStyle(p).fill).filter(c => c == 'rgb(255, "
            "255, 255)').length"
        )
        assert min(ink) > 150 and max(ground) < 60 and filled == 0
        assert page.errors == []


def test_pages_follow_each_other_and_can_be_searched(site):
    pages, out = site
    for before, after in zip(pages, pages[1:]):
        assert re.search(
            rf'<a href="[./]*{re.escape(after.name)}" rel="next">', (out/before.name).read_text()
        ), before.name
    entries = json.loads((out/"search.js").read_text().removeprefix("window.SEARCH = ").rstrip(";\n"))
    assert ["app", "CheckpointPanel", "10_panel/13_app.html#CheckpointPanel"] in [e[:3] for e in entries]


def test_formulas_are_drawn(docs, site):
    "All formulas of the notebooks can be drawn without a network."
    drawn = {p.name: (site[1]/p.name).read_text() for p in site[0]}
    assert (
        [n for n, text in drawn.items() if 'class="tex"' in text] == []
        and 'class="formula"' in drawn["4_metrics/01_distances.html"]
    )


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
