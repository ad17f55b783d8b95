"""Who writes now and who waits: the seats of the poetry room, for many visitors on one event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from .. import InputError, RunError
from ..poetry.keep_form import Draft
from ..poetry.poet import Poet
from ..poetry.wish import Poem, Wish

SEATS = 8  # poems written at a time; more would only make each of them crawl
CANDIDATES = 4  # of "Keep the form", which takes as many seats
LINE = 100  # visitors who may wait
TICK = 0.05  # seconds: a poem is shown anew every two ticks, and one more for each other seat that is taken, because
# each time costs the engine 3 to 5 ms of its cores, and its other thread waits; but never more than LONGEST
LONGEST = 0.4
SOON = 0.02  # seconds after which it is looked again for a free seat, by who is first in the line, and for a first word
FIRST, LATER = 12, 1.4  # after so many times, when there is something to read, the pauses are so much longer
PULSE = 0.5  # seconds after which progress is given even if nothing has changed: only then it shows that a visitor left


@dataclass(frozen=True)
class Progress:
    """What a visitor sees now: a place in the line (from 1; 0 is at work), the text so far, what is being tried for its
    next lines, and the poem when it is finished."""

    place: int = 0
    text: str = ""
    draft: str = ""
    poem: Poem | None = None


class Room:
    """`poets`: the voices by name; all of them share the seats."""

    def __init__(self, poets: dict[str, Poet], seats: int = SEATS, line: int = LINE) -> None:
        self.poets = poets
        self._seats = self._free = seats
        self._most = line
        self._line: list[object] = []
        self._threads = ThreadPoolExecutor(seats)

    async def write(
        self, wish: Wish, voice: str = "", keep_form: bool = True, *, left: threading.Event | None = None
    ) -> AsyncGenerator[Progress, None]:
        """Wait for a seat, write, and give progress on the way; the last has the poem. Leaving the generator early
        frees the seats and the engine; setting `left` does so at once, though the generator waits. InputError for
        anything the visitor got wrong, RunError if the room is full."""
        poet = self.poets.get(voice or next(iter(self.poets))) if isinstance(voice, str) else None
        if poet is None:
            raise InputError(f"unknown voice {voice!r}; choose one of {', '.join(self.poets)}")
        if not isinstance(keep_form, bool):
            raise InputError("keep_form must be true or false")
        wish.check()  # before anybody has to wait
        several = keep_form and wish.form != "free"
        async for place in self._seat(seats := CANDIDATES if several else 1):
            yield Progress(place)
        left = left or threading.Event()
        shown = ("", "")  # the text and the draft after it

        def work() -> Poem | None:
            nonlocal shown
            with closing((poet.keep_form if several else poet.stream)(wish, left=left)) as pieces:
                while not left.is_set():
                    try:
                        piece = next(pieces)
                    except StopIteration as end:
                        return None if left.is_set() else end.value
                    text = shown[0]
                    shown = (text, piece.text) if isinstance(piece, Draft) else (text + piece, "")
            return None

        # in a thread of its own, so that the event loop never waits for the engine
        writing = asyncio.get_running_loop().run_in_executor(self._threads, work)
        seen, told, times = shown, 0.0, 0
        try:
            while not writing.done():
                if shown != seen or time.monotonic() - told > PULSE:
                    times += shown != seen
                    seen, told = shown, time.monotonic()
                    yield Progress(0, *seen)
                pause = TICK * (1 + self._seats - self._free) * (LATER if times > FIRST else 1)
                await asyncio.wait({writing}, timeout=min(LONGEST, pause) if times else SOON)
        finally:
            left.set()
            self._free += seats
        yield Progress(text=shown[0], poem=writing.result())

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
                await asyncio.sleep(SOON if self._line[0] is ticket else 2 * TICK)
            self._free -= seats
        finally:
            self._line.remove(ticket)
