"What an installation relies on: dependencies as they are stated, and command lines that older notes hold."
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLD_COMMANDS = """
synth data --num 8 --seed 3 --no_points --views 0
prepare data --steps --no_images --no_captions --dry_run --retry --shard 1/4
prepare data --no_points --num_points 512 --out made
pack data shards --shard_mb 64 --no_tokens
pack shards
plan --gpu t4 --full --num_gpus 2
complete part.json --checkpoint C -o done.json --stream --num 2
complete --checkpoint C --caption plate --o done.json
evaluate C data --robustness --from_scratch
card C --push user/model --public
checkpoints --verify
checkpoints output --upgrade --remove_original
deliver output --minutes 5
evaluate C data --num 4
pack data shards --readers 4
score a b --no-draw --jobs 0
doctor data --build --no-draw
train --recipe tiny --no-packing --use_gradient_checkpointing --stage1_epochs 2
""".strip().splitlines()


def fastcore_imports(path):
    "(module, name) of everything that a file imports from fastcore."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastcore"):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (("import", alias.name) for alias in node.names if alias.name.startswith("fastcore"))


def test_the_runtime_takes_from_fastcore_only_what_is_equal_in_1_and_2():
    used = {found for path in (ROOT/"cad_mllm").rglob("*.py") for found in fastcore_imports(path)}
    assert used == {("fastcore.basics", "patch")}


@pytest.mark.parametrize("line", OLD_COMMANDS)
def test_command_lines_of_older_notes_are_understood(line):
    from cad_mllm.cli import command_parser, current_name
    verb, *words = line.split()
    command_parser(current_name(verb)).parse_args(words)


def test_an_old_name_of_a_command_or_flag_is_hidden_and_tells_the_new_one_in_one_line(capsys, tmp_path):
    from cad_mllm.cli import main, OLD_COMMANDS
    with pytest.raises(SystemExit): main(["--help"])
    usage = capsys.readouterr().out
    assert not any(f"  {old} " in usage for old in OLD_COMMANDS)
    for words, code, told in (
        (["doctor", tmp_path/"none"], 1, "cad-mllm: `doctor` is now called `data-report`; the old name will go"),
        (["pack", tmp_path/"none", tmp_path/"out"], 1, "cad-mllm: `pack` is now called `shard`; the old name will go"),
        (["deliver", tmp_path/"none"], 1, "cad-mllm: `deliver` is now called `upload`; the old name will go"),
        (["synth", "", "--num=3"], 2, "cad-mllm synth: --num is now called --num_parts"),
        (["complete", "--num", "3"], 1, "cad-mllm complete: --num is now called --num_candidates")
    ):
        with pytest.raises(SystemExit) as end: main(list(map(str, words)))
        said = capsys.readouterr().err
        assert end.value.code == code and said.splitlines()[0] == told, said
    with pytest.raises(SystemExit): main(["synth", "--help"])
    assert "--num " not in capsys.readouterr().out


def test_the_panel_evaluates_by_a_command_line_that_the_command_understands():
    from cad_mllm.cli import command_parser
    from cad_mllm.panel.quality_view import evaluation_command
    python, _, _, command, *words = evaluation_command("run/checkpoint-best", "data", 5)
    found = command_parser(command).parse_args(words)
    assert (found.checkpoint, found.data_root, found.num_samples) == ("run/checkpoint-best", "data", 5)


def test_switches_say_what_is_done_and_can_be_turned_off():
    from cad_mllm.cli import command_parser
    parse = command_parser("prepare").parse_args
    assert (
        parse(["data"]).points and not parse(["data", "--no-points"]).points
        and not parse(["data", "--no_points"]).points
    )
    assert parse(["data", "--steps"]).steps and not parse(["data"]).steps


def test_a_mistyped_command_or_flag_names_the_nearest(capsys):
    from cad_mllm import __version__
    from cad_mllm.cli import main
    for words, code, told in (
        (["trian"], 2, "did you mean 'train'?"), (["synth", "x", "--sede", "3"], 2, "did you mean '--seed'?"),
        (["--version"], 0, __version__)
    ):
        with pytest.raises(SystemExit) as end: main(words)
        assert end.value.code == code and told in "".join(capsys.readouterr())


# named as what they are: other people's work
OTHERS = {
    "NeuralCarver/Michelangelo", "DavidXu-JJ/CAD-MLLM-metrics", "wandb/wandb", "mlflow/mlflow",
    "tensorflow/tensorboard", "aimhubio/aim"
}
ADDRESS = re.compile(r"github(?:\.com)?[/:]([\w.-]+/[\w-]+)|\b([\w-]+)\.github\.io|@users\.(noreply)\.github")


def texts(root):
    "(file, text) of everything that is committed and readable."
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    if not any(names): pytest.skip("not a git checkout")
    for name in filter(None, names):
        if Path(name).suffix in (".py", ".ipynb", ".md", ".ini", ".toml", ".txt", ".in", "") and (root/name).is_file():
            yield name, (root/name).read_text(encoding="utf-8", errors="replace")


def addresses(root):
    """(file, address) of every repository, site or mail address of GitHub that a committed text names, beside other
    people's."""
    return {
        (name, found) for name, text in texts(root) for m in ADDRESS.finditer(text)
        if (found := next(filter(None, m.groups()))) not in OTHERS | {"OWNER/REPO"}
    }


def test_no_address_is_shown_beside_the_setting(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"tools"))
    import address
    setting = address.current()
    assert {
        found for name, found in addresses(ROOT) if not name.startswith(("tools/address.py", "tests/test_install.py"))
    } <= {setting, setting.split("/")[0]}


def test_the_address_is_written_everywhere_and_taken_out_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT/"tools"))
    import address
    files = sorted({place.file for place in address.PLACES})
    for file in files:
        (tmp_path/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/file, tmp_path/file)
    address.change("", tmp_path)
    before = {file: (tmp_path/file).read_bytes() for file in files}
    address.change("some-one/parts", tmp_path)
    assert address.current(tmp_path) == "some-one/parts"
    assert (
        {name for name, _ in addresses(tmp_path)} == set(files)
        and {found for _, found in addresses(tmp_path)} == {"some-one/parts", "some-one"}
    )
    for file in files:
        if file.endswith(".ipynb"): json.loads((tmp_path/file).read_text(encoding="utf-8"))
    address.change("else/where", tmp_path)
    assert {found for _, found in addresses(tmp_path)} == {"else/where", "else"}
    address.change("", tmp_path)
    assert {file: (tmp_path/file).read_bytes() for file in files} == before


def test_what_not_everybody_needs_is_an_extra_and_is_documented(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT/"setup.py"), "-q", "egg_info", "--egg-base", str(tmp_path)], cwd=ROOT, check=True,
        capture_output=True
    )
    text = next(tmp_path.glob("*.egg-info/requires.txt")).read_text()
    extras = set(re.findall(r"^\[(\w+)\]$", text, re.M))
    assert extras == {"dev", "all", "tensorboard", "wandb", "4bit", "vectors", "3mf", "ray"}
    running, readme = (ROOT/"nbs/running.ipynb").read_text(), (ROOT/"README.md").read_text()
    assert all(f"`[{name}]`" in running for name in extras - {"dev"}) and "[Installation](nbs/running.ipynb)" in readme
    for words in ("2.6 GB", "download.pytorch.org/whl/cpu", "Linux", "macOS", "Windows"): assert words in readme


# Calls by which programs ask one system only, or end a process on another; what stands in for them is in
# cad_mllm/utils.
ONE_SYSTEM = {
    "os.kill", "os.killpg", "os.fork", "os.getuid", "signal.SIGKILL", "signal.SIGHUP", "signal.SIGCHLD", "signal.alarm",
    "os.fdatasync"
}
ONE_SYSTEM_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty"}


def one_system_only(tree):
    """(line, what) of everything in a module that only works on one system; a signal is fine where the module asks
    whether there is one, and so is one to itself."""
    asked = set(re.findall(r"hasattr\(signal, '(\w+)'\)", ast.unparse(tree)))
    fine = {f"signal.{name}" for name in asked} | ({"signal.alarm"} if "SIGALRM" in asked else set())
    own = {
        id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
        and ast.unparse(node).startswith("os.kill(os.getpid(), ")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ONE_SYSTEM - fine and id(node) not in own:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in ONE_SYSTEM_MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ONE_SYSTEM_MODULES:
            yield node.lineno, node.module
        if (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
            and re.search(r"/proc/|/proc$|/dev/shm", node.value)
        ):
            yield node.lineno, node.value[:40]
        if (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "os.fsync"
            and not ast.unparse(node.args[0]).endswith(".fileno()")
        ):
            yield node.lineno, "fsync of something that is no open file"


def test_nothing_outside_utils_works_on_one_system_only():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}" for path in sorted((ROOT/"cad_mllm").rglob("*.py"))
        if path.parent.name != "utils" for line, what in one_system_only(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
    assert sorted(
        what
        for _, what in one_system_only(
            ast.parse("import fcntl, os\nos.kill(1, 0)\nos.fsync(handle)\nopen('/proc/mounts')\nos.fsync(f.fileno())")
        )
    ) == ["/proc/mounts", "fcntl", "fsync of something that is no open file", "os.kill"]
