"""The pictures of reports and sweeps, all in one style: white ground, purple accent, no top or right spine.

`scores`, `cost` and `loss` are drawn for `iris report` from plain JSON values. Such a picture carries a digest of what
it shows and of the code that drew it: it is current while both are the same, whatever the version of matplotlib.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT, LIGHT, INK, GREY = "#6b3fa0", "#c9b8d8", "#24292f", "#8c959f"
SHADES = (ACCENT, "#d0709a", "#3b7ea1", "#2e1a47", "#b48ad6", "#7a8b3c")  # of lines in one panel
MARKERS = {"lora16": "o", "qlora": "s", "dora": "D"}
STYLE: Any = {
    "font.family": "DejaVu Sans",  # the one that matplotlib brings
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",  # GitHub's dark theme shows through a transparent ground
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
}
Shown = list[dict[str, Any]]


def write(path: Path, name: str, shown: Shown) -> None:
    """Draw the picture `name` of `shown` into a PNG; with nothing to show there is none."""
    if shown:
        save(path, PICTURES[name], shown)
    else:
        path.unlink(missing_ok=True)


def is_current(path: Path, name: str, shown: Shown) -> bool:
    """Whether the PNG at `path` shows this, drawn by this code; with nothing to show, whether there is none."""
    from PIL import Image

    if not shown or not path.exists():
        return not shown and not path.exists()
    try:
        with Image.open(path) as image:
            return bool(image.info.get("iris") == _digest(PICTURES[name], shown))
    except OSError:
        return False


def save(path: Path, draw: Any, shown: Any) -> None:
    """Write draw(shown) as a PNG without dates or versions: the same values give the same bytes."""
    import io

    import matplotlib

    with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | STYLE):
        content = io.BytesIO()
        draw(shown).savefig(content, format="png", metadata={"Software": None, "iris": _digest(draw, shown)})
    record.write_atomic(path, content.getvalue())


def _digest(draw: Any, shown: Any) -> str:
    return record.digest_of(
        [inspect.getsource(draw), inspect.getsource(_figure), inspect.getsource(_name_rows), STYLE, SHADES, shown]
    )


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def draw_scores(shown: Shown) -> Figure:
    """One panel a task: the base as a line, every run with the 95% interval of its difference from the base."""
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = _figure(rows, columns, 3.6 * columns, rows * (1.3 + 0.26 * max(len(p["runs"]) for p in shown)))
    for place, (panel, ax) in enumerate(zip(shown, axes, strict=False)):
        ax.axvline(panel["base"], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for y, run in enumerate(panel["runs"]):
            color = ACCENT if run["clear"] else LIGHT
            ax.plot([run["low"], run["high"]], [y, y], color=color, linewidth=2.5, solid_capstyle="round")
            ax.plot(run["value"], y, "o", color=color, markersize=6, markeredgecolor="white")
        names = [run["name"] for run in panel["runs"]]
        known = place % columns and names == [run["name"] for run in shown[place - 1]["runs"]]  # named on the left
        _name_rows(ax, [""] * len(names) if known else names)
        ax.locator_params(axis="x", nbins=4)
        ax.set_title(panel["task"], fontweight="bold")
        ax.set_xlabel(panel["label"], fontsize=8)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    models = ", ".join(dict.fromkeys(panel["model"] for panel in shown))
    figure.suptitle(f"{models}: dashed the base; dark where the difference is clear of noise", fontsize=10)
    return figure


def _name_rows(ax: Axes, names: list[str]) -> None:
    """One row a run, from the top, its name on the left."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def draw_cost(shown: Shown) -> Figure:
    """Mean difference of the accuracies from the base beside minutes of training and peak memory, one row a run."""
    figure, (gain, *prices) = _figure(1, 3, 9.5, 1.3 + 0.26 * len(shown))
    gain.axvline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for y, run in enumerate(shown):
        color = SHADES[list(MARKERS).index(run["method"])]
        gain.plot([run["low"], run["high"]], [y, y], color=color, linewidth=2, alpha=0.35, solid_capstyle="round")
        gain.plot(run["value"], y, MARKERS[run["method"]], color=color, markersize=6, markeredgecolor="white")
        for ax, key in zip(prices, ("minutes", "memory_gb"), strict=True):
            ax.barh(y, run[key], 0.55, color=color, alpha=0.75)
            ax.annotate(f"{run[key]:.2g}", (run[key], y), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    names = [run["name"] for run in shown]
    for ax, title, label in (
        (gain, "quality", "mean difference from the base, accuracies"),
        (prices[0], "time", "minutes of training"),
        (prices[1], "memory", "peak, GB"),
    ):
        _name_rows(ax, names if ax is gain else [""] * len(names))
        ax.set_title(title, fontweight="bold")
        ax.set_xlabel(label, fontsize=8)
    gain.locator_params(axis="x", nbins=4)
    figure.suptitle("quality and its price; lines are 95% intervals", fontsize=10)
    return figure


def draw_loss(shown: Shown) -> Figure:
    """Training loss of every run, the mean of ten steps; one panel a data set."""
    names = list(dict.fromkeys(run["data"] for run in shown))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _figure(rows, columns, max(4.5, 3.6 * columns), 3.0 * rows)
    for name, ax in zip(names, axes, strict=False):
        for index, run in enumerate(run for run in shown if run["data"] == name):
            values = run["losses"]
            smooth = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - 9) : i + 1])]
            ax.plot(
                range(1, len(smooth) + 1), smooth, color=SHADES[index % len(SHADES)], linewidth=1.6, label=run["name"]
            )
        ax.set_title(name)
        ax.set_xlabel("step")
        ax.legend(fontsize=7.5)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    figure.supylabel("loss, mean of ten steps (nats a token)", fontsize=9)
    return figure


def draw_parallel(shown: dict[str, Any]) -> Figure:
    """One line a trial through its settings to its held-out loss; the darker, the lower. Pruned ones are thin.
    shown: {"axes": [{"name", "ticks": [[place, label]]}], "trials": [{"places", "rank", "pruned"}]}; places and ranks
    lie between 0 and 1."""
    import matplotlib

    figure, (ax,) = _figure(1, 1, 1.5 + 1.5 * len(shown["axes"]), 4.2)
    shade = matplotlib.colors.LinearSegmentedColormap.from_list("iris", [ACCENT, LIGHT, "#ece6f2"])
    for trial in sorted(shown["trials"], key=lambda trial: -trial["rank"]):
        width, order = (0.7, 1) if trial["pruned"] else (1.6, 2)
        ax.plot(trial["places"], color=shade(trial["rank"]), linewidth=width, zorder=order, alpha=0.9)
    for x, axis in enumerate(shown["axes"]):
        ax.axvline(x, color=GREY, linewidth=0.8, zorder=3)
        for place, label in axis["ticks"]:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            ax.text(x + 0.03, place, label, fontsize=8, va="center", zorder=4, bbox=box)
    ax.set_xticks(range(len(shown["axes"])), [axis["name"] for axis in shown["axes"]])
    ax.tick_params(axis="x", length=0)
    ax.set_yticks([])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlim(-0.1, len(shown["axes"]) - 0.6)
    ax.set_ylim(-0.05, 1.05)
    return figure


def draw_importance(shown: dict[str, Any]) -> Figure:
    """Bars of the share that each setting has in the held-out loss. shown: {"shares": {setting: 0..1}, "title"}."""
    figure, (ax,) = _figure(1, 1, 6, 1.0 + 0.4 * len(shown["shares"]))
    names = list(shown["shares"])
    ax.barh(names, list(shown["shares"].values()), color=ACCENT, height=0.6)
    for y, share in enumerate(shown["shares"].values()):
        ax.text(share + 0.01, y, f"{share:.0%}", va="center", fontsize=8.5)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.08)
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.spines["bottom"].set_visible(False)
    ax.set_title(shown["title"])
    return figure


def draw_quants(shown: Shown) -> Figure:
    """Size, nearness to 16 bits and speed of every quantization; the chosen one is dark."""
    figure, axes = _figure(1, 3, 9, 0.9 + 0.3 * len(shown))
    panels = (("mb", "size (MB)"), ("bits", "bits a byte of held-out verses"), ("speed", "generation (tokens/s)"))
    for ax, (key, label) in zip(axes, panels, strict=True):
        colors = [ACCENT if one["default"] else LIGHT for one in shown]
        values = [one[key] for one in shown]
        if key == "bits":  # the differences are small: dots with standard errors, not bars from zero
            for y, one in enumerate(shown):
                ax.errorbar(one[key], y, xerr=one["stderr"], fmt="o", color=colors[y], markersize=6)
        else:
            ax.barh(range(len(shown)), values, color=colors, height=0.6)
        ax.set_yticks(range(len(shown)), [one["quant"] for one in shown] if ax is axes[0] else [""] * len(shown))
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(label)
    return figure


def draw_speed(shown: Shown) -> Figure:
    """Bars of every size: tokens/s of training and of writing, memory; one shade a method or quantization."""
    panels = list(dict.fromkeys(bar["panel"] for bar in shown))
    most = max(sum(bar["panel"] == panel for bar in shown) for panel in panels)
    figure, axes = _figure(1, len(panels), 3.4 * len(panels), 1.0 + 0.28 * most)
    for panel, ax in zip(panels, axes, strict=True):
        bars = [bar for bar in shown if bar["panel"] == panel]
        names = list(dict.fromkeys(bar["name"] for bar in bars))
        for y, bar in enumerate(bars):
            ax.barh(y, bar["value"], color=SHADES[names.index(bar["name"])], height=0.7)
            ax.annotate(f"{bar['value']:,.3g}" if bar["value"] < 1000 else f"{bar['value']:,.0f}", (bar["value"], y),
                        (3, 0), textcoords="offset points", va="center", fontsize=7.5)  # fmt: skip
        ax.set_yticks(range(len(bars)), [f"{bar['size']} {bar['name']}" for bar in bars])
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(0, 1.25 * max(bar["value"] for bar in bars))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(panel)
    return figure


PICTURES = {
    "scores": draw_scores,
    "cost": draw_cost,
    "loss": draw_loss,
    "quants": draw_quants,
    "speed": draw_speed,
}
