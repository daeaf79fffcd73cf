"""A stream of parts is a data set like any other: pure samples, held-out parts of their own, an exact resume, and
its makers told when they change."""
import numpy as np
import torch
from safetensors.torch import load_file

from cad_mllm.config import TrainConfig, recipe
from cad_mllm.data import Scan, estimate_normals, open_dataset
from cad_mllm.training import read_metrics
from train_runs import Training

NAME = "stream:realistic?num=12&seed=3"


def open_stream(name=NAME, **settings):
    return open_dataset(
        name,
        **dict(
            modality_probs={"text": .3, "text+points": .7}, num_points=64, points_on_grid=True, no_prefix_prob=.5
        ) | settings
    )


def same(a, b):
    return all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, f), getattr(b, f)) for f in vars(a))
    )


def test_a_sample_is_a_pure_function_of_seed_epoch_and_index():
    one, two = open_stream(), open_stream()
    two.sample(0, 5)
    for index in (0, 7, 3): assert same(one.sample(1, index), two.sample(1, index))
    drawn = [one.sample(e, 7) for e in range(6)]
    clouds = [s.points.tobytes() for s in drawn if s.points is not None]
    assert len(set(clouds)) == len(clouds) > 1
    assert one.sample(0, 7).caption != open_stream(NAME.replace("seed=3", "seed=4")).sample(0, 7).caption


def test_held_out_parts_have_their_own_seed():
    val = open_stream(split="val", num_val_samples=3)
    assert len(val) == 3 and val.fingerprint != open_stream().fingerprint
    assert not {s.id for s in map(val.__getitem__, range(3))} & {
        s.id for s in map(open_stream().__getitem__, range(12))
    }


def test_another_version_of_a_maker_is_another_fingerprint(monkeypatch):
    before = open_stream().fingerprint
    monkeypatch.setattr("cad_mllm.data.stream.makers", lambda: {"manifold3d": "9.9"})
    assert open_stream().fingerprint != before


def test_a_scan_may_lack_normals_or_have_estimated_ones():
    cloud = (
        open_stream().sample(0, 7).points if open_stream().sample(0, 7).points is not None
        else open_stream(modality_probs={"text+points": 1.}).sample(0, 7).points
    )
    def rng(): return np.random.default_rng(0)
    assert Scan(bare=1.)(cloud, rng()).shape == (64, 3) and Scan(estimated=1.)(cloud, rng()).shape == (64, 6)
    assert len(Scan(holes=.5)(cloud, rng())) < 64 and np.allclose(Scan(noise=.1, noisy=0.)(cloud, rng()), cloud)
    assert np.allclose(np.linalg.norm(estimate_normals(cloud)[:, 3:], axis=1), 1)


def test_a_killed_stream_goes_on_to_the_last_bit(tmp_path):
    """Real processes, with data workers after the resume; every logged number and every weight of the end is that of
    the unbroken run."""
    flags = ("--save_steps", "2", "--stage3_epochs", "0", "--point_jitter_std", "0.02") + (
        "--estimated_normals_prob", "0.3"
    )
    Training(NAME, tmp_path/"whole", *flags).wait(0)
    broken = Training(NAME, tmp_path/"broken", *flags).until(lambda: len(read_metrics(tmp_path/"broken")) >= 4)
    broken.kill()
    Training(NAME, tmp_path/"broken", *flags, "--resume_from_ckpt", "auto", "--num_workers", "2").wait(0)
    def rows(out):
        return {
            r["step"]: {k: v for k, v in r.items() if k not in ("time", "seconds", "tokens_per_second")}
            for r in read_metrics(out)
        }
    assert rows(tmp_path/"broken") == rows(tmp_path/"whole") and len(rows(tmp_path/"whole")) >= 6
    one, two = (load_file(next((tmp_path/n/"final_model").glob("*model.safetensors"))) for n in ("whole", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_recipe_for_points_is_small_and_needs_no_files():
    model, train = recipe("points_small")
    assert train.data_root.startswith("stream:") and model.points_on_grid and isinstance(train, TrainConfig)
    assert len(open_dataset(train.data_root)) == 150_000


def test_some_samples_with_points_lose_their_caption_and_those_of_text_never():
    told, half = open_stream(), open_stream(caption_dropout_prob=.5)
    pairs = [(told.sample(e, i), half.sample(e, i)) for e in range(3) for i in range(12)]
    assert all(a.caption and a.caption == b.caption for a, b in pairs if "points" not in b.modalities)
    seen = [b.caption == a.caption for a, b in pairs if "points" in b.modalities]
    assert 0 < sum(seen) < len(seen) and {b.caption for a, b in pairs} - {a.caption for a, b in pairs} == {""}


def test_a_canonical_stream_says_what_is_written_from_nothing_in_one_way_and_leaves_beginnings_alone():
    plain, one_way = open_stream(), open_stream(f"{NAME}&canonical=1")
    assert plain.fingerprint != one_way.fingerprint and plain.made_by == one_way.made_by
    pairs = [(plain.sample(e, i), one_way.sample(e, i)) for e in range(3) for i in range(12)]
    assert all(same(a, b) for a, b in pairs if a.kept)
    bare = [(a, b) for a, b in pairs if not a.kept]
    assert any(a.target != b.target for a, b in bare) and all(a.prefix == b.prefix for a, b in bare)
    allowed = {"<+x>", "<-y>", "<+z>"}
    assert all(b.target[i + 1] in allowed for _, b in bare for i, t in enumerate(b.target) if t == "<sketch>")
    assert not {"<sym>", "<two>"} & {t for _, b in bare for t in b.target}
    assert same(one_way.sample(1, 7), open_stream(f"{NAME}&canonical=1").sample(1, 7))
