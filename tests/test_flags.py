"""Values that cannot work, given to the flags of every command: a sentence and a documented exit code, never a
traceback. `tools/walk_flags.py` walks all of them."""
import html
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent/"tools"))
import walk_flags  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory): return walk_flags.make_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_sample_of_all_flags_is_answered_with_a_sentence(inputs):
    found, number = walk_flags.walk(inputs, 120, seed=5, say=lambda *words, **settings: None)
    assert number == 120 and not found, "\n\n".join(f"{verb} {words}\n{problem}" for verb, words, problem in found)


@pytest.mark.parametrize(
    "verb, flag, code",
    [
        ("synth", "--seed=-1", 2), ("synth", "--size=0", 2), ("shard", "--num_threads=0", 2),
        ("shard", "--shard_mb=nan", 2), ("complete", "--device=tpu", None), ("plan", "--recipe=--", 2),
        ("train", "--device=x", None), ("train", "--llm_config=[]", 2), ("train", "--stage1_lr=inf", 1),
        ("train", "--batch_size=0", 1), ("complete", "--num_candidates=nan", 2), ("score", "--timeout=-3", 2)
    ]
)
def test_named_mistakes(inputs, verb, flag, code, capsys):
    words = [*walk_flags.base_lines(inputs)[verb], flag]
    with walk_flags.replaced(): found, said = walk_flags._run(verb, words)
    assert found == code, said
    if code: assert "Traceback" not in said and flag.split("=")[0].lstrip("-").removeprefix("stage1_") in said


def test_an_unknown_device_is_a_sentence():
    from cad_mllm.config import ConfigError
    from cad_mllm.training.distributed import pick_device
    for name in ("tpu", "cuda:x", "", "cpu "):
        with pytest.raises(ConfigError, match="use auto, cpu, cuda|no CUDA device"): pick_device(name)


@pytest.mark.parametrize("verb", ["synth", "upload", "inspect", "prepare"])
def test_an_empty_path_is_refused(inputs, verb):
    with walk_flags.replaced(): code, said = walk_flags._run(verb, ["", *walk_flags.base_lines(inputs)[verb][1:]])
    assert code in (1, 2) and said.strip()


ODD_NAMES = [
    "two words", "a'b\"c", "$HOME", "`id`", "line\nbreak", "-dash", "--seed", "--seed=3", "Größe 部品", "~",
    "#x;y&z|w*", "\\"
]
odd_names = st.sampled_from(ODD_NAMES) | st.text("ab -~'\"$`\n\\&;|*!#=<>é部", min_size=1, max_size=12)

@settings(deadline=None, max_examples=25)
@given(run=odd_names, data=odd_names, cache=odd_names, begins=st.booleans())
def test_the_command_of_the_panel_is_read_back_by_the_parser_of_train(run, data, cache, begins):
    "For every path: as `subprocess` gets it, and as a shell would read what is shown."
    from cad_mllm.commands import train_parser
    from cad_mllm.panel import TrainForm, train_command
    run, data, cache = (f"/runs/{name}" for name in (run, data, cache))
    more = (
        {"recipe": "tiny"} if begins
        else {"resume_from": f"{run}/checkpoint-step5", "previous": ("--recipe", "tiny", "--shard_cache_dir", cache)}
    )
    command = train_command(
        TrainForm(
            run, data_root=data, changes={"max_steps": 7, "lr": 1e-3}, more=shlex.join(["--feature_cache", data]),
            **more
        )
    )
    assert shlex.split(shlex.join(command)) == command
    read = train_parser().parse_args(command[4:])
    assert (read.output_dir, read.data_root, read.feature_cache, read.recipe, read.max_steps, read.stage2_lr) == (
        run, data, data, "tiny", 7, 1e-3
    )
    if not begins: assert (read.resume_from_ckpt, read.shard_cache_dir) == (f"{run}/checkpoint-step5", cache)


def test_the_panel_shows_the_command_that_it_runs(tmp_path, monkeypatch):
    "`shlex.split` of what stands on the page is what Start hands on, for runs in folders with odd names."
    import shutil
    from cad_mllm.commands import train_parser
    from cad_mllm.panel import CheckpointPanel, example_folder, training_view
    example_folder(tmp_path/"example")
    for name in ODD_NAMES: shutil.copytree(tmp_path/"example"/"flanges", tmp_path/"-runs"/name)
    monkeypatch.chdir(tmp_path)
    started, view = [], CheckpointPanel(Path("-runs"), data_root=str(tmp_path)).train
    def start(command, output): raise training_view.PanelError(started.append(command) or "not in a test")
    monkeypatch.setattr(training_view, "check_data", lambda form: None)
    monkeypatch.setattr(training_view, "start_training", start)
    for name in ODD_NAMES:
        view.go_on_with(tmp_path/"-runs"/name)
        shown = html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", view.command.value, re.S)[1])
        with pytest.raises(training_view.PanelError): view.begin()
        assert shlex.split(shown) == started[-1], name
        assert train_parser().parse_args(started[-1][4:]).output_dir == str(tmp_path/"-runs"/name)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    "The folder of inputs for real commands, and what works with each."
    folder = tmp_path_factory.mktemp("real")
    return folder, walk_flags.base_lines(walk_flags.make_inputs(folder))


REAL_MISTAKES = {
    "a unit": ("complete", "--unit=feet", "choose one of mm, cm, m, in"),
    "a unit of a shape": ("reconstruct", "--unit=feet", "choose one of mm, cm, m, in"),
    "an engine": ("prepare", "--engine=x", "choose one of local, ray"),
    "a model that is not asked": ("reconstruct", "--checkpoint=x", "--methods"),
    "a picture of a folder": ("reconstruct", "--picture=x.png", "leave it out"),
    "an empty output folder": ("train", "--output_dir=", "is empty"),
    "a zero byte": ("train", "--shard_cache_dir=\0", "zero byte"),
    "too many points": ("train", "--num_points=1000000000000", "16,777,216"),
    "a picture of a million pixels per side": ("train", "--image_size=1000000", "16,384"),
    "a seed without end": ("train", "--seed=" + "9"*30, "smaller number"),
    "workers without end": ("train", "--num_workers=100000", "4,096"),
    "an infinite decay": ("train", "--weight_decay=inf", "finite"),
    "an infinite gate": ("train", "--stage1_target_val_loss=inf", "finite"),
    "a repository's name": ("card", "--push=/dev/null", "is no name of a repository"),
    "a name of half characters for nobody": ("card", "--push=\udcff", "is no name of a repository"),
    "a file for a folder": ("card", "--out=/dev/null", "name another file or folder")}


@pytest.mark.parametrize("name", REAL_MISTAKES)
def test_what_would_be_ignored_or_end_in_a_traceback_is_a_sentence(name, folder_of):
    "Commands as they are, in children of this process."
    verb, flag, words = REAL_MISTAKES[name]
    code, said, _ = walk_flags.real_answer(verb, [*folder_of[1][verb], flag], folder_of[0])
    assert code in (1, 2) and words in said and "Traceback" not in said, said


def test_a_folder_without_shapes_is_a_sentence(folder_of):
    words = [str(folder_of[0]/"data"/"pointcloud")]
    code, said, _ = walk_flags.real_answer("reconstruct", words, folder_of[0])
    assert code == 1 and "holds no shape itself" in said


def test_parts_whose_names_are_no_utf8_are_reported(folder_of, tmp_path):
    import shutil
    data = shutil.copytree(folder_of[0]/"data", tmp_path/"data")
    for path in [p for p in data.rglob("00000001_00001*") if p.is_file()]:
        path.rename(path.with_name(path.name.replace("00000001", "gr\udcf6\udcdfe")))
    code, said, _ = walk_flags.real_answer("data-report", [str(data)], folder_of[0])
    assert code == 0 and "Traceback" not in said, said


def test_a_run_that_is_nowhere_is_a_sentence(folder_of):
    for verb, words, said in (("upload", ["nowhere"], "nothing is kept for it"), ("checkpoints", [""], "is empty")):
        code, told, _ = walk_flags.real_answer(verb, words, folder_of[0])
        assert code == 1 and said in told, told


def test_layers_that_the_model_lacks_are_named():
    from cad_mllm.config import CADMLLMConfig, ConfigError
    from cad_mllm.models import CADMLLMModel
    config = CADMLLMConfig(llm_model_name="tiny", use_lora=True, lora_target_modules=("x_proj",), image_encoder_name="")
    with pytest.raises(ConfigError, match="lora_target_modules='x_proj'.*take q_proj"): CADMLLMModel(config)


def test_folders_whose_names_are_no_utf8(folder_of, tmp_path):
    "A training, and a STEP file that is written and read."
    from cad_mllm.cad import CADProgram, rectangle
    from cad_mllm.geometry import build_solid, read_shape
    code, said, written = walk_flags.real_answer(
        "train", [*folder_of[1]["train"], "--output_dir=\u00e4\udcff", "--max_steps=1"], folder_of[0]
    )
    assert code in (0, 75) and written, said
    part = CADProgram()
    part.sketch(rectangle(0, 0, .02, .01))
    part.extrude(.005)
    (folder := tmp_path/"gr\udcf6\udcdfe").mkdir()
    build_solid(part, kernel="occ").export(folder/"part.step")
    assert read_shape(folder/"part.step").volume == pytest.approx(1e-6)


def test_a_worker_whose_caller_was_killed_ends_without_a_word(tmp_path):
    import subprocess
    script = (
        "import os, sys, threading, time\nfrom cad_mllm.geometry import workers\n"
        "threading.Timer(1.5, lambda: os.kill(os.getpid(), 9)).start()\nworkers.isolated(time.sleep, 3, timeout=30)\n"
    )
    with open(tmp_path/"said.txt", "w") as said: code = subprocess.call([sys.executable, "-c", script], stderr=said)
    import time
    time.sleep(4)
    assert code == -9 and (tmp_path/"said.txt").read_text() == ""
