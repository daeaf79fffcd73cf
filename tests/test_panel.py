"""The panel in a real browser: pick, sort, plot, details; start, watch, lose the kernel, find again, stop, resume; complete and download; prune.

Screenshots go to the folder named by SHOTS, when it is set."""
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from browser_util import ROOT, browser_page, kill_kernel, missing, server, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")]
WAIT = 90_000  # milliseconds


@pytest.fixture
def folder(tmp_path):
    from cad_mllm.panel import example_folder
    return example_folder(tmp_path/"checkpoints")


@pytest.fixture
def part():
    from cad_mllm.synthetic import FAMILIES
    return FAMILIES["flange" if "flange" in FAMILIES else next(iter(FAMILIES))](np.random.default_rng(1))[0]


def panel_notebook(tmp_path, folder, extra=""):
    return write_notebook(tmp_path/"panel.ipynb", f"""import os; os.environ["PYTHONPATH"] = {str(ROOT)!r}
sys.path.insert(0, {str(ROOT/"tests")!r})
import json, panel_stand_in
from cad_mllm.panel import CheckpointPanel
panel = CheckpointPanel({str(folder)!r}, command=panel_stand_in.command{extra})
panel""")


def shot(page, name):
    if os.environ.get("SHOTS"):
        Path(os.environ["SHOTS"]).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(os.environ["SHOTS"], f"{name}.png"), full_page=True)


def rows(page): return [r for r in page.locator(".cm-grid .cm-line:visible").all_inner_texts()]
def tab(page, title): page.locator(".cm-tabs .lm-TabBar-tab, .cm-tabs .p-TabBar-tab", has_text=title).first.click()
def message(page, text): page.locator(".cm-message", has_text=text).wait_for(timeout=WAIT)
def type_into(page, name, text): page.locator(f".cm-{name} input").fill(text); page.locator(f".cm-{name} input").press("Enter")


def test_pick_sort_plot_and_details(tmp_path, folder):
    with server("voila", panel_notebook(tmp_path, folder)) as show, browser_page() as page:
        show(page)
        page.wait_for_selector(".cm-plot[src]", timeout=WAIT)
        assert len(rows(page)) == 10 and "21 of 21 rows" in page.locator(".cm").first.inner_text()
        page.locator(".cm-sort-loss").click()
        page.wait_for_function("() => document.querySelector('.cm-sort-loss').innerText.includes('▴')", timeout=WAIT)
        losses = [float(r.split("\n")[3]) for r in rows(page) if r.split("\n")[3] != "–"]
        assert losses == sorted(losses) and len(losses) == 10
        shot(page, "panel-plot")

        type_into(page, "find", "photos")
        page.wait_for_function("() => document.querySelectorAll('.cm-grid .cm-line')[1].style.display == 'none'", timeout=WAIT)
        assert "not a checkpoint" in rows(page)[0]
        type_into(page, "find", "damaged")
        page.locator(".cm-grid .cm-line", has_text="damaged").first.wait_for(timeout=WAIT)

        before = page.locator(".cm-plot").get_attribute("src")
        page.locator(".cm-grid .cm-over").first.click()
        page.wait_for_selector(".cm-picked", timeout=WAIT)
        page.wait_for_function("src => document.querySelector('.cm-plot').src != src", arg=before, timeout=WAIT)
        tab(page, "Details")
        page.locator(".cm-details", has_text="cannot be loaded").wait_for(timeout=WAIT)
        page.locator(".cm-verify").click()
        message(page, "pick another checkpoint")
        shot(page, "panel-details")

        type_into(page, "find", "brackets stage3")
        page.locator(".cm-grid .cm-line", has_text="stage3_all").first.wait_for(timeout=WAIT)
        page.locator(".cm-grid .cm-over").first.press("Enter")       # the keyboard picks, too
        page.locator(".cm-details", has_text="stage3_all").first.wait_for(timeout=WAIT)
        page.locator(".cm-other select").select_option(index=3)
        page.locator(".cm-details", has_text="What differs").wait_for(timeout=WAIT)
        tab(page, "Plot")
        page.locator(".cm-save-csv").click()
        with page.expect_download() as got: page.locator(".cm-plot-links a").click(timeout=WAIT)
        assert Path(got.value.path()).read_text().startswith("run,kind,stage,step")
        assert page.errors == []


def test_train_outlives_the_kernel(tmp_path, folder):
    run = folder/"night"
    with server("lab", panel_notebook(tmp_path, folder)) as show, browser_page(height=1500) as page:
        show(page)
        page.wait_for_selector(".cm-grid", timeout=WAIT)
        tab(page, "Train")
        page.locator(".cm-mode button", has_text="starting").click()
        page.locator(".cm-command", has_text="checkpoints/run1").wait_for(timeout=WAIT)   # an answer that comes while one types would undo the typing
        type_into(page, "data", "/no/such/folder")
        page.locator(".cm-command", has_text="cad-mllm synth").wait_for(timeout=WAIT)
        type_into(page, "data", str(tmp_path))
        type_into(page, "output", str(run))
        type_into(page, "max-steps", "5000")
        page.locator(".cm-command", has_text="--max_steps 5000").wait_for(timeout=WAIT)
        page.locator(".cm-start").click()
        message(page, "Started process")
        page.locator(".cm-live button").first.click()
        page.wait_for_function("() => /Training: process/.test(document.querySelector('.cm-progress').innerText)", timeout=WAIT)
        step = "() => Number((document.querySelector('.cm-progress').innerText.match(/(\\d+) of 5000/) || [0, 0])[1])"
        first = page.evaluate(step)
        page.wait_for_function(f"first => ({step})() > first", arg=first, timeout=WAIT)
        assert page.locator(".cm-start").is_disabled()
        shot(page, "panel-train")

        kill_kernel(page)
        pid = json.loads((run/"status.json").read_text())["pid"]
        os.kill(pid, 0)                                                # it goes on alone
        page.reload()
        show(page)
        page.wait_for_function("() => /Training: process/.test(document.querySelector('.cm-progress')?.innerText || '')", timeout=WAIT)
        assert page.locator(".cm-output input").input_value() == str(run)
        page.locator(".cm-stop").click()
        message(page, "Asked to save and stop")
        page.locator(".cm-live button").first.click()
        page.wait_for_function("() => /everything saved/.test(document.querySelector('.cm-progress').innerText)", timeout=WAIT)
        stopped = json.loads((run/"status.json").read_text())["step"]

        page.locator(".cm-start:not([disabled])").click(timeout=WAIT)  # resume: the same flags again
        message(page, "Started process")
        page.wait_for_function(f"first => ({step})() > first", arg=stopped, timeout=WAIT)
        page.locator(".cm-stop:not([disabled])").click(timeout=WAIT)
        page.wait_for_function("() => /everything saved/.test(document.querySelector('.cm-progress').innerText)", timeout=WAIT)
        steps = [json.loads(line)["step"] for line in (run/"metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) > stopped
        assert page.errors == []


@pytest.mark.skipif(not os.environ.get("IPYWIDGETS7_PYTHON"), reason="set IPYWIDGETS7_PYTHON to the python of an environment with ipywidgets 7.7.1, notebook 6.5.7 and widgetsnbextension 3.6.6")
def test_ipywidgets_7(tmp_path, folder):
    notebook = panel_notebook(tmp_path, folder, extra="); import ipywidgets; print('ipywidgets', ipywidgets.__version__")
    with server("notebook6", notebook, python=os.environ["IPYWIDGETS7_PYTHON"]) as show, browser_page() as page:
        show(page)
        page.wait_for_selector(".cm-plot[src]", timeout=WAIT)
        assert "ipywidgets 7." in page.locator(".output_area").first.inner_text()
        page.locator(".cm-sort-loss").click()
        page.wait_for_function("() => document.querySelector('.cm-sort-loss').innerText.includes('▴')", timeout=WAIT)
        page.locator(".cm-grid .cm-over").nth(2).click()
        tab(page, "Train")
        page.locator(".cm-mode button", has_text="picked").click()
        page.locator(".cm-command", has_text="stage3_all").wait_for(timeout=WAIT)
        type_into(page, "max-steps", "5000")
        page.locator(".cm-command", has_text="--max_steps 5000").wait_for(timeout=WAIT)
        page.locator(".cm-mode button", has_text="starting").click()
        page.locator(".cm-command", has_text="checkpoints/run1").wait_for(timeout=WAIT)   # an answer that comes while one types would undo the typing
        type_into(page, "data", str(tmp_path))
        page.locator(".cm-command", has_text="--data_root").wait_for(timeout=WAIT)   # what is below it moves when it changes
        page.locator(".cm-start").click()
        message(page, "Started process")
        page.locator(".cm-live button").first.click()
        page.wait_for_function("() => /[1-9]\\d* of 5000/.test(document.querySelector('.cm-progress').innerText)", timeout=WAIT)
        page.locator(".cm-stop").click()
        page.wait_for_function("() => /everything saved/.test(document.querySelector('.cm-progress').innerText)", timeout=WAIT)
        shot(page, "panel-ipywidgets7")
        assert page.errors == []


def test_complete_download_and_prune(tmp_path, folder, part):
    (tmp_path/"whole.json").write_text(json.dumps(part.to_json()))
    (tmp_path/"partial.json").write_text(json.dumps(part.truncate(2).to_json()))
    extra = f', completer=lambda path: panel_stand_in.Echo(json.load(open({str(tmp_path/"whole.json")!r})))'
    with server("voila", panel_notebook(tmp_path, folder, extra), dark=True) as show, browser_page(height=1400) as page:
        show(page)
        page.wait_for_selector(".cm-grid", timeout=WAIT)
        tab(page, "Complete")
        page.locator(".cm-part-caption textarea").fill("a flange")
        with page.expect_file_chooser() as chooser: page.locator(".cm-part-upload").click()
        chooser.value.set_files(tmp_path/"partial.json")
        message(page, "2 operations")
        page.locator(".cm-part-generate").click()
        message(page, "Done.")
        page.wait_for_selector(".cm-part-right[src]", timeout=WAIT)
        shot(page, "panel-complete")
        for kind in ("json", "stl", *(["step"] if importlib.util.find_spec("OCP") else [])):
            page.locator(f".cm-part-{kind}").click()
            message(page, f".{kind}.")
            with page.expect_download() as got: page.locator(".cm-part-links a").last.click(timeout=WAIT)
            content = Path(got.value.path()).read_bytes()
            assert got.value.suggested_filename.endswith(kind) and len(content) > 84
            if kind == "step": assert content.startswith(b"ISO-10303-21")

        tab(page, "Keep house")
        page.locator(".cm-house-run select").select_option(label="brackets")
        type_into(page, "keep", "1")
        page.locator(".cm-preview").click()
        message(page, "nothing has been deleted yet")
        planned = page.locator(".cm-plan tr", has_text="goes").count()
        assert planned > 0
        shot(page, "panel-house")
        count = lambda: len(list((folder/"brackets").glob("*/checkpoint-*")))
        there = count()
        page.locator(".cm-ask").click()
        message(page, "cannot be undone")
        assert count() == there
        page.locator(".cm-yes").click()
        message(page, f"Deleted {planned} checkpoints")
        assert count() == there - planned
        assert page.errors == []
