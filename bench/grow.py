"""Grow poems on a GPU: a model that was taught to land on end words writes thousands, line by line, for others to learn
from.

    python bench/grow.py --adapter runs/planner/adapter --count haiku=3000,couplet=2000 --out grown.jsonl.gz
    python bench/grow.py --adapter runs/planner/adapter --count sonnet=0 --rows grown.jsonl.gz more.jsonl.gz --out ...

Themes are those of the bundled verses; plans are drawn by how near their words are to the theme under the base. Of the
drafts of a line that land on its word, in the form's syllables, the one stays that the same model finds likeliest
without the plan, of those whose end word follows the others if there are such. Where none lands, the line before is
written again. A sonnet's quatrains and its couplet are each asked for by themselves. At the end, of these poems and of
those of --rows together, the ones that the base finds most natural stay (fewest odd ends, then fewest bits a byte), of
each form `--keep` of them, none with a line of another.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from poet import ODD
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, StaticCache

from iris.model import hardware, load
from iris.poetry import plan
from iris.poetry.forms import FORMS, ends_sentence, judge
from iris.poetry.sound import last_word, line_syllables
from iris.poetry.verses import first_exchange, read_verses

DRAFTS = {"haiku": 12, "limerick": 8, "couplet": 6, "quatrain": 6, "sonnet": 12}
RETURNS = {"haiku": 3, "limerick": 3, "couplet": 2, "quatrain": 2, "sonnet": 8}  # lines that may be written again
ROWS = 4096  # lines that are written at once
REQUESTS = ("Write {} about {}.", "Give me {} on {}.", "I'd like {} about {}.", "Can you write me {} about {}?")


class Sampling(NamedTuple):
    """How the next token is drawn: of the top_k likeliest, of these the share top_p."""

    temperature: float
    top_p: float
    top_k: int


LINES = Sampling(0.8, 0.92, 64)


@dataclass
class Growing:
    """A poem at work: its theme and request, its end words, the lines it has and how often it may still go back."""

    theme: str
    request: str
    words: list[str]
    returns: int
    lines: list[str] = field(default_factory=list)

    def stanza(self) -> tuple[str, list[str], list[str]]:
        """What to ask for next: the request, the end words of what it asks for, and the lines that it has of that."""
        if len(self.words) < 14:
            return self.request, self.words, self.lines
        start = len(self.lines) // 4 * 4
        part = "quatrain" if start < 12 else "couplet"
        return self.request.replace("sonnet", part, 1), self.words[start : start + 4], self.lines[start:]


def lands(line: str, ended: bool, form: str, words: list[str], before: list[str]) -> bool:
    """Whether a draft is the next line: it ends in its word, in the form's syllables, and says nothing twice."""
    number = len(before)
    low, high = FORMS[form].metre[number]
    last = number + 1 == len(words) or (form == "sonnet" and number in (3, 7, 11))
    said = re.findall(r"[a-z']+", line.lower())
    return (
        last_word(line) == words[number]
        and ended == last
        and (not last or ends_sentence(line))
        and any(low <= count <= high for count in line_syllables(line))
        and len(said) > 1
        and 4 * len(set(said)) >= 3 * len(said)
        and line.lower() not in [other.lower() for other in before]
        and line.isascii()
    )


def loops(poem: str) -> bool:
    """Whether more than a fifth of its pairs of words come again."""
    pairs = list(pairwise(re.findall(r"[a-z']+", poem.lower())))
    return len(set(pairs)) < 0.8 * len(pairs)


def grouped(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention of one new token, (rows, heads, 1, size), to a cache whose heads are shared by several of the query's,
    without the copy for each of them that a mask costs elsewhere."""
    rows, heads, size = query.shape[0], query.shape[1], query.shape[3]
    scores = query.reshape(rows, key.shape[1], -1, size) @ key.transpose(2, 3)
    likely = (scores.float() * scaling).masked_fill(~mask, -torch.inf).softmax(-1)
    return (likely.to(value.dtype) @ value).reshape(rows, 1, heads, size), None


AttentionInterface.register("grouped", grouped)


def pad(rows: list[list[int]], fill: int = 0, side: str = "right") -> Tensor:
    """The rows as one tensor, filled up to the longest."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, fill, side).to(hardware.device())


class Writer:
    """Base, adapter and tokenizer on the GPU."""

    def __init__(self, model: str, adapter: Path) -> None:
        source = load.resolve(model).path
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        models: Any = AutoModelForCausalLM
        self.read = partial(models.from_pretrained, source, dtype=torch.bfloat16, use_safetensors=True)
        self.base = self.read().to(hardware.device()).eval()
        self.tuned = self.merged(adapter)
        self.end = self.tokenizer.eos_token_id
        breaks = {i for token, i in self.tokenizer.get_vocab().items() if token and set(token) == {"Ċ"}}
        self.stops = torch.tensor(sorted(breaks | {self.end}), device=hardware.device())

    def merged(self, adapter: Path) -> Any:
        """The base with an adapter in its weights."""
        adapted: Any = PeftModel.from_pretrained(self.read(), adapter)
        return adapted.merge_and_unload().to(hardware.device()).eval()

    def prompt(self, request: str, lines: list[str]) -> list[int]:
        messages = [{"role": "user", "content": request}]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids + self.tokenizer.encode("".join(line + "\n" for line in lines), add_special_tokens=False)

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, mask and positions, padded on the left: (rows, longest)."""
        ids, mask = pad(rows, 0, "left"), pad([[1] * len(row) for row in rows], 0, "left")
        return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)

    @torch.no_grad()
    def near(self, themes: list[str], asked: str = plan.NEAR) -> dict[str, dict[str, float]]:
        """Of each theme the log-likelihood of each end word that is one token, as the next word about it."""
        vocabulary = self.tokenizer.get_vocab()
        found: dict[str, dict[str, float]] = {}
        words = {word: vocabulary["Ġ" + word] for word in plan.end_words() if "Ġ" + word in vocabulary}
        for start in range(0, len(themes), 64):
            part = themes[start : start + 64]
            ids, mask, positions = self.padded([self.tokenizer.encode(asked.format(theme=theme)) for theme in part])
            out = self.base(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
            likely = out.logits[:, -1].float().log_softmax(-1)[:, list(words.values())].tolist()
            found |= {theme: dict(zip(words, row, strict=True)) for theme, row in zip(part, likely, strict=True)}
        return found

    @torch.no_grad()
    def sample(
        self,
        prompts: list[list[int]],
        count: int,
        most: list[int],
        stops: Tensor,
        how: Sampling,
        enough: float = 1.0,
        model: Any = None,
    ) -> list[list[int]]:
        """`count` answers of a model (the tuned one) to each prompt, up to and with the first of `stops`, or of so many
        tokens at most (`most`, prompt by prompt). Ends once `enough` of them have ended."""
        model = model or self.tuned
        ids, mask, positions = self.padded(prompts)
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        rows, begun = len(prompts) * count, ids.shape[1]
        length = (begun + max(most) + 7) // 8 * 8  # which the attention kernels like
        cache = StaticCache(config=model.config, max_cache_len=length)
        layers: list[Any] = cache.layers
        for layer, prompt in zip(layers, out.past_key_values.layers, strict=True):
            keys, values = prompt.keys.repeat_interleave(count, 0), prompt.values.repeat_interleave(count, 0)
            layer.lazy_initialization(keys, values)
            layer.keys[:, :, :begun], layer.values[:, :, :begun] = keys, values
            layer.cumulative_length.fill_(begun)
        seen = torch.zeros(rows, 1, 1, length, dtype=torch.bool, device=ids.device)
        seen[:, 0, 0, :begun] = mask.repeat_interleave(count, 0).bool()
        place = positions[:, -1:].repeat_interleave(count, 0)
        token, number = torch.zeros_like(place), torch.zeros(1, dtype=torch.long, device=ids.device)
        limit = torch.tensor(most, device=ids.device).repeat_interleave(count)
        done, written = torch.zeros_like(limit, dtype=torch.bool), torch.full((rows, max(most)), -1, device=ids.device)

        def draw(logits: Tensor) -> None:
            best, tokens = logits.float().topk(how.top_k)
            chances = (best / how.temperature).softmax(-1)
            chances = chances.masked_fill(chances.cumsum(-1) - chances > how.top_p, 0)
            best = (chances / torch.empty_like(chances).exponential_()).argmax(-1, keepdim=True)
            token.copy_(tokens.gather(1, best).masked_fill(done[:, None], 0))
            written.index_copy_(1, number, token.masked_fill(done[:, None], -1))
            done.logical_or_((token == stops).any(1) | (limit <= number + 1))
            seen.index_copy_(3, number + begun, ~done[:, None, None, None])
            place.add_(1)
            number.add_(1)

        def write() -> None:
            asked: dict[str, Any] = {"input_ids": token, "attention_mask": seen, "position_ids": place}
            draw(model(**asked, past_key_values=cache).logits[:, -1])

        # What a token costs is launching hundreds of small kernels: recorded once as a CUDA graph, they are one launch.
        play: Callable[[], None] = write
        model.set_attn_implementation("grouped")
        if ids.is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(side):
                write()
                graph.capture_begin()
                write()
                graph.capture_end()
            torch.cuda.current_stream().wait_stream(side)
            play = graph.replay
            seen[..., begun:], place[:], written[:] = False, positions[:, -1:].repeat_interleave(count, 0), -1
            number.zero_()
            done.zero_()
            for layer in layers:
                layer.cumulative_length.fill_(begun)
        draw(out.logits[:, -1].repeat_interleave(count, 0))
        for each in range(1, max(most)):
            if each % 4 == 0 and done.float().mean() >= enough:
                break
            play()
        model.set_attn_implementation("sdpa")
        if ids.is_cuda:
            del play, graph
            torch.cuda.empty_cache()  # what the graph held is of no use to others
        return [[token for token in row if token >= 0] for row in written.tolist()]

    def drafts(self, prompts: list[list[int]], count: int, most: int) -> list[list[tuple[str, bool]]]:
        """`count` next lines of each prompt, of at most so many tokens, and whether the poem ended with it."""
        found: list[list[tuple[str, bool]]] = []
        stops = set(self.stops.tolist())
        for start in range(0, len(prompts), max(1, ROWS // count)):
            part = prompts[start : start + max(1, ROWS // count)]
            rows = self.sample(part, count, [most] * len(part), self.stops, LINES, enough=0.97)
            lines = [
                (str(self.tokenizer.decode(row[:-1] if row[-1] in stops else row)).strip(), row[-1] == self.end)
                for row in rows
            ]
            found += [lines[i : i + count] for i in range(0, len(lines), count)]
        return found

    @torch.no_grad()
    def bits(self, model: Any, pairs: list[tuple[list[int], str]]) -> list[float]:
        """Bits of each text after its prompt."""
        rows = [(prompt, self.tokenizer.encode(text, add_special_tokens=False)) for prompt, text in pairs]
        size = 8192 // max((len(text) for _, text in rows), default=1)  # what the vocabulary's logits leave room for
        parts = [self.likelihoods(model, rows[i : i + size]).sum(1) for i in range(0, len(rows), size)]
        return [-nats / math.log(2) for part in parts for nats in part.tolist()]

    @torch.no_grad()
    def odd(self, lines: list[str]) -> list[bool]:
        """Of each line whether its end word hardly follows the words before it, under the base."""
        words = [(line.rpartition(" ")[0] or " ", f" {last_word(line)}") for line in lines]
        rows = [(self.tokenizer.encode(before), self.tokenizer.encode(word)[:1]) for before, word in words]
        parts = [self.likelihoods(self.base, rows[i : i + ROWS])[:, 0] for i in range(0, len(rows), ROWS)]
        return [nats < ODD for part in parts for nats in part.tolist()]

    def likelihoods(self, model: Any, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
        """Log-likelihood of each token of the answers, 0 where there is none: (pairs, longest answer)."""
        logits, wanted = self.logits(model, pairs)
        likely = -torch.nn.functional.cross_entropy(logits, wanted[wanted >= 0], reduction="none")
        return torch.zeros(wanted.shape, device=wanted.device).masked_scatter(wanted >= 0, likely)

    def logits(self, model: Any, pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """What the model says of each token of the answers (tokens, vocabulary), and these, -1 where there is none
        (pairs, longest answer)."""
        ids, wanted = pad([prompt + answer for prompt, answer in pairs]), pad([answer for _, answer in pairs], -1)
        places = pad([[len(prompt) - 1 + i for i in range(len(answer))] for prompt, answer in pairs])
        hidden = model.get_base_model().model(input_ids=ids) if hasattr(model, "get_base_model") else model.model(ids)
        states = hidden.last_hidden_state
        states = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        return torch.nn.functional.linear(states[wanted >= 0], self.base.lm_head.weight).float(), wanted


NEAR: dict[str, dict[str, float]] = {}  # of each theme, how near the end words are; the pool's processes inherit it


def choose(form: str, theme: str, seed: float) -> list[str]:
    """End words for a poem about a theme that is in NEAR."""
    return plan.choose(form, NEAR[theme], random.Random(seed))


def grow(writer: Writer, form: str, count: int, chance: random.Random, pool: ProcessPoolExecutor) -> list[Growing]:
    """As many of `count` poems as come through."""
    themes = chance.choices(list(NEAR), k=count)
    plans = pool.map(choose, [form] * count, themes, [chance.random() for _ in themes], chunksize=64)
    poems = [
        Growing(theme, chance.choice(REQUESTS).format(FORMS[form].asked, theme), words, RETURNS[form])
        for theme, words in zip(themes, plans, strict=True)
        if words
    ]
    finished: list[Growing] = []
    while poems:
        stanzas = [poem.stanza() for poem in poems]
        prompts = [writer.prompt(plan.name_plan(request, words), lines) for request, words, lines in stanzas]
        written = enumerate(writer.drafts(prompts, DRAFTS[form], 4 + 2 * FORMS[form].metre[0][1]))
        drafts = list(dict.fromkeys((i, line, ended) for i, lines in written for line, ended in lines))
        asked = [(line, ended, form, poems[i].words, poems[i].lines) for i, line, ended in drafts]
        kept = pool.map(lands, *zip(*asked, strict=True), chunksize=256)
        landed = [(i, line) for (i, line, _), good in zip(drafts, kept, strict=True) if good]
        plain = [(writer.prompt(stanzas[i][0], stanzas[i][2]), line) for i, line in landed]
        best: dict[int, tuple[bool, float, str]] = defaultdict(lambda: (True, math.inf, ""))
        odd, bits = writer.odd([line for _, line in landed]), writer.bits(writer.tuned, plain)
        for (i, line), is_odd, said in zip(landed, odd, bits, strict=True):
            best[i] = min(best[i], (is_odd, said / len(line), line))
        going: list[Growing] = []
        for i, poem in enumerate(poems):
            if i in best:
                poem.lines.append(best[i][-1])
            elif poem.returns:
                poem.returns, poem.lines = poem.returns - 1, poem.lines[:-1]
            else:
                continue
            (finished if len(poem.lines) == len(poem.words) else going).append(poem)
        poems = going
    return finished


def natural(writer: Writer, poems: list[Growing], form: str, keep: int) -> list[Growing]:
    """Of the poems those that the base finds most natural: strict, no loops, no line that another has."""
    poems = [poem for poem in poems if judge(poem.lines, form).strict and not loops("\n".join(poem.lines))]
    texts = ["\n".join(poem.lines) for poem in poems]
    prompts = [writer.prompt(poem.request, []) for poem in poems]
    bits = writer.bits(writer.base, list(zip(prompts, texts, strict=True)))
    ends = iter(writer.odd([line for poem in poems for line in poem.lines]))
    odd = [mean(next(ends) for _ in poem.lines) for poem in poems]
    order = sorted(range(len(poems)), key=lambda i: (odd[i], bits[i] / len(texts[i])))
    seen: set[str] = set()
    chosen: list[int] = []
    for i in order:
        lines = {line.lower() for line in poems[i].lines}
        if len(chosen) < keep and seen.isdisjoint(lines):
            seen |= lines
            chosen.append(i)
    print(f"{form}: {len(chosen)} of {len(poems)} stay")
    if chosen:
        print(f"{form}: odd ends {mean(odd):.2f} -> {mean(odd[i] for i in chosen):.2f}")
    return [poems[i] for i in chosen]


def read_rows(file: Path) -> Iterator[tuple[str, Growing]]:
    """The poems of an earlier run, each with its form; of one that was ended, what is whole."""
    with gzip.open(file, "rt", encoding="utf-8") as lines, contextlib.suppress(EOFError):
        for row in map(json.loads, lines):
            asked, poem = first_exchange(row)
            request, _, words = asked.partition(f" {plan.ASKED} ")
            yield row["form"], Growing("", request, words.rstrip(".").split(", "), 0, poem.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--count", default="haiku=3000,limerick=3500,couplet=2000,quatrain=3000,sonnet=500")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="of earlier runs, to choose from as well")
    parser.add_argument("--keep", type=int, default=3000, help="poems of each form, at most")
    parser.add_argument("--workers", type=int, help="processes that judge (default: one a core)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)
    writer, chance = Writer(args.model, args.adapter), random.Random(args.seed)
    NEAR.update(writer.near(sorted({row["theme"] for row in read_verses("train")})))
    earlier = [row for file in args.rows for row in read_rows(file)]
    with ProcessPoolExecutor(args.workers) as pool, gzip.open(args.out, "wt", encoding="utf-8") as file:
        for form, count in (part.split("=") for part in args.count.split(",")):
            began = time.monotonic()
            grown = grow(writer, form, int(count), chance, pool)
            spent = time.monotonic() - began
            print(f"{form}: {len(grown)} of {count} came through, {spent:.0f} s", flush=True)
            for poem in natural(writer, grown + [poem for of, poem in earlier if of == form], form, args.keep):
                turns = [("human", plan.name_plan(poem.request, poem.words)), ("gpt", "\n".join(poem.lines))]
                row = {"conversations": [{"from": speaker, "value": text} for speaker, text in turns], "form": form}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
