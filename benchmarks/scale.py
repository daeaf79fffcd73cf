#!/usr/bin/env python3
"""What the engines cost: the same parts prepared by a bare loop, by workers of this machine, and on a Ray cluster one
of whose nodes is killed.

    python benchmarks/scale.py [--num 120] [--turns 2] [--no-ray] [--out benchmarks/results/scale.md]

Every row prepares the same procedural parts with the default products (beginnings, 4,096 points, eight views,
captions). Each is measured in a Python of its own, once with a single part and once with all of them; the rows follow
each other in one run, several times round, and the better time of each counts. The bare loop calls the same function
for one part after the other in one process, without limits on time and memory, report or restart.

  start              seconds for a single part: imports, processes, one part; what does not grow with the parts
  parts/s            per second and processor, of the parts after the first (steady), and of all with the start (all in)
  of the bare loop   the steady rate as a share of the bare loop's; `two bare loops` shows what two processes can reach
  on this machine at all
  CPU                seconds a part of all processes, with their start, and as a share of the bare loop's; unlike the
  times it says something on a machine that does other work
  killed             the Ray cluster has two nodes of one processor each on this machine; one is killed when a third of
  the parts are there, its part in flight is done by the other
"""
import argparse
import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cad_mllm.data import prepare, synthesize
from cad_mllm.data.preparation import list_histories
from cad_mllm.data.products import prepare_one, Products
from cad_mllm.utils.progress import duration_words
from common import cpu_seconds, machine_line, make_parser, table_head, write_out

PARTS_ALL, MACHINES, PROCESSORS = 450_000, (10, 100), 16


def bare(parts, out, first=0, step=1):
    "One part after the other; how many."
    out.mkdir(parents=True, exist_ok=True)
    tasks = list_histories(parts)[first::step]
    for id, path in tasks: prepare_one((str(path), str(out), id, Products(), True, {}))
    return len(tasks)


def two_bare(parts, out):
    "Two loops at once, each over every other part."
    started = []
    for first in (0, 1):
        if not (pid := os.fork()):
            bare(parts, out/str(first), first, 2)
            os._exit(0)
        started.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in started): raise RuntimeError("one of two loops failed")
    return len(list_histories(parts))


def local(jobs): return lambda parts, out: made_of(prepare(parts, out, jobs=jobs))


def made_of(report): return sum(report["products"]["points"].values())


def start_cluster():
    "Two nodes of one processor each."
    from ray.cluster_utils import Cluster
    settings = dict(num_cpus=1, object_store_memory=80*2**20)
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=dict(settings, include_dashboard=False))
    cluster.add_node(**settings)
    cluster.wait_for_nodes()
    return cluster


def on_ray(parts, out, num=0):
    """On a new cluster, whose start does not count: parts made, seconds; with `num`, one of its nodes is killed when so
    many clouds are there."""
    import ray
    cluster = start_cluster()
    def kill():
        while len(list(out.rglob("*.npz"))) < num: time.sleep(.05)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    killer = threading.Thread(target=kill)
    began = time.perf_counter()
    try:
        if num: killer.start()
        made = made_of(prepare(parts, out, engine="ray"))
        if num: killer.join()
        return made, time.perf_counter() - began
    finally:
        ray.shutdown()
        cluster.shutdown()


def killed(parts, out): return on_ray(parts, out, max(1, len(list_histories(parts))//3))


WAYS = { # name: (processors, function)
    "bare loop": (1, bare), "two bare loops": (2, two_bare), "--engine local, 1 process": (1, local(1)),
    "--engine local, 2 processes": (2, local(2)), "--engine ray, two nodes": (2, on_ray),
    "--engine ray, one of two killed": (2, killed)
}


def run(name, parts, out):
    "One way in this process: parts made, seconds, and CPU seconds where all processes are below this one."
    began, used = time.perf_counter(), cpu_seconds()
    made = WAYS[name][1](parts, out)
    if isinstance(made, tuple): return dict(made=made[0], seconds=made[1], cpu=None)
    seconds = time.perf_counter() - began
    atexit._run_exitfuncs()                    # workers end, and what they used counts
    return dict(made=made, seconds=seconds, cpu=cpu_seconds() - used)


def measure(name, parts, out, num):
    "The same in a Python of its own."
    args = [sys.executable, __file__, "--run", name, str(parts), str(out)]
    env = {**os.environ, "TQDM_DISABLE": "1"}
    said = subprocess.run(args, stdout=subprocess.PIPE, check=True, text=True, env=env).stdout
    found = json.loads(said.splitlines()[-1])
    assert found["made"] == num, (name, found)
    return found


def least(found, so_far):
    "The smaller of each figure."
    return {k: found[k] if found[k] is None else min(found[k], so_far.get(k, found[k])) for k in ("seconds", "cpu")}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--num", type=int, default=120, help="parts")
    parser.add_argument("--turns", type=int, default=2, help="how often each way is measured")
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--run", nargs=3, metavar=("WAY", "PARTS", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print("\n" + json.dumps(run(args.run[0], *map(Path, args.run[1:]))))
        return
    best, where = {}, machine_line()
    with tempfile.TemporaryDirectory() as folder:
        folders = {args.num: Path(folder)/"parts", 1: Path(folder)/"one"}
        for num, parts in folders.items(): synthesize(parts, num=num, seed=0)
        for turn in range(args.turns):
            for name in WAYS:
                if "ray" in name and not args.ray: continue
                for num, parts in folders.items():
                    if num == 1 and name in ("two bare loops", "--engine ray, one of two killed"): continue
                    found = measure(name, parts, Path(folder)/f"{turn} {name} {num}", num)
                    best[name, num] = least(found, best.get((name, num), {}))
                    print(f"{name}, {num}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    text = page(best, args.num, where)
    print(text)
    write_out(args.out, text)


def rates(best, name, num):
    "Start in seconds, parts per second and processor (steady, all in), CPU seconds a part."
    all, one = best[name, num], best.get((name, 1), {})
    start, processors = one.get("seconds"), WAYS[name][0]
    steady = (num - 1)/(all["seconds"] - start) if start else num/all["seconds"]
    return start, steady/processors, num/all["seconds"]/processors, all["cpu"] and all["cpu"]/num


def page(best, num, where):
    "The table and the predictions."
    found = {name: rates(best, name, num) for name in WAYS if (name, num) in best}
    _, base, _, base_cpu = found["bare loop"]
    lines = [
        *table_head(
            "way", "processors", "start, s", "parts/s and processor, steady", "of the bare loop", "all in",
            "CPU s a part", "of the bare loop"
        )
    ]
    for name, (start, steady, all_in, cpu) in found.items():
        told = "" if start is None else f"{start:.1f}"
        spent = ["", ""] if cpu is None else [f"{cpu:.3f}", f"{cpu/base_cpu:.2f}"]
        row = [name, WAYS[name][0], told, f"{steady:.2f}", f"{steady/base:.2f}", f"{all_in:.2f}", *spent]
        lines.append(f"| {' | '.join(map(str, row))} |")
    chosen = next(n for n in reversed(found) if "killed" not in n)
    rate = found[chosen][1]
    times = [
        f"{m} machines of {PROCESSORS} processors {duration_words(PARTS_ALL/(rate*PROCESSORS*m))}" for m in MACHINES
    ]
    return (
        f"{num} procedural parts with default products; {where}. Each figure is the better of its turns in one run of "
        "this script; rows are compared with each other only.\n\n"
        + "\n".join(lines)
        + f"\n\nAt the steady rate of `{chosen}` ({rate:.2f} parts/s and processor), {PARTS_ALL:,} parts take "
        f"{PARTS_ALL:,}/({rate:.2f} x {PROCESSORS} x machines) s: {'; '.join(times)}. That is arithmetic, not "
        "a measurement: disks and networks are not in it.\n"
    )


if __name__ == "__main__": main()
