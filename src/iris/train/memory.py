"""How one optimizer step is cut up on this machine: micro-batch, gradient checkpointing, compilation, sharding.

The effective batch is the recipe's; the plan only chooses how many packed sequences go through the model at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..model import hardware
from ..recipe import Recipe
from .loss import CHUNK

COMPILE_SECONDS = 15.0  # what compiling costs; on an H100 it saves 5 s a million tokens with a 1B, and of a small
SAVED_A_TOKEN, SAVED_A_LAYER = 5e-6, 0.01  # step most of the time that launching its kernels takes, layer by layer
USABLE = 0.9  # of a GPU's memory


@dataclass(frozen=True)
class Plan:
    """`micro_batch` packed sequences a forward pass; whether activations are kept or computed again (checkpointing);
    whether decoder layers are compiled; whether the base is spread over the processes."""

    micro_batch: int
    checkpointing: bool
    compile: bool
    sharded: bool = False


def plans(recipe: Recipe, config: Any, parameters: float, steps: int, processes: int = 1) -> list[Plan]:
    """The plans that should fit, best first; a training that runs out of memory goes on to the next.

    config: the model's; parameters: of the base; steps: of the whole run; processes: that share each of them."""
    sharded = [False, True] if recipe.fsdp is None else [recipe.fsdp]
    if processes == 1 or recipe.quantized:
        sharded = [False]
    if hardware.device() == "cpu":
        return [Plan(1, False, bool(recipe.compile), sharded[0])]
    saved = steps * max(recipe.batch_size * recipe.max_length * SAVED_A_TOKEN, config.num_hidden_layers * SAVED_A_LAYER)
    pays = hardware.is_ampere() and saved > COMPILE_SECONDS
    compiled = pays if recipe.compile is None else recipe.compile
    ordered = cuts(recipe, compiled, sharded, processes)
    memory = USABLE * hardware.gpu_memory_gb()
    fitting = [plan for plan in ordered if needed_gb(plan, recipe, config, parameters, processes) < memory]
    return fitting or ordered[-1:]


def cuts(recipe: Recipe, compiled: bool, sharded: list[bool], processes: int = 1) -> list[Plan]:
    """All plans of a step, fastest first. A micro-batch of 8,192 tokens keeps an H100 at 94% of its best rate: rather
    that than computing everything twice."""
    each = recipe.batch_size // processes
    sizes = [size for size in range(each, 0, -1) if each % size == 0 and recipe.micro_batch in (None, size)]
    return [Plan(size, again, compiled, spread) for spread in sharded for again in (False, True) for size in sizes]


def needed_gb(plan: Plan, recipe: Recipe, config: Any, parameters: float, processes: int = 1) -> float:
    """An estimate of the GPU memory of a step in GB, which tests/test_fast.py holds to what was measured."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    keys, vocabulary = 2 * config.num_key_value_heads * config.head_dim, config.vocab_size * config.hidden_size
    tokens = plan.micro_batch * recipe.max_length
    # Numbers that a layer keeps of a token: the norms' fp32 copies, what goes into each product, queries, keys, values
    # and four of the MLP's; DoRA each product's result as well. A compiled layer computes some of them again.
    kept, dora = 8 * hidden + keys + 4 * inner, 3 * hidden + keys + 2 * inner
    if plan.compile:
        kept, dora = 6.5 * hidden + 3 * inner, 3.2 * hidden
    kept += dora * (recipe.method == "dora")
    layer, logits = 2 * tokens * kept, 4 * min(tokens, CHUNK) * config.vocab_size  # bytes
    activations = layer * layers + logits
    if plan.checkpointing:  # a layer's input is kept, and one layer or the logits are in work
        activations = 2 * tokens * hidden * layers + max(1.45 * layer, logits)
    ends = vocabulary if config.tie_word_embeddings else 2 * vocabulary
    weights = 0.56 * (parameters - ends) + 2 * ends if recipe.four_bit else 2 * parameters
    if plan.sharded:  # and two layers gathered at a time
        weights = weights / processes + 2 * weights / layers
    adapter = 16 * recipe.r * layers * (9 * hidden + keys + 3 * inner)  # fp32 weight, gradient and two moments
    return (activations + weights + adapter) / 1e9


def shard(model: Any, device: torch.device) -> None:
    """Spread the frozen 16-bit base of a PEFT Llama over the processes with FSDP2 (torch's fully_shard): of every layer
    each holds a part, and gathers the whole for as long as that layer computes. The adapter stays whole, for DDP and so
    that a checkpoint is that of one process. (transformers' own `fsdp` spreads it too, and nothing on a CPU.)"""
    llama, whole = model.get_base_model(), {one for one in model.parameters() if one.requires_grad}
    ends = [llama.model.embed_tokens, llama.lm_head]
    if ends[0].weight is ends[1].weight:  # tied: used at both ends of a step, so kept
        whole.add(ends[0].weight)
        ends = []
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for module in model.modules():
        if getattr(module, "row_norms", None) is not None:  # DoRA's, of lora.py
            module.row_norms = module.row_norms.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in [*llama.model.layers, *ends, llama.model]:
        fully_shard(module, mesh=mesh, ignored_params=whole)
