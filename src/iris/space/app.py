"""The poetry room: a page on which a small model writes poems. `python app.py` opens it, here and in a Space.

The page itself is plain HTML, CSS and JavaScript in assets/. Gradio carries a wish to the room and the poem back, and
offers `/poem` and MCP to programs.
"""

import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no request leaves the page, nor this process

import gradio as gr
from gradio.route_utils import FnIndexInferError
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from .. import InputError, RunError
from ..poetry.sound import line_syllables
from ..poetry.wish import Wish, clean_theme
from .seats import Progress, Room
from .settings import ASSETS, foot, head, open_poet
from .sheet import markup, told

try:
    import spaces  # Hugging Face puts it into a Space on ZeroGPU; it has to be imported after Gradio
except ImportError:
    pass
else:

    @spaces.GPU
    def ask_for_gpu() -> None:
        """Nothing: ZeroGPU starts only a Space that has such a function. The CPU writes the poems."""


class Page(gr.Blocks):
    """Blocks that leave the cores to the engine. A caller of /poem may leave out any value that has a default, also
    without gradio_client."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # By default each start of a poem tells all who wait, and one of them who has gone ends the queue for everybody.
        self.queue(status_update_rate=3600)
        # Gradio's queue looks 1,000 times a second whether somebody came: each time a thread of the engine has to stop,
        # and the others wait for it. It has no public setting.
        self._queue.sleep_when_free, self._queue.progress_update_sleep_when_free = 0.02, 1.0

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        missing = block_fn.inputs[len(inputs) :]
        if missing and not (inputs and block_fn.api_name == "poem"):
            raise gr.Error("Too few values were sent; /poem needs a theme.", print_exception=False)
        inputs.extend(each.value for each in missing)


# The answer to a call of the wrong shape. Gradio's own is a server error, and the call's words in the log.
WRONG = {"error": "This call has the wrong shape; `Use via API` on the page shows the right one."}
MISFITS = dict.fromkeys((TypeError, ValueError, KeyError, FnIndexInferError), lambda *_: JSONResponse(WRONG, 400))
FULL = "The room is full. You are number {}; your poem begins by itself."


def refusal(error: Exception) -> str:
    if isinstance(error, InputError | RunError):
        text = str(error)
        return text[0].upper() + text[1:] + "."
    print(f"iris: {error!r}", file=sys.stderr)
    return "Something went wrong here; try again."


def page(room: Room, names: dict[str, str], foot: str) -> gr.Blocks:
    """The Blocks. names: what the page calls each of the room's voices. foot: HTML for the last line."""
    at_work: dict[str, threading.Event] = {}  # of what each visitor's page is writing now: set, it ends
    whole, glue = markup(ASSETS / "room.html", names, foot), (ASSETS / "gradio.js").read_text(encoding="utf-8")

    with Page(title="Iris, a poetry room", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        sheet = gr.HTML(html_template="${whole}", whole=whole, js_on_load=glue, elem_id="page", apply_default_css=False)

        def halt(visitor: gr.Request) -> None:
            if writing := at_work.pop(visitor.session_hash or "", None):
                writing.set()

        async def compose(pressed: gr.EventData, visitor: gr.Request) -> AsyncIterator[dict[str, Any]]:
            """The poem as assets/leaf.js reads it, until it is done, stopped, or gives way to the visitor's next."""
            session = visitor.session_hash or ""
            halt(visitor)
            at_work[session] = mine = threading.Event()
            poem: dict[str, Any] = {"busy": False}
            now, place = Progress(), 0
            try:
                poem["turn"] = pressed.turn
                asked = Wish(
                    pressed.theme, pressed.form, pressed.mood, pressed.length, pressed.seed, pressed.temperature
                )
                asked.check()
                by = names.get(pressed.voice, "") if len(names) > 1 else ""
                poem |= {"about": clean_theme(asked.theme), "form": asked.form, "seed": asked.seed, "by": by}
                async with aclosing(room.write(asked, pressed.voice, pressed.keep_form, left=mine)) as writing:
                    async for now in writing:
                        if mine.is_set():
                            break
                        if not now.poem and not place == now.place > 0:
                            place = now.place
                            note = FULL.format(place) if place else ""
                            yield poem | {"text": now.text, "draft": now.draft, "note": note, "busy": True}
                if now.poem:
                    yield poem | told(now.poem)
                elif session not in at_work:
                    yield poem | {"text": now.text, "note": "stopped"}
            except Exception as error:
                yield poem | {"text": now.text, "note": refusal(error)}
            finally:
                if at_work.get(session) is mine:
                    del at_work[session]

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        sheet.submit(compose, None, sheet, concurrency_limit=None, trigger_mode="multiple", **quiet)
        sheet.stop(halt, None, None, queue=False, **quiet)
        blocks.unload(halt)  # a closed tab stops as well

        async def poem(  # type: ignore[misc]  # gr.api reads here the type of each value that is streamed
            theme: str,
            form: str = "haiku",
            mood: str = "",
            length: str = "",
            keep_form: bool = True,
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
                keep_form: write several candidates of each line and keep those that hold the form; false: as it comes
                voice: tuned or base where the room has both; "" for the first
                seed: the same seed gives the same poem; none: a new one each time
                temperature: 0 to 2; higher is bolder

            Returns:
                The poem, lines separated by line breaks. While the room is full, your place in the line.
            """
            place = 0
            try:
                wish = Wish(theme, form, mood, length, seed, temperature)
                async with aclosing(room.write(wish, voice, keep_form)) as writing:
                    async for now in writing:
                        text = FULL.format(now.place) if now.place else now.poem.text if now.poem else now.text
                        if text and not place == now.place > 0:
                            yield text
                        place = now.place
            except Exception as error:
                raise gr.Error(refusal(error), print_exception=False) from None

        gr.api(poem, api_name="poem", concurrency_limit=None)
    return blocks


def open_room(stored: Path) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page on its poets, and the options to launch it with. stored: the JSON file of its settings, if there is one;
    the environment goes before it. InputError or RunError if a model cannot be had or loaded."""
    known = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    model, base, card = (os.environ.get(n) or known.get(n, "") for n in ("IRIS_MODEL", "IRIS_BASE", "IRIS_CARD"))
    poets, names = {"tuned": open_poet(model)}, {"tuned": Path(model).stem or "Iris' own voice"}
    if base:
        poets["base"], names = open_poet(base), {"tuned": "the tuned model", "base": "its base"}
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(secret, None)  # the model is here: nothing in this process needs it any more
    line_syllables("iris")  # reads the dictionary now: the first poem to be marked would hold up all visitors for it
    files = Mount("/room", StaticFiles(directory=ASSETS))
    options = {
        "theme": gr.themes.Base(font=[gr.themes.Font("serif")], font_mono=[gr.themes.Font("monospace")]),
        "head": head(),
        "footer_links": ["api"],
        "mcp_server": True,
        "max_threads": 200,
        "max_file_size": 1,  # bytes: the page takes no files
        "state_session_capacity": 200,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "app_kwargs": {"exception_handlers": MISFITS, "routes": [files]},
    }
    rest = ". The server keeps nothing you write; your browser remembers your last poems."
    return page(Room(poets), names, foot(model, card, rest)), options


def main(stored: Path) -> None:
    try:
        blocks, options = open_room(stored)
    except (InputError, RunError) as error:
        sys.exit(f"iris: {error}")
    blocks.launch(**options)
