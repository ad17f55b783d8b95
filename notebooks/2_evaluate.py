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
# # Evaluate: did it get better, or is it noise?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/iris-poetry-lab/iris/blob/main/notebooks/2_evaluate.ipynb)
#
# At the end you have scores of the base and of your tuned model, measured alike, with standard errors, the 95%
# interval of every difference, and a verdict: clear of noise, or not.
#
# Time: without a GPU, held-out verses for both models took 2 to 3 minutes with one thread on a CPU of two cores that had
# other work, where 1_train had run before (else 1 to 2 more). Not measured on a T4; all benchmarks there take far
# longer.
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
# limit: so many items a task, for a quick look; 0 is all of them
model = "auto"  # @param ["auto", "smollm2", "llama-3.2-1b", "llama-3.2-3b"] {allow-input: true}
method = "lora16"  # @param ["lora16", "dora", "qlora"]
data = "verses"  # @param ["verses", "finetome", "fusechat", "nitral"] {allow-input: true}
minutes = 0  # @param {type: "number"}
name = "first"  # @param {type: "string"}
keep = ""  # @param ["", "drive"] {allow-input: true}
limit = 0  # @param {type: "integer"}

# %%
from iris import compare, notebook
from iris.report import report

chosen = notebook.choices(model, method, data, minutes, name, keep)
run = notebook.train(chosen)

# %% [markdown]
# ## Measure
#
# Both with lm-eval, in one process of its own. On a GPU: HellaSwag, ARC-Challenge, MMLU-STEM, TruthfulQA and the two
# poetry tasks; without one: bits per byte of held-out poems. A finished task is kept: cut off and run again, only the
# rest is measured.

# %%
base, tuned = notebook.evaluate(chosen, limit)

# %% [markdown]
# ## Compare
#
# Item by item: the interval is a paired bootstrap, p an exact McNemar or a sign-flip test, corrected by Holm over the
# tasks.

# %%
notebook.show(compare.compare([base, tuned]).table())

# %%
report.report(chosen.results, [])
notebook.show(chosen.results / "scores.png")

# %% [markdown]
# ## When it breaks
#
# | what you see | what to do |
# |-|-|
# | `gated`, 401 or 403 | accept the licence on the model's page, add your token as Colab's secret `HF_TOKEN` (the key on the left), run again; or choose `smollm2`, which needs no account |
# | out of GPU memory | Runtime > Restart session, run again: finished tasks are kept, and the training's memory is free |
# | `cannot be compared, they differ in ...` | the base was measured with another `limit` or other versions: choose another `name`, or delete the folder `results` |
# | `within noise` everywhere | that is an answer. Train on more data, or for longer; more items narrow the interval, more tries do not |
# | it takes too long | set `limit` to 200 for a look; such a record never enters a published table |
# | an error of pip, or an `ImportError` | Runtime > Disconnect and delete runtime, then run from the top: another notebook's packages were there first |
#
# `iris doctor` says what this machine can do; `!python -m iris doctor` runs it here. Errors end in a sentence that
# says what to do.
