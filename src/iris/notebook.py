"""What the notebooks call besides Iris' verbs: choices scaled to this machine, and things to look at.

What one of these functions has finished is kept and used again: a notebook that was cut off is simply run again, from
the top and without a changed cell.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from IPython.display import HTML, Image, Markdown, display

from . import checkpoints, hardware, hub, push, record
from . import recipe as recipes
from .errors import InputError, RunError
from .evaluate import METRIC
from .recipe import Recipe


@dataclass(frozen=True)
class Choices:
    """What to do here: the recipe, its budget in minutes, the run's folder, the tasks to evaluate, and the trials of a
    sweep. Without a GPU the last two are few."""

    recipe: Recipe
    minutes: float | None
    out: Path
    tasks: list[str]
    trials: int

    @property
    def results(self) -> Path:
        """Where evaluations of the run go, and where `publish` looks for them."""
        return self.out.parent / "results"


def choices(
    model: str = "auto",
    method: str = "lora16",
    data: str = "verses",
    minutes: float = 0,
    name: str = "first",
    keep: str = "",
    steps: int = 10,
) -> Choices:
    """The choices of a notebook, scaled to this machine, and told. InputError where one does not fit.

    model "auto": Llama-3.2-1B where there are a GPU and a Hugging Face token, else the embedded SmolLM2. minutes 0:
    all of the data; without a GPU a taste of so many `steps`, each of one sequence. keep: "" for this machine alone,
    "drive" for Google Drive on Colab, USER/NAME for a private repository of checkpoints on the Hub as well."""
    from huggingface_hub import get_token

    on_gpu, token = hardware.device() == "cuda", bool(get_token())
    if model == "auto":
        model = "llama-3.2-1b" if on_gpu and token else "smollm2"
    out = (_drive() if keep == "drive" else Path("runs")) / name
    taste = not on_gpu and not minutes
    settings = [f"max_steps={steps}", "batch_size=1", "save_steps=4"] if taste else ["save_steps=50"]
    hub_too = keep if "/" in keep else None
    asked = recipes.make(settings, model=model, method=method, data=data, push_checkpoints=hub_too)
    if asked.four_bit and not on_gpu:
        raise InputError("qlora needs a GPU; choose lora16 or dora here")
    print(f"{model}, {method} on {data}, on {hardware.device_name()}; kept in {out}")
    if taste:
        print(f"no GPU here: a taste of {steps} steps of one sequence; choose some minutes (30, say) for more")
    if on_gpu and not token:
        print("no Hugging Face token here: for Llama accept its licence on the Hub and add the secret HF_TOKEN")
    tasks = list(METRIC) if on_gpu else ["poetry_verses"]
    return Choices(asked, minutes or None, out, tasks, 12 if on_gpu else 3)


def _drive() -> Path:
    try:
        from google.colab import drive
    except ImportError:
        raise InputError('keep="drive" is for Colab only; choose "" or USER/NAME here') from None
    drive.mount("/content/drive")
    return Path("/content/drive/MyDrive/iris")


def train(chosen: Choices) -> record.Record:
    """The finished run: trained now, gone on with where it was cut off, or as it lies there. Shows the loss curve
    meanwhile. Errors as of `train.fit`."""
    from huggingface_hub import HfApi

    out, path = chosen.out, chosen.out / "record.json"
    if (kept := chosen.recipe.push_checkpoints) and not path.exists():
        make = partial(HfApi().create_repo, kept, private=True, exist_ok=True)
        hub.patiently(f"the checkpoint repository {kept}", make)
        push.fetch_last(kept, out)
    if path.exists():
        earlier = record.read(path)
        if earlier.status == "finished" and (out / "adapter").exists():  # one fetched from the Hub is its checkpoint
            if changed := recipes.changes(chosen.recipe, earlier.recipe or {}):
                raise InputError(f"{out} holds a run with another {', '.join(changed)}; choose another name")
            print(f"{out} holds this run, finished; choose another name to train anew")
            show(out / "loss.png")
            return earlier
        if not checkpoints.last(out):
            shutil.rmtree(out)  # cut off before its first checkpoint
    from .live import Live  # loads all that trains; a finished run needs none of it
    from .train import fit

    live = Live(out)
    result = fit(chosen.recipe, out, resume=path.exists(), minutes=chosen.minutes, callbacks=[live])
    live.show()
    return result


def speed(chosen: Choices, methods: str) -> str:
    """A table of training speed and memory by method (comma-separated, "all"), 30 steps or those of the choices, each
    in a process of its own. RunError names the one that failed, and why."""
    known = [method for method in recipes.METHODS if method != "qlora" or hardware.device() == "cuda"]
    steps = chosen.recipe.max_steps if chosen.recipe.max_steps > 0 else 30
    lines = ["| method | tokens/s | seconds a step | peak memory (GB) | precision |", "| - | - | - | - | - |"]
    for method in known if methods == "all" else methods.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "iris", "train", "--method", method, "--out", f"{scratch}/run"]
            command += ["--model", chosen.recipe.model, "--data", chosen.recipe.data, "--max-steps", str(steps)]
            command += ["--set", f"batch_size={chosen.recipe.batch_size}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RunError(f"{method} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
            run = record.read(f"{scratch}/run/record.json")
        got = run.measures
        numbers = f"{got['steady_tokens_per_s']:,.0f} | {got['step_seconds']:.2f} | {got['peak_memory_gb']:.1f}"
        lines.append(f"| {method} | {numbers} | {run.settings['precision']} |")
        print(lines[-1].strip("| "), flush=True)
    return "\n".join(lines)


def export(chosen: Choices, quant: str = "q8_0") -> Path:
    """The folder exports/NAME-DIGEST-QUANT of the finished run (never on Drive, which large files break); made once."""
    from .export import export

    folder = Path("exports") / f"{chosen.out.name}-{record.folder_digest(chosen.out / 'adapter')[:8]}-{quant}"
    folder.parent.mkdir(exist_ok=True)
    if not folder.exists():
        export(chosen.out, folder, [quant])
    return folder


def publish(chosen: Choices, exported: Path, repo: str, space: str, public: bool = False) -> None:
    """Publish an exported folder, with its evaluations if there are any, and show the Space's address. Without a
    `repo` a dry run: what would be pushed is written beside `exported`. Errors as of `publish.publish`."""
    from huggingface_hub import constants, hf_hub_download

    from .publish import publish

    base = record.read(exported / "record.json").model["id"]
    dry_run, licence = None, None
    if base.startswith("meta-llama/"):
        with hub.said_plainly(f"the licence of {base}"):
            licence = Path(hf_hub_download(base, "LICENSE.txt"))
    if not repo:
        dry_run = exported.with_name(f"{exported.name}-dry-run")
        shutil.rmtree(dry_run, ignore_errors=True)
        repo, space = "USER/Llama-Iris" if licence else "USER/Iris", "USER/Iris"
    publish(exported, repo, space or None, public, dry_run, chosen.results, licence)
    if space:
        told = f"Nothing was sent, see {dry_run}. With your own names" if dry_run else "The room opens in some minutes"
        show(f"{told}: {constants.ENDPOINT}/spaces/{space}")


def show(*things: str | Path) -> None:
    """Show pictures, Markdown and HTML: text, or the path of a file (passed over where there is none)."""
    for thing in things:
        if isinstance(thing, str):
            display(HTML(thing) if thing.startswith("<") else Markdown(thing))
        elif thing.exists():
            display(Image(filename=str(thing)) if thing.suffix == ".png" else Markdown(filename=str(thing)))
