"""Writes the valid files that get damaged: each kind has a folder, each original one within it."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.fuzz.mutations import BLOCK, sealed
from moco_jax.data.sources.source import array_source
from moco_jax.encoders import feature_file, pretrained
from moco_jax.encoders.feature_file import FeatureRows
from moco_jax.pretraining import pretrain
from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from moco_jax.weights.vit import with_positions
from tests.encoder_files import write_encoder
from tests.tiny import tiny_config, tiny_sources

FORMATS = ("jpeg", "png", "webp", "gif", "tiff", "bmp", "ppm")
_MEMBERS = [f"train/{name}/{i}" for name in ("ant", "cat") for i in range(3)]
_MEMBERS += [f"test/{name}/{i}" for name in ("ant", "cat") for i in range(2)]
STEPS = (4, 8)  # of the checkpoints


def image(rng: np.random.Generator, form: str, size: int = 12) -> bytes:
    """Returns an image file of noise on a colour."""
    pixels = rng.integers(0, 200, 3) + rng.integers(0, 55, (size, size + 2, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, form)
    return file.getvalue()


def members(forms: tuple[str, ...] = ("jpeg", "png")) -> dict[str, bytes]:
    """Returns the images of a small labelled set by their paths."""
    rng = np.random.default_rng(0)
    chosen = [forms[i % len(forms)] for i in range(len(_MEMBERS))]
    return {f"{n}.{form}": image(rng, form) for n, form in zip(_MEMBERS, chosen, strict=True)}


def _tar(mode: str, form: int, prefix: str = "", links: bool = False) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"mode": mode, "format": form}
    with tarfile.open(fileobj=file, **options) as archive:
        for name, data in members().items():
            info = tarfile.TarInfo(prefix + name)
            info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(data))
            if links and name.endswith("0.jpeg"):
                for kind, to in ((tarfile.LNKTYPE, prefix + name), (tarfile.SYMTYPE, "0.jpeg")):
                    link = tarfile.TarInfo(f"{prefix}{name[:-6]}9{kind.decode()}.jpeg")
                    link.type, link.linkname = kind, to
                    archive.addfile(link)
    return file.getvalue()


def _sparse() -> bytes:
    """Returns a tar whose first member is a sparse file in GNU's format."""
    plain = _tar("w:", tarfile.GNU_FORMAT)
    header = bytearray(tarfile.TarInfo("train/ant/hole.jpeg").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157] = b"%011o\0" % BLOCK, b"S"
    header[386:410] = b"%011o\0%011o\0" % (4096, BLOCK)
    header[483:495] = b"%011o\0" % (4096 + BLOCK)
    return sealed(bytes(header), 0) + b"x" * BLOCK + plain


def _write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tar(folder: pathlib.Path) -> None:
    _write(folder / "ustar/images.tar", _tar("w:", tarfile.USTAR_FORMAT))
    _write(folder / "gnu/images.tar", _tar("w:", tarfile.GNU_FORMAT, "long" * 40 + "/", True))
    _write(folder / "pax/images.tar", _tar("w:", tarfile.PAX_FORMAT, "caf\xe9" * 40 + "/", True))
    _write(folder / "sparse/images.tar", _sparse())


def compressed_tar(folder: pathlib.Path) -> None:
    for ending in ("gz", "bz2", "xz"):
        data = _tar(f"w:{ending}", tarfile.PAX_FORMAT)
        _write(folder / ending / f"images.tar.{ending}", data)


def zip_archive(folder: pathlib.Path) -> None:
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        (folder / name).mkdir(parents=True)
        with zipfile.ZipFile(folder / name / "images.zip", "w", method) as archive:
            for path, data in members().items():
                archive.writestr(path, data)


def shards(folder: pathlib.Path) -> None:
    """Writes shards that fit no index: another reader may not have listed them."""
    files = [(path, data) for path, data in members().items() if path.startswith("train")]
    for number in range(2):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:") as archive:
            for index, (_, data) in enumerate(files[number::2]):
                for ending, content in (("jpg", data), ("cls", b"%d" % (index % 2))):
                    info = tarfile.TarInfo(f"{number}{index}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        _write(folder / f"classes/images/a-{number}.tar", file.getvalue())


def folder_of_images(folder: pathlib.Path) -> None:
    for name, data in members().items():
        _write(folder / "classes/images" / name, data)
        _write(folder / "flat/images" / name.replace("/", "_"), data)


def image_tables(folder: pathlib.Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    rows = [item for item in members().items() if item[0].startswith("train/")]
    images = [{"bytes": data, "path": pathlib.Path(name).name} for name, data in rows]
    table = pa.table({"image": images, "label": [name.split("/")[1] for name, _ in rows]})
    plain = {"compression": "none", "use_dictionary": False}
    for name, options in (("plain", plain), ("snappy", {}), ("paged", plain)):
        (folder / name).mkdir(parents=True)
        version = "2.0" if name == "paged" else "1.0"
        options = options | {"row_group_size": 2, "data_page_version": version}
        pyarrow.parquet.write_table(table, folder / name / "images.parquet", **options)
    (folder / "arrow").mkdir()
    with pa.ipc.new_stream(folder / "arrow/images.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def image_lists(folder: pathlib.Path) -> None:
    rows = {"csv": "{0},{1}\n", "jsonl": '{{"file_name": "{0}", "label": "{1}"}}\n'}
    for ending, row in rows.items():
        text = "file_name,label\n" if ending == "csv" else ""
        for name, data in members().items():
            _write(folder / ending / "images" / name.replace("/", "_"), data)
            text += row.format(name.replace("/", "_"), name.split("/")[1])
        _write(folder / ending / "images" / f"metadata.{ending}", text.encode())


def images_npz(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    train = {"images": rng.integers(0, 256, (8, 6, 5, 3), np.uint8), "labels": np.arange(8) % 3}
    test = {"test_images": train["images"][:4], "test_labels": train["labels"][:4]}
    for name, save in (("plain", np.savez), ("deflated", np.savez_compressed)):
        (folder / name).mkdir(parents=True)
        save(folder / name / "images.npz", **train, **test, other=np.arange(3.0))


def _features(folder: pathlib.Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    about = {"encoder": "runs/tiny (tiny, step 8)", "output": "backbone"}
    pixels = np.zeros((12, 2, 2, 3), np.uint8)
    for name, labels in (("labelled", np.arange(12) % 3), ("flat", None)):
        (folder / name).mkdir(parents=True)
        source = array_source(pixels, labels, "images.npz, train")
        rows = [
            FeatureRows(rng.normal(size=(6, 16)).astype(np.float32), np.arange(6) + start)
            for start in (0, 6)
        ]
        feature_file.write(folder / name / f"features{ending}", rows, source, about)


def features_npz(folder: pathlib.Path) -> None:
    _features(folder, ".npz")


def features_parquet(folder: pathlib.Path) -> None:
    _features(folder, ".parquet")


def encoder_file(folder: pathlib.Path) -> None:
    for name, head in (("whole", True), ("backbone", False)):
        (folder / name).mkdir(parents=True)
        write_encoder(folder / name / "encoder.safetensors", tiny_config(), head=head)


def _foreign() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields a ResNet and a ViT under the names of other projects."""
    arrays = _renamed("torchvision", tiny_config())
    yield "torchvision", arrays
    yield "wrapped", {f"module.{name}": array for name, array in arrays.items()}
    model = {"name": "vit_tiny", "stem": "patch", "patch": 4, "depth": 1, "width": 1.0}
    vit = tiny_config(**{f"model__{key}": value for key, value in model.items()})
    yield "vit", _renamed("vit", vit)


def _renamed(naming: str, config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns the arrays of a new encoder of this config under names of `NAMINGS`."""
    with tempfile.TemporaryDirectory() as made:
        file = pathlib.Path(made) / "encoder.safetensors"
        write_encoder(file, config, head=False)
        found = pretrained.read(file)
    variables = with_positions(found.variables, found.config)
    return to_torch(variables, NAMINGS[naming], found.config)


def foreign_safetensors(folder: pathlib.Path) -> None:
    for name, arrays in _foreign():
        (folder / name).mkdir(parents=True)
        safetensors.numpy.save_file(arrays, folder / name / "model.safetensors")


def torch_files(folder: pathlib.Path) -> None:
    torch = importlib.import_module("torch")
    for name, arrays in _foreign():
        tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
        content = {"state_dict": tensors, "epoch": 3, "arch": "resnet10"}
        for form, new in (("zip", True), ("old", False)):
            file = folder / f"{name}_{form}/weights.pth"
            file.parent.mkdir(parents=True)
            torch.save(content, file, _use_new_zipfile_serialization=new)


def run_config():
    """Returns the config of the run whose checkpoints are damaged; it has nothing left to train."""
    return tiny_config(steps=STEPS[0], data__image_size=8, knn__every_epochs=0.0)


def run_sources():
    return tiny_sources(40)


def checkpoint(folder: pathlib.Path) -> None:
    """Trains for 8 steps and keeps two checkpoints."""
    config, workdir = run_config(), folder / "trained/run"
    config.steps = STEPS[-1]
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain.pretrain(config, workdir, sources=run_sources())
    shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
    for name in (".lock", ".start"):
        (workdir / name).unlink(missing_ok=True)


def copy_of(kind: str) -> Callable[[pathlib.Path], None]:
    """Returns a writer of the originals of another kind."""

    def write(folder: pathlib.Path) -> None:
        other = folder.with_name(kind)
        if other.exists():
            shutil.copytree(other, folder)
        else:
            WRITERS[kind](folder)

    return write


def image_file(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for form in FORMATS:
        _write(folder / form / f"image.{form}", image(rng, form, 40))
    progressive = io.BytesIO()
    pixels = rng.integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(pixels).save(progressive, "jpeg", progressive=True)
    _write(folder / "progressive/image.jpg", progressive.getvalue())
    palette = Image.fromarray(pixels).convert("P")
    sixteen = Image.fromarray(pixels.astype(np.uint16) * 257)
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    for name, ending, first, options in (
        ("palette", "png", palette, {"transparency": 3}),
        ("sixteen", "png", sixteen, {}),
        ("frames", "gif", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("pages", "tiff", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("lzw", "tiff", frames[0], {"compression": "tiff_lzw"}),
        ("exif", "jpg", frames[0], {"exif": _orientation(6)}),
    ):
        file = io.BytesIO()
        first.save(file, {"jpg": "jpeg"}.get(ending, ending), **options)
        _write(folder / name / f"image.{ending}", file.getvalue())


def _orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


# The import of tests.data.sources.tiny_tfds registers the builder, so another process does it: the
# fuzzed process must read the data set from its files.
_PREPARE = """
import pathlib, sys
from tests.data.sources.tiny_tfds import TinyColours
pathlib.Path(sys.argv[1]).mkdir(parents=True)
TinyColours(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def tfds(folder: pathlib.Path) -> None:
    data_dir = folder / "prepared/data"
    subprocess.run(
        [sys.executable, "-c", _PREPARE, str(data_dir)], check=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    for made in data_dir.glob("*.jpg"):
        made.unlink()


def metrics(folder: pathlib.Path) -> None:
    lines = []
    for step in range(0, 21, 2):
        lines.append({"step": step, "loss": 1 / (step + 1), "lr": 0.03})
        if step % 4 == 0:
            lines.append({"step": step, "knn_top1": step + 0.5, "key_cosine/age_0": 0.9})
    _write(
        folder / "lines/run/metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode()
    )


def nothing(folder: pathlib.Path) -> None:
    """The command line is made, not damaged."""
    _write(folder / "none/none.txt", b"")


def config_file(folder: pathlib.Path) -> None:
    for name in ("digits", "folder", "imagenet"):
        _write(folder / name / "experiment.py", pathlib.Path(f"configs/{name}.py").read_bytes())


WRITERS: dict[str, Callable[[pathlib.Path], None]] = {
    "tar": tar,
    "compressed_tar": compressed_tar,
    "zip": zip_archive,
    "shards": shards,
    "images_npz": images_npz,
    "image": image_file,
    "folder": folder_of_images,
    "image_tables": image_tables,
    "image_lists": image_lists,
    "features_npz": features_npz,
    "features_parquet": features_parquet,
    "encoder": encoder_file,
    "safetensors": foreign_safetensors,
    "torch": torch_files,
    "checkpoint": checkpoint,
    "resume": copy_of("checkpoint"),
    "about": copy_of("checkpoint"),
    "resume_about": copy_of("checkpoint"),
    "metrics": metrics,
    "tfds": tfds,
    "overrides": nothing,
    "config_file": config_file,
}
