from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = settings["DEFAULT"]
py_versions = ["3.10", "3.11", "3.12", "3.13", "3.14"]
assert cfg["min_python"] in py_versions, "settings.ini: min_python must be one of setup.py's py_versions"


def requirement_list(key):
    "A whitespace-separated requirements line of settings.ini as the list setuptools wants."
    return cfg.get(key, "").split()


def extras():
    "Extra -> requirements: `dev`, every line of settings.ini that begins with `extra_`, and `all` of these."
    found = {key.removeprefix("extra_"): requirement_list(key) for key in cfg if key.startswith("extra_")}
    return {
        "dev": requirement_list("dev_requirements"), **found,
        "all": sorted({r for members in found.values() for r in members})
    }


setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown", author=cfg["author"], author_email=cfg["author_email"] or None,
    url=cfg["git_url"] or None, keywords=cfg["keywords"].split(), license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3"
    ] + [f"Programming Language :: Python :: {v}" for v in py_versions[py_versions.index(cfg["min_python"]):]],
    packages=find_packages(include=["cad_mllm", "cad_mllm.*"]), include_package_data=True,
    python_requires=f">={cfg['min_python']}", install_requires=requirement_list("requirements"),
    extras_require=extras(),
    entry_points={
        "console_scripts": requirement_list("console_scripts"),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]
    },
    zip_safe=False
)
