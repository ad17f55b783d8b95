"""PEFT's LoRA layers with the same function in fewer passes over memory, and compiled decoder layers.

`speed_up` changes the class of the layers of an ordinary PEFT model; weights, names and files stay PEFT's. Saved are
the casts between fp32 adapter and 16-bit base on every call (the adapter is cast once), DoRA's norm of W + BA without
building W + BA, and with `compile_layers` most of the kernel launches and passes over memory on a GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer

from .fp8 import Float8Linear


class FastLinear:
    """Mixed into a PEFT LoRA layer by `speed_up`."""

    nf4: tuple[torch.Tensor, torch.Tensor] | None  # packed 4-bit weight and its block scales
    row_norms: torch.Tensor | None  # DoRA: squared norms of the rows of W

    def base_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """x W^T with the frozen weight, in FP8 or unpacked from 4 bits if need be."""
        if isinstance(self.base_layer, Float8Linear):
            return self.base_layer.product(x)
        if self.nf4 is None:
            return F.linear(x, self.base_layer.weight)
        return linear_4bit(x, *self.nf4, self.out_features, False)

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x W^T + s (x A^T) B^T, and for DoRA that times m / ||W + sBA|| by row; x (..., in) -> (..., out)."""
        if args or kwargs or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        (name,) = self.active_adapters
        a = self.lora_A[name].weight.to(x.dtype)
        b = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
        y = self.base_forward(x) + F.linear(F.linear(x, a), b)
        if self.row_norms is not None:
            # ||W + BA||^2 = ||W||^2 + 2 <B, W A^T> + <B A A^T, B> by row, b being scaled already; the norm is a
            # constant in the backward pass (DoRA, Liu et al. 2024, section 4.3)
            with torch.no_grad():
                wa, a, b = self.base_forward(a).float(), a.float(), b.float()
                norm = (self.row_norms + 2 * (b * wa.T).sum(1) + ((b @ (a @ a.T)) * b).sum(1)).sqrt()
            y = (y * (self.lora_magnitude_vector[name].weight / norm)).to(x.dtype)
        return y if self.base_layer.bias is None else y + self.base_layer.bias


def speed_up(model: Any) -> int:
    """Give every LoRA layer of a PEFT model the fast forward; returns how many took it. Layers of another kind
    (dropout, bias) stay PEFT's own."""
    kinds: dict[type, type] = {}
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    fast = 0
    for module in layers:
        base, (name, *others) = module.base_layer, module.active_adapters
        four_bit, use_dora = type(base).__name__ == "Linear4bit", module.use_dora[name]
        plain = not isinstance(module.lora_dropout[name], torch.nn.Dropout) and not module.lora_bias[name]
        known = use_dora or module.lora_variant.get(name) is None
        if others or not plain or not known or not (four_bit or type(base) is torch.nn.Linear):
            continue
        kind = type(module)
        kinds.setdefault(kind, type("Fast" + kind.__name__, (FastLinear, kind), {}))
        module.__class__ = kinds[kind]
        module.nf4 = module.row_norms = None
        weight = base.weight.detach()
        if four_bit:
            import bitsandbytes.functional as bnb

            state = base.weight.quant_state
            absmax = state.absmax
            if state.nested:
                absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
            module.nf4 = (base.weight.data, absmax.float())
            weight = bnb.dequantize_4bit(base.weight.data, state)
        if use_dora:
            module.row_norms = weight.float().pow(2).sum(1)
        fast += 1
    return fast


def compile_layers(model: Any) -> None:
    """Compile each decoder layer of a PEFT model for the one shape it will see; the layers share one compilation. Of a
    sharded model the hooks that gather a layer's weights run before and after it, not compiled."""
    base = model.get_base_model()
    base.enable_input_require_grads()  # so that the first layer shares the graph of the others
    for layer in [*base.model.layers, base.model.norm]:
        layer.forward = torch.compile(type(layer).forward.__get__(layer), dynamic=False)


# --- 4-bit weights, as an operator that torch.compile does not look into ---------------------------------------------


@torch.library.custom_op("iris::linear_4bit", mutates_args=())
def linear_4bit(x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, out: int, back: bool) -> torch.Tensor:
    """x W^T (back: x W) with an NF4 weight of block size 64, unpacked for the length of the product only."""
    shape = (x.shape[-1], out) if back else (out, x.shape[-1])
    weight = torch.ops.bitsandbytes.dequantize_4bit(packed, absmax, 64, "nf4", shape, x.dtype)
    return x @ (weight if back else weight.T)


@linear_4bit.register_fake
def _(x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, out: int, back: bool) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], out)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, packed, absmax, _, ctx.back = inputs
    ctx.width = x.shape[-1]
    ctx.save_for_backward(packed, absmax)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
    return linear_4bit(grad.contiguous(), *ctx.saved_tensors, ctx.width, not ctx.back), None, None, None, None


linear_4bit.register_autograd(_backward, setup_context=_keep_for_backward)
