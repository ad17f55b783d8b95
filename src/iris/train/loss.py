"""Cross-entropy straight from hidden states, a chunk of tokens at a time, so that the logits never exist in full."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._dynamo import maybe_mark_dynamic  # what torch.compile should expect to change; it has no public name

CHUNK = 2048  # tokens whose logits exist at one time


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradient of the hidden states along with the loss, if it is wanted; the (frozen) head gets none."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        learned = (labels != -100).nonzero().squeeze(1)  # only these rows meet the head
        rows, targets = hidden[learned], labels[learned]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        parts = max(1, -(-len(learned) // CHUNK))
        losses, to_gradient_ = _compiled() if hidden.is_cuda else (_losses, _to_gradient_)
        for part, target in zip(rows.tensor_split(parts), targets.tensor_split(parts), strict=True):
            if not len(part):  # nothing is learned in this micro-batch
                break
            logits = part @ weight.T
            maybe_mark_dynamic(logits, 0)  # the number of learned tokens is never the same
            maybe_mark_dynamic(target, 0)
            norm, loss = losses(logits, target)
            total += loss
            if not ctx.needs_input_grad[0]:  # held-out rows are only measured
                continue
            maybe_mark_dynamic(norm, 0)
            to_gradient_(logits, target, norm)
            torch.mm(logits, weight, out=part)  # these rows are done with: their place takes their gradient
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.zeros_like(hidden).index_copy_(0, learned, rows))
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return (ctx.saved_tensors[0] * grad).to(ctx.saved_tensors[0].dtype), None, None


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log of the partition function by row, and the sum of the losses, both in fp32."""
    x = logits.float()
    norm = torch.logsumexp(x, 1, keepdim=True)
    return norm, (norm - x.gather(1, targets[:, None])).sum()


def _to_gradient_(logits: torch.Tensor, targets: torch.Tensor, norm: torch.Tensor) -> None:
    """`logits` becomes the gradient of the sum of its losses: probabilities, less one at the target."""
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    logits.copy_((logits.float() - norm).exp() - hit.float())


@cache  # and not at import, as torch.compile loads inductor: a tenth of the start, for nothing on a CPU
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two kernels: fused into one, the second would take the logarithm again for every logit."""
    return torch.compile(_losses), torch.compile(_to_gradient_)


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the learned tokens of the cross-entropy of `hidden @ weight.T`: hidden (T, d), weight (vocabulary, d)
    and frozen, labels (T) with -100 where nothing is learned; returns a float32 scalar in nats."""
    return _LinearCrossEntropy.apply(hidden, weight.detach(), labels)


def give_loss(llama: Any) -> None:
    """Let a Llama that is called with the labels (1, T) of packed rows return their `linear_cross_entropy`, each token
    predicting the next, instead of logits. It stays a call of model and head, which is where DDP and FSDP hook in."""
    logits, product = llama.forward, llama.lm_head.forward

    def forward(*, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return logits(**inputs)
        # a ready-made mask keeps transformers from building one; packed attention reads none
        inputs |= {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=labels.device), "use_cache": False}
        # the first token of a row is never learned, so that no label is moved into another row
        return llama.lm_head(llama.model(**inputs).last_hidden_state[0], labels[0].roll(-1))

    def head(hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return product(hidden) if labels is None else linear_cross_entropy(hidden, llama.lm_head.weight, labels)

    llama.forward, llama.lm_head.forward = forward, head
