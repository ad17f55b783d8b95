"""THE table of tasks: a benchmark is added by one entry, which evaluate, tables, cards and the command line read.

The four benchmarks are lm-eval's own, zero-shot and without chat template, as the seed lab ran them; the poetry tasks
(poetry/tasks/) use the model's own chat template. Nothing heavy is imported here.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import InputError, record
from ..poetry.forms import FORMS
from ..recipe import one_of

SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's own defaults
OURS = Path(__file__).parents[1] / "poetry" / "tasks"
FIXED = tuple(name for name, form in FORMS.items() if form.lines)  # all but free verse, which any two lines are


@dataclass(frozen=True)
class Task:
    """`metric`: the one that tables show. `hub_id`, `config`, `split`: whose items are scored. `folder`: where local
    copies lie below --data-dir. `definition`: its folder in lm_eval/tasks (to read all takes five seconds); a task
    without one is a conversation of our own. `by_form`: metrics that are the mean over the poems in a fixed form alone,
    and are shown form by form as well; `of_free`: those that are shown of free verse apart."""

    title: str
    metric: str
    hub_id: str
    config: str | None
    split: str
    folder: str = ""
    definition: str = ""
    by_form: tuple[str, ...] = ()
    of_free: tuple[str, ...] = ()


TASKS = {
    "hellaswag": Task("HellaSwag", "acc_norm", "Rowan/hellaswag", None, "validation", "hellaswag", "hellaswag"),
    "arc_challenge": Task(
        "ARC-Challenge", "acc_norm", "allenai/ai2_arc", "ARC-Challenge", "test", "arc_challenge", "arc"
    ),
    "mmlu_stem": Task("MMLU-STEM", "acc", "cais/mmlu", "stem", "test", "mmlu_stem", "mmlu/default"),
    "truthfulqa_mc2": Task(
        "TruthfulQA", "acc", "truthfulqa/truthful_qa", "multiple_choice", "validation", "truthfulqa_mc", "truthfulqa"
    ),
    "poetry_verses": Task("held-out verses", "bits_per_byte", "iris-verses", None, "held-out"),
    "poetry_form": Task(
        *("poems in five fixed forms", "keeps", "iris-poetry-form", None, "test"),
        by_form=("keeps", "strict"),
        of_free=("ended", "looped", "distinct_2"),
    ),
    "poetry_plan": Task(
        *("poems on named end words", "strict", "iris-poetry-plan", None, "test"), by_form=("strict", "keeps")
    ),
}
GROUPS = {"poetry": ("poetry_verses", "poetry_form")}
DEFAULT = (*(name for name, task in TASKS.items() if task.definition), *GROUPS)


def expand(names: list[str]) -> list[str]:
    """The tasks that `names`, of TASKS and GROUPS, stand for, each once. InputError for one that is unknown."""
    known = [*TASKS, *GROUPS]
    tasks = [task for name in names for task in GROUPS.get(one_of(name, known, "task"), (name,))]
    if not tasks:
        raise InputError(f"name at least one task: {', '.join(known)}")
    return list(dict.fromkeys(tasks))


def data_file(data_dir: str | Path | None, name: str) -> Path | None:
    """The local copy of a task's items: SPLIT.jsonl.gz, SPLIT.jsonl or SPLIT_sample.jsonl in its folder; None for a
    task that brings its own data, and without `data_dir`. InputError if it is missing."""
    task = TASKS[name]
    if not task.definition or data_dir is None:
        return None
    paths = [Path(data_dir, task.folder, task.split + end) for end in (".jsonl.gz", ".jsonl", "_sample.jsonl")]
    for path in paths:
        if path.is_file():
            return path
    raise InputError(f"{name} needs {paths[0]}, which is not there; check --data-dir")


def key(name: str, data_dir: str | Path | None) -> list[Any]:
    """All that a score of a task depends on besides model, versions and settings: its items and Iris' own code."""
    local, files = data_file(data_dir, name), [Path(__file__).with_name("harness.py")]
    files.append(Path(__file__).with_name("shared_context.py"))
    if not TASKS[name].definition:
        files += [path for path in OURS.iterdir() if path.suffix in (".py", ".yaml", ".jsonl")]
        files += [OURS.parent / file for file in ("sound.py", "forms.py", "verses.py", "verses.jsonl")]
    code = {path.name: record.file_digest(path) for path in sorted(files)}
    return [name, local and record.file_digest(local), code]


def take_apart(task: Task, forms: list[str], items: dict[str, list[Any]], metrics: dict[str, dict[str, Any]]) -> None:
    """Add the scores of each form to a task's `items` and `metrics` ("haiku keeps"), and let those of `by_form` be of
    the fixed forms alone; `forms` says which form an item is of."""
    wanted = {f"{form} {name}": (name, [form]) for form in FIXED for name in task.by_form}
    wanted |= {f"free {name}": (name, ["free"]) for name in task.of_free}
    wanted |= {name: (name, list(FIXED)) for name in task.by_form}
    for title, (name, kept) in wanted.items():
        column = [value if form in kept else None for value, form in zip(items.get(name, []), forms, strict=False)]
        scores = [value for value in column if value is not None]
        if scores:
            stderr = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
            items[title] = column
            metrics[title] = metrics[name] | {"value": statistics.fmean(scores), "stderr": stderr}
