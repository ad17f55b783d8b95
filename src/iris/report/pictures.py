"""The picture of the scores. It carries a digest of what it shows, and is current while that is the same, whatever the
version of matplotlib."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import record
from ..compare import Row, Scored, short
from ..evaluate.tasks import TASKS

ACCENT, LIGHT, GREY = "#6b3fa0", "#c9b8d8", "#8c959f"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "savefig.dpi": 150,
}
COLUMNS = 3  # panels in a row


def write(path: Path, groups: list[list[Scored]], check: bool = False) -> bool:
    """Draw the compared evaluations of the groups where the PNG at `path` shows something else; with nothing to show
    there is none. Returns whether it was out of date; with `check` it stays so."""
    import matplotlib
    from PIL import Image

    panels = []  # the name of a base, and the rows of one of its tasks
    for group in groups:
        for task in TASKS:
            if rows := [one.rows[task] for one in group if task in one.rows]:
                panels.append((short(group[0].record.model["id"]), rows))
    digest = record.digest_of([[name, *map(asdict, rows)] for name, rows in panels]) if panels else None
    try:
        with Image.open(path) as image:
            known = image.info.get("iris", "")
    except OSError:
        known = "" if path.exists() else None
    if known == digest or check:
        return bool(known != digest)
    if not panels:
        path.unlink()
        return True
    content = io.BytesIO()
    with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | STYLE):
        # without dates or versions: the same values give the same bytes
        draw(panels).savefig(content, format="png", metadata={"Software": None, "iris": digest})
    record.write_atomic(path, content.getvalue())
    return True


def draw(panels: list[tuple[str, list[Row]]]) -> Any:
    """A figure of one panel a task: the base as a line, every run with the 95% interval of its difference from it."""
    from matplotlib.figure import Figure

    columns, lines = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    height = 1.3 + 0.25 * max(len(rows) for _, rows in panels)
    figure = Figure((3.6 * columns, lines * height), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    shown: list[str] = []  # beside the panel before
    for place, ((_, rows), ax) in enumerate(zip(panels, axes, strict=False)):
        names, before = [row.record for row in rows], shown if place % columns else []
        ax.set_yticks(range(len(names)), [""] * len(names) if names == before else names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.axvline(rows[0].base, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for y, row in enumerate(rows):
            color, ends = LIGHT if row.verdict == "within noise" else ACCENT, [row.base + row.low, row.base + row.high]
            ax.plot(ends, [y, y], color=color, linewidth=2.5, solid_capstyle="round")
            ax.plot(row.tuned, y, "o", color=color, markersize=6, markeredgecolor="white")
        ax.locator_params(axis="x", nbins=4)
        task, better = TASKS[rows[0].task], "higher" if rows[0].higher_is_better else "lower"
        ax.set_title(task.title, fontweight="bold")
        ax.set_xlabel(f"{task.metric} ({better} is better), n = {rows[0].n:,}", fontsize=8)
        shown = names
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    models = ", ".join(dict.fromkeys(name for name, _ in panels))
    figure.suptitle(f"{models}: dashed the base; dark where the difference is clear of noise", fontsize=10)
    return figure
