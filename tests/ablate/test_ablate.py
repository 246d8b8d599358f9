"""Tests the variants, the grid of runs, resuming, the table and the plot."""

import json
import pathlib

import jax
import pytest

from configs import cifar10
from moco_jax.ablate import grid, report
from moco_jax.ablate.grid import Result
from moco_jax.ablate.studies import STUDIES, variants
from moco_jax.pretraining import pretrain
from moco_jax.training import loop
from tests.tiny import tiny_config, tiny_sources


def test_every_study_has_valid_variants_of_the_cifar10_config():
    for study in STUDIES:
        found = variants(study, cifar10.get_config())
        assert len({v.label for v in found}) == len(found) >= 2, study
        grid.check([(v.label, v.config) for v in found], devices=1)


def test_variants_change_only_the_knob():
    config = cifar10.get_config()
    assert [v.config.momentum for v in variants("momentum", config, ["0", ".5"])] == [0, 0.5]
    assert [v.label for v in variants("queue_size", config)] == ["512", "2048", "8192"]
    mechanisms = {v.label: v.config for v in variants("dictionary", config)}
    bank = mechanisms["memory_bank_nce"]
    assert (bank.bank.negatives, bank.bank.loss, len(bank.views)) == (4096, "nce", 1)
    assert mechanisms["moco"].to_json() == config.to_json()
    assert {v.config.batch_size for v in variants("dictionary", config)} == {512}


@pytest.mark.parametrize(
    ("study", "changes", "values", "message"),
    [
        ("depth", {}, [], "unknown --study=depth; allowed: momentum, dictionary"),
        ("head", {}, ["deep"], "unknown --values=deep; allowed: linear, mlp"),
        ("temperature", {}, ["warm"], "--values of temperature must be numbers, got warm"),
        (
            "dictionary",
            {"symmetric": True},
            [],
            "needs symmetric=False and two views; got symmetric=True",
        ),
        ("queue_size", {"dictionary": "in_batch"}, [], "needs dictionary='queue', got 'in_batch'"),
        ("momentum", {"key_encoder": "shared"}, [], "needs key_encoder='momentum', got 'shared'"),
        ("shuffle_bn", {"bn_groups": 1}, [], "needs bn_groups above 1 .* got bn_groups=1"),
        ("temperature", {}, ["0.1", "0.10"], "--values has a value twice: 0.1, 0.1"),
        ("queue_size", {}, ["1e3"], "--values of queue_size must be whole numbers, got 1e3"),
    ],
)
def test_error_says_what_a_study_needs(study, changes, values, message):
    with pytest.raises(ValueError, match=message):
        variants(study, tiny_config(**changes), values)


def test_an_invalid_variant_fails_before_any_run(tmp_path):
    chosen = variants("queue_size", tiny_config(), ["128", "100"])
    with pytest.raises(
        ValueError, match="100: (?s:.*)queue_size=100 must be a multiple of the 32 keys"
    ):
        grid.run_all(chosen, [0], tmp_path, jax.devices()[:1], tiny_sources())
    assert not list(tmp_path.iterdir())


def test_runs_resume_and_end_in_a_table(tmp_path, monkeypatch, capsys):
    config = tiny_config(steps=3, drift=True)
    chosen = variants("momentum", config, ["0.5", "0.0"])
    done, real = [], pretrain.pretrain

    def counted(config, folder, **kwargs):
        done.append(folder.parent.name)
        if len(done) == 2:
            raise loop.Interrupted("stopped", by=15)
        if config.momentum == 0:
            raise loop.NotFinite("step 2: loss=nan. More follows.")
        return real(config, folder, **kwargs)

    monkeypatch.setattr(pretrain, "pretrain", counted)

    def run():
        return grid.run_all(chosen, [7], tmp_path, jax.devices()[:1], tiny_sources())

    with pytest.raises(loop.Interrupted):
        run()
    results = run()
    printed = capsys.readouterr().out
    assert "done: step 3 of 3" in printed and "moco_jax.load" not in printed
    assert done == ["0.5", "0.0", "0.0"]
    trained, failed = results
    lines = (tmp_path / "0.5" / "seed_7" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert trained.loss == [x["loss"] for x in lines if "loss" in x][-1]
    assert trained.knn_top1 == [x["knn_top1"] for x in lines if "knn_top1" in x][-1]
    assert trained.key_cosine == next(
        x["key_cosine/age_2"] for x in lines if "key_cosine/age_2" in x
    )
    assert trained.megabytes and trained.seconds
    assert failed == Result("0.0", 7, failure="step 2: loss=nan")
    assert run() == results and len(done) == 3  # all read from files

    table = report.table("momentum m", results)
    assert "| 0.0 | 0, 1 failed (step 2: loss=nan) | - |" in table
    report.plot("momentum m", results, tmp_path, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    # A folder from before a config key existed resumes; the key has its default there.
    config = tmp_path / "0.5" / "seed_7" / "study.json"
    older = json.loads(config.read_text())
    del older["remat"]
    config.write_text(json.dumps(older))
    assert run() == results

    chosen[0].config.lr = 0.5
    with pytest.raises(ValueError, match=r"another config \(lr: 0.03, now 0.5\)"):
        run()


def test_a_run_that_never_started_accepts_another_config(tmp_path):
    def run(**changes):
        chosen = variants("head", tiny_config(steps=1, **changes), ["mlp"])
        grid.run_all(chosen, [0], tmp_path, jax.devices()[:1])

    for path in ("/nowhere", "/neither"):
        with pytest.raises(FileNotFoundError, match=path):
            run(data__source="images", data__path=path)
    (tmp_path / "mlp" / "seed_0" / "result.json").write_text("")
    with pytest.raises(ValueError, match="another config"):
        run(data__source="images", data__path="/nowhere")
    with pytest.raises(
        ValueError, match="result.json can't be read: .*; remove it to repeat the run"
    ):
        run(data__source="images", data__path="/neither")


def test_the_table_has_means_and_standard_deviations():
    results = [
        Result("a", seed, knn, 50.0, 2.0, 3.0, None, 60.0, 10.4)
        for seed, knn in enumerate([80.0, 82.0])
    ]
    assert report.table("knob", results).splitlines() == [
        "| knob | runs | kNN top-1, % | pretext accuracy, % | loss - chance loss | "
        "oldest keys' cosine | time of all steps | memory per device, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a | 2 | 81.00 ± 1.41 | 50.0 ± 0.0 | -1.00 ± 0.00 | - | 1:00 | 10 |",
    ]


def test_the_workdir_of_a_run():
    assert grid.workdir(pathlib.Path("out"), "0.9", 3) == pathlib.Path("out/0.9/seed_3")
