"""What the room stands on: the models that its settings name, its style, and whose model it says it is."""

import base64
import html
from pathlib import Path

from ..hub import translate_errors
from ..model import smollm2
from ..poetry.poet import VOICE, Poet

ASSETS = Path(__file__).with_name("assets")


def open_poet(name: str) -> Poet:
    """The poet that a setting names: "" or `voice` is the one that comes with Iris, an adapter on SmolLM2; `smollm2`
    is that without it; a GGUF file, from the Hub where it says HUB-REPO:FILE or HUB-REPO@REVISION:FILE. InputError or
    RunError if it cannot be had or loaded."""
    if name in ("", "voice", "smollm2"):
        return Poet(smollm2.gguf(), adapter=None if name == "smollm2" else VOICE)
    repo, colon, file = name.partition(":")
    if not colon or Path(name).exists():
        return Poet(name)
    from huggingface_hub import hf_hub_download

    repo, _, revision = repo.partition("@")
    with translate_errors(name):
        file = hf_hub_download(repo, file, revision=revision or None)
    return Poet(file)


def foot(name: str, card: str, rest: str) -> str:
    """The page's last line as HTML: whose model it is (a file, or as in `open_poet`), with the address of its card, and
    the `rest` of the sentence."""
    model = html.escape(Path(name.rpartition(":")[2]).stem or "SmolLM2-135M-Instruct")
    link = f'<a href="{html.escape(card)}" rel="noopener">{model}</a>' if card else model
    built = "Built with Llama. " if "llama" in f"{name} {card}".lower() else ""
    return f"{built}Model: {link}{rest}"


def head() -> str:
    """The page's style and fonts, inline: letters and lines stand where they belong from the first paint on."""
    style = ""
    for slant, file in (("normal", "garamond.woff2"), ("italic", "garamond-italic.woff2")):
        data = base64.b64encode((ASSETS / file).read_bytes()).decode()
        style += f'@font-face{{font-family:"Iris Garamond";font-style:{slant};src:url(data:font/woff2;base64,{data})}}'
    return f"<style>{style}{''.join((ASSETS / name).read_text() for name in ('room.css', 'gradio.css'))}</style>"
