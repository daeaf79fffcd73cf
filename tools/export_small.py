#!/usr/bin/env python3
"""Put trained weights into the package, in half precision: cad_mllm/small_model, which `CADAutocomplete("small")`
reads.

    python tools/export_small.py RUN_OR_CHECKPOINT [--out cad_mllm/small_model] [--commit SHA] [--begun_from WORDS]
    [--license apache-2.0]

Of a run's folder the checkpoint with the lowest validation loss on held-out procedural parts is taken. The manifest
says where the weights come from: commit, seed, data, hours. More than 12 MB is refused.
"""
import argparse
import json
import shutil
from pathlib import Path

from cad_mllm.checkpoints import list_checkpoints
from cad_mllm.checkpoints.legacy import read_config
from cad_mllm.model_card import write_card
from cad_mllm.models.given_weights import halve
from cad_mllm.training.run_files import read_metrics

MOST = 12e6
ROOT = Path(__file__).resolve().parent.parent


def best_of(folder):
    "A checkpoint itself, or the best of a run."
    records = [r for r in list_checkpoints(folder) if r.complete]
    return min(records, key=lambda r: r.val_loss if r.val_loss is not None else float("inf")).path


def provenance(run, checkpoint, commit, begun_from):
    "What somebody needs to make the same weights again."
    train, rows = read_config(checkpoint)[1], read_metrics(run)
    spent = dict(hours=round(rows[-1]["seconds"]/3600, 2), samples=rows[-1]["samples"]) if rows else {}
    told = dict(data=train.data_root, seed=train.seed) if train else {}
    if begun_from: told["begun_from"] = begun_from
    return dict(
        commit=commit, **told, **spent, trained_on="procedural parts alone; no photograph, no free text, no real part"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("--out", default=str(ROOT/"cad_mllm"/"small_model"))
    p.add_argument("--commit", default="", help="of the code that trained")
    p.add_argument("--begun_from", default="", help="the weights that --init_from gave, in words")
    p.add_argument("--license", default="apache-2.0")
    args = p.parse_args()
    checkpoint = best_of(args.run)
    told = provenance(Path(args.run), checkpoint, args.commit, args.begun_from)
    out = halve(checkpoint, args.out, told)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    if size > MOST:
        shutil.rmtree(out)
        raise SystemExit(
            f"{checkpoint}: {size/1e6:.1f} MB in half precision; the package takes {MOST/1e6:.0f} MB at most"
        )
    card = write_card(out, out.with_name(f"{out.name}_card"), "small", args.license)
    with Path(card).open("a", encoding="utf-8") as file:
        file.write("\n## Provenance\n\n" + "".join(f"- {k.replace('_', ' ')}: {v}\n" for k, v in told.items()))
    print(f"{checkpoint} -> {out} ({size/1e6:.1f} MB); card in {card or out}")
    print(json.dumps(json.loads((out/"manifest.json").read_text(encoding="utf-8"))["metadata"], indent=1)[:600])


if __name__ == "__main__": main()
