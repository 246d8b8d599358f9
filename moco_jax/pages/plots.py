"""Charts and histograms as Bokeh figures, in the JSON that BokehJS draws."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from moco_jax.pages.charts import LEVELS, Chart
from moco_jax.pages.record import Record
from moco_jax.pages.references import known

# Distinguishable on white and on black, by people with deficient colour vision too (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#777777")
_REFERENCE = "#888888"
_DASHES = ("solid", "dashed", "dotted", "dotdash")
_MOST_POINTS = 1000  # of a curve
_HEIGHT = 260  # pixels


def lines(chart: Chart, records: Sequence[Record]) -> tuple[Any, list[tuple[str, str, str]]]:
    """Returns a chart as JSON, and its legend: name, colour and dash of each curve."""
    plot = _figure("step", log=chart.log and _is_positive(chart, records))
    legend = []
    for i, record in enumerate(records):
        for j, (key, name) in enumerate(chart.curves.items()):
            steps, values = thinned(*record.curve(key))
            if not steps:
                continue
            if key in LEVELS:
                steps, values = [steps[0], record.lines[-1]["step"]], [values[0]] * 2
            color, dash = (i, j) if len(records) > 1 else (j, 0)
            style: dict[str, Any] = {
                "line_color": COLORS[color % len(COLORS)],
                "line_dash": _DASHES[dash % len(_DASHES)],
            }
            plot.line(steps, values, line_width=2, **style)
            if len(steps) < 30:
                plot.scatter(steps, values, size=5, color=style["line_color"])
            shown = name if len(records) == 1 else f"{record.name}: {name}"
            legend.append((shown, style["line_color"], style["line_dash"]))
    for name, (steps, values) in known(records[0], list(chart.curves)).items():
        plot.line(steps, values, line_width=2, line_color=_REFERENCE, line_dash="dashed")
        legend.append((name, _REFERENCE, "dashed"))
    return json_item(plot), legend


def bars(histograms: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str):
    """Returns histograms (counts, edges) by name as JSON, and their legend. Areas are 1."""
    plot, legend = _figure(label), []
    for (name, (counts, edges)), color in zip(histograms.items(), COLORS, strict=False):
        heights = np.asarray(counts) / (np.sum(counts) * np.diff(edges) + 1e-12)
        plot.quad(
            top=heights.tolist(),
            bottom=0,
            left=list(edges[:-1]),
            right=list(edges[1:]),
            fill_color=color,
            fill_alpha=0.5,
            line_color=None,
        )
        legend.append((name, color, "solid"))
    return json_item(plot), legend


def scatter(places: np.ndarray) -> Any:
    """Returns places f32[N, 2] as JSON; the page gives the points their colours and the images."""
    plot = figure(
        sizing_mode="stretch_both",
        tools="box_zoom",
        toolbar_location=None,
        output_backend="canvas",
    )
    x, y = (np.round(places[:, axis].astype(float), 4).tolist() for axis in (0, 1))
    source = ColumnDataSource({"x": x, "y": y, "color": ["#888888"] * len(x)}, name="points")
    plot.scatter(
        "x",
        "y",
        source=source,
        size=6,
        fill_color="color",
        fill_alpha=0.8,
        line_color=None,
        nonselection_fill_alpha=0.1,
        selection_line_color="color",
    )
    plot.add_tools(HoverTool(tooltips=None, limit=1))
    plot.background_fill_color = plot.border_fill_color = None
    plot.axis.visible = False
    return json_item(plot)


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Returns at most `_MOST_POINTS` points of a curve, the last one among them."""
    every = -(-len(steps) // _MOST_POINTS) or 1
    start = (len(steps) - 1) % every if steps else 0
    return list(steps[start::every]), list(values[start::every])


def _figure(label: str, log: bool = False) -> figure:
    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        x_axis_label=label,
        y_axis_type="log" if log else "auto",
    )
    plot.add_tools(HoverTool(tooltips="@x: @y", attachment="above"))
    plot.background_fill_color = plot.border_fill_color = None
    return plot


def _is_positive(chart: Chart, records: Iterable[Record]) -> bool:
    return all(min(r.curve(key)[1], default=1) > 0 for r in records for key in chart.curves)
