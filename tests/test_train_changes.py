"Going on under other circumstances: named before the first step, with what it means and the flag that accepts it."
import json
import shutil
from dataclasses import replace

import pytest
import torch

from cad_mllm.checkpoints import latest_checkpoint, load_checkpoint
from cad_mllm.config import CHANGES, ConfigError, CurriculumStage, TrainConfig
from cad_mllm.models import CADMLLMModel
from cad_mllm.training import (
    ChangedError, CHOICE, MEANINGS, open_data, OTHER_RUN, read_events, read_metrics, SAME_DATA, Split, train, Trainer,
    World)
from small_data import make
from train_runs import Training, configs

FLAGS = [
    "--max_train_samples", "22", "--stage1_epochs", "4", "--stage2_epochs", "1", "--stage3_epochs", "0", "--save_steps",
    "0"
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"), 14)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    "A run of 8 of its 30 steps."
    out = tmp_path_factory.mktemp("begun")/"o"
    Training(data, out, *FLAGS, "--max_steps", "8").wait(0)
    return out


@pytest.fixture
def run(begun, tmp_path): return shutil.copytree(begun, tmp_path/"o")


@pytest.fixture(scope="module")
def trainer(data, begun, tmp_path_factory):
    "A trainer at the beginning of such a resume, and the state it resumes from."
    model, settings = configs(data, tmp_path_factory.mktemp("t")/"o", *FLAGS)
    made = Trainer(model, settings)
    made.state.output_dir.mkdir()
    open_data(made.state, made.output)
    loaded = load_checkpoint(latest_checkpoint(begun), quiet=True)
    made.state.checkpoint = loaded.path
    return made, loaded


def changes_of(trainer, model=None, world=1, **settings):
    "What a trainer with other settings finds, and what it would go on with."
    made, loaded = trainer
    state = made.state
    kept = state.config, state.train_config, state.world, state.asked
    if model: state.config = replace(state.config, **model)
    state.train_config, state.world = replace(state.train_config, **settings), World(0, world)
    state.asked = [state.train_config.batch_size, state.train_config.gradient_accumulation_steps]
    made.resumption.take_progress(loaded, loaded.trainer_state, 0)
    try: return made.resumption.find_changes(loaded.trainer_state), state.train_config
    finally: state.config, state.train_config, state.world, state.asked = kept


def test_nothing_changed_is_nothing_said(trainer): assert changes_of(trainer)[0] == []


QUIET = dict(
    output_dir="elsewhere", shard_cache_dir="near", max_steps=50, max_minutes=5.0, logging_steps=3, save_steps=7,
    save_minutes=1.0, keep_last_n_checkpoints=9, eval_steps=4, num_workers=2, init_from="small", start_over=True,
    take_over=True, device="auto", resume_from_ckpt="latest", checkpoint_name="c{step}", use_wandb=True,
    report_to="tensorboard", num_logged_completions=1, notify="http://localhost", feature_cache="near",
    accept_changes="data", dist_timeout_minutes=3.0, deterministic=True, max_nonfinite_steps=5,
    halve_lr_on_rollback=True
)
CHANGED = dict(
    batch_size=16, seed=1, no_prefix_prob=.5, packing=False, max_tokens_per_batch=200, use_gradient_checkpointing=True,
    warmup_steps=7, schedule_to="max_steps", weight_decay=.5, max_grad_norm=2.0, projector_lr_multiplier=2.0,
    new_token_lr_multiplier=2.0, gradient_accumulation_steps=3, compile=True, fsdp=True, max_views=2,
    caption_dropout_prob=.5, point_jitter_std=.1, point_dropout_ratio=.2, point_crop_ratio=.3, point_hole_ratio=.1,
    point_jitter_prob=.5, no_normals_prob=.1, estimated_normals_prob=.2
)
MODEL = dict(
    max_seq_length=900, num_points=32, image_size=64, point_normalization="unit_cube", image_encoder_name="",
    point_encoder_name="",
    llm_model_name="x", dtype="bfloat16", load_in_4bit=True, lora_dropout=.5, projector_dropout=.5,
    freeze_image_encoder=False, freeze_point_encoder=True
)


def test_every_setting_is_either_compared_or_without_meaning(trainer):
    "A field added to the configurations later has to be sorted in here, or this fails."
    # told by fingerprints
    data = {
        "data_root", "truncated_json_root", "omnicad_txt_path", "omnicad_json_root", "omnicad_img_root",
        "omnicad_pc_root", "max_train_samples", "num_val_samples"
    }
    by_hand = {
        "stages", "start_from_stage", "batch_size", "gradient_accumulation_steps", "staging_dir",
        "max_staged_checkpoints"
    }
    assert set(vars(TrainConfig())) == data | by_hand | set(QUIET) | set(CHANGED)
    for name, value in QUIET.items(): assert changes_of(trainer, **{name: value})[0] == [], name
    for name, value in CHANGED.items():
        found, = changes_of(trainer, **({name: value} | ({"max_steps": 50} if name == "schedule_to" else {})))[0]
        assert str(value) in str(found) and found.kind == (MEANINGS[name][1] if name in MEANINGS else OTHER_RUN), name
    for name, value in MODEL.items():
        found, = changes_of(trainer, model={name: value} | ({"use_lora": True} if name == "load_in_4bit" else {}))[0]
        assert (found.was, found.now, found.kind) == (getattr(trainer[0].state.config, name), value, MEANINGS[name][1])
    assert {c[0] for c in MEANINGS.values() if c[1] == OTHER_RUN} <= set(CHANGES)


def test_stages_are_compared_from_the_one_that_goes_on(trainer):
    one, two, three = trainer[0].state.train_config.stages
    found, _ = changes_of(
        trainer, stages=[replace(one, lr=1.0, num_epochs=9), replace(two, modality_probs={"text": 1.0}), three]
    )
    assert [(c.name, c.kind) for c in found] == [
        ("stage1_text.num_epochs", CHOICE), ("stage1_text.lr", CHOICE), ("modality_probs", OTHER_RUN)
    ]


def test_other_processes_keep_the_step(trainer):
    found, settings = changes_of(trainer, world=2)
    assert (settings.batch_size, settings.gradient_accumulation_steps) == (2, 1)
    assert (
        [
            (c.name, c.kind, c.was, c.now) for c in found
        ] == [("number of processes", SAME_DATA, Split(4, 1, 1), Split(2, 1, 2))]
        and "same data, not bit-exact" in str(found[0])
    )
    with pytest.raises(
        ChangedError, match="the 4 samples of a step cannot be divided evenly; start 1, 2 or 4 processes"
    ):
        changes_of(trainer, world=3)
    found, settings = changes_of(trainer, world=3, accept_changes="batch_size")
    assert settings.batch_size == 4 and found[0].kind == OTHER_RUN


def test_accumulating_instead_keeps_the_step(trainer):
    found, settings = changes_of(trainer, batch_size=2, gradient_accumulation_steps=2)
    assert [(c.name, c.kind) for c in found] == [("batch_size", SAME_DATA)] and settings.batch_size == 2


def test_refused_before_anything_happens(run, data, tmp_path):
    "One refusal names every change and the one flag for all of them; the run's files are as they were."
    other = shutil.copytree(data, tmp_path/"data")
    next((other/"json/0000").glob("*5_00001.json")).unlink()
    before = {
        p: p.read_bytes() for p in run.rglob("*") if p.is_file()
        and p.name not in (
            "status.json", "data_index.npz", "data_index_val.npz", "data_report.json", "data_report_val.json"
        )
    }
    refused = Training(
        other, run, *FLAGS, "--batch_size", "16", "--max_seq_length", "900", "--seed", "3", "--resume_from_ckpt", "auto"
    )
    refused.wait(1)
    assert "Traceback" not in refused.text
    for line in (
        "batch_size was 4 samples per step (4 at once x 1 x 1 process), is 16",
        "max_seq_length was 1024, is 900: other samples fit", "seed was 0, is 3: samples come in another order",
        "data was ", "--accept_changes data,batch_size,max_seq_length,seed"
    ):
        assert line in refused.text
    assert json.loads((run/"status.json").read_text())["state"] == "failed"
    assert before == {p: p.read_bytes() for p in before} and len(read_metrics(run)) == 8
    half = Training(
        other, run, *FLAGS, "--batch_size", "16", "--seed", "3", "--resume_from_ckpt", "auto", "--accept_changes",
        "batch_size"
    )
    half.wait(1)
    assert "--accept_changes data,seed" in half.text and len(read_metrics(run)) == 8


def test_accepted_it_goes_on_and_says_so(run, data):
    """With a batch four times as large the learning rate continues from where it was, down to the end of the stage;
    the acceptance holds for this once."""
    before = read_metrics(run)
    done = Training(
        data, run, *FLAGS, "--batch_size", "16", "--resume_from_ckpt", "auto", "--accept_changes", "batch_size",
        "--stage2_epochs", "0"
    )
    done.wait(0)
    assert "is 16 samples per step (16 at once x 1 x 1 process)" in done.text and "(accepted)" in done.text
    after = read_metrics(run)[8:]
    lrs = [r["lr"] for r in after]
    assert lrs == sorted(lrs, reverse=True) and min(lrs) > 0 and lrs[0] == pytest.approx(before[-1]["lr"], rel=.3)
    assert [r["samples"] for r in before[-1:] + after] == [30, 44, 60, 66, 82, 88]      # of 4 epochs of 22
    event = next(e for e in read_events(run) if e["event"] == "resume")
    assert (
        "batch_size was 4" in event["changes"][0]
        and [c.split()[0] for c in event["changes"]] == ["batch_size", "stage2_text_pc.num_epochs"]
    )
    saved = load_checkpoint(latest_checkpoint(run), quiet=True)
    assert (
        saved.train_config.accept_changes == "" and saved.train_config.batch_size == 16
        and json.loads((run/"run_config.json").read_text())["train"]["accept_changes"] == ""
    )


def test_a_chosen_learning_rate_takes_effect(run, data):
    done = Training(
        data, run, *FLAGS, "--stage1_lr", "1e-5", "--weight_decay", "0.3", "--resume_from_ckpt", "auto", "--max_steps",
        "10"
    )
    done.wait(0)
    assert "stage1_text.lr was 0.002, is 1e-05: takes effect from here" in done.text
    rows = read_metrics(run)
    assert rows[7]["lr"] > 1e-3 and 0 < rows[9]["lr"] < rows[8]["lr"] <= 1e-5
    groups = load_checkpoint(latest_checkpoint(run), quiet=True).trainer_state["optimizer"]["param_groups"]
    assert {g["weight_decay"] for g in groups} == {0.3, 0.0}


def test_changed_data_go_on_from_the_same_share_of_the_epoch(run, data):
    "Half the samples: from 8 of 24 steps to the same third of a shorter stage."
    done = Training(
        data, run, *FLAGS, "--max_train_samples", "11", "--resume_from_ckpt", "auto", "--accept_changes", "data",
        "--stage2_epochs", "0"
    )
    done.wait(0)
    assert "other samples follow, from the same share of the epoch on" in done.text
    assert [r["epoch"] for r in read_metrics(run)[8:]] == [1]*2 + [2]*3 + [3]*3      # the second epoch was a third done


def test_a_stage_of_another_name_begins_with_the_weights(run, data):
    model, settings = configs(data, run, *FLAGS, "--resume_from_ckpt", "auto", "--max_steps", "9")
    result = train(model, replace(settings, stages=[CurriculumStage("mine", {"text": 1.0}, 1, 1e-3)]))
    assert result.step == 9 and read_metrics(run)[-1]["stage"] == "mine" and read_metrics(run)[-1]["epoch"] == 0


def test_an_older_release_did_not_record_the_batch(trainer):
    "States with `world_size` and no `batch`, as 0.1.0 wrote them."
    made, loaded = trainer
    state = {
        k: v for k, v in loaded.trainer_state.items()
        if k not in ("batch", "val_fingerprint", "device", "threads", "torch")
    } | {"world_size": 2}
    made.resumption.take_progress(loaded, state, 0)
    kept = made.state.train_config
    try:
        found = made.resumption.find_changes(state)
        now = made.state.train_config
    finally: made.state.train_config = kept
    assert (
        [(c.name, c.was, c.now) for c in found] == [("number of processes", Split(4, 1, 2), Split(4, 2, 1))]
        and now.gradient_accumulation_steps == 2
    )


def test_base_weights_replaced_under_the_same_name(data, tmp_path):
    """A local base is overwritten by another training of it: named and refused; accepted it goes on; the same
    weights again are no change."""
    base, out = tmp_path/"base", tmp_path/"o"
    config, settings = configs(data, out, *FLAGS, "--max_steps", "2", "--use_lora", "--lora_r", "4")
    llm = CADMLLMModel(replace(config, use_lora=False))
    llm.llm.save_pretrained(base)
    llm.tokenizer.save_pretrained(base)
    config = replace(config, llm_model_name=str(base), llm_config={})
    train(config, settings)
    again = replace(settings, resume_from_ckpt="auto", max_steps=3)
    assert train(config, again).step == 3
    with torch.no_grad(): llm.llm.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    llm.llm.save_pretrained(base)
    with pytest.raises(
        ChangedError,
        match=f"base_model was {base} with weights [0-9a-f]{{12}}, is .*the language model has the same name and other "
        "weights"
    ):
        train(config, replace(again, max_steps=4))
    assert train(config, replace(again, max_steps=4, accept_changes="base_model")).step == 4


@pytest.mark.parametrize(
    "change", [dict(lora_alpha=64), dict(lora_target_modules=("q_proj",)), dict(sequence_format="text")], ids=str
)
def test_train_from_python_compares_as_the_command_line_does(change, data, tmp_path):
    out = tmp_path/"o"
    config, settings = configs(
        data, out, *FLAGS, "--max_steps", "1", "--use_lora", "--lora_r", "4", "--lora_alpha", "8"
    )
    train(config, settings)
    (name, value), = change.items()
    with pytest.raises(ConfigError, match=f"{name}=.*the checkpoint has .*start a new run without resume_from_ckpt"):
        train(replace(config, **change), replace(settings, resume_from_ckpt="auto"))


def test_the_learning_rate_follows_max_steps_only_when_asked(data, tmp_path):
    """`max_steps` is an exact pause; with `schedule_to` the rate has fallen when it is reached. Both enter the time
    that is left."""
    def rates(out, *flags):
        config, settings = configs(data, out, *FLAGS, "--stage1_lr", "0.01", *flags)
        train(config, settings)
        return [r["lr"] for r in read_metrics(out)], json.loads((out/"status.json").read_text())
    paused, status = rates(tmp_path/"a", "--max_steps", "5")
    assert status["total_steps"] == 5 and status["eta_seconds"] == 0
    asked, _ = rates(tmp_path/"b", "--max_steps", "5", "--schedule_to", "max_steps")
    assert paused[-1] > .008 and asked[-1] < .004


@pytest.mark.parametrize(
    "wrong, text",
    [
        (dict(checkpoint_name="{step}/x"), "plain folder name"),
        (dict(checkpoint_name="{step}{loss:d}"), "checkpoint_name="),
        (dict(schedule_to="max_steps"), "give max_steps as well"),
        (dict(stages=[CurriculumStage("one", {"text": 1.0}, 0)]), "every stage is left out")
    ],
    ids=str
)
def test_what_cannot_be_trained_is_refused_before_the_run_starts(wrong, text, data, tmp_path):
    config, settings = configs(data, tmp_path/"o", *FLAGS)
    with pytest.raises(ConfigError, match=text): train(config, replace(settings, **wrong))
    assert not (tmp_path/"o").exists()
