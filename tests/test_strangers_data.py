"Files of strangers: what can be understood is, what cannot is counted and told."
import json, os, shutil

import pytest
from PIL import Image

from cad_mllm.data import DataWarning, MultimodalAutocompleteDataset, pack
from cad_mllm.data import synthesize


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("strangers")/"data"
    synthesize(root, num=8, seed=0)
    return root


def ids_of(root):
    return sorted(p.relative_to(root/"json").with_suffix("").as_posix() for p in (root/"json").rglob("*.json"))


def copy_of(parts, tmp_path, *, json_folder="json"):
    "A data set of histories only, and the ids of its parts."
    shutil.copytree(parts/"json", tmp_path/"data"/json_folder)
    return tmp_path/"data", ids_of(parts)


CAPTIONS = {
    "backslashes": lambda ids: (
        "a.json", json.dumps([{"id": id.replace("/", "\\"), "text caption": "A part."} for id in ids])
    ),
    "suffix": lambda ids: ("a.json", json.dumps([{"id": f"{id}.json", "text caption": "A part."} for id in ids])),
    "folder before": lambda ids: (
        "a.json", json.dumps([{"id": f"omni/json/{id}", "text caption": "A part."} for id in ids])
    ),
    "lines": lambda ids: ("a.jsonl", "\n".join(json.dumps({"uid": id, "caption": "A part."}) for id in ids)),
    "table": lambda ids: ("a.csv", "ID,Caption\n" + "".join(f'{id},"A part."\n' for id in ids)),
    "object": lambda ids: ("a.json", json.dumps({id: "A part." for id in ids})),
    "byte order mark": lambda ids: (
        "a.json", "\ufeff" + json.dumps([{"id": id, "text caption": "A part."} for id in ids])
    )
}


@pytest.mark.parametrize("form", CAPTIONS)
def test_attachments_captions_of_every_form(parts, tmp_path, form):
    root, ids = copy_of(parts, tmp_path)
    name, text = CAPTIONS[form](ids)
    (root/"txt").mkdir()
    (root/"txt"/name).write_text(text, encoding="utf-8")
    ds = MultimodalAutocompleteDataset(root)
    assert set(ds.table.captions) == {"A part."} and ds.attachments.num_captions == len(ds.table.ids) and not ds.report


VIEWS = {
    "capitals": "{id}.PNG", "webp": "{id}_000.webp", "view word": "{id}_view_3.png", "front": "{id}-front.jpg",
    "folder of the part": "{id}/3.png", "no folder": "{name}_003.png"
}


@pytest.mark.parametrize("form", VIEWS)
def test_attachments_pictures_of_every_name(parts, tmp_path, form):
    "They are found, read, kept in shards, and found again without looking at the folder."
    root, ids = copy_of(parts, tmp_path)
    for id in ids:
        path = root/"img"/VIEWS[form].format(id=id, name=id.rpartition("/")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), "red").save(path)
    kw = dict(modality_probs={"text+image": 1.}, image_size=8)
    ds = MultimodalAutocompleteDataset(root, index_path=tmp_path/"index.npz", **kw)
    again = MultimodalAutocompleteDataset(root, index_path=tmp_path/"index.npz", **kw)
    pack(root, tmp_path/"shards")
    packed = MultimodalAutocompleteDataset(tmp_path/"shards", **kw)
    for found in (ds, again, packed):
        assert found.attachments.num_images == len(found.table.ids) and found.attachments.num_parts
        assert found[0].image[0, 0].tolist()[1] < 60 and not found.skipped


def test_attachments_behind_a_link_and_clouds_as_ply(parts, tmp_path):
    root, ids = copy_of(parts, tmp_path)
    (tmp_path/"away"/"0000").mkdir(parents=True)
    (root/"img").mkdir()
    for id in ids: Image.new("RGB", (20, 20)).save(tmp_path/"away"/f"{id}_000.png")
    os.symlink(tmp_path/"away"/"0000", root/"img"/"0000")
    os.symlink(root, root/"img"/"circle")
    cloud = (
        "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 "
        "0 0\n.1 0 0\n0 .1 0\n0 0 .1\n"
    )
    for id in ids:
        (root/"pointcloud"/f"{id}.ply").parent.mkdir(parents=True, exist_ok=True)
        (root/"pointcloud"/f"{id}.ply").write_text(cloud)
    ds = MultimodalAutocompleteDataset(root, modality_probs={"text+image+points": 1.}, image_size=8, num_points=4)
    assert ds.attachments.num_images == ds.attachments.num_points == len(ds.table.ids)
    assert ds[0].points.shape == (4, 6) and not ds.skipped


def test_attachments_that_match_nothing_are_counted_and_told(parts, tmp_path):
    root, ids = copy_of(parts, tmp_path)
    (root/"img").mkdir()
    for n in range(5): Image.new("RGB", (8, 8)).save(root/"img"/f"thing{n}.png")
    (root/"txt").mkdir()
    (root/"txt"/"a.json").write_text(json.dumps([{"id": "nobody", "text caption": "x"}]))
    found = MultimodalAutocompleteDataset(
        root, split="train", num_val_samples=4, index_path=tmp_path/"i.npz"
    ).attachments
    assert found == MultimodalAutocompleteDataset(
        root, split="train", num_val_samples=4, index_path=tmp_path/"i.npz"
    ).attachments
    assert (
        f"{found.num_parts} parts; captions 0 (txt/ has 1 captions that belong to no part, such as nobody); images 0 "
        "(img/ has 5 files that belong to no part, such as thing0.png); points 0"
        == found.sentence()
    )
    assert len(found.warnings({"image": "stage 2", "points": "stage 3"})) == 2


def test_what_belongs_to_parts_of_validation_is_not_called_lost(tmp_path):
    synthesize(root := tmp_path/"data", num=40, seed=0)
    for id in ids_of(root):
        (root/"img"/f"{id}_000.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root/"img"/f"{id}_000.png")
    found = MultimodalAutocompleteDataset(root, split="train", num_val_samples=8).attachments
    assert found.num_images == found.num_parts < 40 and not found.spare


def test_training_says_what_was_found_and_warns(parts, tmp_path, capsys):
    from types import SimpleNamespace
    from cad_mllm.training import tell_data
    root, ids = copy_of(parts, tmp_path)
    stages = [
        SimpleNamespace(num_epochs=1, modality_probs={"text": 1.}),
        SimpleNamespace(num_epochs=1, modality_probs={"text": .5, "text+image": .5}),
        SimpleNamespace(num_epochs=0, modality_probs={"text+points": 1.})
    ]
    state = SimpleNamespace(
        world=SimpleNamespace(is_main=True), data=MultimodalAutocompleteDataset(root),
        train_config=SimpleNamespace(stages=stages)
    )
    with pytest.warns(DataWarning) as told: tell_data(state)
    assert "parts; captions 0; images 0; points 0" in capsys.readouterr().out
    assert {str(w.message).split(",")[0] for w in told} == {"stage 1 asks for captions", "stage 2 asks for images"}


def test_half_characters_in_captions_are_cleaned_and_counted(parts, tmp_path):
    root, ids = copy_of(parts, tmp_path)
    (root/"txt").mkdir()
    (root/"txt"/"a.json").write_text(json.dumps([{"id": id, "text caption": "A plate \ud83d"} for id in ids]))
    ds = MultimodalAutocompleteDataset(root, index_path=tmp_path/"index.npz")
    ds = MultimodalAutocompleteDataset(root, index_path=tmp_path/"index.npz")
    assert (
        ds[0].caption.encode("utf-8") and ds.attachments.cleaned == len(ids) and "cleaned" in ds.attachments.sentence()
    )


def test_cad_json_is_a_folder_of_histories(parts, tmp_path):
    from cad_mllm.data import data_report
    root, ids = copy_of(parts, tmp_path, json_folder="cad_json")
    ds = MultimodalAutocompleteDataset(root)
    found = data_report(root, tmp_path/"out", jobs=0, draw=False)
    assert len(ds) and f"a training counts {ds.attachments.sentence()}" in found.notes
