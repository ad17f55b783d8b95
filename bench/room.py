"""The room under load: python bench/room.py [--model FILE.gguf] --out results/room-NAME.json

Starts app.py with the model and visits it by the page's own protocol, as browsers do, from this same machine. Tells,
and writes as a record of kind "speed":

first_word      seconds from Write to the first word, on an idle room
speed           characters a second that reach the page, for one visitor and for four at once
crowd           50 visitors at once for five minutes: who got a poem, who a place in the line; growth of memory

How well poems keep their form, and in what time, bench/poet.py measures; that who leaves makes room, tests/test_app.py.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from gradio_client.utils import apply_diff

from iris import record
from iris.model import smollm2
from iris.poetry.forms import FORMS

HERE = Path(__file__).resolve().parents[1]
THEMES = ["rain", "the sea at night", "first snow", "letters never sent", "an old dog", "the last bus home"]
THEMES += ["bread", "my grandmother's hands", "a street in March", "the moon", "leaving", "a garden"]
LONG: dict[str, Any] = {"form": "free", "length": "long"}
WARM_UP = 60  # seconds of the crowd that do not count for memory
WARM = 5  # seconds of writing before a speed is measured: the slots in use read their first prompt

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
        self.page = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "page")
        self.write, self.stop = (
            next(each["id"] for each in config["dependencies"] if [self.page, event] in each["targets"])
            for event in ("submit", "stop")
        )

    def memory(self) -> float:
        """Resident megabytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


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
        wish = {"theme": theme, "form": form, "mood": "", "length": length, "seed": seed, "temperature": 0.7}
        asked = {"data": [], "event_data": wish | {"voice": "", "keep_form": keep, "turn": 1}}
        asked |= {"fn_index": self.app.write, "session_hash": self.session, "trigger_id": self.app.page}
        self.client.post("/queue/join", json=asked).raise_for_status()
        poem: dict[str, Any] = {}
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.session}) as answer:
            for row in answer.iter_lines():
                if '"process_generating"' in row:
                    news = json.loads(row[6:])["output"]["data"][0]  # all of it, then what has changed
                    poem = news if isinstance(news, dict) else apply_diff(poem, news)
                    if not (poem.get("busy") or poem.get("text")):
                        raise RuntimeError(poem["note"])
                    self.finished = not poem.get("busy")
                    yield poem["text"].strip() or f"... {poem['note']}"

    def stop(self) -> None:
        body = {"data": [], "fn_index": self.app.stop, "session_hash": self.session}
        self.client.post("/run/predict", json=body).raise_for_status()


# --- what is measured ------------------------------------------------------------------------------------------------


def first_word(app: App) -> Rows:
    times: list[float] = []
    for theme in ("warm up", *THEMES[:7]):
        began, words = time.perf_counter(), (text for text in Visitor(app).write(theme, 1, "haiku"))
        next(text for text in words if not text.startswith("..."))
        times.append(time.perf_counter() - began)
        list(words)  # to the poem's end
    del times[0]
    return [row("first word in an idle room", f"{statistics.median(times):.2f} s, at worst {max(times):.2f} s", times)]


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

    with ThreadPoolExecutor(visitors) as pool:
        list(pool.map(visit, range(visitors)))
    return sum(counts) / seconds


def speed(app: App, seconds: float, turns: int = 5) -> Rows:
    """By turns, as the neighbours of a shared machine come and go: the ratio is the median over the turns."""
    list(Visitor(app).write("warm up", 1, "couplet"))
    pairs = [(together(app, 1, seconds), together(app, 4, seconds)) for _ in range(turns)]
    alone, four = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(four / alone for alone, four in pairs)
    told = f"{ratio:.2f} ({four:.0f} of {alone:.0f} characters a second)"
    return [row("four visitors at once, together, of one's speed", told, pairs)]


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
            wish: dict[str, Any] = {"form": chance.choice(list(FORMS)), "keep": chance.random() < 0.25}
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

    with ThreadPoolExecutor(visitors + 1) as pool:
        pool.submit(watch)
        list(pool.map(visit, range(visitors)))
    warm = min(WARM_UP, seconds / 3)
    before = statistics.mean(mb for at, mb in memory if warm <= at < warm + seconds / 6)
    after = statistics.mean(mb for at, mb in memory if at > seconds * 5 / 6)
    places = came.pop("told a place in the line")
    crashed = app.process.poll() is not None
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in came.most_common())
    told = f"{outcomes}; {places} were first told their place; {'crashed' if crashed else 'no crash'}"
    grown = f"{before:.0f} MB, {after:.0f} MB ({after / before - 1:+.1%})"
    figures = [round(mb, 1) for _, mb in memory[::5]]
    return [
        row(f"{visitors} visitors at once for {seconds:.0f} s", told),
        row("until a visitor of the crowd is told something", f"at worst {max(silences):.1f} s"),
        row("memory of the crowded room after a minute, and at its end", grown, figures),
    ]


def row(what: str, measured: str, figures: Any = None) -> dict[str, Any]:
    """A row of the table, which is printed; `figures` stay in the record."""
    print(what, "|", measured, flush=True)
    return {"what": what, "measured": measured} | ({"figures": figures} if figures else {})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the room under load.")
    parser.add_argument("--model", type=Path, help="a GGUF file; the embedded SmolLM2 unless given")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement of speed")
    parser.add_argument("--crowd", type=float, default=300, help="seconds that the crowd stays")
    parser.add_argument("--visitors", type=int, default=50)
    args = parser.parse_args()
    model = (args.model or smollm2.gguf()).resolve()
    began = time.perf_counter()
    app = App(model)
    try:
        rows = first_word(app) + speed(app, args.seconds) + crowd(app, args.visitors, args.crowd)
    finally:
        app.process.terminate()
        app.process.wait(timeout=60)
    made = {"id": model.name, "revision": None, "digest": record.file_digest(model)}
    result = record.Record("speed", args.out.stem, made, "finished")
    result.settings = {"device": f"{os.cpu_count()} CPU cores, visitors on the same", "seconds": args.seconds}
    result.measures = {"rows": rows, "wall_seconds": round(time.perf_counter() - began, 1)}
    record.write(result, args.out)


if __name__ == "__main__":
    main()
