"""Layouts of real data sets: which images a run reads, and what it prints about them.

The layouts are those of public reports on other projects. Every guess is a line with a key, and a
guess that would train on test images is an error.
"""

import re
import unicodedata

import pytest

from moco_jax.data.sources import file_types
from moco_jax.supervised.run import open_labelled
from tests.data.sources.stores import contents, images, open_images, write_folder, write_tar
from tests.supervised.tiny import task_config


@pytest.fixture(params=["folder", "tar"])
def store(request, tmp_path):
    """Returns a function that writes paths as a folder or as an archive."""

    def write(paths):
        if request.param == "folder":
            return write_folder(tmp_path / "data", paths)
        return write_tar(tmp_path / "data.tar", paths)

    return write


# paths, notes that must be there, classes, folders of the train images and of the test images
READ = {
    "Training, Testing": (
        images("Training/a Training/b Training/c Testing/a Testing/b Testing/c"),
        ["3 classes: a, b, c; train: 9 images in Training/; test: 9 images in Testing/"],
        "Training",
        "Testing",
    ),
    "Train, Test": (
        images("Train/a Train/b Test/a Test/b"),
        ["2 classes: a, b; train: 6 images in Train/; test: 6 images in Test/"],
        "Train",
        "Test",
    ),
    "COCO": (
        images("train2017/a train2017/b val2017/a val2017/b test2017"),
        [
            "test: 6 images in val2017/ (test2017/ has no class folders): "
            "--config.data.test_split=...",
            "not used: test2017/ (3 images)",
        ],
        "train2017",
        "val2017",
    ),
    "Roboflow without test": (
        images("train/a train/b valid/a valid/b"),
        ["test: 6 images in valid/"],
        "train",
        "valid",
    ),
    "val and test": (
        images("train/a train/b valid/a test/b"),
        ["test: 3 images in test/ (not valid/): --config.data.test_split=...", "not used: valid/"],
        "train",
        "test",
    ),
    "twice the same folder": (
        images("seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_pred/seg_pred"),
        ["train: 6 images in seg_train/; test: 3 images in seg_test/", "not used: seg_pred/"],
        "seg_train",
        "seg_test",
    ),
    "training_set": (
        images("training_set/cats training_set/dogs test_set/cats test_set/dogs"),
        ["2 classes: cats, dogs; train: 6 images in training_set/; test: 6 images in test_set/"],
        "training_set",
        "test_set",
    ),
    "a name before the split": (
        images("signs_train/a signs_train/b signs_test/a"),
        ["train: 6 images in signs_train/; test: 3 images in signs_test/"],
        "signs_train",
        "signs_test",
    ),
    "an extra split": (
        images("train/a train/b test/a extra unlabeled"),
        ["not used: extra/ (3 images), unlabeled/ (3 images)"],
        "train",
        "test",
    ),
    "an image beside the splits": (
        [*images("train/a train/b test/a"), "preview.jpg"],
        ["not used: 1 image beside the folders"],
        "train",
        "test",
    ),
    "VOC": (
        images("VOC2012/JPEGImages VOC2012/SegmentationClass VOC2012/SegmentationObject"),
        [
            "no classes; train: 3 images",
            "left out as masks or labels beside images: SegmentationClass/ (3 images), "
            "SegmentationObject/ (3 images); a renamed folder is kept",
        ],
        "VOC2012/JPEGImages",
        None,
    ),
    "Oxford pets": (
        images("images annotations/trimaps"),
        [
            "no classes; train: 3 images",
            "left out as masks or labels beside images: annotations/ (",
        ],
        "images",
        None,
    ),
    "masks in each split": (
        images("train/images train/masks test/images test/masks"),
        ["no classes; train: 3 images in train/", "beside images: masks/ (6 images)"],
        "train/images",
        None,
    ),
    "masks of images in one folder": (
        [*images("cat dog"), *images("cat/masks dog/masks")],
        ["2 classes: cat, dog", "beside images: masks/ (6 images)"],
        "",
        None,
    ),
    "masks among classes": (
        images("cat dog masks"),
        [
            "3 classes: cat, dog, masks",
            "warning: masks/ (3 images) looks like masks or labels: --config.data.exclude=masks",
        ],
        "",
        None,
    ),
    "thumbnails": (
        images("images masks thumbnails"),
        ["beside images: masks/ (3 images), thumbnails/ (3 images); a renamed"],
        "images",
        None,
    ),
    "images among classes": (
        images("images cat"),
        ["warning: the class images looks like a folder of all images: --config.data.path=.../im"],
        "",
        None,
    ),
    "masks by file name": (
        ["a/1.png", "a/1_mask.png", "b/2.png", "c/2_mask.png"],
        ["warning: 2 images of 4 look like masks, such as 1_mask.png: --config.data.exclude='*_"],
        "",
        None,
    ),
    "folds": (
        images("fold1 fold2"),
        ["warning: the classes fold1, fold2 look like a split: --config.data.exclude=fold2"],
        "",
        None,
    ),
    "nested classes": (
        images("animals/cat animals/dog plants/rose plants/oak"),
        [
            "2 classes: animals, plants; train: 12 images",
            "classes are the first of nested folders; 4 folders hold images: "
            "--config.data.class_folders=leaf",
        ],
        "",
        None,
    ),
    "images beside class folders": (
        [*images("a b"), "x.jpg"],
        ["warning: no classes: 1 image, such as x.jpg, beside the 2 folders a, b"],
        "",
        None,
    ),
    "classes with the word mask": (
        images("with_mask without_mask"),
        ["2 classes: with_m"],
        "",
        None,
    ),
    "a first folder that holds all": (
        images("kaggle/input/train/a kaggle/input/train/b kaggle/input/valid/a"),
        ["train: 6 images in train/; test: 3 images in valid/"],
        "kaggle/input/train",
        "kaggle/input/valid",
    ),
}


@pytest.mark.parametrize(
    "paths",
    [
        ["wear/n03724870_mask.JPEG", "wear/n04229816_ski_mask.JPEG", "fish/n01443537_1.JPEG"],
        ["mask/n03724870_1.JPEG", "mask/n03724870_2.JPEG", "fish/n01443537_1.JPEG"],
    ],
    ids=["file names", "folders"],
)
def test_images_of_masks_and_labels_are_not_warned_of(store, paths):
    """Masks have the names of the images that they belong to."""
    sources = open_images(store(paths))
    assert len(sources.train) == 3
    assert not any("mask" in note.partition(";")[2] for note in sources.notes)
    assert not any(note.startswith("warning: ") for note in sources.notes)


@pytest.mark.parametrize("name", READ)
def test_layouts_that_are_read(store, name):
    paths, wanted, train, test = READ[name]
    sources = open_images(store(paths))
    notes = "\n".join(sources.notes)
    for line in wanted:
        assert line in notes
    assert all(text.startswith(train) for text in contents(sources.train))
    if test is None:
        assert sources.test is None
    else:
        assert all(text.startswith(test) for text in contents(sources.test))
        assert sources.test.class_names == sources.train.class_names
    if "warning" not in notes:
        assert not any("mask" in text.split("/") for text in contents(sources.train))


@pytest.mark.parametrize(
    "paths, message",
    [
        (images("test/a test/b val/a"), "has test/, val/ but no train/; to train on one of these"),
        (
            images("test a b"),
            "has test/ beside a/, b/ and no train/: training on all of them would train on test "
            "images. Set --config.data.train_split to the folder to train on, "
            "--config.data.exclude=test to leave out test images, or --config.data.train_split='' "
            "if all folders are classes",
        ),
        (images("valid invalid"), "has valid/ beside invalid/ and no train/"),
        (images("seg_pred a"), "has seg_pred/ beside a/ and no train/"),
        (
            images("bus car train"),
            "has train/ beside bus/, car/, so train/ is a split or a class: set "
            "--config.data.train_split='' if all folders are classes, or "
            "--config.data.exclude=bus,car to train on it alone",
        ),
        (
            images("train2014/a train2014/b train2017/a train2017/b val2017/a"),
            "has several folders that look like train: train2014/, train2017/; "
            "set --config.data.train_split to one of them",
        ),
        (images("trainA trainB testA testB"), "several folders that look like train: trainA/, tr"),
        (
            images("cat/train cat/test dog/train dog/test"),
            "cat/ holds the splits test/, train/: training on all of them would train on test "
            "images. Set --config.data.exclude=test to leave out test images",
        ),
        (images("train/cat/train train/cat/val train/dog/train"), "holds the splits train/, val/"),
        (images("train/a train/b test/a test/c"), "test/ has c/, not among the 2 classes of train"),
    ],
)
def test_layouts_that_would_train_on_test_images_are_errors(store, paths, message):
    path = store(paths)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_images(path)
    assert str(path) in str(error.value)


def test_keys_decide_where_the_layout_does_not(store):
    path = store(images("test a b"))
    everything = open_images(path, train_split="")
    assert everything.train.class_names == ("a", "b", "test") and everything.test is None
    assert open_images(path, exclude="test").train.class_names == ("a", "b")
    assert set(contents(open_images(path, train_split="test").train)) == set(images("test"))
    with pytest.raises(ValueError, match="test_split='a' needs data.train_split, which is ''"):
        open_images(path, train_split="", test_split="a")


def test_images_without_a_test_split_are_held_out_and_the_line_says_why(store):
    flat_val = store(images("train/n01 train/n02") + images("val", 5))
    sources = open_images(flat_val, held_out=0.34)
    assert sources.notes == (
        "2 classes: n01, n02; train: 4 images in train/; test: 2 held out of train/ "
        "(val/ has no class folders): --config.data.test_split=...",
        "not used: val/ (5 images)",
    )
    assert all(text.startswith("train/") for text in contents(sources.test))


def test_explicit_splits_win(store):
    path = store(images("train/a train/b Training/a Training/b val/a val/b test/a"))
    sources = open_images(path, train_split="Training", test_split="val")
    assert all(text.startswith("Training/") for text in contents(sources.train))
    assert all(text.startswith("val/") for text in contents(sources.test))
    assert "not used: test/ (3 images), train/ (6 images)" in sources.notes
    with pytest.raises(ValueError, match="data.train_split='train2017' must be a folder"):
        open_images(path, train_split="train2017")


def test_a_split_by_another_spelling_of_its_name(store):
    path = store(images("Training/a Training/b valid/a valid/b"))
    assert all(
        text.startswith("valid/") for text in contents(open_images(path, train_split="val").train)
    )


def test_leaf_folders_as_classes(store):
    path = store(images("train/animals/cat train/animals/dog train/plants/rose test/animals/dog"))
    sources = open_images(path, class_folders="leaf")
    assert sources.train.class_names == ("animals/cat", "animals/dog", "plants/rose")
    assert sources.test.labels.tolist() == [1, 1, 1]
    assert "3 classes: animals/cat, animals/dog, plants/rose" in sources.notes[0]
    assert open_images(path).train.class_names == ("animals", "plants")
    with pytest.raises(ValueError, match="class_folders='deep' must be one of first, leaf"):
        open_images(path, class_folders="deep")


def test_excluded_folders_and_files(store):
    path = store(images("a b thumbs a/thumbs") + ["a/1_seg.png"])
    sources = open_images(path, exclude="thumbs, *_seg.png")
    assert contents(sources.train) == images("a b")
    assert "data.exclude='thumbs, *_seg.png' leaves out 7 images" in sources.notes
    assert "warning: data.exclude='x' leaves out 0 images" in open_images(path, exclude="x").notes
    with pytest.raises(ValueError, match="data.exclude='\\*' leaves out all 13 images"):
        open_images(path, exclude="*")


def test_tiny_imagenet(tmp_path):
    paths = images("train/n01/images train/n02/images val/images test/images")
    root = write_folder(tmp_path, paths)
    (root / "val/val_annotations.txt").write_text(
        "".join(f"{i}.jpg\tn0{1 + i % 2}\t0\t0\t62\t62\n" for i in range(3))
    )
    sources = open_images(root)
    assert contents(sources.test) == images("val/images") and sources.test.labels.tolist() == [
        0,
        1,
        0,
    ]
    assert "the classes of val/ are those of val_annotations.txt" in sources.notes
    assert "test: 3 images in val/ (test/ has no class folders)" in sources.notes[0]
    (root / "val/val_annotations.txt").write_text("0.jpg\tn09\n")
    notes = open_images(root, held_out=0.34).notes[0]
    assert (
        "held out of train/" in notes and "val_annotations.txt has no class of train for" in notes
    )


def test_names_in_two_unicode_forms_are_one_class(store):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    path = store(images(f"train/{composed} train/tea test/{decomposed}"))
    sources = open_images(path)
    assert (
        sources.train.class_names == (composed, "tea") and sources.test.labels.tolist() == [0] * 3
    )
    assert contents(sources.test)[0] == f"test/{decomposed}/0.jpg"
    path = store(images(f"{composed} {decomposed} tea"))
    path = path.parent / path.name if path.suffix else path
    mixed = open_images(path, train_split="", exclude="train,test")
    assert mixed.train.labels.tolist() == [0] * 6 + [1] * 3
    assert f"{composed} is spelled in two Unicode forms (NFC and NFD): one class" in mixed.notes


def test_one_image_a_class(store):
    sources = open_images(store([f"{i}/{i}.jpg" for i in range(20)]), held_out=0.1)
    assert sources.test is None
    assert (
        "warning: each of the 20 classes has one image, so none can be held out; are these folders "
        "classes?"
    ) in sources.notes


def test_every_ending_that_is_left_out_is_counted(store, monkeypatch):
    monkeypatch.setattr(file_types, "EXTENSIONS", (".jpg", ".ppm", ".jfif"))
    paths = ["a/1.heic", "a/2.HEIC", "b/3.jp2", "b/4.avif", "b/x.xml", "b/y.xml", "README"]
    sources = open_images(store([*images("a b"), "a/5.ppm", "b/6.JFIF", *paths, "a/.DS_Store"]))
    assert len(sources.train) == 8
    assert (
        "left out: 7 files: 2 .heic (pip install 'moco-jax[heic]' reads them), 1 (no ending), "
        "1 .avif (pip install 'pillow>=11.3' reads them), 1 .jp2; 2 .xml"
    ) in sources.notes


def test_litter_is_not_counted(store):
    paths = ["a/Thumbs.db", "desktop.ini", ".git/x.jpg", "__MACOSX/a/._0.jpg", "b/.hidden.jpg"]
    sources = open_images(store([*images("a b"), *paths]))
    assert sources.notes == ("2 classes: a, b; train: 6 images; no test images",)


def test_long_lists_of_classes_are_cut(store):
    notes = open_images(store(images(" ".join(f"class{i:04}" for i in range(300)), 1))).notes
    assert notes[0].startswith("300 classes: class0000, class0001") and len(notes[0]) < 130


def test_class_names_with_control_characters_are_escaped_in_notes(store):
    notes = open_images(store(images("red\x1b[31m blue\udce9"))).notes[0]
    assert "\x1b" not in notes and "\udce9" not in notes and r"red\x1b[31m" in notes


def test_a_supervised_task_does_not_blame_held_out_for_one_image_a_class(tmp_path):
    sources = open_images(write_folder(tmp_path, [f"{i}/{i}.jpg" for i in range(20)]), held_out=0.1)
    with pytest.raises(ValueError, match="each of the 20 classes of .* has one image"):
        open_labelled(task_config("linear", tmp_path), sources)
