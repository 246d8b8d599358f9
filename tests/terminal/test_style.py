"""Width, colour and wrapped lines."""

import io

import pytest

from moco_jax.terminal import style


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"CLICOLOR_FORCE": "1"}, True),
        (False, {"FORCE_COLOR": "0"}, False),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_needs_a_terminal_or_a_request(monkeypatch, terminal, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal)
    assert style.has_colour(stream) is expected
    assert style.bold("name", stream) == ("\x1b[1mname\x1b[0m" if expected else "name")


def test_a_closed_stream_is_no_terminal():
    stream = Stream(True)
    stream.close()
    assert not style.is_terminal(io.StringIO()) and not style.is_terminal(None)
    assert style.width(stream) == 80


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_lines_are_wrapped_between_words(columns):
    text = "step 60: " + "kNN top-1 27.25% on 1200 held-out images; " * 6
    lines = style.wrapped(text.strip(), columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(line.strip() for line in lines).split() == text.split()


@pytest.mark.parametrize(
    "line",
    [
        "  python -m moco_jax.main --config=configs/digits_linear.py --config.steps=200",
        '  import moco_jax; encoder = moco_jax.load("runs/a: b/and/a/long/folder/that/is/there")',
        "    img_size=224, patch_size=16, embed_dim=384, depth=12, num_heads=6, mlp_ratio=4",
        "  python -m moco_jax.main '--config=configs/folder.py:/a: b' --workdir=runs/here",
        "| name                 | shape                     |                    size |",
        "head 1     80.00    90.00    95.00    100.00    80.00    90.00    95.00    100.00    1.00",
        "/a/path/without/spaces/that/is/much/longer/than/the/terminal/is/wide/and/stays/whole/a.jpg",
    ],
)
def test_commands_tables_and_paths_stay_whole(line):
    assert style.wrapped(line, 60) == line


@pytest.mark.parametrize(
    "line",
    [
        "  - queue_size=10 must be a multiple of the 8 keys of a step; the nearest are 8 and 16",
        "  queue_size 16: at most half of the images, so that few keys are of a query's own image",
        "  not used: the head, the key encoder, the queue and the optimizer state of its run",
        "  /a/run/checkpoints/5: its arrays can't be read: the file is empty, or something else",
        "  resnet50, width 0.25, small stem (3x3, no pooling), 23.5 M parameters; no head at all",
    ],
)
def test_indented_items_are_wrapped_below_their_text(line):
    first, *more = style.wrapped(line, 60).splitlines()
    assert first.startswith("  ") and first[2] != " " and max(map(len, [first, *more])) <= 60
    assert more and all(x.startswith("    ") and x[4] != " " for x in more)
    assert " ".join(" ".join([first, *more]).split()) == line.strip()


def test_what_is_piped_is_not_wrapped():
    stream = Stream(False)
    style.print_line("word " * 100, stream)
    assert stream.getvalue() == "word " * 100 + "\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("error: it failed: twice", "\x1b[31merror:\x1b[0m it failed: twice"),
        ("warning: it is slow", "\x1b[33mwarning:\x1b[0m it is slow"),
        ("done: step 3", "\x1b[32mdone:\x1b[0m step 3"),
        ("step 3: an error: no", "step 3: an error: no"),
    ],
)
def test_labels_have_colours_on_terminals_only(line, shown):
    for terminal, expected in ((True, shown), (False, line)):
        stream = Stream(terminal)
        style.print_line(line, stream)
        assert stream.getvalue() == f"{expected}\n"
