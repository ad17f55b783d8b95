"""The table of forms, and whether a poem keeps its form, by its lines, syllables and rhymes (sound.py).

Two judges read every poem. The generous one (`keeps`) is the reader of human verse: it takes the licence that poets
take, and a poem may go on in its form. The strict one (`strict`) is for the measure of a model: exactly the form's
lines, syllables in range, perfect rhymes only, no end word twice. What is strict also keeps.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, permutations
from string import ascii_letters
from typing import Any, NamedTuple

from .sound import last_word, line_syllables, perfect_rhyme, rhyme_keys, rhymes, same_word, words_of

# Words that leave a line hanging; those of the second row only without a mark after them ("come in," does not hang).
HANGING = frozenset(
    "a an the and or but nor than as of to from into if because although unless my your his its our their whose".split()
)
UNMARKED = frozenset(
    "in on at by for with upon onto so yet no not that which who whom when while where until till though since her "
    "this these those i he she we they am is are was were be been has have had do does did will would shall should can "
    "could may might must".split()
)
FUNCTION_WORDS = HANGING | UNMARKED
TOLERANCE = 5  # one rhyme in five may miss the ear, so a poem of fewer than five rhymes must have them all


class Finding(NamedTuple):
    """What the generous judge of one form finds; `tolerated`: the reasons are too few, for the poem's length, to break
    the form."""

    score: float
    reasons: list[str]
    tolerated: bool = False


@dataclass(frozen=True)
class Form:
    """A form of verse. `asked`: what a request calls it; `lines`: of a poem of one stanza (None: any); `schemes`: its
    rhyme schemes, the commonest first; `metre`: the fewest and most syllables of each line; `tokens`: the most a model
    may need for it; `judge`: the generous judge of its stanzas and all their lines."""

    asked: str
    lines: int | None
    schemes: tuple[str, ...]
    metre: tuple[tuple[int, int], ...]
    tokens: int
    judge: Callable[["Form", list[list[str]], list[str]], Finding]


@dataclass(frozen=True)
class Line:
    """One line: its text, its possible syllable counts (sorted), the one of them that is nearest to what the form asks,
    and its rhyme letter ("" if none)."""

    text: str
    syllables: tuple[int, ...]
    count: int
    rhyme: str


@dataclass(frozen=True)
class Verdict:
    """What `judge` found. `keeps` and its `reasons`, why not, in plain sentences: the generous judge; `score`: how near
    to it, 0 to 1. `strict` (None where the form has no rules to be strict about) and its `faults`: the strict judge."""

    form: str
    keeps: bool
    strict: bool | None
    score: float
    reasons: tuple[str, ...]
    faults: tuple[str, ...]
    lines: tuple[Line, ...]


def judge(text: str | list[str], form: str | None = None) -> Verdict:
    """Judge a poem (a string, or its lines with "" for stanza breaks) as `form`; with none, as the first form that it
    keeps. A longer poem keeps couplet or quatrain when it goes on in the same way to its end; one printed in stanzas of
    four is a quatrain poem, never a couplet one. Raises ValueError for a form not in FORMS."""
    if form is None:
        verdicts = (judge(text, name) for name in ("haiku", "limerick", "sonnet", "quatrain", "couplet"))
        return next((verdict for verdict in verdicts if verdict.keeps), None) or judge(text, "free")
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; the known forms are {', '.join(FORMS)}")
    asked = FORMS[form]
    stripped = [line.strip() for line in (text.splitlines() if isinstance(text, str) else text)]
    stanzas = [list(part) for is_verse, part in groupby(stripped, bool) if is_verse]
    lines = [line for stanza in stanzas for line in stanza]
    finding = asked.judge(asked, stanzas, lines) if lines else Finding(0.0, ["it has no lines"])
    plain = [words_of(line) for line in lines]
    thrice = any(a == b == c for a, b, c in zip(plain, plain[1:], plain[2:], strict=False))
    if len(lines) > 1 and (thrice or 2 * len(set(plain)) <= len(plain)):
        finding = Finding(finding.score / 2, [*finding.reasons, "it says the same lines again"])
    keeps = finding.tolerated or not finding.reasons
    reasons = () if keeps else tuple(finding.reasons)
    faults = tuple(_faults(lines, asked)) or reasons
    strict = not faults if asked.metre else None
    # letters only where lines rhyme, in the order in which these begin
    letters = scheme(lines) if asked.schemes else " " * len(lines)
    shared = (letter for letter, times in Counter(letters.strip()).items() if times > 1)
    names = dict(zip(shared, dict.fromkeys(letters), strict=False))
    marked = []
    for i, line in enumerate(lines):
        counts = sorted(line_syllables(line))
        count = _nearest(counts, *asked.metre[i]) if i < len(asked.metre) else counts[0]
        marked.append(Line(line, tuple(counts), count, names.get(letters[i], "")))
    return Verdict(form, keeps, strict, round(finding.score, 4), reasons, faults, tuple(marked))


def scheme(lines: list[str]) -> str:
    """The rhyme scheme, one letter a line by first appearance ("ABAB"); a repeated word takes its letter again."""
    last: dict[Any, int] = {}  # of each key that a later line may rhyme by, the last line that has it
    letters: list[str] = []
    used = 0
    for i, line in enumerate(lines):
        own, sought = rhyme_keys(line)
        word = words_of(line)[-1:]
        match = max((last[key] for key in {*sought, word} if key in last), default=None)
        if match is None:
            letters.append(ascii_letters[used - 26] if used < 52 else chr(192 + used - 52))  # A to Z, a to z, À and on
            used += 1
        else:
            letters.append(letters[match])
        last |= dict.fromkeys({*own, word}, i)
    return "".join(letters)


def ends_weakly(line: str) -> bool:
    """Whether a line ends in a word that leaves it hanging: an article, a preposition, a conjunction, an auxiliary, a
    pronoun that a verb must follow."""
    word = last_word(line)
    return word in HANGING or (word in UNMARKED and line.rstrip()[-1:].isalnum())


def ends_sentence(text: str) -> bool:
    """Whether a text ends with the end of a sentence."""
    return text.rstrip(" \n\"'”’»)]*_").endswith((".", "!", "?", "…"))


def misses(lines: list[str], pattern: str, rhyming: Callable[[str, str], bool] = rhymes) -> list[tuple[int, int]]:
    """Pairs of line numbers (from 1) that the pattern asks to rhyme and that do not."""
    missed = []
    for i, letter in enumerate(pattern[: len(lines)]):
        earlier = [j for j in range(i) if pattern[j] == letter]
        if earlier and not any(rhyming(lines[i], lines[j]) for j in earlier):
            missed.append((earlier[-1] + 1, i + 1))
    return missed


def _faults(lines: list[str], form: Form) -> list[str]:
    """What the strict judge finds."""
    if len(lines) != form.lines:
        return _wrong_length(lines, form.lines) if form.lines else []
    faults = []
    for number, (line, (low, high)) in enumerate(zip(lines, form.metre, strict=True), 1):
        counts = sorted(line_syllables(line))
        if not any(low <= count <= high for count in counts):
            wanted = str(low) if low == high else f"{low} to {high}"
            faults.append(f"line {number} has {_plural(_nearest(counts, low, high), 'syllable')}, not {wanted}")
    if form.schemes:
        for a, b in min((misses(lines, pattern, perfect_rhyme) for pattern in form.schemes), key=len):
            agree = rhymes(lines[a - 1], lines[b - 1])
            faults += [f"lines {a} and {b} rhyme by licence only"] if agree else _unrhymed(lines, [(a, b)])
        ends = [last_word(line) for line in lines]
        again = [i for i, end in enumerate(ends) if end in ends[:i]]
        faults += [f"lines {ends.index(ends[i]) + 1} and {i + 1} end in the same word" for i in again]
    return list(dict.fromkeys(faults))


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _wrong_length(lines: list[str], wanted: int) -> list[str]:
    return [] if len(lines) == wanted else [f"it has {_plural(len(lines), 'line')}, not {wanted}"]


def _nearest(counts: list[int], low: int, high: int) -> int:
    """Of sorted counts the one nearest to a range."""
    return min(counts, key=lambda count: max(low - count, count - high, 0))


def _unrhymed(lines: list[str], missed: list[tuple[int, int]]) -> list[str]:
    words = {True: "end in the same word", False: "do not rhyme"}
    return [f"lines {a} and {b} {words[same_word(lines[a - 1], lines[b - 1])]}" for a, b in missed]


def _haiku(form: Form, stanzas: list[list[str]], lines: list[str]) -> Finding:
    reasons = _wrong_length(lines, 3)
    near = 0.0
    for number, (line, (wanted, _)) in enumerate(zip(lines, form.metre, strict=False), 1):
        count = _nearest(sorted(line_syllables(line)), wanted, wanted)
        near += max(0.0, 1 - abs(count - wanted) / wanted) / 3
        if count != wanted:
            reasons.append(f"line {number} has {_plural(count, 'syllable')}, not {wanted}")
    return Finding(near * min(len(lines), 3) / max(len(lines), 3), reasons)


def _couplet(form: Form, stanzas: list[list[str]], lines: list[str]) -> Finding:
    left, i = [], 0
    while i < len(lines):
        paired = i + 1 < len(lines) and rhymes(lines[i], lines[i + 1])
        if not paired:
            left.append(i + 1)
        i += 2 if paired else 1
    reasons = []
    while left:
        number = left.pop(0)
        if left and left[0] == number + 1:
            reasons += _unrhymed(lines, [(number, left.pop(0))])
        else:
            reasons.append(f"line {number} is left without a rhyme beside it")
    score = max(0.0, 1 - 2 * len(reasons) / len(lines))
    tolerated = len(reasons) <= len(lines) // 2 // TOLERANCE
    if len(lines) % 2:
        reasons.insert(0, f"it has {_plural(len(lines), 'line')}, an odd number")
    if all(len(stanza) == 4 for stanza in stanzas):
        return Finding(score / 2, ["it has stanzas of four lines, not couplets", *reasons])
    return Finding(score, reasons, tolerated)


def _rhymed(
    form: Form, stanzas: list[list[str]], lines: list[str], rhyming: Callable[[str, str], bool] = rhymes
) -> Finding:
    """Of stanzas that each have the form's lines in one of its schemes, the same all through the poem; of a form longer
    than four lines a poem is one stanza, however it is printed."""
    size = form.lines or 0
    stanzas = [lines] if size > 4 else stanzas
    sizes = enumerate(map(len, stanzas), 1)
    shape = [f"stanza {number} has {_plural(count, 'line')}, not {size}" for number, count in sizes if count != size]
    if len(stanzas) == 1:
        shape = _wrong_length(lines, size)
    findings = []
    for pattern in form.schemes:
        links = size - len(set(pattern))  # the rhymes that it asks for
        missed, share, start = [], 0.0, 0
        for stanza in stanzas:
            here = pattern[: len(stanza)]
            pairs = misses(stanza, here, rhyming)
            if pattern == "ABCB" and len(stanza) > 3 and not pairs:
                aaba = rhymes(stanza[0], stanza[1]) and not rhymes(stanza[0], stanza[2])
                pairs = [(3, 4)] if aaba else []  # AABA is another form
            missed += [(start + a, start + b) for a, b in pairs]
            nearness = min(len(stanza), size) / max(len(stanza), size)
            share += (len(here) - len(set(here)) - len(pairs)) / links * nearness / len(stanzas)
            start += len(stanza)
        tolerated = not shape and len(missed) <= links * len(stanzas) // TOLERANCE
        findings.append(Finding(share, shape + _unrhymed(lines, missed), tolerated))
    return max(findings, key=lambda finding: (finding.tolerated, finding.score))


def _limerick(form: Form, stanzas: list[list[str]], lines: list[str]) -> Finding:
    score, reasons, _ = _rhymed(form, stanzas, lines, lambda a, b: rhymes(a, b) or same_word(a, b))
    if len(lines) == 4:
        reasons[0] = "it has 4 lines, not 5 (an old printing may join the third and the fourth)"
    if len(lines) == 5:
        length = [max(line_syllables(line)) for line in lines]
        if max(length[2:4]) >= min(length[0], length[1], length[4]):  # a limerick's lilt, but no rule of the form
            score *= 0.9
    return Finding(score, reasons)


def _free(form: Form, stanzas: list[list[str]], lines: list[str]) -> Finding:
    return Finding(0.5, ["it has 1 line, not 2 or more"]) if len(lines) == 1 else Finding(1.0, [])


def _sonnet_schemes() -> tuple[str, ...]:
    """Two quatrains (ABAB or ABBA each) and a sestet of two or three rhymes in any order: Shakespearean, Petrarchan and
    Spenserian sonnets, as a rhyme that runs on from part to part (ABBAABBA) is one way of having those asked for."""
    orders = {"".join(p) for kind in ("EEFFGG", "EEEFFF") for p in permutations(kind)}
    sestets = sorted(p for p in orders if list(dict.fromkeys(p)) == sorted(set(p)))
    sestets.sort(key=lambda sestet: sestet != "EFEFGG")  # where two do as well, the Shakespearean goes first
    return tuple(a + b + sestet for a in ("ABAB", "ABBA") for b in ("CDCD", "CDDC") for sestet in sestets)


# To add a form, add a line here.
FORMS = {
    "haiku": Form("a haiku", 3, (), ((5, 5), (7, 7), (5, 5)), 64, _haiku),
    "limerick": Form("a limerick", 5, ("AABBA",), ((7, 10), (7, 10), (5, 7), (5, 7), (7, 10)), 128, _limerick),
    "couplet": Form("a couplet", 2, ("AA",), ((6, 12),) * 2, 128, _couplet),
    "quatrain": Form("a quatrain", 4, ("ABAB", "AABB", "ABBA", "ABCB"), ((6, 12),) * 4, 192, _rhymed),
    "sonnet": Form("a sonnet", 14, _sonnet_schemes(), ((9, 11),) * 14, 320, _rhymed),
    "free": Form("a free verse poem", None, (), (), 256, _free),
}
