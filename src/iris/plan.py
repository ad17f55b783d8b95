"""How one optimizer step is cut up on this machine: micro-batch, gradient checkpointing, compilation, sharding.

The effective batch is the recipe's; the plan only chooses how many packed sequences go through the model at a time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from . import distributed, hardware
from .recipe import Recipe

COMPILE_SECONDS = 15.0  # what compiling costs; on an H100 it saves 5 s a million tokens with a 1B, and of a small
SAVED_A_TOKEN, SAVED_A_LAYER = 5e-6, 0.01  # step most of the time that launching its kernels takes, layer by layer
LOGITS_GB = 2.0  # the loss's chunk of logits, its gradient and the kernels' own workspace


@dataclass(frozen=True)
class Plan:
    """`micro_batch` packed sequences a forward pass; whether activations are kept or computed again (checkpointing);
    whether decoder layers are compiled; whether the base is spread over the processes."""

    micro_batch: int
    checkpointing: bool
    compile: bool
    sharded: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plans(recipe: Recipe, config: Any, parameters: float, tokens: float, memory_gb: float | None = None) -> list[Plan]:
    """The plans that should fit, best first; a training that runs out of memory goes on to the next.

    config: the model's; parameters: of the base; tokens: that the run will see; memory_gb: the GPU's (default: asked).
    """
    processes = distributed.size()
    each = distributed.share(recipe.batch_size, processes)
    sharded = [False, True] if recipe.fsdp is None else [recipe.fsdp]
    if processes == 1:
        sharded = [False]
    if hardware.device() == "cpu":
        return [Plan(1, False, bool(recipe.compile), sharded[0])]
    memory = memory_gb if memory_gb is not None else hardware.gpu_memory_gb()
    saved = max(tokens * SAVED_A_TOKEN, tokens / recipe.tokens_per_step * config.num_hidden_layers * SAVED_A_LAYER)
    pays = hardware.is_ampere() and saved > COMPILE_SECONDS
    compiled = pays if recipe.compile is None else recipe.compile
    sizes = [size for size in range(each, 0, -1) if each % size == 0 and recipe.micro_batch in (None, size)]
    ordered = [
        Plan(size, checkpointing, compiled, spread)
        for spread in sharded
        for checkpointing in (False, True)
        for size in sizes
    ]
    # A micro-batch of 8,192 tokens keeps an H100 at 94% of its best rate: rather that than computing everything twice.
    fitting = [plan for plan in ordered if needed_gb(plan, recipe, config, parameters) < 0.9 * memory]
    return fitting or [Plan(sizes[-1], True, compiled, sharded[-1])]


def needed_gb(plan: Plan, recipe: Recipe, config: Any, parameters: float) -> float:
    """An estimate of the GPU memory of a step in GB, calibrated on a 1B model (23.9 GB with 16,384 tokens, 16-bit LoRA,
    compiled; 30.3 without compiling; 27.3 with DoRA)."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = plan.micro_batch * recipe.max_length
    kept = 6.5 * hidden + 3 * inner + (3.2 * hidden if recipe.use_dora else 0)  # numbers a token and layer
    kept *= 1.0 if plan.compile else 1.4
    activations = tokens * 2 * (kept * (2 if plan.checkpointing else layers) + hidden * layers)
    embedding = config.vocab_size * hidden
    weights = 0.56 * (parameters - embedding) + 2 * embedding if recipe.four_bit else 2 * parameters
    if plan.sharded:  # and two layers gathered at a time
        weights = weights / distributed.size() + 2 * weights / layers
    adapter = 16 * layers * recipe.r * (5 * hidden + 3 * inner)  # fp32 weight, gradient and two moments
    return (activations + weights + adapter) / 1e9 + LOGITS_GB
