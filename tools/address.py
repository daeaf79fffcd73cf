#!/usr/bin/env python3
"""The project's address: `python tools/address.py OWNER/REPO` writes it into settings.ini and all that shows it;
`--unset` takes it out; without arguments it says what is set.

settings.ini holds the one setting, `address`. While it is empty, README and the Colab notebook install from a clone, or
from a wheel in the user's Drive. `make address OWNER=... REPO=...` exports modules and README afterwards.
"""
import argparse
import re
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
WHEEL = "/content/drive/MyDrive/CAD-MLLM/cad_mllm-*.whl"
COLAB = "colab.research.google.com"


@dataclass
class Place:
    """A piece of a file that shows the address: how it reads while none is set, and how with one (ADDRESS, OWNER and
    REPO are filled in)."""
    file: str
    unset: str
    with_address: str

    def text(self, address):
        "How it reads with an address, or with an empty one."
        owner, _, repo = address.partition("/")
        filled = self.with_address.replace("ADDRESS", address).replace("OWNER", owner).replace("REPO", repo)
        return written(self.file, filled if address else self.unset)


def written(file, text):
    "A text as it stands in a file: notebooks hold their lines as JSON strings."
    if not file.endswith(".ipynb"): return text
    return '\\n",\n    "'.join(line.replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))


PLACES = [
    Place("settings.ini", "\naddress =\n", "\naddress = ADDRESS\n"),
    Place("settings.ini", "\nrepo = cad_mllm\n", "\nrepo = REPO\n"),
    Place("settings.ini", "\nuser =\n", "\nuser = OWNER\n"),
    Place("settings.ini", "\ngit_url =\n", "\ngit_url = https://github.com/ADDRESS\n"),
    Place("settings.ini", "\ndoc_host =\n", "\ndoc_host = https://OWNER.github.io\n"),
    Place(
        "nbs/index.ipynb", "pip install .        # in a clone of this repository",
        "pip install git+https://github.com/ADDRESS"
    ),
    Place(
        "nbs/index.ipynb", f"!pip install -q {WHEEL}     # made by `make dist` in a clone",
        "!pip install -q git+https://github.com/ADDRESS"
    ),
    Place(
        "nbs/tutorials/colab.ipynb", "A Colab runtime disappears without warning;",
        f"[![Open in Colab](https://{COLAB}/assets/colab-badge.svg)]"
        f"(https://{COLAB}/github/ADDRESS/blob/main/nbs/tutorials/colab.ipynb)\n\n"
        "A Colab runtime disappears without warning;"
    ),
    Place("nbs/tutorials/colab.ipynb", 'SOURCE = ""', 'SOURCE = "git+https://github.com/ADDRESS"')
]


def current(root=ROOT):
    "The address that settings.ini holds; empty while none is set."
    settings = ConfigParser(delimiters=["="])
    settings.read(root/"settings.ini", encoding="utf-8")
    return settings["DEFAULT"].get("address", "")


def change(address, root=ROOT):
    "Write an address, or an empty one, into all places. ValueError where a place does not read as it should."
    before = current(root)
    texts = {file: (root/file).read_text(encoding="utf-8") for file in {place.file for place in PLACES}}
    for place in PLACES:
        old = place.text(before)
        if texts[place.file].count(old) != 1:
            raise ValueError(f"{place.file}: {old!r} is there {texts[place.file].count(old)} times, not once")
        texts[place.file] = texts[place.file].replace(old, place.text(address))
    for file, text in texts.items(): (root/file).write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", default="", help="OWNER/REPO")
    parser.add_argument("--unset", action="store_true", help="take the address out")
    args = parser.parse_args()
    if args.address and not re.fullmatch(f"{NAME}/{NAME}", args.address):
        sys.exit(f"{args.address!r} is no address: give OWNER/REPO (make address OWNER=... REPO=...)")
    if args.address or args.unset: change(args.address)
    print(f"the project's address: {current() or 'none is set'}")


if __name__ == "__main__":
    main()
