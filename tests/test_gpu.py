"""What only a GPU can show. Run with `pytest tests/test_gpu.py` on a machine that has one; elsewhere skipped."""

import importlib.util
import shutil
import subprocess
import sys

import pytest
import torch

from iris import record
from iris.data import template
from iris.train import attention, checkpoints, fp8, lora, packing
from iris.train.loss import give_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="these tests need a GPU")


def iris_train(out, *more, steps=24):
    words = [sys.executable, "-m", "iris", "train", "--model", "smollm2", "--out", str(out), "--max-steps", str(steps)]
    done = subprocess.run([*words, *more], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return record.read(out / "record.json").measures["losses"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return iris_train(tmp_path_factory.mktemp("gpu") / "whole", "--set", "save_steps=12")


def test_a_resumed_run_goes_on_along_the_same_curve(whole_run, tmp_path):
    iris_train(tmp_path / "run", "--set", "save_steps=12")
    for name in ("checkpoint-24", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    assert checkpoints.last(tmp_path / "run").name == "checkpoint-12"
    resumed = iris_train(tmp_path / "run", "--set", "save_steps=12", "--resume")
    assert resumed == pytest.approx(whole_run, abs=1e-3)


@pytest.mark.skipif(not importlib.util.find_spec("unsloth"), reason="unsloth is not installed")
def test_unsloth_and_peft_have_the_same_loss(whole_run, tmp_path):
    unsloth = iris_train(tmp_path / "unsloth", "--set", "engine=unsloth", "--set", "save_steps=12")
    assert unsloth[:20] == pytest.approx(whole_run[:20], rel=1e-2)


@pytest.mark.parametrize("method", ["qlora", "dora", "lora16"])
def test_compiled_layers_compute_the_same_and_round_less(method, tmp_path):
    """In fp32 compiled layers give plain's losses. In bf16 plain layers round after every operation, compiled ones only
    where something is written to memory, so the two differ: compiled must be as near to fp32 as plain is."""

    def losses(precision, compiled):
        settings = f"--set=precision={precision}", f"--set=compile={compiled}"
        return iris_train(tmp_path / f"{precision}-{compiled}", "--method", method, *settings, steps=6)

    def off(precision, compiled):
        return max(abs(a - b) / b for a, b in zip(losses(precision, compiled), exact, strict=True))

    exact = losses("fp32", "false")
    same, plain, compiled = off("fp32", "true"), off("bf16", "false"), off("bf16", "true")
    print(f"{method}: off fp32's losses by {plain:.1e} plain, {compiled:.1e} compiled; compiled in fp32 by {same:.1e}")
    assert same < 1e-5
    assert compiled < 1.2 * plain


@pytest.mark.parametrize("use_dora", [False, True])
def test_packed_equals_padded_in_bf16(smollm2, smollm2_tokenizer, use_dora):
    """Loss and gradients of FlashAttention on packed rows, with and without compilation, against plain PEFT and SDPA on
    padded rows, all in bf16, and all against fp32: packed must be as near to fp32 as padded is."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    rows = []
    for n, m in [(3, 9), (40, 60), (5, 30), (11, 100)]:
        talk = [{"role": "user", "content": "Rain? " * n}, {"role": "assistant", "content": "Drip drop. " * m}]
        rows.append(template.encode(smollm2_tokenizer, talk))

    def run(dtype, packed, compiled=False):
        attention.register()
        implementation = attention.NAME if packed else "sdpa"
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=dtype, attn_implementation=implementation).cuda()
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", use_dora=use_dora)).cuda()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
        if packed:
            lora.speed_up(model)
            if compiled:
                lora.compile_layers(model)
            items = [packing.packed_item(rows)]
            batch = packing.collate(items, 0, packing.shape_of(items, 1, 1024))
            batch.pop("tokens")
            batch = {key: value.cuda() for key, value in batch.items()}
            give_loss(model.get_base_model())
            loss = model(**batch, max_seqlen=1024) / (batch["labels"] != -100).sum()
        else:
            batch = packing.collate_padded([packing.packed_item([row]) for row in rows], 0)
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
                ids, mask = batch["input_ids"].cuda(), batch["attention_mask"].cuda()
                logits = model(input_ids=ids, attention_mask=mask).logits.float()
            labels = batch["labels"].cuda()[:, 1:]
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad])

    exact_loss, exact = run(torch.float32, False)
    padded_loss, padded = run(torch.bfloat16, False)
    error = (padded - exact).norm() / exact.norm()
    print(f"losses {exact_loss:.5f} fp32, {padded_loss:.5f} padded; its gradients are off by {error:.4f}")
    for compiled in (False, True):
        loss, gradient = run(torch.bfloat16, True, compiled)
        off = (gradient - exact).norm() / exact.norm()
        print(f"loss {loss:.5f} packed{', compiled' * compiled}; its gradients are off by {off:.4f}")
        assert abs(loss - padded_loss) / padded_loss < 1e-2
        assert off < 1.2 * error


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="a GPU without FP8"
)
def test_a_base_in_8_bits_learns_what_one_in_16_bits_learns(whole_run, tmp_path):
    """Products of the GPU are those of the rounded numbers; the loss goes the same way, compiled or not."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 576, device="cuda"), torch.randn(1536, 576, device="cuda")
    eight, scale = fp8.quantize(weight, fp8.E4M3)
    for kind in (fp8.E4M3, fp8.E5M2):
        found = fp8.product(x.bfloat16(), kind, eight, scale).cpu().float()
        expected = fp8.product(x.bfloat16().cpu(), kind, eight.cpu(), scale.cpu()).float()
        assert (found - expected).norm() / expected.norm() < 1e-2
    for compiled in ("false", "true"):
        settings = "--set=precision=fp8", f"--set=compile={compiled}", "--set=save_steps=12"
        assert iris_train(tmp_path / compiled, *settings) == pytest.approx(whole_run, rel=1e-2)
