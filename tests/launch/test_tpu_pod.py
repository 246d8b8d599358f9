"""launch/tpu_pod.sh and launch/tpu_worker.sh, with folders of this machine as the hosts."""

import re
import subprocess

import pytest

from tests.launch.tpu_slice import ARGUMENTS, NEW, ONE_RUN, RUN, SPOT, UNTIL_TOLD, WHERE, Slice


@pytest.fixture
def tpu(tmp_path, checkout):
    pod = Slice(tmp_path / "slice", checkout)
    yield pod
    pod.has(go="")  # what a failed test left running


def test_a_new_slice_of_two_hosts(tpu):
    tpu.has(hosts="2", coming="WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    options = (*WHERE, "--accelerator-type=v5litepod-16", "--poll=0", "--bucket=gs://bucket/a/b")
    done = tpu.run(*options, "--create=--network=my net", "--", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert "host0 at start" in done.stdout and "host1" not in done.stdout
    for name in ("PROVISIONING; checking again", "the workdir is in gs://bucket/a/b/runs"):
        assert name in done.stderr
    assert tpu.did() == ["create", *ONE_RUN]  # and no delete
    assert tpu.calls()[1] == [
        *("compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--quiet"),
        *("--network=my net", "--project=mine", "--zone=here"),
    ]
    for host in ("host0", "host1"):
        given = (tpu.folder / f"arguments-{host}").read_text()
        assert given == "".join(f"<{word}>" for word in ["-m", "moco_jax.main", *ARGUMENTS])
        # runs/ is on what is mounted at shared/.
        assert (tpu.folder / host / "moco_jax/shared/runs/digits/metrics.jsonl").exists()
    mounts = (tpu.folder / "gcsfuse").read_text().splitlines()
    assert sorted(line.split()[-3:] for line in mounts) == [
        ["--only-dir=a/b", "bucket", f"{tpu.folder}/{host}/moco_jax/shared"]
        for host in ("host0", "host1")
    ]
    assert "--rename-dir-limit=" in mounts[0]


def test_an_existing_slice_is_reused_and_the_workdir_copied_back(tpu):
    tpu.has(states="ACTIVE")
    (tpu.folder / "host0").mkdir()
    for runs in ("1", "1\n2"):
        done = tpu.run(*WHERE, "--poll=0", *RUN)
        assert done.returncode == 0, done.stderr
        brought = (tpu.checkout / "runs/digits/metrics.jsonl").read_text()
        assert brought == runs + "\n"
    assert "create" not in tpu.did() and "delete" not in tpu.did()
    assert tpu.did()[-1] == "scp"


def test_a_workdir_of_another_name_is_copied_back_to_that_name(tpu):
    tpu.main("mkdir -p my/own; echo 1 >my/own/metrics.jsonl")
    done = tpu.run(*NEW, *RUN, "--workdir", "my/own")
    assert done.returncode == 0, done.stderr
    assert (tpu.checkout / "my/own/metrics.jsonl").exists()


def test_an_absolute_workdir_stays_where_it_is(tpu):
    tpu.has(ends="0")
    done = tpu.run(*NEW, *RUN, "--workdir=/mnt/mine")
    assert done.returncode == 0 and "the workdir is /mnt/mine on the hosts" in done.stderr
    assert tpu.did() == ["create", *ONE_RUN]


@pytest.mark.parametrize("code", [0, 134])
def test_the_slice_is_deleted_last_and_only_with_delete(tpu, code):
    tpu.has(ends=str(code))
    assert tpu.run(*NEW, "--delete", *RUN).returncode == code
    assert tpu.did() == ["create", *ONE_RUN, "scp", "delete"]
    assert {"--force", "--quiet"} <= set(tpu.calls()[-1])
    assert (tpu.checkout / "runs").exists()


def test_delete_alone(tpu):
    assert tpu.run(*WHERE, "--delete").returncode == 0
    assert tpu.did() == ["delete"]


def test_the_slice_is_kept_if_copying_the_workdir_back_fails(tpu):
    tpu.main("rm -r runs")
    assert tpu.run(*NEW, "--delete", *RUN).returncode != 0
    assert tpu.did()[-1] == "scp"


def test_a_preempted_slice_is_replaced(tpu):
    """The first slice is preempted, the second fails to start, the third finishes the run."""
    tpu.has(coming="ACTIVE\n\nPROVISIONING\nFAILED\n\nACTIVE", ends="134 SUSPENDED\n0")
    done = tpu.run(*SPOT, *RUN)
    assert done.returncode == 0, done.stderr
    again = ["delete", "create"]
    assert tpu.did() == ["create", *ONE_RUN, *again, *again, *ONE_RUN]
    assert all("--spot" in call for call in tpu.calls() if call[3] == "create")
    assert "the slice is SUSPENDED; creating a new slice (9 restarts left)" in done.stderr
    assert "the slice is FAILED; creating a new slice (8 restarts left)" in done.stderr


def test_a_slice_preempted_during_a_broken_connection_is_replaced(tpu):
    tpu.has(coming="ACTIVE\nSUSPENDING\n\nACTIVE", ends="0", broken="\n")
    assert tpu.run(*SPOT, *RUN).returncode == 0
    assert tpu.did() == ["create", *ONE_RUN[:-1], "delete", "create", *ONE_RUN]


def test_a_suspended_spot_slice_is_replaced(tpu):
    tpu.has(states="SUSPENDED", ends="0")
    assert tpu.run(*SPOT, *RUN).returncode == 0
    assert tpu.did() == ["delete", "create", *ONE_RUN]


@pytest.mark.parametrize("ends", ["75", "134 75"])
def test_code_75_restarts_the_run_on_a_new_slice(tpu, ends):
    tpu.has(coming="ACTIVE\n\nACTIVE", ends=f"{ends}\n0", hosts="2")
    done = tpu.run(*SPOT, *RUN)
    assert done.returncode == 0, done.stderr
    assert tpu.did() == ["create", *ONE_RUN, "delete", "create", *ONE_RUN]


def test_restarts_have_a_limit(tpu):
    tpu.has(coming="ACTIVE\n\nACTIVE\n\nACTIVE", ends="75\n75\n75")
    done = tpu.run(*SPOT, "--restarts=1", *RUN)
    assert done.returncode == 2 and "gave up after 1 restarts" in done.stderr
    assert tpu.starts() == 2


@pytest.mark.parametrize(
    ("options", "end"), [(SPOT, "2 SUSPENDED"), (SPOT, "134"), (NEW, "75"), (NEW, "134 SUSPENDED")]
)
def test_other_exit_codes_do_not_restart(tpu, options, end):
    tpu.has(ends=f"{end}\n0")
    done = tpu.run(*options, *RUN)
    assert done.returncode == int(end.split()[0]), done.stderr
    assert f"ended with code {end.split()[0]}" in done.stderr
    assert tpu.starts() == 1 and "delete" not in tpu.did()


def test_code_2_takes_precedence_over_a_crash(tpu):
    tpu.has(hosts="2", ends="134 2\n0 0")
    assert tpu.run(*SPOT, *RUN).returncode == 2 and tpu.starts() == 1


def test_the_exit_code_of_another_host_is_reported(tpu):
    tpu.has(hosts="2", ends="0 7")
    done = tpu.run(*SPOT, *RUN)
    assert done.returncode == 7 and "all hosts: 0 7" in done.stderr


def test_a_broken_connection_is_restored(tpu):
    tpu.has(broken="\n", ends="0")
    done = tpu.run(*NEW, *RUN)
    assert done.returncode == 0 and "the connection broke" in done.stderr
    assert tpu.starts() == 1 and tpu.did().count("ssh follow") == 2


def test_nothing_is_deleted_while_the_run_may_be_running(tpu):
    tpu.has(broken="\n" * 10, ends="0")
    done = tpu.run(*NEW, "--delete", *RUN)
    assert done.returncode == 255 and "the run may still be running" in done.stderr
    assert tpu.did() == ["create", *ONE_RUN[:3], *["ssh follow"] * 10]


def test_a_running_command_is_shown_again_and_no_other_one_started(tpu):
    tpu.main(UNTIL_TOLD)
    first = tpu.start(*NEW, *RUN)
    tpu.wait_for("ssh follow")
    other = tpu.run(*NEW, "--", "--config=other.py")
    assert other.returncode == 2, other.stderr
    assert "another command is running here: --config=configs/digits.py" in other.stderr
    again = tpu.start(*NEW, *RUN)
    tpu.wait_for("ssh follow", times=2)
    tpu.has(go="")
    for process in (first, again):
        done = tpu.end(process)
        assert done.returncode == 0 and "host0 at start 1" in done.stdout, done.stderr
    assert tpu.did().count("ssh prepare") == 1


def test_stop_lets_the_run_save_and_it_is_not_started_again(tpu):
    tpu.main(UNTIL_TOLD)
    running = tpu.start(*SPOT, *RUN)
    tpu.wait_for("ssh follow")
    stopped = tpu.run(*WHERE, "--stop")
    assert stopped.returncode == 0 and stopped.stdout.splitlines() == ["exit 75", "stopped"]
    assert tpu.end(running).returncode == 75
    assert tpu.starts() == 1 and "delete" not in tpu.did()


def test_a_host_that_hangs_is_ended(tpu):
    """No end of the run is noted, by SIGKILL or by the host's."""
    tpu.main("echo $$ >$SLICE/pid; " + UNTIL_TOLD)
    running = tpu.start(*NEW, *RUN)
    tpu.wait_for("ssh follow")
    worker = ["bash", "moco_jax/launch/tpu_worker.sh", "finish", "0"]
    home = tpu.folder / "host0"
    done = subprocess.run(
        worker, cwd=home, env=tpu.environment | {"HOME": home}, capture_output=True, text=True
    )
    assert done.stdout == "exit 137\n" and "still running" in done.stderr
    assert tpu.end(running).returncode == 137


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ("FORBIDDEN", "PERMISSION_DENIED: who are you?"),
        ("FAILED", "pod is FAILED; --delete removes it"),
        ("SUSPENDED", "pod is SUSPENDED; --delete removes it"),
    ],
)
def test_an_unusable_slice_is_an_error(tpu, states, message):
    tpu.has(states=states)
    done = tpu.run(*NEW, *RUN)
    assert done.returncode == 2 and message in done.stderr
    assert tpu.did() == []


def test_the_hosts_of_a_slice_that_is_there_are_counted(tpu):
    tpu.has(states="ACTIVE", hosts="4")
    done = tpu.run(*WHERE, *RUN)
    assert done.returncode == 2 and "the 4 hosts of pod must share the workdir" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (RUN, "give the slice a name: --name=NAME"),
        (("--name=pod", *RUN), "give the project: --project=PROJECT"),
        (("--name=pod", "--project=mine", *RUN), "give the zone: --zone=ZONE"),
        (WHERE, "give the arguments of the run after --"),
        ((*WHERE, "--"), "give the arguments of the run after --"),
        ((*WHERE, *RUN), "give --accelerator-type=TYPE"),
        ((*WHERE, "--config=x"), "unknown option --config=x"),
        (
            (*WHERE, "--bucket=bucket", *RUN),
            "--bucket=bucket is not valid; give --bucket=gs://BUCKET",
        ),
        ((*NEW, "--restarts=x", *RUN), "--restarts=x must be a whole number"),
        ((*NEW, "--spot", *RUN), "the disks of a spot slice are deleted"),
        ((*WHERE, "--accelerator-type=v4-32", *RUN), "the hosts of v4-32 must share the workdir"),
        ((*SPOT, *RUN, "--workdir=mine"), "--workdir=mine is not in the shared folder"),
    ],
)
def test_error_names_the_wrong_option(tpu, arguments, message):
    done = tpu.run(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and tpu.starts() == 0


def test_gcloud_is_missing(tpu, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    tpu.environment["PATH"] = str(tools)
    done = tpu.run(*NEW, *RUN)
    assert done.returncode == 2 and "gcloud is not on PATH; install" in done.stderr


@pytest.mark.parametrize("options", [(*NEW, "--delete"), SPOT])
def test_the_dry_run_prints_what_a_run_does(tpu, options):
    """Its lines, run by bash, make the same calls; and it makes none itself."""
    dry = tpu.run(*options, "--dry-run", "--", *ARGUMENTS)
    assert dry.returncode == 0, dry.stderr
    assert not (tpu.folder / "calls.jsonl").exists() and tpu.starts() == 0
    pasted = subprocess.run(["bash", "-c", dry.stdout], env=tpu.environment)
    assert pasted.returncode == 0
    by_hand = without_random(tpu.calls())
    (tpu.folder / "calls.jsonl").unlink()
    subprocess.run(["rm", "-rf", tpu.folder / "host0"], check=True)
    tpu.has(states="ABSENT", coming="ACTIVE")
    assert tpu.run(*options, "--", *ARGUMENTS).returncode == 0
    assert without_random(tpu.calls()) == by_hand
    assert tpu.temporary() == []


def without_random(calls):
    """Returns the calls without the random part of the name of the temporary folder."""
    return [[re.sub(r"/moco_jax\.\w+/", "/moco_jax/", word) for word in call] for call in calls]


def test_help(run):
    done = run("tpu_pod.sh", "--help")
    assert done.returncode == 0 and "usage: bash launch/tpu_pod.sh --name=NAME" in done.stdout
