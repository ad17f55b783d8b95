"""What to do: the recipe of one training run. A frozen value; a method is one field of it.

Field names are those of transformers' TrainingArguments, trl's SFTConfig and peft's LoraConfig where these have one.
The defaults are the lab's recipe: rank 16, alpha 16, the seven linear layers of a Llama block, eight packed sequences
of 2,048 tokens a step, AdamW, linear schedule, 2e-4.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import InputError

METHODS = ("qlora", "dora", "lora16")
SCHEDULERS = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
ENGINES = ("peft", "unsloth")
REPORTERS = ("none", "trackio", "tensorboard", "wandb")
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# What suits a data set better than the lab's defaults. The bundled verses are 40,000 tokens: long packed
# sequences would leave them three optimizer steps.
SUITED: dict[str, dict[str, Any]] = {
    "verses": {"max_length": 512, "batch_size": 2, "num_train_epochs": 2.0, "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Recipe:
    model: str = "smollm2"
    method: str = "lora16"
    data: str = "verses"
    rows: int | None = None  # a seeded sample of the data set; None is all of it
    seed: int = 3407
    r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = LLAMA_LINEAR
    load_in_4bit: bool | None = None  # None: as the method says (qlora yes, the others no)
    max_length: int = 2048  # tokens of one packed sequence
    batch_size: int = 8  # packed sequences of one optimizer step, whatever the micro-batch
    micro_batch: int | None = None  # packed sequences that a GPU takes at a time; None: as many as fit
    num_train_epochs: float = 1.0
    max_steps: int = -1  # -1: as many as num_train_epochs takes
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    optim: str = "adamw_8bit"  # on a GPU; a CPU takes adamw_torch
    save_steps: int = 100
    precision: str = "auto"
    engine: str = "peft"  # peft (with Iris' fast layers) or unsloth
    compile: bool | None = None  # torch.compile; None: on a GPU, if the run is long enough
    fsdp: bool | None = None  # several GPUs: spread the base over them; None: where it would not fit otherwise
    report_to: str = "none"
    push_checkpoints: str | None = None  # USER/NAME of a private repository on the Hub

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is held in 4-bit NF4."""
        return self.method == "qlora" if self.load_in_4bit is None else self.load_in_4bit

    @property
    def use_dora(self) -> bool:
        return self.method == "dora"

    @property
    def tokens_per_step(self) -> int:
        """At most, padding included."""
        return self.batch_size * self.max_length

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


def make(settings: list[str] | None = None, **given: Any) -> Recipe:
    """A recipe from keyword arguments (None means not given) and `key=value` strings, which win. InputError on
    unknown fields and values that do not fit."""
    given = {key: value for key, value in given.items() if value is not None}
    data = str(given.get("data", Recipe.data))
    recipe = replace(Recipe(**SUITED.get(data, {})), **given)
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting} needs the form key=value")
        one_of(key, [item.name for item in fields(Recipe)], "recipe field")
        recipe = replace(recipe, **{key: _parse(key, text)})
    return check(recipe)


def check(recipe: Recipe) -> Recipe:
    """The recipe itself if its values fit; else an InputError."""
    one_of(recipe.method, METHODS, "method")
    one_of(recipe.lr_scheduler_type, SCHEDULERS, "lr_scheduler_type")
    one_of(recipe.precision, PRECISIONS, "precision")
    one_of(recipe.engine, ENGINES, "engine")
    one_of(recipe.report_to, REPORTERS, "report_to")
    for name in ("r", "lora_alpha", "max_length", "batch_size", "save_steps", "num_train_epochs", "learning_rate"):
        if getattr(recipe, name) <= 0:
            raise InputError(f"{name} must be above zero, not {getattr(recipe, name)}")
    for name in ("rows", "max_steps", "micro_batch"):
        value = getattr(recipe, name)
        if value is not None and value < 1 and (name, value) != ("max_steps", -1):
            raise InputError(f"{name} must be at least 1, not {value}")
    return recipe


# What may differ between a run and its resumption.
FREE_TO_CHANGE = ("save_steps", "report_to", "max_steps", "num_train_epochs", "push_checkpoints", "fsdp", "micro_batch")


def changes(recipe: Recipe, earlier: dict[str, Any]) -> list[str]:
    """Fields that keep `recipe` from going on with a run of the `earlier` recipe (as a record holds it)."""
    now = recipe.as_dict()
    return [key for key in now if key not in FREE_TO_CHANGE and earlier.get(key) != now[key]]


_TYPES: dict[str, Any] = {item.name: item.type for item in fields(Recipe)}


def _parse(key: str, text: str) -> Any:
    kind = str(_TYPES[key])
    if "None" in kind and text.lower() in ("none", ""):
        return None
    try:
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
        if kind.startswith("bool"):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return text
    except (ValueError, KeyError):
        raise InputError(f"{key}={text} does not fit: {key} is of type {kind}") from None
