"""A picture of a comparison: every run a dot, and the differences to the baseline, pair by pair."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gracl.retrieval.comparison import METRICS, ArmSummary, Spread

INK, FAINT, MEAN, ACROSS = "#202020", "#9a9a9a", "#0b5fa5", "#c2410c"


def comparison_chart(summaries: Sequence[ArmSummary], *, baseline: str, metric: str, title: str) -> bytes:
    """A PNG with two panels for each data set: what each run reached, and its difference to the baseline.

    Small dots are runs (the seeds of an arm are drawn one under the other, so that equal ones are seen), large ones
    means with a bar of one standard deviation to each side; open dots are best epochs.

    Args:
        summaries: what `comparison.summarise` made.
        baseline, metric: with which it made them.
        title: of the picture.
    """
    data = list(dict.fromkeys(one.data for one in summaries))
    rows = max((sum(one.data == name for one in summaries) for name in data), default=1)
    figure = Figure(figsize=(11, 1.5 + len(data) * (1.0 + 0.55 * rows)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK)
    panels: Any = figure.subplots(max(1, len(data)), 2, squeeze=False, sharey="row", width_ratios=(3, 2))
    for (left, right), name in zip(panels, data, strict=False):
        arms = [one for one in summaries if one.data == name]
        _draw_reached(left, arms, metric)
        _draw_differences(right, arms, baseline, metric)
        left.set_title(name, loc="left", fontsize=10, color=INK)
        left.set_yticks(range(len(arms)), [f"{one.arm}\ncameras: {one.cameras}" for one in arms], fontsize=8)
        left.set_ylim(len(arms) - 0.5, -0.5)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The bytes of a figure's picture."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _draw_reached(panel: Any, arms: Sequence[ArmSummary], metric: str) -> None:
    """The runs of each arm and their mean; best epochs open beside them."""
    for row, one in enumerate(arms):
        heights = _spread_out(row, len(one.records))
        last = [100 * record.reached(metric) for record in one.records]
        panel.scatter([100 * record.best for record in one.records], heights, 26, facecolors="none", edgecolors=FAINT)
        panel.scatter(last, heights, 12, color=INK, zorder=3)
        _draw_mean(panel, row, one.reached(metric), MEAN)
    panel.set_xlabel(
        f"{METRICS[metric]} in %: last epoch (dots), best epoch, chosen on the test splits (open)", fontsize=8
    )
    _tidy(panel)


def _draw_differences(panel: Any, arms: Sequence[ArmSummary], baseline: str, metric: str) -> None:
    """Arm less baseline for each seed that both have; right of the line the arm is better."""
    panel.axvline(0, color=FAINT, linewidth=1)
    for row, one in enumerate(arms):
        if one.arm == baseline:
            panel.text(0, row, "  baseline", va="center", fontsize=8, color=INK)
        gaps = [100 * gap for gap in one.pairs]
        panel.scatter(gaps, _spread_out(row, len(gaps)), 12, color=INK, zorder=3)
        _draw_mean(panel, row, one.difference, ACROSS)
    panel.set_xlabel(f"{METRICS[metric]}, points above {baseline} with the same seed", fontsize=8)
    _tidy(panel)


def _draw_mean(panel: Any, row: int, spread: Spread, colour: str) -> None:
    if spread.mean is not None:
        bar = 100 * (spread.deviation or 0.0)
        panel.errorbar(100 * spread.mean, row, xerr=bar or None, fmt="o", markersize=7, color=colour, alpha=0.75)


def _spread_out(row: int, count: int) -> list[float]:
    """Heights around a row, in the order of the seeds."""
    return [row + 0.12 * (place - (count - 1) / 2) for place in range(count)]


def _tidy(panel: Any) -> None:
    panel.grid(axis="x", color="#e5e5e5")
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
