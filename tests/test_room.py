"""Who writes and who waits: a number for everybody, and a seat again when somebody leaves."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from iris import RunError
from iris.model import smollm2
from iris.poetry.poet import Draft, Poet, Wish
from iris.space.seats import Room

LONG, SHORT = Wish("rain", length="long"), Wish("snow", "haiku")


@pytest.fixture(scope="module")
def poet() -> Poet:
    return Poet(smollm2.gguf(), n_parallel=4)


def test_a_full_room_numbers_the_line_and_a_full_line_is_refused(poet: Poet) -> None:
    async def visit() -> None:
        room = Room({"tuned": poet}, seats=4, line=2)
        writing = room.write(LONG)
        assert (await anext(writing)).place == 0
        line = [room.write(SHORT) for _ in range(2)]  # which take four seats each, to keep the form
        assert [(await anext(each)).place for each in line] == [1, 2]
        with pytest.raises(RunError, match="the room is full, you would be number 3; come back in a few minutes"):
            await anext(room.write(SHORT))
        await line[0].aclose()  # who leaves the line makes room in it
        assert (await anext(line[1])).place == 1
        await writing.aclose()
        while not ((now := await anext(line[1])).text or now.draft):  # its turn has come
            pass
        await line[1].aclose()
        assert (room._free, room._line) == (4, [])

    asyncio.run(visit())


@pytest.mark.parametrize("keep_form", [False, True])
def test_a_visitor_who_leaves_frees_the_engine_within_a_second(poet: Poet, keep_form: bool) -> None:
    """Who sets `left` at once, though the generator is not asked again; and who closes the generator."""

    async def visit() -> None:
        room, left = Room({"tuned": poet}, seats=4), threading.Event()
        for leave in (left.set, None):
            writing = room.write(Wish("rain", "sonnet"), "", keep_form, left=None if leave is None else left)
            while not (await anext(writing)).text:
                pass
            began = time.perf_counter()
            await writing.aclose() if leave is None else leave()
            while poet._free._value < 4:  # between two lines that keep the form it holds none for a moment
                assert time.perf_counter() - began < 1  # a sonnet takes 5 s
                await asyncio.sleep(0.01)
            rest = [now async for now in writing]
            assert all(now.poem is None for now in rest) and time.perf_counter() - began < 1
            assert (room._free, poet._free._value) == (4, 4)

    asyncio.run(visit())


class Fake:
    """A poet that takes its time, and fails who stays."""

    def keep_form(self, wish: Wish, left: threading.Event):
        left.wait(0.1)
        self.wrote = time.perf_counter()
        for piece in ("a kept line\n", Draft("what is"), Draft("what is tried")):
            yield piece
            left.wait(0.3)
        if not left.is_set():
            raise RunError("the engine could not write this poem")


def test_drafts_are_seen_and_a_failure_in_mid_poem_frees_the_seat() -> None:
    async def visit() -> None:
        room, seen = Room({"tuned": Fake()}), []  # type: ignore[dict-item]
        with pytest.raises(RunError, match="could not write this poem"):
            async for now in room.write(SHORT):
                seen.append((now.text, now.draft))
        assert seen[-2:] == [("a kept line\n", "what is"), ("a kept line\n", "what is tried")]
        assert room._free == 8

    asyncio.run(visit())


def test_the_first_word_and_a_freed_seat_are_noticed_at_once() -> None:
    """Within 50 ms in the quickest of four visits; the pauses between later words are five times as long here."""

    async def visit() -> None:
        room, waits = Room({"tuned": (poet := Fake())}, seats=4), []  # type: ignore[dict-item]
        for _ in range(4):
            writing, nextone = room.write(SHORT), room.write(SHORT)
            while not (await anext(writing)).text:
                pass
            waits.append([time.perf_counter() - poet.wrote])
            assert (await anext(nextone)).place == 1
            await writing.aclose()
            left = time.perf_counter()
            while (await anext(nextone)).place:
                pass
            waits[-1].append(time.perf_counter() - left)
            await nextone.aclose()
        assert all(min(each) < 0.05 for each in zip(*waits, strict=True)), waits

    asyncio.run(visit())
