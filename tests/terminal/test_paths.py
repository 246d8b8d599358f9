"""Several paths in one argument."""

import os

import pytest

from moco_jax.terminal import paths


@pytest.mark.parametrize(
    "path, expected",
    [
        ("a", ["a"]),
        ("absent", ["absent"]),
        ("a+b", ["a", "b"]),
        ("a+b+c++", ["a", "b", "c++"]),
        ("c+++a", ["c++", "a"]),
        ("a+absent+b", ["a", "absent", "b"]),
        ("x+y", ["x+y"]),  # exists as it is written
        ("x+y+a", ["x+y", "a"]),
        ("a+", ["a", ""]),
        ("s3://b/x.tar", ["s3://b/x.tar"]),
        ("a+s3://b/x.tar+gs://c+c++", ["a", "s3://b/x.tar", "gs://c", "c++"]),
    ],
)
def test_parts(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c++", "x", "x+y"):
        (tmp_path / name).mkdir()
    assert paths.parts(path) == expected


def test_home_is_expanded_in_each_part(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert paths.parts("~/a+~/b") == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert paths.each(os.path.basename, "~/a+~/b") == "a+b"
    assert paths.missing("~/a+~/b") == "" and paths.missing("~/a+~/c") == f"{tmp_path}/c"


def test_urls_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    joined = "a+s3://b/x.tar+gs://c/{0..9}.tar"
    assert paths.each(os.path.abspath, joined) == f"{tmp_path}/{joined}"
    assert paths.missing(joined) == ""
    assert paths.is_pattern("gs://c/{0..9}.tar") and not paths.is_url("/s3://b")
    assert paths.below("s3://b/y", "x.jpg") == "s3://b/y/x.jpg"
    assert paths.below("/y", "s3://b/x.jpg") == "s3://b/x.jpg"


@pytest.mark.parametrize(
    "path",
    ["s3:/b/x", "s3:b/x", "s3//b/x", "S3:b/x", " s3://b/x", "'s3://b/x'", "s3:b/x "],
)
def test_a_mistyped_url_is_no_path(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert paths.mistyped_url(path) == "s3://b/x"
    with pytest.raises(ValueError, match="^--workdir=.* is no URL .*mean --workdir=s3://b/x?"):
        paths.check_no_url(path, "--workdir")
    (tmp_path / path.partition("/")[0]).mkdir()
    assert paths.mistyped_url(path) == ""


@pytest.mark.parametrize("path", ["./s3:/b", "/s3:/b", "s3/b", "s3", "s3-runs/x", "s3://b/x", "a"])
def test_other_paths_are_no_mistyped_urls(path):
    paths.check_no_url(path, "--workdir")


@pytest.mark.parametrize("path, expected", [("s3://b/x//", "s3://b/x"), ("s3:///", "s3://")])
def test_slashes_of_a_scheme_stay(path, expected):
    assert paths.without_slash(path) == expected
