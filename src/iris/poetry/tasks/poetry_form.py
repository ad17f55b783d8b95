"""What poetry_form.yaml needs beyond YAML: its requests, and the scores of the poems (README.md says what they mean).

Each score of a request is the mean over its samples, so that the standard error over requests is honest: samples of
one request are not independent.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from iris.poetry.sound import rhymes
from iris.poetry.verse import Verdict, judge
from iris.poetry.verses import read_verses

CUT = "\x17"  # "end of transmission block": the last token of a text that ran into the length limit
NEAR_COPY = 8  # words in a row that a training poem has too
HEARD = 4  # lines within which a rhyme is heard

# Share of the lines that must rhyme, at the least: an ABCB quatrain rhymes in half of them.
RHYMING = {"limerick": 1.0, "couplet": 1.0, "sonnet": 1.0, "quatrain": 0.5}
# Syllables (fewest, most) of each line, where the form asks for a metre.
METRE = {
    "haiku": [(5, 5), (7, 7), (5, 5)],
    "limerick": [(7, 10), (7, 10), (5, 7), (5, 7), (7, 10)],
    "sonnet": [(9, 11)] * 14,
}
_ROLE = "(user|human|assistant|system|prompt|instruction)"
ROLES = re.compile(rf"^\W*{_ROLE}\W*$|^{_ROLE}:", re.IGNORECASE | re.MULTILINE)


def load(**_: Any) -> dict[str, Dataset]:
    """The requests: {"request", "form", "theme"}, the six forms in turn."""
    lines = Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


class PoetryForm(ConfigurableTask):
    """A generation task that can tell a text which ended by itself from one that ran into the length limit.

    lm-eval hands over text without special tokens. So the token at the length limit is forced to be CUT (transformers'
    `forced_eos_token_id`): a text ends in it if and only if the model had not ended by then.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        template = kwargs.pop("chat_template", None)
        if not kwargs.pop("apply_chat_template", False):
            raise ValueError("poetry_form is a conversation: run lm_eval with --apply_chat_template")
        tokenizer = template.__self__.tokenizer  # lm-eval passes the model's own method
        forced = tokenizer.encode(CUT, add_special_tokens=False)[-1]
        if tokenizer.decode([forced]) != CUT:
            raise ValueError("poetry_form needs a tokenizer that can write every byte")
        generation = {**self.config.generation_kwargs, "forced_eos_token_id": forced}
        return [Instance(request_type="generate_until", doc=doc, arguments=(ctx, generation), idx=0, **kwargs)]


def process_results(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """The mean of each score over the samples of one request; rhyme and metre where the form asks for them."""
    scored = [score(text, doc["form"]) for text in results[0]]
    return {name: sum(each[name] for each in scored) / len(scored) for name in scored[0]}


def score(text: str, form: str) -> dict[str, float]:
    """All scores of one text, as written: a preface or an afterword counts as lines of the poem."""
    poem = text.removesuffix(CUT).strip()
    verdict = judge(poem, form)
    lines = [line.text for line in verdict.lines]
    words = re.findall(r"[\w']+", poem.lower())
    copied = longest_copy(words)
    scores = {"keeps": float(verdict.keeps), "form_score": verdict.score}
    if form in RHYMING:
        scores["rhyme"] = min(1.0, rhyming_share(lines) / RHYMING[form])
    if form in METRE:
        scores["metre"] = metre_share(verdict, METRE[form])
    return scores | {
        "ended": float(not text.endswith(CUT)),
        "both_sides": float(bool(ROLES.search(poem))),
        "looped": float(loops(lines, words)),
        "distinct_2": distinct(words, 2),
        "longest_copy": float(copied),
        "near_copy": float(copied >= NEAR_COPY),
    }


def rhyming_share(lines: list[str]) -> float:
    """Share of the lines that rhyme with one near them; the same word again is no rhyme."""
    rhymed: set[int] = set()
    for i, line in enumerate(lines):
        for j in range(i + 1, min(i + 1 + HEARD, len(lines))):
            if rhymes(line, lines[j]):
                rhymed |= {i, j}
    return len(rhymed) / len(lines) if lines else 0.0


def metre_share(verdict: Verdict, pattern: list[tuple[int, int]]) -> float:
    """Share of the lines, present or wanted, that have the syllables the form asks for."""
    fits = [
        any(low <= count <= high for count in line.syllables)
        for line, (low, high) in zip(verdict.lines, pattern, strict=False)
    ]
    return sum(fits) / max(len(verdict.lines), len(pattern))


def loops(lines: list[str], words: list[str]) -> bool:
    """Whether a line of two words or more comes three times, or up to four words are said four times in a row."""
    plain = [" ".join(re.findall(r"[\w']+", line.lower())) for line in lines]
    if any(plain.count(line) > 2 for line in plain if " " in line):
        return True
    return any(
        words[i : i + 3 * size] == words[i + size : i + 4 * size]
        for size in range(1, 5)
        for i in range(len(words) - 4 * size + 1)
    )


def distinct(words: list[str], n: int) -> float:
    """Distinct n-grams over n-grams (Li et al. 2016), of one text; 0 if it has none."""
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0


@lru_cache
def _training_poems() -> tuple[list[list[str]], dict[tuple[str, str], list[tuple[int, int]]]]:
    """The words of each training poem, and where in them each pair of words stands (poem, position)."""
    poems = [
        re.findall(r"[\w']+", turn["value"].lower())
        for row in read_verses("train")
        for turn in row["conversations"]
        if turn["from"] == "gpt"
    ]
    places = defaultdict(list)
    for number, poem in enumerate(poems):
        for position in range(len(poem) - 1):
            places[poem[position], poem[position + 1]].append((number, position))
    return poems, dict(places)


def longest_copy(words: list[str]) -> int:
    """Words of the longest run (two or more) that a training poem has as well; 0 if none."""
    poems, places = _training_poems()
    longest = 0
    for start in range(len(words) - 1):
        for number, position in places.get((words[start], words[start + 1]), []):
            poem, length = poems[number], 2
            while words[start + length : start + length + 1] == poem[position + length : position + length + 1] != []:
                length += 1
            longest = max(longest, length)
    return longest
