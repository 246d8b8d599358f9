"""`python -m moco_jax.check`: lines, the file of results, exit codes."""

import json

import pytest

from moco_jax.check import __main__ as command
from moco_jax.check import findings, machine, survival
from moco_jax.check.findings import Finding, Verdict
from tests.conftest import run_command
from tests.in_process import exit_code

OK = Finding("queue", Verdict.OK, "5 steps", values={"loss": 1e-7})
SLOW = Finding("links", Verdict.SLOW, "1 GB/s", "look at the topology")
WRONG = Finding("masked", Verdict.WRONG, "differs", "do not train here")


def run(*arguments):
    run_main = command.command_line.run_main
    return exit_code(lambda: run_main(command.main, config="none"), *arguments)


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Sets what is found; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return lambda *found: monkeypatch.setattr(command, "_findings", lambda: iter(found))


@pytest.mark.parametrize(("finding", "code"), [(OK, 0), (SLOW, 0), (WRONG, 1)])
def test_lines_file_and_exit_code(finding, code, found, tmp_path, capsys):
    found(OK, finding)
    assert run() == code
    printed = capsys.readouterr().out
    assert f"{finding.verdict.value:8}{finding.name}" in printed
    assert not finding.advice or f"-> {finding.advice}" in printed
    record = json.loads((tmp_path / "moco_jax_check.json").read_text())
    assert [x["verdict"] for x in record["findings"]] == ["ok", finding.verdict.value]
    assert record["findings"][0]["values"] == {"loss": 1e-7}


def test_a_second_check_replaces_its_own_file_only(found, tmp_path, capsys):
    found(OK)
    assert run() == 0 and run() == 0
    (tmp_path / "mine.json").write_text("{}")
    assert run("--json=mine.json") == 2
    assert "--json=mine.json: the file exists" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--json=no/a.json", "--json=no/a.json: there is no folder"),
        ("--folder=no", "--folder=no: there is no such folder"),
    ],
)
def test_wrong_paths_are_errors_before_the_checks(argument, message, found, capsys):
    found(OK)
    assert run(argument) == 2 and message in capsys.readouterr().err


def test_an_error_in_a_check_is_a_finding():
    def broken():
        yield OK
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nallocator")

    one, two = command._guarded("speed", "timing", broken)
    assert one is OK and two.verdict is Verdict.WRONG
    assert two.text == "the check failed: RESOURCE_EXHAUSTED: out of memory"
    assert "another program" in two.advice


def test_lines_fit_the_terminal():
    finding = Finding("queue", Verdict.WRONG, "word " * 40, "advice " * 30)
    assert max(map(len, findings.line(finding, 80).splitlines())) <= 80


@pytest.mark.parametrize("accelerator", list(machine._INSTALL))
def test_an_unused_accelerator_is_wrong(accelerator, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(machine, "_ACCELERATORS", {accelerator: lambda: True})
    finding = machine.check()
    assert finding.verdict is Verdict.WRONG and machine._INSTALL[accelerator] in finding.advice
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "because JAX_PLATFORMS=cpu" in machine.check().advice


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setattr(machine, "_ACCELERATORS", {})
    finding = machine.check()
    assert finding.verdict is Verdict.OK and json.dumps(finding.values)
    assert finding.values["devices"] == 8 and "jax" in finding.values["versions"]


@pytest.fixture
def fake_runs(monkeypatch):
    """Replaces runs by none; `arrays` are those of the two last checkpoints."""

    def fake(**arrays):
        monkeypatch.setattr(survival, "_finish", lambda folder, name: None)
        monkeypatch.setattr(survival, "_kill", lambda folder, name: 20)
        monkeypatch.setattr(survival, "_arrays", lambda folder: arrays[folder.name])

    return fake


def test_a_resumed_run_that_differs_is_wrong(fake_runs, tmp_path):
    fake_runs(whole={"a": 1, "b": 2}, killed={"a": 1, "b": 3})
    finding = survival.check(tmp_path)
    assert finding.verdict is Verdict.WRONG and "1 of 2 arrays differ" in finding.text


def test_a_resumed_run_that_is_equal(fake_runs, tmp_path):
    fake_runs(whole={"a": 1}, killed={"a": 1})
    assert survival.check(tmp_path).verdict is Verdict.OK


def test_a_run_that_fails_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(survival, "_RUN", ("--config.nothing=1",))
    finding = survival.check(tmp_path)
    assert finding.verdict is Verdict.WRONG
    assert "exit code 2: " in finding.text and "nothing" in finding.text


@pytest.mark.slow
def test_the_whole_check_on_this_machine(repository, tmp_path):
    file = tmp_path / "check.json"
    done = run_command(repository, "moco_jax.check", f"--json={file}", f"--folder={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(file.read_text())
    assert {x["verdict"] for x in record["findings"]} == {"ok"}
    names = [x["name"] for x in record["findings"]]
    assert names[:2] == ["kill and resume", "machine"] and names[-1] == "decoding"
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]
