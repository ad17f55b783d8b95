"""Who writes and who waits: a number for everybody, and a seat again when somebody leaves."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from iris import embedded
from iris.errors import RunError
from iris.poet import Poet
from iris.room import Room

LONG = {"form": "free", "length": "long"}


@pytest.fixture(scope="module")
def poet() -> Poet:
    return Poet(embedded.gguf(), n_parallel=1)


def test_a_full_room_numbers_the_line_and_a_full_line_is_refused(poet: Poet) -> None:
    async def visit() -> None:
        room = Room({"tuned": poet}, seats=1, line=2)
        writing = room.write("rain", **LONG)
        assert (await anext(writing)).place == 0
        line = [room.write("snow", "haiku") for _ in range(2)]
        assert [(await anext(each)).place for each in line] == [1, 2]
        with pytest.raises(RunError, match="the room is full, you would be number 3; come back in a few minutes"):
            await anext(room.write("fire", "haiku"))
        await line[0].aclose()  # who leaves the line makes room in it
        assert (await anext(line[1])).place == 1
        await writing.aclose()
        assert [now async for now in line[1]][-1].poem
        assert (room._free, room._line) == (1, [])

    asyncio.run(visit())


def test_a_visitor_who_leaves_frees_the_engine_within_a_second(poet: Poet) -> None:
    async def visit() -> float:
        room = Room({"tuned": poet}, seats=1)
        writing = room.write("rain", **LONG)
        while not (await anext(writing)).text:
            pass
        await writing.aclose()
        began = asyncio.get_running_loop().time()
        async for now in room.write("snow", "haiku"):
            if now.text:
                return asyncio.get_running_loop().time() - began
        raise AssertionError("no poem came")

    assert asyncio.run(visit()) < 1


def test_whoever_sets_left_ends_the_poem_and_frees_the_engine() -> None:
    """At once, though the generator is not asked again."""
    poet = Poet(embedded.gguf(), n_parallel=4)

    async def visit(keep_form: bool) -> None:
        room, left = Room({"tuned": poet}, seats=4), threading.Event()
        writing = room.write("rain", "sonnet", keep_form=keep_form, left=left)
        while not (await anext(writing)).text:
            pass
        left.set()
        began = time.perf_counter()
        while poet._free._value < 4:  # between two lines that keep the form it holds none for a moment
            assert time.perf_counter() - began < 1  # a sonnet takes 5 s, and longer where other tests run beside it
            await asyncio.sleep(0.01)
        last = [now async for now in writing][-1]
        assert time.perf_counter() - began < 1
        assert last.poem is None and last.text.count("\n") < 13
        assert (room._free, poet._free._value) == (4, 4)

    for keep_form in (False, True):
        asyncio.run(visit(keep_form))


def test_a_failure_in_mid_poem_reaches_the_visitor_and_frees_the_seat() -> None:
    class Broken:
        def stream(self, theme: str, form: str, **options: object):
            yield "one word "
            raise RunError("the engine could not write this poem")

    async def visit() -> None:
        room = Room({"tuned": Broken()}, seats=1)  # type: ignore[dict-item]
        with pytest.raises(RunError, match="could not write this poem"):
            async for _ in room.write("rain", "free"):
                pass
        assert room._free == 1

    asyncio.run(visit())
