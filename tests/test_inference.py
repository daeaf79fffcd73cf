"""Completion end to end: a thousand constrained samples, real beginnings, transformers' own generate, workers that
hang, old checkpoints, broken text."""
import json, os, subprocess, sys, time, zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cad_mllm.cad import CADFormatError, CADProgram, Frame, circle, rectangle, truncation_counts
from cad_mllm.checkpoints import list_checkpoints, save_checkpoint
from cad_mllm.config import CADMLLMConfig
from cad_mllm.data import Sample
from cad_mllm.data.points import prepare_points
from cad_mllm.finishing import propose_rest
from cad_mllm.geometry import build_solid
from cad_mllm.geometry.clouds import is_connected
from cad_mllm.metrics import overlap
from cad_mllm.completion import Candidate, InputError
from cad_mllm.inference import CADAutocomplete, autocomplete_cad
from cad_mllm.models import GrammarLogitsProcessor
from cad_mllm.models import CADMLLMModel
from cad_mllm.data import FAMILIES
from cad_mllm.cad import decode, decode_rest, encode_partial, min_length, read_state

TINY = CADMLLMConfig(
    llm_model_name="tiny", use_lora=False, image_encoder_name="tiny", image_size=32, point_encoder_hidden_dim=32,
    num_points=64, num_point_tokens=4, projector_hidden_dim=32, max_seq_length=1024, dtype="float32",
    llm_config=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1)
)


@pytest.fixture(scope="module")
def model(): return CADMLLMModel(TINY).eval()


@pytest.fixture(scope="module")
def autocomplete(model): return CADAutocomplete(model, kernel="manifold")


@pytest.fixture()
def plate():
    p = CADProgram()
    p.sketch([rectangle(0, 0, .08, .05), circle(.02, .025, .008)])
    p.extrude(.01)
    p.sketch(circle(.055, .025, .012), frame=Frame(origin=(0, 0, .01)))
    p.extrude(.02, "join")
    return p


def beginnings(num):
    "Beginnings of synthetic parts, every sixth one nothing at all."
    rng, names, out = np.random.default_rng(0), sorted(FAMILIES), []
    while len(out) < num:
        program, _ = FAMILIES[names[len(out) % len(names)]](rng)
        out += [None if len(out) % 6 == 0 else program.truncate(n) for n in truncation_counts(len(program))]
    return out[:num]


def write(model, partials, budgets, temperature, seed):
    "Constrained samples as tokens."
    prefixes = [[] if p is None else encode_partial(p) for p in partials]
    prompts = model.builder.prompts([Sample(prefix=p) for p in prefixes])
    rows = model.generate(
        prompts, max(budgets), GrammarLogitsProcessor(model.tokenizer, prefixes, budgets), temperature=temperature,
        generator=torch.Generator().manual_seed(seed)
    )
    return [model.tokenizer.convert_ids_to_tokens(r) for r in rows]


def check(partial, tokens, budget):
    "A sequence ends in time, decodes, keeps what was given, and is a history that reads again."
    assert len(tokens) <= budget and tokens[-1] == "<end>"
    program = decode(tokens) if partial is None else decode_rest(partial, tokens)
    if partial is not None:
        assert (
            all(program.entities[k] == e for k, e in partial.entities.items())
            and program.sequence[:len(partial)] == partial.sequence
        )
    assert CADProgram.from_json(json.loads(json.dumps(program.to_json()))).to_json() == program.to_json()


def test_a_thousand_samples_of_an_untrained_model_parse(model):
    partials, rng, done = beginnings(100), np.random.default_rng(1), 0
    least = [min_length(read_state([] if p is None else encode_partial(p))) for p in partials]
    for seed, temperature in enumerate((0., .3, .6, .8, 1., 1., 1.3, 2., 5., 50.)):
        budgets = [n + int(rng.choice([0, 1, 2, 7, 20, 50])) for n in least]
        for partial, tokens, budget in zip(partials, write(model, partials, budgets, temperature, seed), budgets):
            check(partial, tokens, budget)
            done += 1
    assert done == 1000


def test_real_beginnings_are_continued(model):
    root = os.environ.get("OMNI_CAD_ROOT")
    if not root: pytest.skip("set OMNI_CAD_ROOT to a folder with json/ of real histories")
    partials = []
    for path in sorted(Path(root).glob("json/*/*.json"))[:60]:
        program = CADProgram.from_json(path)
        partials += [program.truncate(n) for n in truncation_counts(len(program), 2)]
    partials = [p for p in partials if len(encode_partial(p)) < 600]
    assert len(partials) > 40
    for at in range(0, len(partials), 40):
        some = partials[at:at + 40]
        for partial, tokens in zip(some, write(model, some, [60]*len(some), 1., at)): check(partial, tokens, 60)


def test_processor_serves_transformers_generate(model, plate):
    from transformers import GenerationConfig, LogitsProcessorList
    prefixes = [encode_partial(plate.truncate(n)) for n in (1, 2)]
    batch = model.builder.prompts([Sample(caption="a plate", prefix=p) for p in prefixes])
    mask = (batch.segment_ids >= 0).long()
    config = GenerationConfig(
        do_sample=True, max_new_tokens=50, pad_token_id=model.tokenizer.pad_token_id, eos_token_id=model.eos_token_ids()
    )
    for given in (dict(inputs_embeds=model.embed(batch)), dict(input_ids=batch.input_ids)):
        skip = 0 if "inputs_embeds" in given else batch.input_ids.shape[1]
        torch.manual_seed(0)
        processor = GrammarLogitsProcessor(model.tokenizer, prefixes, 50, num_given=skip)
        ids = model.llm.generate(
            **given, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
        )[:, skip:]
        for partial, row in zip((plate.truncate(1), plate.truncate(2)), ids.tolist()):
            tokens = model.tokenizer.convert_ids_to_tokens(row)
            check(partial, tokens[:tokens.index("<end>") + 1], 50)


def test_a_broken_model_still_gives_a_part(plate):
    broken = CADMLLMModel(TINY)
    with torch.no_grad(): broken.llm.get_output_embeddings().weight.fill_(torch.nan)
    for temperature in (0., 1.):
        result = CADAutocomplete(broken, kernel="manifold").complete(
            plate.truncate(2), temperature=temperature, max_new_tokens=40
        )
        assert result["metadata"]["total_operations"] == len(CADProgram.from_json(result)) >= 2


def test_a_file_is_kept_to_the_byte(autocomplete, plate, tmp_path):
    source = plate.truncate(2).to_json()
    source["entities"]["S0"] = dict(reversed(list(source["entities"]["S0"].items())), note={"kept": [1, 2.50]})
    source["properties"] = {"bounding_box": {"of": "another part"}, "author": "me"}
    source["sequence"][0]["index"] = 4
    source["sequence"][1]["index"] = 7
    path = tmp_path/"part.json"
    path.write_text(json.dumps(source))
    result = autocomplete.complete(
        path, "a plate", temperature=1., seed=1, max_new_tokens=40, out=tmp_path/"out.json", formats=("json", "stl")
    )
    stored = json.loads((tmp_path/"out.json").read_text())
    assert stored == result and "truncation_metadata" not in stored
    for k, e in source["entities"].items(): assert json.dumps(stored["entities"][k]) == json.dumps(e)
    assert stored["sequence"][:2] == source["sequence"] and stored["properties"]["author"] == "me"
    assert [s["index"] for s in stored["sequence"]] == [4, 7, *range(8, 6 + len(stored["sequence"]))]
    assert "of" not in stored.get("properties", {}).get("bounding_box", {})
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]
    again = autocomplete.complete(stored, max_new_tokens=40)
    assert again["metadata"]["partial_operations"] == len(stored["sequence"])


def hang(*args): time.sleep(600)


def test_a_kernel_that_hangs_costs_a_note(model, plate, monkeypatch):
    monkeypatch.setattr("cad_mllm.completion_candidates.build_solid", hang)
    result = CADAutocomplete(model, kernel="manifold", timeout=.2).complete(plate.truncate(2), max_new_tokens=40)
    assert result["metadata"]["valid"] is False
    assert any("no answer within" in n for n in result["metadata"]["notes"])


def test_without_opencascade_the_light_kernel_checks(model, plate, monkeypatch):
    import cad_mllm.completion_candidates as completion_candidates
    from cad_mllm.geometry import GeometryError
    def isolated(func, program, kernel, timeout):
        if kernel == "occ":
            raise GeometryError(
                "OpenCascade is not installed: pip install cadquery-ocp, or use kernel='manifold'"
            )
        return func(program, kernel)
    monkeypatch.setattr(completion_candidates, "isolated", isolated)
    completer = CADAutocomplete(model)
    assert completer.checker.check(plate)[0].kernel == "manifold" and "without STEP" in completer.notes[0]


def test_checkpoints_in_every_form(model, plate, tmp_path):
    path = save_checkpoint(model, tmp_path, stage="stage1_text", step=3, epoch=0, loss=1.0)
    wanted = CADAutocomplete(model, kernel="manifold").complete(
        plate.truncate(2), "a plate", max_new_tokens=40, check=False
    )
    for checkpoint in (path, str(path), tmp_path, list_checkpoints(path)[0]):
        result = autocomplete_cad(
            checkpoint, plate.truncate(2), "a plate", device="cpu", max_new_tokens=40, check=False
        )
        assert (result["entities"], result["sequence"]) == (wanted["entities"], wanted["sequence"])
        assert Path(result["metadata"]["checkpoint"]).name in (path.name, "checkpoint-best")
    weights = next(path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not loaded"): CADAutocomplete(path)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        CADAutocomplete(tmp_path/"stage1_text"/"empty" if (tmp_path/"stage1_text"/"empty").mkdir() is None else "")


@pytest.mark.parametrize("lora", [False, True])
def test_save_pretrained_then_complete(lora, plate, tmp_path):
    """What users of Hugging Face write first; cut short it is refused, and so is a checkpoint that has lost its
    manifest."""
    model = CADMLLMModel(replace(TINY, use_lora=lora, lora_r=4)).eval()
    model.save_pretrained(tmp_path/"mine")
    wanted, found = (
        CADAutocomplete(m, device="cpu", kernel="manifold").complete(plate.truncate(2), max_new_tokens=40, check=False)
        for m in (model, tmp_path/"mine")
    )
    assert (found["entities"], found["sequence"]) == (wanted["entities"], wanted["sequence"])
    weights = next((tmp_path/"mine").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not loaded"): CADAutocomplete(tmp_path/"mine")
    path = save_checkpoint(model, tmp_path, stage="stage1_text", step=3, epoch=0, loss=1.0)
    (path/"manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json: is missing"): CADAutocomplete(path)


def test_a_trained_row_survives_the_checkpoint(plate, tmp_path):
    "The rows of CAD tokens are part of what was trained; a loaded model must write what the saved one did."
    for name, config in dict(full=TINY, lora=replace(TINY, use_lora=True, lora_r=2)).items():
        trained = CADMLLMModel(config)
        with torch.no_grad():
            for n, p in trained.named_parameters():
                if p.requires_grad: p += .05*torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n)))
        path = save_checkpoint(trained, tmp_path/name, stage="s", step=1, epoch=0, loss=1.0)
        settings = dict(max_new_tokens=60, check=False)
        a, b = (
            CADAutocomplete(c, device="cpu").complete(plate.truncate(2), "a plate", **settings) for c in (trained, path)
        )
        assert a["entities"] == b["entities"], name


def test_an_old_json_checkpoint_completes(plate, tmp_path):
    """No manifest, a config.pt, adapters on a base that the adapter names: generates through the same class, and
    what it writes is recovered."""
    config = replace(TINY, sequence_format="json", max_seq_length=4000, image_encoder_name="", point_encoder_name="")
    base = CADMLLMModel(config)
    base.llm.save_pretrained(tmp_path/"base")
    base.tokenizer.save_pretrained(tmp_path/"base")
    old = tmp_path/"out"/"checkpoint-epoch0-step100"
    settings = dict(llm_model_name=str(tmp_path/"base"), use_lora=True, lora_r=2)
    CADMLLMModel(replace(config, **settings)).save_pretrained(old)
    for name in ("cad_mllm_config.json", "tokenizer.json", "tokenizer_config.json"): (old/name).unlink()
    torch.save(
        {**settings, "image_encoder_name": "", "point_encoder_name": "", "max_seq_length": 4000, "dtype": "float32"},
        old/"config.pt"
    )
    torch.save({"epoch": 0, "step": 100}, old/"trainer_state.pt")
    completer = CADAutocomplete(old, device="cpu", kernel="manifold")
    assert completer.codec.name == "json"
    result = completer.complete(plate.truncate(2), "a plate", max_new_tokens=30)
    assert (
        result["entities"] == plate.truncate(2).to_json()["entities"]
        and result["metadata"]["generated_operations"] == 0
    )
    asked = completer.reader.read(plate.truncate(2), "a plate")
    said = completer.model.tokenizer.encode(completer.codec.split(plate, 2)[1], add_special_tokens=False)
    counts = [completer.sampler.decode(said[:n], asked).num_new for n in range(0, len(said), 40)]
    assert counts == sorted(counts) and counts[0] == 0 and completer.sampler.decode(said, asked).num_new == 2


def test_broken_text_of_a_real_model_does_no_harm(tmp_path):
    root = os.environ.get("OMNI_CAD_ROOT")
    raw = Path(root).parent/"broken-output"/"cad_3_raw.txt" if root else None
    if raw is None or not raw.exists():
        pytest.skip("set OMNI_CAD_ROOT to a folder with json/ that has broken-output/ beside it")
    completer = CADAutocomplete(
        CADMLLMModel(replace(TINY, sequence_format="json", max_seq_length=16384)), kernel="manifold"
    )
    caption, _, text = raw.read_text().partition("\n")
    ids = completer.model.tokenizer.encode(text, add_special_tokens=False)
    completer.sampler.sample = lambda requests, budgets, **k: [completer.sampler.decode(ids, r) for r in requests]
    result = completer.complete(caption=caption, out=tmp_path/"out.json")
    assert result["metadata"]["total_operations"] == len(result["sequence"])
    assert result["metadata"]["valid"] or result["metadata"]["notes"]
    for cut in range(0, len(ids), 400):
        candidate = completer.sampler.decode(ids[:cut], completer.reader.read(caption=caption))
        assert candidate.program is not None or candidate.reason


@pytest.mark.parametrize(
    "request_, words",
    [
        (dict(), "no input: pass"), (dict(partial_json="none.json"), "none.json: the file cannot be read"),
        (dict(image="none.png"), "image='none.png'"), (dict(point_cloud="none.npz"), "point_cloud='none.npz'"),
        (dict(point_cloud="part.dwg"), "unknown suffix"), (dict(point_cloud=np.full((9, 3), np.nan)), "without extent"),
        (dict(caption="x", max_new_tokens=2), "at least"), (dict(caption="word "*3000), "leaves no room"),
        (dict(caption="x", num=0), "num=0"), (dict(caption="x", temperature=-1), "temperature=-1"),
        (dict(caption="x", formats=("dwg",)), "formats='dwg'")
    ]
)
def test_a_request_that_cannot_be_served_says_why(autocomplete, request_, words):
    with pytest.raises((InputError, CADFormatError)) as e: autocomplete.complete(**request_)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_a_batch_gives_what_each_gives_alone(autocomplete, plate):
    rng = np.random.default_rng(0)
    cloud, picture = rng.normal(size=(200, 3)), rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    items = [
        dict(
            partial_json=p, caption="a part "*(i % 5), **({"point_cloud": cloud} if i % 3 == 0 else {}),
            **({"image": picture} if i % 4 == 0 else {})
        )
        for i, p in enumerate(beginnings(12))
    ]
    items = [i for i in items if len(i) > 2 or i["caption"] or i["partial_json"] is not None]
    together = autocomplete.complete_many(items, batch_size=5, max_new_tokens=50, check=False)
    for item, result in zip(items, together, strict=True):
        alone = autocomplete.complete(**item, max_new_tokens=50, check=False)
        assert (alone["entities"], alone["sequence"]) == (result["entities"], result["sequence"])


def test_the_first_of_several_candidates_is_the_greedy_one(autocomplete):
    requests = [autocomplete.reader.read(p, "a part") for p in beginnings(3)[1:]]
    budgets = [60]*len(requests)
    for check in ("end", "kernel"):
        greedy = [c.ids for c in autocomplete.sampler.sample(requests, budgets, check=check)]
        drawn = [c.ids for c in autocomplete.sampler.sample(requests, budgets, num=3, temperature=1.0, check=check)]
        assert drawn[::3] == greedy
        for k in (1, 2): assert all(ids != likeliest for ids, likeliest in zip(drawn[k::3], greedy))


def test_an_evaluation_lies_beside_its_checkpoint(model, tmp_path):
    from cad_mllm.checkpoints import verify_checkpoint
    from cad_mllm.evaluation_tables import BASELINE, CEILING, find_evaluation
    from cad_mllm.evaluation import evaluate
    from cad_mllm.data import synthesize
    synthesize(tmp_path/"data", num=6)
    path = save_checkpoint(model, tmp_path/"out", stage="stage1_text", step=1, epoch=0, loss=1.0)
    report = evaluate(
        path, tmp_path/"data", num=5, split="all", modalities=("text", "text+points"), kernel="manifold",
        max_new_tokens=40, num_points=200, device="cpu"
    )
    assert verify_checkpoint(path) == [] and len(list_checkpoints(tmp_path/"out")) == 2
    stored = find_evaluation(path)
    assert (
        [r["name"] for r in stored["table"]] == [BASELINE, "text", CEILING]
        and any("text+points" in n for n in stored["notes"])
    )
    rows = {r["name"]: r for r in report.rows}
    assert (
        rows["text"]["reads"] == 1 and rows["text"]["num"] == 5 and rows[CEILING]["iou"] > .999
        and rows[BASELINE]["adds"] == 0
    )
    again = evaluate(
        path, tmp_path/"data", num=5, split="all", modalities=("text",), kernel="manifold", max_new_tokens=40,
        num_points=200, device="cpu"
    )
    assert again.rows[1] == rows["text"]


def test_separate_bodies_are_said():
    "Two bodies far apart build, and are not one part."
    from cad_mllm.cad import CADProgram, rectangle
    from cad_mllm.completion import solid_words
    from cad_mllm.geometry import build_solid
    part = CADProgram()
    part.sketch(rectangle(0, 0, .02, .02))
    part.extrude(.01)
    part.sketch(rectangle(.1, 0, .02, .02))
    part.extrude(.01, "join")
    solid = build_solid(part, kernel="manifold")
    assert (
        solid.num_bodies == 2
        and solid_words(solid.is_valid, solid.num_bodies) == "a valid solid, but 2 separate bodies"
    )


def box(x, size=.02, height=.01):
    "A square box at x, metres."
    part = CADProgram()
    part.sketch(rectangle(x, 0, size, size))
    part.extrude(height)
    return part


def two_boxes(gap=.08):
    "Two square boxes with a gap between them."
    part = box(0)
    part.sketch(rectangle(.02 + gap, 0, .02, .02))
    part.extrude(.01, "join")
    return part


def as_candidate(autocomplete, program, score=0.):
    "A candidate as if the model had written it, built."
    solid, _ = autocomplete.checker.check(program)
    return Candidate([], program, 1, score=score, solid=solid, valid=True)


def test_one_body_ranks_first_where_the_beginning_or_the_cloud_is_one_body(autocomplete, monkeypatch):
    """Two bodies that the model likes more, or that fit a little better, come after one; where the points are two
    bodies they come first."""
    one, two = as_candidate(autocomplete, box(0, .1)), as_candidate(autocomplete, two_boxes(.06))
    liked, selector = {id(two): -1., id(one): -2.}, autocomplete.selector
    monkeypatch.setattr(autocomplete.selector, "log_likelihood", lambda request, candidate: liked[id(candidate)])
    assert autocomplete.selector.select(autocomplete.reader.read(box(0)), [two, one]) is one
    assert autocomplete.selector.select(autocomplete.reader.read(caption="two boxes"), [two, one]) is two

    twin = as_candidate(autocomplete, two_boxes(.06))       # three candidates are chosen by agreement: the twins agree
    assert autocomplete.selector.select(autocomplete.reader.read(box(0)), [two, twin, one]) is one
    assert autocomplete.selector.select(autocomplete.reader.read(caption="two boxes"), [two, one, twin]) is two

    request = autocomplete.reader.read(point_cloud=one.solid.points(600, 1))
    request.points = None                                # by the distance alone
    assert not is_connected(request.sample.points)       # 64 points are too few to tell
    request.sample.points = prepare_points(one.solid.points(600, 1), 600)[0]
    monkeypatch.setattr(selector, "input_error", lambda request, solid: .10 if solid is two.solid else .12)
    assert autocomplete.selector.select(request, [two, one]) is one
    request.sample.points = prepare_points(two.solid.points(600, 1), 600)[0]
    assert autocomplete.selector.select(request, [two, one]) is two
    request.sample.points = prepare_points(one.solid.points(600, 1), 600)[0]
    monkeypatch.setattr(selector, "input_error", lambda request, solid: .02 if solid is two.solid else .12)
    assert autocomplete.selector.select(request, [two, one]) is two


def test_a_result_far_from_its_points_or_its_picture_says_so(autocomplete, plate):
    "In the metadata, in the command's verdict and in the panel's."
    from cad_mllm.commands.completing import _verdict
    from cad_mllm.panel.completion import verdict_html
    right, bar = as_candidate(autocomplete, plate), CADProgram()
    bar.sketch(rectangle(.5, .5, .2, .004))
    bar.extrude(.004)
    wrong = as_candidate(autocomplete, bar)
    points = autocomplete.reader.read(point_cloud=right.solid.points(2000, 0))
    picture = autocomplete.reader.read(image=right.solid.image(224, 0))
    for request, words in ((points, "far from the given points: "), (picture, "far from the given picture: ")):
        near, far = (autocomplete.result(request, [c], "end", "input")[0]["metadata"] for c in (right, wrong))
        assert near["far"] == "" and far["far"].startswith(words), (near["far"], far["far"])
        assert _verdict(far) == f"a valid solid, one body, {far['far']}" and _verdict(near) == "a valid solid, one body"
        assert far["far"] in verdict_html(dict(metadata=far)) and "warned" in verdict_html(dict(metadata=far))
        assert "warned" not in verdict_html(dict(metadata=near))


def test_step_of_a_result_carries_name_program_and_caption(model, plate, tmp_path):
    "FILE_NAME and FILE_DESCRIPTION, as OpenCascade reads them and as they stand in the file."
    from cad_mllm import __version__
    from cad_mllm.cli import main
    from cad_mllm.geometry.occ_import import load_occ
    completer = CADAutocomplete(model, kernel="occ")
    request = completer.reader.read(plate, "a plate's boss, Ø 24 mm\nwith a bore")
    result, chosen = completer.result(request, [as_candidate(completer, plate)], "end", "input")
    completer.save(result, request, chosen, tmp_path/"plate 7.json", ("json", "step"))
    with pytest.raises(SystemExit, match="0"):
        main(["export", str(tmp_path/"plate 7.json"), str(tmp_path/"again.step")])
    for file, name in (("plate 7.step", "plate 7"), ("again.step", "again")):
        reader = load_occ().STEPControl_Reader()
        reader.ReadFile(str(tmp_path/file))
        header = load_occ().APIHeaderSection_MakeHeader(reader.StepModel())
        assert header.Name().ToCString() == name
        assert header.OriginatingSystem().ToCString() == f"cad_mllm {__version__}"
        text = "".join((tmp_path/file).read_text(encoding="ascii").split("\n"))
        assert r"'a plate''s boss, \X2\00D8\X0\ 24 mm with a bore'" in text and "Author" not in text


def boxed(tmp_path):
    "A plate that is begun, the cloud of the whole (with a boss and a hole), and the whole."
    begun = CADProgram()
    begun.sketch(rectangle(0, 0, .08, .05))
    begun.extrude(.01)
    whole = CADProgram.from_json(begun.to_json())
    whole.sketch(circle(.055, .025, .012), frame=Frame(origin=(0, 0, .01)))
    whole.extrude(.02, "join")
    whole.sketch(circle(.02, .025, .008))
    whole.extrude(.01, "cut")
    solid = build_solid(whole, kernel="manifold")
    begun.save(tmp_path/"begun.json")
    np.save(tmp_path/"whole.npy", solid.points(4096))
    return solid.mesh()


def test_the_command_finishes_a_begun_part_from_points_of_the_whole(tmp_path):
    mesh = boxed(tmp_path)
    command = [
        sys.executable, "-m", "cad_mllm", "complete", "begun.json", "--points", "whole.npy", "--num_candidates", "1"
    ]
    def complete(*flags):
        done = subprocess.run([*command, "--format", "json", *flags], cwd=tmp_path, capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads((tmp_path/"completed.json").read_text())
    said, result = complete("--format", "json,fcstd,cadquery")
    assert "read from the points (slabs), not written by the model" in said
    with zipfile.ZipFile(tmp_path/"completed.FCStd") as document: labels = document.read("Document.xml").decode()
    assert "(added from slices of the points)" in labels and "by the model" not in labels
    assert ", added from slices of the points" in (tmp_path/"completed_cq.py").read_text()
    assert result["metadata"]["source"] == "slabs" and result["metadata"]["valid"]
    given = json.loads((tmp_path/"begun.json").read_text())
    assert (
        result["sequence"][:2] == given["sequence"]
        and all(result["entities"][k] == v for k, v in given["entities"].items())
    )
    assert overlap(build_solid(CADProgram.from_json(result), kernel="manifold").mesh(), mesh) > .98
    _, alone = complete("--methods", "model")
    assert alone["metadata"]["source"] == "model" and len(alone["metadata"]["candidates"]) == 1
    refused = subprocess.run([*command, "--methods", "slices"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1 and "'slices' is not among model, slabs" in refused.stderr


def test_other_proposers_take_part_only_where_points_choose(autocomplete, tmp_path):
    boxed(tmp_path)
    asked = dict(partial_json=tmp_path/"begun.json", point_cloud=tmp_path/"whole.npy")
    def sources(**settings):
        result = autocomplete.complete(**{**asked, **settings}, proposers=(propose_rest,))
        return [c["source"] for c in result["metadata"]["candidates"]]
    assert sources() == ["model", "slabs"]
    assert sources(best="likelihood") == sources(check="none") == sources(point_cloud=None) == ["model"]


def test_half_a_character_in_a_caption_is_replaced(autocomplete):
    result = autocomplete.complete(caption="a flange with \udcff", check="none", max_new_tokens=64)
    assert result["metadata"]["caption"] == "a flange with \ufffd"
    json.dumps(result, ensure_ascii=False).encode()


def test_candidates_for_points_alone_are_written_for_other_sides_and_turned_back(plate):
    small = CADAutocomplete("small", device="cpu", kernel="manifold")
    cloud = build_solid(plate, kernel="manifold").points(2048) + np.array([.3, -.2, .1, 0, 0, 0])
    sides = small.reader.sides(request := small.reader.read(point_cloud=cloud), 6)
    assert sides[0] is request and len({s.turn.tobytes() for s in sides[1:]}) == 5
    kept = []
    result = small.complete(point_cloud=cloud, num=6, temperature=.7, on_candidates=lambda all, _: kept.extend(all))
    built = [c.solid for c in kept if c.valid]
    assert len(kept) == 6 and len(built) > 3 and result["metadata"]["valid"]
    middle = (cloud[:, :3].min(0) + cloud[:, :3].max(0))/2
    assert all(np.abs(np.mean(s.bounding_box, axis=0) - middle).max() < .02 for s in built)
    others = [small.reader.read(plate.truncate(2), point_cloud=cloud), small.reader.read(caption="a plate")]
    assert all(small.reader.sides(r, 3) == [r] for r in others)


def test_a_batch_with_points_and_words_gives_what_each_gives_alone(plate):
    small = CADAutocomplete("small", device="cpu", kernel="manifold")
    cloud = build_solid(plate, kernel="manifold").points(1024)
    items = [dict(point_cloud=cloud), dict(caption="a plate"), dict(partial_json=plate.truncate(2))]
    settings = dict(num=2, temperature=.7, max_new_tokens=60)
    together = small.complete_many(items, batch_size=6, **settings)
    for item, result in zip(items, together):
        alone, = small.complete_many([item], **settings)
        assert alone["entities"] == result["entities"]
