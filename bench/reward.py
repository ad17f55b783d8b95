"""Learn from reward, after the model has learned to land: poems sampled as they come, the strict ones made likelier.

    python bench/reward.py --run runs/planner --out runs/voice [--steps 44]

Group-relative policy optimization (GRPO; Shao et al., arXiv 2402.03300), on policy: each step asks for poems of plans
drawn as in bench/grow.py, SAMPLES of each, and rewards a strict poem with 1, any other with a share for its lines that
land in the form's syllables. What keeps the poems from growing alike: a poem pays for words in a row that poems of
other plans have too, and for going far from what the adapter wrote at first; and the verses are learned from in every
step as well. --out gets the run's record, with the share of strict poems in each step.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from grow import REQUESTS, Sampling, Writer, loops
from peft import PeftModel
from transformers import AutoModelForCausalLM

from iris import record
from iris.model import hardware, load
from iris.poetry import plan
from iris.poetry.forms import FORMS, ends_weakly, judge
from iris.poetry.sound import last_word, line_syllables
from iris.poetry.verses import read_verses

SAMPLES = 16  # poems of one plan
TOKENS = {"haiku": 36, "limerick": 80, "couplet": 40, "quatrain": 72, "sonnet": 230}
POEMS = Sampling(0.9, 0.98, 128)
ALIKE = 0.5  # what a poem pays if all of its words in a row, by threes, are those of two other plans' poems
FAR = 0.15  # what it pays for each nat a token by which it is likelier than at first


def reward(poem: str, ended: bool, form: str, words: list[str]) -> tuple[float, bool]:
    """1 for a strict poem that lands on its words and ends by itself, up to 0.5 for the lines of any other that do; and
    whether it is strict."""
    lines = [line.strip() for line in poem.strip().splitlines() if line.strip()]
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
    return value - 0.5 * poor - weak, strict


def alike(texts: list[str]) -> list[float]:
    """Of each poem (SAMPLES a plan) the share of its words in a row, by threes, that poems of two other plans have."""
    words = [re.findall(r"[a-z']+", text.lower()) for text in texts]
    threes = [set(zip(each, each[1:], each[2:], strict=False)) for each in words]
    plans: Counter[tuple[str, str, str]] = Counter()
    for i in range(0, len(texts), SAMPLES):
        plans.update(set().union(*threes[i : i + SAMPLES]))
    return [sum(plans[three] > 2 for three in each) / max(1, len(each)) for each in threes]


class Learner(Writer):
    """The writer, whose `tuned` is the policy's copy to sample from, and the policy itself."""

    def __init__(self, model: str, adapter: Path) -> None:
        super().__init__(model, adapter)
        read: dict[str, Any] = {"dtype": torch.bfloat16, "use_safetensors": True}
        models: Any = AutoModelForCausalLM
        base = models.from_pretrained(load.resolve(model).path, **read)
        self.policy: Any = PeftModel.from_pretrained(base, adapter, is_trainable=True).to(hardware.device())
        self.first = copy.deepcopy(self.tuned)
        self.ends = torch.tensor([self.end], device=hardware.device())
        for weight in self.policy.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()

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
        found: list[float] = []
        for i in range(0, len(poems), 64):
            now, first = (self.likelihoods(model, poems[i : i + 64]) for model in (self.tuned, self.first))
            found += ((now - first).sum(1) / (now != 0).sum(1).clamp(min=1)).tolist()
        return found

    def learn(self, poems: list[tuple[list[int], list[int]]], advantage: list[float]) -> None:
        """Add to the gradients what makes poems with an advantage likelier, each poem counting as much."""
        order = sorted(range(len(poems)), key=lambda i: len(poems[i][0]) + len(poems[i][1]))
        for i in range(0, len(order), 64):
            part = order[i : i + 64]
            likely = self.likelihoods(self.policy, [poems[j] for j in part])
            weight = torch.tensor([advantage[j] / len(poems[j][1]) for j in part], device=likely.device)
            (-(weight[:, None] * likely).sum() / len(poems)).backward()

    def likelihoods(self, model: Any, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """Log-likelihood of each token of the answers, 0 where there is none: (pairs, longest answer)."""
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        most = max(len(answer) for _, answer in pairs)
        ids = torch.zeros(len(pairs), longest, dtype=torch.long)
        wanted, places = torch.full((len(pairs), most), -1), torch.zeros(len(pairs), most, dtype=torch.long)
        for i, (prompt, answer) in enumerate(pairs):
            ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            wanted[i, : len(answer)] = torch.tensor(answer)
            places[i, : len(answer)] = torch.arange(len(answer)) + len(prompt) - 1
        ids, wanted, places = (each.to(hardware.device()) for each in (ids, wanted, places))
        hidden = model.get_base_model().model(input_ids=ids) if hasattr(model, "get_base_model") else model.model(ids)
        states = hidden.last_hidden_state
        states = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        kept = wanted >= 0
        logits = torch.nn.functional.linear(states[kept], self.base.lm_head.weight).float()
        out = torch.zeros(wanted.shape, device=wanted.device)
        return out.masked_scatter(kept, -torch.nn.functional.cross_entropy(logits, wanted[kept], reduction="none"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="of iris train, whose adapter is to learn")
    parser.add_argument("--plans", default="haiku=36,limerick=9,quatrain=3", help="so many of each form in a step")
    parser.add_argument("--steps", type=int, default=44)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--workers", type=int, help="processes that judge (default: one a core)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)
    learner, chance, began = Learner("smollm2", args.run / "adapter"), random.Random(args.seed), time.monotonic()
    counts = {form: int(count) for form, count in (part.split("=") for part in args.plans.split(","))}
    near = learner.near(sorted({row["theme"] for row in read_verses("train")}))
    verses = [
        (learner.prompt(asked["value"], []), [*learner.tokenizer.encode(poem["value"]), learner.end])
        for asked, poem in (row["conversations"][:2] for row in read_verses("train"))
    ]
    trained = [weight for weight in learner.policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    told = []
    with ProcessPoolExecutor(args.workers) as pool:
        for step in range(args.steps):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * min(1.0, (step + 1) / 5, 2 * (1 - step / args.steps))
            learner.refresh()
            forms = [form for form, count in counts.items() for _ in range(count)]
            themes = [chance.choice(list(near)) for _ in forms]
            plans = [plan.choose(form, near[theme], chance) for form, theme in zip(forms, themes, strict=True)]
            prompts = []
            for form, theme, words in zip(forms, themes, plans, strict=True):
                request = chance.choice(REQUESTS).format(FORMS[form].asked, theme)
                prompts.append(learner.prompt(plan.name_plan(request, words), []))
            answers = learner.sample(prompts, SAMPLES, [TOKENS[form] for form in forms], learner.ends, POEMS)

            texts = [str(learner.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
            each_form, each_plan = ([each for each in what for _ in range(SAMPLES)] for what in (forms, plans))
            ended = [answer[-1] == learner.end for answer in answers]
            found = list(pool.map(reward, texts, ended, each_form, each_plan, chunksize=64))
            poems = [(prompts[i // SAMPLES], answer) for i, answer in enumerate(answers)]
            same, far = alike(texts), learner.far(poems)
            paid = [value - ALIKE * s - FAR * f for (value, _), s, f in zip(found, same, far, strict=True)]
            group_of = torch.tensor(paid).view(-1, SAMPLES)
            advantage = (group_of - group_of.mean(1, True)) / (group_of.std(1, keepdim=True) + 0.1)

            learner.learn(poems, advantage.flatten().tolist())
            likely = learner.likelihoods(learner.policy, chance.sample(verses, 64))
            (-likely.sum() / (likely != 0).sum()).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            strict = {
                form: mean(ok for (_, ok), its in zip(found, each_form, strict=True) if its == form) for form in counts
            }
            told.append({"seconds": round(time.monotonic() - began), "far": mean(far), "alike": mean(same)} | strict)
            print(json.dumps({"step": step} | {key: round(value, 3) for key, value in told[-1].items()}), flush=True)
    learner.policy.save_pretrained(args.out / "adapter")
    made = record.read(args.run / "record.json")
    made.adapter = (made.adapter or {}) | {"digest": record.folder_digest(args.out / "adapter")}
    made.measures["reward"] = {"plans": counts, "learning_rate": args.learning_rate, "steps": told}
    record.write(made, args.out / "record.json")


if __name__ == "__main__":
    main()
