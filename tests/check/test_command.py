"""`python -m moco_jax.check`: lines, the file of results, exit codes."""

import errno
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from moco_jax.check import __main__ as command
from moco_jax.check import findings, machine, survival
from moco_jax.check.findings import Finding, Verdict
from moco_jax.terminal import signals
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
    return lambda *found: monkeypatch.setattr(command, "_findings", lambda folder: iter(found))


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
        ("--json=.", "--json=. is a folder; allowed: a file"),
        ("--folder=no", "--folder=no: there is no such folder"),
    ],
)
def test_wrong_paths_are_errors_before_the_checks(argument, message, found, capsys):
    found(OK)
    assert run(argument) == 2 and message in capsys.readouterr().err


def test_results_that_can_not_be_saved_leave_the_old_ones(found, tmp_path, monkeypatch, capsys):
    found(OK)
    assert run() == 0
    before = (tmp_path / "moco_jax_check.json").read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    assert run() == 2
    message = capsys.readouterr().err
    assert "--json=moco_jax_check.json" in message and "No space left" in message
    assert (tmp_path / "moco_jax_check.json").read_bytes() == before


def test_results_with_nan_are_json(found, tmp_path):
    found(Finding("queue", Verdict.WRONG, "", values={"loss": math.nan, "losses": [math.inf]}))
    assert run() == 1
    content = (tmp_path / "moco_jax_check.json").read_text()
    record = json.loads(content, parse_constant=lambda name: pytest.fail(name))
    assert record["findings"][0]["values"] == {"loss": "nan", "losses": ["inf"]}


def broken():
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nallocator")


def test_an_error_in_a_check_is_a_finding_and_the_others_go_on():
    checks = iter([("v3", broken), ("queue", lambda: OK)])
    one, two = command._attempted("timing", checks)
    assert two is OK and one.name == "v3" and one.verdict is Verdict.WRONG
    assert one.text == "the check failed: RESOURCE_EXHAUSTED: out of memory"
    assert "another program" in one.advice


def test_a_process_that_others_wait_for_ends(monkeypatch):
    monkeypatch.setattr(command.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="links: the check failed: .* the others would wait"):
        list(command._attempted("timing", iter([("links", broken)]), together=True))


def test_nothing_else_is_checked_without_devices(monkeypatch):
    def refused():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(command.survival, "check", lambda folder: OK)
    monkeypatch.setattr(machine.jax, "devices", refused)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    _, last = command._findings(None)
    assert last.verdict is Verdict.WRONG and "JAX_PLATFORMS=cuda names" in last.advice
    assert last.text == "JAX can't open the devices: Unable to initialize backend 'cuda'"


def test_a_machine_without_the_devices_of_jax_platforms(repository, tmp_path):
    file = tmp_path / "check.json"
    done = run_command(repository, "moco_jax.check", f"--json={file}", JAX_PLATFORMS="rocm")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    found = json.loads(file.read_text())["findings"]
    assert [(x["name"], x["verdict"]) for x in found] == [
        ("kill and resume", "wrong"),
        ("machine", "wrong"),
    ]
    assert found[0]["values"]["log"]


def test_no_rate_is_needed_without_a_step(monkeypatch):
    monkeypatch.setattr(command.speed, "checks", lambda: iter([("ResNet-50", broken)]))
    failed, decoding = command._attempted("timing", command._speed())
    assert failed.failed and decoding.verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)]
)
def test_a_signal_leaves_no_run_and_no_folder(number, times, repository, tmp_path):
    arguments = ("--json=", f"--folder={tmp_path}")
    process = subprocess.Popen(
        [sys.executable, "-m", "moco_jax.check", *arguments],
        env=os.environ | {"PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        pytest.skip("Linux lists the children of a process")
    while not (running := children.read_text().split()) and process.poll() is None:
        time.sleep(0.05)
    for _ in range(times):  # the second one ends the command at once
        process.send_signal(number)
        time.sleep(0.001)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in printed, printed
    exists = lambda child: pathlib.Path("/proc", child).exists()  # noqa: E731
    deadline = time.monotonic() + 5  # a program of a second that an import starts may be seen
    while any(map(exists, running)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running and not any(map(exists, running))
    assert not list(tmp_path.iterdir())


def test_a_delayed_signal_comes_at_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt), signals.delayed():
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def handlers():
    """Restores the handlers of signals: a command leaves those of the end of a process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_delayed_signal_is_not_taken_for_a_second_one(monkeypatch):
    ends = []
    monkeypatch.setattr(signals, "_end", lambda *arguments: ends.append(arguments))
    with signals.ending("stopped", waits=False), pytest.raises(KeyboardInterrupt):
        try:
            with signals.delayed():
                signal.raise_signal(signal.SIGINT)
        finally:
            time.sleep(0.2)  # what the command removes takes time
    assert not ends


def test_two_signals_wait_for_a_process_that_is_starting():
    script = """
        import time
        from moco_jax.terminal import signals

        started = []
        with signals.ending("stopped", waits=False), signals.undone(lambda: print(started)):
            with signals.delayed():
                print("begins", flush=True)
                time.sleep(0.5)
                started.append("process")
            time.sleep(30)
    """
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # two equal signals at once may arrive as one
    process.send_signal(signal.SIGINT)
    printed = process.stdout.read()  # by the thread that ends the process, the main thread or both
    assert "['process']" in printed and "[]" not in printed
    assert process.wait(20) != 0
    process.stdout.close()


def test_a_run_that_hangs_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr(survival, "_MOST_SECONDS", 0.1)
    sleeping = [sys.executable, "-c", "import time; time.sleep(100)"]
    processes = []

    def start(folder, name):
        (folder / f"{name}.log").write_text("error: disk full\n(--verbosity=1 prints more)\n")
        processes.append(subprocess.Popen(sleeping))
        return processes[0]

    monkeypatch.setattr(survival, "_start", start)
    finding = survival.check(tmp_path)
    assert finding.text == "a small run took more than 0.1 s: error: disk full"
    assert processes[0].returncode == -signal.SIGKILL  # it is waited for


def test_colour_is_printed_as_colour(found, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    found(Finding("queue", Verdict.WRONG, "an \x1b[31m escape"))
    assert run("--json=") == 1
    printed = capsys.readouterr().out
    assert printed.startswith("\x1b[31mwrong   \x1b[0mqueue") and r"an \x1b[31m escape" in printed


def test_the_worst_verdict_of_all_processes_counts(monkeypatch, capsys):
    monkeypatch.setattr(command.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(command.cluster, "largest", lambda value: 3)
    assert command._agreed(OK).verdict is Verdict.WRONG and not capsys.readouterr().out
    monkeypatch.setattr(command.jax, "process_index", lambda: 2)
    assert command._agreed(WRONG) is WRONG
    assert "process 2: wrong" in capsys.readouterr().out


def test_lines_fit_the_terminal():
    finding = Finding("queue", Verdict.WRONG, "word " * 40, "advice " * 30)
    assert max(map(len, findings.line(finding, 80).splitlines())) <= 80


@pytest.mark.parametrize("accelerator", list(machine._INSTALL))
def test_an_unused_accelerator_is_wrong(accelerator, monkeypatch):
    for variable in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(machine, "_ACCELERATORS", {accelerator: lambda: True})
    version = machine._version
    plugins = sum(machine._PLUGINS.values(), ())
    monkeypatch.setattr(machine, "_version", lambda x: "" if x in plugins else version(x))
    finding = machine.check()
    assert finding.verdict is Verdict.WRONG and machine._INSTALL[accelerator] in finding.advice
    monkeypatch.setattr(machine, "_version", lambda package: "1.0")
    assert "is installed; python -c" in machine.check().advice
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "because JAX_PLATFORMS=cpu" in machine.check().advice


def test_a_gpu_that_is_hidden(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(machine, "_ACCELERATORS", {"NVIDIA GPU": lambda: True})
    assert "because CUDA_VISIBLE_DEVICES= hides it" in machine.check().advice


def test_a_device_for_a_virtual_machine_is_no_tpu(monkeypatch):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/vfio/0" or exists(path))
    assert not machine._has_tpu()


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setattr(machine, "_ACCELERATORS", {})
    finding = machine.check()
    assert finding.verdict is Verdict.OK and json.dumps(finding.values)
    assert finding.values["devices"] == 8 and "jax" in finding.values["versions"]


@pytest.fixture
def fake_runs(monkeypatch):
    """Replaces runs by none; `arrays` are those of the two last checkpoints."""

    def fake(resumed_at=20, **arrays):
        monkeypatch.setattr(survival, "_finish", lambda folder, name: None)
        monkeypatch.setattr(survival, "_kill", lambda folder, name: 20)
        monkeypatch.setattr(survival, "_last_start", lambda folder: resumed_at)
        monkeypatch.setattr(survival, "_arrays", lambda folder: arrays[folder.name])

    return fake


def test_a_resumed_run_that_differs_is_wrong(fake_runs, tmp_path):
    fake_runs(whole={"a": 1, "b": 2}, killed={"a": 1, "b": 3})
    finding = survival.check(tmp_path)
    assert finding.verdict is Verdict.WRONG and "1 of 2 arrays differ" in finding.text


def test_a_resumed_run_that_is_equal(fake_runs, tmp_path):
    fake_runs(whole={"a": 1}, killed={"a": 1})
    assert survival.check(tmp_path).verdict is Verdict.OK


def test_a_run_that_began_again_is_wrong(fake_runs, tmp_path):
    fake_runs(whole={"a": 1}, killed={"a": 1}, resumed_at=0)
    finding = survival.check(tmp_path)
    assert finding.verdict is Verdict.WRONG and "--folder" in finding.advice
    assert finding.text == "step 20 was saved before the kill, and the run went on at 0"


def test_the_last_start_of_a_run(tmp_path):
    (tmp_path / "starts.jsonl").write_text('{"step": 0}\n{"step": 40}\n')
    assert survival._last_start(tmp_path) == 40


def test_a_run_that_does_not_divide_by_the_devices_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(survival, "_RUN", ("--config.batch_size=12", "--config.bn_groups=1"))
    finding = survival.check(tmp_path)  # 8 devices
    assert finding.verdict is Verdict.SKIPPED and "number of devices" in finding.text


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
