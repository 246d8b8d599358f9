"""Compiled programs in the workdir: a run that continues does not compile them again."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import stat
import zlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from moco_jax.parallel import cluster
from moco_jax.terminal import logs
from moco_jax.training.integrity.checksums import listed

FOLDER = "compiled"
_MOST_BYTES = 2 << 30
_SHORTEST = 0.1  # seconds of compilation that are worth a file
_SUMS = ".checksums"  # a file with the CRC-32 of each program, by its name, as JSON
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_CHOSEN = "jax_compilation_cache_dir"
_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def kept(workdir: pathlib.Path) -> Iterator[None]:
    """Makes JAX keep the programs that it compiles in the block, and use those that are there.

    A folder that the user has chosen, by JAX_COMPILATION_CACHE_DIR or by JAX's config, is used
    instead. JAX executes what the folder holds, so one that another user can write is not used.
    """
    if getattr(jax.config, _CHOSEN) or _VARIABLE in os.environ:
        yield
        return
    machine = _machine()
    folder = workdir / FOLDER / machine
    problem = cluster.on_first(lambda: _problem(folder)) or _differ(machine)
    if problem:
        if cluster.is_first():
            logs.warning("compiled programs are not kept: %s; set %s", problem, _VARIABLE)
        yield
        return
    before = getattr(jax.config, _SECONDS)
    jax.config.update(_CHOSEN, str(folder))
    jax.config.update(_SECONDS, _SHORTEST)
    compilation_cache.reset_cache()  # it may have been opened for an earlier run
    try:
        yield
    finally:
        if cluster.is_first():
            with contextlib.suppress(OSError):  # the next start looks at the programs
                _remove_damaged(folder, new_only=True)
        jax.config.update(_CHOSEN, None)
        jax.config.update(_SECONDS, before)
        compilation_cache.reset_cache()


def _machine() -> str:
    """Returns a name for what a program is compiled for. JAX's own keys have no CPU features."""
    kind = jax.devices()[0].device_kind
    features = platform.machine()
    if jax.default_backend() == "cpu":
        with contextlib.suppress(OSError):
            lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            features += "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    digest = hashlib.sha256(f"{kind} {features} {jax.__version__}".encode()).hexdigest()
    return f"{jax.default_backend()}-{digest[:12]}"


def _differ(machine: str) -> str:
    """Returns that the machines of the processes differ, or "": all must find the same programs."""
    number, most = int(machine[-7:], 16), 2**28
    if cluster.largest(number) + cluster.largest(most - number) == most:
        return ""
    return "the processes run on different machines"


def _problem(folder: pathlib.Path) -> str:
    """Makes the folder, or removes its oldest files; returns why it can't be trusted, or ""."""
    try:
        for path in (folder.parent, folder):  # `parents` would leave the first to the umask
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                return f"{path} is no folder"
            if found.st_uid != os.geteuid():
                return f"{path} belongs to another user"
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"other users can write {path}"
        if damaged := _remove_damaged(folder):
            logs.warning("damaged programs in %s are compiled again: %s", folder, listed(damaged))
        _shrink(folder)
    except OSError as error:
        return str(error)
    return ""


def _remove_damaged(folder: pathlib.Path, *, new_only: bool = False) -> list[str]:
    """Removes damaged programs, which JAX would neither use nor replace; returns their names.

    Args:
      folder: of the programs. Those that are not in its checksums are added to them.
      new_only: whether to trust those that are.
    """
    known, sums, damaged = _checksums(folder), {}, []
    for path in folder.glob("*-cache"):
        if new_only and path.name in known:
            sums[path.name] = known[path.name]
            continue
        program = path.read_bytes()
        found = zlib.crc32(program)
        whole = found == known[path.name] if path.name in known else _is_whole(program)
        if whole:
            sums[path.name] = found
        else:
            path.unlink()
            damaged.append(path.name.split("-")[0])
    (folder / _SUMS).write_text(json.dumps(sums))
    return damaged


def _checksums(folder: pathlib.Path) -> dict[str, int]:
    """Returns the checksums of the programs, {} if their file is absent or damaged."""
    with contextlib.suppress(OSError, ValueError):
        sums = json.loads((folder / _SUMS).read_bytes())
        return sums if isinstance(sums, dict) else {}
    return {}


def _is_whole(program: bytes) -> bool:
    """Returns whether a file can be decompressed: a kill or a full disk leaves a part of it."""
    try:  # a private name, which a version of JAX may not have
        from jax._src.compilation_cache import decompress_executable
    except ImportError:
        return True
    try:
        return bool(decompress_executable(program))
    except Exception:  # its type depends on the compression
        return False


def _shrink(folder: pathlib.Path) -> None:
    """Removes the oldest files until the others take at most `_MOST_BYTES`."""
    files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda file: file[0].st_mtime)
    size = sum(found.st_size for found, _ in files)
    for found, path in files:
        if size <= _MOST_BYTES:
            return
        path.unlink()
        size -= found.st_size
