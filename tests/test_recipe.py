"""Recipes: defaults, --set, and sentences for what does not fit."""

from dataclasses import fields

import pytest

from iris import recipe
from iris.errors import InputError


def test_defaults_are_the_labs_recipe():
    lab = recipe.make(data="finetome")
    assert (lab.r, lab.lora_alpha, lab.batch_size, lab.max_length) == (16, 16, 8, 2048)
    assert (lab.learning_rate, lab.weight_decay, lab.warmup_steps, lab.seed) == (2e-4, 0.01, 5, 3407)
    assert lab.lr_scheduler_type == "linear" and len(lab.target_modules) == 7


def test_methods_differ_in_one_field():
    made = {method: recipe.make(method=method, data="finetome").as_dict() for method in recipe.METHODS}
    for method in recipe.METHODS:
        differing = [key for key, value in made[method].items() if value != made["lora16"][key]]
        assert differing == ([] if method == "lora16" else ["method"])


def test_four_bit_follows_the_method_unless_set():
    assert recipe.make(method="qlora").four_bit
    assert not recipe.make(method="dora").four_bit
    assert recipe.make(["load_in_4bit=true"], method="dora").four_bit


def test_set_wins_and_keeps_types():
    made = recipe.make(["learning_rate=2e-5", "rows=300", "target_modules=q_proj,v_proj", "load_in_4bit=none"], seed=1)
    assert (made.learning_rate, made.rows, made.target_modules) == (2e-5, 300, ("q_proj", "v_proj"))
    assert made.load_in_4bit is None and made.seed == 1
    with pytest.raises(AttributeError):
        made.seed = 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learning_rat=1", "learning_rate"),
        ("method=lora", "qlora, dora, lora16"),
        ("seed=abc", "seed"),
        ("learning_rate", "key=value"),
        ("r=0", "above zero"),
        ("rows=0", "at least 1"),
        ("max_steps=-5", "at least 1"),
        ("lr_scheduler_type=step", "linear, cosine"),
        ("precision=int8", "auto, bf16"),
        ("load_in_4bit=maybe", "load_in_4bit"),
    ],
)
def test_a_bad_setting_is_one_sentence(setting, words):
    with pytest.raises(InputError, match=words) as caught:
        recipe.make([setting])
    assert "\n" not in str(caught.value)


def test_a_resumed_run_may_only_change_its_length():
    before = recipe.make().as_dict()
    assert recipe.changes(recipe.make(["max_steps=9", "save_steps=3"]), before) == []
    assert recipe.changes(recipe.make(["learning_rate=1"]), before) == ["learning_rate"]


def test_every_field_can_be_set():
    assert {item.name for item in fields(recipe.Recipe)} == set(recipe._TYPES)
