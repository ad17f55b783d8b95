"""Who writes now and who waits: the seats of the poetry room, for many visitors on one event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from .errors import InputError, RunError
from .poet import Poem, Poet, request

SEATS = 8  # poems written at a time; more would only make each of them crawl
CANDIDATES = 4  # of "Keep the form", which takes as many seats
LINE = 100  # visitors who may wait
TICK = 0.05  # seconds: a poem is shown anew every two ticks, and one more for each other seat that is taken, because
# each time costs the engine 3 to 5 ms of its cores, and its other thread waits; but never more than LONGEST
LONGEST = 0.4
FIRST, LATER = 12, 1.4  # after so many times, when there is something to read, the pauses are so much longer
PULSE = 0.5  # seconds after which progress is given even if nothing has changed: only then it shows that a visitor left


@dataclass(frozen=True)
class Progress:
    """What a visitor sees now: a place in the line (from 1; 0 is at work), the text so far, the poem when finished."""

    place: int = 0
    text: str = ""
    poem: Poem | None = None


class Room:
    """`poets`: the voices by name; all of them share the seats."""

    def __init__(self, poets: dict[str, Poet], seats: int = SEATS, line: int = LINE) -> None:
        self.poets = poets
        self._seats = self._free = seats
        self._most = line
        self._line: list[object] = []

    async def write(
        self,
        theme: str,
        form: str,
        mood: str = "",
        length: str = "",
        voice: str = "",
        keep_form: bool = False,
        seed: int | None = None,
        temperature: float = 0.7,
        *,
        left: threading.Event | None = None,
    ) -> AsyncGenerator[Progress, None]:
        """Wait for a seat, write, and give progress on the way; the last has the poem. Leaving the generator early
        frees the seats and the engine; setting `left` does so at once, though the generator waits. InputError for
        anything the visitor got wrong, RunError if the room is full."""
        poet = self.poets.get(voice or next(iter(self.poets))) if isinstance(voice, str) else None
        if poet is None:
            raise InputError(f"unknown voice {voice!r}; choose one of {', '.join(self.poets)}")
        if not isinstance(theme, str):
            raise InputError("the theme must be text")
        if not isinstance(keep_form, bool):
            raise InputError("keep_form must be true or false")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**31):
            raise InputError("the seed must be a whole number from 0 to 2147483647, or empty")
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
            raise InputError("the temperature must be a number from 0 to 2")
        request(theme, form, mood, length)  # refuses what it cannot ask for before anybody has to wait
        several = keep_form and form != "free"
        async for place in self._seat(seats := CANDIDATES if several else 1):
            yield Progress(place)
        try:
            options: dict[str, Any] = {"mood": mood, "length": length, "seed": seed, "temperature": temperature}
            left = left or threading.Event()
            writing = _Writing((poet.keep_form if several else poet.stream)(theme, form, left=left, **options), left)
            try:
                shown, told, times = "", 0.0, 0
                while not writing.done.is_set():
                    if writing.text != shown or time.monotonic() - told > PULSE:
                        shown, told, times = writing.text, time.monotonic(), times + (writing.text != shown)
                        yield Progress(text=shown)
                    with suppress(TimeoutError):
                        pause = TICK * (1 + self._seats - self._free) * (LATER if times > FIRST else 1)
                        await asyncio.wait_for(writing.done.wait(), min(LONGEST, pause))
            finally:
                left.set()
        finally:
            self._free += seats
        if writing.error:
            raise writing.error
        yield Progress(text=writing.text, poem=writing.poem)

    async def _seat(self, seats: int) -> AsyncGenerator[int, None]:
        """Wait in the line until so many seats are free, and take them; yields one's place in it."""
        if len(self._line) >= self._most:
            raise RunError(f"the room is full, you would be number {len(self._line) + 1}; come back in a few minutes")
        ticket = object()
        self._line.append(ticket)
        try:
            told = 0.0
            while self._line[0] is not ticket or self._free < seats:
                if time.monotonic() - told > PULSE:
                    told = time.monotonic()
                    yield self._line.index(ticket) + 1
                await asyncio.sleep(2 * TICK)
            self._free -= seats
        finally:
            self._line.remove(ticket)


class _Writing:
    """A poem written by a thread of its own, so that the event loop never waits for the engine."""

    def __init__(self, pieces: Generator[str, None, Poem], left: threading.Event) -> None:
        self.text = ""
        self.poem: Poem | None = None
        self.error: Exception | None = None
        self.done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pieces, self._left = pieces, left
        threading.Thread(target=self._work).start()

    def _work(self) -> None:
        try:
            with closing(self._pieces):
                while not self._left.is_set():
                    self.text += next(self._pieces)
        except StopIteration as end:
            self.poem = None if self._left.is_set() else end.value
        except Exception as error:  # it is raised again where the visitor waits
            self.error = error
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self.done.set)
