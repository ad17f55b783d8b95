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
from contextlib import aclosing
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no request leaves the page, nor this process
sys.path.insert(0, str(HERE / "src"))  # in a Space the package is a folder, not installed

import gradio as gr  # noqa: E402
from gradio.route_utils import FnIndexInferError  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402

from iris import embedded  # noqa: E402
from iris.errors import InputError, RunError  # noqa: E402
from iris.leaf import leaf, shelf  # noqa: E402
from iris.poet import LENGTHS, MOODS, Poet, clean_theme  # noqa: E402
from iris.poetry.verse import FORMS  # noqa: E402
from iris.room import SEATS, Progress, Room  # noqa: E402

EXAMPLES = [
    ["the last bus home", "sonnet"],
    ["a cat who hates Mondays", "limerick"],
    ["first snow", "haiku"],
    ["letters never sent", "quatrain"],
    ["the sea at night", "free"],
]
MISFITS = (TypeError, ValueError, KeyError, FnIndexInferError)  # what Gradio raises over an API call of the wrong shape
KEPT = 12  # poems of a visit that the page remembers
FORM_NAMES = {form: "free verse" if form == "free" else form for form in FORMS}


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


def _waiting(place: int) -> str:
    return f"The room is full. You are number {place}; your poem begins by itself."


def _refusal(error: Exception) -> gr.Error:
    if isinstance(error, InputError | RunError):
        text = str(error)
        return gr.Error(text[0].upper() + text[1:] + ".", print_exception=False)
    print(f"iris: {error!r}", file=sys.stderr)
    return gr.Error("Something went wrong here; try again.", print_exception=False)


def _misfit(request: Request, error: Exception) -> JSONResponse:
    """The answer to a misfit. Gradio's own is a server error, and the call's words in the log."""
    return JSONResponse({"error": "This call has the wrong shape; `Use via API` on the page shows the right one."}, 400)


class _Page(gr.Blocks):
    """Blocks where a caller of /poem may leave out any value that has a default, also without gradio_client."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        missing = block_fn.inputs[len(inputs) :]
        if missing and not (inputs and block_fn.api_name == "poem"):
            raise gr.Error("Too few values were sent; /poem needs a theme.", print_exception=False)
        inputs.extend(each.value for each in missing)


def page(room: Room, names: dict[str, str], foot: str) -> gr.Blocks:
    """The Blocks. names: what the page calls each of the room's voices. foot: HTML for the last line."""
    at_work: dict[str, object] = {}  # what each visitor's page is writing now

    with _Page(title="Iris, a poetry room", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.HTML(
            "<header><h1>Iris</h1><p>a small language model that writes poems, on two CPU cores</p></header>",
            elem_id="head",
        )
        kept = gr.State([])
        with gr.Row(elem_id="room"):
            with gr.Column(elem_id="controls"):
                theme = gr.Textbox(label="A poem about", placeholder="the sea at night", elem_id="theme")
                form = gr.Radio(
                    [(name, form) for form, name in FORM_NAMES.items()], value="haiku", label="Form", elem_id="form"
                )
                with gr.Row(elem_id="pair"):
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
                write = gr.Button("Write", variant="primary", elem_id="write")
                with gr.Accordion("More", open=False, elem_id="more"):
                    seed = gr.Number(label="Seed (empty: a new one each time)", value=None, precision=0, minimum=0)
                    warmth = gr.Slider(0, 2, value=0.7, step=0.1, label="Temperature")
            with gr.Column(elem_id="desk"):
                with gr.Row(elem_id="tools"):
                    stop, another, copy, download = (
                        gr.Button(name, interactive=False, elem_id=name.lower())
                        for name in ("Stop", "Another", "Copy", "Download")
                    )
                sheet = gr.HTML(leaf(note="Say what it should be about, and press Write."), elem_id="sheet")
                earlier = gr.HTML("", elem_id="earlier")
            with gr.Column(elem_id="tries"):
                labels = [f"{about} · {FORM_NAMES[shape]}" for about, shape in EXAMPLES]
                gr.Examples(EXAMPLES, [theme, form], label="Try", example_labels=labels)
        gr.HTML(f"<p>{foot}</p>", elem_id="foot")

        def buttons(busy: bool, written: bool) -> dict[gr.Button, Any]:
            ready = {tool: gr.update(interactive=written and not busy) for tool in (another, copy, download)}
            return {stop: gr.update(interactive=busy), **ready}

        async def compose(
            theme: str,
            form: str,
            mood: str,
            length: str,
            voice: str,
            keep: bool,
            seed: int | None,
            temperature: float,
            poems: list[tuple[str, str, str]],
            visitor: gr.Request,
            pressed: gr.EventData,
        ) -> AsyncIterator[dict[Any, Any]]:
            """The page while a poem is written. It ends early when the visitor stops it or begins the next one."""
            session = visitor.session_hash or ""
            at_work[session] = mine = object()
            seed = None if pressed.target is another else seed
            now = Progress()
            try:
                title = clean_theme(theme)
                yield {sheet: leaf(title, form=form, note="…", busy=True), **buttons(busy=True, written=False)}
                async with aclosing(room.write(theme, form, mood, length, voice, keep, seed, temperature)) as writing:
                    async for now in writing:
                        if at_work.get(session) is not mine:
                            break
                        if not now.poem:
                            note = _waiting(now.place) if now.place else "" if now.text else "…"
                            yield {sheet: leaf(title, now.text, form=form, note=note, busy=True)}
            except Exception as error:
                yield {
                    sheet: leaf(note="Say it in another way, and press Write."),
                    **buttons(busy=False, written=False),
                }
                raise _refusal(error) from None
            finally:
                stopped = session not in at_work
                if at_work.get(session) is mine:
                    del at_work[session]
            if now.poem:
                text, note = now.poem.text, ""
                sown = f", seed {seed}" if seed is not None else ""
                small = f"{names.get(voice, '')}{sown} · {now.poem.seconds:.1f} s"
            elif stopped:
                text, note, small = now.text, "stopped", ""
            else:
                return  # the next poem has taken the leaf
            poems = [(title, form, text), *poems][:KEPT] if text.strip() else poems
            yield {
                sheet: leaf(title, text, form=form, note=note, foot=small, poem=now.poem),
                kept: poems,
                earlier: shelf(poems[1:] if text.strip() else poems),
                **buttons(busy=False, written=bool(text.strip())),
            }

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        wish = [theme, form, mood, length, voice, keep, seed, warmth]
        gr.on(
            [write.click, theme.submit, another.click],
            compose,
            [*wish, kept],
            [sheet, kept, earlier, stop, another, copy, download],
            concurrency_limit=None,
            trigger_mode="multiple",
            **quiet,
        )

        def halt(visitor: gr.Request) -> None:
            at_work.pop(visitor.session_hash or "", None)

        stop.click(halt, None, None, queue=False, **quiet)
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
                wish = (theme, form, mood, length, voice, keep_form, seed, temperature)
                async with aclosing(room.write(*wish)) as writing:
                    async for now in writing:
                        if text := _waiting(now.place) if now.place else now.poem.text if now.poem else now.text:
                            yield text
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
        "app_kwargs": {"exception_handlers": dict.fromkeys(MISFITS, _misfit)},
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
