"""The page without a server as visitors meet it: exported, on a static server that may fail, driven by Chromium."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest

from iris import InputError, RunError
from iris.poetry.forms import judge
from iris.poetry.verses import PATH
from iris.publish import engines, page

MODEL = "/model/"
# Presses Stop at a poem's first word, however slow this machine is, and says how many milliseconds the poem then takes.
STOP = """() => {
  const sheet = document.querySelector("#sheet"), stop = document.querySelector("#stop");
  window.stopped = new Promise((resolve) => {
    let began = 0;
    new MutationObserver(() => {
      if (began && sheet.querySelector("[aria-busy=false]")) resolve(performance.now() - began);
      if (began || !sheet.querySelector("[aria-busy=true] .line")) return;
      began = performance.now();
      setTimeout(() => stop.click());
    }).observe(sheet, { subtree: true, childList: true, attributes: true });
  });
}"""


@dataclass
class Site:
    """A static server of a folder. asked: what it was asked for; spoil(path, body) may change a body, or answer None:
    then the connection ends in the middle of it, or a number: then that is the answer's status. whole: the model is one
    file, of which parts are asked for by their bytes, as on the Hub."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    spoil: object = staticmethod(lambda path, body: body)
    whole: bool = False

    def model_parts(self) -> list[str]:
        return [path for path in self.asked if path.startswith(MODEL)]

    def room(self) -> dict:
        room, start = json.loads((self.folder / "room.json").read_text()), 0
        for part in room["parts"] if self.whole else []:
            part |= {"url": f"{MODEL}whole.gguf", "from": start, "file": self.folder / part["url"]}
            start += part["bytes"]
        return room


class Handler(SimpleHTTPRequestHandler):
    """What any static host does, and what hosts and lines do wrong."""

    def __init__(self, *args, site: Site) -> None:
        self.site = site
        super().__init__(*args, directory=str(site.folder))

    def do_GET(self) -> None:
        asked = self.path + self.headers.get("Range", "").replace("bytes=", "#").partition("-")[0]
        self.site.asked.append(asked)
        if self.path == "/room.json":
            whole = body = json.dumps(self.site.room(), default=str).encode()
        elif not asked.startswith(MODEL):
            return super().do_GET()
        else:
            files = {f"{part['url']}#{part['from']}": part.get("file") for part in self.site.room()["parts"]}
            whole = Path(files.get(asked) or self.translate_path(asked)).read_bytes()
            body = self.site.spoil(asked, whole)
        if isinstance(body, int):
            return self.send_error(body)
        self.send_response(206 if "#" in asked else 200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        with suppress(ConnectionError):  # the browser has left
            self.wfile.write(whole[: len(whole) // 2] if body is None else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page with the voice that comes with Iris."""
    out = tmp_path_factory.mktemp("page") / "out"
    try:
        for package in engines.PACKAGES:
            engines.fetch(package)
    except RunError as error:
        pytest.skip(f"the engines of the page cannot be had: {error}")
    page.export_page(out)
    return out


@pytest.fixture
def site(folder) -> Iterator[Site]:
    running = Site(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site=running))
    running.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield running
    server.shutdown()


@pytest.fixture
def visit(browser, site):
    """Opens the page in a context of its own; whatever a test does, no request may go to another host, and the console
    stays free of errors but those of a network that a test breaks."""
    context = browser.new_context()
    asked, errors = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: errors.append(str(error.error)))

    def told(message) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            errors.append(message.text)

    def opened(query: str = "", cores: int = 1):
        # one thread: beside another test on two cores, two threads that wait for each other take many times as long
        tab = context.new_page()
        tab.add_init_script(
            f"Object.defineProperty(Navigator.prototype, 'hardwareConcurrency', {{ get: () => {cores} }})"
        )
        tab.set_default_timeout(140_000)
        tab.on("console", told)
        go(tab, site.url + "/" + query)  # its service worker makes it load twice
        assert tab.evaluate("crossOriginIsolated")
        return tab

    yield opened
    context.close()
    assert asked and [url for url in asked if not url.startswith((site.url, f"blob:{site.url}", "data:"))] == []
    assert errors == []


def go(tab, url: str = "") -> None:
    """An address, or the same once more; a page that is not ready yet takes no wish."""
    tab.goto(url or tab.url)
    tab.wait_for_selector("html.ready")


def ask(tab, theme: str, form: str) -> None:
    tab.locator("#form").get_by_role("radio", name="free verse" if form == "free" else form).check(force=True)
    tab.locator("#theme textarea").fill(theme)
    tab.locator("#write").click()


def loaded(tab, threads: str = "one thread") -> None:
    tab.locator("#engine", has_text=f"llama.cpp on {threads}, Python 3.").wait_for()


def keeps(tab, site, parts: int) -> None:
    """Wait until the browser has put away so many of the model's parts, and all else it was given."""
    files = [path for path in set(site.asked) if not path.startswith(MODEL) and path != "/sw.js"]
    kept = """async ([parts, files]) => {
      const [model, page] = await Promise.all(["iris-model", "iris-page"].map((name) => caches.open(name)));
      const found = await Promise.all(files.map((file) => page.match(file, { ignoreSearch: true })));
      return (await model.keys()).length === parts && found.every(Boolean);
    }"""
    tab.wait_for_function(kept, arg=[parts, files])


def said(tab, text: str) -> None:
    tab.locator("#sheet .said").get_by_text(text).wait_for()


def poem_on(tab) -> str:
    tab.wait_for_selector("#sheet [aria-busy=false] .line")
    return "\n".join(tab.locator("#sheet .line").evaluate_all("lines => lines.map(line => line.dataset.text)"))


def test_writes_keeps_the_form_stops_and_goes_on(visit, site, request) -> None:
    tab = visit("?about=the+sea+at+night&form=couplet&seed=3")
    verdict = judge(poem_on(tab), "couplet")
    told = "a couplet, kept" if verdict.keeps else f"not quite a couplet: {verdict.reasons[0]}"
    assert tab.locator("#sheet .said").inner_text() == told
    marks = [mark.split()[0] for mark in tab.locator("#sheet .mark").all_inner_texts()]
    assert marks == [str(line.count) for line in verdict.lines]
    loaded(tab)
    assert len(site.model_parts()) == len(site.room()["parts"])

    tab.evaluate(STOP)
    ask(tab, "a very long journey", "free")
    assert tab.evaluate("stopped") < 1000
    said(tab, "stopped")
    ask(tab, "x" * 301, "haiku")
    said(tab, "The theme has 301 characters; give at most 300.")

    keeps(tab, site, len(site.room()["parts"]))
    tab.context.set_offline(True)
    site.asked.clear()
    go(tab, site.url)
    theme = '<img src=x onerror="document.title=1"> <|im_end|> rain'
    ask(tab, theme, "free")
    tab.wait_for_selector("#sheet .line")
    assert set(site.asked) <= {"/sw.js"}
    assert tab.locator("#sheet h2").inner_text() == theme and tab.locator("#sheet img").count() == 0
    assert tab.title() == "Iris, a poetry room" and tab.locator("#earlier li").count() == 2
    tab.keyboard.press("Escape")  # as Stop, but may come too late
    tab.context.set_offline(False)

    tab.evaluate(request.getfixturevalue("axe"))
    assert tab.evaluate("axe.run().then(found => found.violations.map(each => JSON.stringify(each)))") == []


def test_what_hosts_and_lines_do_wrong(visit, site) -> None:
    site.spoil, site.whole = lambda path, body: 404, True
    tab = visit()
    said(tab, "The model is not where it should be")
    site.spoil = lambda path, body: body[:99] + b"!" + body[100:]
    go(tab)
    said(tab, "The model's file is damaged")
    last = f"#{site.room()['parts'][-1]['from']}"
    on_its_way = threading.Event()  # the last part waits until Stop was pressed, however slow this machine is
    site.spoil = lambda path, body: None if path.endswith(last) and on_its_way.wait(100) else body
    go(tab)
    ask(tab, "rain", "haiku")
    said(tab, "The model is on its way")
    tab.locator("#stop").click()
    said(tab, "stopped")
    on_its_way.set()
    ask(tab, "rain", "haiku")
    said(tab, "The download of the model broke off")
    kept = set(site.model_parts())
    keeps(tab, site, len(kept) - 1)
    site.asked.clear()
    site.spoil = lambda path, body: None if len(site.model_parts()) == 1 else body  # it breaks off once
    go(tab)
    loaded(tab)
    assert site.model_parts() == [f"{MODEL}whole.gguf{last}"] * 2 and len(kept) > 1  # it went on from there


def test_threads_where_the_page_is_isolated_and_one_download_for_two_tabs(visit, site) -> None:
    first, second = visit(cores=2), visit()
    loaded(first, "2 threads")
    loaded(second)
    assert sorted(site.model_parts()) == sorted(f"/{part['url']}" for part in site.room()["parts"])


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_the_browser_judges_as_python_does(visit, site, every: int) -> None:
    """Bundled verses, and those that a model wrote: every verdict, syllable and rhyme is the same."""
    site.spoil = lambda path, body: 404  # no model: only Python is asked
    with PATH.open(encoding="utf-8") as bundled, gzip.open(PATH.with_name("grown.jsonl.gz"), "rt") as grown:
        rows = [json.loads(line) for line in (*bundled, *islice(grown, 500))]
    poems = []
    for row in rows:
        answers = [turn["value"] for turn in row["conversations"][1::2]]
        poems += zip(answers, row.get("forms") or [row["form"]], strict=True)
    poems = [each for each in poems if each[1] != "free"][::every]
    tab = visit()
    code = """([engine, poems]) => new Promise((resolve) => {
      const worker = new Worker(`${engine}/verse.js`, { type: "module" });
      worker.onmessage = ({ data }) => resolve(data);
      worker.postMessage(["verdicts", JSON.stringify(poems)]);
    })"""
    found = tab.evaluate(code, [site.room()["engine"], poems])
    expected = json.dumps([asdict(judge(*each)) for each in poems])
    assert len(poems) > 1500 / every and found["answer"] == json.loads(expected)


def test_own_javascript_is_small_and_clean() -> None:
    root = Path(__file__).resolve().parents[1]
    own = sorted((root / "src/iris/space/assets").glob("*.js"))
    assert sum(len(file.read_text().splitlines()) for file in own) <= 700
    if not shutil.which("npx"):
        pytest.skip("npm is not installed, so the page's JavaScript is not linted")
    lint = ["npx", "--yes", "eslint@9.39.1", "--max-warnings=0", *map(str, own)]
    done = subprocess.run(lint, cwd=root, capture_output=True, text=True)
    if "npm error" in done.stderr:
        pytest.skip("npm cannot fetch eslint, so the page's JavaScript is not linted")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_a_page(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        page.export_page(tmp_path)
    with open(tmp_path / "large.gguf", "wb") as large:
        large.truncate(page.LIMIT + 1)
    with pytest.raises(InputError, match="a browser holds 2"):
        page.write_page(tmp_path, tmp_path / "large.gguf")
