"""Learn from reward, after the model has learned to land: poems sampled as they come, the strict ones made likelier.

    python bench/reward.py --run runs/planner --out runs/voice [--minutes 6]

Group-relative policy optimization (GRPO; Shao et al., arXiv 2402.03300), on policy: each step asks for poems of plans
drawn as in bench/grow.py, SAMPLES of each, and rewards a strict poem with 1, any other with a share for its lines that
land in the form's syllables. Besides, each line is rewarded for landing by itself, so that a haiku or a sonnet learns
from the lines that do long before all of them do, and for an end word that follows the words before it, as a model that
is told where to land does so at any price. What keeps the poems from growing alike: a poem pays for words in a
row that poems of other plans have too, and for going far from what the adapter wrote at first. Verses by people stay as
likely as they were, and prose (answers in a chat, answers outside of one, plain text) as the base has it, or the
adapter of --prose: their divergence is paid for as well, or the held-out verses and the benchmarks get worse.
--out gets the adapter, and the run's record with the share of strict poems in each step.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from grow import REQUESTS, Sampling, Writer, loops
from peft import PeftModel
from poet import threes

from iris import record
from iris.model import hardware
from iris.poetry import plan
from iris.poetry.forms import FORMS, ends_weakly, judge
from iris.poetry.sound import last_word, line_syllables
from iris.poetry.verses import first_exchange, read_verses
from iris.train import lora

SAMPLES = 16  # poems of one plan
TOKENS = {"haiku": 36, "limerick": 80, "couplet": 40, "quatrain": 72, "sonnet": 230}
POEMS = Sampling(0.9, 0.98, 128)
ALIKE = 0.5  # what a poem pays if all of its words in a row, by threes, are those of two other plans' poems
FAR = 0.15  # what it pays for each nat a token by which it is likelier than at first
ODD_END = 0.3  # what it pays if none of its end words follows the words before it
STAY = 5.0  # how much it weighs, beside the reward, that verses and prose stay as likely as they should
PROSE = ("Q: What should one know about {theme}?\nA:", "{theme} is")  # what the base goes on from outside of a chat
WORDS = "A poem about {theme} with the words"  # what comes next are words of any kind, where plan.NEAR has things


def lines_of(poem: str) -> list[str]:
    """Its lines that are not empty."""
    return [line.strip() for line in poem.splitlines() if line.strip()]


def reward(poem: str, ended: bool, form: str, words: list[str]) -> tuple[float, bool, list[bool]]:
    """1 for a strict poem that lands on its words and ends by itself, up to 0.5 for the lines of any other that do; and
    whether it is strict, and line by line whether it lands."""
    lines = lines_of(poem)
    strict = ended and bool(judge(poem.strip(), form).strict)
    metre = FORMS[form].metre
    good = [
        last_word(line) == word and any(low <= count <= high for count in line_syllables(line))
        for line, word, (low, high) in zip(lines, words, metre, strict=False)
    ]
    share = sum(good) / max(len(lines), len(words))
    poor = loops(poem) or not poem.isascii() or len({line.lower() for line in lines}) < len(lines)
    poor = poor or any(len(re.findall(r"[a-z']+", line.lower())) < 2 for line in lines)
    weak = sum(map(ends_weakly, lines)) / max(1, len(lines))
    value = 1.0 if strict and all(good) else 0.8 if strict else 0.5 * share * (1 if ended else 0.5)
    return value - 0.5 * poor - weak, strict, good


def standard(values: torch.Tensor) -> torch.Tensor:
    """Values of the poems of one plan (plans, SAMPLES, ...) as their distance from its mean, in deviations."""
    return (values - values.mean(1, True)) / (values.std(1, keepdim=True) + 0.1)


def alike(texts: list[str]) -> list[float]:
    """Of each poem (SAMPLES a plan) the share of its words in a row, by threes, that poems of two other plans have."""
    phrases = [threes(text) for text in texts]
    plans: Counter[tuple[str, str, str]] = Counter()
    for i in range(0, len(texts), SAMPLES):
        plans.update(set().union(*phrases[i : i + SAMPLES]))
    return [sum(plans[three] > 2 for three in each) / max(1, len(each)) for each in phrases]


def parts(poems: list[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
    """The poems' numbers by length, in parts of 16,384 tokens with their padding at most."""
    part: list[int] = []
    for i in sorted(range(len(poems)), key=lambda i: len(poems[i][0]) + len(poems[i][1])):
        if part and (len(part) + 1) * (len(poems[i][0]) + len(poems[i][1])) > 16384:
            yield part
            part = []
        part.append(i)
    yield part


class Learner(Writer):
    """The writer, whose `tuned` is the policy's copy to sample from, and the policy itself."""

    def __init__(self, model: str, adapter: Path, prose: Path | None = None) -> None:
        super().__init__(model, adapter)
        self.prose = self.merged(prose) if prose else self.base
        self.policy: Any = PeftModel.from_pretrained(self.read(), adapter, is_trainable=True).to(hardware.device())
        self.first = copy.deepcopy(self.tuned)
        self.ends = torch.tensor([self.end], device=hardware.device())
        self.breaks = set(self.stops.tolist()) - {self.end}
        for weight in self.policy.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        lora.speed_up(self.policy)

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the copy to sample from the policy's weights, rounded once from the base's."""
        copies, bases = dict(self.tuned.named_modules()), dict(self.base.named_modules())
        for name, layer in self.policy.base_model.model.named_modules():
            if hasattr(layer, "lora_A"):
                delta = layer.get_delta_weight("default").float()
                copies[name].weight.copy_(bases[name].weight.float() + delta)

    @torch.no_grad()
    def far(self, poems: list[tuple[list[int], list[int]]]) -> list[float]:
        """By how much likelier each answer is to its prompt than it was at first: nats a token."""
        found = [0.0] * len(poems)
        for part in parts(poems):
            now, first = (self.likelihoods(model, [poems[i] for i in part]) for model in (self.tuned, self.first))
            for i, nats in zip(part, ((now - first).sum(1) / (now != 0).sum(1).clamp(min=1)).tolist(), strict=True):
                found[i] = nats
        return found

    def learn(self, poems: list[tuple[list[int], list[int]]], advantage: torch.Tensor) -> None:
        """Add to the gradients what makes lines with an advantage (poems, lines) likelier, each poem counting as
        much."""
        for part in parts(poems):
            likely = self.likelihoods(self.policy, [poems[i] for i in part])
            weight = torch.zeros(likely.shape)
            for row, i in enumerate(part):
                breaks = torch.tensor([token in self.breaks for token in poems[i][1]])
                line = (breaks.cumsum(0) - breaks.long()).clamp(max=advantage.shape[1] - 1)
                weight[row, : len(line)] = advantage[i, line] / len(line)
            (-(weight.to(likely.device) * likely).sum() / len(poems)).backward()

    def stay(self, like: Any, rows: list[tuple[list[int], list[int]]]) -> float:
        """Add to the gradients what keeps the answers to rows as likely as the model `like` has them, whatever else
        might be said: the Kullback-Leibler divergence from it, in nats a token."""
        with torch.no_grad():
            wanted = self.logits(like, rows)[0].log_softmax(-1)
        now = self.logits(self.policy, rows)[0].log_softmax(-1)
        divergence = torch.nn.functional.kl_div(now, wanted, log_target=True, reduction="batchmean")
        (STAY * divergence).backward()
        return float(divergence.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="of iris train, whose adapter is to learn")
    parser.add_argument("--prose", type=Path, help="an adapter that prose is to stay as likely by (default: the base)")
    parser.add_argument("--plans", default="haiku=36,limerick=8,couplet=2,quatrain=4,sonnet=16", help="of each step")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--workers", type=int, help="processes that judge (default: one a core)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)
    learner, chance = Learner("smollm2", args.run / "adapter", args.prose), random.Random(args.seed)
    counts = {form: int(count) for form, count in (part.split("=") for part in args.plans.split(","))}
    forms = [form for form, count in counts.items() for _ in range(count)]
    forms.sort(key=lambda form: form == "sonnet")  # last, to be sampled apart: they are three times as long
    short = len(forms) - forms.count("sonnet")
    themes = sorted({row["theme"] for row in read_verses("train")})
    nears = [learner.near(themes, asked) for asked in (plan.NEAR, WORDS)]
    verses = [
        (learner.prompt(request, []), [*learner.tokenizer.encode(poem), learner.end])
        for request, poem in map(first_exchange, read_verses("train"))
    ]
    asked = [learner.prompt(f"Tell me about {theme}.", []) for theme in themes[:512]]
    asked += [learner.tokenizer.encode(text.format(theme=theme)) for theme in themes[:512] for text in PROSE]
    answered = learner.sample(asked, 1, [64] * len(asked), learner.ends, POEMS, model=learner.base)
    prose = list(zip(asked, answered, strict=True))
    trained = [weight for weight in learner.policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    steps: list[dict[str, float]] = []
    began, spent = time.monotonic(), 0.0
    with ProcessPoolExecutor(args.workers) as pool:
        while spent < 1:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * min(1.0, (len(steps) + 1) / 5, 2 * (1 - spent))
            learner.refresh()
            plans, prompts = [], []
            for form in forms:
                theme, near = chance.choice(themes), chance.choice(nears)
                plans.append(plan.choose(form, near[theme], chance))
                request = chance.choice(REQUESTS).format(FORMS[form].asked, theme)
                prompts.append(learner.prompt(plan.name_plan(request, plans[-1]), []))
            answers = []
            for part in (slice(short), slice(short, None)):
                if most := [TOKENS[form] for form in forms[part]]:
                    answers += learner.sample(prompts[part], SAMPLES, most, learner.ends, POEMS)

            texts = [str(learner.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
            each_form, each_plan = ([each for each in what for _ in range(SAMPLES)] for what in (forms, plans))
            ended = [answer[-1] == learner.end for answer in answers]
            found = list(pool.map(reward, texts, ended, each_form, each_plan, chunksize=16))
            poems = [(prompts[i // SAMPLES], answer) for i, answer in enumerate(answers)]
            same, far = alike(texts), learner.far(poems)
            stanzas = [lines_of(text)[:14] for text in texts]
            found_odd = iter(learner.odd([line for stanza in stanzas for line in stanza]))
            odd = [[next(found_odd) for _ in stanza] for stanza in stanzas]
            lines, paid = torch.zeros(len(poems), 14), []
            for row, (value, _, good), s, f, o in zip(lines, found, same, far, odd, strict=True):
                paid.append(value - ALIKE * s - FAR * f - ODD_END * sum(o) / max(1, len(o)))
                row[: len(good)] = torch.tensor(good) * (1 - 0.5 * torch.tensor(o[: len(good)]).float())
            advantage = standard(torch.tensor(paid).view(-1, SAMPLES, 1)) + standard(lines.view(-1, SAMPLES, 14))

            learner.learn(poems, advantage.flatten(0, 1))
            moved = [learner.stay(learner.first, chance.sample(verses, 64))]
            moved.append(learner.stay(learner.prose, chance.sample(prose, 64)))
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            strict = {f: mean(one[1] for one, of in zip(found, each_form, strict=True) if of == f) for f in counts}
            means = {"far": mean(far), "alike": mean(same), "odd_ends": mean(end for ends in odd for end in ends)}
            means |= {"verses_moved": moved[0], "prose_moved": moved[1]}
            steps.append({"seconds": round(time.monotonic() - began)} | means | strict)
            spent = (time.monotonic() - began) / (60 * args.minutes)
            rounded = {key: round(value, 3) for key, value in steps[-1].items()}
            print(json.dumps({"step": len(steps)} | rounded), flush=True)
            if len(steps) % 20 == 0 or spent >= 1:
                learner.policy.save_pretrained(args.out / "adapter")
    made = record.read(args.run / "record.json")
    made.adapter = (made.adapter or {}) | {"digest": record.folder_digest(args.out / "adapter")}
    told = {"plans": counts, "learning_rate": args.learning_rate, "prose": str(args.prose or "base"), "steps": steps}
    made.measures["reward"] = [*made.measures.get("reward", []), told]
    record.write(made, args.out / "record.json")


if __name__ == "__main__":
    main()
