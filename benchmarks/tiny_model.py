#!/usr/bin/env python3
"""A tiny model, twenty minutes on two cores: from points to parts, against the nearest training part.

    python benchmarks/tiny_model.py [--minutes 20] [--train 40000] [--test 100] [--retrieve_from 2000] [--real 24]
    [--work FOLDER] [--out benchmarks/results/tiny_model.md]

Trains on synthetic parts from their points alone (no captions: those of synthetic parts tell the dimensions), on two
threads. The time is CPU time: two minutes of it are one minute on two cores, whatever else the machine does. Then
held-out synthetic parts, none of which
is a copy of a training part, are written from their points: greedily, and as the best of eight by the points that were
given. The baseline is retrieval: the training part whose points are nearest, by the same Chamfer distance; and, harder,
the one that is nearest when both are moved and scaled to a unit box, put back into the box of the given points. All are
judged by the Chamfer distance to other points of the true surface.
Retrieval chooses among the first 2,000 training parts, however many the model saw. The mean loss per token on parts
that
were trained on and on held-out ones tells learning from memorization. With OMNI_CAD_ROOT set, beginnings of real
histories are completed too, from their operations alone.
The work folder keeps data, training and results; a second call resumes from there.
"""
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from cad_mllm.cad import CADProgram
from cad_mllm.config import CurriculumStage, TrainConfig, recipe
from cad_mllm.inference import CADAutocomplete
from cad_mllm.metrics import chamfer
from cad_mllm.data import prepare
from cad_mllm.data import synthesize
from cad_mllm.cad import encode
from cad_mllm.training import open_data, Trainer, train
from common import make_parser, table_head, write_out

RETRIEVED = "nearest training part"
STRETCHED = "nearest training part, moved and scaled to the given box"
FLOOR = "the truth, sampled twice"
LLM = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=3)


def make_data(work, num_train, num_test, jobs):
    "Two sets of parts with points; empty captions."
    for name, num, seed in (("train", num_train, 101), ("test", num_test, 202)):
        if (work/name/"done").exists(): continue
        synthesize(work/name, num=num, seed=seed, jobs=jobs)
        prepare(work/name, truncations=False, images=False, captions=False, num_points=4096, jobs=jobs)
        (work/name/"done").touch()
    (work/"no captions").mkdir(exist_ok=True)


def programs(work, name):
    "id -> program, of parts that have points."
    paths = {
        p.relative_to(work/name/"json").with_suffix("").as_posix(): p
        for p in sorted((work/name/"json").rglob("*.json"))
    }
    return {
        id: CADProgram.from_json(p) for id, p in tqdm(paths.items(), desc=name, unit="part")
        if (work/name/"pointcloud"/f"{id}.npz").exists()
    }


def cloud_of(work, name, id):
    "(P, 6) points and normals."
    with np.load(work/name/"pointcloud"/f"{id}.npz") as data:
        return np.concatenate([data["points"], data["normals"]], 1)


def configs(work, steps_per_second, minutes, batch_size, num_train, lr):
    model, _ = recipe("tiny")
    model = replace(
        model, image_encoder_name="", num_points=1024, num_point_tokens=32, point_encoder_hidden_dim=128, llm_config=LLM
    )
    epochs = max(1, round(60*minutes*2*steps_per_second*batch_size/num_train))
    stage = CurriculumStage("stage1_points", {"text+points": 1.0}, num_epochs=epochs, lr=lr)
    return model, TrainConfig(
        stages=[stage], data_root=str(work/"train"), omnicad_txt_path=str(work/"no captions"),
        output_dir=str(work/"run"), batch_size=batch_size, no_prefix_prob=1.0, max_tokens_per_batch=512,
        warmup_steps=100, save_steps=0, save_minutes=5, logging_steps=10, num_val_samples=0,
        projector_lr_multiplier=1.0, new_token_lr_multiplier=1.0, device="cpu"
    )


def steps_a_second(model, training, steps=12):
    "Of CPU time, after three steps to warm up."
    trainer = Trainer(model, replace(training, output_dir=f"{training.output_dir}-timing"))
    trainer.state.output_dir.mkdir(parents=True, exist_ok=True)
    open_data(trainer.state, trainer.output)
    trainer.state.progress.next_stage(0)
    trainer.optimization.begin_stage()
    trainer.state.model.train()
    stream = trainer.stepper.micro_batches(trainer.state.plan())
    for _ in range(3): trainer.stepper.train_step(stream, trainer.state.plan())
    began = time.process_time()
    for _ in range(steps): trainer.stepper.train_step(stream, trainer.state.plan())
    return steps/(time.process_time() - began)


def boxed(points):
    "(points in the unit box around the origin, center, scale)."
    low, high = points.min(0), points.max(0)
    return (points - (low + high)/2)/(high - low).max(), (low + high)/2, (high - low).max()


def nearest(given, clouds):
    "The id of the cloud that is nearest to the given one."
    return min(clouds, key=lambda id: chamfer(given, clouds[id]))


def judge(points, truth):
    "Chamfer distance (unsquared, both directions) with the truth's longest side 1."
    _, center, scale = boxed(truth)
    return chamfer((points - center)/scale, (truth - center)/scale)


def build(completer, result):
    "The solid of a result, built again; None where there is none."
    return completer.checker.check(CADProgram.from_json(result))[0] if result["sequence"] else None


def loss(completer, shown):
    "Mean negative log-likelihood per token of whole parts, given their points."
    total = np.zeros(2)
    with torch.no_grad():
        for program, cloud in shown:
            sample = completer.reader.read(point_cloud=cloud[:2048]).sample
            sample = replace(sample, target=completer.codec.split(program.moved(-sample.origin), 0, sample.grid)[1])
            out = completer.model(completer.model.builder.collate([sample]).to(completer.model.device))
            total += out["loss_sum"].item(), out["num_tokens"]
    return total[0]/total[1]


def real_beginnings(root, num):
    "Up to `num` real histories that can be said in the token language, each without its last sketch and extrude."
    out = []
    for path in sorted((Path(root)/"json").rglob("*.json")):
        try:
            program = CADProgram.from_json(path)
            encode(program)
        except ValueError: continue
        if len(program) > 3: out.append(program.truncate(len(program) - 2))
        if len(out) == num: break
    return out


def real_lines(completer, root, num):
    "The table of real histories."
    beginnings = [p.to_json() for p in real_beginnings(root, num)]
    lines = [
        f"\n## Real histories\n\n{len(beginnings)} beginnings of Omni-CAD, the last two operations left out, completed "
        "by the same model, which has seen neither real parts nor beginnings; shares are of those that leave room "
        f"within its {completer.model.config.max_seq_length:,} tokens.",
        "", *table_head("", "too long", "parses", "builds", "beginning unchanged", "operations added, mean")
    ]
    for name, sampling in {"greedy": dict(temperature=0.), "temperature 0.7": dict(temperature=.7)}.items():
        results = completer.complete_many(
            [dict(partial_json=b) for b in beginnings], **sampling, batch_size=8, check="kernel"
        )
        served = [(r, b) for r, b in zip(results, beginnings) if "error" not in r["metadata"]]
        kept = [
            r["sequence"][:len(b["sequence"])] == b["sequence"]
            and all(r["entities"].get(k) == v for k, v in b["entities"].items()) for r, b in served
        ]
        told = [r["metadata"] for r, _ in served]
        parses = sum(not any("nothing usable" in n for n in m["notes"]) for m in told)
        shares = [f"{100*n/len(served):.1f}%" for n in (parses, sum(m["valid"] is True for m in told), sum(kept))]
        lines.append(
            f"| {name} | {len(results) - len(served)} | {' | '.join(shares)} | "
            f"{np.mean([m['generated_operations'] for m in told]):.1f} |"
        )
    return lines


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="on two cores")
    parser.add_argument(
        "--train", type=int, default=40000, help="parts to learn from; making them takes a quarter of an hour"
    )
    parser.add_argument("--test", type=int, default=100, help="held-out parts, of the work folder's at most")
    parser.add_argument("--retrieve_from", type=int, default=2000, help="training parts to retrieve from")
    parser.add_argument("--real", type=int, default=24, help="beginnings of real histories, where OMNI_CAD_ROOT is set")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=.7)
    parser.add_argument("--work", default="tiny_model")
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    make_data(work, args.train, args.test, args.threads)
    known = programs(work, "train")
    seen = {tuple(encode(p)) for p in tqdm(known.values(), desc="looking for copies", unit="part")}
    asked = [(id, p) for id, p in programs(work, "test").items() if tuple(encode(p)) not in seen]
    asked = {id: (p, cloud_of(work, "test", id)) for id, p in asked[:args.test]}
    if not (work/"run"/"final_model").exists():
        plan = work/"plan.json"
        if not plan.exists():
            plan.write_text(json.dumps(steps_a_second(*configs(work, 1, 1, args.batch, len(known), args.lr))))
        model, training = configs(work, json.loads(plan.read_text()), args.minutes, args.batch, len(known), args.lr)
        print(f"{json.loads(plan.read_text()):.2f} steps a CPU second: {training.stages[0].num_epochs} epochs")
        train(model, replace(training, resume_from_ckpt="auto"))
    spent = json.loads((work/"run"/"final_model"/"checkpoint_metadata.json").read_text())
    completer = CADAutocomplete(work/"run"/"final_model", device="cpu", kernel="manifold")
    clouds = {id: cloud_of(work, "train", id) for id in list(known)[:args.retrieve_from]}
    retrievable = {id: cloud[::4, :3] for id, cloud in clouds.items()}
    in_boxes = {id: boxed(cloud)[0] for id, cloud in retrievable.items()}
    rows = {}
    items = [dict(point_cloud=cloud[:2048]) for _, cloud in asked.values()]
    runs = {
        "greedy": dict(temperature=0.),
        f"best of {args.candidates}": dict(temperature=args.temperature, num=args.candidates)
    }
    truths = {id: cloud[2048:, :3] for id, (_, cloud) in asked.items()}
    for name, sampling in runs.items():
        results = completer.complete_many(items, **sampling, batch_size=8, check="kernel")
        solids = [build(completer, r) for r in results]
        rows[name] = [
            np.inf if s is None else judge(s.points(2048, 1)[:, :3], truths[id]) for id, s in zip(truths, solids)
        ]
        rows[name + " parses"] = np.mean([bool(r["sequence"]) for r in results])
        rows[name + " builds"] = np.mean([s is not None for s in solids])
    rows |= {RETRIEVED: [], STRETCHED: []}
    for id, (_, cloud) in tqdm(asked.items(), desc="retrieving", unit="part"):
        given, (_, center, scale) = cloud[:2048:2, :3], boxed(cloud[:2048, :3])
        rows[RETRIEVED].append(judge(clouds[nearest(given, retrievable)][:2048, :3], truths[id]))
        rows[STRETCHED].append(
            judge(boxed(clouds[nearest(boxed(given)[0], in_boxes)][:2048, :3])[0]*scale + center, truths[id])
        )
    rows[FLOOR] = [judge(cloud[:2048, :3], truths[id]) for id, (_, cloud) in asked.items()]
    base = np.median(rows[RETRIEVED])
    lines = [
        f"# From points to parts in {args.minutes:g} minutes on two cores\n",
        f"{len(known):,} training parts, {len(asked)} held-out parts (copies of training parts left out), points only; "
        f"{spent['step']:,} steps of {args.batch} parts.",
        "",
        *table_head("", "parses", "builds", "Chamfer distance, median", "against retrieval", "mean of those that build")
    ]
    for name in [*runs, RETRIEVED, STRETCHED, FLOOR]:
        v = np.array(rows[name])
        finite = v[np.isfinite(v)]
        shares = [f"{100*rows[f'{name} {k}']:.1f}%" if f"{name} {k}" in rows else "" for k in ("parses", "builds")]
        lines.append(
            f"| {name} | {' | '.join(shares)} | {np.median(v):.4f} | {np.median(v)/base:.2f} | {finite.mean():.4f} |"
        )
    first = {
        "that were trained on": [(known[id], clouds[id]) for id in list(clouds)[:100]], "held out": list(asked.values())
    }
    lines.append(
        "\nLoss a token: "
        + ", ".join(f"{loss(completer, shown):.2f} on {len(shown)} parts {name}" for name, shown in first.items()) + "."
    )
    if root := os.environ.get("OMNI_CAD_ROOT"): lines += real_lines(completer, root, args.real)
    print("\n".join(lines))
    write_out(args.out, "\n".join(lines))


if __name__ == "__main__":
    main()
