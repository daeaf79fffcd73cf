"""What reading data costs: indexing and opening again, folder against shards, and the rate at which batches can be fed.

usage: python benchmarks/data.py [--only index,read,feed] [--sizes 1000,10000,100000] [--jobs 0] [--cpu] [--designs 300]
[--work DIR] [--seconds 6] [--quick] [--out FILE.md]

A run of one part (--only) or of one size replaces these sections and rows of --out and leaves the others; every row has
its own baseline, measured just before.

Index. N pairs (a beginning and its whole) are laid out as files: the histories of the synthetic families with five
beginnings each, every file written on its own under its own id.
  json baseline   every file is opened and parsed by the standard json module, in this process, one by one; nothing is
  checked
  index           MultimodalAutocompleteDataset(ROOT, index_path=...) for the first time: every pair read, checked and
  encoded, by --jobs processes
  reopen          the same call again, which reads the index file; `files asked` counts calls of os.stat, os.scandir and
  open on the data meanwhile
  changed         again after one file was added: signatures of all files are compared, and what is new is read
  open packed     MultimodalAutocompleteDataset(SHARDS): what `cad-mllm shard` wrote, with no index kept by the reader
Every column beside the baseline also says how many times the baseline's time it takes (below 1 is faster).

Folder against shards. --designs parts with eight pictures and a cloud, all modalities drawn, samples visited in the
order of an epoch, by one process without a cache of encoded histories, so that every sample reads its files. Samples a
second:
  warm            after one pass
  cold            the kernel's cache of the files dropped before the pass (all caches where the system permits it, else
  file by file with posix_fadvise)
  5 ms            each call that opens a file or asks for its status sleeps 5 ms first (open, os.open, os.stat), as on a
  far disk; reading costs nothing extra
  5 ms, reads     and each read of file content too, of which shards need one a sample
"decode only" is the rate with the bytes already in memory: no form can be faster, and where both come near it, the disk
is not what takes the time. The same in brackets for histories alone (text only), where there is little to decode.

Feed. Packed batches of 16 samples from shards (warm), with 0, 1 and 2 reader processes, with all modalities and with
text only, encoded histories cached as in training.
"""
import sys
import builtins
import contextlib
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tests"))
from chapters import Chapter
D = Chapter("cad_mllm.data")
from cad_mllm.cad import truncation_counts
from cad_mllm.config import CADMLLMConfig
from cad_mllm.utils.cpus import allotted_cpus
from cad_mllm.data import MultimodalAutocompleteDataset, PromptBuilder, batches, load_tokenizer, pack
from cad_mllm.data import prepare
from cad_mllm.data import FAMILIES, synthesize
from cad_mllm.cad import get_codec
from common import cpu_timed, machine_line, make_parser, table_head, timed

ALL = {"text+points+image": 1.0}


def histories(num):
    "`num` designs of five beginnings or as many as they have: (whole text, [beginning texts])."
    out, names, i = [], list(FAMILIES), 0
    while len(out) < num:
        program, _ = FAMILIES[names[i % len(names)]](np.random.default_rng([11, i]))
        i += 1
        if len(program) > 1:
            out.append(
                (
                    json.dumps(program.to_json()),
                    [json.dumps(program.truncate(k).to_json()) for k in truncation_counts(len(program))]
                )
            )
    return out


def write_pairs(root, num_pairs, kinds):
    "At least `num_pairs` pairs below `root`; returns how many."
    pairs = design = 0
    while pairs < num_pairs:
        whole, cuts = kinds[design % len(kinds)]
        id = f"{design//1000:04d}/{design:08d}_00001"
        for folder in ("json", "json_truncated"):
            if not design % 1000: Path(root, folder, f"{design//1000:04d}").mkdir(parents=True)
        Path(root, "json", f"{id}.json").write_text(whole)
        for n, text in enumerate(cuts, 1): Path(root, "json_truncated", f"{id}_tr_{n:02d}.json").write_text(text)
        pairs += len(cuts)
        design += 1
    Path(root, "txt").mkdir()
    Path(root, "txt", "0000.json").write_text(
        json.dumps(
            [{"id": f"{d//1000:04d}/{d:08d}_00001", "text caption": f"A part, number {d}."} for d in range(design)]
        )
    )
    return pairs


def age(root):
    "As if it had been written a minute ago: a folder changed within two seconds is looked at again."
    for folder, _, names in os.walk(root):
        for f in [folder, *(os.path.join(folder, n) for n in names if "/txt" in folder)]:
            os.utime(f, (time.time() - 60,)*2)


@contextlib.contextmanager
def calls(root, delay=0.0, reads=0.0):
    """Count and delay file calls below `root`: open, os.open, os.stat, os.scandir; with `reads` also os.pread and
    read()."""
    count = {"calls": 0, "reads": 0}
    real = dict(open=builtins.open, os_open=os.open, stat=os.stat, scandir=os.scandir, pread=os.pread)
    root = str(root)

    def wrap(call):
        def inner(path, *args, **kw):
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(root):
                count["calls"] += 1
                time.sleep(delay)
            file = call(path, *args, **kw)
            return (
                Slow(file, count, reads) if reads and call is real["open"] and isinstance(path, (str, os.PathLike))
                and os.fspath(path).startswith(root) else file
            )
        return inner

    def pread(*args):
        count["reads"] += 1
        time.sleep(reads)
        return real["pread"](*args)
    builtins.open = io.open = wrap(real["open"])
    os.open, os.stat, os.scandir, os.pread = wrap(real["os_open"]), wrap(real["stat"]), wrap(real["scandir"]), pread
    try: yield count
    finally:
        builtins.open = io.open = real["open"]
        os.open, os.stat, os.scandir, os.pread = real["os_open"], real["stat"], real["scandir"], real["pread"]


class Slow:
    "A file whose read() takes a while."
    def __init__(self, file, count, delay): self._file, self._count, self._delay = file, count, delay

    def __getattr__(self, name): return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *args): return self._file.__exit__(*args)

    def read(self, *args):
        self._count["reads"] += 1
        time.sleep(self._delay)
        return self._file.read(*args)


def parse_all(root):
    "The baseline: every file through json, one process."
    for folder in ("json", "json_truncated"):
        for where, _, names in os.walk(Path(root, folder)):
            for name in names:
                with open(os.path.join(where, name), "rb") as f: json.load(f)


def measure_index(num_pairs, kinds, work, jobs, timed=timed):
    "One row of the index table; `timed` says what is counted."
    root, index, shards = work/"pairs", work/"index.npz", work/"pairs_packed"
    for old in (root, shards): shutil.rmtree(old, ignore_errors=True)
    index.unlink(missing_ok=True)
    pairs = write_pairs(root, num_pairs, kinds)
    age(root)
    def make(**kw): return MultimodalAutocompleteDataset(root, index_path=index, jobs=jobs, **kw)
    base, _ = timed(lambda: parse_all(root))
    first, ds = timed(make)
    with calls(root) as asked: reopen, again = timed(make)
    assert len(ds) == len(again) == pairs and ds.fingerprint == again.fingerprint
    shards.mkdir()
    shutil.copy(index, shards/"checked.npz")            # what pack would find out itself
    pack_time, _ = timed(lambda: pack(root, shards, jobs=jobs, tokens=False))
    packed, sealed = timed(lambda: MultimodalAutocompleteDataset(shards))
    assert sealed.fingerprint == ds.fingerprint
    id = f"{len(ds.table.ids)//1000:04d}/{len(ds.table.ids):08d}_00001"
    for folder, name, text in (
        ("json", f"{id}.json", kinds[0][0]), ("json_truncated", f"{id}_tr_01.json", kinds[0][1][0])
    ):
        Path(root, folder, name).parent.mkdir(exist_ok=True)
        Path(root, folder, name).write_text(text)
    changed, more = timed(make)
    assert len(more) == pairs + 1
    size = index.stat().st_size/1e6
    for old in (root, shards): shutil.rmtree(old)
    def ratio(t): return f"{t:.2f} s ({t/base:.3f})" if t < base/20 else f"{t:.2f} s ({t/base:.2f})"
    return (
        f"| {pairs:,} | {pairs + len(ds.table.ids):,} | {base:.2f} s (1) | {ratio(first)} | **{ratio(reopen)}** | "
        f"{asked['calls']} | {ratio(changed)} | {ratio(packed)} | {ratio(pack_time)} | {size:.1f} MB |"
    )


def write_parts(root, num, seeds=24):
    """`num` parts with pictures (224 pixels), points (4,096) and beginnings as `cad-mllm synth` and `cad-mllm
    prepare` make them; `seeds` are made, the rest are copies of them."""
    made = root.with_name("seeds")
    synthesize(made, num=seeds, seed=3, jobs=allotted_cpus())
    prepare(made, jobs=allotted_cpus())
    sources = sorted(f.relative_to(made/"json").with_suffix("").as_posix() for f in (made/"json").rglob("*.json"))
    for d in range(num):
        source, id = sources[d % len(sources)], f"0000/{d:08d}_00001"
        for folder in ("json", "json_truncated", "img", "pointcloud"):
            for f in Path(made, folder).glob(f"{source}*"):
                target = Path(root, folder, id + f.name.removeprefix(source.rpartition("/")[2]))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(f, target)
    Path(root, "txt").mkdir()
    Path(root, "txt", "0000.json").write_text(
        json.dumps([{"id": f"0000/{d:08d}_00001", "text caption": f"A part, number {d}."} for d in range(num)])
    )


def drop_caches(root):
    "Make the next reads of these files cold; says how."
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "all caches dropped"
    except OSError: pass
    for f in Path(root).rglob("*"):
        if f.is_file():
            fd = os.open(f, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    return "posix_fadvise(DONTNEED) on each file"


def open_data(root, probs):
    "A data set of which every sample reads its files."
    ds = MultimodalAutocompleteDataset(root, modality_probs=probs)
    ds.histories.room = 0
    return ds


def rate(ds, seconds, num=10**9):
    "Samples a second in the order of epoch 0, for about so long."
    start, done = time.perf_counter(), 0
    for i in ds.order(0):
        assert ds.sample(0, int(i)) is not None
        done += 1
        if time.perf_counter() - start > seconds or done == num: break
    return done/(time.perf_counter() - start)


def in_memory(ds):
    "The same data set with every byte read beforehand."
    held, read_history, read_media = {}, ds.files.history, ds.files.media
    def history(id): return held[id] if id in held else held.setdefault(id, read_history(id))
    def media(*key): return held[key] if key in held else held.setdefault(key, read_media(*key))
    ds.files.history, ds.files.media = history, media
    for i in range(len(ds)): ds.sample(0, i)
    return ds


def lay_out(work, num_designs):
    "The folder and its shards; returns where the shards are."
    write_parts(work/"parts", num_designs)
    pack(work/"parts", work/"parts_packed", shard_mb=64)
    return work/"parts_packed"


def measure_forms(work, seconds):
    "The table of folder against shards."
    folder, shards = work/"parts", work/"parts_packed"
    shutil.rmtree(work/"again", ignore_errors=True)
    pack_time, made = timed(lambda: pack(folder, work/"again", shard_mb=64))
    def both(probs, prepare, **delay):
        out = []
        for root in (folder, shards):
            ds = open_data(root, probs)
            prepare(root, ds)
            with calls(root, **delay): out.append(rate(ds, seconds))
        return out
    how = drop_caches(folder)
    cases = {
        "warm": (lambda root, ds: rate(ds, seconds), {}), f"cold ({how})": (lambda root, ds: drop_caches(root), {}),
        "5 ms a call that opens or asks for status": (lambda root, ds: None, dict(delay=.005)),
        "5 ms for each read too": (lambda root, ds: None, dict(delay=.005, reads=.005))
    }
    ceiling = [rate(in_memory(open_data(shards, p)), seconds) for p in (ALL, {"text": 1.0})]
    sizes = [sum(f.stat().st_size for f in r.rglob("*") if f.is_file())/1e6 for r in (folder, shards)]
    num = sum(f.is_file() for f in folder.rglob("*"))
    out = [
        f"{made['histories']} parts, {made['samples']} samples: folder {num:,} files, {sizes[0]:.0f} MB; packed "
        f"{made['shards']} shards, {sizes[1]:.0f} MB, in {pack_time:.1f} s. Decode only: {ceiling[0]:.0f} samples/s "
        f"(text alone {ceiling[1]:.0f}).",
        "",
        "| all modalities, one process | folder, samples/s | shards, samples/s | shards / folder | text alone: folder "
        "| shards | shards / folder |",
        "|---|---|---|---|---|---|---|"
    ]
    for name, (begin, delay) in cases.items():
        (a, b), (c, d) = both(ALL, begin, **delay), both({"text": 1.0}, begin, **delay)
        out.append(f"| {name} | {a:.1f} | {b:.1f} | **{b/a:.1f}** | {c:.1f} | {d:.1f} | **{d/c:.1f}** |")
    return out


def measure_feed(shards, seconds):
    "Samples a second of ready batches."
    codec = get_codec("tokens")
    builder = PromptBuilder(load_tokenizer(CADMLLMConfig(llm_model_name="tiny"), codec), codec, 64, 32, 2048)
    out = [
        *table_head("reader processes", "all modalities, samples/s", "against 0", "text alone, samples/s", "against 0")
    ]
    base = None
    for workers in (0, 1, 2):
        rates = []
        for probs in (ALL, {"text": 1.0}):
            ds = MultimodalAutocompleteDataset(shards, modality_probs=probs)
            for i in range(len(ds)): ds.histories.split(i, int(ds.table.samples["kept"][i]))   # as in a second epoch
            epoch, done, start = 0, 0, None
            while start is None or time.perf_counter() - start < seconds:
                for batch in batches(ds, builder, epoch=epoch, batch_size=16, num_workers=workers):
                    if start is None:
                        start = time.perf_counter()
                        continue             # the first batch starts the readers
                    done += batch.num_samples
                    if time.perf_counter() - start > seconds: break
                epoch += 1
            rates.append(done/(time.perf_counter() - start))
        base = base or rates
        out.append(f"| {workers} | {rates[0]:.0f} | {rates[0]/base[0]:.2f} | {rates[1]:.0f} | {rates[1]/base[1]:.2f} |")
    return out


def merged(old, made):
    "The text of all sections: new ones replace old ones, except rows about sizes that were not measured again."
    sections, name = {}, None
    for line in old.splitlines():
        if line.startswith("## "):
            name = line[3:]
            sections[name] = []
        elif name: sections[name].append(line)
    if "Index" in made and "Index" in sections:
        def size(row):
            return (
                int(row.split("|")[1].replace(",", "")) if row.startswith("| ")
                and row.split("|")[1].strip()[:1].isdigit() else None
            )
        measured = [size(r) for r in made["Index"]]
        kept = [r for r in sections["Index"] if size(r) and not any(m and abs(m - size(r)) < 10 for m in measured)]
        made["Index"] = [r for r in made["Index"] if not size(r)] + sorted(
            [r for r in made["Index"] if size(r)] + kept, key=size
        )
    sections |= made
    return "\n\n".join(
        f"## {name}\n\n" + "\n".join(sections[name]).strip() for name in ("Index", "Folder against shards", "Feed")
        if name in sections
    ) + "\n"


def write(out, made):
    "Write what is known so far, beside what another run wrote."
    text = merged(
        out.read_text(encoding="utf-8") if out and out.exists() else "", {k: list(v) for k, v in made.items()}
    )
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return text


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="index,read,feed", help="which parts")
    parser.add_argument("--sizes", default="1000,10000,100000", help="pairs to index")
    parser.add_argument("--designs", type=int, default=300, help="parts for folder against shards")
    parser.add_argument("--jobs", type=int, default=0, help="processes that check; 0 for as many as pay")
    parser.add_argument(
        "--cpu", action="store_true",
        help="of the index: CPU seconds of all processes, for a machine that does other work"
    )
    parser.add_argument("--seconds", type=float, default=6, help="of each reading measurement")
    parser.add_argument("--work", type=Path, help="a folder for the files; a temporary one if left out")
    parser.add_argument("--quick", action="store_true", help="1,000 pairs and short measurements")
    args = parser.parse_args()
    if args.quick: args.sizes, args.designs, args.seconds = "1000", 60, 1.0
    warnings.simplefilter("ignore")
    made, text, cores = {}, "", machine_line()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        work, kinds = Path(work), histories(200)
        if "index" in args.only:
            made["Index"] = [
                f"{cores}; checked by {D.num_jobs(args.jobs, 10**6)} processes above 2,000 designs, by one below. In "
                f"brackets: times the baseline.{' CPU seconds of all processes.' if args.cpu else ''}",
                "",
                "| pairs | files | json, one process | index | reopen | files asked | changed | open packed | pack, "
                "index known, no tokens | index file |",
                "|---|---|---|---|---|---|---|---|---|---|"
            ]
            for n in map(int, args.sizes.split(",")):
                made["Index"].append(measure_index(n, kinds, work, args.jobs, cpu_timed if args.cpu else timed))
                text = write(args.out, made)
        if "read" in args.only or "feed" in args.only: shards = lay_out(work, args.designs)
        if "read" in args.only:
            made["Folder against shards"] = [f"{cores}.", "", *measure_forms(work, args.seconds)]
            text = write(args.out, made)
        if "feed" in args.only:
            made["Feed"] = [f"{cores}.", "", *measure_feed(shards, args.seconds)]
            text = write(args.out, made)
    print(text)


if __name__ == "__main__":
    main()
