"""Recipes: defaults, --set, and sentences for what does not fit."""

import pytest

from iris import InputError, recipe


def test_defaults_are_the_labs_recipe():
    lab = recipe.make(data="finetome")
    assert (lab.r, lab.lora_alpha, lab.batch_size, lab.max_length) == (16, 16, 8, 2048)
    assert (lab.learning_rate, lab.weight_decay, lab.warmup_steps, lab.seed) == (2e-4, 0.01, 5, 3407)
    assert lab.lr_scheduler_type == "linear" and len(lab.target_modules) == 7


def test_methods_differ_in_one_field_and_four_bit_follows_it_unless_set():
    for method in recipe.METHODS:
        made = recipe.make(method=method, data="finetome")
        assert made.as_dict() | {"method": "lora16"} == recipe.make(data="finetome").as_dict()
        assert made.four_bit == (method == "qlora")
    assert recipe.make(["load_in_4bit=true"], method="dora").four_bit
    assert recipe.make(["precision=fp8"]).quantized and not recipe.make().quantized


def test_what_suits_the_data_is_the_default_and_no_more():
    assert recipe.make().max_length == 512 and recipe.make(max_length=64).max_length == 64
    assert recipe.make(["data=finetome"]).max_length == 2048
    asked = [("verses,x", None), ("x", None), ("x", 0.5), ("verses", 0)]
    assert [recipe.make(data=data, plans=plans).plan_share for data, plans in asked] == [1, 0, 0.5, 0]


def test_set_wins_and_keeps_types():
    made = recipe.make(["learning_rate=2e-5", "rows=300", "target_modules=q_proj,v_proj", "load_in_4bit=none"], seed=1)
    assert (made.learning_rate, made.rows, made.target_modules) == (2e-5, 300, ("q_proj", "v_proj"))
    assert made.load_in_4bit is None and made.seed == 1


FP8 = "precision=fp8 takes lora16 or dora"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("learning_rat=1", "learning_rate"), ("method=lora", "qlora, dora, lora16"), ("seed=abc", "seed"),
        ("learning_rate", "key=value"), ("r=0", "r must be from 1"), ("rows=0", "rows must be from 1"),
        ("max_steps=-5", "from -1"), ("max_steps=0", "whole epochs"), ("lr_scheduler_type=step", "linear, cosine"),
        ("precision=int8", "auto, bf16"), ("load_in_4bit=maybe", "load_in_4bit"), ("learning_rate=nan", "must be from"),
        ("plans=1.5", "from 0 to 1"), ("push_checkpoints=no-slash", "USER/NAME"), ("precision=fp8 method=qlora", FP8),
        ("precision=fp8 load_in_4bit=true", FP8), ("precision=fp8 engine=unsloth", FP8),
        ("precision=fp8 lora_dropout=0.1", FP8),
    ],
)  # fmt: skip
def test_a_bad_setting_is_one_sentence(settings, words):
    with pytest.raises(InputError, match=words) as caught:
        recipe.make(settings.split())
    assert "\n" not in str(caught.value)
