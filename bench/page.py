"""Measure the page without a server beside the native engine: same machine, same GGUF file, one after the other.

    python bench/page.py --out results/page.json

Chromium visits the exported page over loopback. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

from iris import record
from iris.poetry.poet import Poet
from iris.poetry.wish import Wish
from iris.publish.page import export_page

THEMES = (
    *("the sea at night", "first snow", "letters never sent", "an old dog", "bread", "the last bus home"),
    *("a broken umbrella", "my father's watch", "moss", "moving house", "a lighthouse", "jazz at midnight"),
)
WISH = Wish("the sea at night", "sonnet", seed=5)
SPEED = """async (asked) => {
  const room = await (await fetch("/room.json")).json(), { Engine } = await import(`/${room.engine}/engine.js`);
  const engine = await Engine.load(room, () => {});
  let began, tokens;
  for await (const [draft] of engine.write(asked, new AbortController().signal, () => null)) {
    began ??= performance.now();
    tokens = draft.tokens;
  }
  return 1000 * (tokens - 1) / (performance.now() - began);
}"""
WORD = """() => document.querySelector("#sheet .line[data-text]:not([data-text=''])")"""
DONE = "#sheet [aria-busy=false] .line"


def first_word(context: BrowserContext, url: str) -> float:
    """Seconds from a visit to the first word of the poem that its link asks for."""
    tab = context.new_page()
    began = time.perf_counter()
    tab.goto(f"{url}/?about=the+sea+at+night&form=free&seed=5")
    # frame by frame: wait_for_selector looks every half second
    tab.wait_for_function(WORD, polling="raf", timeout=90_000)
    taken = time.perf_counter() - began
    tab.wait_for_selector(DONE, timeout=90_000)
    tab.close()
    return taken


def speeds(context: BrowserContext, url: str, poet: Poet) -> tuple[float, float]:
    """Tokens a second, the prompt aside: of the page, and of the engine in this process."""
    writing, first = poet.stream(WISH, max_tokens=64), 0.0
    while True:
        try:
            next(writing)
            first = first or time.perf_counter()
        except StopIteration as end:
            here = (end.value.tokens - 1) / (time.perf_counter() - first)
            break
    tab = context.new_page()
    tab.goto(f"{url}/room.json")
    asked = {"message": WISH.request(), "before": "", "count": 1, "seed": 5, "temperature": 0.7, "max_tokens": 64}
    there = tab.evaluate(SPEED, asked | {"stop": [], "may_end": True, "bias": {}, "scored": False})
    tab.close()
    return there, here


def kept(context: BrowserContext, url: str, poet: Poet, form: str) -> tuple[str, str]:
    """How long poems in a form take the page, of what the same wishes take this process, how many keep it; and its
    memory."""
    here = [poet.recite(Wish(theme, form, seed=seed)).seconds for seed, theme in enumerate(THEMES)]
    tab, there, keeps = context.new_page(), [], 0
    tab.goto(url)
    tab.locator("#engine", has_text="Python").wait_for(timeout=90_000)
    for seed, theme in enumerate(THEMES):
        tab.locator("#form").get_by_role("radio", name=form).check(force=True)
        tab.locator("#theme textarea").fill(theme)
        tab.evaluate("seed => { document.querySelector('#controls').elements.seed.value = seed; }", str(seed))
        tab.locator("#write").click()
        tab.locator("#sheet h2", has_text=theme).wait_for()
        tab.wait_for_selector(DONE, timeout=180_000)
        there.append(float(tab.locator("#sheet .clock").inner_text().split()[0]))
        keeps += tab.locator("#sheet .said b").count()
    used = f"{memory():.0f} MB"
    tab.close()
    of = f"{median(there) / median(here):.1f} ({median(there):.1f} s of {median(here):.1f} s)"
    return f"{of}; {keeps} of {len(THEMES)} kept it", used


def memory() -> float:
    """MB of the page: of Chromium's renderers the largest; the others draw its own windows."""
    sizes = [0]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if b"--type=renderer" in (process / "cmdline").read_bytes():
                sizes.append(int((process / "smaps_rollup").read_text().split("Pss:")[1].split()[0]))
    return max(sizes) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the page without a server.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as running:
        folder, model = Path(scratch) / "page", Path(scratch) / "voice.gguf"
        export_page(folder)
        parts = json.loads((folder / "room.json").read_text(encoding="utf-8"))["parts"]
        model.write_bytes(b"".join((folder / part["url"]).read_bytes() for part in parts))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, poet = f"http://127.0.0.1:{server.server_port}", Poet(model)
        flags = ["--no-sandbox", "--disable-gpu"]
        start: dict[str, Any] = {"executable_path": "/usr/bin/chromium", "args": flags}
        private = running.chromium.launch(**start)  # keeps no compiled code from visit to visit
        first_word(window := private.new_context(), url)
        unkept = first_word(window, url)
        private.close()
        context = running.chromium.launch_persistent_context(Path(scratch) / "profile", **start)
        rows: list[dict[str, str]] = []

        def row(what: str, measured: str, asked: str) -> None:
            rows.append({"what": what, "measured": measured, "asked": asked})
            print(rows[-1], flush=True)

        row("first visit, until the first word", f"{first_word(context, url):.1f} s", "at most 6 s")
        row("second visit, until the first word", f"{first_word(context, url):.1f} s", "at most 2.5 s")
        row("the same in a private window, which keeps no compiled code", f"{unkept:.1f} s", "")
        there, here = speeds(context, url, poet)
        row("tokens a second, of the native engine's", f"{there / here:.2f} ({there:.1f} of {here:.1f})", "0.3")
        for form in ("couplet", "haiku", "quatrain"):
            taken, used = kept(context, url, poet, form)
            row(f"a {form}, of the native engine's time", taken, "at most 2.5")
        row("memory of the page", used, "at most 700 MB")
        made = {"id": model.name, "revision": None, "digest": record.file_digest(model)}
        result = record.Record("speed", out.stem, made, "finished", measures={"rows": rows})
        result.settings = {"device": f"{os.cpu_count()} CPU cores, Chromium on the same"}
        record.write(result, out)


if __name__ == "__main__":
    main()
