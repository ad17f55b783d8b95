"""The loss curve in a notebook, drawn anew while training goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from IPython.display import Image, display
from transformers import TrainerCallback

from .train import draw_losses

REDRAW = 10.0  # seconds between two pictures of the loss


class Live(TrainerCallback):
    """Shows the loss curve while training goes on."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.handle: Any = None
        self.shown = time.monotonic()

    def show(self) -> None:
        """Show loss.png, in the place of the one before."""
        image = Image(filename=str(self.out / "loss.png"))
        if self.handle:
            self.handle.update(image)
        else:
            self.handle = display(image, display_id=True)
        self.shown = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses = [entry for entry in state.log_history if "loss" in entry]
        if len(losses) > 1 and time.monotonic() > self.shown + REDRAW:
            draw_losses(losses, self.out / "loss.png", f"{state.global_step} of {state.max_steps} steps")
            self.show()
