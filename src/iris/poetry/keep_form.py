"""How a poem keeps its form: out of several drafts that the engine writes in one batch.

`compose` takes every decision: a generator that yields what it wants from an engine (`Likely`, `Drafts`, `Ends`), is
sent the answer, and yields text which stays. poet.py drives it with llama.cpp in this process, browser.py as
WebAssembly.

A plan (plan.py) gives each line the word to end in. A model that was taught to is told the plan and lands on it, in
drafts of whole stanzas (a sonnet's quatrains and its couplet, each by itself, so that no prompt is long); of the draft
that keeps the form for most lines these stay. Any other model is only leaned towards words that rhyme, line by line. A
line may be cut where it lands. Of drafts that do as well the likeliest stays, its end words counted by how well they
follow the words of their lines. Where none has a line without a fault, more are written, warmer, then under another
plan, then the line before is taken back.
"""

import random
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .forms import FORMS, ends_sentence, ends_weakly
from .plan import Likely, choose, end_words, name_plan, nearness
from .sound import last_word, line_syllables, perfect_rhyme
from .wish import Wish, clean_theme

Landing = tuple[int, int, float, list[str]]  # minus the faults of the first line, how many lines, how likely, the lines
NOTHING: Landing = (-99, 0, 0.0, [])
DRAFTS = 8  # in one batch, at most
FEWEST, LINES = 3, 8  # drafts of a first batch: at least so many, and so many lines in all of them together
ROUNDS = 4  # of drafts for one line, before the one before it is taken back
PATIENCE = 16  # tokens that drafts may have for each that the form may need
CUT = 0.4  # nats a token that a line must be likelier by if it was cut
END = 0.2  # of the mean likelihood of end words, beside that of all that a draft was told to write
BIAS = 3.0  # logits in favour of words that rhyme, for a model that was not taught; two more with every new try
_PLAIN = re.compile(r"[A-Za-z0-9 ,.;:!?'\"‘’“”()—–-]+")


@dataclass(frozen=True)
class Drafts:
    """Wants so many answers (`count`) to the user's `message`, each going on from `before`, in a list of Draft.
    may_end: whether the model may end it by itself. bias: logits to add to the first token of words. scored: whether
    likelihoods are wanted. shown: lines before the drafts that may yet be taken back. settled: how many lines a draft
    that has come so far, up to a finished line, will have given; None while more of it may add to them."""

    message: str
    before: str = ""
    count: int = 1
    seed: int | None = None
    temperature: float = 0.7
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    may_end: bool = True
    bias: dict[str, float] = field(default_factory=dict)
    scored: bool = False
    shown: str = ""
    settled: Callable[[str], int | None] = lambda text: None


@dataclass(frozen=True)
class Ends:
    """Wants to know how likely each end word is after the words of its line (`lines`: both), whatever the model was
    asked: a list of log-likelihoods."""

    lines: Sequence[tuple[str, str]]


@dataclass
class Draft:
    """What is being tried for a poem's next lines and may yet be thrown away: a visitor sees it in grey. `ended`: None
    while it is written, then whether it stopped by itself or at one of the stops; `likely`: of each piece of its text,
    where it ends, the log-likelihood of its tokens and their number."""

    text: str = ""
    tokens: int = 0
    ended: bool | None = None
    likely: list[tuple[int, float, int]] = field(default_factory=list)

    def likelihood(self, start: int, end: int) -> float:
        """The mean log-likelihood of its tokens between two characters."""
        told = [(value, count) for upto, value, count in self.likely if start < upto <= end]
        return sum(value for value, _ in told) / max(1, sum(count for _, count in told))


def compose(wish: Wish, taught: bool, count: int = DRAFTS) -> Generator[Likely | Drafts | Ends | str, Any, None]:
    """A poem in the wish's form, which has lines. Yields text that stays (send None), or what it wants to know: a
    Likely (send {word: log-likelihood}), Ends, or Drafts (send a list of Draft, `count` of them at most).
    taught: whether the model was taught to land on end words that are named. The same answers make the same poem."""
    form = FORMS[wish.form]
    assert form.lines, "free verse has no form to keep"
    chance = random.Random(wish.seed)
    near = yield from nearness(clean_theme(wish.theme))
    plan = choose(wish.form, near, chance)
    lines: list[str] = []
    refused: set[str] = set()
    given = spent = rounds = 0
    nearest = NOTHING
    while (here := len(lines)) < form.lines:
        start, part = 0, wish
        if taught and wish.form == "sonnet":
            start = here // 4 * 4
            part = replace(wish, form="quatrain" if start < 12 else "couplet", length="")
        stop = start + len(FORMS[part.form].metre) if taught else here + 1
        poem = Unfinished(wish.form, lines, plan, stop, taught, refused)
        asked = Drafts(
            name_plan(part.request(), plan[start:stop]) if taught else part.request(),
            "".join(line + "\n" for line in lines[start:]),
            count if rounds else min(count, max(FEWEST, LINES // (stop - here))),
            seed=chance.getrandbits(31),
            temperature=min(2.0, wish.temperature + 0.1 * rounds),
            max_tokens=sum(4 + 3 * high // 2 for _, high in form.metre[here:stop]),
            stop=("\n",) if stop == here + 1 else (),
            may_end=taught or stop == form.lines,
            bias={} if taught else dict.fromkeys(poem.rhyming_words(), BIAS + 2 * rounds),
            scored=True,
            shown="".join(line + "\n" for line in lines[given:]),
            settled=poem.settled,
        )
        drafts = yield asked
        spent += asked.count * asked.max_tokens
        landings = [poem.landing(draft) for draft in drafts]
        if taught:
            landings = yield from weigh_ends(landings)
        nearest = max(nearest, *landings)
        rounds += 1
        ends = [last_word(line) for line in lines]
        if nearest[0] == 0 or spent > PATIENCE * form.tokens or rounds == 2 * ROUNDS:
            if not nearest[1]:
                break
            lines += nearest[3]
            ends += [last_word(line) for line in nearest[3]]
            nearest, rounds = NOTHING, 0
            if ends != plan[: len(ends)]:
                plan = choose(wish.form, near, chance, begun=ends) or [*ends, *plan[len(ends) :]]
            if kept := "".join(line + "\n" for line in lines[given:-1]):
                yield kept
                given = len(lines) - 1
        elif rounds == ROUNDS and given < len(lines):
            refused.add(lines.pop().lower())
            nearest, rounds = NOTHING, 0
            plan = choose(wish.form, near, chance, begun=ends[:-1]) or plan
        elif rounds % 2 == 0:
            plan = choose(wish.form, near, chance, begun=ends) or plan
    if lines[given:]:  # else a line was taken back, or none was found
        yield "".join(line + "\n" for line in lines[given:])


def weigh_ends(landings: list[Landing]) -> Generator[Ends, list[float], list[Landing]]:
    """Of landings that keep the form for as many lines as any, how likely they are by their end words as well: told
    where to land a model does so at any price ("the first snowfall was so veil"). Others are left out."""
    best = max(landings)[:2]
    rivals = [landing for landing in landings if landing[:2] == best]
    if best[0] < 0 or len(rivals) == 1:
        return rivals
    ends = {line: (line.rpartition(" ")[0], last_word(line)) for *_, lines in rivals for line in lines}
    likely = dict(zip(ends, (yield Ends(list(ends.values()))), strict=True))
    return [
        (faults, count, draft + END * sum(likely[line] for line in lines) / count, lines)
        for faults, count, draft, lines in rivals
    ]


@dataclass(frozen=True)
class Unfinished:
    """A poem of the form that has `lines`, and is to go on up to line `stop`. plan: the end words of all its lines.
    taught: whether the model knows it; if not, a line that nothing rhymes with yet may end as it likes, as long as the
    dictionary has the rhymes that will be needed. refused: lines that it must not have, in small letters."""

    form: str
    lines: Sequence[str]
    plan: Sequence[str]
    stop: int
    taught: bool
    refused: set[str]

    def landing(self, draft: Draft) -> Landing:
        """The lines of a draft that keep the form: as many as there are, or the first with its faults."""
        here, score, start = self, 0.0, 0
        while len(here.lines) < self.stop:
            faults, likely, end = here.best_line(draft, start)
            line = " ".join(draft.text[start:end].split())
            if faults and here is self:
                return faults, int(line != ""), likely, [line]
            if faults:
                break
            lines = [*here.lines, line]
            plan = [*here.plan[: len(here.lines)], last_word(line), *here.plan[len(lines) :]]
            here, score = replace(here, lines=lines, plan=plan), score + likely
            start = end + (draft.text[end : end + 1] == "\n")
        found = len(here.lines) - len(self.lines)
        return 0, found, score / max(1, found), list(here.lines[len(self.lines) :])

    def settled(self, text: str) -> int | None:
        """As Drafts.settled: the lines that keep the form, once the next that the model began and finished does not."""
        finished = text.rpartition("\n")[0]
        whole = [" ".join(line.split()) for line in finished.split("\n")] if finished else []
        faults, found, _, lines = self.landing(Draft(finished, ended=True))
        found = 0 if faults else found
        is_over = found < len(whole) and (faults < 0 or lines == whole[:found])
        return found if is_over or text.count("\n") > self.stop - len(self.lines) else None

    def best_line(self, draft: Draft, start: int) -> tuple[int, float, int]:
        """Of the ways to take the next line of the poem from a draft, from the character `start` on, the best: minus
        its faults (0: it keeps the form), how likely it is, where it ends. A line that the model began is not joined
        with its next; what is left of a line that was cut is, where no capital would stand in its middle."""
        _, high = FORMS[self.form].metre[len(self.lines)]
        found = [(NOTHING[0], 0.0, start)]
        begun = start == 0 or draft.text[start - 1] == "\n"
        words = [(word.start(), word.end()) for word in re.compile(r"\S+").finditer(draft.text, start)]
        if not (draft.ended or draft.text[-1:].isspace()):
            words = words[:-1]  # the last may be half a word
        for number, (at, end) in enumerate(words):
            if number and "\n" in draft.text[words[number - 1][1] : at]:
                joins = draft.text[at].islower() or draft.text[at:end] == "I" or ends_sentence(draft.text[start:at])
                if begun or not joins:
                    break
            if not number:
                continue
            line = " ".join(draft.text[start:end].split())
            is_whole = begun and draft.text[end : end + 1] in ("\n", "")
            faults, likely = self.faults(line), draft.likelihood(start, end)
            if is_whole and not faults:
                return 0, likely, end
            found.append((-faults, likely - CUT * (line[-1].isalnum() and not is_whole), end))
            if min(line_syllables(line)) > high:
                break
        return max(found)

    def faults(self, line: str) -> int:
        """How far a next line is from keeping the form."""
        words = line.lower().split()
        low, high = FORMS[self.form].metre[len(self.lines)]
        off = min(max(low - count, count - high, 0) for count in line_syllables(line))
        again = line.lower() in self.refused or line.lower() in [each.lower() for each in self.lines]
        odd = again or 3 * len(set(words)) < 2 * len(words) or not _PLAIN.fullmatch(line)
        is_last = len(self.lines) + 1 == len(self.plan)
        hangs = ends_weakly(line) or (is_last and not ends_sentence(line))
        return off + 4 * self.misses(last_word(line)) + 8 * odd + 2 * hangs

    def misses(self, word: str) -> bool:
        """Whether the next line must not end in a word."""
        here = len(self.lines)
        others = [other for i, other in enumerate(self.plan) if i != here]
        mates = [other for other in others if perfect_rhyme(other, self.plan[here])] if FORMS[self.form].schemes else []
        known = mates if self.taught else [other for other in mates if other in self.plan[:here]]
        if word in others or not all(perfect_rhyme(word, other) for other in known):
            return True
        # so many must be left in the dictionary that the lines to come have a choice
        return len(mates) > 0 and not known and sum(perfect_rhyme(word, each) for each in end_words()) < 3 * len(mates)

    def rhyming_words(self) -> list[str]:
        """Words that would end the next line well, for a model that has to be leaned towards them: none where it may
        end as it likes."""
        here = self.plan[len(self.lines)]
        rhymes = any(perfect_rhyme(word, here) for word in self.plan[: len(self.lines)])
        return [word for word in end_words() if rhymes and not self.misses(word)]
