#!/usr/bin/env python3
"""The README's pictures, into nbs/images/: parts drawn here; with DEMO, the loss curve and completions of a finished demo; with --panel, the real panel in a browser.

`readme_pictures.py DEMO --panel` makes them all. The panel's picture is taken by Chromium of Voila showing the panel on its own example folder.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT/"nbs/images"
sys.path[:0] = [str(ROOT), str(ROOT/"tests")]

from browser_util import browser_page, server, write_notebook  # noqa: E402
from cad_mllm.geometry import film_strip# noqa: E402
from cad_mllm.panel import example_folder# noqa: E402
from cad_mllm.data import make_part# noqa: E402


def shrink(picture, path, colors=64):
    "Write a picture with few colours, so that it stays small in git."
    Image.fromarray(np.asarray(picture)).convert("RGB").quantize(colors).save(path, optimize=True)


def part_picture():
    "A part, operation by operation."
    by_length = {len(p): p for p in (make_part(0, i)[1] for i in range(34))}
    shrink(film_strip(by_length[8] if 8 in by_length else by_length[max(by_length)], size=180), IMAGES/"part.png")


def panel_picture(folder):
    "The panel on its example folder, whose losses are made up."
    example_folder(folder/"checkpoints")
    notebook = write_notebook(folder/"panel.ipynb", f"""from cad_mllm.panel import CheckpointPanel
panel = CheckpointPanel({str(folder/"checkpoints")!r})
panel.title.value = '<span class="cadm-title">Runs</span> <span class="cadm-dim">/content/drive/MyDrive/CAD-MLLM/checkpoints</span>'
panel""")
    with server("voila", notebook) as show, browser_page(width=1180, height=2000) as page:
        page.set_default_timeout(120_000)
        show(page)
        page.frame_locator(".live-plot iframe").locator("body[data-ready]").wait_for()
        page.locator(".cadm").first.screenshot(path=folder/"panel.png")
    shrink(Image.open(folder/"panel.png"), IMAGES/"panel.png", colors=200)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", nargs="?", help="folder of a finished demo, for the loss curve and the completions")
    parser.add_argument("--panel", action="store_true", help="also the panel, in a browser")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    part_picture()
    for name in ("loss", "completed") if options.demo else (): shrink(Image.open(Path(options.demo)/f"{name}.png"), IMAGES/f"{name}.png")
    if options.panel:
        with tempfile.TemporaryDirectory() as folder: panel_picture(Path(folder))


if __name__ == "__main__":
    main()
