"""Compiled programs that a workdir keeps."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from moco_jax.training import compiled

OWN = (compiled._VARIABLE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture
def no_cache(monkeypatch):
    """Leaves the choice of the folder to the product, as for a user."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiled, "_SHORTEST", 0.0)
    chosen = getattr(jax.config, compiled._CHOSEN)
    jax.config.update(compiled._CHOSEN, None)
    yield
    jax.config.update(compiled._CHOSEN, chosen)
    compiled.compilation_cache.reset_cache()


def compile_something():
    """Compiles a program that no other test compiles."""
    return jax.jit(lambda x: jnp.sin(x) * 1.2345)(jnp.ones(7))


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_programs_are_kept_in_the_block_only(tmp_path, no_cache):
    with compiled.kept(tmp_path):
        compile_something()
    kept = files(tmp_path)
    assert any(name.startswith("jit__lambda") for name in kept)
    assert getattr(jax.config, compiled._CHOSEN) is None
    jax.jit(lambda x: jnp.cos(x) * 5.4321)(jnp.ones(7))
    assert files(tmp_path) == kept
    with compiled.kept(tmp_path):
        compile_something()
    assert [name for name in files(tmp_path) if "lambda" in name] == [
        name for name in kept if "lambda" in name
    ]


def test_folders_are_private_whatever_the_umask(tmp_path, no_cache, caplog):
    before = os.umask(0o002)
    try:
        with compiled.kept(tmp_path):
            assert getattr(jax.config, compiled._CHOSEN)
    finally:
        os.umask(before)
    assert (tmp_path / compiled.FOLDER).stat().st_mode & 0o777 == 0o700 and not caplog.text


def test_the_folder_that_the_user_chose_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv(compiled._VARIABLE, str(tmp_path / "own"))
    with compiled.kept(tmp_path):
        compile_something()
    assert not (tmp_path / compiled.FOLDER).exists()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: folder.chmod(0o777), "other users can write"),
        (lambda folder: (folder.rmdir(), folder.write_text("")), "/compiled is no folder"),
        (lambda folder: (folder.rmdir(), folder.symlink_to("/tmp")), "is no folder"),
        (lambda folder: os.chown(folder, 1234, 1234), "belongs to another user"),
    ],
)
def test_a_folder_of_others_is_not_used(tmp_path, no_cache, caplog, spoil, problem):
    folder = tmp_path / compiled.FOLDER
    folder.mkdir()
    if "another" in problem and os.geteuid():
        pytest.skip("only root can give a folder away")
    spoil(folder)
    with compiled.kept(tmp_path):
        assert getattr(jax.config, compiled._CHOSEN) is None
    assert problem in caplog.text and "JAX_COMPILATION_CACHE_DIR" in caplog.text


def test_the_oldest_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_BYTES", 25)
    for age, name in enumerate("cab"):
        (tmp_path / name).write_bytes(b"x" * 10)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compiled._shrink(tmp_path)
    assert files(tmp_path) == ["a", "c"]


def test_what_a_killed_start_was_writing_is_removed(tmp_path, no_cache):
    with compiled.kept(tmp_path):
        (folder,) = (tmp_path / compiled.FOLDER).iterdir()
        for age, name in enumerate(("newest", "older")):
            (folder / name).write_bytes(b"x")
            os.utime(folder / name, (1000 - age, 1000 - age))
        (folder / compiled._OPEN).rename(folder / "mark")
    assert {"newest", "older"} <= set(files(tmp_path))
    (folder / "mark").rename(folder / compiled._OPEN)
    with compiled.kept(tmp_path):
        assert "newest" not in files(tmp_path) and "older" in files(tmp_path)
    assert compiled._OPEN not in files(tmp_path)


def test_damaged_programs_are_compiled_again(tmp_path, no_cache):
    script = (
        "import jax, pathlib, sys\n"
        "from moco_jax.training import compiled\n"
        "compiled._SHORTEST = 0.0\n"
        "with compiled.kept(pathlib.Path(sys.argv[1])):\n"
        "    print(jax.jit(lambda x: x * 3)(2.0))\n"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout == "6.0\n", done.stderr
        kept = [path for path in tmp_path.rglob("*-cache")]
        assert kept
        for path in kept:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
