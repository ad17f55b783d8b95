"""lm-eval's Hugging Face model, with all continuations of one context scored in one row.

lm-eval runs a multiple-choice item once an answer: the context is computed four to eight times. Here a row holds the
context once and its continuations after it, each at the positions it would have alone, and each attending to the
context and to itself only. The head is applied to the positions that are scored and to no others, so that the logits
of whole prompts never exist. The scores are the same sums of the same log-probabilities. Texts are tokenized in one
parallel call, each once: lm-eval tokenizes a context again for every continuation, one text at a time.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

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
            for batch in self._batches(groups, lengths):
                found = self._score([[requests[i] for i in group] for group in batch])
                numbers = [i for group in batch for i in group]
                scores |= dict(zip(numbers, found, strict=True))
                bar.update(len(numbers))
        return [scores[i] for i in range(len(requests))]

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
    def _score(self, groups: list[list[Request]]) -> list[Score]:
        """Scores of the requests of some contexts, in order; a group is one context with its continuations."""
        width = max(self._row_length(group) for group in groups)
        ids = torch.zeros(len(groups), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        part = torch.full_like(ids, -1)  # 0 the context, 1... the continuations, -1 padding
        places: list[tuple[int, int]] = []  # row and column of each scored prediction
        wanted: list[int] = []
        for row, group in enumerate(groups):
            context = group[0][1]
            end = len(context)
            ids[row, :end] = torch.tensor(context)
            positions[row, :end] = torch.arange(end)
            part[row, :end] = 0
            for number, (_, _, answer) in enumerate(group, 1):
                length = len(answer) - 1  # the last token is predicted, not read
                ids[row, end : end + length] = torch.tensor(answer[:-1], dtype=torch.long)
                positions[row, end : end + length] = len(context) + torch.arange(length)
                part[row, end : end + length] = number
                places += [(row, len(context) - 1), *((row, end + k) for k in range(length))]
                wanted += answer
                end += length
        same = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
        mask = (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
        causal = self.model.get_base_model() if self.peft else self.model
        hidden = causal.model(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=mask.to(self.device),
            use_cache=False,
        ).last_hidden_state
        rows, columns = torch.tensor(places, device=self.device).T
        targets = torch.tensor(wanted, device=self.device)
        logp, greedy = [], []
        for begin in range(0, len(targets), HEAD_ROWS):
            chunk = slice(begin, begin + HEAD_ROWS)
            logits = causal.lm_head(hidden[rows[chunk], columns[chunk]])
            logits = logits.log_softmax(dim=-1, dtype=self.softmax_dtype)
            logp.append(logits.gather(1, targets[chunk, None])[:, 0])
            greedy.append(logits.argmax(dim=-1) == targets[chunk])
        lengths = [len(answer) for group in groups for _, _, answer in group]
        sums = [float(each.sum()) for each in torch.cat(logp).cpu().split(lengths)]
        return list(zip(sums, (bool(each.all()) for each in torch.cat(greedy).cpu().split(lengths)), strict=True))
