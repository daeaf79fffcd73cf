"""Settings under the names of earlier versions: in files, in Python, on the command line and in runs that are resumed
mean what they meant, and what is written has the current names only."""
import json
import shutil
import warnings
from dataclasses import fields, replace

import pytest

from cad_mllm.checkpoints import CheckpointError, latest_checkpoint, load_checkpoint
from cad_mllm.checkpoints.legacy import config_from_old, read_config
from cad_mllm.commands import train_parser
from cad_mllm.config import CADMLLMConfig, ConfigError, CurriculumStage, old_flags, recipe, RECIPES, TrainConfig
from cad_mllm.models import find_weights
from cad_mllm.panel import train_command, TrainForm
from cad_mllm.training import ChangedError, read_events, read_metrics, read_run_config, train
from small_data import make
from train_runs import configs

# each field off its default (but use_lora, which 4-bit weights need), under the names of version 0.2 and after it
MODEL = dict(
    llm_model_name="base", llm_config={"hidden_size": 8}, sequence_format="text", token_version=1, use_lora=True,
    load_in_4bit=True, lora_r=8, lora_alpha=8, lora_dropout=.2, lora_target_modules=["q_proj"],
    image_encoder_name="pictures", freeze_image_encoder=False, image_size=32, point_encoder_name="michelangelo",
    point_encoder_hidden_dim=16, freeze_point_encoder=True, num_points=64, num_point_tokens=4, measure_version=1,
    points_frame="box", projector_hidden_dim=16, projector_num_layers=3, projector_dropout=.2, max_seq_length=900,
    dtype="float16"
)
STAGE = dict(
    name="one", modality_probs={"text": 1.0}, num_epochs=3, lr=1e-3, until_val_loss=.5, patience=4, min_delta=.01
)
TRAIN = dict(
    output_dir="o", local_dir="near", max_pending_checkpoints=3, data_root="d", cache_dir="fast",
    truncated_json_root="t", omnicad_txt_path="x", omnicad_json_root="j", omnicad_img_root="i", omnicad_pc_root="p",
    max_train_samples=9, num_val_samples=5, stages=[STAGE, STAGE | {"name": "two"}], start_from_stage=2, batch_size=3,
    gradient_accumulation_steps=2, pack=False, max_tokens_per_batch=99, from_scratch_prob=.7, max_views=2,
    point_noise=.01, point_drop=.02, point_crop=.03, point_holes=.04, point_noisy=.5, caption_drop=.6, point_bare=.07,
    point_estimated=.08, warmup_steps=7, weight_decay=.5, max_grad_norm=2.0, bad_steps=6, halve_lr=True,
    projector_lr_multiplier=2.0, new_token_lr_multiplier=3.0, max_steps=50, schedule_to="max_steps", max_minutes=5.0,
    logging_steps=3, save_steps=8, save_minutes=1.0, keep_last_n_checkpoints=2, eval_steps=4, checkpoint_name="c{step}",
    init_from="small", resume_from_ckpt="auto", take_over=True, accept_changes="from_scratch_prob,seed", num_workers=2,
    feature_cache="f", use_gradient_checkpointing=True, compile=True, use_wandb=True, track="tensorboard",
    notify="http://localhost", draw_parts=1, device="cpu", deterministic=True, fsdp=True, peer_minutes=3.0, seed=1
)
FLAGS = [
    "--max_train_samples", "22", "--stage1_epochs", "2", "--stage2_epochs", "1", "--stage3_epochs", "0", "--save_steps",
    "3", "--eval_steps", "3", "--stage1_lr", "0.01"
]
PLAIN = [flag for flag in old_flags() if flag not in ("pack", "halve_lr")]


@pytest.fixture(scope="module")
def data(tmp_path_factory): return make(tmp_path_factory.mktemp("data"), 14)


def as_before(values):
    "The values of a configuration under the earlier names."
    earlier = {new: old for cls in (CADMLLMConfig, TrainConfig, CurriculumStage) for old, new in cls.old_names.items()}
    made = {earlier.get(k, k): v for k, v in values.items()}
    if "stages" in made: made["stages"] = [as_before(s) for s in made["stages"]]
    if made.get("points_frame") == "unit_cube": made["points_frame"] = "box"
    return made


def train_as_before(data, out, *flags):
    "A training whose files have the earlier names."
    model, settings = configs(data, out, *FLAGS, *flags)
    with pytest.MonkeyPatch.context() as patched:
        for cls in (CADMLLMConfig, TrainConfig):
            patched.setattr(cls, "to_dict", lambda self, to_dict=cls.to_dict: as_before(to_dict(self)))
        train(model, settings)


def with_warnings(function):
    "What a function returns, and the texts of its warnings."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        return function(), [str(w.message) for w in told if w.category is DeprecationWarning]


def test_the_tables_name_fields_and_every_field_is_tried():
    for cls, values in ((CADMLLMConfig, MODEL), (TrainConfig, TRAIN), (CurriculumStage, STAGE)):
        names = {f.name for f in fields(cls)}
        assert set(cls.old_names.values()) <= names and not set(cls.old_names) & names
        assert {cls.old_names.get(k, k) for k in values} == names - {"start_over"}       # not with a resume


def test_a_file_of_before_loads_to_the_same_values(tmp_path):
    (tmp_path/"c").mkdir()
    (tmp_path/"c/cad_mllm_config.json").write_text(json.dumps({"model": MODEL, "train": TRAIN}))
    (tmp_path/"m.json").write_text(json.dumps(MODEL))
    (tmp_path/"t.json").write_text(json.dumps(TRAIN))
    (model, train, notes), told = with_warnings(lambda: read_config(tmp_path/"c"))
    assert (notes, told, model.ignored, train.ignored) == ([], [], [], [])
    assert (CADMLLMConfig.load(tmp_path/"m.json"), TrainConfig.load(tmp_path/"t.json")) == (model, train)
    for config, values in ((model, MODEL), (train, TRAIN)):
        for name, value in values.items():
            new = config.old_names.get(name, name)
            if name != "use_lora": assert getattr(config, new) != getattr(type(config)(), new), name
            if name not in ("stages", "lora_target_modules", "points_frame"): assert getattr(config, new) == value, name
    assert (model.point_normalization, model.points_on_grid) == ("unit_cube", False)
    assert [s.target_val_loss for s in train.stages] == [.5, .5]
    assert (train.trackers, train.accepted) == ({"tensorboard", "wandb"}, {"no_prefix_prob", "seed"})


def test_what_is_written_has_the_current_names():
    for made in [(CADMLLMConfig.from_dict(MODEL), TrainConfig.from_dict(TRAIN)), *(RECIPES[n]() for n in RECIPES)]:
        for config in made: assert set(config.to_dict()) == {f.name for f in fields(config)}
        assert {k for s in made[1].to_dict()["stages"] for k in s} == {f.name for f in fields(CurriculumStage)}


def test_the_old_word_for_a_unit_cube():
    "A file without the key, or with the old word, means what it meant."
    assert CADMLLMConfig.from_dict({}).point_normalization == "unit_cube"
    assert CADMLLMConfig.from_dict({"points_frame": "grid"}).point_normalization == "grid"
    assert CADMLLMConfig(point_normalization="box") == CADMLLMConfig(point_normalization="unit_cube")
    assert config_from_old({"points_frame": "box", "lora_r": 8})[0].point_normalization == "unit_cube"


def test_the_model_of_the_package_loads_as_it_is():
    "Its files are sealed, so they keep the earlier names."
    folder = find_weights("small").folder
    assert "points_frame" in (folder/"cad_mllm_config.json").read_text()
    model, _, notes = read_config(folder)
    assert (model.point_normalization, model.points_on_grid, model.ignored, notes) == ("grid", True, [], [])


@pytest.mark.parametrize(
    "cls, both",
    [
        (CADMLLMConfig, dict(points_frame="box", point_normalization="grid")),
        (TrainConfig, dict(from_scratch_prob=.5, no_prefix_prob=.5)),
        (TrainConfig, dict(stages=[STAGE | {"target_val_loss": .5}]))
    ]
)
def test_both_names_are_one_error(cls, both, tmp_path):
    for make_it in (cls.from_dict, lambda values: cls(**values)):
        with pytest.raises((ConfigError, TypeError), match="is the earlier name of .*, which is given too; leave"):
            make_it(both)
    (tmp_path/"cad_mllm_config.json").write_text(
        json.dumps({"model": both if cls is CADMLLMConfig else MODEL, "train": both if cls is TrainConfig else TRAIN})
    )
    with pytest.raises(CheckpointError, match="is the earlier name of"): read_config(tmp_path)


def test_python_warns_and_obeys():
    for name, new in TrainConfig.old_names.items():
        value = TRAIN[name]
        text = f"{name} is now called {new}"
        config, told = with_warnings(lambda name=name, value=value: TrainConfig(**{name: value}))
        assert told == [text] and config == TrainConfig(**{new: value})
        found, told = with_warnings(lambda name=name, config=config: getattr(config, name))
        assert (found, told) == (value, [text])
        found, told = with_warnings(lambda name=name: getattr(TrainConfig, name))
        assert (found, told) == (getattr(TrainConfig, new), [text])
        other, told = with_warnings(lambda name=name, value=value: replace(TrainConfig(), **{name: value}))
        assert told == [text] and other == config
        other = TrainConfig()
        with_warnings(lambda name=name, value=value, other=other: setattr(other, name, value))
        assert other == config
    stage, told = with_warnings(lambda: CurriculumStage("a", {"text": 1.0}, until_val_loss=.5))
    assert stage.target_val_loss == .5 and told == ["until_val_loss is now called target_val_loss"]
    _, told = with_warnings(lambda: (TrainConfig(no_prefix_prob=1.0), replace(TrainConfig(), packing=False)))
    assert told == []


def test_data_sets_and_uploads_take_the_old_keywords(data, tmp_path):
    from cad_mllm.checkpoints import Delivery
    from cad_mllm.data import open_dataset
    for root in (data, "stream:realistic?num=3"):
        made, told = with_warnings(
            lambda root=root: open_dataset(root, from_scratch_prob=1.0, caption_drop=.5, report_path=tmp_path/"r.json")
        )
        assert (made.no_prefix_prob, made.caption_dropout_prob, len(told)) == (1.0, .5, 2)
    delivery, told = with_warnings(lambda: Delivery(tmp_path/"o", local_dir=tmp_path/"near", say=lambda text: None))
    delivery.close(0)
    assert delivery.local_dir.parent == tmp_path/"near" and len(told) == 1


def text_of(flag):
    "A value of an old flag."
    return {"points_frame": "box", "track": "wandb", "local_dir": "near", "cache_dir": "fast"}.get(flag, "1")


@pytest.mark.parametrize("flag", [*PLAIN, "pack", "halve_lr"])
def test_every_old_flag_works_with_one_line_of_advice(flag, capsys):
    parser, new = train_parser(), old_flags()[flag]
    words = [f"--{flag}", text_of(flag)] if flag in PLAIN else [f"--{flag}"]
    values = vars(parser.parse_args(words))
    assert capsys.readouterr().err == f"cad-mllm train: --{flag} is now called --{new}\n"
    assert values == vars(parser.parse_args([f"--{new}", *words[1:]])) and values[new] is not None
    assert capsys.readouterr().err == ""
    shown = parser.format_help()
    assert f"--{flag} " not in shown and f"--{flag}," not in shown and f"--{new}" in shown


@pytest.mark.parametrize("word", ["--no-pack", "--no_pack"])
def test_an_old_switch_is_turned_off(word, capsys):
    assert train_parser().parse_args([word]).packing is False
    assert capsys.readouterr().err.count("\n") == 1


def test_use_wandb_is_hidden_and_works(data, tmp_path, capsys):
    assert "use_wandb" not in train_parser().format_help()
    _, settings = configs(data, tmp_path, "--use_wandb")
    assert settings.trackers == {"wandb"}
    assert capsys.readouterr().err == "cad-mllm train: --use_wandb is now written --report_to wandb\n"


def test_the_old_flag_of_upload(tmp_path, capsys):
    from cad_mllm.cli import command_parser
    parser = command_parser("upload")
    assert parser.parse_args([str(tmp_path), "--local_dir", "near"]).staging_dir == "near"
    assert "--local_dir is now called --staging_dir" in capsys.readouterr().err
    assert "local_dir" not in parser.format_help()


def finish(out):
    "Losses of a run, and the bytes of its weights."
    rows = read_metrics(out)
    return [(r["step"], r["loss"], r.get("val_loss")) for r in rows], (out/"final_model/model.safetensors").read_bytes()


def test_a_run_of_before_resumes_exactly(data, tmp_path, capsys):
    """Its checkpoint and run_config.json have the earlier names. Nothing is said to have changed, its index is not made
    again, and what it saves from there has the current names."""
    names = ["--no_prefix_prob", "0.5", "--point_jitter_std", "0.02", "--stage1_target_val_loss", "0.001"]
    train(*configs(data, tmp_path/"whole", *FLAGS, *names))
    out = tmp_path/"o"
    train_as_before(data, out, *names, "--max_steps", "5")
    begun = json.loads((latest_checkpoint(out)/"cad_mllm_config.json").read_text())
    saved = load_checkpoint(latest_checkpoint(out), quiet=True).trainer_state
    written = json.loads((out/"run_config.json").read_text())
    for values in (begun["train"], saved["train_config"], written["train"]):
        assert values["from_scratch_prob"] == .5 and values["stages"][0]["until_val_loss"] == .001
        assert not {"no_prefix_prob", "packing", "staging_dir"} & set(values)
    assert begun["model"]["points_frame"] == "grid" == saved["config"]["points_frame"]
    index = [(out/name).stat().st_ino for name in ("data_index.npz", "data_index_val.npz")]
    assert read_run_config(out)["train"]["no_prefix_prob"] == .5
    capsys.readouterr()
    train(*configs(data, out, *FLAGS, *names, "--resume_from_ckpt", "auto"))
    said = capsys.readouterr()
    assert " was " not in said.out and "now called" not in said.err
    assert next(e for e in read_events(out) if e["event"] == "resume")["changes"] == []
    assert [(out/name).stat().st_ino for name in ("data_index.npz", "data_index_val.npz")] == index
    assert finish(out) == finish(tmp_path/"whole")
    for path in (latest_checkpoint(out)/"cad_mllm_config.json", out/"run_config.json"):
        assert set(json.loads(path.read_text())["train"]) == {f.name for f in fields(TrainConfig)}


def test_changes_are_found_and_accepted_under_both_names(data, tmp_path):
    out = tmp_path/"o"
    train_as_before(data, out, "--max_steps", "3")
    other = [*FLAGS, "--resume_from_ckpt", "auto", "--from_scratch_prob", "0.9", "--max_steps", "4"]
    with pytest.raises(ChangedError, match="no_prefix_prob was 0.25, is 0.9.*\n.*--accept_changes no_prefix_prob"):
        train(*configs(data, shutil.copytree(out, tmp_path/"refused"), *other))
    for name in ("from_scratch_prob", "no_prefix_prob"):
        copy = shutil.copytree(out, tmp_path/name)
        assert train(*configs(data, copy, *other, "--accept_changes", name)).step == 4
        changed, = next(e for e in read_events(copy) if e["event"] == "resume")["changes"]
        assert changed.startswith("no_prefix_prob was 0.25")


def test_the_panel_takes_a_command_of_before(tmp_path):
    "Flags of the command that a run was started with keep their values under the current names."
    words = ("--recipe", "tiny", "--cache_dir", "/fast", "--from_scratch_prob=0.5", "--point_noise", "0.1")
    command = train_command(TrainForm(str(tmp_path), resume_from="latest", previous=words))
    read = train_parser().parse_args(command[4:])
    assert (read.shard_cache_dir, read.no_prefix_prob, read.point_jitter_std) == ("/fast", .5, .1)
    assert not [w for w in command if w.lstrip("-") in old_flags()]
    (tmp_path/"run_config.json").write_text(json.dumps(dict(model=MODEL, train=TRAIN, command=list(words))))
    known = read_run_config(tmp_path)
    assert set(known["train"]) == set(recipe("tiny")[1].to_dict()) - {"start_over"}
    assert known["model"]["point_normalization"] == "unit_cube"
