"""The poetry room: `python app.py` opens a page on which a small model writes poems. A Space runs the same lines.

IRIS_MODEL names the model and IRIS_BASE the one to compare it with: the path of a GGUF file, HUB-REPO:FILE, or
`smollm2` for the embedded one. Without IRIS_MODEL the voice that comes with Iris is the only one. IRIS_CARD is the web
address of the model's card. A Space keeps the three in room.json beside this file; the environment goes before it.
"""

from pathlib import Path

from iris.space.app import main

if __name__ == "__main__":
    main(Path(__file__).with_name("room.json"))
