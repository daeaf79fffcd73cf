"What an installation relies on: dependencies as they are stated, and command lines that older notes hold."
import ast
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
score a b --no-draw --jobs 0
doctor data --build --no-draw
train --recipe tiny --no-pack --use_gradient_checkpointing --stage1_epochs 2
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
    from cad_mllm.cli import verb_parser
    verb, *words = line.split()
    verb_parser(verb).parse_args(words)


def test_switches_say_what_is_done_and_can_be_turned_off():
    from cad_mllm.cli import verb_parser
    parse = verb_parser("prepare").parse_args
    assert parse(["data"]).points and not parse(["data", "--no-points"]).points and not parse(["data", "--no_points"]).points
    assert parse(["data", "--steps"]).steps and not parse(["data"]).steps


def test_a_mistyped_command_or_flag_names_the_nearest(capsys):
    from cad_mllm import __version__
    from cad_mllm.cli import main
    for words, code, told in ((["trian"], 2, "did you mean 'train'?"), (["synth", "x", "--nmu", "3"], 2, "did you mean '--num'?"), (["--version"], 0, __version__)):
        with pytest.raises(SystemExit) as end: main(words)
        assert end.value.code == code and told in "".join(capsys.readouterr())
