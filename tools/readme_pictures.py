#!/usr/bin/env python3
"""The README's pictures, into nbs/images/: a scan that is read here; what the tutorial on fine-tuning stores; with
DEMO, the loss curve and the begun parts of a finished demo; with --panel, the real panel in a browser.

`readme_pictures.py DEMO --panel` makes them all. The panel's picture is taken by Chromium of Voila showing the panel on
its own example folder.
"""
import argparse
import base64
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT/"nbs/images"
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]

from browser_util import browser_page, server, write_notebook  # noqa: E402
from cad_mllm.demo import read_scan  # noqa: E402
from cad_mllm.panel import example_folder# noqa: E402


def shrink(picture, path, colors=64):
    "Write a picture with few colours, so that it stays small in git."
    Image.fromarray(np.asarray(picture)).convert("RGB").quantize(colors).save(path, optimize=True)


def scan_picture():
    "Points of a part, and the history read from them, as `make demo` shows it."
    with tempfile.TemporaryDirectory() as folder:
        read_scan(Path(folder))
        shrink(Image.open(Path(folder)/"scan.png"), IMAGES/"scan.png")


def tuned_picture():
    "The last picture that the tutorial on fine-tuning stores."
    cells = json.loads((ROOT/"nbs/tutorials/fine_tune.ipynb").read_text(encoding="utf-8"))["cells"]
    stored = [o["data"]["image/png"] for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    shrink(Image.open(io.BytesIO(base64.b64decode(stored[-1]))), IMAGES/"tuned.png")


def panel_picture(folder):
    "The panel on its example folder, whose losses are made up."
    example_folder(folder/"checkpoints")
    title = (
        '<span class="cadm-title">Runs</span> <span '
        'class="cadm-dim">/content/drive/MyDrive/CAD-MLLM/checkpoints</span>'
    )
    notebook = write_notebook(folder/"panel.ipynb", f"""from cad_mllm.panel import CheckpointPanel
panel = CheckpointPanel({str(folder/"checkpoints")!r})
panel.title.value = {title!r}
panel""")
    with server("voila", notebook) as show, browser_page(width=1180, height=2000) as page:
        page.set_default_timeout(120_000)
        show(page)
        page.frame_locator(".live-plot iframe").locator("body[data-ready]").wait_for()
        page.locator(".cadm").first.screenshot(path=folder/"panel.png")
    shrink(Image.open(folder/"panel.png"), IMAGES/"panel.png", colors=200)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", nargs="?", help="folder of a finished demo, for its pictures")
    parser.add_argument("--panel", action="store_true", help="also the panel, in a browser")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    scan_picture()
    tuned_picture()
    for name in ("loss.png", "begun.png") if options.demo else ():
        shrink(Image.open(Path(options.demo)/name), IMAGES/name)
    if options.panel:
        with tempfile.TemporaryDirectory() as folder: panel_picture(Path(folder))


if __name__ == "__main__":
    main()
