"""What to do: the recipe of one training run, a frozen value. Every field is a flag of `iris train`.

Field names are those of transformers' TrainingArguments, trl's SFTConfig and peft's LoraConfig where these have one.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from . import InputError

METHODS = ("qlora", "dora", "lora16")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODELS = "smollm2, llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, a Hub id or a folder"

# What suits a data set better than the lab's defaults. The bundled verses are 40,000 tokens: long packed
# sequences would leave them three optimizer steps.
SUITED: dict[str, dict[str, Any]] = {
    "verses": {"max_length": 512, "batch_size": 2, "num_train_epochs": 2.0, "learning_rate": 1e-3},
    "verses,grown": {"max_length": 512, "batch_size": 8, "num_train_epochs": 2.0, "learning_rate": 1e-3},
}


def _flag(default: Any, text: str, choices: tuple[str, ...] = (), within: tuple[float, float] | None = None) -> Any:
    text = text or f"one of {', '.join(choices)}"
    return field(default=default, metadata={"help": text, "choices": choices, "within": within})


SOME, ABOVE_0, FROM_0, SHARE = (1, 1e9), (1e-12, 1e9), (0, 1e9), (0, 1)


@dataclass(frozen=True)
class Recipe:
    model: str = _flag("smollm2", MODELS)
    method: str = _flag("lora16", "", METHODS)
    data: str = _flag("verses", "verses, finetome, fusechat, nitral, a Hub id or a file")
    rows: int | None = _flag(None, "a seeded sample of so many rows (default: all)", within=SOME)
    plans: float | None = _flag(None, "share of rhymed poems with a second row that names the end words", within=SHARE)
    seed: int = _flag(3407, "seed of data order and adapter")
    r: int = _flag(16, "rank of the adapter", within=SOME)
    lora_alpha: int = _flag(16, "the adapter is scaled by lora_alpha / r", within=SOME)
    lora_dropout: float = _flag(0.0, "dropout before the adapter", within=SHARE)
    target_modules: tuple[str, ...] = _flag(LLAMA_LINEAR, "layers with an adapter, comma-separated, or all-linear")
    load_in_4bit: bool | None = _flag(None, "hold the base in 4 bits (default: as the method says)")
    max_length: int = _flag(2048, "tokens of one packed sequence", within=SOME)
    batch_size: int = _flag(8, "packed sequences of one optimizer step, whatever the micro-batch", within=SOME)
    micro_batch: int | None = _flag(None, "sequences that a GPU takes at a time (default: as many as fit)", within=SOME)
    num_train_epochs: float = _flag(1.0, "how often every row is seen", within=ABOVE_0)
    max_steps: int = _flag(-1, "optimizer steps, -1 for whole epochs", within=(-1, 1e9))
    learning_rate: float = _flag(2e-4, "at its highest, after the warm-up", within=ABOVE_0)
    lr_scheduler_type: str = _flag("linear", "", ("linear", "cosine", "constant"))
    warmup_steps: int = _flag(5, "steps in which the learning rate rises", within=FROM_0)
    weight_decay: float = _flag(0.01, "AdamW's, on the adapter", within=FROM_0)
    max_grad_norm: float = _flag(1.0, "longer gradients are shortened to this", within=FROM_0)
    optim: str | None = _flag(None, "a name of transformers (default: adamw_torch_fused; adamw_8bit takes less memory)")
    save_steps: int = _flag(100, "steps between two checkpoints", within=SOME)
    precision: str = _flag("auto", "", (*PRECISIONS, "fp8"))
    engine: str = _flag("peft", "peft (with Iris' fast layers) or unsloth", ("peft", "unsloth"))
    compile: bool | None = _flag(None, "torch.compile (default: on a GPU, if the run is long enough)")
    fsdp: bool | None = _flag(None, "spread the base over several GPUs (default: where it does not fit otherwise)")
    report_to: str = _flag("none", "", ("none", "trackio", "tensorboard", "wandb"))
    push_checkpoints: str | None = _flag(None, "USER/NAME of a private repository on the Hub for checkpoints")

    @property
    def plan_share(self) -> float:
        """`plans` where it is given; else all of the verses' poems, and none of other data's."""
        return float("verses" in self.data.split(",")) if self.plans is None else self.plans

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is held in 4-bit NF4."""
        return self.method == "qlora" if self.load_in_4bit is None else self.load_in_4bit

    @property
    def quantized(self) -> bool:
        """Whether the frozen base is held in less than 16 bits, which FSDP does not spread."""
        return self.four_bit or self.precision == "fp8"

    def as_dict(self) -> dict[str, Any]:
        """The recipe in JSON's types, as a record holds it."""
        return asdict(self) | {"target_modules": list(self.target_modules)}


def one_of(value: str, known: tuple[str, ...] | list[str], what: str) -> str:
    """`value` if it is known; else an InputError that lists what is, nearest first."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"unknown {what} {value!r}{hint}; known: {', '.join(known)}")


def parse(name: str, text: str) -> Any:
    """The text of a flag as a value of the field `name`. InputError where the field is unknown or the value is none."""
    kinds = {item.name: str(item.type) for item in fields(Recipe)}
    kind, _, optional = kinds[one_of(name, list(kinds), "recipe field")].partition(" | ")
    if optional and text.lower() in ("none", ""):
        return None
    try:
        if kind == "bool":
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise InputError(f"{name}={text} does not fit: {name} is of type {kinds[name]}") from None


def make(settings: list[str] | None = None, **given: Any) -> Recipe:
    """A recipe from fields (None means not given) and `key=value` strings, which win; what suits the data is the
    default. InputError on unknown fields and values that do not fit."""
    given = {name: value for name, value in given.items() if value is not None}
    for name, equals, text in (setting.partition("=") for setting in settings or []):
        if not equals:
            raise InputError(f"--set {name} needs the form key=value")
        given[name] = parse(name, text)
    return check(Recipe(**(SUITED.get(given.get("data", Recipe.data), {}) | given)))


def check(recipe: Recipe) -> Recipe:
    """The recipe itself if its values fit; else an InputError."""
    for item in fields(recipe):
        value, within = getattr(recipe, item.name), item.metadata["within"]
        if item.metadata["choices"]:
            one_of(value, item.metadata["choices"], item.name)
        if within and value is not None and not within[0] <= value <= within[1]:
            raise InputError(f"{item.name} must be from {within[0]:g} to {within[1]:g}, not {value}")
    if recipe.max_steps == 0:
        raise InputError("max_steps=0 would train nothing; leave it out for whole epochs")
    if recipe.precision == "fp8" and (recipe.four_bit or recipe.engine == "unsloth" or recipe.lora_dropout):
        raise InputError("precision=fp8 takes lora16 or dora on a 16-bit base, engine=peft and no lora_dropout")
    if recipe.push_checkpoints and not re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.push_checkpoints):
        raise InputError(f"push_checkpoints={recipe.push_checkpoints} is not of the form USER/NAME")
    return recipe


# What may differ between a run and its resumption.
FREE_TO_CHANGE = ("save_steps", "report_to", "max_steps", "num_train_epochs", "push_checkpoints", "fsdp", "micro_batch")
