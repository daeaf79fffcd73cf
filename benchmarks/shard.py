#!/usr/bin/env python3
"""Memory and time of a process that keeps the whole model (DDP) and of one that keeps a share (FSDP2), side by side.

    python benchmarks/shard.py [--processes 2,4] [--steps 4] [--device cpu] [--out benchmarks/results/shard.md]

Trains all weights of a model of random weights on synthetic parts, text only, so little at once that weights, gradients
and optimizer are most of the memory. On a CPU memory is the peak of resident memory in the steps beyond what the
process had before it built the model, and time is the time of a step on a clock: more processes than cores take turns.
glibc is told to give large blocks back to the system (MALLOC_MMAP_THRESHOLD_), or
it keeps for itself what was gathered and let go. What `cad_mllm.training.plan` predicts for the same process stands
beside it. The losses of both have to be the same to rounding.
"""
import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from common import make_parser, table_head, write_out

LLM = dict(
    hidden_size=768, intermediate_size=2304, num_hidden_layers=16, num_attention_heads=12, num_key_value_heads=4,
    head_dim=64
)


def resident(name):
    "Bytes of resident memory now (VmRSS) or at its peak (VmHWM)."
    return 1024*int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1]
    )


def train(args):
    "One process: prints its figures as JSON."
    import torch
    from cad_mllm.config import tiny
    from cad_mllm.models import CADMLLMModel
    from cad_mllm.models import chunk_size
    from cad_mllm.training import memory, shape_of
    from cad_mllm.training import open_data, Trainer
    torch.set_num_threads(1)
    # whatever building a model imports
    CADMLLMModel(replace(tiny()[0], image_encoder_name="", point_encoder_name=""))
    config, settings = tiny()
    config = replace(config, llm_config=LLM, image_encoder_name="", point_encoder_name="")
    settings = replace(
        settings, data_root=args.data, output_dir=f"{args.data}/{args.one}", batch_size=2, num_val_samples=0,
        device=args.device, fsdp=args.one == "fsdp"
    )
    before = resident("VmRSS")
    trainer = Trainer(config, settings)
    trainer.output.open()
    open_data(trainer.state, trainer.output)
    trainer.state.progress.next_stage(0)
    trainer.state.apply_fsdp()
    trainer.optimization.begin_stage()
    trainer.state.model.train()
    plan, losses, seconds, sizes = trainer.state.plan(), [], [], []
    def stream():
        for batch in trainer.stepper.micro_batches(plan):
            sizes.append((batch.input_ids.numel(), batch.num_tokens))
            yield batch
    taken = stream()
    for step in range(args.steps):
        if step == 1:                          # the first one makes what stays: moments, caches
            if args.device == "cpu": Path("/proc/self/clear_refs").write_text("5")
            else: torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        losses.append(trainer.stepper.train_step(taken, plan)["loss"])
        seconds.append(time.perf_counter() - began)
    peak = resident("VmHWM") - before if args.device == "cpu" else torch.cuda.max_memory_allocated()
    shares = int(os.environ["WORLD_SIZE"]) if args.one == "fsdp" else 1
    predicted = memory(shape_of(config), config, *max(sizes), chunk=chunk_size(1, trainer.state.device), shares=shares)
    trainer.output.close()
    trainer.state.world.leave()
    print(
        "FIGURES",
        json.dumps(
            dict(
                peak=peak, seconds=sorted(seconds[1:])[len(seconds[1:])//2], losses=losses,
                predicted=sum(predicted.values())
            )
        ),
        flush=True
    )
    sys.stdout.flush()
    os._exit(0)


def together(args, kind, num, data):
    "Figures of a process of `num`."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = [
        {
            **os.environ, "WORLD_SIZE": str(num), "RANK": str(r), "LOCAL_RANK": str(r), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"
        }
        for r in range(num)
    ]
    command = [
        sys.executable, __file__, "--one", kind, "--data", data, "--steps", str(args.steps), "--device", args.device
    ]
    processes = [subprocess.Popen(command, env=e, stdout=subprocess.PIPE, text=True) for e in env]
    texts = [p.communicate()[0] for p in processes]
    if any(p.returncode for p in processes): sys.exit(f"{kind} on {num} processes failed:\n{texts[0][-2000:]}")
    found = [json.loads(line[8:]) for text in texts for line in text.splitlines() if line.startswith("FIGURES")]
    return max(found, key=lambda f: f["peak"])


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--data", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return train(args)
    from tqdm.auto import tqdm
    from cad_mllm.config import tiny
    from cad_mllm.training import shape_of
    from cad_mllm.data import synthesize
    counts = [int(n) for n in args.processes.split(",")]
    with tempfile.TemporaryDirectory() as data:
        synthesize(data, num=40)
        found = {(kind, n): together(args, kind, n, data) for n in tqdm(counts) for kind in ("ddp", "fsdp")}
    size = shape_of(replace(tiny()[0], llm_config=LLM)).num_parameters
    lines = [
        f"All {size/1e6:.0f} million weights of a model train, in float32, on {args.device}; figures of one process.",
        "",
        *table_head(
            "processes", "", "peak memory, GB", "of DDP's", "predicted / measured", "seconds a step", "of DDP's"
        )
    ]
    for n in counts:
        whole = found["ddp", n]
        for kind, name in (("ddp", "whole model in each (DDP)"), ("fsdp", "weights sharded (`--fsdp`)")):
            f = found[kind, n]
            lines.append(
                f"| {n} | {name} | {f['peak']/1e9:.2f} | {f['peak']/whole['peak']:.2f} | "
                f"{f['predicted']/f['peak']:.2f} | {f['seconds']:.2f} | {f['seconds']/whole['seconds']:.2f} |"
            )
    apart = max(abs(a/b - 1) for n in counts for a, b in zip(found["ddp", n]["losses"], found["fsdp", n]["losses"]))
    lines += ["", f"Largest relative difference between the losses of the two: {apart:.0e}."]
    print("\n".join(lines))
    write_out(args.out, "\n".join(lines))


if __name__ == "__main__":
    main()
