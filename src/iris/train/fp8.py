"""The frozen base in 8 bits: its products at twice bf16's rate on a GPU that has FP8 (NVIDIA's Ada, Hopper and later).

Every tensor has one scale: weights are quantized once, what they meet as it comes. Weights and activations take e4m3
(three bits of fraction, up to 448), gradients e5m2 (two bits, up to 57,344), as in "FP8 Formats for Deep Learning"
(Micikevicius et al. 2022). Adapter, norms, attention, head and loss stay in bf16.
"""

from typing import Any

import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of both sizes of a weight, which the GPU's FP8 products ask for


class Float8Linear(torch.nn.Linear):
    """A frozen linear layer by `quantize_base`: `weight` (out, in) in e4m3, to be multiplied by `scale`."""

    scale: torch.Tensor  # float32, ()
    turned: torch.Tensor  # the weight as (in, out): FP8 products read both factors along what they sum over

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T without the bias: (..., in) -> (..., out), in x's type."""
        return _Product.apply(x, self.weight, self.turned, self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias."""
        return self.product(x) if self.bias is None else self.product(x) + self.bias


def quantize_base(model: Any) -> int:
    """Quantize the linear layers of a PEFT Llama's frozen decoder layers; returns how many. A layer whose sizes are no
    multiples of 16 stays as it is."""
    layers = [module for module in model.get_base_model().model.layers.modules() if type(module) is torch.nn.Linear]
    frozen = [layer for layer in layers if not layer.weight.requires_grad]
    chosen = [layer for layer in frozen if not any(size % MULTIPLE for size in layer.weight.shape)]
    for layer in chosen:
        weight, scale = quantize(layer.weight.detach(), E4M3)
        layer.__class__ = Float8Linear
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.register_buffer("turned", weight.T.contiguous(), persistent=False)
        layer.register_buffer("scale", scale, persistent=False)
    return len(chosen)


def quantize(x: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, columns) in 8 bits, row by row in memory, and the float32 number () to multiply it by."""
    largest = x.abs().amax(1).amax().float()  # by row first, which compiled joins what makes the row
    scale = largest.clamp(min=1e-12) / torch.finfo(kind).max
    return (x.float() * scale.reciprocal()).to(kind).contiguous(), scale


def product(x: torch.Tensor, kind: torch.dtype, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x W^T, x being quantized to `kind`: (..., k) and (n, k) in e4m3 -> (..., n). Off the GPU, where only tests have
    FP8, the same numbers are multiplied in float32."""
    rows, x_scale = quantize(x.reshape(-1, x.shape[-1]), kind)
    if x.is_cuda:
        y = torch._scaled_mm(rows, weight.T, scale_a=x_scale, scale_b=scale, out_dtype=x.dtype, use_fast_accum=True)
    else:
        y = (rows.float() @ weight.float().T * (x_scale * scale)).to(x.dtype)
    return y.view(*x.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, turned: torch.Tensor, scale: torch.Tensor) -> Any:
        ctx.save_for_backward(turned, scale)
        return product(x, E4M3, weight, scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # type: ignore[override]
        return product(grad, E5M2, *ctx.saved_tensors), None, None, None
