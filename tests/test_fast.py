"""Exactness: the fast layers, the fused loss and packed attention compute what plain PEFT on padded rows computes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from iris import recipe
from iris.data import template
from iris.train import attention, forecast, fp8, lora, memory, packing
from iris.train.loss import give_loss, linear_cross_entropy

ROOT = Path(__file__).resolve().parents[1]
TALKS = [
    [{"role": "user", "content": "Write of " + "rain and " * n}, {"role": "assistant", "content": "Drip " * m}]
    for n, m in [(1, 3), (9, 20), (4, 1), (2, 40), (30, 2)]
]


def adapted(folder, use_dora, implementation="sdpa"):
    attention.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation, dtype=torch.float32)
    torch.manual_seed(1)
    layers = list(recipe.LLAMA_LINEAR)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, use_dora=use_dora, target_modules=layers))
    torch.manual_seed(2)
    for name, weight in model.named_parameters():  # as if trained: B is no longer zero, the magnitude has moved
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        if "magnitude" in name:
            weight.data *= 1 + 0.1 * torch.rand_like(weight)
    return model


def loss_and_gradients(model, loss):
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(
    "fixed_shape, compiled", [(False, False), (True, False), pytest.param(True, True, marks=pytest.mark.slow)]
)
def test_packed_and_fast_equals_padded_and_plain(
    tiny_model, smollm2_tokenizer, tmp_path, use_dora, fixed_shape, compiled
):
    if compiled and not shutil.which("g++"):
        pytest.skip("to compile for a CPU takes g++, which is not here")
    rows, pad = [template.encode(smollm2_tokenizer, talk) for talk in TALKS], smollm2_tokenizer.pad_token_id
    model = adapted(tiny_model, use_dora)
    batch = packing.collate_padded([packing.packed_item([row]) for row in rows], pad)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    expected, expected_grads = loss_and_gradients(model, loss)

    model = adapted(tiny_model, use_dora, implementation=attention.NAME)
    assert lora.speed_up(model) == 2 * 7
    if compiled:
        lora.compile_layers(model)
    items = [packing.packed_item(rows[:3]), packing.packed_item(rows[3:])]
    batch = packing.collate(items, pad, packing.shape_of(items, 2, 256) if fixed_shape else None)
    assert batch.pop("tokens") == sum(len(row.input_ids) for row in rows)
    give_loss(model.get_base_model())
    found, found_grads = loss_and_gradients(model, model(**batch) / (batch["labels"] != -100).sum())
    assert abs(found - expected) < 1e-5 * expected
    assert found_grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        error = (found_grads[name] - grad).norm() / grad.norm().clamp(min=1e-12)
        assert error < 1e-4, (name, error)

    model.save_pretrained(tmp_path)  # as plain PEFT reads it: the fast layers and the loss leave no trace
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), tmp_path)
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(plain(ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_a_product_in_8_bits_is_that_of_the_rounded_numbers():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(32, 48, bias=False).requires_grad_(False), torch.randn(2, 5, 32, requires_grad=True)
    was, into = layer.weight.clone(), torch.randn(2, 5, 48)

    def rounded(tensor, kind, step):
        scale = tensor.abs().max() / torch.finfo(kind).max
        found = (tensor / scale).to(kind).float() * scale
        assert ((found - tensor).abs() <= step * tensor.abs() + scale * torch.finfo(kind).tiny).all()
        return found

    weight = rounded(was, fp8.E4M3, 1 / 16)
    expected = rounded(x.detach(), fp8.E4M3, 1 / 16) @ weight.T
    wanted = rounded(into, fp8.E5M2, 1 / 8) @ weight
    holder = torch.nn.Module()
    holder.model = torch.nn.Module()
    holder.model.layers = torch.nn.ModuleList([layer, torch.nn.Linear(32, 5).requires_grad_(False)])
    holder.get_base_model = lambda: holder
    assert fp8.quantize_base(holder) == 1  # 5 is no multiple of 16
    found = layer(x)
    (gradient,) = torch.autograd.grad(found, x, into)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
    assert not fp8.product(torch.zeros(3, 32), fp8.E4M3, layer.weight, layer.scale).any()  # no 0 / 0
    assert fp8.product(torch.full((3, 32), torch.inf), fp8.E4M3, layer.weight, layer.scale).isnan().any()


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_base_in_8_bits_is_near_the_one_in_32(tiny_model, smollm2_tokenizer, use_dora, compiled):
    rows = [template.encode(smollm2_tokenizer, talk) for talk in TALKS]

    def run(eight_bit):
        model = adapted(tiny_model, use_dora, implementation=attention.NAME)
        lora.speed_up(model)
        if eight_bit:
            assert fp8.quantize_base(model) == 2 * 7
            if compiled:
                lora.compile_layers(model)
        give_loss(model.get_base_model())
        batch = packing.collate([packing.packed_item(rows)], 0)
        learned = (batch["labels"] != -100).sum()
        batch.pop("tokens")
        return loss_and_gradients(model, model(**batch) / learned)

    (expected, exact), (found, gradients) = run(False), run(True)
    assert abs(found / expected - 1) < 1e-2 and found != expected
    one, other = (torch.cat([each[name].flatten() for name in exact]) for each in (exact, gradients))
    assert torch.cosine_similarity(one, other, dim=0) > 0.98


def test_what_a_gpu_asks_of_a_product_in_8_bits_is_kept():
    """Strides and sizes, by torch's own checks of a product on a GPU that is only imagined."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        turned = torch.empty(3, 48, 7, device="cuda", dtype=torch.bfloat16).transpose(1, 2)  # not row by row
        weight = torch.empty(32, 48, device="cuda", dtype=fp8.E4M3)
        found = fp8.product(turned, fp8.E5M2, weight, torch.empty((), device="cuda"))
        assert (found.shape, found.dtype) == ((3, 7, 32), torch.bfloat16)


def test_the_loss_in_chunks_equals_torchs(monkeypatch):
    monkeypatch.setattr("iris.train.loss.CHUNK", 7)
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(50, 16)
    labels = torch.randint(0, 50, (40,))
    labels[::3] = -100
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    (expected_grad,) = torch.autograd.grad(3 * expected, hidden)
    found = linear_cross_entropy(hidden, weight, labels)
    (found_grad,) = torch.autograd.grad(3 * found, hidden)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found_grad, expected_grad, atol=1e-4, rtol=1e-4)
    assert linear_cross_entropy(hidden.detach(), weight, labels) == found


class Config:
    hidden_size, intermediate_size, num_hidden_layers, vocab_size = 2048, 8192, 16, 128256
    num_key_value_heads, head_dim, tie_word_embeddings = 8, 64, True


def test_a_plan_keeps_the_batch_and_fits(monkeypatch):
    def plans(recipe, parameters, steps, gigabytes, processes=1):
        monkeypatch.setattr(memory.hardware, "gpu_memory_gb", lambda: gigabytes)
        return memory.plans(recipe, Config, parameters, steps, processes)

    monkeypatch.setattr(memory.hardware, "device", lambda: "cpu")
    assert memory.plans(recipe.make(), Config, 1e9, 1000) == [memory.Plan(1, False, False)]
    monkeypatch.setattr(memory.hardware, "device", lambda: "cuda")
    monkeypatch.setattr(memory.hardware, "is_ampere", lambda: True)
    asked = recipe.make(data="finetome", method="lora16")
    assert plans(asked, 1.236e9, 6000, 80)[0] == memory.Plan(8, False, True)
    small = plans(asked, 1.236e9, 6000, 15)
    assert asked.batch_size % small[0].micro_batch == 0 and small[0].micro_batch < 8
    for one in small:
        assert memory.needed_gb(one, asked, Config, 1.236e9) < 0.9 * 15
    assert not plans(asked, 1.236e9, 6, 80)[0].compile  # too short to gain
    assert plans(asked, 8e9, 6000, 4) == [memory.Plan(1, True, True)]
    two = replace(asked, micro_batch=2)
    assert plans(two, 1.236e9, 6000, 80) == [memory.Plan(2, False, True), memory.Plan(2, True, True)]
    assert plans(two, 8e9, 6000, 4) == [memory.Plan(2, True, True)]
    assert plans(asked, 1.236e9, 6000, 80, processes=2)[0] == memory.Plan(4, False, True)
    assert all(plan.sharded for plan in plans(asked, 8e9, 6000, 16, processes=4))  # whole, it would not fit
    assert not any(plan.sharded for plan in plans(replace(asked, method="qlora"), 8e9, 6000, 4, processes=4))


def test_the_estimate_of_memory_is_near_what_was_measured():
    """Of every training on a GPU that results/ has: four sizes, three methods, compiled, checkpointed and plain."""
    seen = set()
    for device, made, plan, peak in forecast.measured(ROOT / "results"):
        config, parameters = forecast.shape_of(made["model"])
        known = {name: made[name] for name in ("model", "method", "max_length", "r") if name in made}
        estimate = memory.needed_gb(plan, replace(recipe.make(), **known), config, parameters)
        assert abs(estimate / peak - 1) < 0.1, f"{device}, {known}, {plan}: {estimate:.1f} GB, measured {peak:.1f} GB"
        seen |= {made["model"], made["method"], f"compile={plan.compile}", f"again={plan.checkpointing}"}
    assert seen >= {*forecast.SHAPES, *recipe.METHODS, "compile=True", "compile=False", "again=True", "again=False"}
