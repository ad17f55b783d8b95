"""Cross-entropy straight from hidden states, a chunk of tokens at a time, so that the logits never exist in full."""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 2048  # tokens whose logits exist at one time


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradient of the hidden states along with the loss; the (frozen) head gets none."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        grads = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for begin in range(0, len(hidden), CHUNK):
            part, wanted = hidden[begin : begin + CHUNK], labels[begin : begin + CHUNK]
            logits = (part @ weight.T).float()
            total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
            logits = logits.softmax(dim=-1)
            logits[torch.arange(len(wanted), device=logits.device), wanted] -= 1
            grads[begin : begin + CHUNK] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (grads,) = ctx.saved_tensors
        return grads * grad, None, None


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the learned tokens of the cross-entropy of `hidden @ weight.T`.

    hidden (T, d), weight (vocabulary, d), labels (T) with -100 where nothing is learned; returns a float32 scalar in
    nats. Only learned tokens meet the head. The weight must be frozen."""
    learned = (labels != -100).nonzero().squeeze(1)
    return _LinearCrossEntropy.apply(hidden[learned], weight, labels[learned])
