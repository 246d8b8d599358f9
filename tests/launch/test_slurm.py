"""launch/slurm.sbatch on a real SLURM of one node."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests.launch import packages, slurm_cluster
from tests.launch.conftest import make_checkout

pytestmark = pytest.mark.slurm

REPOSITORY = pathlib.Path(__file__).parents[2]
PYTHON = f"env XLA_FLAGS= PYTHONPATH={REPOSITORY} {sys.executable}"

TINY = """
from tests.tiny import tiny_config

def get_config():
    return tiny_config(steps=60, checkpoint_every=1000, knn__every_epochs=0.0)
"""

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

# Ends as it is told at its first start, and with 0 at the second.
TWICE = """
echo "start on $SLURM_NTASKS tasks, process $SLURM_PROCID"
first={folder}/first-$SLURM_PROCID
[ ! -e $first ] || exit 0
touch $first
{ending}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    packages.install(slurm_cluster.PROGRAMS, "slurmctld slurmd slurm-client munge")
    with slurm_cluster.slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def submit(cluster, repository, tmp_path):
    """Returns a function that submits a job whose Python is `python` (bash), and a look at it."""

    def submit(python, *options, arguments=()):
        checkout = make_checkout(tmp_path / "check out", repository, python)
        job = subprocess.run(
            ["sbatch", "--parsable", *options, "launch/slurm.sbatch", *arguments],
            cwd=checkout,
            env=cluster | {"MOCO_JAX_PLATFORM": "cpu"},
            capture_output=True,
            text=True,
        )
        assert job.returncode == 0, job.stderr
        return Job(job.stdout.strip(), checkout, cluster)

    return submit


class Job:
    def __init__(self, number, checkout, environment):
        self.number, self.environment = number, environment
        self.output = checkout / f"moco_jax-{number}.log"

    def show(self):
        """Returns the state, the exit code, and how often the job was put back into the queue."""
        command = ["scontrol", "show", "job", self.number]
        text = subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout
        fields = dict(re.findall(r"(\w+)=(\S+)", text))
        return fields["JobState"], fields["ExitCode"], int(fields["Restarts"])

    def log(self):
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, done, seconds):
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, (self.show(), self.log())
            time.sleep(0.1)

    def ended(self, seconds=60):
        self.wait_for(lambda: self.show()[0] in ENDS, seconds)
        return self.show()


def test_two_tasks_train_as_one_and_go_on_after_sigterm(submit, tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    arguments = [f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/run"]
    job = submit(f'exec {PYTHON} "$@"', "--ntasks-per-node=2", arguments=arguments)
    job.wait_for(lambda: "step 5/60 " in job.log(), 500)
    subprocess.run(["scancel", "--signal=TERM", job.number], env=job.environment, check=True)
    assert job.ended(500) == ("COMPLETED", "0:0", 1), job.log()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [step["step"] for step in map(json.loads, lines) if "loss" in step]
    assert steps == list(range(1, 61))
    assert " of 2 processes" in job.log()
    [saved] = set(re.findall(r"stopped by SIGTERM at step (\d+)", job.log()))
    assert 5 <= int(saved) < 60 and f"resumed at step {saved}" in job.log()


def test_arguments_and_processors_reach_each_task(submit):
    python = 'echo "$SLURM_PROCID has $SLURM_CPUS_ON_NODE of $SLURM_CPUS_PER_TASK:" "$@"'
    options = ("--ntasks-per-node=2", "--cpus-per-task=2")
    job = submit(python, *options, arguments=["--config=a b.py", '--config.name=it\'s "x" $HOME'])
    assert job.ended() == ("COMPLETED", "0:0", 0), job.log()
    arguments = '-m moco_jax.main --config=a b.py --config.name=it\'s "x" $HOME'
    assert sorted(job.log().splitlines()) == [f"{i} has 4 of 2: {arguments}" for i in (0, 1)]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--gpus-per-node=2"], ["0 of 0,1: None"]),
        (["--gpus-per-node=2", "--ntasks-per-node=2"], ["0 of 0,1: [0]", "1 of 0,1: [1]"]),
        (["--gpus-per-task=1", "--ntasks-per-node=2"], ["0 of 0: None", "1 of 1: None"]),
    ],
)
def test_gpus_of_a_task(submit, options, seen):
    """None is all that it sees; by itself JAX takes that of the task's number, seen or not."""
    print_them = "from moco_jax.parallel import cluster; print(cluster._local_devices())"
    python = f"{PYTHON} -c '{print_them}' | sed \"s/^/$SLURM_PROCID of $CUDA_VISIBLE_DEVICES: /\""
    job = submit(python, *options)
    assert job.ended() == ("COMPLETED", "0:0", 0), job.log()
    assert sorted(job.log().splitlines()) == seen


def test_the_code_75_puts_the_job_back_into_the_queue(submit, tmp_path):
    """The tasks end one after another, and the later one is left the time to."""
    ending = "sleep $SLURM_PROCID; echo saved $SLURM_PROCID; exit 75"
    job = submit(TWICE.format(folder=tmp_path, ending=ending), "--ntasks-per-node=2")
    assert job.ended() == ("COMPLETED", "0:0", 1), job.log()
    for line in ("saved 0", "saved 1", f"saved; requeueing job {job.number}"):
        assert job.log().splitlines().count(line) == 1
    assert job.log().count("start on 2 tasks") == 4  # appended to, and not written anew


def test_the_time_limit_sends_sigterm_early_and_the_job_goes_on(submit, tmp_path):
    """With a limit of one minute SIGTERM is due at once; SLURM looks twice a minute."""
    ending = "trap 'echo saved; exit 75' TERM; for i in {1..600}; do sleep 0.1; done; exit 1"
    job = submit(TWICE.format(folder=tmp_path, ending=ending), "--time=1")
    assert job.ended(seconds=120) == ("COMPLETED", "0:0", 1), job.log()
    assert job.log().count("saved\n") == 1


@pytest.mark.parametrize("code", [1, 2, 130])
def test_other_codes_end_the_job(submit, tmp_path, code):
    job = submit(TWICE.format(folder=tmp_path, ending=f"exit {code}"))
    assert job.ended() == ("FAILED", f"{code}:0", 0), job.log()


def test_scancel_ends_the_job_for_good(submit, tmp_path):
    ending = "trap 'echo saved; exit 75' TERM; for i in {1..600}; do sleep 0.1; done; exit 1"
    job = submit(TWICE.format(folder=tmp_path, ending=ending))
    job.wait_for(lambda: (tmp_path / "first-0").exists(), 30)
    subprocess.run(["scancel", job.number], env=job.environment, check=True)
    assert job.ended()[0] == "CANCELLED"
    time.sleep(6)  # longer than a requeued job would wait
    assert job.show()[0] == "CANCELLED" and job.log().count("start on") == 1


def test_a_job_submitted_from_elsewhere_says_so(cluster, repository, tmp_path):
    done = subprocess.run(
        ["sbatch", "--wait", str(repository / "launch" / "slurm.sbatch")],
        cwd=tmp_path,
        env=cluster,
        capture_output=True,
        text=True,
    )
    [log] = tmp_path.glob("moco_jax-*.log")
    assert done.returncode == 2
    assert log.read_text().startswith("error: submit the job in the folder of the checkout")
