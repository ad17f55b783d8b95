"""The poetry room: a page on which a small model writes poems. `python app.py` opens it; a Space runs this same file.

IRIS_MODEL names the model and IRIS_BASE the one to compare it with: the path of a GGUF file, HUB-REPO:FILE, or
`smollm2` for the embedded one. Without IRIS_MODEL the embedded model is the only voice. IRIS_CARD is the web address of
the model's card. A Space keeps the three in room.json beside this file; the environment goes before it.
"""

import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no request leaves the page, nor this process
sys.path.insert(0, str(HERE / "src"))  # in a Space the package is a folder, not installed

import gradio as gr  # noqa: E402

from iris.errors import InputError, RunError  # noqa: E402
from iris.leaf import leaf  # noqa: E402
from iris.poet import LENGTHS, MOODS, clean_theme  # noqa: E402
from iris.poetry.sound import line_syllables  # noqa: E402
from iris.poetry.verse import FORMS  # noqa: E402
from iris.room import Progress, Room  # noqa: E402
from iris.space import MISFITS, Page, foot, head, settings, voices  # noqa: E402

EXAMPLES = [
    ["the last bus home", "sonnet"],
    ["a cat who hates Mondays", "limerick"],
    ["first snow", "haiku"],
    ["letters never sent", "quatrain"],
    ["the sea at night", "free"],
]
FORM_NAMES = {form: "free verse" if form == "free" else form for form in FORMS}


def waiting(place: int) -> str:
    return f"The room is full. You are number {place}; your poem begins by itself."


def refusal(error: Exception) -> gr.Error:
    if isinstance(error, InputError | RunError):
        text = str(error)
        return gr.Error(text[0].upper() + text[1:] + ".", print_exception=False)
    print(f"iris: {error!r}", file=sys.stderr)
    return gr.Error("Something went wrong here; try again.", print_exception=False)


def page(room: Room, names: dict[str, str], foot: str) -> gr.Blocks:
    """The Blocks. names: what the page calls each of the room's voices. foot: HTML for the last line."""
    at_work: dict[str, threading.Event] = {}  # of what each visitor's page is writing now: set, it ends

    with Page(title="Iris, a poetry room", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.HTML(
            "<header><h1>Iris</h1><p>a small language model that writes poems, on two CPU cores</p></header>",
            elem_id="head",
        )
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
                with gr.Row(elem_id="tools"):  # assets/room.js says when they can be pressed
                    stop, another, copy, download = (
                        gr.Button(name, elem_id=name.lower()) for name in ("Stop", "Another", "Copy", "Download")
                    )
                sheet = gr.HTML(leaf(note="Say what it should be about, and press Write."), elem_id="sheet")
                gr.HTML("<section></section>", elem_id="earlier")  # kept by assets/room.js: the server keeps no poem
            with gr.Column(elem_id="tries"):
                labels = [f"{about} · {FORM_NAMES[shape]}" for about, shape in EXAMPLES]
                gr.Examples(EXAMPLES, [theme, form], label="Try", example_labels=labels)
        gr.HTML(f"<p>{foot}</p>", elem_id="foot")

        wish = [theme, form, mood, length, voice, keep, seed, warmth]

        def end(session: str) -> None:
            if writing := at_work.pop(session, None):
                writing.set()

        async def compose(asked: dict[Any, Any], visitor: gr.Request, pressed: gr.EventData) -> AsyncIterator[str]:
            """The sheet while a poem is written. It ends early when the visitor stops it or begins the next one."""
            session = visitor.session_hash or ""
            end(session)
            at_work[session] = mine = threading.Event()
            if pressed.target is another:
                asked[seed] = None
            shape, sown, now, place = asked[form], asked[seed], Progress(), 0
            try:
                title = clean_theme(asked[theme])
                yield leaf(title, form=shape, note="…", busy=True)
                async with aclosing(room.write(*(asked[each] for each in wish), left=mine)) as writing:
                    async for now in writing:
                        if mine.is_set():
                            break
                        if not now.poem and not place == now.place > 0:
                            place = now.place
                            note = waiting(now.place) if now.place else "" if now.text else "…"
                            yield leaf(title, now.text, form=shape, note=note, busy=True)
            except Exception as error:
                yield leaf(note="Say it in another way, and press Write.")
                raise refusal(error) from None
            finally:
                stopped = session not in at_work
                if at_work.get(session) is mine:
                    del at_work[session]
            if now.poem:
                small = names.get(asked[voice], "") + (f", seed {sown}" if sown is not None else "")
                small += f" · {now.poem.seconds:.1f} s"
                yield leaf(title, now.poem.text, form=shape, foot=small, poem=now.poem)
            elif stopped:
                yield leaf(title, now.text, form=shape, note="stopped")

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asking = [write.click, theme.submit, another.click]
        gr.on(asking, compose, set(wish), sheet, concurrency_limit=None, trigger_mode="multiple", **quiet)

        def halt(visitor: gr.Request) -> None:
            end(visitor.session_hash or "")

        stop.click(halt, None, None, queue=False, **quiet)
        blocks.unload(halt)  # a closed tab stops as well
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
            place = 0
            try:
                wish = (theme, form, mood, length, voice, keep_form, seed, temperature)
                async with aclosing(room.write(*wish)) as writing:
                    async for now in writing:
                        text = waiting(now.place) if now.place else now.poem.text if now.poem else now.text
                        if text and not place == now.place > 0:
                            yield text
                        place = now.place
            except Exception as error:
                raise refusal(error) from None

        gr.api(poem, api_name="poem", concurrency_limit=None)
    return blocks


def open_room() -> tuple[gr.Blocks, dict[str, Any]]:
    """The page on its poets, and the options to launch it with."""
    wanted = settings(HERE / "room.json")
    poets, names = voices(wanted)
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(secret, None)  # the model is here: nothing in this process needs it any more
    line_syllables("iris")  # reads the dictionary now: the first poem to be marked would hold up all visitors for it
    serif = ["Iris Garamond", "Georgia", "serif"]
    options = {
        "theme": gr.themes.Base(font=[gr.themes.Font(name) for name in serif], font_mono=[gr.themes.Font("monospace")]),
        "head": head(HERE / "assets"),
        "footer_links": ["api"],
        "mcp_server": True,
        "max_threads": 200,
        "max_file_size": 1,  # bytes: the page takes no files
        "state_session_capacity": 200,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "app_kwargs": {"exception_handlers": MISFITS},
    }
    return page(Room(poets), names, foot(wanted)), options


def main() -> None:
    try:
        blocks, options = open_room()
    except (InputError, RunError) as error:
        sys.exit(f"iris: {error}")
    blocks.launch(**options)


if __name__ == "__main__":
    main()
