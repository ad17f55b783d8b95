"""Benchmark questions, which must not be trained on, are looked for in rows.

One of 13 words or more is found by any 13 of them in a row (Brown et al. 2020, appendix C). A shorter one has to stand
there whole: as all that a turn says, or beside one of its choices, or, with 8 words or more, anywhere. One of fewer
than three words cannot be looked for: it would be found everywhere.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .. import InputError
from .files import read_file

NGRAM, DISTINCT, SHORTEST = 13, 8, 3  # words
OFFERED = ("endings", "choices", "mc1_targets", "mc2_targets")  # HellaSwag's; ARC's and MMLU's; TruthfulQA's


@dataclass
class Questions:
    """The questions of a folder of benchmarks: 13-grams of the long ones; the short ones with their choices by their
    first three words; and how many could be looked for and could not."""

    ngrams: set[str] = field(default_factory=set)
    short: dict[str, list[tuple[str, list[str]]]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: {"looked_for": 0, "too_short": 0})

    def stand_in(self, turns: list[str]) -> bool:
        """Whether one of them stands in a row, given as what its turns say."""
        alone = [" ".join(words(turn)) for turn in turns]
        text = f" {' '.join(alone)} "
        row = text.split()
        for at in range(len(row) - SHORTEST + 1):
            if " ".join(row[at : at + NGRAM]) in self.ngrams:
                return True
            for question, choices in self.short.get(" ".join(row[at : at + SHORTEST]), ()):
                is_there = f" {question} " in text
                beside = not choices or any(f" {choice} " in text for choice in choices)
                if is_there and (beside or question in alone or len(question.split()) >= DISTINCT):
                    return True
        return False


def words(text: str) -> list[str]:
    """Lower-case letters and digits; all else only parts them."""
    return re.findall(r"[^\W_]+", text.lower())


def read_questions(folder: Path) -> Questions:
    """The questions in the evaluation files of `folder` (laid out as `iris evaluate --data-dir`), each with what it
    offers. InputError if there are no files."""
    files = sorted(path for path in folder.glob("*/*") if path.name.startswith(("test", "validation")))
    if not files:
        raise InputError(f"{folder} holds no benchmark files such as hellaswag/validation.jsonl.gz")
    found = Questions()
    for row in (row for path in files for row in read_file(path)):
        question = words(str(row.get("ctx") or row.get("question") or ""))
        found.counts["looked_for" if len(question) >= SHORTEST else "too_short"] += 1
        found.ngrams |= {" ".join(question[at : at + NGRAM]) for at in range(len(question) - NGRAM + 1)}
        if len(question) < NGRAM:
            lists = [row.get(name) or [] for name in OFFERED]
            lists = [one.get("text") or one.get("choices") or [] if isinstance(one, dict) else one for one in lists]
            choices = [" ".join(words(str(choice))) for one in lists for choice in one]
            found.short[" ".join(question[:SHORTEST])].append((" ".join(question), list(filter(None, choices))))
    return found
