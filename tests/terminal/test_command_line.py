"""What the commands share: the flag --config, error messages and exit codes."""

import contextlib
import functools
import logging as standard_logging

import pytest
from absl import logging
from ml_collections import ConfigDict

from moco_jax.parallel import cluster, roll_call
from moco_jax.terminal import command_line, logs
from moco_jax.terminal.arguments import _override_problem, _overrides
from tests.conftest import run_command
from tests.in_process import exit_code

FILE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"name": "mine", "epochs": 3, "steps": 0})
"""


@pytest.fixture
def run(capsys):
    """Runs a command: (work, *arguments, **options) -> (exit code, standard error)."""

    def run(work, *arguments, **options):
        command = functools.partial(command_line.run_main, work, **options)
        code = exit_code(command, *arguments)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def config_flag(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return f"--config={tmp_path}/mine.py"


def raises(error):
    """Returns a command that raises an error."""

    def work():
        raise error

    return work


def test_required_config(run, config_flag):
    names = []
    work = lambda: names.append(command_line.config().name)  # noqa: E731
    message = "error: --config must be given, such as --config=configs/digits.py\n"
    assert run(work) == (2, message) and names == []
    assert run(work, config_flag, "--config.name=other") == (0, "") and names == ["other"]


def test_optional_config(run, config_flag):
    given = []
    work = lambda: given.append(command_line.has_config())  # noqa: E731
    assert run(work, config="optional") == (0, "")
    assert run(work, config_flag, config="optional") == (0, "")
    assert given == [False, True]


def test_command_without_a_config(run, config_flag):
    assert run(lambda: None, config="none") == (0, "")
    code, message = run(raises(AssertionError), config_flag, config="none")
    assert (code, message) == (2, f"error: {config_flag}: this command takes no config\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=none.py"], "--config=none.py: there is no config file none.py"),
        (["--config=help"], "help; `python -m moco_jax.keys` lists all keys"),
        (["--nonsense=1"], "--nonsense: there is no such flag"),
        (["a", "b=3"], "unexpected arguments: a b=3"),
    ],
)
def test_error_of_the_command_line(run, arguments, message):
    code, printed = run(raises(AssertionError), *arguments, config="optional")
    assert code == 2 and printed.startswith("error: ") and message in printed


def test_config_must_be_a_config_dict(run, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(): return [1]")
    code, printed = run(command_line.config, f"--config={tmp_path}/mine.py")
    assert code == 2 and "mine.py: get_config() must return a ConfigDict, got list" in printed


def test_a_command_of_one_task_refuses_configs_of_others(run, config_flag):
    code, printed = run(lambda: command_line.config("pretrain"), config_flag)
    assert code == 2
    assert "mine.py: this command needs task='pretrain', got None" in printed


def test_length_on_the_command_line_replaces_that_of_the_file(run, config_flag):
    lengths = []

    def work():
        config = command_line.config()
        lengths.append((config.epochs, config.steps))

    for arguments in ([], ["--config.steps=5"], ["--config.epochs=7"]):
        assert run(work, config_flag, *arguments) == (0, "")
    assert run(work, config_flag, "--config.steps=5", "--config.epochs=7") == (0, "")
    assert lengths == [(3, 0), (None, 5), (7, None), (7, 5)]


NESTED = """
from ml_collections import ConfigDict

def get_config(case):
    c = ConfigDict({"lr": 0.1, "data": {"image_size": 8}, "knn": {"k": 3}}).lock()
    if case == "whole":
        c.image_size = 3
    elif case == "group":
        c.data.imagesize = 3
    elif case == "update":
        c.knn.update({"image_size": 3})
    elif case == "read":
        print(c.dat.image_size)
    elif case == "type":
        c.lr = "a\\nb"
    return {}[case]
"""


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("whole", "there is no config key 'image_size'; did you mean 'data.image_size'?"),
        ("group", "there is no config key 'data.imagesize'; did you mean 'data.image_size'?"),
        ("update", "there is no config key 'knn.image_size'; did you mean 'data.image_size'?"),
        ("read", "there is no config key 'dat'; did you mean 'data'?"),
        ("other", "KeyError: other"),
    ],
)
def test_a_wrong_key_in_a_config_file_is_one_line(run, tmp_path, case, message):
    (tmp_path / "mine.py").write_text(NESTED)
    flag = f"--config={tmp_path}/mine.py:{case}"
    assert run(lambda: None, flag) == (2, f"error: {flag}: {message}\n")


@pytest.mark.parametrize(
    "key", ["image_size", "data.imagesize", "knn.image_size", "dat.image_size"]
)
def test_a_wrong_key_on_the_command_line_is_one_line(run, tmp_path, key):
    (tmp_path / "mine.py").write_text(NESTED.replace("{}[case]", "c"))
    code, printed = run(lambda: None, f"--config={tmp_path}/mine.py:x", f"--config.{key}=3")
    wrong = f"--config.{key}=3: there is no config key {key!r}"
    assert (code, printed) == (2, f"error: {wrong}; did you mean 'data.image_size'?\n")


@pytest.mark.parametrize("case", ["type"])
def test_errors_of_config_files_have_no_line_breaks(run, tmp_path, case):
    (tmp_path / "mine.py").write_text(NESTED)
    code, printed = run(lambda: None, f"--config={tmp_path}/mine.py:{case}")
    assert code == 2 and printed.count("\n") == 1 and "\\n" not in printed


def test_warnings_have_no_prefix_and_are_not_those_of_libraries(run):
    def work():
        logs.warning("skipped fish/broken.jpg (no known image format)")
        library = logging.get_absl_logger()
        for level, text in ((30, "a library's warning"), (40, "a library's error")):
            record = library.makeRecord("absl", level, "/x/site-packages/y.py", 1, text, (), None)
            library.handle(record)

    warned = "warning: skipped fish/broken.jpg (no known image format)\n"
    assert run(work, config="none") == (0, f"{warned}error: a library's error\n")


@pytest.mark.parametrize("error", [ValueError, OSError, ModuleNotFoundError, KeyError])
def test_error_is_one_message(run, error):
    # KeyError is not among the errors of every command.
    options = {"errors": (KeyError,)} if error is KeyError else {}
    code, printed = run(raises(error("bad value")), config="none", **options)
    assert code == 2
    assert printed == f"error: {error('bad value')}\n(--verbosity=1 prints the traceback)\n"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file or directory", "a.jpg"), OSError("x is absent")]
)
def test_an_error_that_names_its_cause_needs_no_traceback(run, error):
    def work():
        with command_line.naming("--query=a.jpg"):
            raise error

    text = "No such file or directory: 'a.jpg'" if error.filename else "x is absent"
    assert run(work, config="none") == (2, f"error: --query=a.jpg: {text}\n")
    absent = lambda: open("/absent/a.jpg")  # noqa: E731, SIM115
    text = "No such file or directory: '/absent/a.jpg'"
    assert run(absent, config="none") == (2, f"error: {text}\n")


def test_other_errors_and_verbose_errors_keep_their_traceback(run):
    with pytest.raises(KeyError):
        run(raises(KeyError("bug")), config="none")
    with pytest.raises(ValueError, match="bad value"):
        run(raises(ValueError("bad value")), "--verbosity=1", config="none")
    assert logs.LOGGER.level == standard_logging.WARNING  # tests that follow count warnings


def test_devices_that_jax_cannot_open_are_one_message(repository):
    done = run_command(repository, "moco_jax.main", "--config=configs/digits.py", JAX_PLATFORMS="x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: JAX can't open the devices: Unable to initialize backend")
    assert done.stderr.endswith("else look at their driver and at the programs that use them\n")


def test_what_a_command_writes_is_on_a_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_line.on_disk("~/x.npz") == tmp_path / "x.npz"
    with pytest.raises(ValueError, match="--json=s3://b/x must be on a disk"):
        command_line.on_disk("s3://b/x", "--json")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("moco_jax.convert", ["--source=/none", "--to=moco_jax"]),
        ("moco_jax.embed", ["--encoder=/none"]),
        ("moco_jax.report", ["--workdir=/none"]),
        ("moco_jax.data.preview", ["--config=configs/digits.py"]),
        ("moco_jax.ablate", ["--config=configs/digits.py", "--study=queue_size"]),
    ],
)
def test_a_url_to_write_to_is_an_error(repository, module, arguments):
    done = run_command(repository, module, *arguments, "--out=s3://b/x.png")
    assert done.returncode == 2 and "--out=s3://b/x.png must be on a disk" in done.stderr


def test_interrupt_is_one_message(run):
    assert run(raises(KeyboardInterrupt), config="none") == (130, "\ninterrupted\n")
    code, printed = run(raises(KeyboardInterrupt), config="none", interrupted="nothing is saved")
    assert (code, printed) == (130, "\nnothing is saved\n")


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (75, 75)])
def test_result_is_the_exit_code(run, result, code):
    assert run(lambda: result, config="none") == (code, "")


@pytest.mark.parametrize(
    ("work", "code", "expected"),
    [
        (lambda: None, 0, ["join", "leave"]),
        (lambda: 75, 75, ["join", "leave"]),
        (raises(KeyboardInterrupt), 130, ["join"]),  # it does not wait for the others
    ],
)
def test_processes_separate_before_the_exit(run, work, code, expected):
    events = []

    @contextlib.contextmanager
    def join():
        events.append("join")
        yield
        events.append("leave")

    assert run(work, config="none", join=join)[0] == code
    assert events == expected


def test_error_ends_the_process_while_it_is_joined(run):
    @contextlib.contextmanager
    def join():
        with pytest.raises(SystemExit):
            yield
        raise SystemExit(7)

    assert run(raises(ValueError), config="none", join=join)[0] == 7


@pytest.mark.parametrize(
    ("error", "code"), [(cluster.WrongFlags("alone"), 2), (roll_call.Missing("1 is missing"), 1)]
)
def test_error_of_joining_is_one_message(run, error, code):
    assert run(lambda: None, config="none", join=raises(error)) == (code, f"error: {error}\n")


def test_list_of_numbers(run):
    flag = lambda *values: type("Flag", (), {"name": "k", "value": list(values)})  # noqa: E731
    assert command_line.numbers(flag("1", "20"), int) == [1, 20]
    for values, kind in ((("1", "x"), int), (("0.5",), int), (("0",), float), ((), int)):
        code, printed = run(lambda v=values, k=kind: command_line.numbers(flag(*v), k),
                            config="none")  # fmt: skip
        what = "whole numbers" if kind is int else "numbers"
        assert code == 2 and f"--k must be {what} above 0, such as 1,2; got " in printed


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        ("table", "name  cosine  top1\na     0.1235  33.33\nlong  0.1000  50.00\n"),
        ("csv", "name,cosine,top1\na,0.1235,33.3333\nlong,0.1,50.0\n"),
        ("json", '{"name": "a", "cosine": 0.1235, "top1": 33.3333}\n'
                 '{"name": "long", "cosine": 0.1, "top1": 50.0}\n'),
    ],
)  # fmt: skip
def test_rows_are_printed_in_each_format(capsys, form, printed):
    assert form in command_line.FORMATS
    rows = iter([("a", 0.12345678, 100 / 3), ("long", 0.1, 50.0)])
    command_line.print_rows(rows, ("name", "cosine", "top1"), form)
    assert capsys.readouterr().out == printed
    command_line.print_rows(iter(()), ("name", "cosine"), form)
    assert capsys.readouterr().out == {"table": "name  cosine\n", "csv": "name,cosine\n"}.get(
        form, ""
    )


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_a_table_on_a_terminal_is_as_wide_as_it(capsys, monkeypatch, columns):
    path = "/data/" + 20 * "folder/" + "{}/image.jpg"
    rows = [(0.5, path.format(1), path.format(2)), (0.25, "a.jpg", "b.jpg")]
    names = ("cosine", "first", "second")
    command_line.print_rows(rows, names, "table")
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == list(rows[0][1:])  # in a pipe
    monkeypatch.setattr(command_line.style, "is_terminal", lambda stream: True)
    monkeypatch.setattr(command_line.style, "width", lambda: columns)
    command_line.print_rows(rows, names, "table")
    first = capsys.readouterr().out.splitlines()[1]
    widest = max(columns, 50)  # 20 a text, and the gaps
    assert widest - 1 <= len(first) <= widest
    for text, number in zip(first.split()[1:], "12", strict=True):
        assert text.startswith("/data/") and "..." in text and text.endswith(f"{number}/image.jpg")


def test_a_key_without_a_name_is_named():
    config = ConfigDict({"lr": 0.1})
    for key in ("", "data.", ".lr"):
        argument = f"--config.{key}=1"
        assert list(_overrides(["main", argument])) == [(argument, key, "1")]
        problem = _override_problem(config, argument, key, "1")
        assert problem.startswith(f"{argument}: a key must have a name")
