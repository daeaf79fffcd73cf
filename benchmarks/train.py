#!/usr/bin/env python3
"""Training speed and memory, side by side with how this is commonly trained, in one run.

    python benchmarks/train.py OMNI_CAD_ROOT --tokenizer QWEN3_FOLDER [--shape tiny|qwen3_0_6b] [--device cpu|cuda]
    [--only ours,trl] [--rounds 2] [--out benchmarks/results/train.md]

Every variant trains the same model (a Qwen3 of the given shape with random weights and the real vocabulary) on the same
samples in the same order: the beginnings and wholes of real histories, text only. `tiny` is trained whole, `qwen3_0_6b`
by LoRA.
Each is a process of its own, so that its peak memory is its own; rounds are interleaved, so that a slow spell of the
machine hits all, and the best of the rounds counts for each. What is counted is CAD models per second, from reading to
the optimizer's step.

    common    minified JSON, padded to 4,000 tokens, batch of 2, logits everywhere: what repositories of this field do
    trainer   Hugging Face Trainer, our tokens, batches padded to their longest, samples grouped by length
    trl       TRL SFTTrainer, our tokens, packing (with its Liger kernels on a GPU)
    ours      this project as it comes;  ours+compile  with --compile

trainer and trl are tried with several batch sizes, and their best counts. On a GPU every history is taken twelve times
under other ids, packed into shards, so that a step can take hundreds of samples. `python benchmarks/train.py ...
--sweep` shows how a step grows with row length and batch tokens; `--data` how fast the data side alone is; on a GPU the
share of the card's measured bf16 matrix rate is given.
"""
import argparse
import fcntl
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch    # noqa: E402
from common import make_parser, table_head

SHAPES = {
    "tiny": dict(
        hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
        head_dim=32, tie_word_embeddings=True
    ),
    "qwen3_0_6b": dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, tie_word_embeddings=True, initializer_range=0.02
    )
}
ROW = {"tiny": 1024, "qwen3_0_6b": 4096}          # tokens of a packed row
LONGEST = {"tiny": 1024, "qwen3_0_6b": 2048}      # tokens of a sample: the recipe's max_seq_length
LR = 2e-4


def settings(args):
    "(CADMLLMConfig, TrainConfig) of this project."
    from cad_mllm.config import CADMLLMConfig, CurriculumStage, TrainConfig
    lora = args.shape != "tiny"
    model = CADMLLMConfig(
        llm_model_name="tiny", llm_config=SHAPES[args.shape], use_lora=lora, lora_dropout=args.lora_dropout,
        image_encoder_name="", point_encoder_name="", max_seq_length=LONGEST[args.shape],
        dtype="bfloat16" if args.device == "cuda" else "float32"
    )
    own = args.variant.startswith(("ours", "data"))
    training = TrainConfig(
        data_root=args.data_root, output_dir=args.work,
        stages=[CurriculumStage("stage1_text", {"text": 1.0}, num_epochs=1000, lr=LR)],
        batch_size=args.batch if own and args.batch else 320 if args.device == "cuda" else 32,
        num_val_samples=0, device=args.device, num_workers=args.workers, compile=args.variant == "ours+compile",
        max_tokens_per_batch=args.row or ROW[args.shape], warmup_steps=0
    )
    return model, training


def tokenizer_of(args, codec):
    from cad_mllm.config import CADMLLMConfig
    from cad_mllm.data import load_tokenizer
    return load_tokenizer(CADMLLMConfig(llm_model_name=args.tokenizer or "tiny"), codec)


def build(args):
    "(model of this project, its Trainer)"
    from cad_mllm.models import CADMLLMModel
    from cad_mllm.cad import get_codec
    from cad_mllm.training import open_data, Trainer
    config, training = settings(args)
    model = CADMLLMModel(config, tokenizer_of(args, get_codec("tokens")))
    args.turn = turn(args)
    args.turn.__enter__()
    trainer = Trainer(config, training, model)
    Path(args.work).mkdir(parents=True, exist_ok=True)
    open_data(trainer.state, trainer.output)
    trainer.state.progress.next_stage(0)
    return model, trainer


def order(data, rounds=1000):
    "Places of samples in the order that every variant takes them."
    return itertools.chain.from_iterable(((epoch, int(i)) for i in data.order(epoch)) for epoch in range(rounds))


def sync(device): device == "cuda" and torch.cuda.synchronize()


@contextmanager
def turn(args):
    "Variants that were started together measure one after the other."
    if not args.lock:
        yield
        return
    with open(args.lock, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def measure(args, steps, warmup=2):
    """Run `steps`, a generator that yields the samples of each step after it; seconds and samples behind the
    warm-up, and the peak of memory."""
    if args.device == "cuda": torch.cuda.reset_peak_memory_stats()
    num, began, done = 0, None, 0
    for samples in steps:
        done += 1
        if done == warmup:
            sync(args.device)
            began = time.perf_counter()
            continue
        if began is None: continue
        num += samples
        sync(args.device)
        if done >= warmup + args.steps or time.perf_counter() - began > args.seconds: break
    sync(args.device)
    seconds = time.perf_counter() - began
    memory = (
        torch.cuda.max_memory_allocated() if args.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
    )
    return dict(samples=num, seconds=seconds, rate=num/seconds, memory=memory)


def run_ours(args):
    model, trainer = build(args)
    trainer.optimization.begin_stage()
    model.train()
    plan = trainer.state.plan()
    stream = trainer.stepper.micro_batches(plan)
    def steps():
        while True:
            before = trainer.state.progress.position
            trainer.stepper.train_step(stream, plan)
            yield trainer.state.progress.position - before
    # batches of another composition are compiled for once more
    result = measure(args, steps(), warmup=12 if args.variant == "ours+compile" else 2)
    result["skipped"] = trainer.state.progress.skipped_samples
    if args.device == "cuda":
        result |= matrix_share(args, model, trainer)
        if args.variant == "ours": result["memory_by_tokens"] = memory_table(model, trainer)
    return result


def run_common(args):
    "The loop of the field: JSON text, everything padded to 4,000, loss over all positions, two at a time."
    model, trainer = build(args)
    llm, tokenizer, data = model.llm.train(), model.tokenizer, trainer.state.data
    optimizer = torch.optim.AdamW([p for p in llm.parameters() if p.requires_grad], lr=LR)
    places, cut = order(data), [0, 0]
    def steps():
        while True:
            texts = []
            for _epoch, i in itertools.islice(places, 2):
                path = Path(args.json_root or args.data_root)/"json"/f"{data.table.named(i)[1]}.json"
                texts.append(
                    "Complete this CAD sequence: \n" + json.dumps(json.loads(path.read_text()), separators=(",", ":"))
                    + tokenizer.eos_token
                )
            enc = tokenizer(
                texts, padding="max_length", truncation=True, max_length=4000, return_tensors="pt", padding_side="right"
            )
            cut[0] += sum(len(tokenizer(t).input_ids) > 4000 for t in texts)
            cut[1] += 2
            labels = enc.input_ids.masked_fill(enc.attention_mask == 0, -100)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                loss = llm(
                    input_ids=enc.input_ids.to(args.device), attention_mask=enc.attention_mask.to(args.device),
                    labels=labels.to(args.device), use_cache=False
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield 2
    return measure(args, steps(), warmup=1) | dict(cut=cut[0]/cut[1])


def token_rows(model, trainer, num):
    "The first `num` samples as ids and labels, as our builder lays them out."
    rows, places = [], order(trainer.state.data)
    while len(rows) < num:
        sample = trainer.state.data.sample(*next(places))
        context, target = model.builder.context_ids(sample), model.builder.target_ids(sample)
        if len(context) + len(target) <= model.builder.max_seq_length:
            rows.append(dict(input_ids=context + target, labels=[-100]*len(context) + target))
    return rows


class Clock:
    "A callback for Hugging Face's loop that measures as `measure` does."
    def __new__(cls, args, samples_of):
        from transformers import TrainerCallback
        class Inner(TrainerCallback):
            started, steps, samples = None, 0, 0
            def on_step_end(self, _, state, control, **kwargs):
                sync(args.device)
                self.steps += 1
                if self.steps == 3:
                    self.started = time.perf_counter()
                    if args.device == "cuda": torch.cuda.reset_peak_memory_stats()
                elif self.steps > 3:
                    self.samples = samples_of(self.steps) - samples_of(3)
                    self.seconds = time.perf_counter() - self.started
                    if self.steps >= 3 + args.steps or self.seconds > args.seconds: control.should_training_stop = True
        return Inner()


def hf_common(args, batch):
    "TrainingArguments that both of Hugging Face's trainers get."
    return dict(
        output_dir=f"{args.work}/hf", per_device_train_batch_size=batch, num_train_epochs=50, learning_rate=LR,
        warmup_steps=0, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0, logging_steps=10**9,
        save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, bf16=args.device == "cuda",
        use_cpu=args.device == "cpu", optim="adamw_torch_fused" if args.device == "cuda" else "adamw_torch",
        dataloader_num_workers=0, torch_compile=args.hf_compile
    )


def run_trainer(args):
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    model, trainer = build(args)
    llm = model.llm.train()
    batch = args.batch or 8
    rows = token_rows(model, trainer, 2000)*4
    options = hf_common(args, batch)
    import inspect
    known = inspect.signature(TrainingArguments).parameters
    options |= (
        {"train_sampling_strategy": "group_by_length"} if "train_sampling_strategy" in known
        else {"group_by_length": True}
    )
    clock = Clock(args, lambda n: n*batch)
    pad = DataCollatorForSeq2Seq(model.tokenizer, padding=True, label_pad_token_id=-100, pad_to_multiple_of=8)
    Trainer(llm, TrainingArguments(**options), train_dataset=rows, data_collator=pad, callbacks=[clock]).train()
    return finish(args, clock)


def run_trl(args):
    import uuid
    import datasets
    from trl import SFTConfig, SFTTrainer
    # its hash of a table fails with some versions of pyarrow
    datasets.arrow_dataset.generate_fingerprint = lambda dataset: uuid.uuid4().hex[:16]
    model, trainer = build(args)
    llm = model.llm.train()
    batch, length = args.batch or 8, ROW[args.shape]
    rows = token_rows(model, trainer, 2000)*4
    packing = dict(packing=True, max_length=length, packing_strategy=args.packing, use_liger_kernel=args.liger)
    config = SFTConfig(
        **hf_common(args, batch), **packing, dataset_kwargs={"skip_prepare_dataset": False},
        gradient_checkpointing=False
    )
    data = datasets.Dataset.from_list(
        [{"input_ids": r["input_ids"], "completion_mask": [int(x != -100) for x in r["labels"]]} for r in rows]
    )
    own = SFTTrainer(llm, config, train_dataset=data, processing_class=model.tokenizer)
    per_row = len(rows)/len(own.train_dataset)
    clock = Clock(args, lambda n: n*batch*per_row)
    own.add_callback(clock)
    own.train()
    return finish(args, clock) | dict(samples_per_row=per_row)


def finish(args, clock):
    memory = (
        torch.cuda.max_memory_allocated() if args.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
    )
    return dict(samples=clock.samples, seconds=clock.seconds, rate=clock.samples/clock.seconds, memory=memory)


def memory_table(model, trainer, sizes=(40, 80, 160)):
    "Peak of memory and seconds of one step, by tokens of the batch, without and with gradient checkpointing."
    rows, samples = [], [trainer.state.data.sample(0, int(i)) for i in trainer.state.data.order(0)[:max(sizes)]]
    for checkpointing in (False, True):
        model.gradient_checkpointing(checkpointing)
        for size in sizes:
            batch = model.builder.collate(samples[:size], max_tokens=ROW["qwen3_0_6b"]).to(model.device)
            for _ in range(2):
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                (model(batch)["loss_sum"]/batch.num_tokens).backward()
                torch.cuda.synchronize()
            rows.append(
                dict(
                    checkpointing=checkpointing, tokens=int((batch.segment_ids >= 0).sum()), predicted=batch.num_tokens,
                    peak=torch.cuda.max_memory_allocated(), seconds=time.perf_counter() - began
                )
            )
    model.gradient_checkpointing(False)
    return rows


def matrix_rate(size=8192, rounds=10):
    "Operations a second of a bf16 matrix product on this card."
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3): a @ b
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        began = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began[0].record()
        a @ b
        began[1].record()
        torch.cuda.synchronize()
        times.append(began[0].elapsed_time(began[1])/1e3)
    return 2*size**3/statistics.median(times)


def matrix_share(args, model, trainer):
    """Share of the measured matrix rate that a step reaches, on batches that are at hand: what its matrix products
    and causal attention need, once."""
    from cad_mllm.models import base_model, VarlenBatch
    from cad_mllm.training import CountProducts
    stream = trainer.stepper.micro_batches(trainer.state.plan())
    batches = [next(stream).to(model.device) for _ in range(4)]
    def step(batch):
        loss = model(batch)["loss_sum"]/batch.num_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.optimization.trainable(), 1.0)
        trainer.optimization.optimizer.step()
        trainer.optimization.optimizer.zero_grad()
    for batch in batches: step(batch)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches*2: step(batch)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began)/2
    # counted as the model is written
    for layer in model.layers:
        layer._compiled_call_impl = None
    model.token_layers.chunk_loss = model.token_layers.all_at_once
    with CountProducts() as counter:
        for batch in batches: (model(batch)["loss_sum"]/batch.num_tokens).backward()
    trainer.optimization.optimizer.zero_grad()
    rate, tokens = matrix_rate(), sum(int((b.segment_ids >= 0).sum()) for b in batches)
    shape = base_model(model.llm).config
    squares = sum(float((VarlenBatch.of(b.segment_ids).starts.diff().double()**2).sum()) for b in batches)
    # causal attention: two products forward, four backward, half of each square
    flops = counter.total + 6*squares*shape.num_attention_heads*shape.head_dim*shape.num_hidden_layers
    return dict(
        flops=flops, step_seconds=seconds, tokens_per_second=tokens/seconds, achieved=flops/seconds, matrix_rate=rate,
        share=flops/seconds/rate, rows=[list(b.input_ids.shape) for b in batches],
        real=tokens/sum(b.input_ids.numel() for b in batches)
    )


def run_data(args):
    "Samples a second of the data side alone."
    model, trainer = build(args)
    plan = trainer.state.plan()
    stream = trainer.stepper.micro_batches(plan)
    def steps():
        for batch in stream: yield batch.num_samples
    return measure(args, steps())


VARIANTS = {
    "common": run_common, "trainer": run_trainer, "trl": run_trl, "ours": run_ours, "ours+compile": run_ours,
    "data": run_data
}


def parse(argv=None):
    parser = make_parser(__doc__, out=False)
    parser.add_argument("data_root")
    parser.add_argument(
        "--tokenizer", default="", help="a folder with the tokenizer of Qwen3; without it a tiny vocabulary is used"
    )
    parser.add_argument("--shape", default="tiny", choices=list(SHAPES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", default="common,trainer,trl,ours")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="counted steps of a process at most")
    parser.add_argument("--seconds", type=float, default=20, help="and seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that read data, for ours and for --only data")
    parser.add_argument("--lora_dropout", type=float, default=0.1, help="as in the recipe")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", default="")
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--row", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--packing", default="bfd", help=argparse.SUPPRESS)
    parser.add_argument("--liger", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hf_compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--json_root", default="", help=argparse.SUPPRESS)
    parser.add_argument("--lock", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def child(args, **changes):
    "Run one variant in a process of its own; its result, or why there is none."
    flags = {**vars(args), **changes}
    with tempfile.TemporaryDirectory() as work:
        flags["work"] = work
        command = [sys.executable, __file__, flags.pop("data_root")]
        for key, value in flags.items():
            if key in ("out", "only", "rounds"): continue
            if value is True: command.append(f"--{key}")
            elif value not in (False, ""): command += [f"--{key}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines: return json.loads(lines[-1][7:])
    return dict(
        error=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300], log=done.stderr[-3000:]
    )


def jobs(args):
    "(variant, its changes) of a round."
    sizes = {
        "trainer": (16, 32) if args.device == "cuda" else (4, 8, 16), "trl": (2, 8) if args.device == "cuda" else (1, 2)
    }
    for name in args.only.split(","):
        for size in sizes.get(name, (0,)):
            yield name, dict(batch=size, **({"liger": size == 8} if name == "trl" and args.device == "cuda" else {}))


def enlarge(args, folder, times=12):
    """Every history `times` times under other ids, as a folder and packed: enough for steps that take hundreds; the
    flags that point there."""
    from cad_mllm.data import pack
    for path in Path(args.data_root, "json").rglob("*.json"):
        for n in range(times):
            copy = folder/"many"/"json"/f"{n:02d}{path.parent.name[-2:]}"/path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pack(folder/"many", folder/"pack")
    return dict(data_root=str(folder/"pack"), json_root=str(folder/"many"))


def run_all(args):
    "name -> the best result of rounds and batch sizes; all of them are printed."
    best, todo = {}, [job for _ in range(args.rounds) for job in jobs(args)]
    # starting takes long and no GPU; measuring goes by turns
    together = len(todo) if args.device == "cuda" else 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(together) as pool:
        changes = dict(lock=args.lock or f"{folder}/lock", **enlarge(args, Path(folder))) if together > 1 else {}
        def do(job):
            result = child(args, variant=job[0], **job[1], **changes)
            print(
                *job, {k: v for k, v in result.items() if k != "log"},
                result.get("log", "") if "error" in result else "", flush=True
            )
            return result
        for (name, options), result in zip(todo, pool.map(do, todo)):
            if "rate" in result and result["rate"] > best.get(name, {}).get("rate", 0): best[name] = result | options
    return best


LABELS = {
    "common": "the common loop: JSON, padded to 4,000, batch 2", "trainer": "Hugging Face Trainer, our tokens",
    "trl": "TRL SFTTrainer, packing, our tokens", "ours": "this project", "ours+compile": "this project, --compile",
    "data": "this project, data side alone"
}


def table(args, best):
    "The results as lines of Markdown."
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} threads of an x86-64 CPU"
    ours = max((best[k] for k in ("ours", "ours+compile") if k in best), key=lambda r: r["rate"])
    lines = [
        f"## {args.shape} on {where}", "",
        *table_head(
            "variant", "CAD models/s", "ours / this", "peak memory, GB", "ours / this", "best of its batch sizes"
        )
    ]
    for name, r in best.items():
        lines.append(
            f"| {LABELS[name]} | {r['rate']:.2f} | {ours['rate']/r['rate']:.2f} | {r['memory']/1e9:.1f} | "
            f"{ours['memory']/r['memory']:.2f} | {r['batch'] or ''} |"
        )
    if "cut" in best.get("common", {}):
        lines.append(f"\nThe common loop cuts off {100*best['common']['cut']:.0f}% of its parts.")
    if "data" in best:
        lines.append(
            f"\nThe data side alone gives {best['data']['rate']:.0f} samples/s, "
            f"{best['data']['rate']/ours['rate']:.1f} times what the model takes."
        )
    for name, r in best.items():
        for row in r.get("memory_by_tokens", ()):
            lines.append(
                f"- {'with' if row['checkpointing'] else 'without'} gradient checkpointing, {row['tokens']:,} tokens "
                f"of which {row['predicted']:,} are predicted: {row['peak']/1e9:.1f} GB, {row['seconds']:.2f} s"
            )
        if "share" in r:
            lines.append(
                f"\n{LABELS[name]}: {r['tokens_per_second']:,.0f} tokens/s, {r['achieved']/1e12:.0f} TFLOP/s in matrix "
                f"products and attention, {100*r['share']:.0f}% of the {r['matrix_rate']/1e12:.0f} TFLOP/s "
                f"that an 8,192 x 8,192 bf16 product reaches on this card; {100*r['real']:.1f}% of the packed "
                "positions are real."
            )
    return lines


def sweep(args):
    "How a step grows with the length of rows and with samples a batch."
    lines = [
        "", "How this project's step grows:", "",
        *table_head("samples a batch", "tokens of a row", "CAD models/s", "milliseconds a sample", "peak memory, GB")
    ]
    for batch, row in ((8, 1024), (16, 1024), (32, 1024), (64, 1024), (32, 320), (32, 4096)):
        r = child(args, variant="ours", batch=batch, row=row)
        lines.append(
            f"| {batch} | {row:,} | {r['rate']:.2f} | {1e3/r['rate']:.0f} | {r['memory']/1e9:.1f} |" if "rate" in r
            else f"| {batch} | {row:,} | {r['error']} | | |"
        )
    return lines


def main(args):
    best = run_all(args)
    lines = table(args, best) + (sweep(args) if args.sweep else [])
    print("\n".join(lines))
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")
        Path(args.out).with_suffix(".json").write_text(json.dumps(best, indent=1) + "\n")


if __name__ == "__main__":
    args = parse()
    if args.variant:
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        print("RESULT " + json.dumps(VARIANTS[args.variant](args)), flush=True)
        os._exit(0)
    main(args)
