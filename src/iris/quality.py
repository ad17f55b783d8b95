"""What each quantization costs and saves: one record for each GGUF of an exported folder, and the rule that picks one.

    python -m iris.quality OUT --results results/quants

Against the 16-bit GGUF, on the held-out verses and through the engine itself: KL divergence, top-1 agreement and bits
per byte; the form of the poems it writes (verse.judge); prompt and generation tokens/s, load time and memory, each in
a fresh process (inference.py). The rule: the fastest in generation whose poems are not measurably worse, that is,
whose form scores (same requests, same seeds) are not below those of 16 bits at p < 0.05 (one-sided sign-flip test),
and whose held-out verses take at most 1% more bits.
"""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from . import inference, record
from .compare import sign_flip
from .errors import InputError
from .gguf_file import QUANTS
from .libllama import Model
from .poet import Poet, cores
from .poetry import verse
from .poetry.verses import first_exchange, read_verses
from .tables import quants_table

FORMS = ("haiku", "limerick", "couplet", "quatrain")
THEMES = "the sea,a baker,autumn rain,my old dog,the moon,a lost key,night trains,first snow,an empty chair,bees".split(
    ","
)
MORE_BITS = 1.01
SIGNIFICANT = 0.05


def measure(folder: Path, results: Path, seeds: int = 2, verses: int | None = None) -> dict[str, record.Record]:
    """Measure every GGUF of the exported `folder`; write results/QUANT.json with per-item scores and the rule's choice
    into results/default.json; returns the records by quantization. `seeds`: poems for each of 40 requests;
    `verses`: how many held-out verses (None: all). InputError if the folder has no 16-bit GGUF to measure against."""
    files = {path.stem.rpartition("-")[2].lower(): path for path in sorted(folder.glob("*.gguf"))}
    reference = next((files[quant] for quant in ("f16", "bf16") if quant in files), None)
    if reference is None:
        raise InputError(f"{folder} has no F16 or BF16 GGUF to measure against; export it with --quant f16 as well")
    exported = record.read(folder / "record.json")
    rows = encoded_verses(folder / "merged", verses)
    records: dict[str, record.Record] = {}
    for quant, path in files.items():
        print(f"measuring {path.name}", flush=True)
        items = against(reference, path, rows) | written(path, seeds)
        result = record.Record(
            "export",
            f"{folder.name}-{quant}",
            exported.model,
            "finished",
            exported.adapter,
            data={"id": "verses", "rows": len(rows), "fingerprint": record.digest_of([ids for ids, *_ in rows])},
            settings={"quant": quant, "file": path.name, "sha256": record.file_digest(path), "seeds": seeds},
            tasks={task: summary(task, columns) for task, columns in items.items()},
            measures={"bytes": path.stat().st_size, "threads": cores()} | inference.in_fresh_process(path),
        )
        record.write(result, results / f"{quant}.json")
        record.write_items(results / f"{quant}.json", items)
        records[quant] = result
    chosen = {"default": choose(results), "rule": " ".join((__doc__ or "").rpartition("The rule: ")[2].split())}
    record.write_atomic(results / "default.json", (json.dumps(chosen, indent=1) + "\n").encode())
    return records


def encoded_verses(merged: Path, count: int | None) -> list[tuple[list[int], list[bool], int]]:
    """Held-out verses as (token ids, which of them the poem is, bytes of the poem)."""
    from .chat import IGNORED, encode, load_tokenizer

    tokenizer = load_tokenizer(str(merged))
    rows = []
    for row in read_verses("held_out")[:count]:
        asked, poem = first_exchange(row)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": poem}]
        encoded = encode(tokenizer, turns)
        rows.append((encoded.input_ids, [label != IGNORED for label in encoded.labels], len(poem.encode())))
    return rows


def against(reference: Path, path: Path, rows: list[tuple[list[int], list[bool], int]]) -> dict[str, dict[str, list]]:
    """Per verse, over the poem's tokens: mean KL(reference ‖ path) in nats, share of the same most likely token, bits
    per byte of the poem. Weights: tokens, tokens, bytes."""
    longest = max(len(ids) for ids, *_ in rows)
    theirs, ours = Model(reference, longest, cores()), Model(path, longest, cores())
    tasks = ("kl_divergence", "top1_agreement", "bits_per_byte")
    items: dict[str, dict[str, list]] = {task: {"id": [], "value": [], "weight": []} for task in tasks}
    try:
        for index, (ids, learned, size) in enumerate(rows):
            places = np.flatnonzero(learned) - 1
            p, q = (log_softmax(model.logits(ids)[places]) for model in (theirs, ours))
            bits = -q[np.arange(len(places)), np.array(ids)[places + 1]].sum() / math.log(2)
            values = ((np.exp(p) * (p - q)).sum(1).mean(), (p.argmax(1) == q.argmax(1)).mean(), bits / size)
            for task, value, weight in zip(tasks, values, (len(places), len(places), size), strict=True):
                for key, entry in (("id", f"held_out-{index}"), ("value", float(value)), ("weight", weight)):
                    items[task][key].append(entry)
    finally:
        theirs.close()
        ours.close()
    return items


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities over the last axis, fp64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def written(path: Path, seeds: int) -> dict[str, dict[str, list]]:
    """Form scores (0 to 1) of poems written at the Poet's own temperature, and whether each ended by itself."""
    poet = Poet(path, n_parallel=8, n_ctx=512)
    asked = [(form, theme, seed) for form in FORMS for theme in THEMES for seed in range(seeds)]
    with ThreadPoolExecutor(8) as pool:
        poems = list(pool.map(lambda each: poet.recite(each[1], each[0], seed=each[2]), asked))
    names = ["/".join(map(str, each)) for each in asked]
    scores = [verse.judge(poem.text, poem.form).score for poem in poems]
    ended = [float(poem.ended and not poem.user_turn) for poem in poems]
    ones = [1] * len(asked)
    return {
        "poetry_form": {"id": names, "value": scores, "weight": ones},
        "ends_by_itself": {"id": names, "value": ended, "weight": ones},
    }


def summary(task: str, columns: dict[str, list]) -> dict[str, Any]:
    """The weighted mean of per-item scores and its standard error (of a ratio, by linearization)."""
    value, weight = np.array(columns["value"]), np.array(columns["weight"], float)
    mean = float((value * weight).sum() / weight.sum())
    n = len(value)
    stderr = float(np.sqrt(n / max(n - 1, 1) * ((weight * (value - mean)) ** 2).sum()) / weight.sum())
    better = task not in ("kl_divergence", "bits_per_byte")
    return {"metric": task, "value": mean, "stderr": stderr, "n": n, "higher_is_better": better, "version": 1}


def choose(results: Path) -> str:
    """The quantization that the rule picks among the records in `results`; 16 bits if no other passes."""
    found = {quant: results / f"{quant}.json" for quant in QUANTS if (results / f"{quant}.json").exists()}
    records = {quant: record.read(path) for quant, path in found.items()}
    reference = next((quant for quant in ("f16", "bf16") if quant in found), None)
    if reference is None:
        raise InputError(f"{results} has no f16.json or bf16.json to compare with; measure the 16-bit GGUF as well")
    passed = [reference, *(q for q in found if q != reference and not worse(found[reference], found[q]))]
    return max(passed, key=lambda quant: records[quant].measures["generation_tokens_per_s"])


def worse(reference: Path, path: Path) -> bool:
    """Whether the poems of the record at `path` are measurably worse than those of the record at `reference`."""
    theirs, ours = record.read(reference), record.read(path)
    if ours.tasks["bits_per_byte"]["value"] > MORE_BITS * theirs.tasks["bits_per_byte"]["value"]:
        return True
    scores = [record.read_items(each)["poetry_form"] for each in (reference, path)]
    if scores[0]["id"] != scores[1]["id"]:
        raise InputError(f"{reference} and {path} were measured on other poems; measure both again")
    difference = np.array(scores[1]["value"]) - np.array(scores[0]["value"])
    p = sign_flip(difference, np.ones(len(difference)), 10_000, np.random.default_rng(0))
    return bool(difference.mean() < 0 and p / 2 < SIGNIFICANT)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(
        prog="python -m iris.quality", description="Measure the GGUFs of an exported folder."
    )
    parser.add_argument("folder", type=Path, help="folder that `iris export` wrote")
    parser.add_argument("--results", type=Path, required=True, help="folder for the records")
    parser.add_argument("--seeds", type=int, default=2, help="poems for each request (default: %(default)s)")
    parser.add_argument("--verses", type=int, default=None, help="how many held-out verses (default: all)")
    args = parser.parse_args()
    measure(args.folder, args.results, args.seeds, args.verses)
    print(quants_table([], [], args.results.parent))
    print(f"default: {choose(args.results)}")


if __name__ == "__main__":
    main()
