"""What a poem is asked for with, and the poem."""

import re
import time
import unicodedata
from dataclasses import dataclass

from .. import InputError
from .forms import FORMS

THEME_LIMIT = 300  # characters
MOODS = ("joyful", "melancholy", "calm", "playful", "dreamy", "dark", "tender", "angry")
LENGTHS = ("short", "long")
OF_ANY_LENGTH = ("couplet", "quatrain", "free")  # the other forms have one length

_TAG = re.compile(r"<[^\s<>][^<>]*>|\[/?[A-Z_]{2,}\]")  # <|im_start|>, <s>, <b>, [INST]


@dataclass(frozen=True)
class Poem:
    """A finished poem. `ended`: it stopped by itself, not at the length limit; `tokens`: how many were written, in
    `seconds` of wall time."""

    text: str
    form: str
    ended: bool
    tokens: int
    seconds: float

    @classmethod
    def of(cls, text: str, form: str, ended: bool, tokens: int, started: float) -> "Poem":
        """As it is now, begun at `started` of time.perf_counter()."""
        return cls(text.strip(), form, ended, tokens, time.perf_counter() - started)


def clean_theme(theme: str) -> str:
    """The theme as plain words: no control characters, nothing that looks like a special token or a tag, single
    spaces, no full stop at its end. InputError if it is longer than 300 characters or if nothing is left of it."""
    if len(theme) > THEME_LIMIT:
        raise InputError(f"the theme has {len(theme)} characters; give at most {THEME_LIMIT}")
    # invisible characters go first: one of them inside <|im_end|> would hide it
    text = "".join(" " if c.isspace() else c for c in theme if c.isspace() or unicodedata.category(c)[0] != "C")
    while (plain := _TAG.sub(" ", text)) != text:  # again, as what is left may form a tag: <|im_<b>end|>
        text = plain
    text = " ".join(text.split()).rstrip(" .")
    if not text:
        raise InputError("the theme is empty; say in a few words what the poem should be about")
    return text


@dataclass(frozen=True)
class Wish:
    """What a poem is asked for with. seed: random if None; temperature: 0 to 2, higher is bolder."""

    theme: str
    form: str = "free"
    mood: str = ""
    length: str = ""
    seed: int | None = None
    temperature: float = 0.7

    def check(self) -> None:
        """InputError for anything that cannot be asked for, of whatever type a caller sent it."""
        choices = {"form": (*FORMS,), "mood": ("", *MOODS), "length": ("", *LENGTHS)}
        for name, known in choices.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise InputError(f"unknown {name} {value!r}; choose one of {', '.join(filter(None, known))}")
        if not isinstance(self.theme, str):
            raise InputError("the theme must be text")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**31):
            raise InputError("the seed must be a whole number from 0 to 2147483647, or empty")
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature <= 2:
            raise InputError("the temperature must be a number from 0 to 2")
        clean_theme(self.theme)

    def request(self) -> str:
        """The user's message that asks for the poem, in the words of the training verses. InputError as in `check`."""
        self.check()
        words = f"Write {FORMS[self.form].asked} about {clean_theme(self.theme)}."
        if self.mood:
            words += f" Make it {self.mood}."
        if self.length and self.form in OF_ANY_LENGTH:
            words += " Keep it short." if self.length == "short" else " Make it long."
        return words
