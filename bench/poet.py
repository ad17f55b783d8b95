"""How well the poet keeps each form, and at what cost: a record over the fixed-form requests of poetry_form.

    python bench/poet.py --out results/poet.json [--forms haiku,couplet] [--limit 5] [--natural] [--visitors 4]
    python bench/poet.py --book docs/poems.md

By form: strict (share of the poems, and its standard error) and keeps, weak line ends, broken ends, distinct rhyme
pairs (of all pairs), near copies (eight words in a row that a training poem has), the favourite phrase (share of the
poems that have their most frequent three words in a row), seconds of wall time and of CPU time.
A record that is there keeps its other rows, so that a long run may be made in slices. --natural adds to a row: bits a
byte of the poems under the base, over those of the same model's plain poems; odd ends, words that hardly follow the
words of their line, of the poems and of people's. --visitors: poems asked for at a time.
--book: instead, six poems of each form, on fixed themes with the seeds 1 to 6, nothing picked: what the base writes,
what the voice writes as it comes, and what the poet makes of it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

from iris import record
from iris.model import smollm2
from iris.poetry import verses
from iris.poetry.forms import FORMS, ends_sentence, ends_weakly, judge
from iris.poetry.poet import VOICE, Poet, cores
from iris.poetry.sound import last_word, perfect_rhyme
from iris.poetry.wish import Poem, Wish

REQUESTS = verses.PATH.parent / "tasks" / "poetry_form.jsonl"
FIXED = [form for form in FORMS if FORMS[form].lines]
ODD = -11.0  # log-likelihood of an end word
THEMES = ("the sea at night", "an old dog", "first snow", "a letter never sent", "bread", "the last bus home")


def threes(poem: str) -> set[tuple[str, str, str]]:
    """Its words in a row, by threes."""
    words = re.findall(r"[a-z']+", poem.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def summary(poems: list[Poem]) -> dict[str, Any]:
    """The measures of one form's poems; shares from 0 to 1, seconds a poem."""
    from iris.poetry.tasks.poetry_form import score

    lines = [poem.text.splitlines() for poem in poems]
    phrases = Counter(phrase for poem in poems for phrase in threes(poem.text))
    ends = [combinations(sorted(map(last_word, poem)), 2) for poem in lines]
    pairs = [pair for words in ends for pair in words if perfect_rhyme(*pair)]
    verdicts = [judge(poem.text, poem.form) for poem in poems]
    strict = mean(bool(verdict.strict) for verdict in verdicts)
    seconds = sorted(poem.seconds for poem in poems)
    return {
        "n": len(poems),
        "strict": strict,
        "strict_stderr": math.sqrt(strict * (1 - strict) / max(1, len(poems) - 1)),
        "keeps": mean(verdict.keeps for verdict in verdicts),
        "weak_ends": mean(ends_weakly(line) for poem in lines for line in poem),
        "broken_ends": mean(not ends_sentence(poem.text) for poem in poems),
        "near_copies": mean(score(poem.text, poem.form)["near_copy"] for poem in poems),
        "favourite_phrase": max(phrases.values(), default=0) / len(poems),
        "tokens": mean(poem.tokens for poem in poems),
        "seconds_median": median(seconds),
        "seconds_90th": seconds[math.ceil(0.9 * len(seconds)) - 1],
    } | ({"distinct_rhyme_pairs": len(set(pairs)) / len(pairs)} if pairs else {})


@cache
def base() -> tuple[Any, Any]:
    """SmolLM2 as it came, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.folder()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(), AutoTokenizer.from_pretrained(folder)


def log_likelihoods(before: list[int], after: list[int]) -> list[float]:
    """Of each token of `after`, under the base."""
    import torch

    with torch.inference_mode():
        likely = base()[0](input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return likely.gather(1, torch.tensor(after)[:, None])[:, 0].tolist()


def bits_per_byte(asked: list[tuple[Wish, Poem]]) -> float:
    """Of the poems, after their requests, under the base."""
    nats, tokenizer = 0.0, base()[1]
    for wish, poem in asked:
        turn = [{"role": "user", "content": wish.request()}]
        start = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        nats -= sum(log_likelihoods(start, tokenizer.encode(poem.text, add_special_tokens=False)))
    return nats / sum(len(poem.text.encode()) for _, poem in asked) / math.log(2)


def odd_ends(poems: list[str]) -> float:
    """The share of lines whose end word (its first token) has, under the base and after the words of its line alone, a
    log-likelihood below ODD."""
    found, tokenizer = [], base()[1]
    for line in "\n".join(poems).splitlines():
        before, _, _ = line.rpartition(" ")
        if before:
            word = tokenizer.encode(f" {last_word(line)}")[:1]
            found.append(log_likelihoods(tokenizer.encode(before), word)[0] < ODD)
    return mean(found)


def measure(poet: Poet, wishes: list[Wish], visitors: int) -> dict[str, Any]:
    """The row of one form."""
    began, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(visitors) as pool:
        found = summary(list(pool.map(poet.recite, wishes)))
    cpu, wall = time.process_time() - used, time.perf_counter() - began
    return found | {"cpu_seconds": cpu / len(wishes), "wall_seconds": wall / len(wishes)}


def natural(poet: Poet, wishes: list[Wish]) -> dict[str, Any]:
    """Bits a byte of the poems in their form, and of the same model's plain poems; odd ends of the former, and of
    the held-out verses by people in that form."""
    written = [(wish, poet.recite(wish)) for wish in wishes]
    kept = bits_per_byte(written)
    plain = bits_per_byte([(wish, poet.recite(wish, keep_form=False)) for wish in wishes])
    rows = [row for row in verses.read_verses("held_out") if wishes[0].form in row["forms"]]
    people = [turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "gpt"]
    odd = {"odd_ends": odd_ends([poem.text for _, poem in written]), "odd_ends_of_people": odd_ends(people)}
    return {
        "bits_n": len(wishes),
        "bits_per_byte": kept,
        "plain_bits_per_byte": plain,
        "bits_ratio": kept / plain,
    } | odd


def book(poet: Poet, file: Path) -> None:
    """Six poems of each form, by the base, by the poet's model as it comes, and by the poet."""
    base, parts = Poet(smollm2.gguf()), [file.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()]
    for form in FIXED:
        parts.append(f"## {form.capitalize()}")
        for seed, theme in enumerate(THEMES, 1):
            wish = Wish(theme, form, seed=seed)
            poems = [base.recite(wish, keep_form=False), poet.recite(wish, keep_form=False), poet.recite(wish)]
            cells = [poem.text.replace("|", "\\|").replace("*", "\\*").replace("\n", "<br>") for poem in poems]
            parts.append(f"**{theme}**, seed {seed}\n\n| base | voice as it comes | poet |\n| - | - | - |")
            parts[-1] += f"\n| {' | '.join(cells)} |"
    record.write_atomic(file, ("\n\n".join(parts) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or smollm2")
    parser.add_argument("--adapter", type=Path, help="a GGUF LoRA file; of smollm2 the voice that comes with Iris")
    parser.add_argument("--out", type=Path, default=Path("results/poet.json"))
    parser.add_argument("--forms", default=",".join(FIXED))
    parser.add_argument("--limit", type=int, default=22, help="requests of each form")
    parser.add_argument("--visitors", type=int, default=1)
    parser.add_argument("--natural", action="store_true")
    parser.add_argument("--book", type=Path)
    args = parser.parse_args()
    file = smollm2.gguf() if args.model == "smollm2" else Path(args.model)
    poet = Poet(file, adapter=args.adapter or (VOICE if args.model == "smollm2" else None))
    poet.recite(Wish("anything", "haiku"))  # what is computed once
    if args.book:
        book(poet, args.book)
        return
    requests = [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]
    model = {"id": file.name, "digest": record.file_digest(file)[:16]}
    result = record.read(args.out) if args.out.exists() else record.Record("speed", args.out.stem, model)
    result.environment = record.environment()
    result.settings = {"taught": poet.plans}
    names = ("form", "threads", "visitors")
    rows = {tuple(row[name] for name in names): row for row in result.measures.get("rows", [])}
    for form in args.forms.split(","):
        themes = [row["theme"] for row in requests if row["form"] == form][: args.limit]
        wishes = [Wish(theme, form, seed=seed) for seed, theme in enumerate(themes)]
        found = natural(poet, wishes) if args.natural else measure(poet, wishes, args.visitors)
        key = (form, cores(), args.visitors)
        rows[key] = dict(zip(names, key, strict=True)) | rows.get(key, {}) | found
        print(json.dumps({key: round(value, 3) if type(value) is float else value for key, value in found.items()}))
        order = sorted(rows, key=lambda key: (key[2], key[1], FIXED.index(key[0])))
        result.measures["rows"] = [rows[key] for key in order]
        result.status = "finished"
        record.write(result, args.out)


if __name__ == "__main__":
    main()
