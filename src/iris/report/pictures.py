"""The pictures of the scores and of the forms kept, drawn from plain JSON values.

Each carries a digest of what it shows, and is current while that is the same, whatever the version of matplotlib.
"""

import io
from pathlib import Path
from typing import Any

from .. import record

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


def write(path: Path, shown: list[dict[str, Any]], check: bool = False) -> bool:
    """Draw what report.scores (to scores.png) or report.kept_forms gives (to forms.png) where the PNG at `path` shows
    something else; with nothing to show there is none. Returns whether it was out of date; with `check` it stays so."""
    import matplotlib
    from PIL import Image

    digest = record.digest_of(shown) if shown else None
    try:
        with Image.open(path) as image:
            known = image.info.get("iris", "")
    except OSError:
        known = "" if path.exists() else None
    if known == digest or check:
        return bool(known != digest)
    if not shown:
        path.unlink()
        return True
    content = io.BytesIO()
    with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | STYLE):
        # without dates or versions: the same values give the same bytes
        figure = draw_forms(shown) if path.stem == "forms" else draw_scores(shown)
        figure.savefig(content, format="png", metadata={"Software": None, "iris": digest})
    record.write_atomic(path, content.getvalue())
    return True


def draw_scores(shown: list[dict[str, Any]]) -> Any:
    """A figure of one panel a task: the base as a line, every run with the 95% interval of its difference from it."""
    from matplotlib.figure import Figure

    columns, lines = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    height = 1.3 + 0.25 * max(len(panel["runs"]) for panel in shown)
    figure = Figure((3.6 * columns, lines * height), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for place, (panel, ax) in enumerate(zip(shown, axes, strict=False)):
        names = [run["name"] for run in panel["runs"]]
        beside = place % columns and names == [run["name"] for run in shown[place - 1]["runs"]]
        ax.set_yticks(range(len(names)), [""] * len(names) if beside else names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.axvline(panel["base"], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for y, run in enumerate(panel["runs"]):
            color = ACCENT if run["clear"] else LIGHT
            ax.plot([run["low"], run["high"]], [y, y], color=color, linewidth=2.5, solid_capstyle="round")
            ax.plot(run["value"], y, "o", color=color, markersize=6, markeredgecolor="white")
        ax.locator_params(axis="x", nbins=4)
        ax.set_title(panel["task"], fontweight="bold")
        ax.set_xlabel(panel["label"], fontsize=8)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    models = ", ".join(dict.fromkeys(panel["model"] for panel in shown))
    figure.suptitle(f"{models}: dashed the base; dark where the difference is clear of noise", fontsize=10)
    return figure


def draw_forms(shown: list[dict[str, Any]]) -> Any:
    """A figure of one panel a form, and in it a bar a run: percent of its poems that keep the form, strictly where the
    bar is dark."""
    from matplotlib.figure import Figure

    forms = list(shown[0]["shares"])
    figure = Figure((3 * len(forms), 0.8 + 0.25 * len(shown)), layout="constrained")
    for form, ax in zip(forms, figure.subplots(1, len(forms), sharey=True, squeeze=False).flat, strict=True):
        values = [100 * run["shares"].get(form, 0.0) for run in shown]
        bars = ax.barh(range(len(shown)), values, color=[ACCENT if run["strict"] else LIGHT for run in shown])
        ax.bar_label(bars, [f" {value:.1f}" for value in values], fontsize=7.5)
        ax.set_xlim(0, 115)
        ax.set_title(f"{form}, % kept")
    ax.set_yticks(range(len(shown)), [run["name"] for run in shown])
    ax.invert_yaxis()
    return figure
