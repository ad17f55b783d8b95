"""The room under load: python bench/room.py [--model FILE.gguf] --out results/room-NAME.json

Starts app.py with the model and asks it for poems over /poem, which has the page's engine, seats and queue, all
visitors on this machine. Into the record go the seconds until the first word in an idle room, and what 50 visitors get
who come at once and stay for five minutes, with the room's memory meanwhile.

How well poems keep their form, and in what time, bench/poet.py measures; that who leaves makes room, tests/test_app.py.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median

import httpx

from iris import record
from iris.model import smollm2
from iris.poetry.forms import FORMS

HERE = Path(__file__).resolve().parents[1]
THEMES = ("rain", "the sea at night", "first snow", "letters never sent", "an old dog", "the last bus home", "bread")


def start(model: Path) -> tuple[subprocess.Popen[bytes], str]:
    """app.py in a process of its own, and its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = os.environ | {"IRIS_MODEL": str(model), "GRADIO_SERVER_PORT": str(port)}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=HERE, env=settings, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while app.poll() is None:
        try:
            httpx.get(f"{url}/config", timeout=10)
            return app, url
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit("app.py ended; its last words are above")


def ask(url: str, theme: str, form: str, seed: int, keep: bool = False) -> tuple[str, float, bool]:
    """What Gradio says last of a poem ("complete" or "error"), in how many seconds a visitor is told something, and
    whether that is a place in the line."""
    began, first, waited, event = time.perf_counter(), 0.0, False, ""
    with httpx.Client(base_url=f"{url}/gradio_api/call/poem", timeout=900, verify=False) as client:
        wish = {"data": [theme, form, "", "", keep, "", seed, 0.7]}
        number = client.post("", json=wish).raise_for_status().json()["event_id"]
        with client.stream("GET", number) as answer:
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event != "heartbeat":
                    first = first or time.perf_counter() - began
                    waited = waited or "The room is full" in value
    return event, first, waited


def crowd(app: subprocess.Popen[bytes], url: str, visitors: int, seconds: float) -> dict[str, str]:
    """What visitors tell who come at once, and again as soon as they have a poem, for so many seconds."""
    end = time.perf_counter() + seconds
    told: list[tuple[str, float, bool]] = []
    memory: list[float] = []  # MB, second by second

    def visit(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() < end:
            theme, form, keep = chance.choice(THEMES), chance.choice(list(FORMS)), chance.random() < 0.25
            told.append(ask(url, theme, form, chance.randrange(2**31), keep))

    def watch() -> None:
        while time.perf_counter() < end:
            status = Path(f"/proc/{app.pid}/status").read_text()
            memory.append(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024)
            time.sleep(1)

    with ThreadPoolExecutor(visitors + 1) as pool:
        pool.submit(watch)
        list(pool.map(visit, range(visitors)))
    events, silences, waits = zip(*told, strict=True)
    counts = f"{events.count('complete')} a poem, {len(events) - events.count('complete')} none"
    fifth = len(memory) // 5  # in the first the room warms up
    before, after = mean(memory[fifth : 2 * fifth]), mean(memory[-fifth:])
    grown = f"{before:.0f} MB, {after:.0f} MB ({after / before - 1:+.1%})"
    return {
        f"{visitors} visitors at once for {seconds:.0f} s": f"{counts}; {sum(waits)} were first told their place",
        "until a visitor of the crowd is told something": f"at worst {max(silences):.1f} s",
        "memory of the crowded room after a fifth of the time, and at its end": grown,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; SmolLM2 unless given")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="that the crowd stays")
    parser.add_argument("--visitors", type=int, default=50)
    args = parser.parse_args()
    model = (args.model or smollm2.gguf()).resolve()
    app, url = start(model)
    try:
        words = [ask(url, theme, "haiku", 1)[1] for theme in ("warm up", *THEMES)][1:]
        rows = {"first word in an idle room": f"{median(words):.2f} s, at worst {max(words):.2f} s"}
        rows |= crowd(app, url, args.visitors, args.seconds)
    finally:
        app.terminate()
        app.wait(timeout=60)
    made = {"id": model.name, "revision": None, "digest": record.file_digest(model)}
    result = record.Record("speed", args.out.stem, made, "finished")
    result.settings = {"device": f"{os.cpu_count()} CPU cores, visitors on the same"}
    result.measures = {"rows": [{"what": what, "measured": measured} for what, measured in rows.items()]}
    record.write(result, args.out)
    for what, measured in rows.items():
        print(what, "|", measured)


if __name__ == "__main__":
    main()
