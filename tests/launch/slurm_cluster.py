"""A SLURM cluster of one node, from Debian's packages, with all its files in one folder."""

import contextlib
import os
import pathlib
import stat
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")

# The node is called localhost, which resolves everywhere; it claims more processors than there may
# be, and 4 GPUs, which are copies of /dev/null. A job that is put back into the queue waits as long
# as a credential lives.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=300
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName=localhost CPUs=4 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Runs a cluster; gives the environment in which sbatch and the others find it."""
    config = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config.write_text(
        CONFIG.format(folder=folder, controller=free_port(), node=free_port()).lstrip()
    )
    (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-3]\n")
    for i in range(4):
        os.mknod(folder / f"gpu{i}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    environment = os.environ | {"SLURM_CONF": str(config)}
    running = []
    try:
        running.append(_munged(folder))
        _wait_for((folder / "munge.socket").exists, "munged", folder)
        for daemon in ("slurmctld", "slurmd"):
            running.append(_start([daemon, "-D"], folder, environment))
        _wait_for(lambda: _state(environment) == "idle", "the node", folder)
        yield environment
    finally:
        if len(running) == 3:
            _end_jobs(environment)
        for process in reversed(running):
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()


def _end_jobs(environment) -> None:
    """Leaves no job behind: it would outlive the daemons."""
    for _ in range(100):
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
        queue = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True)
        if not queue.stdout.strip():
            return
        time.sleep(0.2)


def _munged(folder: pathlib.Path) -> subprocess.Popen:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    paths = {"key-file": key} | {
        f"{name}-file": folder / f"munge.{name}" for name in ("log", "pid", "seed")
    }
    options = [f"--{name}={path}" for name, path in paths.items()]
    socket = f"--socket={folder}/munge.socket"
    return _start(["munged", "--foreground", "--force", socket, *options], folder, os.environ)


def _start(command, folder: pathlib.Path, environment) -> subprocess.Popen:
    with open(folder / f"{command[0]}.out", "w") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def _state(environment) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def _wait_for(done, what: str, folder: pathlib.Path, seconds: int = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            logs = [f"{path.name}: {path.read_text()[-500:]}" for path in folder.glob("*.log")]
            pytest.skip(f"{what} of a SLURM cluster did not come up here; {' '.join(logs)}")
        time.sleep(0.2)
