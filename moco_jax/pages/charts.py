"""Which charts a report has, and what good and bad look like in each."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from moco_jax.pages.record import Record


class Chart(NamedTuple):
    """Curves that share their axes.

    Attributes:
      title: of the chart.
      curves: metric -> name.
      note: a sentence on what good and bad look like.
      log: whether the values are on a logarithmic axis.
    """

    title: str
    curves: dict[str, str]
    note: str
    log: bool = False


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      title: its heading.
      charts: those that have values are shown.
    """

    title: str
    charts: tuple[Chart, ...]


SECTIONS = (
    Section(
        "Learning",
        (
            Chart(
                "Loss",
                {
                    **{"loss": "loss", "chance_loss": "guessing"},
                    **{"contrastive_loss": "contrastive", "masked_loss": "masked"},
                },
                "Good: it falls below guessing and goes on falling; with a queue it rises first. "
                "Bad: it stays at the level of guessing, or rises above it.",
            ),
            Chart(
                "Pretext accuracy, %",
                {"accuracy": "own key is nearest"},
                "How often a query is nearest to its own key. Good: it rises slowly. Bad: it is "
                "near 100 % while kNN falls, which is cheating.",
            ),
            Chart(
                "Training accuracy, %",
                {"train_top1": "top-1"},
                "Good: it rises. Bad: it is far above that of the test images.",
            ),
            Chart(
                "Gradient norm",
                {"grad_norm": "all", "grad_norm_first": "first", "grad_norm_last": "last"},
                "Good: no spikes after the warm-up. Bad: spikes in the first block, or growth.",
                log=True,
            ),
            Chart("Learning rate", {"lr": "learning rate"}, "Its schedule is in the config."),
            Chart(
                "Momentum of the key encoder",
                {"momentum": "momentum"},
                "Its schedule is in the config.",
            ),
        ),
    ),
    Section(
        "Does it separate the classes?",
        (
            Chart(
                "Accuracy on held-out images, %",
                {
                    **{"knn_top1": "kNN", "linear_top1": "linear"},
                    **{"knn_top1_pixels": "kNN of raw pixels", "top1": "top-1", "top5": "top-5"},
                },
                "Good: it rises above the untrained network (step 0) and above raw pixels. Bad: it "
                "falls while the loss falls.",
            ),
            Chart("mIoU, %", {"miou": "mIoU"}, "Good: it rises."),
        ),
    ),
    Section(
        "Health of the features",
        (
            Chart(
                "Effective rank",
                {"health/rank": "rank"},
                "In how many directions the features differ. Good: near its value at step 0, or "
                "above. Bad: far below it, partial collapse.",
            ),
            Chart(
                "Spread",
                {"health/spread": "features", "health/key_spread": "keys"},
                "1 if unit vectors fill the sphere. Good: above .3. Bad: 0, all images are equal.",
            ),
            Chart(
                "Dead units",
                {"health/dead_units": "fraction"},
                "The fraction of features that are equal for all images. Good: 0. Bad: near 1.",
            ),
            Chart(
                "Alignment and uniformity",
                {"health/alignment": "alignment", "health/uniformity": "uniformity"},
                "Good: uniformity falls to -2 or below, alignment stays small. Bad: both are 0.",
            ),
            Chart(
                "Similarity of keys",
                {
                    "health/positive_similarity": "two views of an image",
                    "health/negative_similarity": "different images",
                },
                "Good: far apart. Bad: equal.",
            ),
        ),
    ),
    Section(
        "Speed",
        (
            Chart("Images per second", {"images_per_second": "images/s"}, "Good: constant."),
            Chart(
                "Waiting for images, % of the time",
                {"data_wait_percent": "waiting"},
                "Good: near 0. Bad: above 50, the run is starved of data.",
            ),
        ),
    ),
)
DRIFT = "key_cosine/age_"
LEVELS = ("knn_top1_pixels",)  # measured once, for comparison at every step
_HEADS = "top1/"  # of the classifiers of the linear protocol
_NO_CURVES = (
    *("step", "epoch", "knn_images", "knn_k", "health/images", "seconds_per_step", "test_images"),
    *("last_top1", "best_top1", "best_epoch"),
)


def chosen(records: Sequence[Record]) -> Iterator[Section]:
    """Yields the sections with the charts in which something varies."""
    present = {key for record in records for line in record.lines for key in line}
    known = set(_NO_CURVES)
    for section in (*SECTIONS, _heads(present), _dictionary(present)):
        charts = []
        for chart in section.charts:
            known |= chart.curves.keys()
            curves = {key: name for key, name in chart.curves.items() if key in present}
            if any(_varies(key, records) for key in curves):
                charts.append(chart._replace(curves=curves))
        if charts:
            yield section._replace(charts=tuple(charts))
    others = [key for key in sorted(present - known) if _varies(key, records)]
    if others:
        yield Section("Other metrics", tuple(Chart(key, {key: key}, "") for key in others))


def _varies(key: str, records: Sequence[Record]) -> bool:
    values = {value for record in records for value in record.curve(key)[1]}
    return len(values) > 1


def _heads(present: Iterable[str]) -> Section:
    keys = sorted(key for key in present if key.startswith(_HEADS))
    curves = {key: key.removeprefix(_HEADS) for key in keys}
    note = (
        "Each head has its own learning rate. Good: the best one is neither the first nor the last."
    )
    return Section("The heads", (Chart("Top-1 of each head, %", curves, note),))


def _dictionary(present: Iterable[str]) -> Section:
    ages = sorted(int(key.removeprefix(DRIFT)) for key in present if key.startswith(DRIFT))
    chart = Chart(
        "Consistency of stored keys",
        {f"{DRIFT}{age}": f"{age} steps old" for age in ages},
        "Cosine of the dictionary's keys and of those that today's encoder makes of the same "
        "views, by age. Good: near 1 for all ages. Bad: old keys differ; a larger momentum helps.",
    )
    return Section("The dictionary", (chart,))
