"""launch/tpu_pod.sh: values that are no names, the token, and temporary files."""

import os
import re
import signal
import time

import pytest

from tests.launch.tpu_slice import NEW, RUN, SPOT, WHERE, Slice


@pytest.fixture
def tpu(tmp_path, checkout):
    pod = Slice(tmp_path / "slice", checkout)
    yield pod
    pod.has(go="")  # what a failed test left running


def test_the_hosts_get_a_token_that_no_command_shows(tpu):
    tpu.has(hosts="2")
    tpu.main('printf "%s" "$MOCO_JAX_TOKEN" >"$SLICE/token-$(basename "$HOME")"')
    options = (*WHERE, "--accelerator-type=v5litepod-16", "--poll=0", "--bucket=gs://bucket")
    done = tpu.run(*options, *RUN)
    assert done.returncode == 0, done.stderr
    token = (tpu.folder / "token-host0").read_text()
    assert re.fullmatch("[0-9a-f]{32}", token)
    assert (tpu.folder / "token-host1").read_text() == token
    assert token not in done.stdout + done.stderr + str(tpu.calls())
    for host in ("host0", "host1"):
        file = tpu.folder / host / "moco_jax" / ".moco_jax_token"
        assert file.stat().st_mode & 0o077 == 0
        assert not (tpu.folder / host / "moco_jax.tar.gz").exists()
    assert tpu.temporary() == []


def test_temporary_files_are_private_and_removed_after_ctrl_c(tpu):
    """Ctrl-C comes while the archive is copied."""
    gcloud = tpu.folder / "bin" / "gcloud"
    slow = 'case "$*" in *" scp "*) ls -lR "$TMPDIR"/moco_jax.* >"$SLICE/seen"; sleep 60 ;; esac\n'
    gcloud.write_text(gcloud.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{slow}"))
    process = tpu.start(*NEW, *RUN)
    deadline = time.monotonic() + 300
    while not (tpu.folder / "seen").exists() or not (tpu.folder / "seen").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert tpu.end(process).returncode == 130
    assert tpu.temporary() == []
    seen = (tpu.folder / "seen").read_text()
    assert re.search(r"^-rw-------.* moco_jax\.tar\.gz$", seen, re.MULTILINE), seen


VALUES = ["-x", "--x", "a b", "$(touch x)", "`id`", "a;b", "a\nb", "a'b", 'a"b', "a/../b", "é", "*"]


@pytest.mark.parametrize("option", ["--name", "--project", "--zone", "--accelerator-type"])
def test_a_value_that_a_shell_or_gcloud_would_read_is_refused(tpu, option):
    for value in VALUES:
        done = tpu.run(*NEW, f"{option}={value}", *RUN)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {option}="), done.stderr
        assert done.stderr.strip().isprintable()
    assert tpu.calls() == [] and tpu.temporary() == []


@pytest.mark.parametrize(
    "option",
    ["--bucket=gs://-b", "--bucket=gs://b/a b", "--bucket=gs://b/$(id)", "--bucket=gs://b/../c"]
    + ["--bucket=gs://b\n", "--nfs=-x:/a", "--nfs=a b:/c", "--nfs=h:/a/../b", "--nfs=h:/`id`"]
    + ["--create=-x", "--create=x", "--create=--a\nb", "--runtime-version=-x", "--poll=-1"]
    + ["--restarts=", "--poll=", "--restarts=08"],
)
def test_other_values_are_refused_too(tpu, option):
    done = tpu.run(*SPOT, option, *RUN)
    assert done.returncode == 2 and done.stderr.startswith("error: --"), done.stderr
    assert option.partition("=")[0] in done.stderr and tpu.calls() == []


@pytest.mark.parametrize("workdir", ["a b", "$(id)", "../x", "a/../../b", "-x", "a;b", "a\tb"])
def test_a_workdir_that_is_copied_back_has_a_plain_name(tpu, workdir):
    done = tpu.run(*NEW, *RUN, f"--workdir={workdir}")
    assert done.returncode == 2 and tpu.calls() == []
    assert "is copied back, so it must be" in done.stderr or "control char" in done.stderr
