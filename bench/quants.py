"""What each quantization costs and saves: a record for each GGUF of an exported folder, and the rule that picks one.

    python bench/quants.py EXPORT --results results/quants

Against the 16-bit GGUF, on the held-out verses and through the engine itself: KL divergence, share of the same most
likely token, bits a byte; the form of the poems it writes as they come; tokens a second, load time and memory, in a
fresh process. The rule: the fastest in generation whose poems are not measurably worse, that is, whose form scores
(same requests, same seeds) are not below those of 16 bits at p < 0.05 (one-sided sign-flip test), and whose held-out
verses take at most 1% more bits.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from libllama import Model
from scipy.special import log_softmax
from scipy.stats import permutation_test

from iris import record
from iris.data import template
from iris.poetry import forms
from iris.poetry.poet import Poet, Wish, cores
from iris.poetry.verses import first_exchange, read_verses

FORMS = ("haiku", "limerick", "couplet", "quatrain")
THEMES = "the sea,a baker,autumn rain,my old dog,the moon,a lost key,night trains,first snow,an empty chair,bees"
ASKED = [(form, theme, seed) for form in FORMS for theme in THEMES.split(",") for seed in (0, 1)]
LOWER_IS_BETTER = ("kl_divergence", "bits_per_byte")
USER_TURN = re.compile(r"^\W*(user|human)\W*(:|$)", re.IGNORECASE | re.MULTILINE)  # the other side of the talk
Items = dict[str, dict[str, list[Any]]]


def against(reference: Path, path: Path, merged: Path) -> Items:
    """Per held-out verse, over the poem's tokens: mean KL(reference || path) in nats, share of the same most likely
    token, bits per byte of the poem. Weights: tokens, tokens, bytes."""
    tokenizer = template.load_tokenizer(str(merged))
    items: Items = {task: {"id": [], "value": [], "weight": []} for task in (*LOWER_IS_BETTER, "top1_agreement")}
    theirs, ours = Model(reference, 512, cores()), Model(path, 512, cores())
    for index, row in enumerate(read_verses("held_out")):
        asked, poem = first_exchange(row)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": poem}]
        encoded = template.encode(tokenizer, turns)
        ids, places = encoded.input_ids, np.flatnonzero(np.array(encoded.labels) != template.IGNORED) - 1
        p, q = (log_softmax(model.logits(ids)[places].astype(np.float64), axis=-1) for model in (theirs, ours))
        bits = -q[np.arange(len(places)), np.array(ids)[places + 1]].sum() / math.log(2)
        size, tokens = len(poem.encode()), len(places)
        for task, value, weight in (
            ("kl_divergence", (np.exp(p) * (p - q)).sum(1).mean(), tokens),
            ("bits_per_byte", bits / size, size),
            ("top1_agreement", (p.argmax(1) == q.argmax(1)).mean(), tokens),
        ):
            items[task]["id"].append(f"held_out-{index}")
            items[task]["value"].append(float(value))
            items[task]["weight"].append(weight)
    theirs.close()
    ours.close()
    return items


def written(path: Path) -> Items:
    """Form scores (0 to 1) of poems as they come, and whether each ended by itself."""
    poet = Poet(path, n_parallel=8, n_ctx=512)
    with ThreadPoolExecutor(8) as pool:
        poems = list(pool.map(lambda one: poet.recite(Wish(one[1], one[0], seed=one[2]), keep_form=False), ASKED))
    common: dict[str, list[Any]] = {"id": ["/".join(map(str, one)) for one in ASKED], "weight": [1] * len(ASKED)}
    scores = [forms.judge(poem.text, poem.form).score for poem in poems]
    ended = [float(poem.ended and not USER_TURN.search(poem.text)) for poem in poems]
    return {"poetry_form": common | {"value": scores}, "ends_by_itself": common | {"value": ended}}


def summary(task: str, columns: dict[str, list[Any]]) -> dict[str, Any]:
    """The weighted mean and its standard error (of a ratio, by linearization)."""
    value, weight, n = np.array(columns["value"]), np.array(columns["weight"], float), len(columns["value"])
    mean = float((value * weight).sum() / weight.sum())
    stderr = float(np.sqrt(n / max(n - 1, 1) * ((weight * (value - mean)) ** 2).sum()) / weight.sum())
    better = task not in LOWER_IS_BETTER
    return {"metric": task, "value": mean, "stderr": stderr, "n": n, "higher_is_better": better, "version": 1}


def choose(results: dict[str, record.Record], items: dict[str, Items]) -> str:
    """The quantization that the rule picks; 16 bits if no other passes."""
    passed = ["f16"]
    for quant in results.keys() - {"f16"}:
        difference = np.array(items[quant]["poetry_form"]["value"]) - np.array(items["f16"]["poetry_form"]["value"])
        p = permutation_test((difference,), np.mean, permutation_type="samples", alternative="less", rng=0).pvalue
        more = results[quant].tasks["bits_per_byte"]["value"] / results["f16"].tasks["bits_per_byte"]["value"]
        passed += [quant] * bool(p >= 0.05 and more <= 1.01)
    return max(passed, key=lambda quant: results[quant].measures["generation_tokens_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that `iris export` wrote, its F16 among the GGUFs")
    parser.add_argument("--results", type=Path, required=True, help="folder for the records")
    args = parser.parse_args()
    files = {path.stem.rpartition("-")[2].lower(): path for path in sorted(args.folder.glob("*.gguf"))}
    exported = record.read(args.folder / "record.json")
    engine = [sys.executable, str(Path(__file__).with_name("llama_speed.py")), "engine"]
    results: dict[str, record.Record] = {}
    items: dict[str, Items] = {}
    for quant, path in files.items():
        items[quant] = against(files["f16"], path, args.folder / "merged") | written(path)
        result = record.Record("export", f"{args.folder.name}-{quant}", exported.model, "finished", exported.adapter)
        result.settings = {"quant": quant, "file": path.name, "sha256": record.file_digest(path), "seeds": 2}
        result.tasks = {task: summary(task, columns) for task, columns in items[quant].items()}
        told = subprocess.run([*engine, str(path)], stdout=subprocess.PIPE, text=True, check=True).stdout
        result.measures = {"bytes": path.stat().st_size, "threads": cores()} | json.loads(told.splitlines()[-1])
        record.write(result, args.results / f"{quant}.json")
        record.write_items(args.results / f"{quant}.json", items[quant])
        results[quant] = result
        print(path.name, {task: round(one["value"], 4) for task, one in result.tasks.items()}, flush=True)
    rule = " ".join((__doc__ or "").rpartition("The rule: ")[2].split())
    chosen = {"default": choose(results, items), "rule": rule}
    record.write_atomic(args.results / "default.json", (json.dumps(chosen, indent=1) + "\n").encode())
    print(f"default: {chosen['default']}")


if __name__ == "__main__":
    main()
