#!/usr/bin/env python3
"""Speed of writing parts: alone and in a batch, free and held to the grammar, against transformers' `generate` with the
same weights.

    python benchmarks/inference.py [--checkpoint FOLDER] [--device cpu|cuda] [--new-tokens 128] [--rounds 5] [--out
    benchmarks/results/inference.md]

Without a checkpoint the weights are random, which costs the same. Every variant writes the same number of tokens (no
row may end early) after prompts of the same lengths; rounds are interleaved, so that a slow spell
of the machine hits all variants; medians are given. On a CPU one thread is used and its own time is measured, on a GPU
the time that passes. The second table takes parts from nothing and from beginnings, and counts what parses, builds, and
keeps its beginning.
"""
import statistics
import time
from pathlib import Path

import torch

from cad_mllm.config import recipe
from cad_mllm.data import Sample
from cad_mllm.models import GrammarLogitsProcessor
from cad_mllm.inference import CADAutocomplete
from cad_mllm.models import CADMLLMModel
from cad_mllm.data import make_part
from common import make_parser, table_head, write_out


class Endless:
    "The grammar with `<end>` and the end of text closed where anything else may follow, so that all rows write on."
    def __init__(self, model, rows, new_tokens, num_given=0):
        self.grammar = GrammarLogitsProcessor(model.tokenizer, [[]]*rows, 10*new_tokens, num_given)
        self.closed = torch.tensor(model.eos_token_ids(), device=model.device)

    def __call__(self, ids, logits): return self.grammar(ids, logits).index_fill(1, self.closed, -torch.inf)


class Free:
    "Nothing closed but the ends."
    def __init__(self, model): self.closed = torch.tensor(model.eos_token_ids(), device=model.device)

    def __call__(self, ids, logits): return logits.index_fill(1, self.closed, -torch.inf)


def ours(model, prompts, new_tokens, constrained):
    processor = Endless(model, len(prompts.input_ids), new_tokens) if constrained else Free(model)
    return model.generate(prompts, new_tokens, processor)


def theirs(model, prompts, new_tokens, constrained):
    from transformers import LogitsProcessorList
    num_given = prompts.input_ids.shape[1]
    processor = Endless(model, len(prompts.input_ids), new_tokens, num_given) if constrained else Free(model)
    with torch.no_grad():
        out = model.llm.generate(
            input_ids=prompts.input_ids, attention_mask=(prompts.segment_ids >= 0).long(), max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, do_sample=False, logits_processor=LogitsProcessorList([processor]),
            pad_token_id=model.tokenizer.pad_token_id
        )
    return out[:, num_given:].tolist()


def prompts_of(model, rows):
    samples = [
        Sample(caption=("a plate with four holes and a boss "*(1 + i % 3)).strip(), prefix=[]) for i in range(rows)
    ]
    return model.builder.prompts(samples).to(model.device)


def speed(model, new_tokens, rounds, batch):
    "name -> tokens per second, the median of interleaved rounds."
    variants = {
        (who.__name__, rows, constrained): (who, prompts_of(model, rows), constrained) for rows in (1, batch)
        for constrained in (False, True) for who in (ours, theirs)
    }
    seconds = {key: [] for key in variants}
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    for turn in range(rounds + 1):
        for key, (who, prompts, constrained) in variants.items():
            started = clock()
            written = who(model, prompts, new_tokens, constrained)
            if model.device.type == "cuda": torch.cuda.synchronize()
            assert all(len(row) == new_tokens for row in written), key
            if turn: seconds[key].append(clock() - started)
    return {key: key[1]*new_tokens/statistics.median(s) for key, s in seconds.items()}


class Timed:
    "A logits processor that counts its own time."
    def __init__(self, processor, clock): self.processor, self.clock, self.seconds = processor, clock, 0.

    def __call__(self, ids, logits):
        started = self.clock()
        logits = self.processor(ids, logits)
        self.seconds += self.clock() - started
        return logits


def grammar_share(model, rows, new_tokens, rounds):
    """Share of the time of writing that the grammar itself takes, the median of rounds: the difference of two runs
    is lost in the noise of a machine."""
    def clock():
        if model.device.type == "cpu": return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()
    prompts, shares = prompts_of(model, rows), []
    for _ in range(rounds):
        timed, started = Timed(Endless(model, rows, new_tokens), clock), clock()
        model.generate(prompts, new_tokens, timed)
        shares.append(timed.seconds/(clock() - started))
    return statistics.median(shares)


def speed_table(rates, shares, batch):
    lines = [
        "| rows | grammar | this project, tokens/s | transformers generate, tokens/s | ratio | grammar's share of the "
        "time |",
        "|---|---|---|---|---|---|"
    ]
    for rows in (1, batch):
        for constrained in (False, True):
            a, b = rates["ours", rows, constrained], rates["theirs", rows, constrained]
            share = f"{100*shares[rows]:.1f}%" if constrained else ""
            lines.append(f"| {rows} | {'yes' if constrained else 'no'} | {a:,.0f} | {b:,.0f} | {a/b:.2f} | {share} |")
    lines.append(
        f"\nBatch of {batch} against one by one, with the grammar: "
        f"{rates['ours', batch, True]/rates['ours', 1, True]:.1f} times the tokens per second."
    )
    return lines


def quality(completer, num, check, seed=0):
    "Shares over `num` parts from nothing and `num` from beginnings, at temperature 1."
    items, beginnings = [], []
    for i in range(num):
        _, part, caption = make_part(seed + 1, i)
        kept = max(1, len(part) - 2)
        items += [dict(caption=caption), dict(caption=caption, partial_json=part.truncate(kept))]
        beginnings += [None, part.truncate(kept).to_json()]
    started = time.perf_counter()
    results = completer.complete_many(items, temperature=1., seed=seed, check=check, batch_size=16, max_new_tokens=200)
    seconds = time.perf_counter() - started
    kept = [
        r["sequence"][:len(b["sequence"])] == b["sequence"]
        and all(r["entities"][k] == v for k, v in b["entities"].items()) for r, b in zip(results, beginnings) if b
    ]
    wrote = [r["metadata"] for r in results if "error" not in r["metadata"]]
    return dict(
        parts=len(results),
        parses=sum(
            "error" not in r["metadata"] and not any("nothing usable" in n for n in r["metadata"]["notes"])
            for r in results
        )/len(results),
        builds=sum(m["valid"] is True for m in wrote)/len(results), keeps=sum(kept)/len(kept),
        taken_back=sum(c["num_rejected_operations"] for m in wrote for c in m["candidates"]), seconds=seconds
    )


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", default="", help="a trained model; random weights if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--parts", type=int, default=24, help="of the second table, each from nothing and from a beginning"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.device == "cpu": torch.set_num_threads(1)
    completer = (
        CADAutocomplete(args.checkpoint, device=args.device, kernel="manifold") if args.checkpoint
        else CADAutocomplete(CADMLLMModel(recipe("tiny")[0]).to(args.device), kernel="manifold")
    )
    model = completer.model
    size = sum(p.numel() for p in model.llm.parameters())/1e6
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    rates = speed(model, args.new_tokens, args.rounds, args.batch)
    lines = speed_table(
        rates, {rows: grammar_share(model, rows, args.new_tokens, args.rounds) for rows in (1, args.batch)}, args.batch
    )
    text = [
        f"# Writing parts\n\n{where}; {size:.1f} M parameters, "
        f"{'weights of ' + Path(args.checkpoint).name if args.checkpoint else 'random weights'}; {args.new_tokens} new "
        f"tokens a row; median of {args.rounds} interleaved rounds.",
        "", *lines, "",
        *table_head(
            "kernel in the loop", "parts", "parses", "builds", "beginning unchanged", "operations taken back", "seconds"
        )
    ]
    for check in ("end", "kernel"):
        q = quality(completer, args.parts, check)
        text.append(
            f"| {'yes' if check == 'kernel' else 'no'} | {q['parts']} | {100*q['parses']:.1f}% | "
            f"{100*q['builds']:.1f}% | {100*q['keeps']:.1f}% | {q['taken_back']} | {q['seconds']:.1f} |"
        )
    print("\n".join(text))
    write_out(args.out, "\n".join(text))


if __name__ == "__main__":
    main()
