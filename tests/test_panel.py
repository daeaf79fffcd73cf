"""The panel in real browsers: pick, sort, plot, details; a real tiny training resumed, watched, found again after its kernel was killed, stopped; a part completed and downloaded; prune.

Screenshots go to the folder named by SHOTS (default: pytest's temporary folder), one at each stage and one where a test fails. Every wait is for something that can be seen."""
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from browser_util import ROOT, browser_page, kill_kernel, missing, server, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")]
WAIT = 120_000  # milliseconds; only ever waited for in full when something is broken


@pytest.fixture
def folder(tmp_path):
    from cad_mllm.panel import example_folder
    return example_folder(tmp_path/"checkpoints")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data):
    "A run of the real trainer that was stopped after four steps of a very long first stage."
    from small_data import TINY_FLAGS
    output = tmp_path_factory.mktemp("trained")/"real"
    command = [sys.executable, "-m", "cad_mllm.cli", "train", *TINY_FLAGS, "--data_root", str(small_data), "--output_dir", str(output), "--stage1_epochs", "9999", "--max_steps", "4", "--save_steps", "2", "--max_minutes", "6"] # so that it ends even where a test is killed
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return output


@pytest.fixture
def page(tmp_path, request):
    "A page whose `shot(name)` keeps a picture; one more is kept where the test fails."
    shots = Path(os.environ.get("SHOTS") or tmp_path/"shots")
    shots.mkdir(parents=True, exist_ok=True)
    with browser_page(height=1500) as page:
        page.set_default_timeout(WAIT)
        page.shot = lambda name: page.screenshot(path=shots/f"{name}.png", full_page=True)
        failures = request.session.testsfailed
        yield page
        if request.session.testsfailed > failures: page.shot(f"failed-{request.node.name}")


@pytest.fixture
def part():
    from cad_mllm.data import FAMILIES
    return FAMILIES["flange" if "flange" in FAMILIES else next(iter(FAMILIES))](np.random.default_rng(1))[0]


def panel_notebook(tmp_path, folder, extra=", command=panel_stand_in.command"):
    return write_notebook(tmp_path/"panel.ipynb", f"""import os; os.environ["PYTHONPATH"] = {str(ROOT)!r}
sys.path.insert(0, {str(ROOT/"tests")!r})
import ipywidgets, json, panel_stand_in
print("ipywidgets", ipywidgets.__version__)
from cad_mllm.panel import CheckpointPanel
panel = CheckpointPanel({str(folder)!r}{extra})
panel""")


# What a person sees and does. Whatever is awaited is a condition in the page, never a time.
def rows(page): return page.locator(".cm-grid .cm-line:visible").all_inner_texts()
def tab(page, title): page.locator(".cm-tabs .lm-TabBar-tab, .cm-tabs .p-TabBar-tab", has_text=title).first.click()
def message(page, text): page.locator(".cm-message", has_text=text).wait_for()
def sees(page, name, text): page.locator(f".cm-{name}", has_text=text).first.wait_for()
def until(page, condition, arg=None): page.wait_for_function(condition, arg=arg, timeout=WAIT)
def choose(page, name, text): page.locator(f".cm-{name} label", has_text=text).last.click()
def progress(page, pattern): until(page, "p => new RegExp(p).test(document.querySelector('.cm-progress')?.innerText || '')", pattern)


def fill(page, name, text, then=""):
    "Type into a field, and see that it stays typed; `then` is what the command says about it."
    field = page.locator(f".cm-{name} input")
    field.fill(text)
    if then: sees(page, "command", then)
    assert field.input_value() == text


STEP = r"() => Number((document.querySelector('.cm-progress').innerText.match(/Step\s+(\d+)/) || [0, 0])[1])"


def unnamed(page):
    "Controls that a screen reader could not name."
    tree = page.locator(".cm").first.aria_snapshot()
    kinds = "button|textbox|combobox|checkbox|radio|spinbutton|slider|listbox|img|progressbar|tab"
    return [line.strip() for line in tree.splitlines() if re.match(rf"\s*- ({kinds})( \"[\s\ue000-\uf8ff]*\")?(:| \[|$)", line)]


def test_pick_sort_plot_and_details(tmp_path, folder, page):
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        assert len(rows(page)) == 10 and "21 of 21 rows" in page.locator(".cm").first.inner_text()
        page.locator(".cm-sort-loss").click()
        until(page, "() => document.querySelector('.cm-sort-loss').innerText.includes('▴')")
        losses = [float(r.split("\n")[3]) for r in rows(page) if r.split("\n")[3] != "–"]
        assert losses == sorted(losses) and len(losses) == 10
        page.shot("panel-plot")

        page.locator(".cm-find input").press_sequentially("photos")
        until(page, "() => document.querySelectorAll('.cm-grid .cm-line')[1].style.display == 'none'")
        assert "not a checkpoint" in rows(page)[0]
        fill(page, "find", "damaged")
        page.locator(".cm-grid .cm-line", has_text="damaged").first.wait_for()

        before = page.locator(".plot-tail").text_content()
        page.locator(".cm-grid .cm-over").first.click()
        page.wait_for_selector(".cm-picked")
        until(page, "before => document.querySelector('.plot-tail').textContent != before", before)
        tab(page, "Details")
        sees(page, "details", "cannot be loaded")
        page.locator(".cm-verify").click()
        message(page, "pick another checkpoint")
        page.shot("panel-details")

        fill(page, "find", "brackets stage3")
        page.locator(".cm-grid .cm-line", has_text="stage3_all").first.wait_for()
        page.locator(".cm-grid .cm-over").first.press("Enter")       # the keyboard picks, too
        page.locator(".cm-details", has_text="stage3_all").first.wait_for()
        page.locator(".cm-verify").click()
        message(page, "exactly what was written")
        page.locator(".cm-other select").select_option(index=3)
        sees(page, "details", "What differs")
        tab(page, "Plot")
        page.locator(".cm-save-csv").click()
        with page.expect_download() as got: page.locator(".cm-plot-links a").click()
        assert Path(got.value.path()).read_text().startswith("run,kind,stage,step")
        assert page.errors == []


OUTSIDE = """() => { const right = document.querySelector('.cm-tabs').getBoundingClientRect().right, seen = e => e.checkVisibility() && !e.closest('.cm-table');
    return [...document.querySelectorAll('.cm :is(input, select, textarea, button, label, pre, td, h4), .cm-tabs [role=tab]')].filter(e => seen(e) && (e.getBoundingClientRect().right > right || e.getAttribute('role') == 'tab' && e.scrollWidth > e.clientWidth + 1))
        .map(e => e.tagName + ' ' + (e.innerText || e.placeholder || e.className)) }"""


def test_in_a_narrow_window_nothing_is_cut_off(tmp_path, folder, page):
    "On a phone or beside a notebook the fields become narrower; only the table of checkpoints is for scrolling sideways."
    page.set_viewport_size(dict(width=420, height=1300))
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        for title, sign in (("Plot", ".live-plot iframe"), ("Details", ".cm-details table"), ("Train", ".cm-command pre"), ("Complete", ".cm-part-caption"), ("Storage", ".cm-preview")):
            tab(page, title)
            page.locator(sign).first.wait_for()
            page.shot(f"panel-narrow-{title.lower().replace(' ', '-')}")
            assert page.evaluate(OUTSIDE) == [], title


def test_everything_has_a_name_and_a_place_for_the_keyboard(tmp_path, folder, page):
    with server("voila", panel_notebook(tmp_path, folder), dark=True) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        for title, sign in (("Plot", ".live-plot iframe"), ("Details", ".cm-details table"), ("Train", ".cm-command pre"), ("Complete", ".cm-part-caption"), ("Storage", ".cm-preview")):
            tab(page, title)
            page.locator(sign).first.wait_for()
            assert unnamed(page) == [], title
            page.shot(f"panel-dark-{title.split()[0].lower()}")
        page.locator(".cm-refresh").focus()
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("() => document.activeElement.closest('[class*=cm-]')?.className.match(/cm-[a-z-]+/)?.[0] || ''"))
        assert {"cm-stage", "cm-find", "cm-over", "cm-preview"} <= reached
        dark = page.evaluate(r"() => getComputedStyle(document.querySelector('.cm-title')).color.match(/\d+/g).map(Number)")
        assert min(dark[:3]) > 150                                     # light letters on the dark page


def story(page, show, folder, data, live):
    "One night: resume a real training, watch it, lose the kernel, find it again, stop it, go on, complete a part with it, prune."
    run = folder/"real"
    page.wait_for_selector(".live-plot iframe")
    page.locator(".cm-sort-loss").click()
    until(page, "() => document.querySelector('.cm-sort-loss').innerText.includes('▴')")
    page.locator(".cm-grid .cm-over").first.click()
    page.locator(".cm-grid .cm-line").first.locator(".cm-picked").wait_for()
    tab(page, "Train")
    choose(page, "mode", "resuming the newest")
    page.locator(".cm-run select").select_option(label="real")
    sees(page, "command", "--max_steps 0")                             # its limit of four steps is behind it
    fill(page, "batch-size", "8", then="--accept_changes batch_size")  # another run: said, and accepted
    fill(page, "batch-size", "")
    fill(page, "save-steps", "50", then="--save_steps 50")
    fill(page, "max-steps", "100000", then="--max_steps 100000")
    page.locator(".cm-start").click()
    message(page, "Started process")
    live(page)
    progress(page, "Training: process")
    until(page, f"() => ({STEP})() > 4")
    first = page.evaluate(STEP)
    until(page, f"first => ({STEP})() > first", first)
    assert page.locator(".cm-start").is_disabled()
    page.shot(f"panel-train-{page.where}")
    pid = json.loads((run/"status.json").read_text())["pid"]

    if page.where == "lab": kill_kernel(page)
    show(page)                                                         # the notebook again, from the top
    os.kill(pid, 0)                                                    # it went on alone
    progress(page, "Training: process")
    message(page, "press Live to follow it")
    page.locator(".cm-live button").first.click()
    assert page.locator(".cm-output input").get_attribute("placeholder") == str(run)
    page.locator(".cm-stop").click()
    message(page, "Asked to save and stop")
    progress(page, "everything saved")
    stopped = json.loads((run/"status.json").read_text())["step"]

    page.locator(".cm-start:not([disabled])").click()                  # and once more: the same flags again
    message(page, "Started process")
    live(page)
    until(page, f"first => ({STEP})() > first", stopped)
    page.locator(".cm-stop:not([disabled])").click()
    progress(page, "everything saved")
    steps = [json.loads(line)["step"] for line in (run/"metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > stopped > 4

    fill(page, "find", "real newest")
    until(page, "() => document.querySelectorAll('.cm-grid .cm-line')[1].style.display == 'none'")
    page.locator(".cm-grid .cm-over").first.click()
    tab(page, "Complete")
    choose(page, "part-source", "a sample")
    page.locator(".cm-sample-about img").wait_for()
    page.locator(".cm-sample-list select").select_option(index=2)
    sees(page, "sample-about", "0000/00000002")
    page.locator(".cm-part-generate").click()
    live(page)
    sees(page, "message", "Done")
    assert page.locator(".cm-part-pictures figure").count() >= 3
    page.frame_locator(".cm-part-solid iframe").locator("canvas").wait_for()
    page.shot(f"panel-complete-{page.where}")
    for kind in ("json", *(["step"] if importlib.util.find_spec("OCP") and "a valid solid" in page.locator(".cm-part-verdict").inner_text() else [])):
        page.locator(f".cm-part-{kind}").click()
        live(page)
        sees(page, "part-links", f".{kind}")
        with page.expect_download() as got: page.locator(".cm-part-links a").last.click()
        assert got.value.suggested_filename.endswith(kind) and Path(got.value.path()).stat().st_size > 84
    prune(page, folder)


def prune(page, folder):
    tab(page, "Storage")
    page.locator(".cm-storage-run select").select_option(label="brackets")
    page.locator(".cm-keep input").fill("1")
    page.locator(".cm-keep input").press("Enter")
    page.locator(".cm-preview").click()
    message(page, "nothing has been deleted yet")
    planned = page.locator(".cm-plan tr", has_text="goes").count()
    assert planned > 0
    page.shot(f"panel-storage-{page.where}")
    def count(): return len(list((folder/"brackets").glob("*/checkpoint-*")))
    there = count()
    page.locator(".cm-ask").click()
    message(page, "cannot be undone")
    assert count() == there
    page.locator(".cm-yes").click()
    message(page, f"Deleted {planned} checkpoints")
    assert count() == there - planned


@pytest.fixture
def night(tmp_path, folder, trained, small_data):
    "The example folder with the real run in it, as a notebook, data and all."
    import shutil
    shutil.copytree(trained, folder/"real")
    yield folder
    from cad_mllm.panel import read_training
    from cad_mllm.training import STOP
    if read_training(folder/"real").is_active: (folder/"real"/STOP).touch()


def test_a_night_in_jupyterlab(tmp_path, night, small_data, page):
    page.where = "lab"
    with server("lab", panel_notebook(tmp_path, night, "")) as show:
        show(page)
        story(page, show, night, small_data, live=lambda page: None)   # the clock starts by itself
        assert page.errors == []


@pytest.mark.skipif(not os.environ.get("IPYWIDGETS7_PYTHON"), reason="set IPYWIDGETS7_PYTHON to the python of an environment with ipywidgets 7.7.1, notebook 6.5.7 and widgetsnbextension 3.6.6")
def test_a_night_with_ipywidgets_7(tmp_path, night, small_data, page):
    page.where = "ipywidgets7"
    def live(page):
        if "mod-active" not in (page.locator(".cm-live button").first.get_attribute("class") or ""): page.locator(".cm-live button").first.click()
    with server("notebook6", panel_notebook(tmp_path, night, ""), python=os.environ["IPYWIDGETS7_PYTHON"]) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        assert "ipywidgets 7." in page.locator(".output_area").first.inner_text()
        story(page, show, night, small_data, live)
        assert page.errors == []


NOTEBOOK7 = os.environ.get("NOTEBOOK7_PYTHON") or (sys.executable if importlib.util.find_spec("notebook") and importlib.util.find_spec("notebook.app") else "")


@pytest.mark.skipif(not NOTEBOOK7, reason="pip install notebook, or set NOTEBOOK7_PYTHON to the python of an environment with notebook 7")
def test_notebook_7(tmp_path, folder, page):
    with server("notebook7", panel_notebook(tmp_path, folder), python=NOTEBOOK7) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        tab(page, "Train")
        fill(page, "max-steps", "5000", then="--max_steps 5000")
        page.locator(".cm-start").click()
        message(page, "Started process")
        progress(page, r"[1-9]\d* of 5000")
        page.locator(".cm-stop").click()
        progress(page, "everything saved")
        page.shot("panel-notebook7")


def test_complete_own_files_and_prune(tmp_path, folder, part, page):
    from PIL import Image
    page.where = "voila-dark"
    (tmp_path/"whole.json").write_text(json.dumps(part.to_json()))
    (tmp_path/"partial.json").write_text(json.dumps(part.truncate(2).to_json()))
    (tmp_path/"points.xyz").write_text("".join(f"{x} {y} 0\n" for x in range(9) for y in range(9)))
    Image.new("RGB", (80, 60), "teal").save(tmp_path/"view.png")
    extra = f', command=panel_stand_in.command, completer=lambda path: panel_stand_in.Echo(json.load(open({str(tmp_path/"whole.json")!r})))'
    with server("voila", panel_notebook(tmp_path, folder, extra), dark=True) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        tab(page, "Complete")
        page.locator(".cm-part-caption textarea").fill("a flange")
        for kind, file, said in (("partial", "partial.json", "2 operations"), ("image", "view.png", "a picture"), ("points", "points.xyz", "81 points")):
            with page.expect_file_chooser() as chooser: page.locator(f".cm-upload-{kind}").click()
            chooser.value.set_files(tmp_path/file)
            message(page, said)
        page.locator(".cm-part-points input").fill("/no/such.xyz")
        page.locator(".cm-part-generate").click()
        message(page, "there is no file")
        page.locator(".cm-part-points input").fill("")
        page.locator(".cm-part-generate").click()
        message(page, "Done.")
        assert page.locator(".cm-part-pictures figure").count() == 3   # picture, beginning, completed
        page.frame_locator(".cm-part-solid iframe").locator("canvas").wait_for()
        assert "Self-intersecting faces" in page.locator(".cm-part-verdict").inner_text()
        page.shot("panel-complete")
        for kind in ("json", "stl", *(["step"] if importlib.util.find_spec("OCP") else [])):
            page.locator(f".cm-part-{kind}").click()
            message(page, f".{kind}.")
            with page.expect_download() as got: page.locator(".cm-part-links a").last.click()
            content = Path(got.value.path()).read_bytes()
            assert got.value.suggested_filename.endswith(kind) and len(content) > 84
            if kind == "step": assert content.startswith(b"ISO-10303-21")
        prune(page, folder)
        assert page.errors == []


def test_answers_do_not_undo_what_is_typed(tmp_path, folder, page):
    "Somebody types into one field while answers about others arrive."
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        page.wait_for_selector(".live-plot iframe")
        tab(page, "Train")
        sees(page, "command", "resume_from_ckpt")
        choose(page, "mode", "starting a new run")                     # its answer changes proposals of every field
        page.locator(".cm-data input").press_sequentially("/no/such/folder", delay=15)
        page.locator(".cm-max-steps input").press_sequentially("123", delay=15)
        sees(page, "command", "cad-mllm synth")
        assert (page.locator(".cm-data input").input_value(), page.locator(".cm-max-steps input").input_value()) == ("/no/such/folder", "123")
        page.locator(".cm-data input").fill(str(tmp_path))
        sees(page, "command", "--max_steps 123")
        page.locator(".cm-output input").press_sequentially(str(folder/"night"), delay=5)
        choose(page, "mode", "resuming the newest")
        sees(page, "command", "resume_from_ckpt latest")
        assert page.locator(".cm-output input").input_value() == str(folder/"night")
