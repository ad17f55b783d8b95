"""results/forms.png, for docs/verse.md: of each run the share of its poems that keep each fixed form.

    python bench/forms.py [RESULTS]

Strictly (dark), or where that was not measured by the generous judge, which what is strict passes as well.
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from iris import record
from iris.evaluate.tasks import FIXED, TASKS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
results = parser.parse_args().results
rows = record.read(results / "poet.json").measures["rows"]
runs: list[tuple[str, bool, dict[str, Any]]]  # name, whether strictly, shares
runs = [("voice, by the poet", True, {row["form"]: row["strict"] for row in rows})]
for one in (record.load(results) | record.load(results / "voice")).values():
    for task, entry in one.tasks.items() if one.kind == "evaluation" else ():
        name = f"{one.name}, end words named" if task == "poetry_plan" else one.name
        for judge in ("strict", "keeps") if TASKS[task].by_form else ():
            if shares := {form: other["value"] for form in FIXED if (other := entry["others"].get(f"{form} {judge}"))}:
                runs.append((name, judge == "strict", shares))
                break

figure = Figure((3 * len(FIXED), 0.8 + 0.25 * len(runs)), layout="constrained", dpi=150)
for form, ax in zip(FIXED, figure.subplots(1, len(FIXED), sharey=True), strict=True):
    colors = ["#6b3fa0" if strict else "#c9b8d8" for _, strict, _ in runs]
    bars = ax.barh(range(len(runs)), [100 * shares.get(form, 0.0) for _, _, shares in runs], color=colors)
    ax.bar_label(bars, fmt=" %.1f", fontsize=7.5)
    ax.set(xlim=(0, 115), title=f"{form}, % kept")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
ax.set_yticks(range(len(runs)), [name for name, _, _ in runs])
ax.invert_yaxis()
figure.savefig(results / "forms.png", metadata={"Software": None})
