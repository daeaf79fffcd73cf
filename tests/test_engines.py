"""The same work on this machine and on a Ray cluster; processors that were allotted."""
import json
import threading
import time
from pathlib import Path

import pytest

from cad_mllm.data import data_report, pack, prepare, prepare_shards, synthesize
from cad_mllm.geometry import LocalEngine, RayEngine
from cad_mllm.metrics import score

ROOT = Path(__file__).resolve().parent.parent
PRODUCTS = dict(image_size=32, num_views=2, num_points=128)


def tree(root):
    "Path -> content of every file but those that tell times and of who made them."
    files = [p for p in Path(root).rglob("*") if p.is_file() and not p.name.startswith(".tmp-")]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files if p.name != "prepare_report.json"}


def report(root):
    "The report without what differs between two runs: a part that is done again finds some of its files."
    found = {
        k: v for k, v in json.loads((root/"prepare_report.json").read_text()).items() if k not in ("seconds", "out")
    }
    products = {
        name: {"made": counts.get("done", 0) + counts.get("skipped", 0), "failed": counts.get("failed", 0)}
        for name, counts in found["products"].items()
    }
    return {**found, "products": products}


def test_nobody_counts_the_processors_of_the_machine():
    "`os.cpu_count` is asked in one place only, where it is held against what was allotted."
    asked = [
        p.relative_to(ROOT).as_posix() for folder in ("cad_mllm", "benchmarks", "scripts", "tools", "tests")
        for p in (ROOT/folder).rglob("*.py") if "cpu_count" in p.read_text(encoding="utf-8") and p != Path(__file__)
    ]
    assert asked == ["cad_mllm/utils/cpus.py"]


def slept(item):
    "Waits so long, then gives it back."
    time.sleep(item)
    return item


def test_a_slow_item_does_not_hold_up_the_others(monkeypatch):
    "While the first item takes its time, the other worker finishes all that follow; results stay in order."
    finished, started = [], threading.Event()

    def isolated(func, item, **kw):
        if item == 0: assert started.wait(60)
        finished.append(item)
        if item == 30: started.set()
        return item
    monkeypatch.setattr("cad_mllm.geometry.workers.isolated", isolated)
    assert [item for item, _ in LocalEngine(2).map(slept, range(31))] == list(range(31))
    assert finished[-1] == 0


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "Twelve parts and one file that is none."
    root = tmp_path_factory.mktemp("parts")
    synthesize(root, num=12, seed=5)
    (root/"json/0000/broken.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def cluster():
    "A Ray cluster of two nodes with a processor each, on this machine."
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster
    made = Cluster(
        initialize_head=True, connect=True,
        head_node_args=dict(num_cpus=1, include_dashboard=False, object_store_memory=80*2**20)
    )
    made.add_node(num_cpus=1, object_store_memory=80*2**20)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_cluster_whose_node_dies_gives_what_this_machine_gives(parts, cluster, tmp_path):
    "Preparation, report, shards and scores, byte for byte; what the dead node was working on is done by the other."
    engine = RayEngine()
    assert engine.width() == 2
    local, far = tmp_path/"local", tmp_path/"far"
    expected = prepare(parts, local, jobs=1, **PRODUCTS)
    nodes = {}

    def kill():
        while len(list(far.rglob("*.npz"))) < 4: time.sleep(.05)
        nodes["left"] = len(list(far.rglob("*.npz")))
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    killer = threading.Thread(target=kill)
    killer.start()
    found = prepare(parts, far, engine=engine, **PRODUCTS)
    killer.join()
    assert nodes["left"] < 12
    assert tree(local) == tree(far) and report(local) == report(far)
    assert sum(expected["products"]["points"].values()) == sum(found["products"]["points"].values()) == 12
    again = prepare(parts, far, engine=engine, **PRODUCTS)
    assert again["products"]["points"] == {"skipped": 12} and again["products"]["history"]["failed"] == 1

    direct = prepare_shards(parts, tmp_path/"direct", shard_mb=.1, engine=engine, **PRODUCTS)
    assert direct["products"]["history"] == {"done": 12, "failed": 1}
    shards = [
        pack(local, tmp_path/"shards", shard_mb=.1), pack(local, tmp_path/"far_shards", shard_mb=.1, engine=engine)
    ]
    assert shards[0]["fingerprint"] == shards[1]["fingerprint"]
    assert {k: v for k, v in tree(tmp_path/"shards").items() if k.startswith("shard-")} == {
        k: v for k, v in tree(tmp_path/"far_shards").items() if k.startswith("shard-")
    }
    assert {k: v for k, v in tree(tmp_path/"shards").items() if k.startswith("shard-")} == {
        k: v for k, v in tree(tmp_path/"direct").items() if k.startswith("shard-")
    }
    said = [
        data_report(local, tmp_path/name, num_opened=2, draw=False, jobs=1, engine=engine_).to_dict()
        for name, engine_ in (("a", "local"), ("b", engine))
    ]
    assert said[0] == said[1]
    scores = [
        score(
            local/"json", local/"json", tmp_path/name, num_points=100, draw=False, max_samples=3, engine=engine_
        ).summary.to_dict()
        for name, engine_ in (("c", "local"), ("d", engine))
    ]
    assert json.dumps(scores[0]) == json.dumps(scores[1])
    made = tmp_path/"made"
    assert synthesize(made, num=12, seed=5, engine=engine)["parts"] == 12
    assert {k: v for k, v in tree(made).items() if k.startswith("json/")} == {
        k: v for k, v in tree(parts).items() if k.startswith("json/") and "broken" not in k
    }
