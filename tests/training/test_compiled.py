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


@pytest.mark.parametrize(("other", "kept"), [(0, True), (1, False), (-1, False)])
def test_processes_on_different_machines_keep_no_programs(tmp_path, no_cache, other, kept, caplog):
    own = int(compiled._machine()[-7:], 16)
    second = {own: own + other, 2**28 - own: 2**28 - own - other}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.cluster, "largest", lambda value: max(value, second[value]))
        with compiled.kept(tmp_path):
            assert bool(getattr(jax.config, compiled._CHOSEN)) == kept
    assert ("different machines" in caplog.text) != kept


def test_the_oldest_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_BYTES", 25)
    for age, name in enumerate("cab"):
        (tmp_path / name).write_bytes(b"x" * 10)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compiled._shrink(tmp_path)
    assert files(tmp_path) == ["a", "c"]


def spoil(program: bytes, how: str) -> bytes:
    middle = len(program) // 2
    return {
        "empty": b"",
        "cut": program[:middle],
        "one bit": program[:middle] + bytes([program[middle] ^ 1]) + program[middle + 1 :],
        "garbage": b"x" * len(program),
    }[how]


@pytest.mark.parametrize(
    ("how", "known"),
    [
        *[(how, True) for how in ("empty", "cut", "one bit", "garbage")],
        *[(how, False) for how in ("empty", "cut", "garbage")],  # of a killed run
    ],
)
def test_damaged_programs_are_replaced(tmp_path, no_cache, caplog, how, known):
    with compiled.kept(tmp_path):
        compile_something()
    (path,) = tmp_path.rglob("jit__lambda*-cache")
    program = path.read_bytes()
    path.write_bytes(spoil(program, how))
    if not known:
        (path.parent / compiled._SUMS).unlink()
    jax.clear_caches()
    with compiled.kept(tmp_path):
        assert not path.exists()
        compile_something()
    assert f"programs in {path.parent} are compiled again: jit__lambda" in caplog.text
    assert compiled._is_whole(path.read_bytes())
    caplog.clear()
    with compiled.kept(tmp_path):
        assert path.exists()
    assert not caplog.text


def test_a_changed_program_that_can_be_decompressed_is_damaged(tmp_path, no_cache):
    with compiled.kept(tmp_path):
        compile_something()
        jax.jit(lambda x: jnp.sin(x) * 2.3456)(jnp.ones(7))
    first, second = tmp_path.rglob("jit__lambda*-cache")
    first.write_bytes(second.read_bytes())
    with compiled.kept(tmp_path):
        assert not first.exists() and second.exists()


def test_without_a_name_of_jax_programs_are_kept(tmp_path, no_cache, monkeypatch):
    with compiled.kept(tmp_path):
        compile_something()
    before = files(tmp_path)
    next(tmp_path.rglob(compiled._SUMS)).unlink()
    monkeypatch.setitem(sys.modules, "jax._src.compilation_cache", None)  # its import fails
    assert compiled._is_whole(b"")
    with compiled.kept(tmp_path):
        assert files(tmp_path) == before


def test_a_part_of_a_program_is_removed_at_the_end(tmp_path, no_cache):
    with compiled.kept(tmp_path):
        compile_something()
        (path,) = tmp_path.rglob("jit__lambda*-cache")
        path.write_bytes(path.read_bytes()[:-1])  # as on a full disk
    assert not path.exists()


@pytest.mark.parametrize("sums", [b"", b"[1]", b"\xff", b'{"jit__lambda-1-cache": "x"}'])
def test_damaged_checksums_remove_no_whole_program(tmp_path, no_cache, sums):
    with compiled.kept(tmp_path):
        compile_something()
    before = files(tmp_path)
    (path,) = tmp_path.rglob(compiled._SUMS)
    path.write_bytes(sums)
    with compiled.kept(tmp_path):
        assert files(tmp_path) == before


def test_a_process_compiles_damaged_programs_again(tmp_path, no_cache):
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
