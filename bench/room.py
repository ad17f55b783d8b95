"""The room under load: python bench/room.py [--model FILE.gguf] --out results/room-NAME.json

Starts app.py with the model and visits it by the page's own protocol, as browsers do, from this same machine. Tells,
and writes as a record of kind "speed":

first_word      seconds from Write to the first word, on an idle room
speed           tokens a second that reach the page, for one visitor and for four at once, beside what the engine writes
                when it is called bare for one and for four, by turns
crowd           50 visitors at once for five minutes: who got a poem, who a place in the line; growth of memory
leave           the first word of a visitor who comes when eight who write have pressed Stop, or closed their tab
form            "Keep the form": share of poems that keep it, with and without, and what it costs in time

Speeds through the page are measured in characters and told in tokens, at the rate of the same poems written bare.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import random
import re
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from iris import embedded, record
from iris.poet import TEMPLATE_DATE, Poet, request
from iris.poetry.verse import FORMS, judge
from iris.room import SEATS

HERE = Path(__file__).resolve().parents[1]
THEMES = ["rain", "the sea at night", "first snow", "letters never sent", "an old dog", "the last bus home"]
THEMES += ["bread", "my grandmother's hands", "a street in March", "the moon", "leaving", "a garden"]
LONG: dict[str, Any] = {"form": "free", "length": "long"}
WARM_UP = 60  # seconds of the crowd that do not count for memory
WARM = 5  # seconds of writing before a speed is measured: the slots in use read their first prompt
LARGE = 4e8  # bytes from which a model has the 1B's aims

Rows = list[dict[str, Any]]


class App:
    """app.py in a process of its own."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        settings = {"IRIS_MODEL": str(model), "GRADIO_SERVER_PORT": self.url.rpartition(":")[2]}
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "app.py"], cwd=HERE, env=os.environ | settings, **quiet)
        while True:
            if self.process.poll() is not None:
                sys.exit("app.py ended; its last words are above")
            try:
                config = httpx.get(self.url + "/config", timeout=10).json()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        ids = {each["props"].get("elem_id"): each["id"] for each in config["components"]}
        self.write, self.stop = (
            next(each["id"] for each in config["dependencies"] if [ids[button], "click"] in each["targets"])
            for button in ("write", "stop")
        )
        self.button = ids["write"]
        self.voice = next(each["props"]["value"] for each in config["components"] if each["id"] == ids["voice"])

    def memory(self) -> float:
        """Resident megabytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


class Visitor:
    """One tab of a browser."""

    def __init__(self, app: App) -> None:
        self.app, self.session, self.finished = app, secrets.token_hex(6), False
        self.client = httpx.Client(base_url=app.url + "/gradio_api", timeout=900, verify=False)  # no certificates
        self.heart = self.client.send(self.client.build_request("GET", f"/heartbeat/{self.session}"), stream=True)

    def write(self, theme: str, seed: int, form: str = "free", length: str = "", keep: bool = False) -> Iterator[str]:
        """Press Write; yields what the sheet says: "...", a place in the line, or the lines so far. `finished` once
        the poem is whole. RuntimeError with the sentence of a refusal."""
        self.finished = False
        data = [theme, form, "", length, self.app.voice, keep, seed, 0.7]
        body = {"data": data, "fn_index": self.app.write, "session_hash": self.session, "trigger_id": self.app.button}
        self.client.post("/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as answer:
            for row in answer.iter_lines():
                if '"process_completed"' in row and '"success":false' in row:
                    raise RuntimeError(json.loads(row[6:])["output"].get("error") or "failed")
                if "<article" in row:
                    found = json.dumps(json.loads(row[6:])["output"]["data"], ensure_ascii=False)
                    lines = re.findall(r'data-text=\\"(.*?)\\"', found)
                    note = re.search(r'class=\\"first\\">(.*?)<', found)
                    self.finished = bool(lines) and r"aria-busy=\"false\"" in found
                    yield "\n".join(map(html.unescape, lines)) or f"... {note[1] if note else ''}"

    def poem(self, theme: str, seed: int, **wish: Any) -> tuple[str, float, float, bool]:
        """The poem, seconds to its first word, seconds in all, whether there was a line."""
        began, first, waited, text = time.perf_counter(), 0.0, False, ""
        for text in self.write(theme, seed, **wish):
            waited = waited or "You are number" in text
            if not first and not text.startswith("..."):
                first = time.perf_counter() - began
        return text, first, time.perf_counter() - began, waited

    def close(self, poem: Iterator[str]) -> None:
        """Close the tab: the poem's stream, and the one that tells the room that somebody is here."""
        poem.close()  # type: ignore[attr-defined]
        self.heart.close()

    def stop(self) -> None:
        body = {"data": [], "fn_index": self.app.stop, "session_hash": self.session}
        self.client.post("/run/predict", json=body).raise_for_status()


# --- the bare engine -------------------------------------------------------------------------------------------------


def bare(model: Path, visitors: int, seconds: float) -> None:
    """Print the characters and tokens a second that the engine alone writes for so many threads, each of which asks
    again as soon as it has a poem; run in a process of its own."""
    poet = Poet(model, n_parallel=SEATS)

    begin = time.perf_counter() + WARM
    end = begin + seconds
    counts = [[0, 0] for _ in range(visitors)]

    def visit(number: int) -> None:
        seed = 100 * number

        def receive(chunk: dict[str, Any]) -> bool:
            now = time.perf_counter()
            if (piece := chunk["choices"][0]["delta"].get("content")) and now > begin:
                counts[number][0] += len(piece)
                counts[number][1] += 1
            return now > end

        while time.perf_counter() < end:
            seed += 1
            body = {
                "messages": [{"role": "user", "content": request(THEMES[seed % len(THEMES)], **LONG)}],
                "chat_template_kwargs": {"date_string": TEMPLATE_DATE},
                "seed": seed,
                "temperature": 0.7,
                "repeat_penalty": 1.1,
                "repeat_last_n": 256,
                "max_tokens": 512,
                "stream": True,
            }
            poet._server.handle_chat_completions(body, receive)

    _at_once(visit, visitors)
    print(json.dumps([sum(each) / seconds for each in zip(*counts, strict=True)]), flush=True)
    os._exit(0)


def engine_alone(model: Path, visitors: int, seconds: float) -> tuple[float, float]:
    """Characters and tokens a second of the engine without the page."""
    command = [sys.executable, __file__, "--model", str(model), "--bare", str(visitors), "--seconds", str(seconds)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    characters, tokens = json.loads(told.splitlines()[-1])
    return characters, tokens


# --- what is measured ------------------------------------------------------------------------------------------------


def first_word(app: App, large: bool) -> Rows:
    Visitor(app).poem("warm up", 1, form="couplet")
    times = [Visitor(app).poem(theme, 1, form="haiku")[1] for theme in THEMES[:7]]
    told = f"{statistics.median(times):.2f} s, at worst {max(times):.2f} s"
    return [
        row("first word in an idle room", "2.5 s" if large else "1 s", told, seconds=[round(each, 3) for each in times])
    ]


def together(app: App, visitors: int, seconds: float) -> float:
    """Characters a second that so many visitors get, who ask again as soon as they have a poem."""
    tabs = [Visitor(app) for _ in range(visitors)]
    begin = time.perf_counter() + WARM
    end = begin + seconds
    counts = [0] * visitors

    def visit(number: int) -> None:
        visitor, seed = tabs[number], 100 * number
        while time.perf_counter() < end:
            seed, seen = seed + 1, 0
            for text in visitor.write(THEMES[seed % len(THEMES)], seed, **LONG):
                now = time.perf_counter()
                if now > end:
                    visitor.stop()
                    return
                if not text.startswith("..."):
                    counts[number] += len(text) - seen if now > begin else 0
                    seen = len(text)

    _at_once(visit, visitors)
    return sum(counts) / seconds


def speed(app: App, model: Path, large: bool, seconds: float, turns: int = 5) -> Rows:
    """By turns, as the neighbours of a shared machine come and go: ratios are medians over the turns. The poems have
    the same seeds with and without the page, so that a character is as many tokens in both."""
    Visitor(app).poem("warm up", 1, form="couplet")
    page: dict[int, list[float]] = {1: [], 4: []}
    alone: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(turns):
        for visitors in (1, 4):
            characters, tokens = engine_alone(model, visitors, seconds)
            alone[visitors].append(round(tokens, 1))
            page[visitors].append(round(together(app, visitors, seconds) * tokens / characters, 1))

    def ratio(above: list[float], below: list[float]) -> str:
        told = f"{statistics.median(a / b for a, b in zip(above, below, strict=True)):.2f}"
        return f"{told} ({statistics.median(above):.1f} of {statistics.median(below):.1f})"

    figures = {"page_tokens_per_s": page, "engine_tokens_per_s": alone}
    return [
        row("tokens a second through the page, of the bare engine's", "0.9", ratio(page[1], alone[1]), **figures),
        row("the same with four visitors at once", "", ratio(page[4], alone[4])),
        row(
            "four visitors at once, together, of one's tokens a second",
            "2.4" if large else "1.5",
            f"{ratio(page[4], page[1])}; the bare engine {ratio(alone[4], alone[1])}",
        ),
    ]


def crowd(app: App, visitors: int, seconds: float) -> Rows:
    end = time.perf_counter() + seconds
    came: Counter[str] = Counter()
    silences: list[float] = []
    memory: list[tuple[float, float]] = []
    door = threading.Lock()

    def visit(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() < end:
            visitor, began, told, place = Visitor(app), time.perf_counter(), 0.0, False
            wish: dict[str, Any] = {"form": chance.choice(FORMS), "keep": chance.random() < 0.25}
            try:
                for text in visitor.write(chance.choice(THEMES), chance.randrange(2**31), **wish):
                    place = place or "You are number" in text
                    if not told and (place or not text.startswith("...")):
                        told = time.perf_counter() - began
                outcome = "a poem" if visitor.finished else "neither a poem nor a refusal"
            except RuntimeError as error:
                told = told or time.perf_counter() - began
                outcome = "refused, number told" if "you would be number" in str(error).lower() else f"error: {error}"
            except httpx.HTTPError as error:
                outcome = f"error: {type(error).__name__}"
            with door:
                came[outcome] += 1
                came["told a place in the line"] += place
                silences.append(told or time.perf_counter() - began)
            visitor.client.close()

    def watch() -> None:
        while time.perf_counter() < end:
            memory.append((time.perf_counter() - end + seconds, app.memory()))
            time.sleep(2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _at_once(visit, visitors)
    watcher.join()
    warm = min(WARM_UP, seconds / 3)
    before = statistics.mean(mb for at, mb in memory if warm <= at < warm + seconds / 6)
    after = statistics.mean(mb for at, mb in memory if at > seconds * 5 / 6)
    places = came.pop("told a place in the line")
    crashed = app.process.poll() is not None
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in came.most_common())
    told = f"{outcomes}; {places} were first told their place; {'crashed' if crashed else 'no crash'}"
    return [
        row(f"{visitors} visitors at once for {seconds:.0f} s", "each a poem or a number, no crash", told),
        row("until a visitor of the crowd is told something", "", f"at worst {max(silences):.1f} s"),
        row(
            "memory of the crowded room after a minute, and at its end",
            "under 5% growth",
            f"{before:.0f} MB, {after:.0f} MB ({after / before - 1:+.1%})",
            megabytes=[round(mb, 1) for _, mb in memory[::5]],
        ),
    ]


def leave(app: App) -> Rows:
    rows = []
    for how in ("stop", "closed tab"):
        times = []
        for attempt in range(5):
            visitors = [Visitor(app) for _ in range(SEATS)]
            poems = [each.write("the long road home", attempt * 10 + n, **LONG) for n, each in enumerate(visitors)]

            def settle(poem: Iterator[str]) -> None:
                next(text for text in poem if not text.startswith("..."))

            _at_once(lambda n, poems=poems: settle(poems[n]), SEATS)  # type: ignore[misc]
            began = time.perf_counter()
            for visitor, poem in zip(visitors, poems, strict=True):
                visitor.stop() if how == "stop" else visitor.close(poem)
            newcomer = Visitor(app).write("rain", attempt, form="haiku")
            settle(newcomer)
            times.append(time.perf_counter() - began)
            list(newcomer)
        told = f"{statistics.median(times):.2f} s, at worst {max(times):.2f} s"
        rows.append(
            row(f"first word after eight who wrote: {how}", "1 s", told, seconds=[round(each, 3) for each in times])
        )
    return rows


def form(app: App, large: bool, requests: int) -> Rows:
    forms = [name for name in FORMS if name != "free"]
    kept, seconds = {False: 0, True: 0}, {False: 0.0, True: 0.0}
    visitor = Visitor(app)
    for number in range(requests):
        for keep in (False, True):
            shape = forms[number % len(forms)]
            text, _, took, _ = visitor.poem(THEMES[number // len(forms) % len(THEMES)], number, form=shape, keep=keep)
            kept[keep] += judge(text, shape).keeps
            seconds[keep] += took
    plain, better = (100 * kept[keep] / requests for keep in (False, True))
    ratio = seconds[True] / seconds[False]
    each = {keep: seconds[keep] / requests for keep in seconds}
    return [
        row(
            f"keep the form: {requests} requests that keep it",
            "15 points more",
            f"{better:.0f}%, {plain:.0f}% without ({better - plain:+.0f} points)",
        ),
        row(
            "keep the form: time, of one poem's",
            "1.8" if large else "2.5",
            f"{ratio:.2f} ({each[True]:.2f} s of {each[False]:.2f} s)",
        ),
    ]


def row(what: str, asked: str, measured: str, **figures: Any) -> dict[str, Any]:
    """A row of the README's table; `figures` stay in the record."""
    return {"what": what, "asked": asked, "measured": measured} | ({"figures": figures} if figures else {})


def _at_once(work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the room under load.")
    parser.add_argument("--model", type=Path, help="a GGUF file; the embedded SmolLM2 unless given")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="first_word,speed,crowd,leave,form", help="which parts, by commas")
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement of speed")
    parser.add_argument("--crowd", type=float, default=300, help="seconds that the crowd stays")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--requests", type=int, default=60, help="poems for Keep the form")
    parser.add_argument("--note", default="", help="goes into the record: what else the machine did, say")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = (args.model or embedded.gguf()).resolve()
    if args.bare:
        bare(model, args.bare, args.seconds)
    began = time.perf_counter()
    app, large = App(model), model.stat().st_size > LARGE
    rows: Rows = []
    parts: dict[str, Callable[[], Rows]] = {
        "first_word": lambda: first_word(app, large),
        "speed": lambda: speed(app, model, large, args.seconds),
        "crowd": lambda: crowd(app, args.visitors, args.crowd),
        "leave": lambda: leave(app),
        "form": lambda: form(app, large, args.requests),
    }
    try:
        for name in args.only.split(","):
            for each in parts[name]():
                rows.append(each)
                print(" | ".join(value for value in each.values() if isinstance(value, str)), flush=True)
    finally:
        app.close()
    if args.out:
        if args.out.exists():  # a second call adds its rows, or replaces them
            told = {each["what"] for each in rows}
            rows = [each for each in record.read(args.out).measures["rows"] if each["what"] not in told] + rows
        result = record.Record(
            kind="speed",
            name=args.out.stem,
            status="finished",
            model={"id": model.name, "revision": None, "digest": record.file_digest(model)},
            settings={"device": f"{os.cpu_count()} CPU cores, visitors on the same", "seconds": args.seconds},
            measures={"rows": rows, "wall_seconds": round(time.perf_counter() - began, 1)},
            note=args.note,
        )
        record.write(result, args.out)


if __name__ == "__main__":
    main()
