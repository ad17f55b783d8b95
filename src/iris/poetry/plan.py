"""A plan: the end words of a poem, chosen before it is written and named in the request.

A subword model does not hear its words, but it learns to copy: told where its lines have to end, it lands there (the
idea of PoeLM, Ormazabal et al., arXiv 2205.12206). The words that lines of the bundled verses end in are grouped by
their sounds, and those groups are taken whose words the model finds nearest to the theme.
"""

import random
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log

from .forms import FORMS, ends_weakly
from .sound import Phones, last_word, perfect_rhyme, rhyme_sounds
from .verses import read_verses

ASKED = "End the lines with:"
NEAR = "Think of {theme}: the"  # what comes next, a thing, is near to the theme
NEUTRAL = ("something", "a thing", "life", "somebody", "a day")  # themes that say what a word's likelihood is anyway
COMMON = 0.25  # of how common a word is anyway, what is taken off; the more, the rarer the words of a plan
UNLIKELY = -14.0  # log-likelihood of a word that is not among the likely ones


@dataclass(frozen=True)
class Likely:
    """Wants to know how likely words are to follow a text (which is no chat): {word: log-likelihood} of the likeliest
    thousands, those that are single tokens; it may be empty."""

    prompt: str


def nearness(theme: str) -> Generator[Likely, Mapping[str, float], dict[str, float]]:
    """How near the end words are to a theme (cleaned): their log-likelihood under it beyond COMMON of what it is
    anyway. Words that are no single token, or far from likely, are not in it."""
    usual: dict[str, float] = defaultdict(float)
    known = []
    for each in NEUTRAL:
        known.append((yield Likely(NEAR.format(theme=each))))
    for word in set().union(*known).intersection(end_words()):
        usual[word] = sum(each.get(word, UNLIKELY) for each in known) / len(known)
    likely = yield Likely(NEAR.format(theme=theme))
    return {word: likely[word] - COMMON * usual.get(word, UNLIKELY) for word in end_words() if word in likely}


def name_plan(request: str, words: list[str]) -> str:
    """The request, and the end words that the poem has to land on."""
    return f"{request} {ASKED} {', '.join(words)}."


def plan_of(poem: str, form: str) -> list[str] | None:
    """The end words of a poem in a fixed form; None for free verse, for a poem in other lines than the form's, and for
    one that repeats an end word or ends a line in none."""
    lines = [line for line in poem.splitlines() if line.strip()]
    words = [last_word(line) for line in lines]
    if FORMS[form].lines != len(lines) or not all(words) or len(set(words)) < len(words):
        return None
    return words


@lru_cache(maxsize=1)
def end_words() -> dict[str, tuple[Phones, Phones]]:
    """Words that lines of the bundled verses end in, each with its rhyme sound and its onset: no contractions, no weak
    words, none that the dictionary lacks."""
    poems = [turn["value"] for row in read_verses("train") for turn in row["conversations"] if turn["from"] == "gpt"]
    words = dict.fromkeys(last_word(line) for poem in poems for line in poem.splitlines())
    kept = (word for word in words if len(word) > 2 and word.isalpha() and not ends_weakly(word))
    return {word: rhyme_sounds(word)[0] for word in kept if rhyme_sounds(word)}


def choose(
    form: str, near: Mapping[str, float], chance: random.Random, heat: float = 1.0, begun: Sequence[str] = ()
) -> list[str]:
    """End words for a poem in `form`, rhyming perfectly by one of its schemes, that begin with those of the lines that
    stand (`begun`); empty if no words go with them. near: log-likelihoods of words under the theme. Words are drawn in
    proportion to their likelihood to the power of 1 / `heat` (the Gumbel-top-k trick, Kool et al., arXiv 1903.06059);
    the first groups of rhymes to be complete make the plan."""
    here = len(begun)
    pairs = [(i, j, perfect_rhyme(begun[i], begun[j])) for i in range(here) for j in range(i)]
    schemes = [
        scheme
        for scheme in FORMS[form].schemes or ("ABC",)
        if all((scheme[i] == scheme[j]) == rhyme for i, j, rhyme in pairs) or not FORMS[form].schemes
    ]
    if not schemes:
        return []
    scheme = chance.choice(schemes) if form == "quatrain" else schemes[0]
    unlikely = min(near.values(), default=0.0) - 1.0
    order = sorted(end_words(), key=lambda word: near.get(word, unlikely) - heat * log(chance.expovariate(1.0)))
    groups: dict[Phones, dict[Phones, str]] = defaultdict(dict)  # of each sound, a word for each onset
    letters: dict[Phones, str] = {}  # that the sounds of lines that stand stand for
    for letter in dict.fromkeys(scheme[:here]):
        heard = [dict(rhyme_sounds(word)) for word, its in zip(begun, scheme, strict=False) if its == letter]
        sound = next((sound for sound in heard[0] if all(sound in other for other in heard)), (letter,))
        groups[sound] = {other.get(sound, ()): "" for other in heard}
        letters[sound] = letter
    new = dict.fromkeys(letter for letter in scheme[here:] if letter not in letters.values())
    wanted = sorted(new, key=scheme.count)  # the largest group is looked for first
    missing = {letter: scheme.count(letter, here) for letter in scheme[here:]}
    found: dict[str, list[str]] = defaultdict(list)
    full = {sound for sound, letter in letters.items() if letter not in missing}
    while order and len(full) < len(set(scheme)):
        word = order.pop()
        sound, onset = end_words()[word]
        letter = letters.get(sound, wanted[-1] if wanted else "")
        if not letter or sound in full or onset in groups[sound] or word in begun:
            continue
        groups[sound][onset] = word
        if sum(map(bool, groups[sound].values())) == missing[letter]:
            full.add(sound)
            found[letter] = [word for word in groups[sound].values() if word]
            if sound not in letters:
                wanted.pop()
    if len(full) < len(set(scheme)):
        return []
    for words in found.values():
        chance.shuffle(words)
    return [*begun, *(found[letter].pop() for letter in scheme[here:])]
