"""lm-eval's Hugging Face model, with all continuations of one context scored in one row.

lm-eval runs a multiple-choice item once an answer: the context is computed four to eight times. Here a row holds the
context once and its continuations after it, each at the positions it would have alone, and each attending to the
context and to itself only. The head is applied to the positions that are scored and to no others, so that the logits
of whole prompts never exist. The scores are the same sums of the same log-probabilities. Texts are tokenized in one
parallel call, each once: lm-eval tokenizes a context again for every continuation, one text at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm

HEAD_ROWS = 1024  # positions whose logits exist at one time
BATCH_TOKENS = 32768  # of a batch, padding included: enough for any GPU, and a bound on its memory

# ((context, continuation), context ids, continuation ids), as lm-eval makes it
Request = tuple[tuple[str, str], list[int], list[int]]
Score = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding would say the same


class SharedContextLM(HFLM):
    """HFLM for decoder-only models; a batch holds at most `batch_size` continuations and BATCH_TOKENS tokens, and one
    context at the least."""

    _encoded: dict[str, list[int]] = {}  # noqa: RUF012 (replaced, never changed)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Score]:
        """lm-eval's own, with the texts it is going to tokenize tokenized beforehand."""
        pairs = [request.args for request in requests if request.args[0]]
        texts = {text for context, answer in pairs for text in (context + answer, context.rstrip())}
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = [text for text in texts if not has_bos_prefix(text, bos)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        found = self.tokenizer(plain, return_attention_mask=False, **special)["input_ids"] if plain else []
        self._encoded = dict(zip(plain, found, strict=True))
        return super().loglikelihood(requests, disable_tqdm)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a text, as lm-eval's own."""
        if add_special_tokens is None and not args and not kwargs and string in self._encoded:
            return self._encoded[string]
        return list(super().tok_encode(string, add_special_tokens, *args, **kwargs))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if hasattr(self, "accelerator"):  # HFLM counts GPUs only, and by their number on one host
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Score]:
        scores: dict[int, Score] = {}
        # lm-eval cuts a context that is too long from the left, by another length for each continuation.
        longest = self.max_length  # which asks the disk whether DeepSpeed is there, every time
        too_long = [i for i, (_, context, answer) in enumerate(requests) if len(context) + len(answer) > longest]
        if too_long:
            found = super()._loglikelihood_tokens([requests[i] for i in too_long], disable_tqdm, override_bs)
            scores |= dict(zip(too_long, found, strict=True))
        rest = sorted(set(range(len(requests))) - scores.keys(), key=lambda i: requests[i][1])
        groups = [list(group) for _, group in groupby(rest, key=lambda i: requests[i][1])]
        lengths = {group[0]: self._row_length([requests[i] for i in group]) for group in groups}
        groups.sort(key=lambda group: -lengths[group[0]])  # if memory is short, know it now
        with tqdm(total=len(rest), disable=disable_tqdm or self.rank != 0, desc="Scoring continuations") as bar:
            for numbers, found in self._launch(self._batches(groups, lengths), requests):
                scores |= zip(numbers, found.scores(), strict=True)
                bar.update(len(numbers))
        return [scores[i] for i in range(len(requests))]

    def _launch(self, batches: list[list[list[int]]], requests: list[Request]) -> Iterator[tuple[list[int], _Found]]:
        """The numbers of each batch's requests and what is found; while the GPU computes a batch, its next is built."""
        before: tuple[list[int], _Found] | None = None
        for batch in batches:
            now = [i for group in batch for i in group], self._score(batch, requests)
            if before:
                yield before
            before = now
        if before:
            yield before

    @staticmethod
    def _row_length(group: list[Request]) -> int:
        return len(group[0][1]) + sum(len(answer) - 1 for _, _, answer in group)

    def _batches(self, groups: list[list[int]], lengths: dict[int, int]) -> list[list[list[int]]]:
        """Groups that come longest first, in batches; `lengths` are those of their rows, by a group's first number."""
        batches: list[list[list[int]]] = []
        answers = width = 0
        for group in groups:
            if not batches or answers + len(group) > self.batch_size or (len(batches[-1]) + 1) * width > BATCH_TOKENS:
                batches.append([])
                answers, width = 0, lengths[group[0]]
            batches[-1].append(group)
            answers += len(group)
        return batches

    @torch.no_grad()
    def _score(self, groups: list[list[int]], requests: list[Request]) -> _Found:
        """Have the scores of some contexts' requests computed; a group numbers one context's continuations."""
        width = max(self._row_length([requests[i] for i in group]) for group in groups)
        ids = np.zeros((len(groups), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        part = np.full_like(ids, -1)  # 0 the context, 1... the continuations, -1 padding
        places: list[int] = []  # of each scored prediction, in the flattened rows
        wanted: list[int] = []
        lengths: list[int] = []
        for row, group in enumerate(groups):
            context = requests[group[0]][1]
            start = end = len(context)
            ids[row, :end], positions[row, :end], part[row, :end] = context, np.arange(end), 0
            for number, i in enumerate(group, 1):
                answer = requests[i][2]
                length = len(answer) - 1  # the last token is predicted, not read
                new = slice(end, end + length)
                ids[row, new], positions[row, new], part[row, new] = answer[:-1], start + np.arange(length), number
                places += [row * width + start - 1, *range(row * width + end, row * width + end + length)]
                wanted += answer
                lengths.append(len(answer))
                end += length
        at, targets = self._send(np.array(places)), self._send(np.array(wanted))
        parts = self._send(part)
        same = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
        mask = (same & torch.ones(width, width, dtype=torch.bool, device=self.device).tril())[:, None]
        causal = self.model.get_base_model() if self.peft else self.model
        hidden = causal.model(
            input_ids=self._send(ids), position_ids=self._send(positions), attention_mask=mask, use_cache=False
        ).last_hidden_state.flatten(0, 1)
        logp, greedy = [], []
        for begin in range(0, len(targets), HEAD_ROWS):
            chunk = slice(begin, begin + HEAD_ROWS)
            logits = causal.lm_head(hidden[at[chunk]])
            logits = logits.log_softmax(dim=-1, dtype=self.softmax_dtype)
            logp.append(logits.gather(1, targets[chunk, None])[:, 0])
            greedy.append(logits.argmax(dim=-1) == targets[chunk])
        return _Found(torch.cat(logp), torch.cat(greedy), lengths)

    def _send(self, numbers: np.ndarray) -> torch.Tensor:
        """The array on the model's device, without waiting for what is computed there."""
        tensor = torch.from_numpy(numbers)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


class _Found:
    """The log-probabilities of a batch's continuations and whether they are greedy, on their way from the device."""

    def __init__(self, logp: torch.Tensor, greedy: torch.Tensor, lengths: list[int]) -> None:
        self.logp, self.greedy = (each.to("cpu", non_blocking=True) for each in (logp, greedy))
        self.lengths = lengths
        self.there = torch.cuda.Event() if logp.is_cuda else None
        if self.there:
            self.there.record()

    def scores(self) -> list[Score]:
        """Of each continuation in turn; waits for them."""
        if self.there:
            self.there.synchronize()
        logp, greedy = (each.split(self.lengths) for each in (self.logp, self.greedy))
        return [(float(one.sum()), bool(all_of.all())) for one, all_of in zip(logp, greedy, strict=True)]
