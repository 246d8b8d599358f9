"""What a run prints at its end, when it is interrupted and when it goes on."""

import os
import re
import shlex
import signal

import pytest

from moco_jax.data.sources.source import Source, Sources
from moco_jax.pretraining import evaluation, pretrain
from moco_jax.training import loop
from moco_jax.training.outputs.metrics_log import MetricsLog
from tests.conftest import run_command
from tests.tiny import tiny_config, tiny_sources


def test_the_end_of_a_run_says_what_it_reached_and_what_next(tmp_path, capsys, monkeypatch):
    write = MetricsLog.write

    def interrupt(self, step, scalars):
        write(self, step, scalars)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_config(knn__every_epochs=1.0, knn__k=200, drift=False)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupt)
        with pytest.raises(loop.Interrupted) as error:
            pretrain.pretrain(config, tmp_path, sources=tiny_sources())
    first, so_far, again = str(error.value).splitlines()
    assert re.fullmatch(r"stopped by SIGTERM at step \d; saved in .*/checkpoints/\d\.", first)
    on = r"on 32 held-out images, k = 96 \(asked 200\)"
    beside = r"\(untrained [\d.]+%, raw pixels 100.00%\)"
    assert re.fullmatch(rf"so far: kNN top-1 [\d.]+% {beside} at step 3 {on}", so_far)
    assert again == "The same command continues from there."
    at_first, later = _evaluations(capsys.readouterr().out)
    base = r"\(32 held-out images, k = 96 \(asked 200\)\); took \d+ s"
    top1 = r"epoch \d.00; kNN top-1 [\d.]+%"
    assert re.fullmatch(rf"step 0  {top1} untrained, 100.00% on raw pixels {base}", at_first)
    assert re.fullmatch(rf"step 3  {top1}; took \d+ s", later)
    monkeypatch.chdir(tmp_path.parent)
    pretrain.pretrain(config, tmp_path, sources=tiny_sources())
    ended = capsys.readouterr().out
    first, *others = _evaluations(ended)
    assert re.fullmatch(rf"step 6  {top1} {base}", first)
    assert len(others) == 2 and not any("held-out" in line for line in others)
    name = tmp_path.name
    assert re.search(rf"\nresumed at step \d of 10 from {name}/checkpoints/\d\n", ended)
    done = r"\ndone: step 10 of 10 in \d+:\d+ \([\d.e+]+ steps/s while training\); saved in "
    assert re.search(
        rf"{done}{name}/checkpoints/10\nkNN top-1 [\d.]+% {beside} at step 10 {on}\n", ended
    )
    assert f'  import moco_jax; encoder = moco_jax.load("{name}")\n' in ended
    pretrain.pretrain(config, tmp_path, sources=tiny_sources())  # nothing is left to do
    again = capsys.readouterr().out
    assert again.endswith(ended[ended.index("\nkNN top-1", ended.index("\ndone: ")) :])


def test_the_result_of_step_0_says_which_number_is_whose():
    results = [{"step": 0, "knn_top1": 25.0, "knn_top1_pixels": 40.0, "knn_images": 6, "knn_k": 54}]
    line = evaluation.reached(results, tiny_config(knn__k=200))
    base = "on 6 held-out images, k = 54 (asked 200)"
    assert line == f"kNN top-1 25.00% untrained (raw pixels 40.00%) at step 0 {base}"


def _evaluations(printed: str) -> list[str]:
    """Returns the lines of evaluations."""
    return re.findall(r"^step \d+  epoch.*kNN.*$", printed, re.MULTILINE)


def test_steps_decide_the_length_where_both_are_set(tmp_path, capsys):
    config = tiny_config(steps=2, epochs=50.0, knn__every_epochs=0.0)
    assert int(pretrain.pretrain(config, tmp_path, sources=tiny_sources()).step) == 2
    printed = capsys.readouterr().out
    assert "steps=2 is the length of the run; epochs=50.0 is not used\n" in printed


def test_skipped_images_are_counted_at_the_end(tmp_path, capsys, caplog):
    good = tiny_sources()
    images = [good.train.read(i) for i in range(96)]
    images[3:5] = [b"no image", b""]
    names = [f"/data/fish/{i}.jpg" for i in range(96)]
    train = Source("/data", images.__getitem__, names, None, ())
    config = tiny_config(steps=1, data__max_bad_fraction=0.1, data__canvas=16)
    pretrain.pretrain(config, tmp_path, sources=Sources(train, None))
    assert "skipped fish/3.jpg (no known image format; " in caplog.text
    printed = capsys.readouterr().out
    assert "/data: 94 of 96 images, 0 MB resident\n" in printed
    assert "\n2 images skipped: 1 x no known image format, 1 x the file is empty\n" in printed
    assert "moco_jax.knn" not in printed  # there are no classes


@pytest.mark.slow  # six commands
def test_each_printed_command_works(repository, tmp_path):
    small = [
        "--config.model.width=0.125", "--config.steps=2", "--config.batch_size=32",
        "--config.queue_size=64", "--config.data.image_size=8", "--config.data.eval_resize=8",
        "--config.knn.bank=200", "--config.knn.queries=50",
    ]  # fmt: skip
    done = run_command(
        repository, "moco_jax.main", f"--config={repository}/configs/digits.py", *small,
        "--workdir=my run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("  python")]
    assert [words[2].partition(".")[2] for words in lines] == ["knn", "main", "embed", "convert"]
    for _, _, module, *arguments in lines:
        more = ["--config.steps=2"] if module == "moco_jax.main" else []
        done = run_command(repository, module, *arguments, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "my run" / "features.npz").is_file()
    assert (tmp_path / "my run" / "encoder.safetensors").is_file()
