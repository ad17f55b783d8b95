"""lm-eval's Hugging Face model, with all continuations of one context scored in one row, and with many adapters.

lm-eval runs a multiple-choice item once an answer: the context is computed four to eight times. Here a row holds the
context once and its continuations after it, each at the positions it would have alone, and each attending to the
context and to itself only. The head is applied to the positions that are scored and to no others, so that the logits
of whole prompts never exist. The scores are the same sums of the same log-probabilities. Texts are tokenized in one
parallel call, each once: lm-eval tokenizes a context again for every continuation, one text at a time.
"""

import math
from itertools import groupby
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from peft import PeftModel
from tqdm import tqdm

from .. import RunError

HEAD_ROWS = 1024  # positions whose logits exist at one time
BATCH_TOKENS = 32768  # of a batch, padding included: enough for any GPU, and a bound on its memory

# ((context, continuation), context ids, continuation ids), as lm-eval makes it
Request = tuple[tuple[str, str], list[int], list[int]]
Score = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding would say the same


class SharedContextLM(HFLM):
    """HFLM for decoder-only models, by itself or with one of several adapters; a batch holds at most `batch_size`
    continuations and BATCH_TOKENS tokens, and one context at the least."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._encoded: dict[str, list[int]] = {}
        if hasattr(self, "accelerator"):  # HFLM counts GPUs only, and by their number on one host
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def use(self, adapter: str | None) -> None:
        """Score with the PEFT adapter in this folder from now on, which stays loaded; with None the base alone."""
        name = (adapter or "").encode().hex()  # torch takes no dots in the name of a module
        if adapter and not isinstance(self.model, PeftModel):
            self._model = PeftModel.from_pretrained(self.model, adapter, adapter_name=name)
        elif adapter and name not in self.model.peft_config:
            self.model.load_adapter(adapter, adapter_name=name)
        layers: Any = self.model.base_model
        if adapter:
            layers.enable_adapter_layers()
            self.model.set_adapter(name)
        elif isinstance(self.model, PeftModel):
            layers.disable_adapter_layers()
        self.model.eval()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Score]:
        """lm-eval's own, with the texts it is going to tokenize tokenized beforehand, once for all adapters. RunError
        where a score is not finite."""
        pairs = [request.args for request in requests if request.args[0]]
        texts = {text for context, answer in pairs for text in (context + answer, context.rstrip())}
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = [text for text in texts if not has_bos_prefix(text, bos)]
        if not self._encoded.keys() >= set(plain):
            special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            found = self.tokenizer(plain, return_attention_mask=False, **special)["input_ids"]
            self._encoded = dict(zip(plain, found, strict=True))
        scores = super().loglikelihood(requests, disable_tqdm)
        if broken := sum(not math.isfinite(logp) for logp, _ in scores):
            raise RunError(f"{broken} of {len(scores)} log-likelihoods are not finite: model or adapter is broken")
        return list(scores)

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a text, as lm-eval's own."""
        if not args and not kwargs and string in self._encoded:
            return self._encoded[string]
        return list(super().tok_encode(string, *args, **kwargs))

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
        # a row holds a context and its continuations, but for their last tokens, which are predicted and not read
        widths = {one[0]: len(requests[one[0]][1]) + sum(len(requests[i][2]) - 1 for i in one) for one in groups}
        batches: list[list[list[int]]] = []
        answers = width = 0
        for group in sorted(groups, key=lambda group: -widths[group[0]]):  # if memory is short, know it now
            if not batches or answers + len(group) > self.batch_size or (len(batches[-1]) + 1) * width > BATCH_TOKENS:
                batches.append([])
                answers, width = 0, widths[group[0]]
            batches[-1].append(group)
            answers += len(group)
        scored = []  # left on the device until all is asked for: the next batch is built while this one is computed
        for batch in tqdm(batches, disable=disable_tqdm or self.rank != 0, desc="Scoring continuations"):
            scored.append((batch, *self._score(batch, requests, widths[batch[0][0]])))
        for batch, logp, greedy in scored:
            numbers = [i for group in batch for i in group]
            sizes = [len(requests[i][2]) for i in numbers]
            for i, one, same in zip(numbers, logp.cpu().split(sizes), greedy.cpu().split(sizes), strict=True):
                scores[i] = float(one.sum()), bool(same.all())
        return [scores[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score(self, groups: list[list[int]], requests: list[Request], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some contexts' requests (a group numbers one context's continuations), in their order: the log-probability
        of every continuation's token, and whether it is the greedy one. `width`: tokens of the longest row."""
        ids = np.zeros((len(groups), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        part = np.full_like(ids, -1)  # 0 the context, 1... the continuations, -1 padding
        places: list[int] = []  # of each scored prediction, in the flattened rows
        wanted: list[int] = []
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
                end += length
        at, targets = self._send(np.array(places)), self._send(np.array(wanted))
        parts = self._send(part)
        same = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
        mask = (same & torch.ones(width, width, dtype=torch.bool, device=self.device).tril())[:, None]
        causal: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        hidden = causal.model(
            input_ids=self._send(ids), position_ids=self._send(positions), attention_mask=mask, use_cache=False
        ).last_hidden_state.flatten(0, 1)
        logp, greedy = [], []
        for begin in range(0, len(targets), HEAD_ROWS):
            chunk = slice(begin, begin + HEAD_ROWS)
            logits = causal.lm_head(hidden[at[chunk]]).log_softmax(dim=-1, dtype=self.softmax_dtype)
            logp.append(logits.gather(1, targets[chunk, None])[:, 0])
            greedy.append(logits.argmax(dim=-1) == targets[chunk])
        return torch.cat(logp), torch.cat(greedy)

    def _send(self, numbers: np.ndarray) -> torch.Tensor:
        """The array on the model's device, without waiting for what is computed there."""
        tensor = torch.from_numpy(numbers)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
