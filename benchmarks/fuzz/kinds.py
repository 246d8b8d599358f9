"""The kinds of input: how a copy of an original is damaged."""

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import pathlib
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fuzz import mutations
from moco_jax import config as config_lib
from moco_jax.segmentation import config as segmentation
from moco_jax.supervised import config as supervised
from moco_jax.training.flat_config import flatten

_COMPRESSION = {".gz": gzip, ".bz2": bz2, ".xz": lzma}


class Mutation(NamedTuple):
    """What was done to a copy of an original.

    Attributes:
      label: for the report.
      file: the changed file, or the folder that lost a file.
      planned: whether checksums were made to fit, so that no reader can see the change.
      before: contents of the file in the original.
      after: contents of the file in the input.
    """

    label: str
    file: pathlib.Path
    planned: bool
    before: bytes
    after: bytes = b""


def mutate(kind: str, rng: random.Random, folder: pathlib.Path) -> Mutation:
    """Changes one file below a folder that has a copy of an original."""
    return _MUTATORS.get(kind, _damage)(rng, folder)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _changed(
    rng: random.Random, file: pathlib.Path, planned: Callable | None, odds: float = 0.5
) -> Mutation:
    """Changes a file by a plan, if there is one, or damages its bytes."""
    before = file.read_bytes()
    if planned and rng.random() < odds:
        label, after = planned(rng, before)
        file.write_bytes(after)
        return Mutation(f"{file.name}: {label}", file, True, before, after)
    others = [x for x in _files(file.parent) if x.suffix == file.suffix]
    label, after = mutations.damaged(rng, before, rng.choice(others).read_bytes())
    file.write_bytes(after)
    return Mutation(f"{file.name}: {label}", file, False, before, after)


def _damage(rng: random.Random, folder: pathlib.Path) -> Mutation:
    return _changed(rng, rng.choice(_files(folder)), None)


def _tar(rng: random.Random, folder: pathlib.Path) -> Mutation:
    return _changed(rng, rng.choice(_files(folder)), mutations.odd_tar)


def _compressed_tar(rng: random.Random, folder: pathlib.Path) -> Mutation:
    (file,) = _files(folder)
    module = _COMPRESSION[file.suffix]

    def repacked(rng: random.Random, data: bytes) -> tuple[str, bytes]:
        label, tar = mutations.odd_tar(rng, module.decompress(data))
        return label, module.compress(tar)

    return _changed(rng, file, repacked, 0.3)


_SHAPES = ((), (0,), (-1,), (2**62,), (2**40, 2**40), (12, -16), (1, 2, 3, 4, 5), (2**31, 1))
_DTYPES = ("|O", ">f4", "<f8", "|S5", "<U1000000", "|b1", "<M8[s]", "<c8", "|V4", "<i8", "<u8")


def _odd_npz(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Writes the archive again with an odd array: checksums fit."""
    with np.load(io.BytesIO(data)) as opened:
        arrays = {name: opened[name] for name in opened.files}
    name = rng.choice(list(arrays))
    what = rng.choice(("header", "header", "values", "missing", "other", "pickle", "text", "about"))
    header = None
    if what == "header":
        shape = rng.choice((arrays[name].shape, *_SHAPES))
        fields = {"descr": rng.choice((arrays[name].dtype.str, *_DTYPES)), "shape": shape}
        header = fields | {"fortran_order": rng.choice((True, False))}
    elif what == "values":
        bound = rng.choice((-1, 2**31, 2**32, 2**63, float("nan"), float("inf"), 1e30, 0.5))
        arrays[name] = np.full(arrays[name].shape, bound)
    elif what == "missing":
        del arrays[name]
    elif what == "other":
        arrays[name] = rng.choice(list(arrays.values()))
    elif what == "pickle":
        arrays[name] = np.array([print, {"a": 1}], object)
    elif what == "text":
        arrays[name] = np.array(["\x1b[2J", "\udc80", "x" * 9], "U9")
    elif "about" in arrays:
        _, text = mutations.odd_json(rng, str(arrays["about"]).encode())
        arrays["about"] = np.array(text.decode("utf-8", "surrogatepass"))
    return f"{what} of {name}", _npz(arrays, name, header)


def _npz(arrays: dict[str, np.ndarray], odd: str, header: dict[str, Any] | None) -> bytes:
    """Returns an .npz, with another header of one array."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            if header and name == odd:
                text = repr(header).encode() + b"\n"
                part.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
                part.write(array.tobytes())
            else:
                np.lib.format.write_array(part, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", part.getvalue())
    return file.getvalue()


def _npz_file(rng: random.Random, folder: pathlib.Path) -> Mutation:
    return _changed(rng, _files(folder)[0], _odd_npz)


def _odd_header(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Changes the JSON header of a safetensors file, or the JSON within it."""
    (length,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + length]
    document = json.loads(header)
    about = document.get("__metadata__", {})
    if rng.random() < 0.7 and about.pop("checksum", None):  # as files of earlier versions
        header = json.dumps(document).encode()
    if "recipe" in about and rng.random() < 0.5:
        label, recipe = mutations.odd_json(rng, about["recipe"].encode())
        about["recipe"] = recipe.decode("utf-8", "surrogatepass")
        label, text = f"recipe {label}", json.dumps(document).encode("utf-8", "surrogatepass")
    else:
        label, text = mutations.odd_json(rng, header)
    return label, struct.pack("<Q", len(text)) + text + data[8 + length :]


def _safetensors(rng: random.Random, folder: pathlib.Path) -> Mutation:
    return _changed(rng, _files(folder)[0], _odd_header)


def _odd_parquet(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Writes the table again with other metadata or columns."""
    import pyarrow as pa
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(data))
    what, metadata = (
        rng.choice(("metadata", "metadata", "column", "missing", "nulls")),
        dict(table.schema.metadata),
    )
    name = rng.choice(table.column_names)
    if what == "metadata":
        key = rng.choice([key for key in metadata if key != b"checksum"])
        label, metadata[key] = mutations.odd_json(rng, metadata[key])
        if rng.random() < 0.2:
            del metadata[key]
        what += f" {label}"
    elif what == "missing":
        table = table.drop_columns([name])
    else:
        values = [None] * len(table) if what == "nulls" else [[1.0, None]] * len(table)
        odd = rng.choice(
            (values, list(range(len(table))), ["x"] * len(table), [b"\xff"] * len(table))
        )
        table = table.set_column(table.column_names.index(name), name, pa.array(odd))
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), file)
    return f"{what} of {name}", file.getvalue()


def _parquet(rng: random.Random, folder: pathlib.Path) -> Mutation:
    return _changed(rng, _files(folder)[0], _odd_parquet, 0.3)


def _checkpoint(rng: random.Random, folder: pathlib.Path) -> Mutation:
    """Damages the latest checkpoint of a workdir: a file, or the set of its files."""
    saved = folder / "run/checkpoints"
    latest = max(saved.iterdir(), key=lambda path: int(path.name))
    older = min(saved.iterdir(), key=lambda path: int(path.name))
    # Large files first: a file's chance follows from its size, and every file has one.
    inside = sorted(_files(latest), key=lambda path: (path.stat().st_size, path.name))
    file = rng.choices(inside, [200 + path.stat().st_size for path in inside])[0]
    what = rng.choice(("bytes",) * 6 + ("missing", "older", "folder", "empty", "foreign"))
    before = file.read_bytes()
    if what == "bytes":
        return _changed(rng, file, None)
    if what == "missing":
        file.unlink()
    elif what == "older":
        twin = older / file.relative_to(latest)
        file.write_bytes(twin.read_bytes() if twin.exists() else b"")
    elif what == "folder":
        rng.choice([path for path in latest.rglob("*") if path.is_dir()]).rename(saved / "moved")
    elif what == "empty":
        (saved / rng.choice(("12", "0", "x", "007", "-3", "99999999999999999999"))).mkdir()
    else:
        (saved / rng.choice(("12", "9.tmp", "x"))).write_bytes(b"a file")
    return Mutation(f"{file.relative_to(saved)}: {what}", file, False, before)


def _about(rng: random.Random, folder: pathlib.Path) -> Mutation:
    """Changes a JSON document of the latest checkpoint."""
    saved = folder / "run/checkpoints"
    latest = max(saved.iterdir(), key=lambda path: int(path.name))
    about = latest / "about/metadata"
    if rng.random() < 0.4:
        return _changed(rng, about, _odd_old_about, 1.0)
    documents = [about] * 2
    documents += [
        x for x in _files(latest) if x.name.startswith("_") and x.read_bytes()[:1] == b"{"
    ]
    made = _changed(rng, rng.choice(documents), mutations.odd_json, 1.0)
    return made._replace(planned=False)  # the checksums in `about` do not fit


def _odd_old_about(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Changes a description without checksums, as checkpoints of earlier versions have."""
    document = json.loads(data)
    new = ("crc", "arrays", "contents", "since")
    old = {key: value for key, value in document.items() if key not in new}
    label, text = mutations.odd_json(rng, json.dumps(old).encode())
    return f"without checksums: {label}", text


_ODD_NAMES = (
    b"a\nb.jpg", b"caf\xe9.jpg", b"\x1b[2Jx.png", b"-rf.jpg", b" .jpg", b"x" * 250 + b".jpg",
    b".jpg", b"\xf0\x9f\x90\x88.png", b"e\xcc\x81.png", b"train", b"mask.png", b"a.jpg.zip",
    b"val", b"CON.png",
)  # fmt: skip


_CHANGES = ("bytes", "name", "pipe", "device", "loop", "broken", "folder", "huge", "deep")


def _folder(rng: random.Random, folder: pathlib.Path) -> Mutation:
    """Damages a file of a folder, or replaces it by something else."""
    file = rng.choice(_files(folder))
    before = file.read_bytes()
    what = rng.choice(
        ("bytes", "name", "pipe", "device", "loop", "broken", "folder", "huge", "deep")
    )
    if what == "bytes":
        return _changed(rng, file, None)
    if what == "name":
        odd = rng.choice(_ODD_NAMES)
        os.rename(file, os.path.join(os.fsencode(file.parent), odd))
        return Mutation(f"{file.name} is named {odd!r}", file, True, before)
    if what == "huge":
        os.truncate(file, rng.choice((2**31, 2**36)))
        return Mutation(f"{file.name}: huge", file, True, before)
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        (file / "inner").mkdir(parents=True)
    elif what == "deep":
        (file.parent / "/".join(["d"] * 200)).mkdir(parents=True)
    else:
        target = {"device": rng.choice(("/dev/zero", "/dev/tty", "/dev/stdin"))}
        os.symlink(target.get(what, "..") if what != "broken" else "nothing.jpg", file)
    return Mutation(f"{file.name}: {what}", file, True, before)


def _tfds(rng: random.Random, folder: pathlib.Path) -> Mutation:
    chosen = rng.choice(_files(folder))
    return _changed(rng, chosen, mutations.odd_json if chosen.suffix == ".json" else None, 0.7)


def _metrics(rng: random.Random, folder: pathlib.Path) -> Mutation:
    def odd_line(rng: random.Random, data: bytes) -> tuple[str, bytes]:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        label, lines[at] = mutations.odd_json(rng, lines[at])
        return label, b"\n".join(lines) + b"\n"

    return _changed(rng, _files(folder)[0], odd_line)


_VALUES = (
    "", "0", "-1", "1", "1e400", "nan", "inf", "-0.0", "None", "True", "x", "0.5", "1,2", "[]",
    "{}", "(0.1,)", "\x00", "\udce9", "../..", "'", '"', "1e-320", str(2**31), str(2**63),
    str(10**30), "resnet50", "__import__('os').system('x')", "a" * 5000,
    "5e-1", "1_000", "0x10", "(" * 200,
)  # fmt: skip
_COMMANDS = {
    "configs/digits.py": config_lib.base,
    "configs/cifar10.py": config_lib.base,
    "configs/imagenet.py": config_lib.base,
    "configs/folder.py:x": config_lib.base,
    "configs/digits_linear.py": supervised.linear,
    "configs/digits_finetune.py": supervised.finetune,
    "configs/voc_segmentation.py": segmentation.base,
}


def _overrides(rng: random.Random, folder: pathlib.Path) -> Mutation:
    """Writes a command line: an experiment, odd values of its keys, and now and then an odd key."""
    config = rng.choice(list(_COMMANDS))
    keys = list(flatten(_COMMANDS[config]()))
    if rng.random() < 0.1:
        config = f"{config.partition(':')[0]}:{rng.choice(_VALUES)}"
    lines = [f"--config={config}"]
    for _ in range(rng.choice((1, 1, 2, 5))):
        key = rng.choice(keys)
        if rng.random() < 0.1:
            key = rng.choice((f"{key}x", f"{key}.x", key.split(".")[0], "", "a.b.c"))
        lines.append(f"--config.{key}={rng.choice(_VALUES)}")
    file = folder / "arguments.txt"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return Mutation(" ".join(line[:60] for line in lines), file, True, b"")


class _Literals(ast.NodeTransformer):
    """Counts the literals of a file and replaces one of them."""

    def __init__(self, number: int, value: Any):
        self.number, self.value, self.count = number, value, 0

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        self.count += 1
        return ast.Constant(self.value) if self.count == self.number else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # its parts must be strings


def _odd_literal(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    count = _Literals(0, None)
    count.visit(ast.parse(data))
    number, value = rng.randrange(count.count) + 1, mutations.odd_value(rng)
    value = value if isinstance(value, (int, float, str, type(None))) else tuple(value)
    tree = _Literals(number, value).visit(ast.parse(data))
    return f"literal {number} is {str(value)[:30]!r}", ast.unparse(tree).encode("utf-8", "replace")


def _config_file(rng: random.Random, folder: pathlib.Path) -> Mutation:
    """Replaces a literal or flips bits of an experiment, which is executed: it is code."""
    (file,) = _files(folder)
    return _changed(rng, file, _odd_literal, 0.8)


_MUTATORS: dict[str, Callable[[random.Random, pathlib.Path], Mutation]] = {
    "tar": _tar,
    "compressed_tar": _compressed_tar,
    "shards": _tar,
    "images_npz": _npz_file,
    "features_npz": _npz_file,
    "features_parquet": _parquet,
    "encoder": _safetensors,
    "safetensors": _safetensors,
    "checkpoint": _checkpoint,
    "resume": _checkpoint,
    "about": _about,
    "resume_about": _about,
    "folder": _folder,
    "tfds": _tfds,
    "metrics": _metrics,
    "overrides": _overrides,
    "config_file": _config_file,
}
