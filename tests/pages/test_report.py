"""The report of runs as one HTML file."""

import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moco_jax.pages import charts, document, plots, references
from moco_jax.pages.record import read
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.tiny import tiny_config


def workdir(folder, *, knn=(20.0, 50.0), lines=(), **changes):
    """Makes the workdir of a finished run, whose images are those of digits."""
    folder.mkdir(parents=True)
    config = tiny_config(**changes)
    (folder / "config.json").write_text(config.to_json_best_effort())
    health = {"health/rank": 30.0, "health/spread": 0.6, "health/key_spread": 0.8}
    log = MetricsLog(folder, 0)
    log.open()
    log.write(0, {"knn_top1": knn[0], "knn_top1_pixels": 40.0, **health})
    for step in range(1, 11):
        log.write(
            step, {"loss": 5 - step / 5, "chance_loss": 5.2, "accuracy": 3.0 * step, "lr": 0.1}
        )
        log.histogram(step, "health/positives", np.linspace(0.5, 1, 20))
        if step in (5, 10):
            drift = {"key_cosine/age_0": 1.0, "key_cosine/age_3": 0.8 + step / 100}
            log.write(step, {"knn_top1": knn[1], **drift, **health})
    log.close()
    start = {"time": "2026-01-01", "command": ["main.py"], "step": 0, "devices": ["cpu"] * 2}
    (folder / "starts.jsonl").write_text(json.dumps(start | {"versions": {"jax": "1.2"}}) + "\n")
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(folder):
    return document.page(read([folder]))


class Outline(html.parser.HTMLParser):
    """Collects the ids, the links, the addresses and the visible text of a page."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.addresses, self.text, self._hidden = [], [], [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        self._hidden = tag if tag in ("script", "style") else ""

    def handle_data(self, data):
        self.text += "" if self._hidden else f"{data}\n"

    def handle_endtag(self, tag):
        self._hidden = ""


def plotted(page) -> dict:
    return json.loads(page.split('id="plots">')[1].split("</script>")[0])


def test_it_begins_with_the_verdict_and_has_a_section_for_each_question(page):
    outline = Outline(page)
    text = outline.text
    assert "healthy kNN 50.00%, 20.00% at first, rank 30.0" in " ".join(text.split())
    titles = [
        *("Is it working?", "What the network sees", "Learning", "Does it separate the classes?"),
        *("The dictionary", "Similarities of keys", "Configuration and hardware"),
    ]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def test_it_loads_nothing(page):
    outline = Outline(page)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert "default-src 'none'" in page and len(page) < 3e6
    assert not re.search(r"url\((?!data:)", page[: page.index("</style>")])


def test_each_plot_has_its_place_its_curves_and_its_numbers_in_words(page):
    items = plotted(page)
    outline = Outline(page)
    assert set(items) <= set(outline.ids) and len(items) >= 6
    assert "loss: first 4.8, last 3; guessing: first 5.2, last 5.2" in page
    assert "plot-loss" in items and "plot-learning-rate" not in items  # it is constant here


def test_views_of_the_run_are_shown_with_a_text_for_those_who_cant_see_them(page):
    assert re.search(r'<img src="data:image/webp;base64,[^"]{100,}" alt="6 rows: an image', page)


def test_the_config_names_what_differs_from_the_defaults(page):
    text = " ".join(Outline(page).text.split())
    assert "queue_size 128" in text and "2 x cpu" in text and "jax 1.2" in text
    differing = text[text.index("Keys that differ") : text.index("All keys")]
    assert "batch_size 32" in differing and "temperature" not in differing


def test_runs_are_compared(folder, tmp_path):
    other = workdir(tmp_path / "second", knn=(20.0, 21.0), lr=0.5, data__source="images")
    page = document.page(read([folder, other]))
    text = " ".join(Outline(page).text.split())
    assert "healthy" in text and "not learning yet" in text
    assert "newest first second" in text and "kNN top-1, % 50 21" in text
    differing = text[text.index("Keys that differ") : text.index("All keys")]
    assert "lr 0.03 0.5" in differing and "queue_size" not in differing
    assert "second: its images can't be opened" in text
    assert "first: kNN: first 20, last 50" in page and "second: kNN: first 20, last 21" in page


def test_equal_folder_names_have_their_parents(tmp_path):
    folders = [workdir(tmp_path / parent / "run") for parent in "ab"]
    assert [record.name for record in read(folders)] == ["a/run", "b/run"]


def test_a_known_curve_lies_behind_that_of_the_same_recipe(tmp_path):
    recipe = {"name": "digits", "epochs": 36.0, "batch_size": 64, "lr": 0.03}
    lines = [json.dumps({"step": 186, "epoch": 2.0, "loss": 3.0})]
    for changes, known in ((recipe, 1), (recipe | {"lr": 0.1}, 0)):
        (record,) = read([workdir(tmp_path / f"{known}", lines=lines, **changes)])
        page = document.page([record], views=False)
        assert page.count("measured for this recipe") == known
        assert references.known(record, ["loss"]) == {}
    (record,) = read([tmp_path / "1"])
    steps, values = references.known(record, ["knn_top1"])["measured for this recipe"]
    assert steps[-1] == 36 * 93 and values[-1] == 72.42


def test_names_and_values_are_escaped(tmp_path):
    folder = workdir(tmp_path / "<img src=x onerror=alert(1)>", name="</script><b>&<!--<script>")
    page = document.page(read([folder]))
    assert "<img src=x" not in page and "</script><b>" not in page
    assert "</script><b>&" in Outline(page).text


def test_reconstructions_are_shown(tmp_path):
    folder = workdir(tmp_path / "masked")
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(folder / "reconstructions.png")
    assert page_images(document.page(read([folder]))) == 2


def page_images(page) -> int:
    return page.count("<img ")


def test_a_log_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path):
    lines = ["", "{", '{"step": 11, "loss": NaN}', '{"loss": 1}', "[1]", '{"step": 12, "lo']
    (record,) = read([workdir(tmp_path / "run", lines=lines)])
    assert record.lines[-1]["step"] == 10


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", '{"step": 11, "loss": "abc", "health/rank": [1]}'),
        ("histograms.jsonl", '{"step": 11, "health/positives/counts": 5}'),
        ("histograms.jsonl", '{"step": 11, "health/positives/counts": [5]}'),
        ("starts.jsonl", '{"step": 11, "devices": 5}'),
        ("config.json", '{"batch_size": "sixty", "model": 5, "data": {"source": "digits"}}'),
        ("reconstructions.png", "no image"),
    ],
)
def test_what_is_damaged_is_left_out(tmp_path, file, text):
    folder = workdir(tmp_path / "run")
    old = (folder / file).read_text() if file.endswith("jsonl") else ""
    (folder / file).write_text(f"{old}{text}\n")
    page = document.page(read([folder]))
    assert "healthy" in page


def test_a_run_before_its_second_evaluation_has_no_verdict(tmp_path):
    folder = workdir(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:3]))
    assert "There is no verdict" in document.page(read([folder]), views=False)


def test_other_tasks_and_unknown_metrics_have_their_charts(tmp_path):
    lines = [
        json.dumps({"step": s, "top1": 10.0 * s, "top1/lr=0.1": 1.0 * s, "new": s, "constant": 1})
        for s in (11, 12)
    ]
    (record,) = read([workdir(tmp_path / "run", lines=lines)])
    titles = {chart.title for section in charts.chosen([record]) for chart in section.charts}
    assert {"Top-1 of each head, %", "new"} <= titles and "constant" not in titles


def test_long_curves_are_thinned_and_keep_their_end():
    steps, values = plots.thinned(list(range(12345)), list(range(12345)))
    assert len(steps) <= 1000 and steps[-1] == 12344 and steps == values
    assert plots.thinned([], []) == ([], [])
    assert plots.thinned([5], [1.0]) == ([5], [1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is no folder"),
        (lambda path: (workdir(path) / "config.json").write_text("[1, 2]"), "can't be read"),
        (lambda path: path.mkdir(), "is no workdir of a run: it has no config.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "no metrics yet"),
        (lambda path: (workdir(path) / "config.json").write_text("{"), "can't be read"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        read([tmp_path / "run"])


@pytest.mark.parametrize(
    ("number", "text"),
    [(1234567, "1,234,567"), (48402.3, "48,402"), (0.123456, "0.1235"), (5.0, "5"), (-2.5, "-2.5")],
)
def test_numbers_are_short(number, text):
    assert document.number(number) == text


def command(*arguments):
    start = [sys.executable, "-m", "moco_jax.report", *arguments]
    return subprocess.run(start, capture_output=True, text=True)


def test_the_command_writes_the_page(folder):
    done = command(f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}/report.html: ")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(folder.glob("*unfinished*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --workdir, such as --workdir=runs/digits, and --features"),
        (["--workdir={}", "--features=a.npz"], "give one of --workdir"),
        (["--workdir={}", "--images=digits"], "--images has no effect without --features"),
        (["--features=/nowhere/a.npz"], "--features=/nowhere/a.npz: there are no features at"),
        (["--workdir=/nowhere"], "--workdir=/nowhere: the workdir /nowhere is no folder"),
        (["--workdir={0},,{0}"], "--workdir has an empty name between its commas"),
        (["--workdir={}", "--out=page.txt"], "--out=page.txt must end in .html"),
        (["--workdir={}", "--out=/nowhere/page.html"], "there is no folder /nowhere"),
    ],
)
def test_errors_are_one_message(folder, arguments, message):
    done = command(*(argument.format(folder) for argument in arguments))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
