"""Plans: the end words that a request names."""

import random

import pytest

from iris.data import rows
from iris.data.rows import FORM_OF, Dataset, add_plans
from iris.poetry import plan
from iris.poetry.forms import FORMS, ends_weakly, judge
from iris.poetry.sound import perfect_rhyme

COUPLET = "The lighthouse takes no side and keeps no score;\nit tells both ship and smuggler: here is shore."


@pytest.mark.parametrize(
    ("poem", "form", "words"),
    [
        (COUPLET, "couplet", ["score", "shore"]),
        (COUPLET, "free", None),
        (COUPLET, "quatrain", None),
        ("one score,\ntwo score", "couplet", None),
        ("one score,\n...", "couplet", None),
    ],
)
def test_the_plan_of_a_poem(poem, form, words):
    assert plan.plan_of(poem, form) == words


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].lines])
def test_a_plan_rhymes_perfectly_and_never_repeats_a_word(form):
    chance = random.Random(form)
    for _ in range(30):
        words = plan.choose(form, {"sea": -2.0, "ship": -3.0, "wave": -3.0}, chance)
        assert len(words) == FORMS[form].lines == len(set(words))
        assert set(words) <= set(plan.end_words()) and not any(map(ends_weakly, words))
        pairs = [(i, j) for i in range(len(words)) for j in range(i)]
        assert not FORMS[form].schemes or any(
            all(perfect_rhyme(words[i], words[j]) for i, j in pairs if scheme[i] == scheme[j])
            for scheme in FORMS[form].schemes
        )


def test_a_plan_is_near_to_the_theme():
    near = {word: -3.0 for word in ("sea", "sail", "tide", "wave", "ship", "gale", "wide", "gave", "free", "trip")}
    words = [plan.choose("couplet", near, random.Random(seed), heat=0.1) for seed in range(20)]
    assert sum(word in near for pair in words for word in pair) > 30
    assert len({tuple(sorted(pair)) for pair in words}) > 3


def test_poems_in_any_data_get_a_second_row_that_names_their_end_words():
    haiku = "Old pond, still as glass:\na frog jumps into its sky,\nand the sky comes back."
    said = ("Two lines?", COUPLET, "And a haiku?", haiku), ("A list", "milk\nbread"), (f"Say a. {plan.ASKED} a.", "a")
    roles = ("user", "assistant") * 2
    talks = [[{"role": role, "content": text} for role, text in zip(roles, talk, strict=False)] for talk in said]
    dataset = Dataset("x", None, talks)
    add_plans(dataset, 1.0, 0)
    assert dataset.planned == 2
    first, second = dataset.rows[3:]
    assert [turn["content"] for turn in first] == ["Two lines? End the lines with: score, shore.", COUPLET]
    assert second[2]["content"] == "And a haiku? End the lines with: glass, sky, back."
    assert second[3]["content"] == haiku
    assert second[1]["train"] is False and "train" not in second[3]  # learned once, in the row it came from


def test_a_share_is_a_seeded_draw():
    whole, none, half, again = (rows.load("verses") for _ in range(4))
    for dataset, share in ((whole, 1.0), (none, 0.0), (half, 0.5), (again, 0.5)):
        add_plans(dataset, share, 1)
    assert whole.planned > 1800 and none.planned == 0
    assert half.planned == pytest.approx(whole.planned / 2, rel=0.1) and half.rows == again.rows


def test_grown_poems_are_data_too():
    found = rows.load("grown", rows=300)
    assert found.read > 10_000 and all(plan.ASKED in row[0]["content"] for row in found.rows)
    assert all(judge(row[1]["content"], FORM_OF[row[1]["content"].count("\n") + 1]).strict for row in found.rows)
