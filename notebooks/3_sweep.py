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
# # Sweep: which settings are best?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/iris-poetry-lab/iris/blob/main/notebooks/3_sweep.ipynb)
#
# At the end you have a table of trials ranked by their loss on held-out rows (never by a benchmark), a picture of
# them, and the adapter of the best.
#
# Time: the three short trials without a GPU took 3 to 4½ minutes with one thread on a CPU of two cores that had other
# work. Not measured on a T4.
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
notebook.show(chosen.out / "sweep.md", chosen.out / "parallel.png")

# %% [markdown]
# Train with what was best: `iris train --learning-rate ... --r ...`, with the values of the first row.

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
