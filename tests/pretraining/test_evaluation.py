"""The evaluations of a run: a linear classifier, health with and without labels, the verdict."""

import json

import numpy as np
import pytest

from moco_jax.data.sources.source import Sources, array_source
from moco_jax.pretraining import pretrain
from tests.tiny import tiny_config, tiny_sources

HEALTH = {
    *("rank", "spread", "dead_units", "key_spread", "alignment", "uniformity", "images"),
    *("positive_similarity", "negative_similarity"),
}


def entries(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 10 steps, interrupted after 4: its folder, and what the second start printed."""
    folder, sources = tmp_path_factory.mktemp("run"), tiny_sources()
    changes = {"health__images": 24, "health__probe": True, "knn__every_epochs": 2.0}
    pretrain.pretrain(tiny_config(steps=4, **changes), folder, sources=sources)
    pretrain.pretrain(tiny_config(**changes), folder, sources=sources)
    return folder


def test_every_evaluation_has_measures_of_held_out_images(run):
    found = [line for line in entries(run / "metrics.jsonl") if "health/rank" in line]
    assert [line["step"] for line in found] == [0, 4, 6, 10]
    for line in found:
        assert {f"health/{name}" for name in HEALTH} < line.keys()
        assert line["health/images"] == 24
        assert 1 <= line["health/rank"] <= 24 and 0 <= line["health/dead_units"] <= 1
        assert line["health/positive_similarity"] > line["health/negative_similarity"]
        assert 0 <= line["linear_top1"] <= 100 and "knn_top1" in line
    assert found[-1]["linear_top1"] > 60  # the classes of this noise differ in colour


def test_histograms_have_all_pairs_and_belong_to_the_evaluations(run):
    found = {line["step"]: line for line in entries(run / "histograms.jsonl")}
    assert list(found) == [0, 4, 6, 10]
    names = {name for line in entries(run / "histograms.jsonl") for name in line}
    assert names == {"step"} | {
        f"health/{kind}/{key}" for kind in ("positives", "negatives") for key in ("counts", "edges")
    }
    sums = {
        sum(v)
        for line in entries(run / "histograms.jsonl")
        for k, v in line.items()
        if "counts" in k
    }
    assert sums == {24, 24 * 23}


def test_a_resumed_run_measures_the_same_images_and_views(run, tmp_path):
    changes = {"health__images": 24, "health__probe": True, "knn__every_epochs": 2.0}
    pretrain.pretrain(tiny_config(**changes), tmp_path, sources=tiny_sources())
    whole, parts = (
        {line["step"]: line for line in entries(folder / "metrics.jsonl") if "health/rank" in line}
        for folder in (tmp_path, run)
    )
    assert whole[6] == parts[6] and whole[10] == parts[10]


def test_images_without_labels_have_health_and_a_verdict(tmp_path, capsys):
    train = tiny_sources().train
    images = np.stack([train.read(i) for i in range(len(train))])
    changes = {"health__images": 32, "health__probe": True}
    sources = Sources(array_source(images), None)
    pretrain.pretrain(tiny_config(**changes), tmp_path, sources=sources)
    found = [line for line in entries(tmp_path / "metrics.jsonl") if "health/rank" in line]
    assert [line["step"] for line in found] == [0, 10] and "knn_top1" not in found[-1]
    printed = capsys.readouterr().out
    assert printed.count("verdict: ") == 2  # at the last evaluation and at the end
    assert "health: 32 of the 96 training images are measured (health.images)" in printed


@pytest.mark.parametrize("images", [0, 8])
def test_few_images_or_none_have_no_health(tmp_path, images):
    config = tiny_config(steps=1, health__images=images)
    pretrain.pretrain(config, tmp_path, sources=tiny_sources())
    found = entries(tmp_path / "metrics.jsonl")
    assert any("knn_top1" in line for line in found)
    assert not any("health/rank" in line for line in found)
