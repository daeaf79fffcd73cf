#!/usr/bin/env python3
"""The README's pictures: `readme_pictures.py DEMO` takes the loss curve and completions of a finished demo and draws parts, into nbs/images/."""
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cad_mllm.geometry import film_strip
from cad_mllm.synthetic import make_part

ROOT = Path(__file__).resolve().parent.parent


def shrink(picture, path, colors=64):
    "Write a picture with few colours, so that it stays small in git."
    Image.fromarray(np.asarray(picture)).convert("RGB").quantize(colors).save(path, optimize=True)


def main():
    images = ROOT/"nbs/images"
    images.mkdir(exist_ok=True)
    by_length = {len(p): p for p in (make_part(0, i)[1] for i in range(34))}
    shrink(film_strip(by_length[8] if 8 in by_length else by_length[max(by_length)], size=180), images/"part.png")
    for name in ("loss", "completed"):
        if len(sys.argv) > 1: shrink(Image.open(Path(sys.argv[1])/f"{name}.png"), images/f"{name}.png")


if __name__ == "__main__":
    main()
