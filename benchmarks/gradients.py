#!/usr/bin/env python3
"""What it costs to add gradients up over processes: each tensor by itself, and in buckets, as a training does.

    python benchmarks/gradients.py [--processes 2] [--rounds 5] [--out FILE.md]

Processes of this machine, over gloo. The LoRA matrices are those of a language model of 28 layers (rank 16, seven
matrices a layer of 1,024 numbers a side). Both ways in turn in one run; the best round of each counts.
"""
import os
import socket
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cad_mllm.training import buckets
from common import machine_line, make_parser, table, write_out

LORA = [(16, 1024), (1024, 16)]*28*7


def one_by_one(tensors):
    for tensor in tensors: dist.all_reduce(tensor)


def in_buckets(tensors):
    for bucket in buckets(tensors):
        total = torch.cat([t.flatten() for t in bucket])
        dist.all_reduce(total)
        for tensor, part in zip(bucket, total.split([t.numel() for t in bucket])): tensor.copy_(part.view_as(tensor))


def best(add_up, tensors, rounds):
    "Seconds of the best round."
    times = []
    for _ in range(rounds + 1):                 # the first one meets the others
        dist.barrier()
        began = time.perf_counter()
        add_up(tensors)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def free_port():
    "A port that nobody listens at."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def measure(rank, size, port, rounds, found):
    "One of the processes; the first one puts the seconds of both ways into the queue."
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tensors = [torch.randn(shape) for shape in LORA]
    alone, together = best(one_by_one, tensors, rounds), best(in_buckets, tensors, rounds)
    if not rank: found.put((alone, together))
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = mp.get_context("spawn").SimpleQueue()
    where = machine_line()
    mp.spawn(measure, args=(args.processes, free_port(), args.rounds, found), nprocs=args.processes)
    alone, together = found.get()
    rows = [
        ("one by one", f"{1e3*alone:.1f} ms", "1"), ("in buckets", f"{1e3*together:.1f} ms", f"{together/alone:.2f}")
    ]
    text = f"{where}; {len(LORA)} tensors, {args.processes} processes\n\n{table(('gradients', 'time', 'ratio'), rows)}"
    print(text)
    write_out(args.out, text)


if __name__ == "__main__": main()
