"""Pictures of a sweep over settings: the metric against each of them, and all of them side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gracl.retrieval.charts import FAINT, INK, MEAN, png

COLOURS = "viridis_r"  # the best are dark: they are looked for


@dataclass(frozen=True)
class Axis:
    """A setting that was swept: its name, and how its values lie on a picture."""

    name: str
    log: bool = False


@dataclass(frozen=True)
class Tried:
    """A trial on a picture: the values of the settings, what it reached, whether it did all epochs."""

    values: Mapping[str, Any]
    reached: float
    whole: bool


def metric_chart(tried: Sequence[Tried], axes: Sequence[Axis], *, metric: str, title: str) -> bytes:
    """A PNG: the metric against each setting, and where there are two numbers, both with the metric as colour.

    Open dots were stopped early. The best of those that did all epochs has a ring.
    """
    pair = [axis for axis in axes if _numeric(tried, axis)][:2]
    panels = len(axes) + (len(pair) == 2)
    figure = Figure(figsize=(1 + 4 * panels, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK)
    drawn: Any = figure.subplots(1, panels, squeeze=False)[0]
    best = max((one for one in tried if one.whole), key=lambda one: one.reached, default=None)
    for panel, axis in zip(drawn, axes, strict=False):
        places, names = _places(tried, axis)
        _dots(panel, places, [one.reached for one in tried], tried, [MEAN] * len(tried))
        if best is not None:
            panel.scatter([places[tried.index(best)]], [best.reached], 140, facecolors="none", edgecolors=INK)
        _label(panel.xaxis, panel.set_xscale, axis, names)
        panel.set_ylabel(metric)
    if len(pair) == 2:
        _both(figure, drawn[-1], tried, pair, best, metric)
    return png(figure)


def _both(figure: Figure, panel: Any, tried: Sequence[Tried], pair: Sequence[Axis], best: Any, metric: str) -> None:
    """Two settings at once."""
    reached = [one.reached for one in tried]
    low, high = min(reached), max(reached)
    colours = colormaps[COLOURS]([(value - low) / max(high - low, 1e-12) for value in reached])
    for one, colour in zip(tried, colours, strict=True):
        place = ([one.values[axis.name]] for axis in pair)
        panel.scatter(*place, 60, facecolors=[colour] if one.whole else "none", edgecolors=[colour])
    scale_of_colours = ScalarMappable(Normalize(low, max(high, low + 1e-9)), COLOURS)
    if best is not None:
        panel.scatter(*([best.values[axis.name]] for axis in pair), 180, facecolors="none", edgecolors=INK)
    for axis, scale, setter in zip(pair, (panel.set_xscale, panel.set_yscale), (panel.xaxis, panel.yaxis), strict=True):
        _label(setter, scale, axis, [])
    figure.colorbar(scale_of_colours, ax=panel, label=metric)


def parallel_chart(tried: Sequence[Tried], axes: Sequence[Axis], *, metric: str, title: str) -> bytes:
    """A PNG: each trial a line over one upright axis for each setting and the metric; the best ones are drawn last."""
    figure = Figure(figsize=(2 + 2.4 * len(axes), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK)
    panel: Any = figure.subplots()
    columns = [_heights(tried, axis) for axis in axes]
    reached = [one.reached for one in tried]
    low, high = min(reached, default=0.0), max(reached, default=1.0)
    columns.append(([(value - low) / max(high - low, 1e-12) for value in reached], f"{low:.4g}", f"{high:.4g}"))
    for number in sorted(range(len(tried)), key=lambda number: reached[number]):
        heights = [heights[number] for heights, _, _ in columns]
        style = "-" if tried[number].whole else ":"
        panel.plot(range(len(columns)), heights, style, color=colormaps[COLOURS](heights[-1]), linewidth=1.6)
    for place, (_, bottom, top) in enumerate(columns):
        panel.axvline(place, color=FAINT, linewidth=1)
        panel.text(place, -0.06, bottom, ha="center", va="top", fontsize=8, color=INK)
        panel.text(place, 1.03, top, ha="center", va="bottom", fontsize=8, color=INK)
    panel.set_xticks(range(len(columns)), [*(axis.name for axis in axes), metric], fontsize=8)
    panel.tick_params(axis="x", length=0, pad=16)
    panel.set_ylim(-0.02, 1.02)
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    return png(figure)


def _numeric(tried: Sequence[Tried], axis: Axis) -> bool:
    values = [one.values[axis.name] for one in tried]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _places(tried: Sequence[Tried], axis: Axis) -> tuple[list[float], list[str]]:
    """Where the trials lie along an axis, and the names of its places where these are no numbers."""
    values = [one.values[axis.name] for one in tried]
    if _numeric(tried, axis):
        return [float(value) for value in values], []
    names = list(dict.fromkeys(str(value) for value in values))
    return [float(names.index(str(value))) for value in values], names


def _heights(tried: Sequence[Tried], axis: Axis) -> tuple[list[float], str, str]:
    """Where the trials lie on an upright axis from 0 to 1, and what stands at its ends."""
    places, names = _places(tried, axis)
    low, high = min(places, default=0.0), max(places, default=1.0)
    ends = (names[0], names[-1]) if names else (f"{low:.4g}", f"{high:.4g}")
    if axis.log and not names and low > 0:
        places, low, high = [log(place) for place in places], log(low), log(high)
    return [(place - low) / max(high - low, 1e-12) for place in places], *ends


def _dots(
    panel: Any, across: Sequence[float], up: Sequence[float], tried: Sequence[Tried], colours: Sequence[str]
) -> None:
    faces = [colour if one.whole else "none" for one, colour in zip(tried, colours, strict=True)]
    panel.scatter(across, up, 36, facecolors=faces, edgecolors=list(colours))


def _label(scale_of: Any, set_scale: Any, axis: Axis, names: Sequence[str]) -> None:
    if names:
        scale_of.set_ticks(range(len(names)), names)
    elif axis.log:
        set_scale("log")
        scale_of.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale_of.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        scale_of.set_minor_formatter(NullFormatter())
    scale_of.set_label_text(axis.name)
