"""What poetry_form.yaml needs beyond YAML: its requests, and the scores of the poems (README.md says what they mean).

Each score of a request is the mean over its samples, so that the standard error over requests is honest: samples of
one request are not independent.
"""

import json
import re
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from iris.poetry.forms import FORMS, ends_sentence, ends_weakly, judge
from iris.poetry.sound import rhymes
from iris.poetry.verses import read_verses

CUT = "\x17"  # "end of transmission block": the last token of a text that ran into the length limit
NEAR_COPY = 8  # words in a row that a training poem has too
HEARD = 4  # lines within which a rhyme is heard

METRE = ("haiku", "limerick", "sonnet")  # the forms whose syllables are a score of their own
_ROLE = "(user|human|assistant|system|prompt|instruction)"
ROLES = re.compile(rf"^\W*{_ROLE}\W*$|^{_ROLE}:", re.IGNORECASE | re.MULTILINE)


def load(name: str = "poetry_form", **_: Any) -> dict[str, Dataset]:
    """The requests of NAME.jsonl: {"request", "form", "theme"}."""
    lines = Path(__file__).with_name(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


class PoetryForm(ConfigurableTask):
    """A generation task that can tell a text which ended by itself: the token at the length limit is forced to be CUT
    (transformers' `forced_eos_token_id`), as lm-eval hands over text without special tokens."""

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
    """The mean of each score over the samples of one request; rhyme and metre where the form asks for them, keeps where
    there is something to keep: any two lines are free verse, and would flatter the mean over all requests."""
    scored = [score(text, doc["form"]) for text in results[0]]
    names = [name for name in scored[0] if name != "keeps" or FORMS[doc["form"]].lines]
    return {name: sum(each[name] for each in scored) / len(scored) for name in names}


def score(text: str, form: str) -> dict[str, float]:
    """All scores of one text, as written: a preface or an afterword counts as lines of the poem. strict, rhyme and
    metre only where the form asks for them."""
    poem = text.removesuffix(CUT).strip()
    verdict, asked = judge(poem, form), FORMS[form]
    lines = [line.text for line in verdict.lines]
    words = re.findall(r"[\w']+", poem.lower())
    pairs = list(pairwise(words))
    copied = longest_copy(words)
    ended = not text.endswith(CUT)
    scores = {"keeps": float(verdict.keeps), "form_score": verdict.score}
    if verdict.strict is not None:
        scores["strict"] = float(verdict.strict and ended)
    if asked.schemes:  # the share of lines that rhyme with one near them, of those that should
        near = [(i, j) for i in range(len(lines)) for j in range(i + 1, min(i + 1 + HEARD, len(lines)))]
        rhymed = {line for pair in near if rhymes(lines[pair[0]], lines[pair[1]]) for line in pair}
        should = min(sum(scheme.count(letter) > 1 for letter in scheme) / len(scheme) for scheme in asked.schemes)
        scores["rhyme"] = min(1.0, len(rhymed) / max(1, len(lines)) / should)
    if form in METRE:  # the share of lines, present or wanted, that have the syllables the form asks for
        both = zip(verdict.lines, asked.metre, strict=False)
        fits = [any(low <= count <= high for count in line.syllables) for line, (low, high) in both]
        scores["metre"] = sum(fits) / max(len(lines), len(asked.metre))
    return scores | {
        "ended": float(ended),
        "weak_ends": sum(map(ends_weakly, lines)) / max(1, len(lines)),
        "broken_ends": float(not ends_sentence(poem)),
        "both_sides": float(bool(ROLES.search(poem))),
        "looped": float(loops(lines, words)),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 0.0,  # Li et al. 2016, of one text
        "longest_copy": float(copied),
        "near_copy": float(copied >= NEAR_COPY),
    }


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


@lru_cache
def _training_places() -> dict[tuple[str, str], list[tuple[list[str], int]]]:
    """Where each pair of words stands in the training poems: the words of a poem, and the place among them."""
    places = defaultdict(list)
    for row in read_verses("train"):
        for poem in (re.findall(r"[\w']+", turn["value"].lower()) for turn in row["conversations"][1::2]):
            for place, pair in enumerate(pairwise(poem)):
                places[pair].append((poem, place))
    return dict(places)


def longest_copy(words: list[str]) -> int:
    """Words of the longest run (two or more) that a training poem has as well; 0 if none."""
    longest = 0
    for start, pair in enumerate(pairwise(words)):
        for poem, place in _training_places().get(pair, []):
            both = zip(words[start:], poem[place:], strict=False)
            longest = max(longest, sum(1 for _ in takewhile(lambda two: two[0] == two[1], both)))
    return longest
