"""Give every flag of every command values that cannot work, and say which are not answered with a sentence.

`python tools/walk_flags.py` walks all of them; `--num N --seed S` a sample. Each command line runs in this process; one
that is still at work after some
seconds has taken its values and is interrupted. Wrong is a traceback, an exit code that is not documented, or a refusal
of many lines.

`--real` puts nothing in the place of what takes long: each line runs in a child of this process, which has imported the
package, with inputs and a
folder of its own, and `--journal FILE` keeps each answer, so that the same command goes on after a kill. `--accepted`
prints what was done or begun.
"""
import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent/"tests")]

VALUES = (
    "x", "-1", "0", "nan", "inf", "-inf", "1e400", "9"*30, "", " ", "\0", "[]", "{}", "/dev/null/no/such/place",
    "/dev/null", "--", "ä\udcff", "%s%n"
)
CODES = {0, 1, 2, 71, 74, 75, 76, 130}
SECONDS, MEMORY = 15, 12 << 30


class Taken(BaseException):
    "The values were taken: the command is at work."


def _take(*args, **kwargs): raise Taken


def stand_ins():
    "What takes long, and is not asked to begin: (module, name)."
    return [
        ("cad_mllm.training.trainer", "train"), ("cad_mllm.inference", "CADAutocomplete"),
        ("cad_mllm.evaluation", "evaluate"), ("cad_mllm.demo", "run_demo"), ("cad_mllm.data.synthetic", "synthesize"),
        ("cad_mllm.geometry.engines", "get_engine"), ("cad_mllm.reconstruction", "reconstruct_folder"),
        ("cad_mllm.data", "data_report"), ("cad_mllm.metrics", "score"), ("cad_mllm.data.packing", "pack"),
        ("cad_mllm.training.planner", "plan"), ("cad_mllm.geometry.solid", "build_solid"),
        ("cad_mllm.model_card", "write_card")
    ]


@contextlib.contextmanager
def replaced():
    "The stand-ins in their places, for as long as the block lasts."
    from importlib import import_module
    places = [(import_module(module), name) for module, name in stand_ins()]
    kept = [getattr(module, name) for module, name in places]
    try:
        for module, name in places: setattr(module, name, _take)
        yield
    finally:
        for (module, name), was in zip(places, kept): setattr(module, name, was)


def make_inputs(folder):
    "Name -> path of inputs that work: a data set, a checkpoint, a part, folders of parts."
    import small_data
    from cad_mllm.checkpoints import save_checkpoint
    from cad_mllm.config import CADMLLMConfig, TrainConfig
    from cad_mllm.models import CADMLLMModel
    data = small_data.make(folder/"data", 4)
    config = CADMLLMConfig(
        llm_model_name="tiny", llm_config=small_data.LLM, use_lora=False, image_encoder_name="",
        point_encoder_hidden_dim=16, num_points=64, num_point_tokens=4, projector_hidden_dim=16
    )
    checkpoint = save_checkpoint(
        CADMLLMModel(config), folder/"run", stage="stage1_text", step=1, epoch=0, loss=1.0,
        train_config=TrainConfig(data_root=str(data))
    )
    part = next((data/"json").rglob("*.json"))
    return dict(
        data=str(data), checkpoint=str(checkpoint), run=str(folder/"run"), part=str(part), out=str(folder/"out")
    )


def base_lines(at):
    "Command -> arguments that work."
    return {
        "demo": ["--out", at["out"]], "synth": [at["out"], "--num_parts", "1"], "prepare": [at["data"], "--dry_run"],
        "data-report": [at["data"]], "shard": [at["data"], at["out"]], "plan": ["--gpu", "t4"],
        "train": ["--recipe", "tiny", "--data_root", at["data"], "--output_dir", at["out"]],
        "complete": [at["part"], "--checkpoint", at["checkpoint"], "--max_new_tokens", "9"],
        "evaluate": [at["checkpoint"], at["data"], "--num_samples", "1", "--max_new_tokens", "9"],
        "score": [at["data"] + "/json", at["data"] + "/json"], "card": [at["checkpoint"]], "checkpoints": [at["run"]],
        "upload": [at["run"]], "inspect": [at["part"]], "export": [at["part"], at["out"] + ".json"],
        "reconstruct": [at["data"] + "/pointcloud"]
    }


def cases(at):
    "Every (command, words): each argument of each command with each value."
    from cad_mllm.cli import command_parser
    for verb, words in base_lines(at).items():
        number = 0
        for action in command_parser(verb)._actions:
            if isinstance(action, argparse._HelpAction) or action.nargs == 0: continue
            for value in VALUES:
                if action.option_strings: yield verb, [*words, f"{action.option_strings[-1]}={value}"]
                elif number < len(words) and not words[number].startswith("-"):
                    yield verb, [*words[:number], value, *words[number + 1:]]
            number += not action.option_strings


def _run(verb, words):
    """(exit code, what was said) of a command line; the code is None where it was taken, a traceback's text where
    one came."""
    from cad_mllm import cli
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said): cli.main([verb, *words])
    except SystemExit as end: return end.code, said.getvalue()
    except Taken: return None, ""
    except BaseException: return traceback.format_exc(), said.getvalue()
    return 0, ""


def problem_of(verb, words):
    "What is wrong with the answer to a command line; empty where nothing is."
    def ring(number, frame): raise Taken
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try: code, said = _run(verb, words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return wrong_with(code, said)


def wrong_with(code, said):
    "What is wrong with an exit code (None: still at work; a text: a traceback) and what was said on standard error."
    if isinstance(code, str): return code
    if code is not None and code not in CODES: return f"exit code {code}"
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("usage:", " ", "loading "))]
    if "Traceback" in said or code == 1 and len(lines) > 3: return said
    return "no word of it" if code in (1, 2) and not lines else ""


def walk(at, num=0, seed=0, say=print):
    "[(command, words, problem)] of all cases, or of a seeded sample of `num`."
    chosen = list(cases(at))
    if num: chosen = random.Random(seed).sample(chosen, num)
    found, here = [], os.getcwd()
    with tempfile.TemporaryDirectory() as folder, replaced():
        os.chdir(folder)       # what is written without a name goes there
        try:
            for verb, words in chosen:
                if problem := problem_of(verb, words):
                    found.append((verb, words, problem))
                    say(verb, *map(repr, words), "\n", problem[-700:], flush=True)
        finally: os.chdir(here)
    return found, len(chosen)


def _child(verb, words, folder, said):
    "Run a command line in this process, which is a child, and end it."
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    os.chdir(folder)
    for number, way in (
        (0, os.open(os.devnull, os.O_RDONLY)), (1, os.open(os.devnull, os.O_WRONLY)),
        (2, os.open(said, os.O_CREAT | os.O_WRONLY))
    ):
        os.dup2(way, number)
    sys.stdout, sys.stderr = open(1, "w", errors="replace"), open(2, "w", errors="replace")
    from cad_mllm import cli
    code = 0
    try: cli.main([verb, *words])
    except SystemExit as end: code = end.code
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def real_answer(verb, words, inputs):
    """(exit code or None where it was still at work, what was said, what was written) of a command line with inputs
    of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        own = Path(own)
        shutil.copytree(inputs, own/"in")
        (own/"here").mkdir()
        words = [word.replace(str(inputs), str(own/"in")) for word in words]
        child = os.fork()
        if not child: _child(verb, words, own/"here", own/"said.txt")
        end = time.monotonic() + SECONDS
        while (gone := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end: time.sleep(.02)
        with contextlib.suppress(ProcessLookupError): os.killpg(child, signal.SIGKILL)
        if gone == (0, 0): os.waitpid(child, 0)
        said = (own/"said.txt").read_text(errors="replace").replace(str(own), "") if (own/"said.txt").exists() else ""
        written = sorted(str(p.relative_to(own/"here")) for p in (own/"here").rglob("*"))[:5]
        return None if gone == (0, 0) else os.waitstatus_to_exitcode(gone[1]), said, written


def walk_really(at, inputs, chosen, journal):
    "Rows of all chosen lines: those in the journal, and the others as they are tried."
    rows = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        rows[json.loads(line)["key"]] = json.loads(line)
    for verb, words in chosen:
        key = json.dumps([verb, *words])
        for name, path in at.items(): key = key.replace(path, name.upper())
        if key in rows: continue
        code, said, written = real_answer(verb, words, inputs)
        rows[key] = dict(key=key, code=code, problem=wrong_with(code, said), said=said[-1500:], written=written)
        with journal.open("a") as out: out.write(json.dumps(rows[key]) + "\n")
    return list(rows.values())


def _report(rows, accepted):
    "Print what is wrong, and on request what was accepted."
    for row in rows:
        if row["problem"]: print(row["key"], "\n", row["problem"][-700:])
        elif accepted and row["code"] in (None, 0):
            print("accepted:", row["key"], "still at work" if row["code"] is None else row["said"][-100:])
    wrong = sum(bool(row["problem"]) for row in rows)
    print(
        f"{len(rows)} command lines, {wrong} not answered with a sentence, "
        f"{sum(row['code'] in (None, 0) for row in rows)} accepted"
    )
    return bool(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=0, help="cases; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="with nothing in the place of what takes long")
    parser.add_argument(
        "--journal", type=Path, default=Path("walk_flags.jsonl"),
        help="answers of --real; lines in it are not tried again"
    )
    parser.add_argument("--only", nargs="+", help="with --real: these commands alone")
    parser.add_argument("--accepted", action="store_true", help="with --real: print what was accepted too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = make_inputs(Path(folder))
        if given.real:
            chosen = [(verb, words) for verb, words in cases(at) if not given.only or verb in given.only]
            if given.num: chosen = random.Random(given.seed).sample(chosen, given.num)
            return _report(walk_really(at, Path(folder), chosen, given.journal), given.accepted)
        found, number = walk(at, given.num, given.seed)
    print(f"{number} command lines, {len(found)} not answered with a sentence")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
