"""The poetry tasks: bits per byte against torch by hand, poems scored as the README of the tasks says."""

import importlib.util
import json
import math
import sys

import pytest
import torch
from evaluations import samples
from small_llama import make_model

from iris import record
from iris.data import template
from iris.evaluate import tasks
from iris.evaluate.evaluate import evaluate
from iris.poetry.verses import PATH, first_exchange, is_held_out, read_verses

REQUESTS = 6


def load(name):
    spec = importlib.util.spec_from_file_location(name, tasks.OURS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


form = load("poetry_form")
REQUEST_ROWS = [json.loads(line) for line in (tasks.OURS / "poetry_form.jsonl").read_text().splitlines()]

HAIKU = "Old pond, still as glass:\na frog jumps into its sky,\nand the sky comes back."


# --- verses and their split ------------------------------------------------------------------------------------------


def test_the_split_is_fixed_and_whole():
    train, held_out = read_verses("train"), read_verses("held_out")
    assert len(train) + len(held_out) == len(PATH.read_text(encoding="utf-8").splitlines())
    seen = {first_exchange(row)[1] for row in train}
    assert not [row for row in held_out if first_exchange(row)[1] in seen]
    assert not is_held_out(held_out[0] | {"split": "train"})
    assert (len(held_out), record.digest_of(held_out)) == (71, "943eb5672a4d24be")  # so its scores stay comparable
    with pytest.raises(ValueError, match="train or held_out"):
        read_verses("test")


# --- poetry_verses ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def measured(tmp_path_factory, small_model):
    """Both tasks on a small random model; the path of the record."""
    out = tmp_path_factory.mktemp("poetry") / "tiny.json"
    evaluate(str(small_model), ["poetry"], out, limit=REQUESTS)
    return out


def exchange(tokenizer, row):
    """An exchange: its prompt in the template's rendering, the poem, the ids of the whole."""
    request, poem = first_exchange(row)
    messages = [{"role": "user", "content": request}]
    prompt = template.render(tokenizer, messages, add_generation_prompt=True)
    whole = template.encode(tokenizer, [*messages, {"role": "assistant", "content": poem}]).input_ids
    return prompt, poem, whole


def bits_by_hand(model, tokenizer, row):
    """Bits of the poem's tokens in the template's own rendering of the exchange, and the poem's bytes."""
    prompt, poem, whole = exchange(tokenizer, row)
    begin = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    end = begin + len(tokenizer(poem, add_special_tokens=False).input_ids)
    assert tokenizer.decode(whole[begin:end]) == poem
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    nats = sum(float(logp[i - 1, whole[i]]) for i in range(begin, end))
    return -nats / math.log(2), len(poem.encode())


def test_bits_per_byte_are_those_of_the_poem_alone(measured, small_model, small_tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    pairs = [bits_by_hand(model, small_tokenizer, row) for row in read_verses("held_out")[:REQUESTS]]
    columns = record.read_items(measured)["poetry_verses"]
    assert columns["weight"] == [size for _, size in pairs]
    assert columns["value"] == pytest.approx([bits / size for bits, size in pairs], rel=1e-4)
    entry = record.read(measured).tasks["poetry_verses"]
    assert entry["value"] == pytest.approx(sum(bits for bits, _ in pairs) / sum(size for _, size in pairs), rel=1e-4)
    assert entry["higher_is_better"] is False
    assert 0 < entry["stderr"] < 1


def test_the_standard_error_is_near_the_bootstrap_of_the_ratio():
    import numpy as np

    rng = np.random.default_rng(0)
    size = rng.integers(50, 600, 60)
    nats = -size * rng.normal(1.4, 0.2, 60)
    picks = rng.integers(0, 60, (20_000, 60))
    drawn = -nats[picks].sum(1) / size[picks].sum(1) / math.log(2)
    ours = load("poetry_verses").bits_per_byte_stderr(list(zip(nats.tolist(), size.tolist(), strict=True)))
    assert ours == pytest.approx(drawn.std(), rel=0.05)


def test_prompt_and_poem_are_tokenized_as_the_template_writes_them(smollm2_tokenizer):
    for row in read_verses("held_out"):
        prompt, poem, whole = exchange(smollm2_tokenizer, row)
        ids = smollm2_tokenizer(prompt + poem, add_special_tokens=False).input_ids
        assert ids == whole[: len(ids)]


def test_llama_renders_with_its_date_pinned_and_one_bos(llama_tokenizer, tmp_path):
    model = make_model(tmp_path / "model", llama_tokenizer)
    evaluate(str(model), ["poetry_verses"], tmp_path / "llama.json", limit=2)
    for sample in samples(tmp_path / "llama.json", "poetry_verses"):
        context, poem = sample["arguments"][0]
        assert "Today Date: 26 Jul 2024" in context and context.count("<|begin_of_text|>") == 1
        assert context.endswith("assistant<|end_header_id|>\n\n") and poem == sample["doc"]["poem"]


def test_the_stock_command_runs_the_group_with_the_same_scores_and_samples(
    small_model, measured, tmp_path, monkeypatch, capsys
):
    """`lm_eval run`, whose own entry is called here."""
    from lm_eval.__main__ import cli_evaluate

    words = f"--tasks poetry --apply_chat_template --limit {REQUESTS} --batch_size 16 --model hf --device cpu".split()
    words += ["--include_path", str(tasks.OURS), "--model_args", f"pretrained={small_model},dtype=float32"]
    words += ["--log_samples", "--output_path", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *words])
    cli_evaluate()
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    for task, entry in record.read(measured).tasks.items():
        metric = entry["metric"]
        assert results[task][f"{metric},none"] == pytest.approx(entry["value"], rel=1e-5)
        assert results[task][f"{metric}_stderr,none"] == pytest.approx(entry["stderr"], rel=1e-4)
    (path,) = tmp_path.rglob("samples_poetry_form_*.jsonl")
    theirs = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert [line["resps"] for line in theirs] == [line["resps"] for line in samples(measured, "poetry_form")]  # seeded


# --- poetry_form -----------------------------------------------------------------------------------------------------


def test_the_requests_are_many_balanced_and_unseen():
    forms = [row["form"] for row in REQUEST_ROWS]
    assert len(REQUEST_ROWS) >= 120
    assert {forms.count(name) for name in forms} == {len(REQUEST_ROWS) // 6}
    assert len(set(forms[:6])) == 6  # a limited run meets every form
    assert len({row["theme"] for row in REQUEST_ROWS}) == len(REQUEST_ROWS)
    rows = read_verses("train") + read_verses("held_out")
    seen = {row["theme"].lower() for row in rows}
    seen |= {turn["value"].lower() for row in rows for turn in row["conversations"] if turn["from"] == "human"}
    assert not [row for row in REQUEST_ROWS if any(row["theme"].lower() in each for each in seen)]


def test_each_request_is_answered_four_times_and_cut_texts_are_told_from_ended_ones(measured):
    lines = samples(measured, "poetry_form")
    assert len(lines) == REQUESTS
    texts = [text for line in lines for text in line["resps"][0]]
    assert len(texts) == 4 * REQUESTS and len(set(texts)) > REQUESTS
    cut = sum(text.endswith(form.CUT) for text in texts)
    assert 0 < cut < 4 * REQUESTS  # a random model over 1,000 tokens ends by itself now and then
    entry = record.read(measured).tasks["poetry_form"]
    assert entry["metric"] == "keeps" and entry["stderr"] is not None and entry["batch_size"] == 16
    assert entry["others"]["ended"]["value"] == pytest.approx(1 - cut / (4 * REQUESTS))
    assert entry["n"] == REQUESTS - REQUESTS // 6 and entry["parts"][0] == "haiku"  # over the fixed forms
    assert {"haiku keeps", "sonnet strict", "free looped"} < set(entry["others"])
    measures = "form_score strict rhyme metre ended weak_ends broken_ends both_sides looped distinct_2"
    measures += " longest_copy near_copy"
    assert {name for name in entry["others"] if " " not in name} == set(measures.split())
    columns = record.read_items(measured)["poetry_form"]
    asked = [row["form"] for row in REQUEST_ROWS[:REQUESTS]]
    unasked = {"value": "free", "strict": "free", "rhyme": "haiku free", "metre": "couplet quatrain free"}
    for name, forms in unasked.items():
        assert [value is None for value in columns[name]] == [one in forms.split() for one in asked]


def test_a_good_haiku_scores_well_and_a_bad_one_does_not():
    good = form.score(HAIKU, "haiku")
    assert (good["keeps"], good["strict"], good["metre"], good["ended"]) == (1, 1, 1, 1)
    assert not good["weak_ends"] and not good["broken_ends"]
    assert "rhyme" not in good and "strict" not in form.score(HAIKU, "free")
    prefaced = form.score("Here is your haiku:\n" + HAIKU, "haiku")
    assert prefaced["keeps"] == 0 and prefaced["metre"] < 0.5
    cut = form.score(HAIKU + form.CUT, "haiku")
    assert (cut["keeps"], cut["strict"], cut["ended"]) == (1, 0, 0)
    hanging = form.score("She waited in the rain and for the\nbus that would not come in, and", "free")
    assert (hanging["weak_ends"], hanging["broken_ends"]) == (1, 1)
    assert form.score('"Come in,"\nshe said, "and let it be!"', "free")["weak_ends"] == 0
    assert form.score("", "haiku")["keeps"] == 0


def test_rhyme_counts_lines_that_rhyme_nearby_and_no_repeats():
    couplet = "The kettle sings upon the stove tonight,\nand all the kitchen windows fill with light."
    assert form.score(couplet, "couplet")["rhyme"] == 1
    assert form.score("I saw the cat\nI saw the cat", "couplet")["rhyme"] == 0
    quatrain = "The road is long and grey,\nthe hedge is full of snow,\nI walk it every day,\nit has a mile to go."
    assert form.score(quatrain, "quatrain")["rhyme"] == 1
    half = quatrain.replace("day", "orange").replace("to go", "of purple")
    assert form.score(half, "quatrain")["rhyme"] == 0


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("both_sides", 1, (
            HAIKU + "\nuser\nNow one about rain.", HAIKU + "\n\nUser: and another?", HAIKU + "\n### Human:\nmore")),
        ("both_sides", 0, (
            HAIKU, "The user of the boat\nis human: so am I\nand both of us can float\nas long as it is dry")),
        ("looped", 1, ("the sea the sea the sea the sea", "rain on the roof\na\n" * 2 + "Rain, on the roof!")),
        ("looped", 0, (HAIKU, "again again again")),
        ("distinct_2", pytest.approx(2 / 3), ("a b a b",)),
        ("distinct_2", 0, ("a",)),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_seen(name, value, texts):
    assert [form.score(text, "free")[name] for text in texts] == [value] * len(texts)


def test_a_copy_of_a_training_poem_is_seen_and_held_out_poems_score_full_marks():
    poem = first_exchange(read_verses("train")[0])[1]
    words = form.re.findall(r"[\w']+", poem.lower())
    assert form.longest_copy(["hello", *words, "goodbye"]) >= len(words)
    assert form.longest_copy("zzz qqq xxx".split()) == 0
    assert form.score(poem, "free")["near_copy"] == 1
    for row in read_verses("held_out"):
        scores = form.score(first_exchange(row)[1], row["forms"][0])
        assert scores["keeps"] == 1 and scores.get("rhyme", 1) == 1 and scores.get("metre", 1) == 1
        assert not scores["looped"] and not scores["both_sides"] and not scores["near_copy"]
