"Training as people run it: real processes, real kills, and the numbers afterwards."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cad_mllm.checkpoint import latest_checkpoint, list_checkpoints
from cad_mllm.train import EXIT_STOPPED, STOP, read_metrics
from small_data import TINY_FLAGS

STAGES = ["--stage1_epochs", "1", "--stage2_epochs", "1", "--stage3_epochs", "1"]


def command(data, out, *flags): return [sys.executable, "-m", "cad_mllm", "train", *TINY_FLAGS, *STAGES, "--data_root", str(data), "--output_dir", str(out), *map(str, flags)]


def run(data, out, *flags, code=0, env=None):
    "Train to the end; the output as text."
    done = subprocess.run(command(data, out, *flags), capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=900)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def start(data, out, *flags):
    out.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(command(data, out, *flags), stdout=open(out/"log", "wb"), stderr=subprocess.STDOUT)


def wait_for(out, process, what):
    "Until `what(steps)` holds of the logged steps."
    for _ in range(6000):
        if what(len(read_metrics(out))): return
        assert process.poll() is None, (out/"log").read_text()[-3000:]
        time.sleep(.02)
    raise AssertionError("training does not move")


def numbers(out): return {r["step"]: tuple(r[k] for k in ("stage", "epoch", "loss", "lr", "grad_norm", "tokens", "samples")) for r in read_metrics(out)}


def weights(out):
    "All weights of the final model as one dict."
    folder, found = out/"final_model", {}
    for f in sorted(folder.glob("*.safetensors")): found |= {f"{f.name}:{k}": v for k, v in load_file(f).items()}
    for f in sorted(folder.glob("*_*.pt")):
        if f.name != "trainer_state.pt": found |= {f"{f.name}:{k}": v for k, v in torch.load(f, weights_only=True).items()}
    return found


def assert_same(a, b):
    assert numbers(a) == numbers(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and len(first) > 10
    assert all(torch.equal(first[k], second[k]) for k in first)


VARIANTS = {
    "full training": [],
    "LoRA with dropout, accumulation 3": ["--use_lora", "--lora_r", "4", "--lora_dropout", "0.1", "--gradient_accumulation_steps", "3"],
    "not packed": ["--no-pack"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_is_as_if_never_stopped(name, small_data, tmp_path):
    flags = [*VARIANTS[name], "--save_steps", "4"]
    run(small_data, tmp_path/"whole", *flags)
    steps = len(read_metrics(tmp_path/"whole"))
    killed = tmp_path/"killed"
    for at in (steps//3, 2*steps//3):
        process = start(small_data, killed, *flags, "--resume_from_ckpt", "latest", "--num_workers", str(at % 2))
        wait_for(killed, process, lambda n: n >= at)
        process.send_signal(signal.SIGKILL); process.wait()
    said = run(small_data, killed, *flags, "--resume_from_ckpt", "latest", "--num_workers", "2")
    assert "✓ Restored optimizer state" in said and "✓ Restored scheduler state" in said and "✓ Resuming from" in said
    assert_same(tmp_path/"whole", killed)


def test_a_stage_boundary_is_no_boundary(small_data, tmp_path):
    "Killed right after a stage's model was saved: the next stage begins as it would have."
    run(small_data, tmp_path/"whole", "--save_steps", "0")
    killed = tmp_path/"killed"
    process = start(small_data, killed, "--save_steps", "0")
    while not (killed/"stage1_text_model").exists(): assert process.poll() is None; time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.wait()
    run(small_data, killed, "--save_steps", "0", "--resume_from_ckpt", "latest")
    assert_same(tmp_path/"whole", killed)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop file"])
def test_it_stops_when_asked_and_goes_on(how, small_data, tmp_path):
    run(small_data, tmp_path/"whole", "--save_steps", "0")
    out = tmp_path/"stopped"
    process = start(small_data, out, "--save_steps", "0")
    wait_for(out, process, lambda n: n >= 2)
    if how == "stop file": (out/STOP).touch()
    else: process.send_signal(getattr(signal, how))
    assert process.wait(120) == EXIT_STOPPED
    status = json.loads((out/"status.json").read_text())
    assert status["state"] == "stopped" and list_checkpoints(out)[-1].step == status["step"]
    run(small_data, out, "--save_steps", "0", "--resume_from_ckpt", "latest")
    assert_same(tmp_path/"whole", out)


def test_latest_without_a_checkpoint_starts_at_the_beginning(small_data, tmp_path):
    said = run(small_data, tmp_path/"o", "--max_steps", "2", "--resume_from_ckpt", "latest")
    assert "No complete checkpoint" in said and numbers(tmp_path/"o").keys() == {1, 2}


def test_a_damaged_checkpoint_is_passed_over(small_data, tmp_path):
    out = tmp_path/"o"
    run(small_data, out, "--save_steps", "2", "--max_steps", "5")
    newest = latest_checkpoint(out)
    weights_file = next(newest.glob("*.safetensors"))
    data = bytearray(weights_file.read_bytes()); data[len(data)//2] ^= 1; weights_file.write_bytes(data)
    said = run(small_data, out, "--max_steps", "6", "--resume_from_ckpt", "latest")
    assert weights_file.name in said and "instead" in said


def test_the_users_commands(small_data, tmp_path):
    "The two commands of the script, word for word; the checkpoint's folder is looked for below the output folder."
    script, out = Path(__file__).parent.parent/"scripts/train_curriculum.py", tmp_path/"out"
    base = [sys.executable, str(script), *TINY_FLAGS, *STAGES, "--data_root", str(small_data), "--use_autocomplete_dataset", "--output_dir", str(out), "--max_seq_length", "4000", "--batch_size", "2"]
    done = subprocess.run([*base, "--save_steps", "10", "--keep_last_n_checkpoints", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out/"final_model"/"manifest.json").exists()
    name = next(r for r in list_checkpoints(out) if r.stage == "stage3_all" and r.path.name.startswith("checkpoint-step")).path
    done = subprocess.run([*base, "--resume_from_ckpt", f"stage3_all/{name.name}", "--start_from_stage", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [l.rstrip() for l in done.stdout.splitlines()]
    step = int(name.name.split("step")[1].split("-")[0])
    loss = name.name.split("loss")[1].split("-")[0]
    at = lines.index(f"Loading checkpoint from: {name}")
    assert lines[at + 2:at + 4] == ["  ✓ Loaded image module", "  ✓ Loaded point cloud module"]
    assert lines[at + 4] == f"  ✓ Resuming from epoch 0, step {step}, loss {loss}"
    assert lines[at + 5:at + 9] == ["Restoring optimizer/scheduler state...", "  ✓ Restored optimizer state", "  ✓ Restored scheduler state", f"  ✓ Resuming from step {step}"]


def test_missing_data_is_one_sentence(tmp_path):
    done = subprocess.run(command(tmp_path/"nowhere", tmp_path/"o"), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path/"nowhere") in done.stderr and "cad-mllm synth" in done.stderr


def test_two_trainings_on_one_folder_are_refused(small_data, tmp_path):
    out = tmp_path/"o"
    process = start(small_data, out, "--stage1_epochs", "500")
    wait_for(out, process, lambda n: n >= 1)
    done = subprocess.run(command(small_data, out), capture_output=True, text=True)
    process.kill(); process.wait()
    assert done.returncode == 1 and f"process {process.pid}" in done.stderr


def test_two_processes_are_one(small_data, tmp_path):
    "The same global batch on two processes gives the same losses to rounding."
    flags = ["--max_steps", "4", "--lora_dropout", "0", "--projector_dropout", "0"]
    run(small_data, tmp_path/"one", *flags)
    port = str(29500 + os.getpid() % 1000)
    peers = [subprocess.Popen(command(small_data, tmp_path/"two", *flags, "--batch_size", "2"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={**os.environ, "WORLD_SIZE": "2", "RANK": str(r), "LOCAL_RANK": str(r), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}) for r in (0, 1)]
    said = [p.communicate(timeout=600)[0] for p in peers]
    assert [p.returncode for p in peers] == [0, 0], "".join(said)[-3000:]
    one, two = read_metrics(tmp_path/"one"), read_metrics(tmp_path/"two")
    assert [r["tokens"] for r in one] == [r["tokens"] for r in two]
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)


def spoil(root):
    "One of each broken kind; the names of the files that must be reported."
    import shutil
    json_dir, cut_dir = root/"json/0000", root/"json_truncated/0000"
    good = sorted(json_dir.glob("*.json"))
    named = []

    def broken(number, change):
        "A design whose whole history is spoiled; its beginning stays fine."
        id = f"{900 + number:08d}_00001"
        shutil.copy(good[number], json_dir/f"{id}.json")
        shutil.copy(sorted(cut_dir.glob(f"{good[number].stem}_tr_*.json"))[0], cut_dir/f"{id}_tr_01.json")
        change(json_dir/f"{id}.json"); named.append(id)

    def edit(change):
        def do(path): d = json.loads(path.read_text()); change(d); path.write_text(json.dumps(d))
        return do

    sketch = lambda d: next(e for e in d["entities"].values() if e["type"] == "Sketch")
    curve = lambda d: next(iter(sketch(d)["profiles"].values()))["loops"][0]["profile_curves"][0]
    point = lambda c: c.get("start_point") or c["center_point"]
    extrude = lambda d: next(k for k, e in d["entities"].items() if e["type"] == "ExtrudeFeature")
    broken(0, Path.unlink)
    broken(1, lambda p: p.write_bytes(b""))
    broken(2, lambda p: p.write_bytes(bytes(range(256))*40))
    broken(3, lambda p: p.write_bytes(p.read_bytes()[:200] + "é".encode()[:1]))
    broken(4, edit(lambda d: curve(d).update(type="NurbsCurve3D")))
    broken(5, edit(lambda d: point(curve(d)).update(x=float("nan"))))
    broken(6, edit(lambda d: sketch(d).update(reference_plane={"entity": extrude(d)})))
    broken(7, edit(lambda d: d["entities"][extrude(d)]["profiles"][0].update(sketch="nobody")))
    broken(8, lambda p: open(p, "wb").truncate(100*2**20))
    (root/"txt/broken.json").write_bytes(b'[{"id": "0000/x", "text ca')
    return named


def test_broken_files_are_skipped_and_named(tmp_path):
    from small_data import make
    root, out = make(tmp_path/"data", 16), tmp_path/"o"
    named = spoil(root)
    said = subprocess.run(command(root, out, "--max_steps", "3"), capture_output=True, text=True)
    assert said.returncode == 0 and "Traceback" not in said.stderr, said.stderr[-3000:]
    reports = "".join(p.read_text() for p in out.glob("data_report*.json"))
    assert [id for id in named if id not in reports] == []
    assert "broken.json" in reports and len(read_metrics(out)) == 3
    assert "data_report" in said.stderr


def test_a_file_that_goes_bad_while_training_is_counted(tmp_path):
    from small_data import make
    root, out = make(tmp_path/"data", 16), tmp_path/"o"
    process = start(root, out, "--stage1_epochs", "6", "--stage2_epochs", "0", "--stage3_epochs", "0")
    wait_for(out, process, lambda n: n >= 2)
    for f in sorted((root/"json/0000").glob("*.json"))[:6]: f.write_bytes(f.read_bytes()[:100])
    assert process.wait(300) == 0, (out/"log").read_text()[-3000:]
    assert read_metrics(out)[-1]["skipped_samples"] > 0
    assert "went bad while training" in "".join(p.read_text() for p in out.glob("data_report*.json"))


def test_an_output_folder_that_cannot_be_written_is_one_sentence(small_data, tmp_path):
    (tmp_path/"file").write_text("in the way")
    done = subprocess.run(command(small_data, tmp_path/"file"/"o"), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and str(tmp_path/"file") in done.stderr


def test_another_batch_size_keeps_the_schedule_where_the_data_are(small_data, tmp_path):
    "Resumed with a batch four times as large, the learning rate goes on from where it was, down to the end of the stage."
    out, flags = tmp_path/"o", ["--stage1_epochs", "4", "--stage2_epochs", "0", "--stage3_epochs", "0", "--save_steps", "0"]
    run(small_data, out, *flags, "--max_steps", "20")
    said = run(small_data, out, *flags, "--batch_size", "16", "--resume_from_ckpt", "latest")
    assert "batch_size was 4, is 16" in said
    lrs = [r["lr"] for r in read_metrics(out) if r["step"] > 20]
    assert len(lrs) >= 3 and min(lrs[:-1]) > 0 and lrs == sorted(lrs, reverse=True) and lrs[0] == pytest.approx(read_metrics(out)[19]["lr"], rel=.3)


def test_killed_before_the_first_save_it_begins_again_as_it_was(small_data, tmp_path):
    out = tmp_path/"o"
    process = start(small_data, out, "--save_steps", "0")
    wait_for(out, process, lambda n: n >= 1)
    process.kill(); process.wait()
    done = subprocess.run([sys.executable, "-m", "cad_mllm", "train", "--output_dir", str(out), "--resume_from_ckpt", "latest", "--max_steps", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("No complete checkpoint") == 1 and max(numbers(out)) >= 3


def test_samples_that_all_are_too_long_are_an_error(small_data, tmp_path):
    said = subprocess.run(command(small_data, tmp_path/"o", "--max_seq_length", "24"), capture_output=True, text=True)
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert "max_seq_length=24" in said.stderr and "too long" in said.stderr


def test_an_old_checkpoint_goes_on(small_data, tmp_path):
    "LoRA weights of a local base and a pickled configuration, no trainer state, no manifest: it resumes with the warnings, and saves in the format of this project."
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from cad_mllm.config import CADMLLMConfig
    from cad_mllm.dataset import tiny_tokenizer
    from cad_mllm.model import CADMLLMModel
    from small_data import LLM
    base, old = tmp_path/"base", tmp_path/"o"/"stage2_text_pc"/"checkpoint-epoch0-step100"
    words = tiny_tokenizer()
    words.save_pretrained(base)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), max_position_embeddings=8192, **LLM)).save_pretrained(base)
    config = CADMLLMConfig(llm_model_name=str(base), lora_r=4, lora_alpha=8, sequence_format="json", image_encoder_name="", point_encoder_name="", max_seq_length=6000, dtype="float32")
    old.mkdir(parents=True)
    CADMLLMModel(config).save_pretrained(old)
    (old/"cad_mllm_config.json").unlink()
    torch.save(config, old/"config.pt")
    done = subprocess.run([sys.executable, "-m", "cad_mllm", "train", "--data_root", str(small_data), "--output_dir", str(tmp_path/"o"), "--device", "cpu", "--batch_size", "2",
                           "--num_val_samples", "0", "--logging_steps", "1", "--gradient_accumulation_steps", "1", "--max_steps", "102",
                           "--resume_from_ckpt", "stage2_text_pc/checkpoint-epoch0-step100"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for line in ("⚠️  No trainer_state.pt found in checkpoint", "Using fresh optimizer/scheduler", "(This is normal for older checkpoints)"): assert line in done.stdout
    steps, newest = numbers(tmp_path/"o"), list_checkpoints(tmp_path/"o")[-1]
    assert set(steps) == {101, 102} and steps[101][0] == "stage2_text_pc"
    assert newest.step == 102 and not newest.old_format and (newest.path/"manifest.json").exists()
