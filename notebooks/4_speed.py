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
# # Speed: what does each method cost on this machine?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/iris-poetry-lab/iris/blob/main/notebooks/4_speed.ipynb)
#
# At the end you have a table of tokens a second, seconds a step and peak memory for each method, on the model and data
# of your choice, and the speed at which a small model recites on the CPU alone.
#
# Time: two methods and a poem without a GPU took 1½ minutes with one thread on a CPU of two cores that had other work.
# Not measured on a T4.
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
# methods: "all", or some of qlora,dora,lora16; without a GPU there is no qlora
# The other choices are those of 1_train
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
methods = "all"  # @param ["all", "lora16", "dora", "qlora", "lora16,dora"] {allow-input: true}
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}

# %%
from iris import notebook
from iris.model import smollm2
from iris.poetry import poet

chosen = notebook.choices(model, data=data, name="speed", steps=3)

# %% [markdown]
# ## Training
#
# Each method trains for 30 steps (without a GPU 3, of one sequence each) in a process of its own. Tokens that are only
# padding are not counted, and the speed is that of the median step: compilation and saving are left out.

# %%
table = notebook.speed(chosen, methods)

# %%
notebook.show(table)

# %% [markdown]
# ## Reciting
#
# The embedded SmolLM2 as it came, on the CPU: what a free Space does for one visitor.

# %%
poem = poet.Poet(smollm2.gguf(), n_parallel=4).recite(poet.Wish("the last bus home", "sonnet", seed=7))
print(f"{poem.text}\n\n{poem.tokens / poem.seconds:.1f} tokens/s on {poet.cores()} cores")

# %% [markdown]
# ## When it breaks
#
# | what you see | what to do |
# |-|-|
# | `gated`, 401 or 403 | accept the licence on the model's page, add your token as Colab's secret `HF_TOKEN` (the key on the left), run again; or choose `smollm2`, which needs no account |
# | `... failed: ...` | the sentence is that of `iris train`; run that command in a cell to see all of it: `!python -m iris train --help` |
# | the first step takes minutes | the GPU's kernels are compiled once; the table leaves this out |
# | figures far below the README's | look at the GPU's name above, and whether somebody else uses it: `!nvidia-smi` |
# | an error of pip, or an `ImportError` | Runtime > Disconnect and delete runtime, then run from the top: another notebook's packages were there first |
#
# `iris doctor` says what this machine can do; `!python -m iris doctor` runs it here. Errors end in a sentence that
# says what to do.

# %% [markdown]
# ## More
#
# `bench/llama_speed.py` in Iris' repository measures random weights of the exact shapes of Llama 1B, 3B and 8B, beside a
# peer if asked, and writes a record.
