"""Damaged checkpoints: a whole state, an older one with a warning, or one message; never another.

Each file of the newest checkpoint is deleted, emptied, cut, changed and exchanged in turn.
"""

import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moco_jax.encoders import pretrained
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import pretrain
from moco_jax.pretraining.method import make_method
from moco_jax.training import loop
from moco_jax.training.checkpoints import Checkpoints
from moco_jax.training.flat_config import flatten
from moco_jax.training.integrity import checkpoint_files, checksums
from tests.tiny import tiny_config, tiny_sources

ONE = jax.devices()[:1]
CONFIG = tiny_config(knn__every_epochs=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints of steps 8 and 10."""
    folder = tmp_path_factory.mktemp("run")
    pretrain.pretrain(CONFIG, folder, devices=ONE, sources=tiny_sources())
    return folder


@pytest.fixture(scope="module")
def saved(run):
    """{step: checksums of all arrays} of both checkpoints."""
    folder = run / "checkpoints"
    return {
        step: checksums.summarize_host(
            checkpoint_files.read_arrays(
                folder / str(step), checkpoint_files.read_about(folder / str(step))
            )
        ).arrays
        for step in (8, 10)
    }


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def files(run: pathlib.Path, step: int = 10) -> list[pathlib.Path]:
    folder = run / "checkpoints" / str(step)
    return sorted(file for file in folder.rglob("*") if file.is_file())


def choose(folder: pathlib.Path) -> tuple[int | None, dict]:
    """Returns the step that a run would continue from, and the checksums of its arrays."""
    found = checkpoint_files.newest_whole(folder / "checkpoints")
    assert found is not None
    for why in found.damaged.values():  # TensorStore names all layers above the cause
        assert why.count("Error ") < 2 and "\n" not in why
    return found.step, checksums.summarize_host(found.arrays).arrays


def delete(file: pathlib.Path) -> None:
    file.unlink()


def empty(file: pathlib.Path) -> None:
    file.write_bytes(b"")


def cut(file: pathlib.Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def lengthen(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes() + bytes(100))


def zeros(file: pathlib.Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def text(file: pathlib.Path) -> None:
    file.write_bytes(b"<html>404</html>\n")


def folder(file: pathlib.Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [delete, empty, cut, lengthen, zeros, text, folder])
def test_a_damaged_file_never_gives_another_state(copy, saved, damage):
    outcomes = set()
    for file in files(copy):
        before = file.read_bytes()
        damage(file)
        step, arrays = choose(copy)
        assert arrays == saved[step], file
        outcomes.add(step)
        if file.is_dir():
            file.rmdir()
        file.write_bytes(before)
    assert choose(copy)[0] == 10
    assert 8 in outcomes


@pytest.mark.parametrize("seed", range(3))
def test_one_changed_byte_in_each_file_never_gives_another_state(copy, saved, seed):
    rng, outcomes = np.random.default_rng(seed), []
    for file in files(copy):
        before = file.read_bytes()
        for _ in range(min(8, len(before))):
            changed = bytearray(before)
            changed[rng.integers(len(before))] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            step, arrays = choose(copy)
            assert arrays == saved[step], file
            outcomes.append(step)
        file.write_bytes(before)
    assert outcomes.count(8) > 10


def test_exchanged_files_never_give_another_state(copy, saved):
    old = {file.relative_to(copy / "checkpoints" / "8"): file for file in files(copy, 8)}
    for file in files(copy):
        name = file.relative_to(copy / "checkpoints" / "10")
        if name in old:
            before = file.read_bytes()
            file.write_bytes(old[name].read_bytes())
            step, arrays = choose(copy)
            assert arrays == saved[step], file
            file.write_bytes(before)
    for part in ("about", "state"):
        new = copy / "checkpoints" / "10" / part
        new.rename(copy / "kept")
        shutil.copytree(copy / "checkpoints" / "8" / part, new)
        assert choose(copy)[0] == 8
        shutil.rmtree(new)
        (copy / "kept").rename(new)
    newest, older = copy / "checkpoints" / "10", copy / "checkpoints" / "8"
    newest.rename(copy / "kept")
    older.rename(newest)
    (copy / "kept").rename(older)
    with pytest.raises(checkpoint_files.NoneWhole, match="it is the checkpoint of step 8"):
        choose(copy)


def test_changed_values_of_an_array_are_found_in_checkpoints_that_orbax_reads(copy):
    """A disk or a copy may change values so that every file is well-formed."""
    folder = copy / "checkpoints"
    about = checkpoint_files.read_about(folder / "10")
    state = checkpoint_files.read_arrays(folder / "10", about)
    state["params"]["backbone"]["stem_conv"]["kernel"][0, 0, 0, 0] += 1e-7
    shutil.rmtree(folder / "10")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "10" / "state", state)
    shutil.copytree(folder / "8" / "about", folder / "10" / "about")
    (folder / "10" / "about" / "metadata").write_text(json.dumps(about))
    with pytest.raises(checkpoint_files.Damaged, match="not as they were saved: params/backbone/s"):
        checkpoint_files.read_arrays(folder / "10", about)
    assert choose(copy)[0] == 8


def test_a_run_continues_from_the_newest_whole_checkpoint(copy, saved, caplog):
    (copy / "checkpoints" / "10" / "about" / "metadata").unlink()
    lines = (copy / "metrics.jsonl").read_text()
    with caplog.at_level(logging.WARNING):
        state = pretrain.pretrain(CONFIG, copy, devices=ONE, sources=tiny_sources())
    warning = next(r.getMessage() for r in caplog.records if "is damaged" in r.getMessage())
    assert f"{copy / 'checkpoints' / '10'} is damaged: about/metadata is missing" in warning
    assert "damaged-10; an older one is used" in warning
    assert (copy / "checkpoints" / "damaged-10" / "state").is_dir()
    assert checksums.summarize(state).arrays == saved[10]
    starts = (copy / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in starts] == [0, 8]
    # Steps 9 and 10 were logged again.
    steps = [json.loads(line)["step"] for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in lines.splitlines()]
    dropped = (copy / "metrics.dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in dropped] == [9, 10]
    # What was set aside is neither read nor removed.
    pretrain.pretrain(CONFIG, copy, devices=ONE, sources=tiny_sources())
    assert (copy / "checkpoints" / "damaged-10").is_dir()


def test_without_a_whole_checkpoint_the_message_names_all(copy):
    (copy / "checkpoints" / "10" / "about" / "metadata").unlink()
    shutil.rmtree(copy / "checkpoints" / "8" / "state")
    with pytest.raises(ValueError, match="none of the checkpoints in .* is a whole") as error:
        pretrain.pretrain(CONFIG, copy, devices=ONE, sources=tiny_sources())
    message = str(error.value)
    assert message.endswith("or give another --workdir.")
    assert f"{copy / 'checkpoints' / '10'}: about/metadata is missing" in message
    assert f"{copy / 'checkpoints' / '8'}: its arrays can't be read" in message
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["10", "8"]


@pytest.mark.parametrize("name", ["12", "007", "1" * 30, "12.tmp", "notes"])
@pytest.mark.parametrize("make", [pathlib.Path.mkdir, pathlib.Path.touch])
def test_an_empty_checkpoint_is_damaged_and_other_names_are_none(copy, saved, name, make):
    make(copy / "checkpoints" / name)
    kind = pretrain.checkpoint_kind(CONFIG)
    with Checkpoints(copy / "checkpoints", 2, flatten(CONFIG), kind) as checkpoints:
        checkpoints.check()
        assert checkpoints.latest == 10
        state = checkpoints.restore(make_method(CONFIG, make_layout(ONE), 96).abstract_state())
        assert checksums.summarize(state).arrays == saved[10]
        checkpoints.finish(14, state)
    left = {path.name for path in (copy / "checkpoints").iterdir()}
    aside = f"damaged-{name}" if name in ("12", "1" * 30) else name
    assert {aside, "10", "14"} <= left


def test_readers_fall_back_and_rename_nothing(copy, caplog):
    whole = pretrained.read(copy / "checkpoints" / "8")
    cut(next(file for file in files(copy) if file.name == "manifest.ocdbt"))
    with caplog.at_level(logging.WARNING):
        got = pretrained.read(copy)
    jax.tree.map(np.testing.assert_array_equal, got.variables, whole.variables)
    assert "checkpoints/10 is damaged: " in caplog.text
    assert "Step 8 is read instead" in caplog.text and "step 8" in got.source
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["10", "8"]
    with pytest.raises(ValueError, match="checkpoints/10 is not a whole checkpoint of moco_jax"):
        pretrained.read(copy / "checkpoints" / "10")
    shutil.rmtree(copy / "checkpoints" / "8")
    with pytest.raises(ValueError, match="none of the checkpoints in") as error:
        pretrained.read(copy)
    assert str(error.value).endswith("or give another encoder.")


@pytest.mark.parametrize("way", ["..", "link"])
def test_a_path_with_dots_or_links_is_no_damage(copy, saved, way):
    (copy / "inner").mkdir()
    (copy / "link").symlink_to(copy)
    place = copy / "inner" / ".." if way == ".." else copy / "link"
    assert choose(place)[0] == choose(copy)[0] == 10
    assert pretrained.read(place).source


def test_files_that_may_not_be_read_are_no_damage(copy, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_bytes", refused)
    with pytest.raises(PermissionError, match="about/metadata can't be read"):
        checkpoint_files.newest_whole(copy / "checkpoints")


def test_a_state_with_infinite_statistics_is_not_saved(tmp_path):
    """The loss may stay finite: statistics are not used in training mode."""
    from moco_jax.pretraining import run as run_module

    make, steps = run_module.make_run_step, []

    def overflowing(*args):
        step = make(*args)

        class Step:
            def lower(self, state, *rest):
                compiled = step.lower(state, *rest).compile()

                def call(state, *rest):
                    steps.append(1)
                    state, metrics = compiled(state, *rest)
                    if len(steps) == 7:
                        stats = jax.tree.map(lambda x: x * np.inf, state.batch_stats)
                        state = state.replace(batch_stats=stats)
                    return state, metrics

                call.memory_analysis = lambda: None
                return type("Lowered", (), {"compile": lambda _: call})()

        return Step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_run_step", overflowing)
        with pytest.raises(loop.NotFinite) as error:
            pretrain.pretrain(CONFIG, tmp_path, devices=ONE, sources=tiny_sources())
    message = str(error.value)
    assert "step 8: the loss is finite, but the state is not: batch_stats/backbone/" in message
    assert f"Last good checkpoint: {tmp_path / 'checkpoints' / '4'}." in message
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_a_state_of_another_shape_is_no_damage(copy):
    """Such as of another version: it stays where it is."""
    recipe = checkpoint_files.read_about(copy / "checkpoints" / "10")["recipe"]
    kind = pretrain.checkpoint_kind(CONFIG)
    with Checkpoints(copy / "checkpoints", 2, recipe, kind) as checkpoints:
        checkpoints.check()
        with pytest.raises(ValueError, match="has other arrays: batch_stats.*none now"):
            checkpoints.restore({"params": {"k": jax.numpy.zeros(3)}})
    assert (copy / "checkpoints" / "10").is_dir()
