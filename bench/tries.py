"""What might make a step faster, tried by itself beside the present step: `iris` in this process, changed by NAME.

Run as:  python bench/tries.py NAME[+NAME...] train --model ...        # as `iris train`
    python bench/llama_speed.py train --tokenizer DIR --tries addmm,cudnn,addmm+cudnn --out ...    # beside each other

addmm: the base's product is added to the adapter's in one call, so that their sum is not read again.
cudnn: attention by cuDNN's kernels instead of FlashAttention 2 (of a batch of one fixed shape: one plan).
online: the loss's largest logit and sum of exponentials in one pass over the logits.
tuned: inductor looks for better settings of its own kernels, which takes a minute the first time.
rows: with precision=fp8, a scale for every row of activations and gradients, both in e4m3, instead of one for all.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F

from iris import cli
from iris.train import attention, fp8, lora, loss


def addmm() -> None:
    plain = lora.FastLinear.forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.base_layer
        ours = self.nf4 is None and self.row_norms is None and not isinstance(base, fp8.Float8Linear)
        if args or kwargs or self.disable_adapters or self.merged or not ours or base.bias is not None:
            return plain(self, x, *args, **kwargs)
        (name,) = self.active_adapters
        a = self.lora_A[name].weight.to(x.dtype)
        b = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        return torch.addmm(F.linear(F.linear(rows, a), b), rows, base.weight.T).view(*x.shape[:-1], -1)

    lora.FastLinear.forward = forward  # type: ignore[method-assign]


@torch.library.custom_op("iris_tries::cudnn", mutates_args=())
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention in packed rows, and its log-sum-exp, each token by token."""
    given = (q, k, v, None, bounds, bounds, longest, longest, True, 0.0, True, False)
    return torch.ops.aten._cudnn_attention_forward(*given, scale=scale)[:2]


@torch.library.custom_op("iris_tries::cudnn_back", mutates_args=())
def attend_back(
    grads: list[torch.Tensor], bounds: torch.Tensor, longest: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    none = torch.zeros((), dtype=torch.int64, device=bounds.device)  # seed and offset of no dropout
    given = (*grads, none, none, None, bounds, bounds, longest, longest, 0.0, True)
    return torch.ops.aten._cudnn_attention_backward(*given, scale=scale)


@attend.register_fake
def _(q: Any, k: Any, v: Any, bounds: Any, longest: int, scale: float) -> Any:
    return torch.empty_like(q), q.new_empty(*q.shape[:2], 1, dtype=torch.float32)


@attend_back.register_fake
def _(grads: Any, bounds: Any, longest: int, scale: float) -> Any:
    return tuple(torch.empty_like(each) for each in grads[1:4])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, bounds, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, bounds)


def _back(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
    *kept, bounds = ctx.saved_tensors
    return *attend_back([grad.contiguous(), *kept], bounds, ctx.longest, ctx.scale), None, None, None


attend.register_autograd(_back, setup_context=_keep)


def cudnn() -> None:
    def packed(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> tuple[Any, None]:
        q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
        return attend(q, k, v, given["cu_seqlens"], given["max_seqlen"], given["scaling"])[0][None], None

    attention.flash_attention = packed


def online() -> None:
    def losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = logits.float()
        most = x.amax(1, keepdim=True)
        norm = most + (x - most).exp().sum(1, keepdim=True).log()
        return norm, (norm - x.gather(1, targets[:, None])).sum()

    loss._losses = losses


def tuned() -> None:
    import torch._inductor.config as inductor

    inductor.coordinate_descent_tuning = True


def rows() -> None:
    def product(x: torch.Tensor, kind: torch.dtype, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        by_row = flat.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(fp8.E4M3).max
        eight = (flat.float() * by_row.reciprocal()).to(fp8.E4M3).contiguous()
        scales = {"scale_a": by_row, "scale_b": scale.expand(1, len(weight)).contiguous()}
        y = torch._scaled_mm(eight, weight.T, **scales, out_dtype=x.dtype, use_fast_accum=True)
        return y.view(*x.shape[:-1], len(weight))

    fp8.product = product


TRIES = {"addmm": addmm, "cudnn": cudnn, "online": online, "tuned": tuned, "rows": rows}

if __name__ == "__main__":
    for each in filter(None, sys.argv[1].split("+")):
        TRIES[each]()
    sys.exit(cli.main(sys.argv[2:]))
