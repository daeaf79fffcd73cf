"""The command line as people meet it: quick answers without torch, mistakes told at once, many requests that survive
a kill, lines that say how long it takes."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_data import TINY_FLAGS
from cad_mllm.cad import CADProgram, circle, rectangle

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "peft", "accelerate")
# Runs command lines (a JSON list of lists) one after the other in a process that cannot import what is heavy; prints a
# JSON list of [exit code, what was said].
WITHOUT_TORCH = f"""
import contextlib, io, json, sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}: raise ImportError(f"{{name}} is imported")
sys.meta_path.insert(0, Refuses())
from cad_mllm.cli import main
told = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try: main(words)
        except SystemExit as end: code = end.code
        except ImportError as e: code, _ = str(e), None
    told.append([code, said.getvalue()])
print(json.dumps(told), flush=True)
"""


def light(*commands):
    "[(exit code, what was said)] of commands in a process that cannot import torch."
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps([[str(w) for w in words] for words in commands])],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    return [tuple(pair) for pair in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def plate(tmp_path_factory):
    program = CADProgram()
    program.sketch([rectangle(0, 0, .08, .05), circle(.02, .025, .008)])
    program.extrude(.01)
    program.sketch(circle(.055, .025, .012))
    program.extrude(.02, "join")
    path = tmp_path_factory.mktemp("part")/"plate.json"
    program.save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A saved model of the smallest size that has learned nothing."
    from cad_mllm.checkpoints import save_checkpoint
    from cad_mllm.config import CADMLLMConfig
    from cad_mllm.models import CADMLLMModel
    llm = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16
    )
    config = CADMLLMConfig(
        llm_model_name="tiny", llm_config=llm, use_lora=False, image_encoder_name="", point_encoder_hidden_dim=16,
        num_points=64, num_point_tokens=4, projector_hidden_dim=16, max_seq_length=256, dtype="float32"
    )
    return save_checkpoint(
        CADMLLMModel(config), tmp_path_factory.mktemp("run"), stage="stage1_text", step=1, epoch=0, loss=1.0
    )


def test_help_of_every_command_imports_no_torch():
    from cad_mllm.cli import COMMANDS
    told = light(["--help"], ["--version"], ["fly"], *([verb, "--help"] for verb in COMMANDS))
    assert [code for code, _ in told] == [0, 0, 2, *[0]*len(COMMANDS)], told
    assert all(said.strip() for _, said in told)


def test_commands_that_need_no_model_import_no_torch(plate, checkpoint, small_data, tmp_path):
    (tmp_path/"a").mkdir()
    CADProgram.from_json(json.loads(plate.read_text())).save(tmp_path/"a/plate.json")
    told = light(
        ["inspect", plate], ["inspect", checkpoint], ["checkpoints", checkpoint.parent, "--verify"],
        ["export", plate, "-o", tmp_path/"plate.FCStd"], ["export", plate, tmp_path/"plate.stl"],
        ["score", tmp_path/"a", tmp_path/"a", "--no-draw", "--jobs", "0"],
        ["data-report", small_data, "--jobs", "0", "--no-draw", "--num_opened", "0", "--out", tmp_path/"report"],
        ["prepare", small_data, "--dry_run", "--jobs", "1"], ["plan", "--gpu", "t4"],
        ["upload", tmp_path/"a", "--minutes", "0.001"]
    )
    assert [code for code, _ in told] == [0]*len(told), told
    assert (tmp_path/"plate.FCStd").is_file() and (tmp_path/"plate.stl").is_file()


def test_mistakes_are_told_before_anything_heavy_is_imported(plate, checkpoint, small_data, tmp_path):
    wrong = [
        (["plan"], "--gpu is missing: choose one of t4"),
        (["complete", plate, "--checkpoint", ""], "name the model to use"),
        (["complete", plate, "--checkpoint", tmp_path/"none"], "no such checkpoint"),
        (["complete", tmp_path/"none.json", "--checkpoint", checkpoint], "none.json"),
        (["complete", plate, "--checkpoint", checkpoint, "--format", "dwg"], "formats='dwg'"),
        (["complete", "--points", "scan.dwg", "--checkpoint", checkpoint], "unknown suffix"),
        (["complete", "--checkpoint", checkpoint], "no input: pass"),
        (["complete", plate, "--checkpoint", checkpoint, "--top_p", "0"], "top_p=0"),
        (["complete", "--requests", tmp_path/"none.jsonl", "--checkpoint", checkpoint], "cannot be read"),
        (["export", plate, tmp_path/"plate.dwg"], "unknown ending"),
        (["export", tmp_path/"none.json", tmp_path/"a.step"], "none.json"),
        (["inspect", tmp_path/"none.json"], "none.json"),
        (["evaluate", tmp_path/"none", small_data], "no such checkpoint"),
        (["evaluate", checkpoint, tmp_path/"none"], "no data"), (["card", tmp_path/"none"], "no such checkpoint"),
        (["train", "--recipe", "huge"], "recipe='huge'"),
        (["train", "--recipe", "tiny", "--data_root", tmp_path/"none"], "no data"),
        (["train", "--batch_size", "0"], "batch_size=0"),
        (
            ["train", "--recipe", "tiny", "--data_root", small_data, "--resume_from_ckpt", tmp_path/"none"],
            "no such checkpoint"
        ),
        (
            ["train", "--recipe", "tiny", "--data_root", small_data, "--llm_model_name", "someone/no-such-model"],
            "`hf download someone/no-such-model`"
        ),
        (["checkpoints", tmp_path/"none"], "no such folder"),
        (["shard", tmp_path/"none"], "name a folder for the shards"), (["score", tmp_path/"none", tmp_path], "none")
    ]
    told = light(*(words for words, _ in wrong))
    for (words, text), (code, said) in zip(wrong, told):
        assert code == 1 and text in said and len(said.strip().splitlines()) == 1, (words, code, said)


def test_the_help_of_train_stands_in_groups_and_shows_every_default():
    (code, said), = light(["train", "--help"])
    assert code == 0
    for text in (
        "saving and telling:", "the machine:", "a step:", "--batch_size N",
        "samples per forward pass and process (default: 2)", "(default: qwen", "(default: yes)",
        "A recipe changes some of the defaults"
    ):
        assert text in said or text == "(default: qwen", text
    flags = set(re.findall(r"^  (--\w+)", said, re.M))
    assert len(flags) > 90


def ask(folder, plate, num):
    "A file of requests in a folder: beginnings of a part with different captions."
    program = CADProgram.from_json(json.loads(plate.read_text()))
    program.truncate(2).save(folder/"begun.json")
    lines = [dict(partial="begun.json", caption=f"plate number {i}") for i in range(num)]
    (folder/"asked.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder/"asked.jsonl"


def completing(asked, checkpoint, out, *more):
    return [
        sys.executable, "-m", "cad_mllm", "complete", "--requests", str(asked), "--checkpoint", str(checkpoint), "-o",
        str(out), "--num_candidates", "1", "--max_new_tokens", "40", "--format", "json,fcstd,build123d", "--device",
        "cpu", *more
    ]


def finished(out):
    "The lines of results that are whole."
    path = out/"results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def test_a_killed_list_of_requests_loses_only_the_part_in_flight(plate, checkpoint, tmp_path):
    asked, out = ask(tmp_path, plate, 12), tmp_path/"out"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        completing(asked, checkpoint, out), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until = time.monotonic() + 300
    while len(finished(out)) < 3 and process.poll() is None and time.monotonic() < until: time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0]
    before = finished(out)
    assert 3 <= len(before) < 12, said
    stamps = {f: Path(f).stat().st_mtime_ns for row in before for f in row["result"]["metadata"]["files"]}
    done = subprocess.run(completing(asked, checkpoint, out), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"completing: {len(before)} of 12 parts" in done.stderr and "completing: 12 of 12 parts" in done.stderr
    assert "12 of 12 requests completed" in done.stdout
    after = finished(out)
    assert len(after) == 12 and after[:len(before)] == before and len({row["key"] for row in after}) == 12
    assert all(Path(f).stat().st_mtime_ns == stamp for f, stamp in stamps.items())
    index = [json.loads(line) for line in (out/"index.jsonl").read_text().splitlines()]
    assert [row["line"] for row in index] == list(range(1, 13))
    assert all({Path(f).suffix for f in row["files"]} >= {".json", ".FCStd", ".py"} for row in index)


def launched(command, num):
    """The command as `num` processes that a launcher started: (rank, process) of each, with nobody who ends them
    together."""
    from browser_util import free_port
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= dict(WORLD_SIZE=str(num), OMP_NUM_THREADS="1")
    return [
        subprocess.Popen(
            command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True
        ) for rank in range(num)
    ]


def accelerated(command):
    "What the command answers as two processes of `accelerate launch`."
    launch = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"
    ]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, *command[1:]], env=env, capture_output=True, text=True)


def parts_in(out):
    "The histories that were written, without what tells of when, and the index."
    parts = {p.name: json.loads(p.read_text()) for p in out.glob("*.json")}
    return {n: [p["entities"], p["sequence"]] for n, p in parts.items()}, (out/"index.jsonl").read_text()


def test_several_processes_write_what_one_writes(plate, checkpoint, tmp_path):
    asked = ask(tmp_path, plate, 9)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    alone = subprocess.run(completing(asked, checkpoint, tmp_path/"one"), env=env, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    done = accelerated(completing(asked, checkpoint, tmp_path/"two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 of 9 requests completed") == 1 and "process 1" not in done.stderr
    assert parts_in(tmp_path/"two") == parts_in(tmp_path/"one")
    assert len(finished(tmp_path/"two")) == 9 and not list((tmp_path/"two").glob("results-*.jsonl"))


def test_a_killed_process_costs_its_part_in_flight(plate, checkpoint, tmp_path):
    asked, out = ask(tmp_path, plate, 12), tmp_path/"out"
    main, other = launched(completing(asked, checkpoint, out), 2)
    theirs, until = out/"results-1.jsonl", time.monotonic() + 300
    def lines(path): return path.read_text().count("\n") if path.exists() else 0
    while lines(theirs) < 2 and other.poll() is None and time.monotonic() < until: time.sleep(.02)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    before = [json.loads(line) for line in theirs.read_text().splitlines() if line.endswith("}")]
    said = main.communicate(timeout=300)
    assert main.returncode == 0, said
    assert "process 1 died or is unresponsive" in said[1] and "12 of 12 requests completed" in said[0]
    rows = finished(out)
    assert len({row["key"] for row in rows}) == 12
    assert all(rows.count(row) == 1 for row in before)          # what it had finished is not done again
    index = [json.loads(line) for line in (out/"index.jsonl").read_text().splitlines()]
    assert [row["line"] for row in index] == list(range(1, 13)) and len({row["files"][0] for row in index}) == 12


def test_both_killed_the_next_call_goes_on(plate, checkpoint, tmp_path):
    asked, out = ask(tmp_path, plate, 12), tmp_path/"out"
    processes, until = launched(completing(asked, checkpoint, out), 2), time.monotonic() + 300
    def lines(): return sum(path.read_text().count("\n") for path in out.glob("results*.jsonl"))
    while lines() < 3 and time.monotonic() < until: time.sleep(.02)
    for p in processes: p.send_signal(signal.SIGKILL)
    for p in processes: p.communicate()
    known = lines()
    assert 3 <= known < 12
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(completing(asked, checkpoint, out), env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"completing: {known} of 12 parts" in done.stderr, done.stderr
    assert "12 of 12 requests completed" in done.stdout


def test_several_processes_measure_what_one_measures(checkpoint, tmp_path):
    "Also where one of them is killed while it writes."
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "cad_mllm", "synth", str(tmp_path/"parts"), "--num_parts", "6"], env=env, check=True
    )
    def command(out):
        return [
            sys.executable, "-m", "cad_mllm", "evaluate", str(checkpoint), str(tmp_path/"parts"), "--split", "all",
            "--num_samples", "6", "--modalities", "text", "--batch_size", "1", "--max_new_tokens", "60", "--check",
            "end", "--jobs", "1", "--out", str(tmp_path/out), "--device", "cpu"
        ]
    def figures(out):
        made = json.loads((tmp_path/out/"evaluation.json").read_text())
        return made["table"], made["notes"], made["summaries"]
    alone = subprocess.run(command("one"), env=env, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    done = accelerated(command("two"))
    assert done.returncode == 0 and figures("two") == figures("one"), done.stderr
    main, other = launched(command("three"), 2)
    lines = ""
    while "writing" not in lines and (line := main.stderr.readline()): lines += line
    other.send_signal(signal.SIGKILL)
    other.communicate()
    said = main.communicate(timeout=300)
    assert main.returncode == 0 and figures("three") == figures("one"), said


def test_several_processes_need_a_list_of_parts(plate, checkpoint, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cad_mllm", "complete", str(plate), "--checkpoint", str(checkpoint)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "RANK": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "give them one with --requests FILE" in done.stderr


def test_a_request_that_cannot_be_served_is_named_by_its_line(plate, checkpoint, tmp_path):
    asked = ask(tmp_path, plate, 2)
    asked.write_text(asked.read_text() + '\n{"partial": "none.json"}\n')
    done = subprocess.run(
        completing(asked, checkpoint, tmp_path/"out"), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True
    )
    assert (
        done.returncode == 1 and "line 3: " in done.stderr and "none.json" in done.stderr
        and "2 of 3 requests completed" in done.stdout
    )


def test_complete_writes_what_the_name_of_the_output_says_and_tells_how_far_it_is(plate, checkpoint, tmp_path):
    command = [
        sys.executable, "-m", "cad_mllm", "complete", str(plate), "--checkpoint", str(checkpoint), "-o",
        str(tmp_path/"done_cq.py"), "--format", "json", "--num_candidates", "1", "--max_new_tokens", "40", "--device",
        "cpu"
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        {"done_cq.py", "done.json"} <= {p.name for p in tmp_path.iterdir()} and f"loading {checkpoint}" in done.stderr
    )
    from cad_mllm.interop import read_history
    assert len(read_history(tmp_path/"done_cq.py")) >= 4


def test_training_begins_with_what_it_does_and_tells_how_long_it_takes(small_data, tmp_path):
    command = [
        sys.executable, "-m", "cad_mllm", "train", *TINY_FLAGS, "--data_root", str(small_data), "--output_dir",
        str(tmp_path/"run"), "--max_steps", "4", "--save_steps", "0"
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for text in (
        "device     cpu, float32", "parameters", "samples    ", "text 100%", "steps      4 in all",
        f"files      {tmp_path/'run'}"
    ):
        assert text in said, (text, said)
    lines = re.findall(r"^stage1_text step (\d+) of 4 .*left.*$", said, re.M)
    assert lines and lines[0] == "1", said


def test_prepare_takes_a_data_set_as_it_was_downloaded_and_keeps_its_split(plate, tmp_path):
    root = tmp_path/"deepcad"
    for i in range(4):
        (root/"cad_json/0000").mkdir(parents=True, exist_ok=True)
        (root/f"cad_json/0000/0000000{i}.json").write_text(plate.read_text() if i else "{")
    (root/"train_val_test_split.json").write_text(
        json.dumps(
            {"train": ["0000/00000000", "0000/00000001", "0000/00000002"], "validation": [], "test": ["0000/00000003"]}
        )
    )
    (code, said), = light(
        ["prepare", root, "--out", tmp_path/"out", "--no-images", "--num_points", "64", "--jobs", "1"]
    )
    assert code == 0, said
    assert (
        "DeepCAD, JSON: 4 histories" in said and "official split: train 3, val 0, test 1" in said
        and "left out: 1 times" in said
    )
    found = {path.relative_to(tmp_path/"out").as_posix() for path in (tmp_path/"out").rglob("*.*")}
    assert {
        "train/json/0000/00000001.json", "train/pointcloud/0000/00000001.npz", "test/pointcloud/0000/00000003.npz",
        "left_out.jsonl"
    } <= found
    assert not any(name.startswith("val/") for name in found)


@pytest.fixture
def listener():
    "(address, what came as JSON) of a server that answers well on /ok, with an error on /broken and never on /hangs."
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    heard, end = [], threading.Event()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if self.path == "/hangs": end.wait(120)
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, *_): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    end.set()
    server.shutdown()


def run_with(address, data, out, *more):
    "Train three steps in this process, with messages to an address."
    from cad_mllm import cli
    from cad_mllm.training import train
    flags = [*TINY_FLAGS, "--data_root", str(data), "--output_dir", str(out), "--max_steps", "3", "--save_steps", "0"]
    return train(*cli.configs(cli.train_parser().parse_args([*flags, "--notify", address, *more])))


def test_messages_about_a_run_are_sent_and_never_disturb_it(listener, small_data, tmp_path, monkeypatch, capsys):
    from cad_mllm.training import NotFiniteError, Stepper
    address, heard = listener
    assert run_with(f"{address}/ok", small_data, tmp_path/"a").step == 3
    assert [(m["event"], m["step"], m["run"]) for m in heard] == [("done", 3, str(tmp_path/"a"))]
    for place in ("broken", "hangs"):
        heard.clear()
        assert run_with(f"{address}/{place}", small_data, tmp_path/place).step == 3
        assert [m["event"] for m in heard] == ["done"] and "could not be sent" in capsys.readouterr().out
    secret = address.encode()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
    heard.clear()
    def fails(self, *_): raise NotFiniteError("10 steps in a row without a finite loss or gradient")
    monkeypatch.setattr(Stepper, "train_step", fails)
    with pytest.raises(NotFiniteError): run_with(f"{address}/ok", small_data, tmp_path/"b")
    assert [m["event"] for m in heard] == ["failed"] and "NotFiniteError" in heard[0]["text"]


def test_a_model_that_cannot_be_fetched_is_one_sentence_without_retries(small_data, tmp_path):
    code = (
        "import sys; from cad_mllm.config import CADMLLMConfig, ConfigError; from cad_mllm.models import CADMLLMModel\n"
        "try: CADMLLMModel(CADMLLMConfig(llm_model_name=sys.argv[1], image_encoder_name=sys.argv[2]))\nexcept "
        "ConfigError as e: print(e)"
    )
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)
    }
    for names in (("someone/no-such-model", ""), ("tiny", "someone/no-such-model")):
        done = subprocess.run([sys.executable, "-c", code, *names], env=env, capture_output=True, text=True)
        assert (
            done.returncode == 0 and "`hf download someone/no-such-model`" in done.stdout
            and len(done.stdout.strip().splitlines()) == 1
        ), done.stdout + done.stderr
        assert "retry" not in (done.stdout + done.stderr).lower()


def test_progress_shows_under_a_notebook_cell(small_data, tmp_path):
    import nbformat
    from nbclient import NotebookClient
    flags = [*TINY_FLAGS, "--data_root", str(small_data), "--output_dir", str(tmp_path/"run")]
    flags += ["--max_steps", "2", "--save_steps", "0"]
    source = f"""
import io, contextlib
from cad_mllm import cli
from cad_mllm.training import train
train(*cli.configs(cli.train_parser().parse_args({flags!r})))
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=500).execute()
    outputs = notebook.cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs), outputs
    assert "steps      2 in all" in "".join(o.get("text", "") for o in outputs)
