"""The room under load: python bench/room.py [--model FILE.gguf] --out results/room-NAME.json

Starts app.py with the model and visits it by the page's own protocol, as browsers do, from this same machine. Tells,
and writes as a record of kind "speed":

first word      seconds from Write to the first word, on an idle room
page            tokens a second that reach the page, against the engine called bare with the same seeds
four            tokens a second of four visitors at once, against one
crowd           50 visitors at once for five minutes: who got a poem, who a place in the line; growth of memory
leave           the first word of a visitor who comes when eight who write have pressed Stop, or closed their tab
form            "Keep the form": share of poems that keep it, with and without, and what it costs in time

Tokens are counted by characters, at the rate of tokens a character that the bare engine's own poems have.
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
from iris.poet import THEME_LIMIT, Poet, request
from iris.poetry.verse import FORMS, judge
from iris.room import SEATS

HERE = Path(__file__).resolve().parents[1]
THEMES = ["rain", "the sea at night", "first snow", "letters never sent", "an old dog", "the last bus home"]
THEMES += ["bread", "my grandmother's hands", "a street in March", "the moon", "leaving", "a garden"]
LONG = {"form": "free", "length": "long"}
WARM_UP = 60  # seconds of the crowd that do not count for memory


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
        self.app, self.session = app, secrets.token_hex(6)
        self.client = httpx.Client(base_url=app.url + "/gradio_api", timeout=900)

    def write(self, theme: str, seed: int, form: str = "free", length: str = "", keep: bool = False) -> Iterator[str]:
        """Press Write; yields what the sheet says: "...", a place in the line, or the lines so far; the last is whole.
        RuntimeError with the sentence of a refusal."""
        data = [theme, form, "", length, "tuned", keep, seed, 0.7, None]
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
                    yield "\n".join(map(html.unescape, lines)) or f"... {note[1] if note else ''}"

    def poem(self, theme: str, seed: int, **wish: Any) -> tuple[str, float, float, bool]:
        """The poem, seconds to its first word, seconds in all, whether there was a line."""
        began, first, waited, text = time.perf_counter(), 0.0, False, ""
        for text in self.write(theme, seed, **wish):
            waited = waited or "You are number" in text
            if not first and not text.startswith("..."):
                first = time.perf_counter() - began
        return text, first, time.perf_counter() - began, waited

    def stop(self) -> None:
        body = {"data": [], "fn_index": self.app.stop, "session_hash": self.session}
        self.client.post("/run/predict", json=body).raise_for_status()


# --- the bare engine -------------------------------------------------------------------------------------------------


def bare(model: Path, poems: int) -> None:
    """Print {"text", "tokens", "seconds"} of each of so many poems; run in a process of its own."""
    poet = Poet(model, n_parallel=SEATS)
    told: list[dict[str, Any]] = []
    for number in range(-1, poems):
        body = {
            "messages": [{"role": "user", "content": request(THEMES[number % len(THEMES)], **LONG)}],
            "chat_template_kwargs": {"date_string": "26 Jul 2024"},
            "seed": number % 1000,
            "temperature": 0.7,
            "repeat_penalty": 1.1,
            "repeat_last_n": 256,
            "max_tokens": 512,
        }
        began = time.perf_counter()
        poet._server.handle_chat_completions(body, lambda answer: bool(told.append(answer)))
        answer, seconds = told.pop(), time.perf_counter() - began
        if number >= 0:  # the one before was to warm up
            text, tokens = answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]
            print(json.dumps({"text": text.strip(), "tokens": tokens, "seconds": seconds}), flush=True)


def engine_alone(model: Path, poems: int) -> tuple[float, float, float]:
    """Characters a second, tokens a second, tokens a character of the engine without the page."""
    command = [sys.executable, __file__, "--model", str(model), "--bare", str(poems)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    characters, tokens, seconds = (
        sum(each) for each in zip(*((len(r["text"]), r["tokens"], r["seconds"]) for r in rows), strict=True)
    )
    return characters / seconds, tokens / seconds, tokens / characters


# --- what is measured ------------------------------------------------------------------------------------------------


def first_word(app: App) -> dict[str, Any]:
    Visitor(app).poem("warm up", 1, form="couplet")
    times = [Visitor(app).poem(theme, 1, form="haiku")[1] for theme in THEMES[:7]]
    return {"first_word_wall_seconds": statistics.median(times), "worst_wall_seconds": max(times)}


def page(app: App, model: Path, poems: int) -> dict[str, Any]:
    app.close()  # the engine alone has the machine to itself
    _, alone, rate = engine_alone(model, poems)
    app.__init__(model)  # type: ignore[misc]
    visitor = Visitor(app)
    visitor.poem("warm up", 1, form="couplet")
    told = [visitor.poem(THEMES[number % len(THEMES)], number, **LONG) for number in range(poems)]
    got = sum(len(text) for text, *_ in told) / sum(seconds for _, _, seconds, _ in told) * rate
    return {"tokens_per_s": got, "bare_tokens_per_s": alone, "page_ratio": got / alone, "tokens_a_character": rate}


def together(app: App, visitors: int, seconds: float) -> float:
    """Characters a second that so many visitors get, who ask again as soon as they have a poem."""
    end = time.perf_counter() + seconds
    counts = [0] * visitors

    def visit(number: int) -> None:
        visitor, seed = Visitor(app), 100 * number
        while time.perf_counter() < end:
            seed, seen = seed + 1, 0
            for text in visitor.write(THEMES[seed % len(THEMES)], seed, **LONG):
                if time.perf_counter() > end:
                    visitor.stop()
                    return
                if not text.startswith("..."):
                    counts[number] += len(text) - seen
                    seen = len(text)

    _at_once(visit, visitors)
    return sum(counts) / seconds


def four(app: App, rate: float, seconds: float) -> dict[str, Any]:
    one = together(app, 1, seconds) * rate
    several = together(app, 4, seconds) * rate
    return {"tokens_per_s": several, "one_tokens_per_s": one, "four_ratio": several / one}


def crowd(app: App, visitors: int, seconds: float) -> dict[str, Any]:
    end = time.perf_counter() + seconds
    came: Counter[str] = Counter()
    silences: list[float] = []
    memory: list[tuple[float, float]] = []
    door = threading.Lock()

    def visit(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() < end:
            visitor, began, told = Visitor(app), time.perf_counter(), 0.0
            outcome, place = "silence", False
            wish = {"form": chance.choice(FORMS), "keep": chance.random() < 0.25}
            try:
                for text in visitor.write(chance.choice(THEMES), chance.randrange(2**31), **wish):
                    place = place or "You are number" in text
                    if not told and (place or not text.startswith("...")):
                        told = time.perf_counter() - began
                    outcome = outcome if text.startswith("...") else "poem"
            except RuntimeError as error:
                outcome = "refused, number told" if "you would be number" in str(error).lower() else f"error: {error}"
            except httpx.HTTPError as error:
                outcome = f"error: {type(error).__name__}"
            with door:
                came[outcome] += 1
                came["had a place in the line"] += place
                silences.append(told)

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
    return {
        "visitors": visitors,
        "seconds": seconds,
        "outcomes": dict(came),
        "until_told_worst_seconds": max(silences),
        "crashed": app.process.poll() is not None,
        "memory_before_mb": before,
        "memory_after_mb": after,
        "memory_growth_ratio": after / before - 1,
    }


def leave(app: App) -> dict[str, Any]:
    found = {}
    for how in ("stop", "closed_tab"):
        times = []
        for attempt in range(5):
            visitors = [Visitor(app) for _ in range(SEATS)]
            poems = [each.write("the long road home", attempt * 10 + n, **LONG) for n, each in enumerate(visitors)]

            def settle(poem: Iterator[str]) -> None:
                next(text for text in poem if not text.startswith("..."))

            _at_once(lambda n, poems=poems: settle(poems[n]), SEATS)  # type: ignore[misc]
            began = time.perf_counter()
            for visitor, poem in zip(visitors, poems, strict=True):
                visitor.stop() if how == "stop" else poem.close()  # type: ignore[attr-defined]
            newcomer = Visitor(app).write("rain", attempt, form="haiku")
            settle(newcomer)
            times.append(time.perf_counter() - began)
            list(newcomer)
        found[f"{how}_wall_seconds"] = statistics.median(times)
        found[f"{how}_worst_wall_seconds"] = max(times)
    return found


def form(app: App, requests: int) -> dict[str, Any]:
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
    return {
        "requests": requests,
        "keeps_percent_plain": plain,
        "keeps_percent": better,
        "lift_points": better - plain,
        "wall_seconds_plain": seconds[False] / requests,
        "wall_seconds": seconds[True] / requests,
        "form_time_ratio": seconds[True] / seconds[False],
    }


def _at_once(work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the room under load.")
    parser.add_argument("--model", type=Path, help="a GGUF file; the embedded SmolLM2 unless given")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="first_word,page,four,crowd,leave,form", help="which parts, by commas")
    parser.add_argument("--poems", type=int, default=6, help="poems for the page against the bare engine")
    parser.add_argument("--seconds", type=float, default=300, help="how long the crowd stays")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--requests", type=int, default=60, help="poems for Keep the form")
    parser.add_argument("--note", default="", help="goes into the record: what else the machine did, say")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = (args.model or embedded.gguf()).resolve()
    if args.bare:
        bare(model, args.bare)
        return
    began = time.perf_counter()
    app = App(model)
    rows: list[dict[str, Any]] = []
    rate = 0.25  # tokens a character, until the page's part has measured it
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "first_word": lambda: first_word(app),
        "page": lambda: page(app, model, args.poems),
        "four": lambda: four(app, rate, 40),
        "crowd": lambda: crowd(app, args.visitors, args.seconds),
        "leave": lambda: leave(app),
        "form": lambda: form(app, args.requests),
    }
    try:
        for name in args.only.split(","):
            rows.append(
                {"part": name} | {k: round(v, 4) if isinstance(v, float) else v for k, v in parts[name]().items()}
            )
            rate = rows[-1].get("tokens_a_character", rate)
            print(json.dumps(rows[-1]), flush=True)
    finally:
        app.close()
    if args.out:
        result = record.Record(
            kind="speed",
            name=args.out.stem,
            status="finished",
            model={"id": model.name, "revision": None, "digest": record.file_digest(model)},
            settings={"device": f"{os.cpu_count()} CPU cores, visitors on the same", "theme_limit": THEME_LIMIT},
            measures={"rows": rows, "wall_seconds": round(time.perf_counter() - began, 1)},
            note=args.note,
        )
        record.write(result, args.out)


if __name__ == "__main__":
    main()
