"""The poetry room: a page on which a small model writes poems. `python app.py` opens it; a Space runs this same file.

IRIS_MODEL names the model: the path of a GGUF file, or HUB-REPO:FILE. Unset, it is the embedded SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
sys.path.insert(0, str(Path(__file__).parent / "src"))  # in a Space the package is a folder, not installed

import gradio as gr

from iris import embedded
from iris.errors import InputError, RunError
from iris.poet import Poet
from iris.poetry.verse import FORMS


def model_file(name: str) -> Path:
    """The GGUF file that IRIS_MODEL names; fetched from the Hub where it says HUB-REPO:FILE."""
    if not name:
        return embedded.gguf()
    repo, colon, file = name.partition(":")
    if not colon or Path(name).exists():
        return Path(name)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, file))


def page(poet: Poet) -> gr.Blocks:
    def write(theme: str, form: str) -> Iterator[str]:
        text = ""
        try:
            for piece in poet.stream(theme, form):
                text += piece
                yield text
        except (InputError, RunError) as error:
            raise gr.Error(str(error)) from None

    with gr.Blocks(title="Iris") as blocks:
        theme = gr.Textbox(label="Theme", max_length=300)
        form = gr.Dropdown(list(FORMS), value="haiku", label="Form")
        button = gr.Button("Write", variant="primary")
        poem = gr.Textbox(label="Poem", lines=14)
        gr.on([button.click, theme.submit], write, [theme, form], poem, api_name="poem", concurrency_limit=8)
    return blocks


def main() -> None:
    try:
        poet = Poet(model_file(os.environ.get("IRIS_MODEL", "")))
    except (InputError, RunError) as error:
        sys.exit(f"iris: {error}")
    page(poet).launch()


if __name__ == "__main__":
    main()
