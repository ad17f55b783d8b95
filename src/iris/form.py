"""How a next line keeps a form, for the poet who writes line by line.

A line may end where the model ends it, or be cut after an earlier word: verse may break a sentence anywhere, so a cut
at the right syllable, or after a word that rhymes, is a good line too.
"""

from __future__ import annotations

from functools import lru_cache

from .poetry.sound import line_syllables, rhymes
from .poetry.verse import HAIKU, QUATRAINS
from .poetry.verses import first_exchange, read_verses

LINES = {"haiku": 3, "limerick": 5, "couplet": 2, "quatrain": 4, "sonnet": 14}
LINE_TOKENS = 28
SCHEMES = {
    "limerick": ("AABBA",),
    "couplet": ("AA",),
    "quatrain": QUATRAINS,
    "sonnet": ("ABABCDCDEFEFGG", "ABBACDDCEFEFGG", "ABBAABBACDECDE", "ABBAABBACDCDCD"),
}
SHORTEST, LONGEST = 5, 12  # syllables of a rhymed line that was cut
# A line does not like to end on these.
_WEAK = frozenset(
    "a an the and or but nor so of in on at to by for from with as than that which who whose my your his her its our "
    "their is are was were be been am i he she we they it this these those into upon when while where if no not".split()
)


def best_line(text: str, ended: bool, before: list[str], form: str) -> tuple[str, float]:
    """The best line to be had from `text`, the beginning of what may follow the lines `before`, and how well it keeps
    the form: 1 as the model ended it, a little less where it had to be cut, below 0.5 where it does not keep it."""
    words = text.split()
    if not ended and not text.endswith((" ", "\n")):
        words = words[:-1]  # the last may be half a word
    best, best_fit = "", 0.0
    for count in range(2, len(words) + 1):
        line = " ".join(words[:count])
        whole = ended and count == len(words)
        fit = _keeps(line, before, form, whole)
        if not whole:
            weak = words[count - 1].lower().strip(",.;:!?") in _WEAK
            fit *= 0.6 if weak else 0.9 if words[count - 1][-1] in ",.;:!?" else 0.8
        if fit > best_fit:
            best, best_fit = line, fit
    return best, best_fit


def is_settled(text: str, form: str, before: list[str]) -> bool:
    """Whether an unfinished line has grown so long that it will not get any better."""
    limit = HAIKU[len(before)] if form == "haiku" else LONGEST
    return min(line_syllables(text.rpartition(" ")[0])) > limit


def is_free(before: list[str], form: str) -> bool:
    """Whether any line may come next."""
    return form != "haiku" and not _targets(before, form)


def rhyme_words(before: list[str], form: str) -> list[str]:
    """Words that may end the next line, if it has to rhyme: those of the bundled poems."""
    targets = _targets(before, form)
    return [word for word in _vocabulary() if any(rhymes(word, target) for target in targets)]


def _keeps(line: str, before: list[str], form: str, whole: bool) -> float:
    words = line.lower().split()
    if line.lower() in (other.lower() for other in before) or 3 * len(set(words)) < 2 * len(words):
        return 0.0  # it says the same again
    counts = line_syllables(line)
    if form == "haiku":
        wanted = HAIKU[len(before)]
        return 1.0 if wanted in counts else 0.4 / (1 + min(abs(count - wanted) for count in counts))
    if not whole and not SHORTEST <= max(counts) <= LONGEST:
        return 0.1 / (1 + max(counts))
    targets = _targets(before, form)
    if targets:
        return 1.0 if any(rhymes(line, target) for target in targets) else 0.4
    return 1.0 if whole else 0.9


def _targets(before: list[str], form: str) -> list[str]:
    """The earlier lines one of which the next must rhyme with; none where it is free."""
    if form not in SCHEMES:
        return []
    misses = {scheme: sum(_lacks(before, i, scheme) for i in range(len(before))) for scheme in SCHEMES[form]}
    found = []
    for scheme in SCHEMES[form]:
        if misses[scheme] == min(misses.values()):
            partners = _partners(len(before), scheme)
            if not partners:
                return []
            found += [before[i] for i in partners]
    return found


def _partners(i: int, scheme: str) -> list[int]:
    return [j for j in range(i) if scheme[j] == scheme[i]]


def _lacks(lines: list[str], i: int, scheme: str) -> bool:
    partners = _partners(i, scheme)
    return bool(partners) and not any(rhymes(lines[i], lines[j]) for j in partners)


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    words = (word for row in read_verses("train") for word in first_exchange(row)[1].split())
    return tuple(dict.fromkeys(word.strip(",.;:!?\"'()").lower() for word in words))
