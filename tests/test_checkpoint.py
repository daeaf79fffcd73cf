"""Checkpoints when things go wrong: the process dies at any moment, the disk fails at any call, the files come from elsewhere."""
import errno, os, pickle, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cad_mllm import checkpoint as ck
from cad_mllm.config import CADMLLMConfig, recipe

torch.set_num_threads(1)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


class Weights:
    "A model whose weights say which step they are of."
    def __init__(self, step=0): self.config, self.tensor = recipe("tiny")[0], torch.full((2000,), float(step))

    def save_pretrained(self, folder):
        for name in ("model.safetensors", "extra.safetensors"): save_file({"w": self.tensor}, Path(folder)/name)
        (Path(folder)/"sub").mkdir()
        (Path(folder)/"sub"/"tokenizer.json").write_text("{}")

    def load_weights(self, folder):
        self.tensor = load_file(Path(folder)/"model.safetensors")["w"]
        return []


def save(output, step, **more):
    state = {"position": step, "moments": torch.full((1000,), float(step))}
    return ck.save_checkpoint(Weights(step), output, **({"stage": "stage1_text", "step": step, "epoch": 0, "loss": 1/step, "trainer_state": state, "keep_last_n": 2} | more))


@pytest.fixture
def run_dir(tmp_path):
    "A folder in memory where there is one: these tests wait for thousands of fsyncs otherwise."
    shm = Path("/dev/shm")
    if not (shm.is_dir() and os.access(shm, os.W_OK)): yield tmp_path; return
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def visible(output):
    "Folders that have a checkpoint's final name."
    named = [p for pattern in ("checkpoint-*", "*_model") for p in Path(output).rglob(pattern) if p.is_dir()]
    return [p for p in named if not any(part.startswith(".") for part in p.relative_to(output).parts)]


def check(output, at_least):
    "Everything with a final name verifies; the newest loads, is no older than `at_least`, and all of it is of one step."
    for folder in visible(output): assert ck.verify_checkpoint(folder) == [], folder
    newest = ck.latest_checkpoint(output, quiet=True)
    assert newest in visible(output)
    model = Weights()
    loaded = ck.load_checkpoint(newest, model, quiet=True)
    step = loaded.metadata["step"]
    assert step >= at_least
    assert loaded.trainer_state["position"] == step and loaded.trainer_state["step"] == step
    assert model.tensor.unique().tolist() == [step] and loaded.trainer_state["moments"].unique().tolist() == [step]
    assert ck.best_checkpoint(ck.list_checkpoints(output/"stage1_text")) is not None
    return step


def in_child(func, *args):
    "Run in a forked child and return its process id; the child never returns."
    if pid := os.fork(): return pid
    try: func(*args)
    except BaseException as e:
        os.write(2, f"child: {e!r}\n".encode())
        os._exit(1)
    os._exit(0)


class DyingDisk(ck.Disk):
    "Does half of its n-th operation and then kills the process, as SIGKILL would in the middle of it."
    def __init__(self, at): self.left = at

    def _count(self, half=None, *args):
        self.left -= 1
        if self.left: return
        if half: half(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path, data):
        self._count(Path(path).write_bytes, data[:len(data)//2])
        return super().write(path, data)

    def save(self, path, value):
        self._count(Path(path).write_bytes, b"PK\3\4 half a file")
        return super().save(path, value)

    def remove(self, folder):
        self._count(lambda: next(p for p in Path(folder).iterdir() if p.is_file()).unlink())
        super().remove(folder)

    def mkdir(self, path): self._count(); super().mkdir(path)

    def rename(self, old, new): self._count(); super().rename(old, new)

    def link(self, source, target): self._count(Path(target).write_bytes, b"half"); super().link(source, target)

    def sync(self, path): self._count(); super().sync(path)


@needs_fork
def test_killed_at_every_single_disk_operation(run_dir):
    for step in (1, 2, 3): save(run_dir, step)
    done = died = 0

    def child(step, at):
        ck.DISK = DyingDisk(at)
        save(run_dir, step)
    for at in range(1, 200):
        _, status = os.waitpid(in_child(child, step := 3 + at, at), 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        check(run_dir, at_least=max(3, done))
        if os.WIFSIGNALED(status): died += 1
        else:
            done = step
            break
    assert done and died > 20          # it went through all operations of one save, to its end
    save(run_dir, 1000)
    assert not list((run_dir/"stage1_text").glob(".*"))     # nothing is left of all the dead


@needs_fork
def test_killed_at_random_moments(run_dir):
    save(run_dir, 1)
    draw, step, died_saving = random.Random(0), 1, 0
    for _ in range(20):
        read, write = os.pipe()

        def child():
            for s in range(step + 1, step + 10_000):
                os.write(write, b"b%d " % s)
                save(run_dir, s, protect=[])
                os.write(write, b"e%d " % s)
        pid = in_child(child)
        os.close(write)
        time.sleep(draw.uniform(0.02, 0.25))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = os.read(read, 1 << 20).decode().split()
        os.close(read)
        finished = max([int(s[1:]) for s in said if s[0] == "e"], default=step)
        died_saving += bool(said and said[-1][0] == "b")
        step = check(run_dir, at_least=finished)
    assert died_saving > 5


_FAULTS = [("write", errno.ENOSPC), ("write", errno.ENOTCONN), ("save", errno.ENOSPC), ("save", errno.EIO), ("mkdir", errno.EACCES), ("rename", errno.EIO),
           ("rename", errno.ENOTCONN), ("link", errno.ENOSPC), ("sync", errno.EIO), ("remove", errno.EACCES)]

@pytest.mark.parametrize("operation, code", _FAULTS, ids=[f"{o}-{errno.errorcode[c]}" for o, c in _FAULTS])
def test_disk_that_fails_once_at_any_call(run_dir, monkeypatch, operation, code):
    for step in (1, 2, 3): save(run_dir, step)

    class Faulty(ck.Disk):
        calls = 0
    def failing(self, *args):
        Faulty.calls += 1
        if Faulty.calls == at: raise OSError(code, os.strerror(code))
        return getattr(ck.Disk, operation)(self, *args)
    setattr(Faulty, operation, failing)
    newest = 3
    for at in range(1, 60):
        monkeypatch.setattr(ck, "DISK", Faulty())
        Faulty.calls, step = 0, 3 + at
        try: newest = ck.read_record(save(run_dir, step)).step
        except ck.CheckpointError as e: assert os.strerror(code) in str(e) and "earlier checkpoints are untouched" in str(e)
        monkeypatch.setattr(ck, "DISK", ck.Disk())
        assert check(run_dir, at_least=newest) <= step
        if Faulty.calls < at: break
    assert Faulty.calls < at
    save(run_dir, 1000)
    assert not list((run_dir/"stage1_text").glob(".*"))


def test_a_failing_model_leaves_nothing(tmp_path):
    save(tmp_path, 1)
    class Broken(Weights):
        def save_pretrained(self, folder): super().save_pretrained(folder); raise RuntimeError("CUDA out of memory")
    with pytest.raises(ck.CheckpointError, match="CUDA out of memory"):
        ck.save_checkpoint(Broken(), tmp_path, stage="stage1_text", step=2, epoch=0, loss=1.0, trainer_state={})
    class Interrupted(Weights):
        def save_pretrained(self, folder): super().save_pretrained(folder); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): ck.save_checkpoint(Interrupted(), tmp_path, stage="stage1_text", step=2, epoch=0, loss=1.0, trainer_state={})
    assert sorted(p.name for p in (tmp_path/"stage1_text").iterdir())[0] == "checkpoint-best" and len(visible(tmp_path)) == 2


def test_every_damage_is_named_refused_and_passed_over(tmp_path):
    good = save(tmp_path, 1, keep_last_n=0, is_best=False)
    bad = save(tmp_path, 2, keep_last_n=0, is_best=False)
    files = [p for p in bad.rglob("*") if p.is_file()]
    for path in files:
        name, data = path.relative_to(bad).as_posix(), path.read_bytes()
        damages = [lambda: path.write_bytes(data[:-1]), lambda: path.unlink(), lambda: path.write_bytes(b""), lambda: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))]
        for damage in damages:
            damage()
            problems = ck.verify_checkpoint(bad)
            assert len(problems) == 1 and problems[0].startswith(f"{name}: "), (name, problems)
            with pytest.raises(ck.CheckpointError, match=f"(?s){bad.name}.*{name}.*{good.name}"): ck.load_checkpoint(bad, quiet=True)
            assert ck.latest_checkpoint(tmp_path, quiet=True) == good
            path.write_bytes(data)
    assert ck.verify_checkpoint(bad) == [] and ck.latest_checkpoint(tmp_path) == bad
    (bad/"sub"/"more.bin").write_bytes(b"x")
    assert ck.verify_checkpoint(bad) == ["sub/more.bin: is not listed in manifest.json"]


def test_latest_says_what_it_passed_over(tmp_path, capsys):
    good, bad = save(tmp_path, 1, is_best=False), save(tmp_path, 2, is_best=False)
    with open(bad/"model.safetensors", "r+b") as f: f.seek(-1, 2); f.write(b"?")
    assert ck.find_checkpoint("latest", tmp_path) == good
    said = capsys.readouterr().out
    assert "model.safetensors: its content has changed" in said and f"Using {good} instead" in said


def test_manifest_names_cannot_reach_outside(tmp_path):
    folder = save(tmp_path, 1, is_best=False)
    manifest = ck._read_manifest(folder)
    secret = tmp_path/"secret"; secret.write_text("s")
    manifest["files"]["../../secret"] = {"size": 1, "sha256": ck.file_sha256(secret)}
    manifest["sha256"] = ck._self_hash(manifest)
    (folder/ck.MANIFEST).write_bytes(ck._json(manifest))
    assert ck.verify_checkpoint(folder) == ["../../secret: is missing"]


def test_the_one_resumed_from_stays(tmp_path):
    first = save(tmp_path, 1, is_best=False)
    for step in range(2, 8): save(tmp_path, step, protect=[first], is_best=False)
    assert [r.step for r in ck.list_checkpoints(tmp_path)] == [1, 6, 7]
    assert ck.prune_checkpoints(tmp_path, 1, protect=(str(first),)) and [r.step for r in ck.list_checkpoints(tmp_path)] == [1, 7]


def test_a_clock_that_jumps_and_a_run_that_goes_back(tmp_path, monkeypatch):
    class Past(ck.datetime):
        @classmethod
        def now(cls, tz=None): return ck.datetime(2001, 1, 1).astimezone()
    save(tmp_path, 300, is_best=False)
    monkeypatch.setattr(ck, "datetime", Past)
    again = save(tmp_path, 120, is_best=False)
    assert again.name.endswith("20010101_000000") and ck.latest_checkpoint(tmp_path) == again
    assert [r.step for r in ck.list_checkpoints(tmp_path)] == [120, 300]


class Attack:
    def __init__(self, path): self.path = str(path)

    def __reduce__(self): return os.system, (f"touch {self.path}",)


def legacy(folder, **files):
    "An old checkpoint: LoRA weights, and `files` pickled by torch."
    folder.mkdir(parents=True)
    save_file({"lora": torch.ones(2)}, folder/"adapter_model.safetensors")
    for name, value in files.items(): torch.save(value, folder/name.replace("_pt", ".pt"))
    return folder


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("where", ["config_pt", "trainer_state_pt"])
@pytest.mark.parametrize("how", ["torch", "pickle2", "pickle4", "inside", "as_key_class"])
def test_nothing_in_a_checkpoint_can_run(tmp_path, where, how):
    folder, owned = legacy(tmp_path/"checkpoint-epoch0-step100"), tmp_path/"owned"
    path, attack = folder/where.replace("_pt", ".pt"), Attack(tmp_path/"owned")
    if how == "torch": torch.save(attack, path)
    elif how == "inside": torch.save({"epoch": 0, "step": 1, "config": [{"x": attack}]}, path)
    elif how == "as_key_class": path.write_bytes(b"\x80\x02ccad_mllm.config\nopen\n" + pickle.dumps(attack, 2)[2:])
    else: path.write_bytes(pickle.dumps(attack, int(how[-1])))
    with pytest.raises(ck.CheckpointError, match=path.name): ck.load_checkpoint(folder, quiet=True)
    assert ck.list_checkpoints(tmp_path)[0].step == 100 and not owned.exists()


def test_real_old_config():
    root = os.environ.get("OMNI_CAD_ROOT")
    folder = Path(root).parent/"legacy-checkpoint" if root else None
    if not folder or not (folder/"config.pt").exists(): pytest.skip("set OMNI_CAD_ROOT to a folder beside which legacy-checkpoint/config.pt lies")
    config, train, notes = ck.read_config(folder)
    assert (config.llm_model_name, config.lora_r, config.lora_alpha, config.max_seq_length, config.dtype) == ("Qwen/Qwen3-8B", 64, 128, 32768, "bfloat16")
    assert (config.sequence_format, config.image_encoder_name, config.point_encoder_name) == ("json", "facebook/dinov2-large", "michelangelo")
    assert train is None and notes == ["old configuration: not used here: device, freeze_text_encoder, pad_token_id, vocab_size"]


@pytest.mark.parametrize("values", [{}, {"lora_r": 16}, {"lora_r": -1, "future": 1}, {"dtype": torch.float16},
                                    {"lora_target_modules": ["q_proj"], "max_seq_length": 4000.5}, {"num_points": None}],
                         ids=["empty", "few", "refused", "dtype", "odd", "none"])
def test_old_config_variants(tmp_path, values):
    class CADMLLMConfig_: pass
    import cad_mllm.config as module
    kept, CADMLLMConfig_.__module__, CADMLLMConfig_.__qualname__ = module.CADMLLMConfig, "cad_mllm.config", "CADMLLMConfig"
    instance = CADMLLMConfig_()
    instance.__dict__.update(values)
    folder = legacy(tmp_path/"checkpoint-best")
    try:
        module.CADMLLMConfig = CADMLLMConfig_
        torch.save(instance, folder/"config.pt")
    finally: module.CADMLLMConfig = kept
    config, _, _ = ck.read_config(folder)
    assert isinstance(config, CADMLLMConfig) and config.sequence_format == "json" and config.lora_r == (16 if values.get("lora_r") == 16 else 32)
    assert config.dtype == ("float16" if "dtype" in values else "bfloat16")


def test_an_old_run_goes_on_in_the_new_format(tmp_path, capsys):
    old = legacy(tmp_path/"stage1_text"/"checkpoint-epoch0-step100", trainer_state_pt={"epoch": 0, "step": 100})
    class Model(Weights):
        def load_weights(self, folder): return []
    found = ck.find_checkpoint("latest", tmp_path)
    loaded = ck.load_checkpoint(found, Model())
    assert found == old and loaded.old_format and capsys.readouterr().out.splitlines()[1:3] == ["  ✓ Loaded LLM with LoRA adapters", "  ✓ Resuming from epoch 0, step 100"]
    new = save(tmp_path, 101, keep_last_n=1, protect=[old])
    assert ck.latest_checkpoint(tmp_path) == new and not ck.read_record(new).old_format and old.exists()


def test_the_best_of_years_ago_is_kept(tmp_path):
    old = legacy(tmp_path/"stage1_text"/"checkpoint-best", trainer_state_pt={"epoch": 0, "step": 100})
    new = save(tmp_path, 101, protect=[old])
    assert ck.read_record(old).step == 101 and not ck.read_record(old).old_format and ck.latest_checkpoint(tmp_path) == new
    kept = ck.read_record(old.with_name("checkpoint-best-old"))
    assert kept.old_format and kept.complete and kept.step == 100


def test_cut_off_by_a_file_size_limit(tmp_path):
    "A real failing write, in a real process: the limit stands in for a full disk."
    code = ("import resource, signal, sys; sys.path[:0] = sys.argv[2:]\n"
            "import test_checkpoint as t; from pathlib import Path\n"
            "out = Path(sys.argv[1]); t.save(out, 1)\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
            "try: t.save(out, 2)\n"
            "except t.ck.CheckpointError as e: print(e)\n")
    pytest.importorskip("resource")
    here = Path(__file__).resolve().parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(here), str(here.parent)], capture_output=True, text=True)
    assert "could not be saved" in done.stdout and "earlier checkpoints are untouched" in done.stdout, done.stderr
    assert check(tmp_path, at_least=1) == 1 and not list((tmp_path/"stage1_text").glob(".*"))


@pytest.mark.parametrize("use_lora", [False, True], ids=["full", "lora"])
def test_the_real_model_goes_on_to_the_last_bit(tmp_path, capsys, use_lora):
    "Every loss and every weight after a save and a load into a model that was made differently are those of the unbroken run."
    import numpy as np
    from cad_mllm.dataset import Sample
    from cad_mllm.model import CADMLLMModel
    from cad_mllm.synthetic import FAMILIES
    config, train_config = recipe("tiny")
    config.use_lora, config.lora_r = use_lora, 4

    def start(seed):
        torch.manual_seed(seed)
        model = CADMLLMModel(config).train()
        optimizer = torch.optim.AdamW(model.parameter_groups(train_config, 1e-2), lr=1e-2)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1/(1 + s))

    def steps(model, optimizer, scheduler, batch, num):
        for _ in range(num):
            out = model(batch)
            (out["loss_sum"]/out["num_tokens"]).backward()
            optimizer.step(); scheduler.step(); optimizer.zero_grad()
            yield out["loss_sum"].item()

    run, rng, samples = start(0), np.random.default_rng(0), []
    for i, family in enumerate(sorted(FAMILIES)[:2]):
        program, caption = FAMILIES[family](rng)
        samples.append(Sample(caption=caption, target=run[0].codec.split(program, 0)[1], modalities=("text", "points", "image"),
                              image=rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), points=rng.normal(size=(64, 6)).astype(np.float32)))
    batch = run[0].builder.collate(samples)
    list(steps(*run, batch, 2))
    saved = ck.save_checkpoint(run[0], tmp_path, stage="stage3_all", step=2, epoch=0, loss=0.5, train_config=train_config,
                               trainer_state={"optimizer": ck.optimizer_state(run[1]), "scheduler": run[2].state_dict()})
    unbroken = list(steps(*run, batch, 2))

    resumed = start(1)
    capsys.readouterr()
    loaded = ck.load_checkpoint(ck.find_checkpoint("latest", tmp_path), resumed[0])
    done = ck.restore_optimizer(*resumed[1:], loaded.trainer_state)
    ck.set_rng_state(loaded.trainer_state["rng"])
    assert done == ck.Restored(True, True) and loaded.notes == [] and (loaded.config, loaded.train_config) == (config, train_config)
    assert capsys.readouterr().out.splitlines() == [
        f"Loading checkpoint from: {saved}", f"  ✓ Loaded LLM{' with LoRA adapters' if use_lora else ''}", "  ✓ Loaded image module", "  ✓ Loaded point cloud module",
        "  ✓ Resuming from epoch 0, step 2, loss 0.5000", "Restoring optimizer/scheduler state...", "  ✓ Restored optimizer state", "  ✓ Restored scheduler state",
        "  ✓ Resuming from step 2"]
    assert list(steps(*resumed, batch, 2)) == unbroken
    after, expected = resumed[0].state_dict(), run[0].state_dict()
    trained = set(resumed[0].trainable_names())
    assert trained and all(torch.equal(after[n], expected[n]) for n in trained)
    assert ck.verify_checkpoint(saved) == [] and CADMLLMModel.from_pretrained(saved).config == config
