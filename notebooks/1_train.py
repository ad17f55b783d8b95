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
#       jupytext_version: 1.19.6
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
# Install, where Iris is not yet: versions that go together. The torch that is here stays.
from importlib.util import find_spec

if not find_spec("iris"):
    iris = "iris-poetry-lab[train,eval,gpu] @ git+https://github.com/iris-poetry-lab/iris"
    get_ipython().run_line_magic("pip", f'install --quiet "{iris}"')

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
from iris import notebook

chosen = notebook.choices(model, method, data, minutes, name, keep)

# %% [markdown]
# ## How much memory will it take?
#
# By estimate, on the GPU that is here, or on a T4 where there is none. Another: `forecast.forecast(chosen.recipe, "L4")`.

# %%
from iris.train import forecast

print(forecast.forecast(chosen.recipe))

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
notebook.show(notebook.before_and_after(chosen))

# %% [markdown]
# Ask them anything; more prompts, separated by commas, make more rows.

# %%
notebook.show(notebook.before_and_after(chosen, "Describe the smell of rain to somebody who never left the desert."))

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
