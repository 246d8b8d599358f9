"""Assembles the report of one or several runs as one HTML file."""

import itertools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jinja2
from bokeh.resources import Resources
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from moco_jax import config as config_lib
from moco_jax.health.verdict import verdict
from moco_jax.pages import charts, plots
from moco_jax.pages.record import Record
from moco_jax.pages.seen import pictures
from moco_jax.pages.space import FEWEST, Encoded, encode, explore
from moco_jax.pages.space_section import section, stylesheet
from moco_jax.parallel.mesh import make_layout
from moco_jax.training.flat_config import flatten

_ASSETS = pathlib.Path(__file__).parent / "assets"
_SHOWN = {  # of the newest numbers, by metric
    "step": "step",
    "epoch": "epoch",
    "knn_top1": "kNN top-1, %",
    "linear_top1": "linear top-1, %",
    "knn_top1_pixels": "kNN top-1 of raw pixels, %",
    "top1": "top-1, %",
    "miou": "mIoU, %",
    "loss": "loss",
    "chance_loss": "loss of guessing",
    "accuracy": "pretext accuracy, %",
    "health/rank": "effective rank",
    "health/spread": "spread of the features",
    "images_per_second": "images/s",
    "data_wait_percent": "waiting for images, %",
}
_SEEN, _SPACE = "What the network sees", "The space of features"
_PAIRS = {"positives": "two views of an image", "negatives": "different images"}


def page(records: Sequence[Record], *, views: bool = True, images: int = 0) -> str:
    """Returns the HTML of a report; it loads nothing from elsewhere.

    Args:
      records: of the runs.
      views: whether images are read and their views drawn.
      images: most images of the first run whose features are shown; 0: none.
    """
    drawn: dict[str, Any] = {}
    sections: list[dict[str, Any]] = [{"id": "verdict", "title": "Is it working?"}]
    shown, problems = pictures(records, views)
    if shown or problems:
        text = "\n".join(problems)
        sections.append({"id": "seen", "title": _SEEN, "images": shown, "text": text})
    space, problem = _space(records[0], images, drawn) if images else ({}, "")
    if space or problem:
        sections.append(space or {"id": "space-problem", "title": _SPACE, "text": problem})
    for chosen in charts.chosen(records):
        sections.append(_section(chosen, records, drawn))
    if similarities := _similarities(records, drawn):
        sections.append(similarities)
    sections.append(_configuration(records))
    names = ", ".join(record.name for record in records)
    return _rendered(
        drawn,
        space,
        title=f"Report: {names}",
        subtitle=_subtitle(records),
        sections=sections,
        runs=[_run(record) for record in records],
        newest=_newest(records),
    )


def features_page(encoded: Encoded, name: str) -> str:
    """Returns the HTML of a report on features of `FEWEST` images or more, from the file `name`."""
    drawn: dict[str, Any] = {}
    space = _explored(encoded, drawn)
    return _rendered(drawn, space, title=f"Report: {name}", sections=[space])


def _rendered(drawn: dict[str, Any], space: dict[str, Any], **content: Any) -> str:
    """Returns the page with these plots, the section `space` and what else the template shows."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    template = environment.from_string((_ASSETS / "page.html").read_text())
    return template.render(
        **content,
        css=Markup((_ASSETS / "page.css").read_text()),
        js=Markup((_ASSETS / "page.js").read_text()),
        space=space,
        space_js=Markup((_ASSETS / "space.js").read_text()),
        space_data=htmlsafe_json_dumps(space.get("data", {})),
        sheets=stylesheet(space) if space else "",
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render_js()),
        plots=htmlsafe_json_dumps(drawn),
    )


def _space(record: Record, images: int, drawn: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the section about the features of a run's images, or what is in its way."""
    if record.task != "pretrain":
        return {}, ""
    try:
        encoded = encode(record.folder, images)
    except (OSError, ValueError, TypeError) as error:  # the config may be of any kind
        return {}, f"The features can't be shown: {error}"
    if len(encoded.names) < FEWEST:
        return {}, f"The features can't be shown: {len(encoded.names)} images are too few"
    return _explored(encoded, drawn), ""


def _explored(encoded: Encoded, drawn: dict[str, Any]) -> dict[str, Any]:
    """Returns the section about the features; adds its map to `drawn`."""
    found = explore(encoded, make_layout(jax.local_devices()[:1]))
    shown = section(encoded, found, drawn)
    sheet = shown["small"]
    shown["data"] |= {"side": sheet.side, "columns": sheet.columns}
    return shown


def _run(record: Record) -> dict[str, Any]:
    return {"name": record.name, "verdicts": verdict(record.lines)}


def _newest(records: Sequence[Record]) -> dict[str, Any]:
    """Returns a table of the newest numbers, a column for each run."""
    newest = [{k: v for line in record.lines for k, v in line.items()} for record in records]
    rows = [
        (name, *(number(line[key]) if key in line else "" for line in newest))
        for key, name in _SHOWN.items()
        if any(key in line for line in newest)
    ]
    return {"columns": ["newest", *(record.name for record in records)], "rows": rows}


def _subtitle(records: Sequence[Record]) -> str:
    if len(records) > 1:
        return f"{len(records)} runs, curves overlaid"
    (record,) = records
    start = record.starts[-1] if record.starts else {}
    parts = [f"{record.task} {record.config.get('name', '')}".strip()]
    parts += [f"{len(start['devices'])} x {start['devices'][0]}"] if start.get("devices") else []
    parts += [f"last started {start['time']}"] if "time" in start else []
    return "; ".join(parts)


def _section(
    section: charts.Section, records: Sequence[Record], drawn: dict[str, Any]
) -> dict[str, Any]:
    """Returns what the template shows of a section; adds its plots to `drawn`."""
    shown = []
    for chart in section.charts:
        name = f"plot-{_slug(chart.title)}"
        drawn[name], legend = plots.lines(chart, records)
        rows = [
            (
                title if len(records) == 1 else f"{record.name}: {title}",
                *(number(x) for x in (values[0], min(values), max(values), values[-1])),
            )
            for record in records
            for key, title in chart.curves.items()
            if (values := record.curve(key)[1])
        ]
        summary = "; ".join(f"{row[0]}: first {row[1]}, last {row[4]}" for row in rows)
        shown.append(
            {"id": name, "title": chart.title, "note": chart.note, "legend": legend}
            | {"rows": rows, "summary": summary}
        )
    return {"id": _slug(section.title), "title": section.title, "charts": shown}


def _similarities(records: Sequence[Record], drawn: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the histograms of cosines at the first and the newest evaluation of each run."""
    shown = []
    for record in records:
        found = {line["step"]: {} for line in record.histograms}
        for line in record.histograms:
            found[line["step"]] |= line
        for step in sorted({*list(found)[:1], *list(found)[-1:]}):
            histograms = {
                name: (found[step][f"health/{key}/counts"], found[step][f"health/{key}/edges"])
                for key, name in _PAIRS.items()
                if f"health/{key}/counts" in found[step]
            }
            if not histograms:
                continue
            title = f"Step {step:,}" + (f" of {record.name}" if len(records) > 1 else "")
            name = f"plot-{_slug(f'{record.name} {title}')}"
            drawn[name], legend = plots.bars(histograms, "cosine")
            note = "Good: two views of an image lie to the right, different images around 0."
            summary = ", ".join(histograms)
            shown.append(
                {"id": name, "title": title, "note": note, "legend": legend, "summary": summary}
            )
    if not shown:
        return None
    return {"id": "similarities", "title": "Similarities of keys", "charts": shown}


def _configuration(records: Sequence[Record]) -> dict[str, Any]:
    columns = ["key", *(record.name for record in records)]
    keys = sorted(set(itertools.chain.from_iterable(record.config for record in records)))
    every = [(key, *(_value(record.config.get(key)) for record in records)) for key in keys]
    if len(records) > 1:
        chosen = [row for row in every if len(set(row[1:])) > 1]
        title = "Keys that differ"
    else:
        base = flatten(config_lib.base()) if records[0].task == "pretrain" else {}
        chosen = [row for row in every if row[1] != _value(base.get(row[0]))] if base else []
        title = "Keys that differ from the defaults"
    tables = [{"title": title, "columns": columns, "rows": chosen, "open": True}] if chosen else []
    tables.append({"title": "All keys", "columns": columns, "rows": every})
    starts = [
        (
            f"{record.name}, step {start['step']:,}",
            start.get("time", ""),
            " ".join(map(str, start.get("command", []))),
            _devices(start.get("devices", [])),
            ", ".join(f"{k} {v}" for k, v in start.get("versions", {}).items()),
        )
        for record in records
        for start in record.starts
    ]
    if starts:
        columns = ["start", "time", "command", "devices", "versions"]
        tables.append({"title": "Starts", "columns": columns, "rows": starts})
    return {"id": "configuration", "title": "Configuration and hardware", "tables": tables}


def _devices(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def number(value: float) -> str:
    """Returns a number with four significant digits; whole and large ones have no decimals."""
    if (float(value).is_integer() or abs(value) >= 1000) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
