"""What the notebooks call besides Iris' verbs: choices scaled to this machine, and things to look at.

What one of these functions has finished is kept and used again: a notebook that was cut off is simply run again, from
the top and without a changed cell.
"""

import html
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from IPython.display import HTML, Image, Markdown, display
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from . import RunError, hub, recipe, record
from .data import template
from .evaluate.tasks import DEFAULT
from .model import hardware
from .model.load import resolve
from .poetry import poet
from .poetry.forms import judge
from .report import tables
from .train import fit

REDRAW = 10.0  # seconds between two pictures of the loss
SPEEDS = "name measures.steady_tokens_per_s measures.step_seconds measures.peak_memory_gb settings.precision"
THEMES = {"haiku": "the last train home", "limerick": "a baker who overslept", "free": "my grandmother's radio"}
SAMPLING = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1, "max_new_tokens": 96}  # as poet.py does


@dataclass(frozen=True)
class Choices:
    """What to do here: the recipe, its budget in minutes, the run's folder, the tasks to evaluate, and the trials of a
    sweep. Without a GPU the last two are few."""

    recipe: recipe.Recipe
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

    on_gpu, token, folder = hardware.device() == "cuda", bool(get_token()), Path("runs")
    if model == "auto":
        model = "llama-3.2-1b" if on_gpu and token else "smollm2"
    if keep == "drive":
        from google.colab import drive  # which Colab alone has

        drive.mount("/content/drive")
        folder = Path("/content/drive/MyDrive/iris")
    taste = not on_gpu and not minutes
    length: dict[str, Any] = {"max_steps": steps, "batch_size": 1, "save_steps": 4} if taste else {"save_steps": 50}
    hub_too = keep if "/" in keep else None
    asked = recipe.make(model=model, method=method, data=data, push_checkpoints=hub_too, **length)
    print(f"{model}, {method} on {data}, on {hardware.device_name()}; kept in {folder / name}")
    if taste:
        print(f"no GPU here: a taste of {steps} steps of one sequence; choose some minutes (30, say) for more")
    if on_gpu and not token:
        print("no Hugging Face token here: for Llama accept its licence on the Hub and add the secret HF_TOKEN")
    tasks = list(DEFAULT) if on_gpu else ["poetry_verses"]
    return Choices(asked, minutes or None, folder / name, tasks, 12 if on_gpu else 3)


def train(chosen: Choices) -> record.Record:
    """The finished run: trained now, gone on with where it was cut off, or as it lies there. Shows the loss curve
    meanwhile. Errors as of `fit.fit`."""
    live = Live(chosen.out)
    result = fit.fit(chosen.recipe, chosen.out, resume=None, minutes=chosen.minutes, callbacks=[live])
    live.show()
    return result


@dataclass(eq=False)
class Live(TrainerCallback):
    """Shows the loss curve while training goes on, each picture in the place of the one before."""

    out: Path
    shown: float = 0.0  # when, by time.monotonic()

    def show(self) -> None:
        if (picture := self.out / "loss.png").exists():
            display(Image(filename=str(picture)), display_id=str(self.out), update=self.shown > 0)
            self.shown = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses = [entry for entry in state.log_history if "loss" in entry]
        if len(losses) > 1 and time.monotonic() > self.shown + REDRAW:
            fit.draw_losses(losses, self.out / "loss.png", f"{state.global_step} of {state.max_steps} steps")
            self.show()


def before_and_after(chosen: Choices, *prompts: str, seed: int = 7) -> str:
    """What the base and its tuned model answer to the prompts, as a table in HTML; without any, poems by both, each
    with what the judge says of its form. Written with transformers: no GGUF is needed, and any device will do."""
    source = resolve(chosen.recipe.model)
    tokenizer: Any = template.load_tokenizer(source.path, source.hub_revision)
    tokenizer.padding_side = "left"
    dtype, device = hardware.dtype(hardware.precision("auto")), hardware.device()
    base: Any = AutoModelForCausalLM.from_pretrained(source.path, revision=source.hub_revision, dtype=dtype)
    both = PeftModel.from_pretrained(base.to(device), str(chosen.out / "adapter")).eval()
    asked = dict.fromkeys(prompts, "") or {poet.Wish(theme, form).request(): form for form, theme in THEMES.items()}
    talks = [[{"role": "user", "content": prompt}] for prompt in asked]
    ids = [template.encode(tokenizer, talk, add_generation_prompt=True).input_ids for talk in talks]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
    rows = [f'<tr><th style="text-align:left">{html.escape(prompt)}</th>' for prompt in asked]
    for adapter in (both.disable_adapter(), nullcontext()):  # before, after
        torch.manual_seed(seed)
        with adapter:
            written = both.generate(**batch, **SAMPLING)[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        for row, (form, text) in enumerate(zip(asked.values(), map(str.strip, texts), strict=True)):
            cell = html.escape(text).replace("\n", "<br>")
            if form:
                verdict = judge(text, form)
                cell += f"<br><i>({html.escape('keeps its form' if verdict.keeps else verdict.reasons[0])})</i>"
            rows[row] += f'<td style="text-align:left; vertical-align:top">{cell}</td>'
    return f"<table><tr><th></th><th>before</th><th>after</th></tr>{'</tr>'.join(rows)}</tr></table>"


def iris(*words: object) -> None:
    """Run a verb in a fresh process, as evaluations want it. RunError says what went wrong there."""
    command = [sys.executable, "-m", "iris", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    told = "iris was killed"
    try:
        for line in process.stderr or []:  # progress bars among them
            if line.startswith("iris: "):
                told = line.removeprefix("iris: ").strip()
            elif line.endswith((": running\n", "settings\n")):
                print(line, end="", flush=True)
        if process.wait():
            raise RunError(told)
    finally:
        process.terminate()


def evaluate(chosen: Choices, limit: int = 0) -> tuple[Path, Path]:
    """The records of the base and of the run, of `limit` items a task if it is above 0. Errors as of `iris`."""
    words = ["--model", chosen.recipe.model, "--adapter", chosen.out / "adapter", "--tasks", ",".join(chosen.tasks)]
    iris("evaluate", *words, "--out", chosen.results, *(["--limit", limit] if limit else []))
    return chosen.results / "base.json", chosen.results / f"{chosen.out.name}.json"


def speed(chosen: Choices, methods: str) -> str:
    """A table of training speed and memory by method (comma-separated, "all"), 30 steps or those of the choices, each
    in a process of its own. Errors as of `iris`."""
    asked = chosen.recipe
    known = [method for method in recipe.METHODS if method != "qlora" or hardware.device() == "cuda"]
    known = known if methods == "all" else methods.split(",")
    words = ["--model", asked.model, "--data", asked.data, "--batch-size", asked.batch_size]
    words += ["--max-steps", asked.max_steps if asked.max_steps > 0 else 30]
    with tempfile.TemporaryDirectory() as scratch:
        for method in known:
            print(f"training {method}", flush=True)
            iris("train", "--method", method, *words, "--out", f"{scratch}/{method}")
        records = ",".join(f"{method}/record" for method in known)
        return tables.rows(tables.Lab(Path(scratch), []), [records, *SPEEDS.split()])


def export(chosen: Choices, quant: str = "q8_0") -> Path:
    """The folder exports/NAME-DIGEST-QUANT of the finished run (never on Drive, which large files break); made once."""
    from .export.export import export

    folder = Path("exports") / f"{chosen.out.name}-{record.folder_digest(chosen.out / 'adapter')[:8]}-{quant}"
    folder.parent.mkdir(exist_ok=True)
    if not folder.exists():
        export(chosen.out, folder, [quant])
    return folder


def publish(chosen: Choices, exported: Path, repo: str, space: str, hardware: str, public: bool = False) -> None:
    """Publish an exported folder, with its evaluations if there are any. Without a `repo` a dry run: what would be
    pushed is written beside `exported`. Errors as of `publish.publish`."""
    from huggingface_hub import hf_hub_download

    from .publish.publish import publish

    base = record.read(exported / "record.json").model["id"]
    options: dict[str, Any] = {"hardware": hardware, "public": public, "results": chosen.results}
    if base.startswith("meta-llama/"):
        with hub.translate_errors(f"the licence of {base}"):
            options["licence"] = Path(hf_hub_download(base, "LICENSE.txt"))
    if not repo:
        options["dry_run"] = folder = exported.with_name(f"{exported.name}-dry-run")
        shutil.rmtree(folder, ignore_errors=True)
        repo, space = "USER/Llama-Iris" if "licence" in options else "USER/Iris", "USER/Iris"
    publish(exported, repo, space or None, **options)


def show(*things: str | Path) -> None:
    """Show pictures, Markdown and HTML: text, or the path of a file (passed over where there is none)."""
    for thing in things:
        if isinstance(thing, str):
            display(HTML(thing) if thing.startswith("<") else Markdown(thing))
        elif thing.exists():
            display(Image(filename=str(thing)) if thing.suffix == ".png" else Markdown(filename=str(thing)))
