"""launch/gke.sh: the manifest, read as Kubernetes reads it."""

import os
import re

import pytest
import yaml

from tests.launch.conftest import write_program

HEAD = ("--name=my-run", "--image=registry/moco_jax:tpu")
TPU = ("--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--chips=4")
GPU = ("--gpu=nvidia-h100-80gb", "--chips=8", "--hosts=2")
RUN = ("--", "--config=configs/digits.py")


@pytest.fixture
def manifest(run):
    """Returns a function that gives the manifest of a dry run, which needs no kubectl."""

    def manifest(*arguments):
        done = run("gke.sh", *HEAD, "--dry-run", *arguments, env=os.environ | {"PATH": "/usr/bin"})
        assert done.returncode == 0, done.stderr
        assert not re.search("^(?! *args:).*@[A-Z]", done.stdout, re.MULTILINE)
        return yaml.safe_load(done.stdout)

    return manifest


def job(manifest):
    [replicated] = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def pod(manifest):
    return job(manifest)["template"]["spec"]


def arguments(manifest):
    """Returns the arguments as the container gets them; the pod's number stays a name."""
    [container] = pod(manifest)["containers"]
    return [word.replace("$$", "$") for word in container["args"]]


def test_a_tpu_slice_with_a_bucket(manifest):
    m = manifest("--bucket=gs://mine", *TPU, "--service-account=writer", *RUN)
    assert (m["apiVersion"], m["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert m["metadata"] == {
        "name": "my-run",
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    assert (job(m)["completions"], job(m)["parallelism"]) == (4, 4)
    assert job(m)["completionMode"] == "Indexed"
    assert job(m)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod(m)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod(m)["serviceAccountName"] == "writer"
    [container] = pod(m)["containers"]
    assert container["image"] == "registry/moco_jax:tpu"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shared": "/moco_jax/shared", "memory": "/dev/shm"}
    shared, _ = pod(m)["volumes"]
    assert set(shared) == {"name", "csi"}
    assert shared["csi"]["volumeAttributes"]["bucketName"] == "mine"
    assert "rename-dir-limit=1000000" in shared["csi"]["volumeAttributes"]["mountOptions"]
    own = ["--config=configs/digits.py", "--workdir=shared/runs/my-run"]
    assert arguments(m) == [*own, "--join_timeout=1800"]


def test_gpu_pods_get_the_address_of_the_first_pod(manifest):
    m = manifest("--claim=filestore", *GPU, "--spot", "--restarts=3", *RUN, "--workdir", "w")
    assert pod(m)["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
    }
    assert {t["key"] for t in pod(m)["tolerations"]} == {
        "cloud.google.com/gke-spot",
        "nvidia.com/gpu",
    }
    [container] = pod(m)["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    shared, _ = pod(m)["volumes"]
    assert shared == {"name": "shared", "persistentVolumeClaim": {"claimName": "filestore"}}
    assert m["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert arguments(m) == [
        *("--config=configs/digits.py", "--workdir", "w"),
        "--join_timeout=1800",
        *("--coordinator=my-run-run-0-0.my-run:55527", "--processes=2"),
        "--process=$(JOB_COMPLETION_INDEX)",
    ]


def test_exit_codes_decide_about_restarts(manifest):
    m = manifest("--bucket=mine", *TPU, *RUN)
    assert job(m)["backoffLimit"] == 0  # a crash ends the job, and the set is started again
    assert m["spec"]["failurePolicy"]["rules"] == [
        {
            "name": "problemOfTheRun",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    [container] = pod(m)["containers"]

    def ends_with(*codes):
        return {"containerName": container["name"], "operator": "In", "values": list(codes)}

    assert job(m)["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": ends_with(2)},
        {"action": "Ignore", "onExitCodes": ends_with(75)},
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]
    assert pod(m)["restartPolicy"] == "Never"  # the only one that a pod failure policy allows
    assert pod(m)["terminationGracePeriodSeconds"] == 300


def test_arguments_survive(manifest):
    words = ['it\'s "x"', "a\\b # c", "$HOME $(NAME) $$", "* & @NAME@", "", "ü, [b]: {c}", "-"]
    m = manifest("--bucket=mine", *TPU, "--", *words)
    assert arguments(m)[:-2] == words


def test_kubectl_gets_the_manifest_of_the_dry_run(run, tmp_path, checkout):
    kubectl = f'#!/bin/sh\necho "$@" >"{tmp_path}/arguments"\ncat >"{tmp_path}/manifest"\n'
    write_program(tmp_path / "bin" / "kubectl", kubectl)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    options = (*HEAD, "--bucket=mine", *TPU)
    done = run("gke.sh", *options, *RUN, env=environment)
    assert done.returncode == 0 and "kubectl delete jobset my-run" in done.stdout, done.stderr
    assert (tmp_path / "arguments").read_text() == "create --filename=-\n"
    assert (tmp_path / "manifest").read_text() == run("gke.sh", *options, "--dry-run", *RUN).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RUN, "give the run a name"),
        (("--name=My_Run", *RUN), "got 'My_Run'"),
        (("--name=x", *RUN), "give the image"),
        ((*HEAD, *TPU, *RUN), "give the storage that all pods share"),
        ((*HEAD, *TPU, "--bucket=a", "--claim=b", *RUN), "give one of --bucket and --claim"),
        ((*HEAD, *TPU, "--bucket=a/b", *RUN), "must be a bucket without a folder"),
        ((*HEAD, "--bucket=a", *RUN), "give the nodes"),
        ((*HEAD, "--bucket=a", *TPU, *GPU, *RUN), "give one of --tpu and --gpu"),
        ((*HEAD, "--bucket=a", "--tpu=t", "--topology=4x4", *RUN), "give the chips"),
        ((*HEAD, "--bucket=a", "--tpu=t", "--chips=4", *RUN), "give the topology"),
        (
            (*HEAD, "--bucket=a", *TPU[:2], "--chips=5", *RUN),
            "16 chips, which is not a multiple of --chips=5",
        ),
        ((*HEAD, "--bucket=a", *TPU, "--hosts=3", *RUN), "make 4 nodes, not --hosts=3"),
        ((*HEAD, "--bucket=a", *GPU[:2], *RUN), "give the number of nodes"),
        ((*HEAD, "--bucket=a", *TPU), "give the arguments of the run after --"),
        ((*HEAD, "--bucket=a", *TPU, "--", "a\nb"), "line break"),
        ((*HEAD, "--bukcet=a", *TPU, *RUN), "unknown option --bukcet=a"),
    ],
)
def test_error_names_the_wrong_option(run, options, message):
    done = run("gke.sh", "--dry-run", *options)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


def test_kubectl_is_missing(run, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    environment = os.environ | {"PATH": str(tmp_path / "bin")}
    done = run("gke.sh", *HEAD, "--bucket=a", *TPU, *RUN, env=environment)
    assert done.returncode == 2 and "kubectl is not on PATH; install it" in done.stderr


def test_the_template_is_valid_yaml(repository):
    """Editors can read it: every placeholder is a string or a number."""
    text = (repository / "launch" / "gke.yaml").read_text()
    assert yaml.safe_load(re.sub(r"@[A-Z_]+@", "1", text))["kind"] == "JobSet"
