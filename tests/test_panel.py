"""The panel in real browsers: pick, sort, plot, details; a real tiny training resumed, watched, found again after its
kernel was killed, stopped; a part completed and downloaded; prune.

Screenshots go to the folder named by SHOTS (default: pytest's temporary folder), one at each stage and one where a test
fails. Every wait is for something that can be seen."""
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
    # so that it ends even where a test is killed
    command = [
        sys.executable, "-m", "cad_mllm.cli", "train", *TINY_FLAGS, "--data_root", str(small_data), "--output_dir",
        str(output), "--stage1_epochs", "9999", "--max_steps", "4", "--save_steps", "2", "--max_minutes", "6"
    ]
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


def panel_notebook(tmp_path, folder, extra=", command=panel_stand_in.command", before=""):
    return write_notebook(tmp_path/"panel.ipynb", f"""import os; os.environ["PYTHONPATH"] = {str(ROOT)!r}
{before}
sys.path.insert(0, {str(ROOT/"tests")!r})
import ipywidgets, json, panel_stand_in
print("ipywidgets", ipywidgets.__version__)
from cad_mllm.panel import CheckpointPanel
panel = CheckpointPanel({str(folder)!r}{extra})
panel""")


# What a person sees and does. Whatever is awaited is a condition in the page, never a time.
def rows(page): return page.locator(".cadm-grid .cadm-line:visible").all_inner_texts()
def line(page, text): return page.locator(".cadm-grid .cadm-line:visible", has_text=text).first
def select(page, text):
    "Click the line that has these words, and see that it is selected."
    line(page, text).locator(".cadm-over").click()
    page.locator(".cadm-picked", has_text=text).first.wait_for()
def ready(page):
    page.locator('.cadm-clock iframe').wait_for()
    page.frame_locator('.live-plot iframe').locator('body[data-ready]').wait_for()
    line(page, 'brackets').wait_for()
def tab(page, title):
    "Open a tab. A click that meets a page which still moves goes elsewhere; it is made again, as a person does."
    from playwright.sync_api import TimeoutError
    names = page.locator(".cadm-tabs .lm-TabBar-tab, .cadm-tabs .p-TabBar-tab", has_text=title)
    opened = page.locator(".cadm-tabs .lm-mod-current, .cadm-tabs .p-mod-current", has_text=title)
    for _ in range(5):
        names.first.click()
        try: return opened.first.wait_for(timeout=10_000)
        except TimeoutError: continue
    raise AssertionError(f"the tab {title!r} did not open in five tries")


def message(page, text): page.locator(".cadm-message", has_text=text).wait_for()
def sees(page, name, text): page.locator(f".cadm-{name}", has_text=text).first.wait_for()
def until(page, condition, arg=None): page.wait_for_function(condition, arg=arg, timeout=WAIT)
def choose(page, name, text): page.locator(f".cadm-{name} label", has_text=text).last.click()
def progress(page, pattern):
    until(page, "p => new RegExp(p).test(document.querySelector('.cadm-progress')?.innerText || '')", pattern)


def fill(page, name, text, then=""):
    "Type into a field, and see that it stays typed; `then` is what the command says about it."
    field = page.locator(f".cadm-{name} input")
    field.fill(text)
    if then: sees(page, "command", then)
    assert field.input_value() == text


STEP = r"() => Number((document.querySelector('.cadm-progress').innerText.match(/Step\s+(\d+)/) || [0, 0])[1])"


def unnamed(page):
    "Controls that a screen reader could not name."
    tree = page.locator(".cadm").first.aria_snapshot()
    kinds = "button|textbox|combobox|checkbox|radio|spinbutton|slider|listbox|img|progressbar|tab"
    return [
        line.strip() for line in tree.splitlines()
        if re.match(rf"\s*- ({kinds})( \"[\s\ue000-\uf8ff]*\")?(:| \[|$)", line)
    ]


def test_a_click_anywhere_on_a_line_counts(tmp_path, folder, page):
    "At 10, 50 and 90% of a line, of a run and of a checkpoint."
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        ready(page)
        for share in (.1, .5, .9):
            box = line(page, "brackets").locator(".cadm-middle").bounding_box()
            assert box["width"] > 800
            page.mouse.click(box["x"] + share*box["width"], box["y"] + box["height"]/2)
            line(page, "stage2_text_pc_model").wait_for()
            inner = line(page, "stage2_text_pc_model").locator(".cadm-middle").bounding_box()
            page.mouse.click(inner["x"] + share*inner["width"], inner["y"] + inner["height"]/2)
            page.locator(".cadm-picked", has_text="stage2_text_pc_model").wait_for()
            select(page, "stage3_all_model")
            line(page, "brackets").locator(".cadm-over").click()
            until(page, "() => !document.querySelector('.cadm-picked')?.checkVisibility()")


def test_runs_first(tmp_path, folder, page):
    """A line for each run, which sorts, opens, is found, shown and hidden; columns by choice; notes; details and a
    plot of what is selected."""
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        ready(page)
        assert len(rows(page)) == 4 and "3 of 3 runs" in page.locator(".cadm").first.inner_text()
        assert (
            "stopped unexpectedly" in line(page, "flanges").inner_text()
            and "180 of 180" in line(page, "brackets").inner_text()
        )
        page.locator(".cadm-sort-loss").click()
        until(page, "() => document.querySelector('.cadm-sort-loss').innerText.includes('▴')")
        page.shot("panel-runs")
        page.locator(".cadm-columns-button").click()
        page.locator(".cadm-columns-choice label", has_text="Saved").click()
        page.locator(".cadm-head button", has_text="Saved").wait_for()
        page.locator(".cadm-columns-button").click()

        line(page, "brackets").locator(".cadm-over").click()
        for badge in ("newest", "end of stage"): line(page, badge).wait_for()
        page.shot("panel-open")
        fill(page, "find", "photos")
        until(page, "() => document.querySelectorAll('.cadm-grid .cadm-line')[1].style.display == 'none'")
        assert "not a checkpoint" in rows(page)[0]
        fill(page, "find", "damaged")
        select(page, "damaged")
        tab(page, "Details")
        sees(page, "details", "cannot be loaded")
        page.locator(".cadm-verify").click()
        message(page, "select another checkpoint")

        fill(page, "find", "brackets stage3")
        line(page, "stage3_all_model").locator(".cadm-over").press("Enter")       # the keyboard selects, too
        page.locator(".cadm-details", has_text="stage3_all").first.wait_for()
        sees(page, "details", "mean since the save before")
        page.locator(".cadm-verify").click()
        message(page, "exactly what was written")
        page.locator(".cadm-other select").select_option(index=3)
        sees(page, "details", "What differs")
        page.locator(".cadm-tags input").fill("good ones")
        page.locator(".cadm-notes-save").click()
        message(page, "Saved the notes")
        assert json.loads((folder/"brackets"/"notes.json").read_text())["tags"] == ["good", "ones"]
        fill(page, "find", "good ones")
        line(page, "brackets").wait_for()
        page.shot("panel-details")
        tab(page, "Plot")
        page.locator(".cadm-save-csv").click()
        with page.expect_download() as got: page.locator(".cadm-plot-links a").click()
        assert Path(got.value.path()).read_text().startswith("run,kind,stage,step")
        assert page.errors == []


def test_a_folder_that_cannot_be_read_ends_nothing(tmp_path, folder, page):
    (folder/"locked").mkdir()
    before = """import os
scandir = os.scandir
def refuse(path):
    if str(path).endswith("locked"): raise PermissionError(13, "Permission denied")
    return scandir(path)
os.scandir = refuse"""
    with server("voila", panel_notebook(tmp_path, folder, before=before)) as show:
        show(page)
        ready(page)
        assert "permission denied" in line(page, "locked").inner_text()


def test_an_empty_folder_offers_three_ways(tmp_path, page):
    (tmp_path/"empty").mkdir()
    with server("voila", panel_notebook(tmp_path, tmp_path/"empty")) as show:
        show(page)
        page.locator(".cadm-first-data").wait_for()
        page.shot("panel-empty")
        page.locator(".cadm-first-look").click()
        line(page, "brackets").wait_for()
        page.locator(".cadm-back").click()
        page.locator(".cadm-first-num input").fill("20")
        page.locator(".cadm-first-num input").press("Enter")
        page.locator(".cadm-first-data").click()
        message(page, "20 parts are in")
        page.locator(".cadm-first-run").click()
        line(page, "first-run").filter(has_text="60 of 60").filter(has_text="done").wait_for()


def start_stand_in(folder, name="night", steps=3000):
    "A training of the stand-in, as the panel would start it."
    import panel_stand_in
    from cad_mllm.panel import TrainForm, start_training
    return start_training(
        panel_stand_in.command(TrainForm(str(folder/name), recipe="tiny", changes={"max_steps": steps})), folder/name
    )


def test_after_a_reload_the_page_asks_again(tmp_path, folder, page):
    """The kernel lives, the page is loaded again, nobody clicks: the step moves on, and the clock tells the time.
    Without a kernel it says so."""
    process = start_stand_in(folder)
    try:
        with server("lab", panel_notebook(tmp_path, folder)) as show:
            show(page)
            page.locator(".cadm-strip-text", has_text="night").wait_for()
            page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")
            page.goto(page.url.replace("&reset", "").split("?reset")[0], wait_until="domcontentloaded")
            strip = page.locator(".cadm-strip-text", has_text="night")
            strip.wait_for()
            clock = page.frame_locator(".cadm-clock iframe").locator("#said")
            clock.filter(has_text="live, seen").wait_for()
            first = strip.inner_text()
            until(page, "first => document.querySelector('.cadm-strip-text')?.innerText != first", first)
            kill_kernel(page)
            clock.filter(has_text="no answer for").wait_for()
    finally:
        process.kill()
        process.wait()


def test_running_now_stops_and_is_taken_over(tmp_path, folder, page):
    "The strip above the tabs stops a run; one that another machine held is taken over."
    import time
    process = start_stand_in(folder)
    away = folder/"flanges"/"status.json"
    told = json.loads(away.read_text()) | dict(state="running", host="another-machine")
    away.write_text(json.dumps(told))
    os.utime(away, (time.time() + 300,)*2)
    try:
        with server("voila", panel_notebook(tmp_path, folder)) as show:
            show(page)
            strip = page.locator(".cadm-strip", has_text="night")
            strip.wait_for()
            page.locator(".cadm-strip", has_text="flanges").wait_for()
            page.shot("panel-strip")
            strip.locator("button", has_text="Log").click()
            sees(page, "tail", "step")
            page.locator(".cadm-log-find input").fill("step 2")
            until(page, "() => /^ +4  step 2$/m.test(document.querySelector('.cadm-tail').innerText)")
            page.locator(".cadm-log-download").click()
            with page.expect_download() as got: page.locator(".cadm-log-links a").click()
            assert got.value.suggested_filename == "train.log"
            strip.locator("button", has_text="Stop").click()
            message(page, "Asked to save and stop")
            progress(page, "everything saved")
            # what it asked for has happened
            until(page, "() => !document.querySelector('.cadm-message').innerText.trim()")
            page.locator(".cadm-run select").select_option(label="flanges")
            progress(page, "another machine")
            assert page.locator(".cadm-start").is_disabled()
            fill(page, "max-steps", "5000", then="--max_steps 5000")
            page.locator(".cadm-seize").click()
            message(page, "Started process")
            assert "--take_over" in (folder/"flanges"/"launch.json").read_text()
            page.locator(".cadm-stop:visible:not([disabled])").click()
            progress(page, "everything saved")
    finally:
        process.kill()
        process.wait()


def test_what_was_typed_for_one_run_is_not_taken_for_another(tmp_path, folder, page):
    """A folder and settings typed under New run are gone under Resume latest; what holds stands in grey; the data is
    looked at before the start."""
    (tmp_path/"nothing").mkdir()
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        ready(page)
        tab(page, "Train")
        choose(page, "mode", "New run")
        sees(page, "command", "--recipe tiny")
        fill(page, "output", str(tmp_path/"elsewhere"), then="elsewhere")
        fill(page, "batch-size", "64", then="--batch_size 64")
        fill(page, "data", str(tmp_path/"nothing"), then="--data_root")
        page.locator(".cadm-start", has_text="Start").click()
        message(page, "Data folder: no data")
        choose(page, "mode", "Resume latest")
        page.locator(".cadm-run select").select_option(label="flanges")
        sees(page, "command", "--resume_from_ckpt latest")
        command = page.locator(".cadm-command").inner_text()
        assert "elsewhere" not in command and "64" not in command and f"--output_dir {folder/'flanges'}" in command
        until(page, "() => document.querySelector('.cadm-batch-size input').placeholder == '8'")
        fill(page, "max-steps", "5000", then="--max_steps 5000")
        fill(page, "notify", "ftp://hooks.example/secret", then="begins with http")
        fill(page, "notify", "https://hooks.example/secret", then="--notify https://hooks.example/secret")
        page.locator(".cadm-start", has_text="Resume").click()
        message(page, "Started process")
        progress(page, r"[1-9]\d* of 5000")
        # the stand-in writes what it was called with
        assert "https://hooks.example/secret" in (folder/"flanges"/"run_config.json").read_text()
        for name in ("launch.json", "train.log"): assert "secret" not in (folder/"flanges"/name).read_text(), name
        page.locator(".cadm-stop:visible:not([disabled])").click()
        progress(page, "everything saved")
        assert not (tmp_path/"elsewhere").exists()


def test_quality_card_and_upload(tmp_path, folder, page):
    "Evaluate fills columns and a chart; a card is written; an upload gets repository and checkpoint."
    before = f"""import json, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
def evaluate(record, root, num, job):
    out = record.path.parent/f"evaluation-{{record.path.name}}"
    out.mkdir()
    rows = [dict(name="beginning only", num=num, builds=.5, iou=.4, chamfer=.1)]
    rows += [dict(name="text", num=num, builds=.75, iou=.62, chamfer=.05)]
    (out/"evaluation.json").write_text(json.dumps(dict(table=rows, settings=dict(num=num))))
import cad_mllm.model_card
def upload(path, name, **settings): return f"https://hub.example/{{name}}"
cad_mllm.model_card.push_to_hub = upload
def card(path, name=""): (Path(path).parent/"card.md").write_text("# the card"); return Path(path).parent/"card.md"
cad_mllm.model_card.write_card = card"""
    (tmp_path/"data").mkdir()
    with server(
        "voila",
        panel_notebook(
            tmp_path, folder,
            f", command=panel_stand_in.command, evaluator=evaluate, data_root={str(tmp_path/'data')!r}", before
        )
    ) as show:
        show(page)
        ready(page)
        line(page, "brackets").locator(".cadm-over").click()
        tab(page, "Quality")
        page.locator(".cadm-evaluate:not([disabled])").click()
        message(page, "Evaluated")
        assert "62%" in line(page, "brackets").inner_text()
        page.locator(".cadm-chart").first.wait_for()
        sees(page, "quality", "75.0%")
        page.locator(".cadm-card-button").click()
        sees(page, "card-text", "the card")
        page.locator(".cadm-upload").click()
        message(page, "user/model")
        page.locator(".cadm-hub input").fill("me/parts")
        page.locator(".cadm-upload").click()
        message(page, "https://hub.example/me/parts")
        page.shot("panel-quality")


OUTSIDE = """() => {
    const right = document.querySelector('.cadm-tabs').getBoundingClientRect().right;
    const seen = e => e.checkVisibility() && !e.closest('.cadm-table');
    const cut = e => e.getAttribute('role') == 'tab' && e.scrollWidth > e.clientWidth + 1;
    const parts = '.cadm :is(input, select, textarea, button, label, pre, td, h4), .cadm-tabs [role=tab]';
    return [...document.querySelectorAll(parts)]
        .filter(e => seen(e) && (e.getBoundingClientRect().right > right || cut(e)))
        .map(e => e.tagName + ' ' + (e.innerText || e.placeholder || e.className)) }"""


def test_in_a_narrow_window_nothing_is_cut_off(tmp_path, folder, page):
    """On a phone or beside a notebook the fields become narrower, and the list has two lines for each run; all of
    its columns come on demand, to scroll within it."""
    page.set_viewport_size(dict(width=420, height=1300))
    wider = "e => e.scrollWidth > e.clientWidth + 1"
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        ready(page)
        assert (
            not page.locator(".cadm-grid").evaluate(wider) and "0.3452" in line(page, "brackets").inner_text()
            and "180 of 180" in line(page, "brackets").inner_text()
        )
        line(page, "brackets").locator(".cadm-over").click()
        page.locator(".cadm-picked", has_text="complete").wait_for()
        assert not page.locator(".cadm-grid").evaluate(wider)
        page.shot("panel-narrow-open")
        page.locator(".cadm-every input").click()
        until(page, f"() => ({wider})(document.querySelector('.cadm-grid'))")
        page.locator(".cadm-every input").click()
        until(page, f"() => !({wider})(document.querySelector('.cadm-grid'))")
        line(page, "brackets").locator(".cadm-over").click()
        for title, sign in (
            ("Plot", ".live-plot iframe"), ("Details", ".cadm-details table"), ("Train", ".cadm-command pre"),
            ("Complete", ".cadm-part-caption"), ("Quality", ".cadm-evaluate"), ("Clean up", ".cadm-preview")
        ):
            tab(page, title)
            page.locator(sign).first.wait_for()
            page.shot(f"panel-narrow-{title.lower().replace(' ', '-')}")
            assert page.evaluate(OUTSIDE) == [], title
            assert not page.evaluate(f"({wider})(document.documentElement)"), title


def test_everything_has_a_name_and_a_place_for_the_keyboard(tmp_path, folder, page):
    with server("voila", panel_notebook(tmp_path, folder), dark=True) as show:
        show(page)
        ready(page)
        for title, sign in (
            ("Plot", ".live-plot iframe"), ("Details", ".cadm-details table"), ("Train", ".cadm-command pre"),
            ("Complete", ".cadm-part-caption"), ("Quality", ".cadm-evaluate"), ("Clean up", ".cadm-preview")
        ):
            tab(page, title)
            page.locator(sign).first.wait_for()
            assert unnamed(page) == [], title
            page.shot(f"panel-dark-{title.split()[0].lower()}")
        page.locator(".cadm-refresh").focus()
        reached = set()
        for _ in range(70):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "() => document.activeElement.closest('[class*=cadm-]')?.className.match(/cadm-[a-z-]+/)?.[0] || ''"
                )
            )
        assert {"cadm-tick", "cadm-find", "cadm-over", "cadm-act", "cadm-preview"} <= reached
        dark = page.evaluate(
            r"() => getComputedStyle(document.querySelector('.cadm-title')).color.match(/\d+/g).map(Number)"
        )
        assert min(dark[:3]) > 150                                     # light letters on the dark page


def story(page, show, folder, data):
    """One night: resume a real training, watch it, lose the kernel, find it again, stop it, go on, complete a part
    with it, prune."""
    run = folder/"real"
    ready(page)
    line(page, "real").locator(".cadm-act").click()                    # Resume: the form is about it
    page.locator(".cadm-run select").select_option(label="real")
    sees(page, "command", "--max_steps 0")                             # its limit of four steps is behind it
    fill(page, "batch-size", "8", then="--accept_changes batch_size")  # another run: said, and accepted
    fill(page, "batch-size", "")
    fill(page, "save-steps", "50", then="--save_steps 50")
    fill(page, "max-steps", "100000", then="--max_steps 100000")
    page.locator(".cadm-start").click()
    message(page, "Started process")
    progress(page, "Training: process")
    until(page, f"() => ({STEP})() > 4")
    first = page.evaluate(STEP)
    until(page, f"first => ({STEP})() > first", first)
    assert page.locator(".cadm-start").is_disabled()
    page.shot(f"panel-train-{page.where}")
    pid = json.loads((run/"status.json").read_text())["pid"]

    if page.where == "lab": kill_kernel(page)
    show(page)                                                         # the notebook again, from the top
    os.kill(pid, 0)                                                    # it went on alone
    progress(page, "Training: process")
    page.locator(".cadm-stop:visible:not([disabled])").click()
    message(page, "Asked to save and stop")
    progress(page, "everything saved")
    stopped = json.loads((run/"status.json").read_text())["step"]

    page.locator(".cadm-start:not([disabled])").click()                  # and once more: the same flags again
    message(page, "Started process")
    until(page, f"first => ({STEP})() > first", stopped)
    page.locator(".cadm-stop:visible:not([disabled])").click()
    progress(page, "everything saved")
    steps = [json.loads(line)["step"] for line in (run/"metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > stopped > 4

    fill(page, "find", "real newest")
    line(page, "newest").locator(".cadm-over").click()
    tab(page, "Complete")
    choose(page, "part-source", "a sample")
    page.locator(".cadm-sample-about img").wait_for()
    page.locator(".cadm-sample-list select").select_option(index=2)
    sees(page, "sample-about", "0000/00000002")
    page.locator(".cadm-part-generate").click()
    sees(page, "message", "Done")
    assert (
        page.locator(".cadm-part-pictures figure").count() >= 1
        and page.locator(".cadm-candidate", has_text="The sample itself").count() == 1
    )
    page.frame_locator(".cadm-part-solid iframe").locator("canvas").wait_for()
    page.shot(f"panel-complete-{page.where}")
    for kind in (
        "json",
        *(
            ["step"] if importlib.util.find_spec("OCP")
            and "a valid solid" in page.locator(".cadm-part-verdict").inner_text() else []
        )
    ):
        got = save_as(page, kind, f".{kind}")
        assert got.suggested_filename.endswith(kind) and Path(got.path()).stat().st_size > 84
    prune(page, folder)


def save_as(page, kind, ending):
    """Press a download button and take what its link gives. A click that meets a page which still moves goes
    elsewhere; it is made again, as a person does."""
    from playwright.sync_api import TimeoutError
    for _ in range(5):
        try:
            page.locator(f".cadm-part-{kind}").click()
            page.locator(".cadm-part-links a", has_text=ending).last.wait_for(timeout=20_000)
            with page.expect_download(timeout=20_000) as got:
                page.locator(".cadm-part-links a", has_text=ending).last.click()
            return got.value
        except TimeoutError: continue
    raise AssertionError(f"nothing was downloaded as {kind} in five tries")


def prune(page, folder):
    tab(page, "Clean up")
    page.locator(".cadm-storage-run select").select_option(label="brackets")
    page.locator(".cadm-keep input").fill("1")
    page.locator(".cadm-keep input").press("Enter")
    page.locator(".cadm-preview").click()
    message(page, "nothing has been deleted yet")
    planned = page.locator(".cadm-plan tr", has_text="goes").count()
    assert planned > 0
    page.shot(f"panel-storage-{page.where}")
    def count(): return len(list((folder/"brackets").glob("*/checkpoint-*")))
    there = count()
    page.locator(".cadm-ask").click()
    message(page, "cannot be undone")
    assert count() == there
    page.locator(".cadm-yes").click()
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
        story(page, show, night, small_data)
        assert page.errors == []


@pytest.mark.skipif(
    not os.environ.get("IPYWIDGETS7_PYTHON"),
    reason="set IPYWIDGETS7_PYTHON to the python of an environment with ipywidgets 7.7.1, notebook 6.5.7 and "
    "widgetsnbextension 3.6.6"
)
def test_a_night_with_ipywidgets_7(tmp_path, night, small_data, page):
    page.where = "ipywidgets7"
    with server("notebook6", panel_notebook(tmp_path, night, ""), python=os.environ["IPYWIDGETS7_PYTHON"]) as show:
        show(page)
        ready(page)
        assert "ipywidgets 7." in page.locator(".output_area").first.inner_text()
        story(page, show, night, small_data)
        assert page.errors == []


NOTEBOOK7 = (
    os.environ.get("NOTEBOOK7_PYTHON")
    or (sys.executable if importlib.util.find_spec("notebook") and importlib.util.find_spec("notebook.app") else "")
)


@pytest.mark.skipif(
    not NOTEBOOK7,
    reason="pip install notebook, or set NOTEBOOK7_PYTHON to the python of an environment with notebook 7"
)
def test_notebook_7(tmp_path, folder, page):
    with server("notebook7", panel_notebook(tmp_path, folder), python=NOTEBOOK7) as show:
        show(page)
        ready(page)
        tab(page, "Train")
        fill(page, "max-steps", "5000", then="--max_steps 5000")
        page.locator(".cadm-start").click()
        message(page, "Started process")
        progress(page, r"[1-9]\d* of 5000")
        page.locator(".cadm-stop:visible:not([disabled])").click()
        progress(page, "everything saved")
        page.shot("panel-notebook7")


def test_complete_own_files_and_prune(tmp_path, folder, part, page):
    from PIL import Image
    page.where = "voila-dark"
    (tmp_path/"whole.json").write_text(json.dumps(part.to_json()))
    (tmp_path/"partial.json").write_text(json.dumps(part.truncate(2).to_json()))
    (tmp_path/"points.xyz").write_text("".join(f"{x} {y} 0\n" for x in range(9) for y in range(9)))
    Image.new("RGB", (80, 60), "teal").save(tmp_path/"view.png")
    extra = (
        ', command=panel_stand_in.command, completer=lambda path: '
        f'panel_stand_in.Echo(json.load(open({str(tmp_path/"whole.json")!r})))'
    )
    with server("voila", panel_notebook(tmp_path, folder, extra), dark=True) as show:
        show(page)
        ready(page)
        tab(page, "Complete")
        page.locator(".cadm-part-caption textarea").fill("a flange")
        for kind, file, said in (
            ("partial", "partial.json", "2 operations"), ("image", "view.png", "a picture"),
            ("points", "points.xyz", "81 points")
        ):
            with page.expect_file_chooser() as chooser: page.locator(f".cadm-upload-{kind}").click()
            chooser.value.set_files(tmp_path/file)
            message(page, said)
        # seen as soon as it is given
        until(page, "() => document.querySelectorAll('.cadm-part-pictures figure').length == 3")
        page.locator(".cadm-part-points input").fill("/no/such.xyz")
        page.locator(".cadm-part-generate").click()
        message(page, "there is no file")
        page.locator(".cadm-part-points input").fill("")
        # beginning, picture
        until(page, "() => document.querySelectorAll('.cadm-part-pictures figure').length == 2")
        page.locator(".cadm-part-num input").fill("3")
        page.locator(".cadm-part-num input").press("Enter")
        page.locator(".cadm-part-generate").click()
        message(page, "Done.")
        solid = page.frame_locator(".cadm-part-solid iframe")
        solid.locator("#slider").wait_for()
        solid.locator("#name", has_text="5  cut").or_(solid.locator("#name", has_text="5  join")).wait_for()
        assert (
            page.locator(".cadm-ops .cadm-given").count() == 2 and page.locator(".cadm-ops .cadm-new").count() == 3
            and "⌀" in page.locator(".cadm-ops").inner_text()
        )
        assert page.locator(".cadm-candidate").all_inner_texts()[1].split("\n")[:2] == ["Candidate 2", "fit 0.2"]
        left, right = (page.locator(f".cadm-two > :{which}-child").bounding_box() for which in ("first", "last"))
        assert left["x"] + left["width"] <= right["x"] and right["width"] > left["width"]
        page.shot("panel-complete")
        page.locator(".cadm-part-numbers summary").click()
        sees(page, "part-numbers", "Self-intersecting faces")
        sees(page, "part-numbers", "Beginning alone")
        page.locator(".cadm-candidate .cadm-over").nth(1).click()
        page.locator(".cadm-candidate.cadm-chosen", has_text="Candidate 2").wait_for()
        page.locator(".cadm-candidate .cadm-over").first.click()
        page.locator(".cadm-candidate.cadm-chosen", has_text="Chosen").wait_for()
        for kind, ending in (
            ("json", ".json"), ("fcstd", ".FCStd"), ("cadquery", "_cq.py"),
            *([("step", ".step")] if importlib.util.find_spec("OCP") else [])
        ):
            got = save_as(page, kind, ending)
            content = Path(got.path()).read_bytes()
            assert got.suggested_filename.endswith(ending) and len(content) > 84
            if kind == "step": assert content.startswith(b"ISO-10303-21")
        prune(page, folder)
        assert page.errors == []


def test_answers_do_not_undo_what_is_typed(tmp_path, folder, page):
    "Somebody types into one field while answers about others arrive."
    with server("voila", panel_notebook(tmp_path, folder)) as show:
        show(page)
        ready(page)
        tab(page, "Train")
        sees(page, "command", "resume_from_ckpt")
        choose(page, "mode", "New run")                                # its answer changes proposals of every field
        page.locator(".cadm-data input").press_sequentially("/no/such/folder", delay=15)
        page.locator(".cadm-max-steps input").press_sequentially("123", delay=15)
        sees(page, "command", "cad-mllm synth")
        assert (
            page.locator(".cadm-data input").input_value(), page.locator(".cadm-max-steps input").input_value()
        ) == ("/no/such/folder", "123")
        page.locator(".cadm-data input").fill(str(tmp_path))
        sees(page, "command", "--max_steps 123")
