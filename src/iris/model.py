"""Base and adapter: names resolved, weights loaded, the adapter put on. The only importer of unsloth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import embedded, hardware
from .errors import InputError
from .hub import said_plainly
from .recipe import Recipe, one_of
from .record import folder_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIASES = {
    "smollm2": embedded.ID,
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
}


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its public id, the folder or Hub id to load, its revision and the digest of its
    weights (folders only)."""

    id: str
    path: str
    revision: str | None
    digest: str | None

    def as_dict(self) -> dict[str, Any]:
        """id, revision and digest, as a record keeps them."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def resolve(model: str) -> Source:
    """An alias, a folder or a Hub id -> Source. InputError if it is none of these or no Llama-architecture model."""
    if model == "smollm2":
        folder = embedded.folder()
        return Source(embedded.ID, str(folder), embedded.REVISION, folder_digest(folder))
    if Path(model).is_dir():
        return _resolve_folder(Path(model))
    is_path = Path(model).exists() or model.startswith((".", "/", "~"))
    if model in ALIASES or (model.count("/") == 1 and not is_path):
        return _resolve_hub(ALIASES.get(model, model))
    if "/" in model or is_path:
        raise InputError(f"{model} is not a model folder (config.json and safetensors); give one, an alias or a Hub id")
    return Source(one_of(model, list(ALIASES), "model"), model, None, None)


def _resolve_folder(folder: Path) -> Source:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder} is not a model: it has no readable config.json") from None
    if config.get("model_type") != "llama":
        raise InputError(f"{folder} is of type {config.get('model_type')}; Iris trains models of the Llama architecture")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no *.safetensors weights; save the model with safe serialization")
    return Source(folder.name, str(folder), None, folder_digest(folder))


def _resolve_hub(hub_id: str) -> Source:
    from huggingface_hub import HfApi

    with said_plainly(f"the model {hub_id}"):
        return Source(hub_id, hub_id, HfApi().model_info(hub_id).sha, None)


def load_base(source: Source, recipe: Recipe, precision: str) -> PreTrainedModel:
    """The frozen base: weights in `precision`, or in 4-bit NF4 with double quantization (QLoRA, Dettmers et al. 2023)
    on a GPU. Rows packed into one sequence attend only to themselves (see attention.py)."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from . import attention

    quantization = None
    if recipe.four_bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=hardware.dtype(precision),
        )
    with said_plainly(f"the model {source.id}"):
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision if source.path == source.id else None,
            dtype=hardware.dtype(precision),
            quantization_config=quantization,
            device_map={"": torch.cuda.current_device()} if hardware.device() == "cuda" else None,
            attn_implementation=attention.register(),
            use_safetensors=True,
            trust_remote_code=False,
        )
    model.config.use_cache = False
    return model


def add_adapter(model: PreTrainedModel, recipe: Recipe) -> Any:
    """A fresh PEFT adapter (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024) on the frozen base, its weights in fp32."""
    import torch
    from peft import LoraConfig, get_peft_model

    from . import fast

    torch.manual_seed(recipe.seed)  # the same A for every method
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.target_modules),
        use_dora=recipe.use_dora,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    fast.speed_up(adapted, compile=hardware.device() == "cuda")
    return adapted
