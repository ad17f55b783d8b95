"""The poetry room: a page on which a small model writes poems. `python app.py` opens it; a Space runs this same file.

IRIS_MODEL names the model and IRIS_BASE the one to compare it with: the path of a GGUF file, HUB-REPO:FILE, or
`smollm2` for the embedded one. Without IRIS_MODEL the embedded model is the only voice. IRIS_CARD is the web address of
the model's card. A Space keeps the three in room.json beside this file; the environment goes before it.
"""

import base64
import html
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no request leaves the page, nor this process
sys.path.insert(0, str(HERE / "src"))  # in a Space the package is a folder, not installed

import gradio as gr  # noqa: E402

from iris import embedded  # noqa: E402
from iris.errors import InputError, RunError  # noqa: E402
from iris.poet import LENGTHS, MOODS, Poem, Poet, clean_theme  # noqa: E402
from iris.poetry.verse import FORMS, HAIKU, Line, judge  # noqa: E402
from iris.room import SEATS, Progress, Room  # noqa: E402

EXAMPLES = [
    ["the last bus home", "sonnet"],
    ["a cat who hates Mondays", "limerick"],
    ["first snow", "haiku"],
    ["letters never sent", "quatrain"],
    ["the sea at night", "free"],
]
KEPT = 12  # poems of a visit that the page remembers
FORM_LABELS = [(form if form != "free" else "free verse", form) for form in FORMS]


def settings() -> dict[str, str]:
    """IRIS_MODEL, IRIS_BASE and IRIS_CARD, from the environment or else room.json; "" where unset."""
    file = HERE / "room.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: os.environ.get(name) or stored.get(name, "") for name in ("IRIS_MODEL", "IRIS_BASE", "IRIS_CARD")}


def model_file(name: str) -> Path:
    """The GGUF file that a setting names; from the Hub where it says HUB-REPO:FILE or HUB-REPO@REVISION:FILE."""
    if name in ("", "smollm2"):
        return embedded.gguf()
    repo, colon, file = name.partition(":")
    if not colon or Path(name).exists():
        return Path(name)
    from huggingface_hub import hf_hub_download

    from iris.hub import said_plainly

    repo, _, revision = repo.partition("@")
    with said_plainly(name):
        return Path(hf_hub_download(repo, file, revision=revision or None))


# --- what the page shows ---------------------------------------------------------------------------------------------


def _mark(line: Line, number: int, form: str) -> str:
    """The mark beside a line: its syllables, and the letter of its rhyme."""
    wanted = HAIKU[number] if form == "haiku" and number < len(HAIKU) else None
    count = wanted if wanted in line.syllables else min(line.syllables)
    off = " off" if form == "haiku" and wanted != count else ""
    told = f"{count} syllables" + (f", rhyme {line.rhyme}" if line.rhyme else "")
    shown = f"{count} {line.rhyme}".strip()
    return f'<span class="mark{off}" role="img" aria-label="{told}" title="{told}">{shown}</span>'


def sheet(title: str, text: str, note: str = "", busy: bool = False, poem: Poem | None = None, foot: str = "") -> str:
    """The page of the book as HTML. Title and text are the visitor's and the model's: they are shown as text."""
    verdict = judge(text, poem.form) if poem and text.strip() else None
    stanzas, number = [], 0
    for stanza in text.strip().split("\n\n"):
        rows = []
        for line in filter(str.strip, stanza.splitlines()):
            mark = _mark(verdict.lines[number], number, verdict.form) if verdict and verdict.form != "free" else ""
            words = html.escape(line.strip())
            rows.append(f'<span class="line" data-text="{words}">{mark}{words}</span>')
            number += 1
        stanzas.append(f"<p>{''.join(rows)}</p>" if rows else "")
    if verdict and not note:
        name = "free verse" if verdict.form == "free" else f"a {verdict.form}"
        note = f"<b>{name}, kept</b>" if verdict.keeps else f"not quite {name}: {html.escape(verdict.reasons[0])}"
    body = "".join(stanzas) or (f'<p class="first">{note}</p>' if note else "")
    note = note if "".join(stanzas) else ""
    return (
        f'<article class="sheet" aria-live="polite" aria-busy="{str(busy).lower()}"><h2>{html.escape(title)}</h2>'
        f'<div class="verse">{body}</div><footer><span>{note}</span><span>{html.escape(foot)}</span></footer></article>'
    )


def earlier(poems: list[tuple[str, str, str]]) -> str:
    """The last poems of this visit as HTML, newest first."""
    if not poems:
        return ""
    rows = (
        f"<details><summary><span>{html.escape(title)}</span><i>{html.escape(form)}</i></summary>"
        f"<p>{html.escape(text)}</p></details>"
        for title, form, text in poems
    )
    return f"<h3>Earlier in this visit</h3>{''.join(rows)}"


def _waiting(place: int) -> str:
    return f"The room is full. You are number {place}; your poem begins by itself."


def _refusal(error: Exception) -> gr.Error:
    if isinstance(error, InputError | RunError):
        text = str(error)
        return gr.Error(text[0].upper() + text[1:] + ".", print_exception=False)
    print(f"iris: {error!r}", file=sys.stderr)
    return gr.Error("Something went wrong here; try again.", print_exception=False)


# --- the page --------------------------------------------------------------------------------------------------------


def page(room: Room, names: dict[str, str], foot: str) -> gr.Blocks:
    """The Blocks. names: what the page calls each of the room's voices. foot: HTML for the last line."""
    with gr.Blocks(title="Iris, a poetry room", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.HTML(
            "<header><h1>Iris</h1><p>a small language model that writes poems, on two CPU cores</p></header>",
            elem_id="head",
        )
        poems = gr.State([])
        with gr.Row(elem_id="room"):
            with gr.Column(elem_id="controls"):
                theme = gr.Textbox(
                    label="A poem about", placeholder="the sea at night", lines=1, elem_id="theme", autofocus=True
                )
                form = gr.Radio(FORM_LABELS, value="haiku", label="Form", elem_id="form")
                with gr.Row(elem_classes="pair"):
                    mood = gr.Dropdown([("any", ""), *((m, m) for m in MOODS)], value="", label="Mood")
                    length = gr.Dropdown([("any", ""), *((x, x) for x in LENGTHS)], value="", label="Length")
                voice = gr.Radio(
                    [(name, key) for key, name in names.items()],
                    value=next(iter(names)),
                    label="Written by",
                    elem_id="voice",
                    visible=len(names) > 1,
                )
                keep = gr.Checkbox(label="Keep the form", elem_id="keep")
                with gr.Row(elem_id="act"):
                    write = gr.Button("Write", variant="primary", elem_id="write")
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                with gr.Accordion("More", open=False, elem_id="more"):
                    seed = gr.Number(label="Seed (empty: a new one each time)", value=None, precision=0, minimum=0)
                    warmth = gr.Slider(0, 2, value=0.7, step=0.1, label="Temperature")
                gr.Examples(EXAMPLES, [theme, form], label="Try", elem_id="tries")
            with gr.Column(elem_id="desk"):
                with gr.Row(elem_id="tools"):
                    another = gr.Button("Another", interactive=False, elem_id="another")
                    copy = gr.Button("Copy", interactive=False, elem_id="copy")
                    download = gr.Button("Download", interactive=False, elem_id="download")
                leaf = gr.HTML(sheet("", "", "Say what it should be about, and press Write."), elem_id="sheet")
                shelf = gr.HTML("", elem_id="earlier")
        gr.HTML(f"<p>{foot}</p>", elem_id="foot")

        def buttons(busy: bool, done: bool = False) -> dict[gr.Button, Any]:
            ready = {tool: gr.update(interactive=done) for tool in (another, copy, download)}
            return {write: gr.update(interactive=not busy), stop: gr.update(interactive=busy), **ready}

        wish = [theme, form, mood, length, voice, keep, seed, warmth]

        async def compose(
            theme: str,
            form: str,
            mood: str,
            length: str,
            voice: str,
            keep: bool,
            seed: int | None,
            temperature: float,
            kept: list[tuple[str, str, str]],
        ) -> AsyncIterator[dict[Any, Any]]:
            now = Progress()
            try:
                title = clean_theme(theme)
                yield {leaf: sheet(title, "", "…", busy=True), **buttons(busy=True)}
                async for now in room.write(theme, form, mood, length, voice, keep, seed, temperature):
                    note = _waiting(now.place) if now.place else ""
                    if not now.poem:
                        yield {leaf: sheet(title, now.text, note or "…" * (not now.text), busy=True)}
            except Exception as error:
                yield buttons(busy=False, done=bool(now.text))
                raise _refusal(error) from None
            if now.poem:
                how = f"{names.get(voice, '')}{f', seed {seed}' if seed is not None else ''}"
                kept = [(title, form, now.poem.text), *kept][:KEPT]
                foot = f"{how} · {now.poem.seconds:.1f} s"
                yield {
                    leaf: sheet(title, now.poem.text, poem=now.poem, foot=foot),
                    poems: kept,
                    shelf: earlier(kept[1:]),
                    **buttons(busy=False, done=True),
                }

        outputs = [leaf, poems, shelf, write, stop, another, copy, download]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        writing = gr.on(
            [write.click, theme.submit],
            compose,
            [*wish, poems],
            outputs,
            concurrency_limit=None,
            trigger_mode="once",
            **quiet,
        )

        unseeded = [gr.State(None) if each is seed else each for each in wish]  # another: not the same poem again
        more = another.click(compose, [*unseeded, poems], outputs, concurrency_limit=None, trigger_mode="once", **quiet)
        stop.click(lambda: buttons(busy=False, done=True), None, outputs, cancels=[writing, more], queue=False, **quiet)
        copy.click(None, js="() => window.iris.copy()", **quiet)
        download.click(None, js="() => window.iris.download()", **quiet)

        async def poem(  # type: ignore[misc]  # gr.api reads here the type of each value that is streamed
            theme: str,
            form: str = "haiku",
            mood: str = "",
            length: str = "",
            keep_form: bool = False,
            voice: str = "",
            seed: int | None = None,
            temperature: float = 0.7,
        ) -> str:
            """Write a poem about a theme with a small language model, and stream it.

            Args:
                theme: what the poem is about, at most 300 characters
                form: haiku, limerick, couplet, quatrain, sonnet or free
                mood: joyful, melancholy, calm, playful, dreamy, dark, tender, angry, or "" for any
                length: short, long, or "" for any; for couplets, quatrains and free verse
                keep_form: write several candidates of each line and keep those that hold the form
                voice: tuned or base where the room has both; "" for the first
                seed: the same seed gives the same poem; none: a new one each time
                temperature: 0 to 2; higher is bolder

            Returns:
                The poem, lines separated by line breaks. While the room is full, your place in the line.
            """
            try:
                async for now in room.write(theme, form, mood, length, voice, keep_form, seed, temperature):
                    if now.place:
                        yield _waiting(now.place)
                    elif now.text:
                        yield now.poem.text if now.poem else now.text
            except Exception as error:
                raise _refusal(error) from None

        gr.api(poem, api_name="poem", concurrency_limit=None)
    return blocks


def head() -> str:
    """The page's own style, script and fonts, inline: no request leaves the page."""
    faces = ""
    for style, file in (("normal", "garamond.woff2"), ("italic", "garamond-italic.woff2")):
        data = base64.b64encode((HERE / "assets" / file).read_bytes()).decode()
        faces += f'@font-face{{font-family:"Iris Garamond";font-style:{style};src:url(data:font/woff2;base64,{data})}}'
    css, script = ((HERE / "assets" / name).read_text(encoding="utf-8") for name in ("room.css", "room.js"))
    return f"<style>{faces}{css}</style><script>{script}</script>"


def open_room() -> tuple[gr.Blocks, dict[str, Any]]:
    """The page on its poets, and the options to launch it with."""
    wanted = settings()
    poets, names = {}, {}
    for key, name in (("tuned", wanted["IRIS_MODEL"]), ("base", wanted["IRIS_BASE"] or not wanted["IRIS_MODEL"])):
        if name:
            file = model_file(name if isinstance(name, str) else "")
            poets[key], names[key] = Poet(file, n_parallel=SEATS), file.stem
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(secret, None)  # the model is here: nothing in this process needs it any more
    if len(names) > 1:
        names = {"tuned": "the tuned model", "base": "its base"}
    card = wanted["IRIS_CARD"]
    model = Path(wanted["IRIS_MODEL"].rpartition(":")[2]).stem or "SmolLM2-135M-Instruct"
    link = f'<a href="{html.escape(card)}" rel="noopener">{html.escape(model)}</a>' if card else html.escape(model)
    llama = "llama" in f"{wanted['IRIS_MODEL']} {card}".lower()
    foot = f"{'Built with Llama. ' if llama else ''}Model: {link}. Nothing you write here is kept."
    serif = ["Iris Garamond", "Georgia", "serif"]
    options = {
        "theme": gr.themes.Base(font=[gr.themes.Font(name) for name in serif], font_mono=[gr.themes.Font("monospace")]),
        "head": head(),
        "footer_links": ["api"],
        "mcp_server": True,
        "max_threads": 200,
        "max_file_size": 1,  # bytes: the page takes no files
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
    }
    return page(Room(poets), names, foot), options


def main() -> None:
    try:
        blocks, options = open_room()
    except (InputError, RunError) as error:
        sys.exit(f"iris: {error}")
    blocks.launch(**options)


if __name__ == "__main__":
    main()
