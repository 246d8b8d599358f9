"""Builds the layouts of well-known data sets and prints what the commands say about each.

Command: python -m benchmarks.layouts
  --only=kaggle     layouts whose title contains this
  --commands=main   only what pretraining prints, without embed and knn

A person reads the output. For each layout it has the tree, then the lines of `main` (what it reads
before it trains), of `embed` and of `knn`, with their exit codes. Ask of each block:

  Are the classes those of the data set, and is their level printed?
  Is each split trained on or tested on as its name says? Is a guess printed with the key that
  changes it?
  Is every file that is left out counted, by its ending or its folder?
  Are masks, thumbnails and duplicates left out or warned of?
  If there is an error: does it name the folder, and a command or a key that works?
  Do the three commands agree?

The images are noise and the encoder has random weights: the accuracies mean nothing.
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import pathlib
import re
import runpy
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from configs import folder as experiment
from moco_jax.data.sources.opening import open_named
from tests.encoder_files import write_encoder
from tests.in_process import exit_code
from tests.tiny import tiny_config

_SHOWN = 14  # lines of a tree


class Layout(NamedTuple):
    """Files of a data set.

    Attributes:
      title: the data set, or what is odd.
      files: paths; `{a,b}` and `{1..3}` stand for several.
      make: changes the folder after the files are written; returns the path to give to a command.
    """

    title: str
    files: tuple[str, ...]
    make: Callable[[pathlib.Path], pathlib.Path] = lambda folder: folder


def expand(pattern: str) -> Iterator[str]:
    """Yields the paths of a pattern: `{a,b}` and `{1..3}` stand for several."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = []
    for number, part in enumerate(parts):
        first, dots, last = part.partition("..")
        if not number % 2:
            choices.append([part])
        elif dots:
            choices.append([str(i) for i in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(","))
    yield from map("".join, itertools.product(*choices))


def _content(path: str, rng: np.random.Generator) -> bytes:
    """Returns an image or a text, as the ending of the path says; odd names have odd images."""
    ending = path.rpartition(".")[2].lower()
    forms = {"jpg": "jpeg", "jfif": "jpeg", "jpeg": "jpeg", "png": "png", "ppm": "ppm",
             "webp": "webp", "gif": "gif", "tif": "tiff", "bmp": "bmp", "avif": "avif",
             "jp2": "jpeg2000"}  # fmt: skip
    if ending not in forms:
        return b"not an image"
    pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
    image, file, options = Image.fromarray(pixels), io.BytesIO(), {}
    if "12bit" in path:
        image = Image.fromarray(rng.integers(0, 4096, (24, 24), np.uint16))
    elif "mask" in path.lower() or "trimap" in path or "Segmentation" in path:
        image = Image.fromarray(pixels[..., 0] // 100).convert("P")
    elif "phone" in path:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    try:
        image.save(file, forms[ending], **options)
    except (KeyError, OSError):  # Pillow was built without this format
        return b"\0\0\0\x1cftyp"
    return file.getvalue()


def write(root: pathlib.Path, layout: Layout) -> pathlib.Path:
    """Writes a layout below a folder; returns the path for the commands."""
    rng = np.random.default_rng(0)
    for path in itertools.chain.from_iterable(map(expand, layout.files)):
        file = os.path.join(os.fsencode(root), os.fsencode(path))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(_content(path, rng))
    return layout.make(root)


def _pack(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder.parent / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(folder, ".")
    return path


def _tar_of_tars(folder: pathlib.Path) -> pathlib.Path:
    for name in sorted(folder.iterdir()):
        with tarfile.open(f"{name}.tar", "w") as archive:
            archive.add(name, ".")
    path = folder.parent / "ILSVRC2012_img_train.tar"
    with tarfile.open(path, "w") as archive:
        for name in sorted(folder.glob("*.tar")):
            archive.add(name, name.name)
    return path


def _odd_files(folder: pathlib.Path) -> pathlib.Path:
    os.mkfifo(folder / "cat/pipe.jpg")
    os.symlink("/dev/zero", folder / "cat/zero.jpg")
    os.symlink("nowhere.jpg", folder / "cat/broken.jpg")
    os.symlink("..", folder / "cat/loop")
    return folder


def _annotated(folder: pathlib.Path) -> pathlib.Path:
    lines = (f"val_{i}.JPEG\tn0{i % 3 + 1}\t0\t0\t9\t9\n" for i in range(4))
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    return folder


def _linked_tar(folder: pathlib.Path) -> pathlib.Path:
    os.symlink("1.jpg", folder / "cat/link.jpg")
    return _pack(folder, "linked.tar")


_NFD = unicodedata.normalize("NFD", "café")
_CLASSES = "{ant,bee,cat}"
LAYOUTS = (
    Layout("fastai, Kaggle: Training and Testing", (f"Training/{_CLASSES}/{{1..4}}.jpg",
           f"Testing/{_CLASSES}/{{5..6}}.jpg")),
    Layout("Train and Test", (f"Train/{_CLASSES}/{{1..4}}.jpg", f"Test/{_CLASSES}/{{5..6}}.jpg")),
    Layout("splits with a year", (f"train2017/{_CLASSES}/{{1..4}}.jpg",
           f"{{val2017,test2017}}/{_CLASSES}/{{5..6}}.jpg")),
    Layout("COCO", ("train2017/{1..9}.jpg", "val2017/{10..12}.jpg", "test2017/{13..15}.jpg",
           "annotations/instances_{train2017,val2017}.json")),
    Layout("Roboflow, classification", (f"train/{_CLASSES}/{{1..4}}.jpg", f"valid/{_CLASSES}/5.jpg",
           "README.roboflow.txt")),
    Layout("Roboflow, YOLO", ("{train,valid,test}/images/{1..4}.jpg", "data.yaml",
           "{train,valid,test}/labels/{1..4}.txt")),
    Layout("YOLO, images first", ("images/{train,val}/{1..4}.jpg",
           "labels/{train,val}/{1..4}.txt")),
    Layout("ImageNet from Kaggle", ("ILSVRC/Data/CLS-LOC/train/n0{1..3}/{1..4}.JPEG",
           "ILSVRC/Data/CLS-LOC/{val,test}/{1..4}.JPEG", "ILSVRC/Annotations/{1..4}.xml",
           "LOC_val_solution.csv")),
    Layout("train with classes, flat val", ("train/n0{1..3}/{1..4}.JPEG", "val/{1..4}.JPEG")),
    Layout("tiny-imagenet", ("train/n0{1..3}/images/{1..4}.JPEG", "train/n0{1..3}/boxes.txt",
           "val/images/val_{0..3}.JPEG", "val/val_annotations.txt", "test/images/{1..4}.JPEG",
           "wnids.txt", "words.txt"), _annotated),
    Layout("train, val and test", (f"train/{_CLASSES}/{{1..4}}.jpg",
           f"{{val,test}}/{_CLASSES}/5.jpg")),
    Layout("train and dev", (f"train/{_CLASSES}/{{1..4}}.jpg", f"dev/{_CLASSES}/5.jpg")),
    Layout("Kaggle: chest X-ray, twice", ("{.,chest_xray}/{train,test,val}/{NORMAL,PNEUMONIA}/"
           "{1..3}.jpeg",)),
    Layout("Kaggle: Intel scenes", ("seg_train/seg_train/{sea,street}/{1..3}.jpg",
           "seg_test/seg_test/{sea,street}/{4..5}.jpg", "seg_pred/seg_pred/{1..3}.jpg")),
    Layout("Kaggle: Fruits-360", ("{Training,Test}/{Apple Red 1,Banana}/{1..3}_100.jpg",
           "test-multiple_fruits/{1..3}.jpg")),
    Layout("Kaggle: dogs against cats", ("train/{cat,dog}.{0..3}.jpg", "test1/{1..4}.jpg",
           "sampleSubmission.csv")),
    Layout("Kaggle: PetImages", ("PetImages/{Cat,Dog}/{1..4}.jpg", "PetImages/Cat/Thumbs.db")),
    Layout("MNIST as PNG", ("mnist_png/{training,testing}/{0..9}/{1..2}.png",)),
    Layout("Stanford cars", ("cars_train/cars_train/0000{1..4}.jpg",
           "cars_test/cars_test/0000{1..3}.jpg", "cars_annos.mat")),
    Layout("Caltech 101", ("101_ObjectCategories/{BACKGROUND_Google,ant,bonsai}/{1..3}.jpg",)),
    Layout("EuroSAT", ("2750/{AnnualCrop,Forest}/{1..3}.jpg",)),
    Layout("CelebA", ("img_align_celeba/0000{1..6}.jpg", "list_attr_celeba.txt",
           "list_eval_partition.txt")),
    Layout("Oxford pets", ("images/{Abyssinian,beagle}_{1..4}.jpg", "annotations/list.txt",
           "annotations/trimaps/{Abyssinian,beagle}_{1..4}.png",
           "annotations/xmls/{Abyssinian,beagle}_{1..4}.xml")),
    Layout("PASCAL VOC", ("VOCdevkit/VOC2012/JPEGImages/{1..5}.jpg",
           "VOCdevkit/VOC2012/Segmentation{Class,Object}/{1..3}.png",
           "VOCdevkit/VOC2012/Annotations/{1..5}.xml",
           "VOCdevkit/VOC2012/ImageSets/Main/train.txt")),
    Layout("ADE20K", ("{images,annotations}/{training,validation}/{1..4}.png",)),
    Layout("Cityscapes", ("leftImg8bit/{train,val,test}/aachen/{1..3}_leftImg8bit.png",
           "gtFine/{train,val,test}/aachen/{1..3}_gtFine_labelIds.png")),
    Layout("masks beside images", ("{1..5}.jpg", "{1..5}_mask.png")),
    Layout("a folder of masks", ("images/{1..5}.jpg", "masks/{1..5}.png", "thumbnails/{1..5}.jpg")),
    Layout("nested classes", ("animals/{cat,dog}/{1..3}.jpg", "vehicles/{car,bus}/{1..3}.jpg")),
    Layout("iNaturalist", ("train_val2018/Aves/{1..2}/{1..3}.jpg",
           "train_val2018/Fungi/{3..4}/{1..3}.jpg")),
    Layout("Office-31", ("{amazon,dslr,webcam}/images/{bike,mug}/frame_{1..3}.jpg",)),
    Layout("Market-1501", ("bounding_box_{train,test}/000{1..4}_c1s1.jpg", "query/000{1..2}.jpg")),
    Layout("folds", (f"fold{{1..3}}/{_CLASSES}/{{1..2}}.jpg",)),
    Layout("labelled and unlabelled", (f"train/{_CLASSES}/{{1..2}}.jpg", "unlabeled/{1..5}.jpg")),
    Layout("one folder for each image", ("scene{1..6}/image.jpg",)),
    Layout("a class missing in val", (f"train/{_CLASSES}/{{1..3}}.jpg", "val/{ant,bee}/4.jpg")),
    Layout("a class of val unknown in train", ("train/{ant,bee}/{1..3}.jpg",
           "val/{ant,cow}/4.jpg")),
    Layout("flat", ("{1..42}.jpg",)),
    Layout("other endings", ("cat/{1..3}.jpg", "dog/{1..3}.jpeg", "cat/{4..9}.heic",
           "dog/{4..9}.{avif,jfif,ppm,jp2,svg,CR2,psd}")),
    Layout("capital endings and litter", ("cat/{1..3}.JPG", "dog/{1..3}.Png", "cat/._1.JPG",
           "__MACOSX/cat/._1.JPG", ".git/a.png", ".DS_Store", "cat/Thumbs.db")),
    Layout("12 bits in 16", ("cat/12bit_{1..3}.png", "dog/12bit_{1..3}.png")),
    Layout("phone photos on their side", ("cat/phone{1..3}.jpg", "dog/phone{1..3}.jpg")),
    Layout("one class in two spellings of Unicode", ("café/{1..2}.jpg", f"{_NFD}/{{3..4}}.jpg",
           "bar/{1..2}.jpg")),
    Layout("a name in Latin-1", ("cat/caf\udce9.jpg", "cat/1.jpg", "dog/{1..2}.jpg")),
    Layout("pipe, device, broken link, loop", ("{cat,dog}/{1..3}.jpg",), _odd_files),
    Layout("tar with a link", ("{cat,dog}/{1..3}.jpg",), _linked_tar),
    Layout("zip", ("{cat,dog}/{1..3}.jpg",), lambda folder: _pack(folder, "pets.zip")),
    Layout("tar of tars", ("n0{1..2}/{1..3}.JPEG",), _tar_of_tars),
    Layout("WebDataset shard", ("{0..4}.jpg", "{0..4}.cls"), lambda x: _pack(x, "shard-000.tar")),
    Layout("no images", ("labels.csv", "a/b.txt")),
)  # fmt: skip


def _tree(root: pathlib.Path) -> list[str]:
    """Returns the folders with their files, the first and the last of each."""
    found = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        names = sorted(files)
        shown = names if len(names) < 4 else [names[0], "...", names[-1]]
        if names:
            place = os.path.relpath(folder, root)
            found.append(f"  {place}/ {len(names)}: {' '.join(shown)}")
    more = [f"  ... {len(found) - _SHOWN} more folders"] if len(found) > _SHOWN else []
    return [ascii(line)[1:-1] for line in found[:_SHOWN] + more]


def _main(path: pathlib.Path) -> Iterator[str]:
    """Yields what pretraining prints about the images of configs/folder.py before it trains."""
    try:
        opened = open_named(experiment.get_config(str(path)))
    except (ValueError, OSError) as error:
        yield f"error: {error}"
        return
    yield from opened.notes
    for name, source in (("train", opened.train), ("test", opened.test)):
        if source is not None:
            yield f"({name}: {len(source)} images of {source.name})"


def _command(module: str, *arguments: str) -> Iterator[str]:
    """Yields what a command prints, and its exit code."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        handler = logging.get_absl_handler()
        stream, handler.python_handler.stream = handler.python_handler.stream, printed
        try:
            run = functools.partial(runpy.run_module, module, run_name="__main__")
            code: int | str = exit_code(run, *arguments)
        except Exception as error:
            code = f"TRACEBACK {type(error).__name__}: {error}"
        finally:
            handler.python_handler.stream = stream
    yield from printed.getvalue().splitlines()
    yield f"(exit {code})"


def _show(layout: Layout, encoder: pathlib.Path, commands: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="layouts-") as made:
        path = write(pathlib.Path(made) / "images", layout)
        print(f"\n=== {layout.title}", *_tree(pathlib.Path(made)), sep="\n", flush=True)
        of_images = (f"--encoder={encoder}", f"--images={path}")
        out = pathlib.Path(made) / "features.npz"
        said = {
            "main": lambda: _main(path),
            "embed": lambda: _command("moco_jax.embed", *of_images, f"--out={out}"),
            "knn": lambda: _command("moco_jax.knn", *of_images, "--k=3", "--temperature=0.1"),
        }
        for command in commands:
            for line in said[command]():
                text = f"{command:6}| {line.replace(made, '')}"
                print(text.encode("ascii", "backslashreplace").decode(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="layouts whose title contains this text")
    parser.add_argument("--commands", default="main,embed,knn", help="separated by commas")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layouts-") as made:
        encoder = pathlib.Path(made) / "encoder.safetensors"
        write_encoder(encoder, tiny_config(data__source="images", data__canvas=32))
        for layout in LAYOUTS:
            if options.only.lower() in layout.title.lower():
                _show(layout, encoder, options.commands.split(","))


if __name__ == "__main__":
    main()
