"""A checkpoint from a stranger: it cannot run code, reach outside its folder, take memory it has not got, or have
something else fetched. Where it is cheap, a naive loader shows that the attack is real."""
import json, os, pickle, re, shutil, struct, zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chapters import Chapter
ck = Chapter("cad_mllm.checkpoints")
from cad_mllm.checkpoints import safety as safe, trust
from cad_mllm.config import ConfigError, recipe
from cad_mllm.models import CADMLLMModel, WeightsError

torch.set_num_threads(1)
SMALL = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=16
)
CONFIG = replace(
    recipe("tiny")[0], llm_config=SMALL, use_lora=True, lora_r=2, projector_hidden_dim=16, point_encoder_hidden_dim=16,
    num_point_tokens=2, num_points=16
)
REFUSED = (ck.CheckpointError, WeightsError)


class Attack:
    def __init__(self, path): self.path = str(path)

    def __reduce__(self): return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def model(): return CADMLLMModel(CONFIG)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    "A good checkpoint in this format, to be copied and spoilt."
    adamw = torch.optim.AdamW(model.parameter_groups(recipe("tiny")[1], 1e-3))
    state = {"optimizer": ck.optimizer_state(adamw), "scaler": {}, "position": 3}
    return ck.save_checkpoint(
        model, tmp_path_factory.mktemp("run"), stage="stage1_text", step=5, epoch=0, loss=0.5, trainer_state=state,
        train_config=recipe("tiny")[1], is_best=False
    )


def old_form(saved, folder):
    "The same as an old checkpoint: no manifest, no metadata, a pickled configuration."
    shutil.copytree(saved, folder)
    for name in (ck.MANIFEST, ck.METADATA, ck.CONFIG): (folder/name).unlink()
    torch.save(CONFIG.to_dict(), folder/"config.pt")
    torch.save({"epoch": 0, "step": 5}, folder/ck.STATE)
    return folder


def reseal(folder):
    "As an attacker would: with a manifest that matches."
    metadata = ck.read_json_file(folder/ck.METADATA)
    (folder/ck.MANIFEST).unlink()
    ck.seal(folder, metadata)
    assert ck.verify_checkpoint(folder) == []


def load(folder, model):
    "Everything that loads: for resuming, for inference."
    ck.load_checkpoint(folder, model, quiet=True)
    if not ck.is_old_format(folder): CADMLLMModel.from_pretrained(folder)


# -- code

PICKLES = [
    ck.STATE, "image_projector.pt", "point_projector.pt", "point_encoder.pt", "adapter_model.bin", "adapter_model.pt"
]

@pytest.mark.parametrize("name, sealed", [("config.pt", False)] + [(n, s) for s in (False, True) for n in PICKLES])
def test_no_pickle_runs(saved, model, tmp_path, name, sealed):
    folder, owned = tmp_path/"checkpoint-step5", tmp_path/"owned"
    shutil.copytree(saved, folder) if sealed else old_form(saved, folder)
    if name.startswith("adapter"): (folder/"adapter_model.safetensors").unlink()
    for content in ({"optimizer": {"state": {0: {"exp_avg": Attack(owned)}}}}, Attack(owned)):
        torch.save(content, folder/name)
        if sealed: reseal(folder)
        with pytest.raises(REFUSED, match=f"(?s){name}: refused, because it names posix.system, which is code"):
            load(folder, model)
        assert not owned.exists()
    try: torch.load(folder/name, weights_only=False)
    except Exception: pass
    assert owned.exists()              # the attack is real


def test_no_plain_pickle_and_no_archive_of_code(saved, model, tmp_path):
    folder, owned = old_form(saved, tmp_path/"checkpoint-step5"), tmp_path/"owned"
    for protocol in range(6):
        (folder/"image_projector.pt").write_bytes(pickle.dumps(Attack(owned), protocol))
        with pytest.raises(REFUSED, match="image_projector.pt: cannot be read"): load(folder, model)
    pickle.loads((folder/"image_projector.pt").read_bytes())
    assert owned.exists()
    owned.unlink()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder/"image_projector.pt")
    with pytest.raises(REFUSED, match="image_projector.pt: "): load(folder, model)
    assert not owned.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_readers_cannot_see_two_pickles(saved, model, tmp_path):
    "An archive that shows an innocent pickle to whoever checks it and another one to whoever loads it."
    folder, owned = old_form(saved, tmp_path/"checkpoint-step5"), tmp_path/"owned"
    def archive(*pickles):
        with zipfile.ZipFile(folder/"image_projector.pt", "w") as z:
            for content in pickles: z.writestr("x/data.pkl", content)
            z.writestr("x/version", "3\n")
        return (folder/"image_projector.pt").read_bytes()
    good, bad = archive(pickle.dumps({}, 2)), archive(pickle.dumps(Attack(owned), 2))
    archive(pickle.dumps({}, 2), pickle.dumps(Attack(owned), 2))
    with pytest.raises(REFUSED, match="image_projector.pt: refused"): load(folder, model)
    for data in (bad + good, good + bad, good + b"\0"*30):
        (folder/"image_projector.pt").write_bytes(data)
        with pytest.raises(REFUSED, match="image_projector.pt: "): load(folder, model)
    assert not owned.exists()


# -- bombs

def pt_with(path, data, **records):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", data)
        for key, content in records.items(): z.writestr(f"x/data/{key[1:]}", content)
        z.writestr("x/version", "3\n")


def tensor_pickle(num=1, offset=0, shape=(1,), stride=(1,)):
    "The pickle of {'w': tensor} whose numbers may be lies."
    def integer(v): return b"\x8a\x08" + struct.pack("<q", v)
    def integers(values): return b"(" + b"".join(map(integer, values)) + b"t"
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + integer(num) + b"tQ"
    place = integer(offset) + integers(shape) + integers(stride)
    begin, end = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(", b"\x89ccollections\nOrderedDict\n)RtRs."
    return begin + storage + place + end


BOMBS = {
    "claims 4 TB": (tensor_pickle(num=10**12), "claims 4,000,000,000,000 bytes and has 4"),
    "stretches 4 bytes over 4 TB": (
        tensor_pickle(shape=(10**6, 10**6), stride=(0, 0)), "claims 1,000,000,000,000 elements"
    ),
    "begins behind its end": (tensor_pickle(offset=10**6), "reaches beyond its storage"),
    "a shape below zero": (tensor_pickle(shape=(-1,)), "damaged shape"),
    "asks for 10 GB": (b"\x80\x02cbuiltins\nbytearray\n(J\x00\xe4\x0bTtR.", "asks for a large object"),
    "multiplies": (
        b"\x80\x02X\x40\x42\x0f\x00" + b"a"*10**6 + b"q\x010" + b"c_codecs\nencode\n(h\x01U\x06latin1tR0"*5000 + b"N.",
        "multiplies its content"
    )
}

@pytest.mark.parametrize("what", list(BOMBS))
@pytest.mark.parametrize("name", ["image_projector.pt", ck.STATE])
def test_a_tensor_is_as_large_as_its_bytes(saved, model, tmp_path, what, name):
    folder = old_form(saved, tmp_path/"checkpoint-step5")
    data, words = BOMBS[what]
    pt_with(folder/name, data, _0=bytes(4))
    with pytest.raises(REFUSED, match=f"{name}: refused, because.*{words}"): load(folder, model)


def test_the_stretched_tensor_is_real(tmp_path):
    pt_with(tmp_path/"w.pt", BOMBS["stretches 4 bytes over 4 TB"][0], _0=bytes(4))
    assert (
        torch.load(tmp_path/"w.pt", weights_only=True)["w"].numel() == 10**12
        and (tmp_path/"w.pt").stat().st_size < 1000
    )


def test_zip_bombs(saved, model, tmp_path):
    "A compressed record: a thousand times larger in memory than on disk."
    folder = old_form(saved, tmp_path/"checkpoint-step5")
    zeros = torch.zeros(2_000_000)
    torch.save({"w": zeros}, tmp_path/"plain.pt")
    with zipfile.ZipFile(tmp_path/"plain.pt") as z, zipfile.ZipFile(
        folder/"image_projector.pt", "w", zipfile.ZIP_DEFLATED
    ) as bomb:
        for entry in z.infolist(): bomb.writestr(entry.filename, z.read(entry))
    assert (folder/"image_projector.pt").stat().st_size < 20_000
    # torch itself inflates it
    assert torch.load(folder/"image_projector.pt", weights_only=True)["w"].nbytes == 8_000_000
    with pytest.raises(REFUSED, match="is compressed"): load(folder, model)


HEADERS = [
    {"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 32]}},
    {"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 2**60]}},
    {
        "w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
        "v": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    },
    {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}},
    {"w": {"dtype": "F32", "shape": [-8], "data_offsets": [0, 32]}},
    {"w": {"dtype": "F99", "shape": [8], "data_offsets": [0, 32]}}
]

@pytest.mark.parametrize("header", HEADERS, ids=["shape", "offset", "overlap", "gap", "negative", "type"])
@pytest.mark.parametrize("sealed", [False, True], ids=["old", "sealed"])
def test_safetensors_headers_that_lie(saved, model, tmp_path, header, sealed):
    folder, text = tmp_path/"checkpoint-step5", json.dumps(header).encode()
    shutil.copytree(saved, folder) if sealed else old_form(saved, folder)
    (folder/"adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    if sealed: reseal(folder)
    else: assert not ck.read_record(folder).complete
    with pytest.raises(REFUSED, match="adapter_model.safetensors: "): load(folder, model)


def test_a_header_longer_than_the_file(tmp_path):
    for length in (2**63, 10**9):
        (tmp_path/"w.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(safe.UnsafeFile, match="cut short"): safe.check_safetensors(tmp_path/"w.safetensors")


@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b'{"a": ' + b"1" * 10_000 + b"}", b" " * (safe.JSON_LIMIT + 1), b"\xff\xfe", b"null"],
    ids=["deep", "long number", "large", "no text", "no object"]
)
@pytest.mark.parametrize("name", [ck.MANIFEST, ck.METADATA, ck.CONFIG, "adapter_config.json"])
def test_json_that_bites(saved, model, tmp_path, text, name):
    folder = tmp_path/"checkpoint-step5"
    shutil.copytree(saved, folder)
    (folder/name).write_bytes(text)
    if name not in (ck.MANIFEST, ck.METADATA): reseal(folder)
    assert ck.list_checkpoints(tmp_path)[0].step == 5
    with pytest.raises(REFUSED, match=name): load(folder, model)


CONFIGS = [
    dict(projector_hidden_dim=10**9), dict(lora_r=10**8), dict(point_encoder_hidden_dim=10**8), dict(num_points=10**12),
    dict(llm_config=SMALL | {"hidden_size": 10**8}), dict(llm_config=SMALL | {"num_hidden_layers": 10**9})
]

@pytest.mark.parametrize("change", CONFIGS, ids=[next(iter(c)) for c in CONFIGS])
def test_a_configuration_for_a_giant(saved, tmp_path, change):
    folder = tmp_path/"checkpoint-step5"
    shutil.copytree(saved, folder)
    both = json.loads((folder/ck.CONFIG).read_text())
    both["model"] |= change
    (folder/ck.CONFIG).write_text(json.dumps(both))
    reseal(folder)
    with pytest.raises(REFUSED, match=next(iter(change))): ck.load_checkpoint(folder, quiet=True)
    with pytest.raises(REFUSED, match=next(iter(change))): CADMLLMModel.from_pretrained(folder)


# -- ways out of the folder

NAMES = ["adapter_model.safetensors", "image_projector.pt", ck.STATE, "adapter_config.json", "tokenizer.json"]

@pytest.mark.parametrize(
    "name, sealed",
    [(n, False) for n in (*NAMES, "config.pt")] + [(n, True) for n in (*NAMES, ck.MANIFEST, ck.METADATA, ck.CONFIG)]
)
def test_no_link_leads_out(saved, model, tmp_path, name, sealed):
    folder = tmp_path/"run"/"checkpoint-step5"
    folder.parent.mkdir()
    shutil.copytree(saved, folder) if sealed else old_form(saved, folder)
    shutil.move(folder/name, tmp_path/"private")
    (folder/name).symlink_to(tmp_path/"private")
    assert (folder/name).read_bytes() == (tmp_path/"private").read_bytes()          # a naive loader reads it
    with pytest.raises(REFUSED, match=f"{name}: .*is (not a plain file|a link)"): load(folder, model)
    assert not ck.read_record(folder).complete and ck.latest_checkpoint(tmp_path/"run", quiet=True) is None
    with pytest.raises(REFUSED, match=name): model.load_weights(folder)


def test_no_pipe_is_waited_for(saved, model, tmp_path):
    folder = old_form(saved, tmp_path/"checkpoint-step5")
    (folder/"image_projector.pt").unlink()
    os.mkfifo(folder/"image_projector.pt")
    with pytest.raises(REFUSED, match="image_projector.pt: is not a plain file"): load(folder, model)
    with pytest.raises(REFUSED, match="image_projector.pt: is not a plain file"): model.load_weights(folder)
    assert ck.list_checkpoints(tmp_path)[0].problem == "image_projector.pt: is not a plain file"


@pytest.mark.parametrize(
    "target", ["../private.safetensors", "sub/../../private.safetensors", "ABSOLUTE", "link.safetensors", 7, None]
)
def test_a_weight_map_stays_inside(model, saved, tmp_path, target):
    "Shards may be named, but only in the folder."
    full = replace(CONFIG, use_lora=False)
    folder = tmp_path/"checkpoint"
    CADMLLMModel(full).save_pretrained(folder)
    weights = load_file(folder/"model.safetensors")
    shutil.move(folder/"model.safetensors", tmp_path/"private.safetensors")
    (folder/"sub").mkdir()
    (folder/"link.safetensors").symlink_to(tmp_path/"private.safetensors") if target == "link.safetensors" else None
    target = str(tmp_path/"private.safetensors") if target == "ABSOLUTE" else target
    (folder/"model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {name: target for name in weights}})
    )
    if isinstance(target, str): assert (folder/target).exists()                        # a naive loader opens it
    with pytest.raises(WeightsError): CADMLLMModel.from_pretrained(folder)
    with pytest.raises(WeightsError): CADMLLMModel(full).load_weights(folder)


def test_names_stay_in_the_output_folder(model, tmp_path):
    common = dict(step=1, epoch=0, loss=1.0, trainer_state={})
    for bad in ("../out", "/abs", "a/b", "..", ".hidden", "a\\b", "a\0b"):
        with pytest.raises(ck.CheckpointError, match="plain folder names"):
            ck.save_checkpoint(model, tmp_path/"run", stage=bad, **common)
        with pytest.raises(ck.CheckpointError, match="plain folder names"):
            ck.save_checkpoint(model, tmp_path/"run", stage="s", name=bad, **common)
    for form in ("../{step}", "{step.__class__}", "{step:0999999999d}", "/x{step}", "{step}\0"):
        with pytest.raises(ConfigError): ck.checkpoint_name(1, 1.0, form=form)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_compared_and_never_followed(saved, model, tmp_path):
    folder, secret = tmp_path/"run"/"checkpoint-step5", tmp_path/"secret"
    folder.parent.mkdir()
    secret.write_text("s")
    shutil.copytree(saved, folder)
    for name in ("../../secret", str(secret), "..", "a\0b"):
        manifest = ck.read_manifest(saved)
        manifest["files"][name] = {"size": 1, "sha256": ck.file_sha256(secret)}
        manifest["sha256"] = ck._self_hash(manifest)
        (folder/ck.MANIFEST).write_bytes(ck.to_json(manifest))
        assert ck.verify_checkpoint(folder) == [f"{name}: is missing"]
        with pytest.raises(REFUSED, match="is missing"): load(folder, model)
        assert ck.update_best(folder.parent) is None and ck.prunable(ck.list_checkpoints(folder.parent), 1) == []
    for files in ([], {}, 3, {"a": 3}, {"a": None}, {"a": {"size": "x"}}):
        manifest = {"format": 1, "metadata": {}, "files": files}
        (folder/ck.MANIFEST).write_bytes(ck.to_json(manifest | {"sha256": ck._self_hash(manifest)}))
        assert ck.verify_checkpoint(folder) and not ck.read_record(folder).complete
    for metadata in ([], 3, None, {"step": "x", "epoch": [], "loss": {}, "stage": 3, "timestamp": [], "serial": 1e400}):
        manifest = ck.read_manifest(saved) | {"metadata": metadata}
        manifest["sha256"] = ck._self_hash(manifest)
        (folder/ck.MANIFEST).write_bytes(ck.to_json(manifest))
        ck.format_checkpoints(ck.list_checkpoints(folder.parent))


# -- the user's word

WISHES = {
    "base model": (ck.CONFIG, {"model": {"llm_model_name": "stranger/model"}}, "stranger/model"),
    "image encoder": (ck.CONFIG, {"model": {"image_encoder_name": "stranger/eyes"}}, "stranger/eyes"),
    "local folder": (ck.CONFIG, {"model": {"llm_model_name": "/etc"}}, "/etc"),
    "adapter's base": ("adapter_config.json", {"base_model_name_or_path": "stranger/base"}, "stranger/base"),
    "revision": ("adapter_config.json", {"revision": "0badc0de"}, "0badc0de"),
    "code of the adapter": ("adapter_config.json", {"auto_map": {"base_model_class": "x"}}, "trust_remote_code"),
    "code of the tokenizer": (
        "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "trust_remote_code"
    ),
    "code by a flag": (ck.CONFIG, {"model": {"llm_config": {"trust_remote_code": True}}}, "trust_remote_code")
}

@pytest.mark.parametrize("wish", list(WISHES))
def test_what_needs_a_word(saved, tmp_path, monkeypatch, wish):
    folder, (name, change, word) = tmp_path/"checkpoint-step5", WISHES[wish]
    monkeypatch.setattr(trust, "_stated", set())
    shutil.copytree(saved, folder)
    ck.load_checkpoint(folder, quiet=True)
    value = json.loads((folder/name).read_text())
    for k, v in change.items():
        value[k] = {**value[k], **v} if isinstance(v, dict) and isinstance(value.get(k), dict) else v
    (folder/name).write_text(json.dumps(value))
    reseal(folder)
    with pytest.raises(ck.CheckpointError, match=f"(?s){folder.name}.*{word}.*trust="):
        ck.load_checkpoint(folder, quiet=True)
    with pytest.raises(WeightsError, match=word): CADMLLMModel.from_pretrained(folder)
    assert ck.load_checkpoint(folder, quiet=True, trust=(word,)).path == folder
    monkeypatch.setenv(trust.TRUST, f"other,{word}")
    assert ck.load_checkpoint(folder, quiet=True).path == folder


def test_an_old_configuration_needs_the_word_too(saved, model, tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "_stated", set())
    folder = old_form(saved, tmp_path/"checkpoint-step5")
    torch.save(CONFIG.to_dict() | {"llm_model_name": "stranger/model"}, folder/"config.pt")
    with pytest.raises(ck.CheckpointError, match="stranger/model"): ck.load_checkpoint(folder, quiet=True)
    with pytest.raises(ck.CheckpointError, match="stranger/model"): ck.upgrade_checkpoint(folder, quiet=True)
    assert ck.load_checkpoint(folder, quiet=True, trust="stranger/model").config.llm_model_name == "stranger/model"


def test_a_whole_model_does_not_fetch_another(tmp_path):
    """An adapter_config.json beside a fully trained model: transformers would follow it to weights that are not the
    model's."""
    from transformers import AutoModelForCausalLM
    full, folder = CADMLLMModel(replace(CONFIG, use_lora=False)), tmp_path/"checkpoint"
    full.save_pretrained(folder)
    (folder/"adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path/"elsewhere"), "peft_type": "LORA"})
    )
    # it goes there
    with pytest.raises(Exception, match="adapter_model|elsewhere"): AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(WeightsError, match="elsewhere.*nobody here asked for"): CADMLLMModel.from_pretrained(folder)
    back = CADMLLMModel.from_pretrained(folder, trust=(str(tmp_path/"elsewhere"),))
    assert all(torch.equal(a, b) for a, b in zip(back.llm.parameters(), full.llm.parameters()))


def test_a_hidden_model_class_is_not_run(tmp_path):
    "Code that lies in the folder itself, with config.json pointing at it."
    full, folder, owned = CADMLLMModel(replace(CONFIG, use_lora=False)), tmp_path/"checkpoint", tmp_path/"owned"
    full.save_pretrained(folder)
    (folder/"evil.py").write_text(f"open({str(owned)!r}, 'w')\nclass Model: pass\n")
    shape = json.loads((folder/"config.json").read_text())
    (folder/"config.json").write_text(
        json.dumps(
            shape
            | {
                "model_type": "no_such_type",
                "auto_map": {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
            }
        )
    )
    with pytest.raises(WeightsError, match="asks to run code"): CADMLLMModel.from_pretrained(folder)
    with pytest.raises((OSError, ValueError)): CADMLLMModel.from_pretrained(folder, trust=("trust_remote_code",))
    assert not owned.exists()


def test_moments_of_another_shape(saved, model, tmp_path):
    """An optimizer state whose tensors are not what it says they are is not taken; the parameter starts fresh, and
    is named."""
    loaded = ck.load_checkpoint(saved, quiet=True)
    adamw = torch.optim.AdamW(model.parameter_groups(recipe("tiny")[1], 1e-3))
    state, names = loaded.trainer_state, loaded.trainer_state["optimizer"]["names"][0]
    state["optimizer"]["state"][0] = {
        "step": torch.tensor(1.), "exp_avg": torch.zeros(7, 7), "exp_avg_sq": torch.zeros(7, 7)
    }
    done = ck.restore_optimizer(adamw, None, state, quiet=True)
    assert done.optimizer and names[0] in done.notes[0] and adamw.param_groups[0]["params"][0] not in adamw.state


# -- damaged but sealed, and what the kit does not know

TOKENIZER = {"backend": "tokenizers", "model_max_length": 512, "tokenizer_class": "TokenizersBackend"}
DAMAGED = {
    "a list of layers with a dictionary in it": (ck.CONFIG, {"model": {"lora_target_modules": ["q_proj", {}]}}),
    "a number that is text": (ck.CONFIG, {"model": {"lora_r": "four"}}),
    "a switch that is a list": (ck.CONFIG, {"model": {"use_lora": []}}),
    "settings of the model that are none": (ck.CONFIG, {"model": 7}),
    "training settings of odd kinds": (ck.CONFIG, {"train": {"max_staged_checkpoints": []}}),
    "a stage whose shares are text": (ck.CONFIG, {"train": {"stages": [{"name": "one", "modality_probs": "x"}]}}),
    "a padding token that is a number": (
        "tokenizer_config.json", TOKENIZER | {"eos_token": "<|endoftext|>", "pad_token": -1}
    ),
    "a class that is a list": (
        "tokenizer_config.json",
        TOKENIZER | {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "tokenizer_class": [[]]}
    ),
    "no tokens that end or pad": ("tokenizer_config.json", TOKENIZER),
    "a tokenizer without a model": ("tokenizer.json", {"version": "1.0", "model": {"type": 3}})
}

def spoil(folder, name, change):
    """Put values into a JSON file of a checkpoint and seal it again; a dictionary within is changed, everything else
    replaced."""
    value = json.loads((folder/name).read_text()) if name == ck.CONFIG else {}
    for k, v in change.items():
        value[k] = {**value[k], **v} if isinstance(v, dict) and isinstance(value.get(k), dict) else v
    (folder/name).write_text(json.dumps(value))
    reseal(folder)

@pytest.mark.parametrize("kind", list(DAMAGED))
def test_damaged_but_sealed_files_are_a_checkpoint_error_with_their_name(saved, model, tmp_path, kind):
    folder, (name, change) = tmp_path/"checkpoint-step5", DAMAGED[kind]
    shutil.copytree(saved, folder)
    spoil(folder, name, change)
    with pytest.raises(ck.CheckpointError, match=f"{folder.name}/{name}: "): load(folder, model)


@pytest.mark.skipif("CAD_CASES_ROOT" not in os.environ, reason="set CAD_CASES_ROOT to the folder of cases")
def test_cases_of_damaged_checkpoints(saved, model, tmp_path):
    for case in sorted(Path(os.environ["CAD_CASES_ROOT"], "checkpoints").glob("case_*.json")):
        folder, name = tmp_path/case.stem, re.sub(r"case_\d+_", "", case.name)
        shutil.copytree(saved, folder)
        shutil.copyfile(case, folder/name)
        reseal(folder)
        with pytest.raises(ck.CheckpointError, match=f"{folder.name}/{name}: "): load(folder, model)


KERNELS = {
    "a kernel from a hub": {"attn_implementation": "org/kernel"},
    "one for a part of the model": {"text_config": {"_attn_implementation": {"": "org/kernel:attend"}}},
    "a quantization": {"quantization_config": {"quant_method": "gptq", "bits": 4}}
}

@pytest.mark.parametrize("kind", list(KERNELS))
def test_only_kernels_and_quantizations_that_the_kit_knows(saved, model, tmp_path, monkeypatch, kind):
    "No word of trust lets them pass: nothing here could use them."
    monkeypatch.setenv(trust.TRUST, "org/kernel,gptq,trust_remote_code")
    for name, change in (("config.json", KERNELS[kind]), (ck.CONFIG, {"model": {"llm_config": KERNELS[kind]}})):
        folder = tmp_path/f"checkpoint-{name}"
        shutil.copytree(saved, folder)
        spoil(folder, name, change)
        with pytest.raises(ck.CheckpointError, match=f"{folder.name}.*{name}: asks for"):
            ck.load_checkpoint(folder, quiet=True)
        with pytest.raises(WeightsError, match=f"{name}: asks for"): CADMLLMModel.from_pretrained(folder)
    assert trust.kernel_demands({"attn_implementation": "sdpa", "text_config": {"_attn_implementation": None}}) == ""


def test_the_newest_good_one_is_never_one_that_would_be_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "_stated", set())
    good, damaged = (shutil.copytree(saved, tmp_path/f"checkpoint-step{i}") for i in (5, 9))
    for i, (name, change) in enumerate(
        [
            (ck.CONFIG, {"model": {"llm_model_name": "stranger/model"}}), (ck.CONFIG, {"model": {"lora_r": "four"}}),
            ("config.json", KERNELS["a kernel from a hub"])
        ],
        6
    ):
        folder = shutil.copytree(saved, tmp_path/f"checkpoint-step{i}")
        metadata = json.loads((folder/ck.METADATA).read_text()) | {"step": i, "serial": i}
        (folder/ck.METADATA).write_text(json.dumps(metadata))
        spoil(folder, name, change)
    next(damaged.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(ck.CheckpointError, match=f"the newest good one is {good}$"):
        ck.load_checkpoint(damaged, quiet=True)


def test_a_card_shows_what_a_checkpoint_says_as_text(saved, tmp_path):
    "No HTML of a stranger's checkpoint or evaluation is live in the card, and every table keeps its columns."
    from cad_mllm.model_card import model_card
    odd, folder = "<script>alert(1)</script>|x", shutil.copytree(saved, tmp_path/"checkpoint-step5")
    train = json.loads((folder/ck.CONFIG).read_text())["train"]
    train["data_root"], train["stages"][0]["name"] = "/data/parts\n<b>|more", odd.replace("/", "")
    metadata = ck.read_json_file(folder/ck.METADATA) | {
        "stage": odd, "versions": {"torch": "2|<img src=x>\n9", "numpy": "![x](http://elsewhere/x.png)"}
    }
    (folder/ck.METADATA).write_text(json.dumps(metadata))
    spoil(folder, ck.CONFIG, {"train": train})
    (tmp_path/"evaluation-checkpoint-step5").mkdir()
    evaluation = {
        "table": [{"name": f"{odd}\ny", "builds": .5}], "settings": {"data_root": "a\n---\n| c", "split": odd}
    }
    (tmp_path/"evaluation-checkpoint-step5"/"evaluation.json").write_text(json.dumps(evaluation))
    card = model_card(folder).split("\n---\n", 1)[1]
    assert not re.search("<[a-z/!]", card, re.I) and "[x]" not in card and "&#91;x](http" in card
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;&#124;x"
    assert all(
        words in card
        for words in (
            f"| stage reached | {shown} |", "| data | parts &lt;b&gt;&#124;more |", "torch 2&#124;&lt;img src=x&gt; 9",
            f"| {shown} y | - |", shown.replace("/", "") + " ("
        )
    )
    tables = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    assert (
        len(tables) == 3
        and all(line.startswith("|") and line.count("|") == table[0].count("|") for table in tables for line in table)
    )
