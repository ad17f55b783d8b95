"""Judge whether a poem keeps its form, by its lines, syllables and rhymes (sound.py)."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple

from .sound import line_syllables, rhymes, same_word, words_of

FORMS = ("haiku", "limerick", "couplet", "quatrain", "sonnet", "free")
TOLERANCE = 5  # one rhyme in five may miss the ear, so a poem of fewer than five rhymes must have them all

QUATRAINS = ("ABAB", "AABB", "ABBA", "ABCB")
HAIKU = (5, 7, 5)


@dataclass(frozen=True)
class Line:
    """One line: its text, its possible syllable counts (sorted), and its rhyme letter ("" if none)."""

    text: str
    syllables: tuple[int, ...]
    rhyme: str


@dataclass(frozen=True)
class Verdict:
    """What `judge` found: `score` lies in 0..1; `reasons` say in plain sentences what breaks the form."""

    form: str
    keeps: bool
    score: float
    reasons: tuple[str, ...]
    lines: tuple[Line, ...]

    def as_dict(self) -> dict[str, Any]:
        """The verdict in JSON types: form, keeps, score, reasons, lines (text, syllables, rhyme)."""
        fields = asdict(self)
        fields["reasons"] = list(self.reasons)
        fields["lines"] = [{**asdict(line), "syllables": list(line.syllables)} for line in self.lines]
        return fields


def scheme(lines: list[str]) -> str:
    """The rhyme scheme, one letter a line by first appearance ("ABAB"); a repeated word takes its letter again."""
    letters = ""
    used = 0
    for i, line in enumerate(lines):
        same = (j for j in range(i - 1, -1, -1) if rhymes(line, lines[j]) or same_word(line, lines[j]))
        match = next(same, None)
        if match is None:
            letters += chr(65 + used) if used < 26 else chr(97 + used - 26) if used < 52 else chr(192 + used - 52)
            used += 1
        else:
            letters += letters[match]
    return letters


@lru_cache(maxsize=1)
def _sonnet_schemes() -> list[str]:
    """Two quatrains (ABAB or ABBA each) and a sestet of two or three rhymes in any order.

    This holds the Shakespearean, Petrarchan and Spenserian sonnets and their common variants: a rhyme that runs on
    from one part to the next, as in ABBAABBA, is one way of having the rhymes asked for here.
    """
    orders = {p for kind in ("EEFFGG", "EEEFFF") for p in permutations(kind)}
    sestets = sorted("".join(p) for p in orders if list(dict.fromkeys(p)) == sorted(set(p)))
    sestets.sort(key=lambda sestet: sestet != "EFEFGG")  # where two do as well, the Shakespearean goes first
    return [a + b + sestet for a in ("ABAB", "ABBA") for b in ("CDCD", "CDDC") for sestet in sestets]


def _misses(lines: list[str], pattern: str, repeats: bool = False) -> list[tuple[int, int]]:
    """Pairs of line numbers (from 1) that the pattern asks to rhyme and that do not."""
    missed = []
    for i, letter in enumerate(pattern):
        earlier = [j for j in range(i) if pattern[j] == letter]
        if earlier and not any(
            rhymes(lines[i], lines[j]) or (repeats and same_word(lines[i], lines[j])) for j in earlier
        ):
            missed.append((earlier[-1] + 1, i + 1))
    return missed


def _links(pattern: str) -> int:
    """How many rhymes a pattern asks for: each line whose letter came before."""
    return len(pattern) - len(set(pattern))


def _share(pattern: str, count: int, missed: int) -> float:
    """The share of a pattern's rhymes that its first `count` lines have."""
    return (_links(pattern[:count]) - missed) / _links(pattern)


class _Finding(NamedTuple):
    score: float
    reasons: list[str]
    tolerated: bool = False  # the reasons are too few, for the poem's length, to break the form


def judge(text: str | list[str], form: str | None = None) -> Verdict:
    """Judge a poem (a string, or its lines with "" for stanza breaks) as `form`.

    With no form, the first form of haiku, limerick, sonnet, quatrain, couplet and free that it keeps; free if none.
    A longer poem keeps couplet or quatrain when it goes on in the same way to its end; a poem printed in stanzas of
    four is a quatrain poem, never a couplet one. Raises ValueError for a form not in FORMS.
    """
    if form is not None and form not in FORMS:
        raise ValueError(f"unknown form {form!r}; the known forms are {', '.join(FORMS)}")
    if form is None:
        verdicts = (judge(text, name) for name in ("haiku", "limerick", "sonnet", "quatrain", "couplet"))
        return next((verdict for verdict in verdicts if verdict.keeps), None) or judge(text, "free")
    stanzas = _stanzas(text)
    lines = [line for stanza in stanzas for line in stanza]
    if not lines:
        return Verdict(form, False, 0.0, ("it has no lines",), ())
    finding = _JUDGES[form](stanzas, lines)
    if _loops(lines):
        finding = _Finding(finding.score / 2, [*finding.reasons, "it says the same lines again"])
    keeps = finding.tolerated or not finding.reasons
    letters = scheme(lines) if form not in ("haiku", "free") else " " * len(lines)
    shown = (letter if letters.count(letter) > 1 and letter != " " else "" for letter in letters)
    return Verdict(
        form,
        keeps,
        round(finding.score, 4),
        () if keeps else tuple(finding.reasons),
        tuple(
            Line(line, tuple(sorted(line_syllables(line))), letter) for line, letter in zip(lines, shown, strict=True)
        ),
    )


def _stanzas(text: str | list[str]) -> list[list[str]]:
    stanzas: list[list[str]] = [[]]
    for line in text.splitlines() if isinstance(text, str) else text:
        if line.strip():
            stanzas[-1].append(line.strip())
        elif stanzas[-1]:
            stanzas.append([])
    return [stanza for stanza in stanzas if stanza]


def _loops(lines: list[str]) -> bool:
    """Whether at most half of the lines are new, or one comes three times running."""
    plain = [words_of(line) for line in lines]
    thrice = any(a == b == c for a, b, c in zip(plain, plain[1:], plain[2:], strict=False))
    return len(lines) > 1 and (thrice or 2 * len(set(plain)) <= len(plain))


def _wrong_length(lines: list[str], wanted: int) -> list[str]:
    count = len(lines)
    return [] if count == wanted else [f"it has {count} line{'s' * (count != 1)}, not {wanted}"]


def _nearness(count: int, wanted: int) -> float:
    return min(count, wanted) / max(count, wanted)


def _unrhymed(lines: list[str], missed: list[tuple[int, int]]) -> list[str]:
    return [
        f"lines {a} and {b} " + ("end in the same word" if same_word(lines[a - 1], lines[b - 1]) else "do not rhyme")
        for a, b in missed
    ]


def _haiku(stanzas: list[list[str]], lines: list[str]) -> _Finding:
    reasons = _wrong_length(lines, 3)
    near = 0.0
    for number, (line, wanted) in enumerate(zip(lines, HAIKU, strict=False), 1):
        count = min(line_syllables(line), key=lambda n: (abs(n - wanted), n))
        near += max(0.0, 1 - abs(count - wanted) / wanted) / 3
        if count != wanted:
            reasons.append(f"line {number} has {count} syllable{'s' * (count != 1)}, not {wanted}")
    return _Finding(near * _nearness(len(lines), 3), reasons)


def _limerick(stanzas: list[list[str]], lines: list[str]) -> _Finding:
    reasons = _wrong_length(lines, 5)
    if len(lines) == 4:
        reasons = ["it has 4 lines, not 5 (an old printing may join the third and the fourth)"]
    missed = _misses(lines[:5], "AABBA"[: len(lines)], repeats=True)
    score = _share("AABBA", len(lines), len(missed)) * _nearness(len(lines), 5)
    if len(lines) == 5:
        length = [max(line_syllables(line)) for line in lines]
        if max(length[2:4]) >= min(length[0], length[1], length[4]):  # a limerick's lilt, but no rule of the form
            score *= 0.9
    return _Finding(score, reasons + _unrhymed(lines, missed))


def _couplet(stanzas: list[list[str]], lines: list[str]) -> _Finding:
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
        reasons.insert(0, f"it has {len(lines)} line{'s' * (len(lines) != 1)}, an odd number")
    if all(len(stanza) == 4 for stanza in stanzas):
        return _Finding(score / 2, ["it has stanzas of four lines, not couplets", *reasons])
    return _Finding(score, reasons, tolerated)


def _quatrain(stanzas: list[list[str]], lines: list[str]) -> _Finding:
    shape = [
        f"stanza {n} has {len(stanza)} line{'s' * (len(stanza) != 1)}, not 4"
        for n, stanza in enumerate(stanzas, 1)
        if len(stanza) != 4
    ]
    if len(stanzas) == 1:
        shape = _wrong_length(lines, 4)
    findings = []
    for pattern in QUATRAINS:
        missed, share, start = [], 0.0, 0
        for stanza in stanzas:
            pairs = _misses(stanza[:4], pattern[: len(stanza)])
            if pattern == "ABCB" and len(stanza) > 3 and not pairs:
                aaba = rhymes(stanza[0], stanza[1]) and not rhymes(stanza[0], stanza[2])
                pairs = [(3, 4)] if aaba else []  # AABA is another form
            missed += [(start + a, start + b) for a, b in pairs]
            share += _share(pattern, len(stanza), len(pairs)) * _nearness(len(stanza), 4) / len(stanzas)
            start += len(stanza)
        tolerated = not shape and len(missed) <= _links(pattern) * len(stanzas) // TOLERANCE
        findings.append(_Finding(share, shape + _unrhymed(lines, missed), tolerated))
    return max(findings, key=lambda finding: (finding.tolerated, finding.score))


def _sonnet(stanzas: list[list[str]], lines: list[str]) -> _Finding:
    length = _wrong_length(lines, 14)
    findings = []
    for pattern in _sonnet_schemes():
        missed = _misses(lines[:14], pattern[: len(lines)])
        score = _share(pattern, len(lines), len(missed)) * _nearness(len(lines), 14)
        tolerated = not length and len(missed) <= _links(pattern) // TOLERANCE
        findings.append(_Finding(score, length + _unrhymed(lines, missed), tolerated))
    return max(findings, key=lambda finding: (finding.tolerated, finding.score))


def _free(stanzas: list[list[str]], lines: list[str]) -> _Finding:
    reasons = ["it has 1 line, not 2 or more"] if len(lines) == 1 else []
    return _Finding(0.5 if reasons else 1.0, reasons)


_JUDGES = {
    "haiku": _haiku,
    "limerick": _limerick,
    "couplet": _couplet,
    "quatrain": _quatrain,
    "sonnet": _sonnet,
    "free": _free,
}
