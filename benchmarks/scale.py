#!/usr/bin/env python3
"""What the engines cost: the same parts prepared by a bare loop, by workers of this machine, and on a Ray cluster one
of whose nodes is killed.

    python benchmarks/scale.py [--num 120] [--no-ray] [--out benchmarks/results/scale.md]

Every row prepares the same procedural parts with the default products (beginnings, 4,096 points, eight views,
captions), starting its processes included; the rows follow each other in one run, twice round, and
the better time of the two counts. The bare loop calls the same function for one part after the other in one process,
without limits on time and memory, report or restart.

  of the bare loop   parts per second and processor, as a share of the bare loop's
  killed             the Ray cluster has two nodes of one processor each on this machine; one is killed when a third of
  the parts are there, its part in flight is done by the other
"""
import argparse
import tempfile
import threading
import time
from pathlib import Path

from cad_mllm.data import prepare, synthesize
from cad_mllm.data.preparation import list_histories
from cad_mllm.data.products import prepare_one, Products
from cad_mllm.utils.progress import duration_words
from common import machine_line, make_parser, table_head, timed, write_out

PARTS_ALL, MACHINES, PROCESSORS = 450_000, (10, 100), 16


def bare(parts, out):
    "One part after the other."
    out.mkdir()
    for id, path in list_histories(parts):
        prepare_one((str(path), str(out), id, Products(), True, {}))


def start_cluster():
    "Two nodes of one processor each."
    from ray.cluster_utils import Cluster
    settings = dict(num_cpus=1, object_store_memory=80*2**20)
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=dict(settings, include_dashboard=False))
    cluster.add_node(**settings)
    cluster.wait_for_nodes()
    return cluster


def on_ray(parts, out, num=0):
    "On a new cluster; with `num`, one of its nodes is killed when so many clouds are there."
    import ray
    cluster = start_cluster()
    def kill():
        while len(list(out.rglob("*.npz"))) < num: time.sleep(.05)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    killer = threading.Thread(target=kill)
    began = time.perf_counter()
    try:
        if num: killer.start()
        report = prepare(parts, out, engine="ray")
        if num: killer.join()
        return time.perf_counter() - began, report
    finally:
        ray.shutdown()
        cluster.shutdown()


def ways(parts, num, ray):
    "Name, processors, and a function of an empty folder that gives (seconds, report or None)."
    yield "bare loop", 1, lambda out: timed(bare, parts, out)
    for jobs in (1, 2):
        yield f"--engine local, {jobs} process{'es'*(jobs > 1)}", jobs, lambda out, jobs=jobs: timed(
            lambda: prepare(parts, out, jobs=jobs)
        )
    if not ray: return
    yield "--engine ray, two nodes", 2, lambda out: on_ray(parts, out)
    yield "--engine ray, one of two killed", 2, lambda out: on_ray(parts, out, max(1, num//3))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--num", type=int, default=120, help="parts")
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    best, where = {}, machine_line()
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)/"parts"
        synthesize(parts, num=args.num, seed=0)
        for turn in range(2):
            for name, processors, run in ways(parts, args.num, args.ray):
                seconds, report = run(Path(folder)/f"{turn} {name}")
                made = sum(report["products"]["points"].values()) if report else args.num
                assert made == args.num, (name, report)
                best[name] = processors, min(seconds, best.get(name, (0, float("inf")))[1])
                print(f"{name}: {seconds:.1f} s", flush=True)
    text = page(best, args.num, where)
    print(text)
    write_out(args.out, text)


def page(best, num, where):
    "The table and the predictions."
    rate = {name: num/seconds/processors for name, (processors, seconds) in best.items()}
    base = rate["bare loop"]
    lines = [*table_head("way", "processors", "parts/s and processor", "of the bare loop")]
    lines += [f"| {name} | {best[name][0]} | {r:.2f} | {r/base:.2f} |" for name, r in rate.items()]
    chosen = next(n for n in reversed(best) if "killed" not in n)
    times = [
        f"{m} machines of {PROCESSORS} processors {duration_words(PARTS_ALL/(rate[chosen]*PROCESSORS*m))}"
        for m in MACHINES
    ]
    return (
        f"{num} procedural parts with default products; {where}. Each time is of one run of this script, the better of "
        "two; "
        "rows are compared with each other only.\n\n"
        + "\n".join(lines)
        + f"\n\nAt the rate of `{chosen}` ({rate[chosen]:.2f} parts/s and processor), {PARTS_ALL:,} parts take "
        f"{PARTS_ALL:,}/({rate[chosen]:.2f} x {PROCESSORS} x machines) s: {'; '.join(times)}. That is arithmetic, not "
        "a measurement: disks and networks are not in it.\n"
    )


if __name__ == "__main__": main()
