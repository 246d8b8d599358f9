"""Lists of paths: which columns are read, odd texts, bad rows, and metadata beside images."""

import json
import pathlib

import numpy as np
import pytest

from moco_jax.data.sources.tables.rows import text_array
from tests.data.sources.stores import contents, open_images, write_folder

PATHS = ["d/2.jpg", "d/1.jpg", "e f/3.jpg"]


def write(tmp_path: pathlib.Path, text: str | bytes, name: str = "list.csv") -> pathlib.Path:
    """Writes a list beside the images PATHS."""
    write_folder(tmp_path, PATHS)
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path / name


def read(source) -> list[tuple[str, str]]:
    """Returns contents and classes, '' without a class."""
    labels = [-1] * len(source) if source.labels is None else source.labels
    names = [*source.class_names, ""]
    return list(zip(contents(source), (names[label] for label in labels), strict=True))


LABELLED = [("d/1.jpg", "b"), ("d/2.jpg", "a"), ("e f/3.jpg", "b")]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", "path,label\nd/1.jpg,b\nd/2.jpg,a\ne f/3.jpg,b\n"),
        ("a.csv", "label,File_Name\r\nb,d/1.jpg\r\na,d/2.jpg\r\nb,e f/3.jpg"),
        ("a.csv", "d/1.jpg,b\nd/2.jpg,a\n\n e f/3.jpg , b \n"),
        ("a.csv", 'path,label\n"d/1.jpg","b"\n"d/2.jpg","a"\n"e f/3.jpg","b"\n'),
        ("a.csv", "path;class\nd/1.jpg;b\nd/2.jpg;a\ne f/3.jpg;b\n"),
        ("a.CSV", "width,path,height,label\n1,d/1.jpg,2,b\n1,d/2.jpg,2,a\n1,e f/3.jpg,2,b\n"),
        ("a.tsv", "image\tlabel\nd/1.jpg\tb\nd/2.jpg\ta\ne f/3.jpg\tb\n"),
        ("a.txt", "d/1.jpg b\nd/2.jpg a\ne f/3.jpg b\n"),
        ("a.txt", "d/1.jpg\tb\nd/2.jpg\ta\ne f/3.jpg\tb\n"),
        ("a.jsonl", '{"path": "d/1.jpg", "label": "b"}\n{"label": "a", "path": "d/2.jpg"}\n'
         '{"path": "e f/3.jpg", "label": "b", "box": [1]}'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_layouts_of_lists(tmp_path, name, text, encoding):
    train = open_images(write(tmp_path, text.encode(encoding), name)).train
    assert sorted(read(train)) == LABELLED
    # Class by class, as a folder.
    assert train.class_names == ("a", "b") and train.labels.tolist() == [0, 1, 1]
    assert train.names[0] == f"{tmp_path}/d/2.jpg"


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "d/2.jpg\nd/1.jpg\ne f/3.jpg\n"),
        ("a.csv", "d/2.jpg\nd/1.jpg\ne f/3.jpg\n"),
        ("a.csv", "path,width\nd/2.jpg,1\nd/1.jpg,1\ne f/3.jpg,1\n"),
        (
            "a.jsonl",
            '{"file_name": "d/2.jpg"}\n{"file_name": "d/1.jpg"}\n{"file_name": "e f/3.jpg"}',
        ),
    ],
)
def test_lists_without_labels(tmp_path, name, text):
    train = open_images(write(tmp_path, text, name)).train
    assert contents(train) == sorted(PATHS) and train.labels is None


def test_white_space_in_names(tmp_path):
    names = ["\u3000d/1.jpg", "d\u3000", "d ", "d"]
    write_folder(tmp_path, names[:1])
    text = f"path,label\n{names[0]}, {names[1]} \n{names[0]},{names[2]}\n{names[0]},{names[3]}\n"
    train = open_images(write(tmp_path, text)).train
    assert read(train) == [(names[0], "d"), (names[0], "d"), (names[0], "d\u3000")]
    text = "\n".join(json.dumps({"path": names[0], "label": label}) for label in names[1:])
    train = open_images(write(tmp_path, text, "a.jsonl")).train
    assert read(train) == [(names[0], "d"), (names[0], "d "), (names[0], "d\u3000")]


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_a_list_of_empty_lines_is_empty(tmp_path, name):
    with pytest.raises(ValueError, match="the list .* is empty"):
        open_images(write(tmp_path, " \n\n", name))


def test_a_nul_character_in_a_path_is_a_bad_row(tmp_path):
    sources = open_images(write(tmp_path, "path,label\nd/1.jpg,b\nd/\0.jpg,b\n"))
    assert read(sources.train) == [("d/1.jpg", "b")]
    assert "(line 3: a NUL character in the path)" in sources.notes[1]


def test_lines_of_cells_with_line_breaks(tmp_path):
    path = write(tmp_path, 'path,label\n"d/1.jpg","a\r\nb"\n\nd/2.jpg\n"d/2.jpg","\n"\n')
    sources = open_images(path)
    assert read(sources.train) == [("d/2.jpg", ""), ("d/1.jpg", "a\r\nb")]
    assert "(line 5: 1 columns; expected 2)" in sources.notes[1]
    path.write_text('path,label\n"d/1.jpg","a\nb"\nd/1.jpg,"' + "x" * 200_000)
    with pytest.raises(ValueError, match="list.csv, line 4: .*a quote may not be closed"):
        open_images(path)


def test_columns_without_a_name_have_their_number(tmp_path):
    path = write(tmp_path, ",label\nd/1.jpg,b\nd/2.jpg,a\n")
    assert read(open_images(path).train) == [("d/2.jpg", "a"), ("d/1.jpg", "b")]
    path = write(tmp_path, "path,,\nd/1.jpg,x,b\nd/2.jpg,y,a\n")
    train = open_images(path, label_column="3").train
    assert read(train) == [("d/2.jpg", "a"), ("d/1.jpg", "b")]
    path = write(tmp_path, '{"": "d/1.jpg", "path": "d/2.jpg"}', "a.jsonl")
    assert read(open_images(path).train) == [("d/2.jpg", "")]


@pytest.mark.parametrize(
    "labels, classes", [("2 -1 10", ["2", "10"]), ("a -1 b", ["-1", "a", "b"])]
)
def test_minus_one_is_no_label_among_numbers(tmp_path, labels, classes):
    text = "".join(f"{path},{label}\n" for path, label in zip(PATHS, labels.split(), strict=True))
    train = open_images(write(tmp_path, text)).train
    assert list(train.class_names) == classes
    assert dict(read(train))["d/1.jpg"] == ("-1" if "-1" in classes else "")


def test_splits_of_a_list(tmp_path):
    text = "path,label,split\nd/1.jpg,b,Training\nd/2.jpg,a,training\ne f/3.jpg,b,val\n"
    with pytest.raises(ValueError, match="several splits that look like train: Training, training"):
        open_images(write(tmp_path, text))
    sources = open_images(write(tmp_path, text.replace("T", "t")))
    assert read(sources.train) == [("d/2.jpg", "a"), ("d/1.jpg", "b")]
    assert read(sources.test) == [("e f/3.jpg", "b")] and sources.test.labels.tolist() == [1]
    # Without a header, the column is known by its cells.
    text = "d/1.jpg,b,train\nd/2.jpg,a,train\ne f/3.jpg,b,test\n"
    assert read(open_images(write(tmp_path, text)).test) == [("e f/3.jpg", "b")]


def test_folders_are_splits_where_training_on_all_would_train_on_test_images(tmp_path):
    write_folder(tmp_path, ["train/1.jpg", "train/2.jpg", "val/3.jpg", "x/4.jpg"])
    text = "file,label\ntrain/1.jpg,a\ntrain/2.jpg,b\nval/3.jpg,b\nx/4.jpg,b\n"
    for name in ("list.csv", "metadata.csv"):
        (tmp_path / name).write_text(text.replace("file", "file_name"))
        sources = open_images(tmp_path / name if name == "list.csv" else tmp_path)
        assert read(sources.train) == [("train/1.jpg", "a"), ("train/2.jpg", "b")]
        assert read(sources.test) == [("val/3.jpg", "b")]
        assert "not used: rows without a split" in sources.notes
    (tmp_path / "val.csv").write_text("val/3.jpg,b\n")
    assert len(open_images(tmp_path / "val.csv").train) == 1


def test_absolute_paths_and_paths_above_the_list(tmp_path):
    write_folder(tmp_path, ["x/1.jpg"])
    (tmp_path / "lists").mkdir()
    list_file = write(tmp_path / "lists", f"{tmp_path}/x/1.jpg\n../x/1.jpg\n", "a.txt")
    assert contents(open_images(list_file).train) == ["x/1.jpg"] * 2


def test_numbers_are_sorted_by_value_and_empty_labels_are_none(tmp_path):
    text = "path,label\nd/1.jpg,10\nd/2.jpg,9\ne f/3.jpg,\n"
    train = open_images(write(tmp_path, text)).train
    assert train.class_names == ("9", "10")
    assert sorted(train.labels.tolist()) == [-1, 0, 1]


def test_bad_rows_are_counted_and_named(tmp_path):
    rows = "".join(f"d/{i}.jpg,a\n" for i in range(300))
    text = f"path,label\n{rows}d/x.jpg\n,b\nd/\0.jpg,b\n"
    sources = open_images(write(tmp_path, text))
    assert len(sources.train) == 300
    assert sources.notes[1] == (
        f"warning: 3 of the 303 rows of {tmp_path}/list.csv can't be read (line 302: 1 columns; "
        "expected 2; line 303: no path; line 304: a NUL character in the path)"
    )
    with pytest.raises(ValueError, match=r"3 of the 303 rows .* more than data.max_bad_fraction"):
        open_images(tmp_path / "list.csv", max_bad_fraction=0.005)
    lines = "".join(f'{{"path": "d/{i}.jpg"}}\n' for i in range(300))
    text = lines + '{"path": "d/1.jpg"\n[1]\n{"path": 0.5}\n'
    sources = open_images(write(tmp_path, text, "a.jsonl"))
    assert (
        "line 301: no JSON object; line 302: no JSON object; line 303: no path" in sources.notes[1]
    )


def test_missing_files_are_unreadable_images(tmp_path):
    train = open_images(write(tmp_path, "d/1.jpg\nd/absent.jpg\nd\n/dev/zero\n", "a.txt")).train
    assert train.read(train.names[:].index(f"{tmp_path}/d/1.jpg")) == b"d/1.jpg"
    unreadable = 0
    for index in range(len(train)):
        try:
            train.read(index)
        except OSError:
            unreadable += 1
    assert unreadable == 3


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", b"", "the list .*a.csv is empty"),
        ("a.csv", b"path,label\n", "the list .*a.csv has no rows"),
        ("a.csv", "path\nd/1.jpg\nd/ä.jpg\n".encode("latin-1"), "line 3: the text is not UTF-8"),
        (
            "a.csv",
            "path\nd/1.jpg\n".encode("utf-16-le"),
            "NUL characters in its first line; it",
        ),
        ("a.csv", "path\nd/1.jpg\n".encode("utf-16")[:-1], "the text is not UTF-16"),
        ("a.csv", "path\nd/1.jpg\n".encode("utf-32"), "is in UTF-32; save it as UTF-8"),
        (
            "a.csv",
            b'path,label\n"d/1.jpg,a\n' + b"x" * 200_000,
            "line 2: .*quote may not be clo",
        ),
        ("a.txt", b"x" * (2 << 20), "line 1: more than 1048576 characters; is it a list"),
        ("a.csv", b"a,b\n1,2\n", "no column is known to have the paths of images; set .*image_col"),
        (
            "a.csv",
            b"path,file\n1,2\n",
            "several columns may be the path: path, file; set .*image",
        ),
        (
            "a.csv",
            b"path,class,category\n1,2,3\n",
            "several columns may be the label: class, category",
        ),
        ("a.csv", b"d/1.jpg,2,3\n", "several columns may be the label: 2, 3; set .*label_column"),
        ("a.jsonl", b"[1, 2]\n", "line 1: no JSON object"),
        ("a.jsonl", b"[" * 100_000, "line 1: no JSON object"),
    ],
)
def test_damaged_lists_are_one_message(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        open_images(write(tmp_path, text, name))


def test_keys_choose_columns(tmp_path):
    text = "a,b,c\nd/1.jpg,d/2.jpg,x\ne f/3.jpg,d/2.jpg,y\n"
    train = open_images(write(tmp_path, text), image_column="a", label_column="c").train
    assert read(train) == [("d/1.jpg", "x"), ("e f/3.jpg", "y")]
    with pytest.raises(ValueError, match="image_column=z must be a column with paths; .*: a, b, c"):
        open_images(tmp_path / "list.csv", image_column="z")
    train = open_images(write(tmp_path, "d/1.jpg,2,x\n"), label_column="3").train
    assert read(train) == [("d/1.jpg", "x")]


def test_excluded_rows(tmp_path):
    sources = open_images(write(tmp_path, "\n".join(PATHS), "a.txt"), exclude="d")
    assert contents(sources.train) == ["e f/3.jpg"]
    assert "data.exclude='d' leaves out 2 images" in sources.notes


def test_metadata_gives_labels(tmp_path):
    write_folder(tmp_path, ["train/x/1.jpg", "train/y/2.jpg", "test/3.jpg"])
    (tmp_path / "train/metadata.csv").write_text("file_name,label\ny/2.jpg,a\nx/1.jpg,b\n")
    (tmp_path / "test/metadata.jsonl").write_text('{"file_name": "3.jpg", "label": "b"}\n')
    sources = open_images(tmp_path)
    assert read(sources.train) == [("train/y/2.jpg", "a"), ("train/x/1.jpg", "b")]
    assert read(sources.test) == [("test/3.jpg", "b")]


@pytest.mark.parametrize(
    "text", ["file_name,text\nx/1.jpg,a photo\n", "id,label\n1,b\n", "", "\0\0\0", "x/1.jpg,b\n"]
)
def test_other_metadata_is_left_out(tmp_path, text):
    write_folder(tmp_path, ["x/1.jpg", "y/2.jpg"])
    (tmp_path / "metadata.csv").write_text(text)
    assert open_images(tmp_path).train.class_names == ("x", "y")


def test_an_array_of_texts_of_several_parts():
    texts = [str(number) for number in range((1 << 16) + 5)]
    assert text_array(iter(texts), len(texts)).tolist() == texts


def test_no_python_object_for_a_row_stays(tmp_path):
    rows = 50_000
    text = "path,label\n" + "".join(f"folder/image_{i:09}.jpg,{i % 7}\n" for i in range(rows))
    train = open_images(write(tmp_path, text)).train
    assert len(train) == rows and train.names[7].endswith(".jpg")
    assert isinstance(train.labels, np.ndarray) and not isinstance(train.names, list)
    assert json.dumps(train.names[:2])
