"""The plot of the panel in a real browser: values, zoom, legend, tabs, clicks that select a checkpoint.

Screenshots go to the folder named by SHOTS (default: pytest's temporary folder). Every wait is for something that can
be seen."""
import json
import os
import re
from pathlib import Path

import pytest

from browser_util import browser_page, kill_kernel, missing, server, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")]
WAIT = 120_000  # milliseconds; only ever waited for in full when something is broken
LONG = (
    "a run whose name tells each of its settings, one after the other, learning rate 0.0003, batch 16, and the day it "
    "began on, in full"
)


@pytest.fixture
def folder(tmp_path):
    from cad_mllm.panel import example_folder
    return example_folder(tmp_path/"checkpoints")


@pytest.fixture
def page(tmp_path, request):
    "A page whose `shot(name)` keeps a picture; one more is kept where the test fails."
    shots = Path(os.environ.get("SHOTS") or tmp_path/"shots")
    shots.mkdir(parents=True, exist_ok=True)
    with browser_page(height=1250) as page:
        page.set_default_timeout(WAIT)
        page.shot = lambda name: page.screenshot(path=shots/f"{name}.png", full_page=True)
        failures = request.session.testsfailed
        yield page
        if request.session.testsfailed > failures: page.shot(f"failed-{request.node.name}")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    "The example folder behind a server that several tests share: they only look."
    from cad_mllm.panel import example_folder
    home = tmp_path_factory.mktemp("example")
    folder = example_folder(home/"checkpoints")
    with server("voila", notebook(home, folder)) as show: yield folder, show


def notebook(tmp_path, folder, *before, after="panel"):
    return write_notebook(
        tmp_path/"panel.ipynb", *before,
        f"from cad_mllm.panel import CheckpointPanel\npanel = CheckpointPanel({str(folder)!r})\n{after}"
    )


class Plot:
    "The plot in a page, as a person handles it: places are told as a share of the drawing."
    def __init__(self, page, number=0):
        self.page = page
        self.box = page.locator(".live-plot").nth(number)
        self.iframe = page.locator(".live-plot iframe").nth(number)
        self.inside = self.iframe.content_frame
        self.inside.locator("body[data-ready]").wait_for()
        self.until("() => shown().length > 0 && box")
        self.iframe.scroll_into_view_if_needed()

    def see(self, code, arg=None): return self.inside.locator("body").evaluate(f"(_, arg) => ({code})(arg)", arg)
    def drawn(self, code, arg=None):
        "What the plot answers to `code` once the frame that was asked for last is drawn."
        self.iframe.scroll_into_view_if_needed()
        self.until("() => !asked && box")
        return self.see(code, arg)

    def until(self, code):
        self.inside.locator("body").evaluate(
            f"async () => {{ while (!({code})()) await new Promise(done => setTimeout(done, 30)) }}", timeout=WAIT
        )
    def text(self, name): return self.inside.locator(name).inner_text()

    def spot(self, code, arg=None):
        "A place of the drawing in the page, from a function that gives [x, y] on the canvas."
        x, y = self.drawn(code, arg)
        at = self.inside.locator("#stage").bounding_box()
        return at["x"] + x, at["y"] + y

    def mark_of(self, run, step):
        return self.spot(
            "([name, step]) => place(marks(shown().find(r => r.name == name)).find(m => m.mark.step == step && "
            "m.mark.kind != 'damaged'))",
            [run, step]
        )

    def point_of(self, run, step):
        return self.spot(
            "([name, step]) => { const s = series(shown().find(r => r.name == name)), t = table(shown().find(r => "
            "r.name == name)).step, k = s.i.findIndex(i => t[i] == step); return [box.X(s.x[k]), box.Y(s.y[k])] }",
            [run, step]
        )

    def hover(self, place):
        self.page.mouse.move(place[0] - 40, place[1])
        self.page.mouse.move(*place)
        self.until("() => !$('tip').hidden")

    def values(self):
        return self.see(
            "() => [...document.querySelectorAll('#tip [data-run]')].map(r => [r.dataset.run, Number(r.dataset.step), "
            "Number(r.querySelector('b').textContent)])"
        )
    def range(self): return self.drawn("() => [box.x0, box.x1]")
    def pixels(self, color): return self.drawn("""color => {
        const c = $('curves'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const w = [1, 3, 5].map(i => parseInt(color.slice(i, i + 2), 16));
        const off = i => Math.abs(d[i] - w[0]) + Math.abs(d[i + 1] - w[1]) + Math.abs(d[i + 2] - w[2]);
        let n = 0;
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200 && off(i) < 12) n++;
        return n }""", color)


def logged(folder, run):
    rows = [json.loads(line) for line in (folder/run/"metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def picked(page, text): page.locator("[class*='-picked']", has_text=text).first.wait_for()


def test_the_plot_answers(example, page):
    "Hover, zoom, tabs, axes, legend; the values are those of metrics.jsonl, digit by digit."
    from cad_mllm.panel import find_runs, run_styles
    folder, show = example
    rows = {run: logged(folder, run) for run in ("brackets", "flanges")}
    show(page)
    plot = Plot(page)
    page.shot("live-plot-light")
    for step in (7, 93, 171):                                    # at the beginning, in the middle and near the end
        plot.hover(plot.point_of("brackets", step))
        found = {run: (at, value) for run, at, value in plot.values()}
        assert found["brackets"] == (step, rows["brackets"][step]["loss"])
        assert all(value == rows[run][at]["loss"] for run, (at, value) in found.items())
    for key, name in (("lr", "Learning rate"), ("grad_norm", "Gradient norm"), ("tokens_per_second", "Tokens/s")):
        plot.inside.locator("#tabs button", has_text=name).click()
        plot.hover(plot.point_of("brackets", 50))
        assert ["brackets", 50, rows["brackets"][50][key]] in plot.values()
    plot.inside.locator("#tabs button", has_text="Validation").click()
    saved = {
        e["step"]: e["val_loss"] for e in map(json.loads, (folder/"brackets"/"events.jsonl").read_text().splitlines())
        if e["event"] == "checkpoint"
    }
    plot.hover(
        plot.spot(
            "() => { const s = series(shown().find(r => r.name == 'brackets')); return [box.X(s.x[2]) - 20, "
            "box.Y(s.y[2])] }"
        )
    )
    assert ["brackets", 60, saved[60]] in plot.values()

    plot.inside.locator("#tabs button", has_text="Loss").click()
    for axis, key in (("samples", "samples"), ("tokens", "tokens"), ("seconds", "seconds"), ("step", "step")):
        plot.inside.locator("#axis").select_option(axis)
        low, high = plot.range()
        assert low < 0 < rows["brackets"][1][key] < rows["brackets"][180][key] < high < 1.1*rows["brackets"][180][key]
    plot.inside.locator("#log").check()
    assert plot.drawn("() => Math.abs(box.Y(1) - box.Y(2) - (box.Y(.5) - box.Y(1))) < .01")
    plot.inside.locator("#log").uncheck()

    styles, one = run_styles(find_runs(folder)), plot.inside.locator("#legend button", has_text="flanges")
    assert plot.pixels(styles["flanges"][0]) > 100
    blue = plot.pixels(styles["brackets"][0])
    one.click()
    plot.until("() => shown().length == 2 || shown().length == 1 && !lifted")
    page.mouse.move(5, 5)
    plot.until("() => !shown().some(r => r.name == 'flanges') && !lifted && !asked")
    assert plot.pixels(styles["flanges"][0]) == 0 and plot.pixels(styles["brackets"][0]) >= .5*blue
    plot.hover(plot.point_of("brackets", 50))
    assert [run for run, *_ in plot.values()] == ["brackets"]
    one.click()
    plot.until("() => shown().some(r => r.name == 'flanges')")
    assert page.errors == []


def test_zoom_stays_while_the_run_goes_on(tmp_path, folder, page):
    "Drag, wheel, double click and button; rows that arrive do not move what is looked at."
    with server("voila", notebook(tmp_path, folder)) as show:
        show(page)
        plot = Plot(page)
        whole = plot.range()
        def place(x, y=.5):
            return plot.spot(
                "([x, y]) => [box.left + x*(box.right - box.left), box.top + y*(box.bottom - box.top)]", [x, y]
            )
        page.mouse.move(*place(.5))
        page.mouse.down()
        page.mouse.move(*place(.6), steps=3)
        page.mouse.move(*place(.75), steps=3)
        page.mouse.up()
        plot.until("() => state.x && !asked")
        width = whole[1] - whole[0]
        assert plot.range() == pytest.approx([whole[0] + .5*width, whole[0] + .75*width], abs=.01*width)
        page.shot("live-plot-zoomed")
        page.mouse.wheel(0, -300)                                    # the plot has the focus since it was pressed
        plot.until(f"() => box.x1 - box.x0 < {.2*width}")
        seen = plot.range()
        with open(folder/"brackets"/"metrics.jsonl", "a") as f:
            f.write(json.dumps(dict(logged(folder, "brackets")[180], step=181, loss=.0625)) + "\n")
        page.locator("[class*='-refresh']").first.click()
        plot.until("() => shown().find(r => r.name == 'brackets').columns.loss.includes(.0625)")
        assert plot.range() == seen
        plot.inside.locator("#reset").click()
        plot.until("() => !state.x && !asked && box.x1 > 181")
        plot.hover(plot.point_of("brackets", 181))
        assert ["brackets", 181, .0625] in plot.values()
        page.mouse.move(*place(.3))
        page.keyboard.down("Control")
        page.mouse.wheel(0, -200)
        page.keyboard.up("Control")
        plot.until("() => state.x")
        page.mouse.dblclick(*place(.02, .02))
        plot.until("() => !state.x")
        assert page.errors == []


def story(page, show):
    """A click on a mark selects that checkpoint, in the table and in the plot; again and again; the keyboard does it
    too."""
    show(page)
    plot = Plot(page)
    for run, step in (("brackets", 20), ("brackets", 160), ("flanges", 40), ("brackets", 20)):
        page.mouse.click(*plot.mark_of(run, step))
        plot.until(
            f"() => tail.picked && marks(shown().find(r => r.name == '{run}')).find(m => m.mark.key == "
            f"tail.picked)?.mark.step == {step} && !sent"
        )
        picked(page, f"checkpoint-step{step}-")
    page.mouse.click(*plot.mark_of("brackets", 20))                  # the same one again is heard as well
    plot.until("() => !sent")
    assert plot.text("#said") == ""
    plot.hover(plot.mark_of("brackets", 40))
    assert "mean since the last save" in plot.text("#tip") and "loss of this step" in plot.text("#tip")
    plot.inside.locator("#curves").focus()
    page.mouse.move(2, 2)
    for key in (".", ".", ".", "Enter"): page.keyboard.press(key)
    plot.until("() => !sent && cursor && cursor.mark && cursor.mark.mark.key == tail.picked")
    return plot


def test_a_click_selects_in_voila(tmp_path, folder, page):
    with server("voila", notebook(tmp_path, folder), dark=True) as show:
        plot = story(page, show)
        page.shot("live-plot-dark")
        assert plot.see("() => document.documentElement.classList.contains('dark')")
        assert page.errors == []


def test_a_click_selects_in_jupyterlab(tmp_path, folder, page):
    "In JupyterLab, dark; without its kernel the plot stays, and a click says that nobody hears it."
    with server("lab", notebook(tmp_path, folder), dark=True) as show:
        plot = story(page, show)
        page.shot("live-plot-lab-dark")
        kill_kernel(page)
        page.mouse.click(*plot.mark_of("brackets", 160))
        plot.inside.locator("#said", has_text="not connected").wait_for()
        plot.hover(plot.point_of("brackets", 50))
        assert plot.values()


@pytest.mark.skipif(
    not os.environ.get("IPYWIDGETS7_PYTHON"),
    reason="set IPYWIDGETS7_PYTHON to the python of an environment with ipywidgets 7.7.1, notebook 6.5.7 and "
    "widgetsnbextension 3.6.6"
)
def test_a_click_selects_with_ipywidgets_7(tmp_path, folder, page):
    with server("notebook6", notebook(tmp_path, folder), python=os.environ["IPYWIDGETS7_PYTHON"]) as show:
        story(page, show)
        page.shot("live-plot-ipywidgets7")
        assert page.errors == []


def test_clicks_during_a_cell_wait_and_the_last_one_counts(tmp_path, folder, page):
    "While the kernel is busy the page says that a click is queued; then the last one counts."
    busy = f"import os, time\nwhile not os.path.exists({str(tmp_path/'go')!r}): time.sleep(.1)"
    with server("lab", notebook(tmp_path, folder)) as show:
        show(page)
        plot = Plot(page)
        page.evaluate(
            "code => { jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code}) }", busy
        )
        for step in (20, 40, 160): page.mouse.click(*plot.mark_of("brackets", step))
        plot.inside.locator("#said", has_text="Queued").wait_for()
        (tmp_path/"go").touch()
        plot.until(
            "() => !sent && marks(shown().find(r => r.name == 'brackets')).find(m => m.mark.key == "
            "tail.picked)?.mark.step == 160"
        )
        picked(page, "checkpoint-step160-")


def test_two_panels_do_not_hear_each_other(tmp_path, folder, page):
    "Two panels in one notebook: a click in one selects nothing in the other."
    after = f"import ipywidgets\nother = CheckpointPanel({str(folder/'flanges')!r})\nipywidgets.VBox([panel, other])"
    with server("voila", notebook(tmp_path, folder, after=after)) as show:
        show(page)
        first, second = Plot(page), Plot(page, 1)
        assert [r["name"] for r in second.see("() => base.runs.map(r => ({name: r.name}))")] == ["flanges"]
        page.mouse.click(*second.mark_of("flanges", 40))
        second.until("() => !sent && tail.picked.includes('step40')")
        assert not first.see("() => (tail.picked || '').includes('step40')")
        page.mouse.click(*first.mark_of("brackets", 20))
        first.until("() => !sent && tail.picked.includes('step20')")
        assert second.see("() => tail.picked.includes('step40')")


def cut_labels(plot):
    "Words of the drawing that do not lie wholly in it."
    labels = plot.see("""() => { const proto = CanvasRenderingContext2D.prototype, fill = proto.fillText, out = [];
        proto.fillText = function (text, x, y) {
            const w = this.measureText(text).width;
            const from = this.textAlign == 'right' ? x - w : this.textAlign == 'center' ? x - w/2 : x;
            out.push([text, from, from + w, y]); fill.apply(this, arguments); };
        draw(); proto.fillText = fill; return out }""")
    wide, tall = plot.see("() => [$('stage').clientWidth, $('stage').clientHeight]")
    assert len(labels) > 8
    return [t for t in labels if t[1] < 0 or t[2] > wide or not 5 < t[3] < tall - 2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_at_any_width(tmp_path, folder, page, dark):
    "Labels lie in the drawing, names in the page and never on the curves, however long they are."
    (folder/"brackets").rename(folder/LONG)
    with server("voila", notebook(tmp_path, folder), dark=dark) as show:
        show(page)
        for width in (1400, 900, 420):
            page.set_viewport_size(dict(width=width, height=1250))
            plot = Plot(page)
            plot.until("() => Math.abs($('curves').width/devicePixelRatio - $('stage').clientWidth) < 1 && !asked")
            for axis in ("samples", "tokens", "seconds", "step"):
                plot.inside.locator("#axis").select_option(axis)
                assert cut_labels(plot) == []
            plot.hover(plot.point_of(LONG, 120))
            page.shot(f"live-plot-{width}-{'dark' if dark else 'light'}")
            outside = plot.see("""() => [
                ...document.querySelectorAll('button, select, label, #tip, #legend button, #marks')
                ].filter(e => e.checkVisibility()).map(e => [e.innerText, e.getBoundingClientRect()])
                .filter(([, r]) => r.right > innerWidth + .5 || r.left < -.5).map(([t]) => t)""")
            assert outside == []
            assert plot.see("() => $('tip').scrollWidth <= $('tip').clientWidth")
            legend = plot.inside.locator("#legend button", has_text="a run whose name")
            stage = plot.inside.locator("#stage").bounding_box()
            assert legend.inner_text() == LONG and legend.bounding_box()["y"] >= stage["y"] + stage["height"] - 1
            assert plot.iframe.bounding_box()["height"] >= plot.see("() => $('plot').offsetHeight")
        assert page.errors == []


def test_hostile_names_and_values(tmp_path, folder, page):
    "A run whose name would end a script, a loss that is no number, a run without any."
    evil = folder/"<img src=x onerror=alert(1)> & {data}"
    evil.mkdir()
    rows = [dict(step=1, loss=2.0, lr=1e-3), dict(step=2, loss=None, lr=1e-3), dict(step=3, loss=1.0, lr=1e-7)]
    (evil/"metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 4, "loss": NaN}\n')
    (folder/"empty").mkdir()
    (folder/"empty"/"metrics.jsonl").touch()
    with server("voila", notebook(tmp_path, evil, after="panel")) as show:
        show(page)
        plot = Plot(page)
        assert plot.see("() => base.runs[0].columns.loss") == [2.0, None, 1.0, None]
        assert plot.text("#legend") == evil.name
        plot.inside.locator("#tabs button", has_text="Learning rate").click()
        plot.hover(plot.point_of(evil.name, 3))
        assert plot.values() == [[evil.name, 3, 1e-7]]
        assert page.errors == []


def test_a_hundred_thousand_steps_lose_no_peak(tmp_path, page):
    "Every logged point is in the page; what is drawn keeps the one step that differs."
    run = tmp_path/"runs"/"long"
    run.mkdir(parents=True)
    with open(run/"metrics.jsonl", "w") as f:
        for step in range(1, 100_001):
            f.write(
                json.dumps(dict(stage="stage1_text", step=step, loss=9.5 if step == 61_803 else 1 + 1/step, lr=1e-3))
                + "\n"
            )
    with server("voila", notebook(tmp_path, tmp_path/"runs")) as show:
        show(page)
        plot = Plot(page)
        plot.inside.locator("#weight").select_option("0")
        assert plot.see("() => series(shown()[0]).x.length") == 100_000
        drawn = plot.see(
            "() => { const s = series(shown()[0]); return thin(s, box.x0, box.x1, 800).map(i => s.i[i] + 1) }"
        )
        assert len(drawn) < 4*802 and 61_803 in drawn and 1 in drawn and 100_000 in drawn
        plot.hover(plot.point_of("long", 61_803))
        assert re.search(r"9\.5\b", plot.text("#tip"))


def test_where_scripts_do_not_run(example, page):
    "The picture shows the same curves, and a list selects the checkpoint."
    example[1](page)
    Plot(page)
    page.locator(".plot-still input").check()
    page.locator("img[alt^='Loss curves']").wait_for()
    page.locator(".plot-marks select").select_option(label="brackets, stage1_text, step 40")
    picked(page, "checkpoint-step40-")
    page.shot("live-plot-picture")
    assert page.errors == []


def test_colab_is_told_where_no_text_field_is(example, page):
    "Without the hidden field the page calls the function that Colab knows by name."
    example[1](page)
    plot = Plot(page)
    page.evaluate("""() => { document.querySelector('.plot-heard').remove(); window.calls = [];
        const heard = (name, args) => { window.calls.push([name, ...args]); return Promise.resolve() };
        window.google = {colab: {kernel: {accessAllowed: true, invokeFunction: heard}}} }""")
    plot.see("() => { base.callback = 'cad_mllm.pick.here' }")
    page.mouse.click(*plot.mark_of("brackets", 40))
    name, text = page.evaluate("() => window.calls[0]")
    assert name == "cad_mllm.pick.here" and "checkpoint-step40-" in json.loads(text)["pick"]
