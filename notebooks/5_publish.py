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
# Install, where Iris is not yet: versions that go together. The torch that is here stays.
from importlib.util import find_spec

if not find_spec("iris"):
    iris = "iris-poetry-lab[train,eval,gpu] @ git+https://github.com/iris-poetry-lab/iris"
    get_ipython().run_line_magic("pip", f'install --quiet "{iris}"')

# %%
# Your choices
# As in 1_train: the same choices find the same run; where there is none yet, it is trained first
# repo, space: USER/NAME each, the repository's name beginning with "Llama" for a Llama; an empty repo is a dry run
# hardware: what a new Space runs on. zero-a10g: free, two to an account; static: free, the model writes
# in the visitor's browser and has to be public; cpu-basic: with a PRO subscription
# public: everybody may see them; else only you
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
method = "lora16"  # @param ["lora16", "dora", "qlora"]
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}
minutes = 0  # @param {type: "number"}
name = "first"  # @param {type: "string"}
keep = ""  # @param ["", "drive"] {allow-input: true}
repo = ""  # @param {type: "string"}
space = ""  # @param {type: "string"}
hardware = "zero-a10g"  # @param ["zero-a10g", "static", "cpu-basic"]
public = False  # @param {type: "boolean"}

# %%
from iris import notebook
from iris.poetry import poet

chosen = notebook.choices(model, method, data, minutes, name, keep)
run = notebook.train(chosen)

# %% [markdown]
# ## Export
#
# The adapter is merged into its 16-bit base and written as a GGUF file of 8 bits a weight. A poem shows
# that it can be read.

# %%
exported = notebook.export(chosen)
gguf = next(exported.glob("*.gguf"))
print(poet.Poet(gguf, n_parallel=4).recite(poet.Wish("the last bus home", "quatrain", seed=7)).text)

# %% [markdown]
# ## Publish
#
# The model first, whole and checked; then the Space that reads it. Run again, it sends only what changed.
#
# | `hardware` of a new Space | costs | a free account may have |
# |-|-|-|
# | `static` | nothing: the visitor's own browser writes; the model has to be `public` | yes |
# | `zero-a10g` (ZeroGPU) | nothing: the GPU is never asked, two CPU cores write | two |
# | `cpu-basic` | a [PRO subscription](https://huggingface.co/pricing) | none: the Hub answers 402 |

# %%
notebook.publish(chosen, exported, repo, space, hardware, public)

# %% [markdown]
# ## When it breaks
#
# | what you see | what to do |
# |-|-|
# | `needs a Hugging Face token`, 401 or 403 | add a token with *write* access as Colab's secret `HF_TOKEN` (the key on the left), run again; or leave `repo` empty |
# | `is not of the form USER/NAME` | USER is your own name on the Hub, or an organisation you may write to |
# | `wants a name that begins with "Llama"` | Meta's licence asks for that: `USER/Llama-3.2-1B-Iris` |
# | `a free account may have two Spaces` (402, 403) | choose `zero-a10g`; where you have two there, delete one |
# | the Space says it cannot find the model | the model is private: give the Space a secret `HF_TOKEN` that may read it, or publish with `public` |
# | the disk is full | a merged model and its GGUF take about five times the size of the adapter's base in 8 bits; delete `exports` |
# | an error of pip, or an `ImportError` | Runtime > Disconnect and delete runtime, then run from the top: another notebook's packages were there first |
#
# `iris doctor` says what this machine can do; `!python -m iris doctor` runs it here. Errors end in a sentence that
# says what to do.
