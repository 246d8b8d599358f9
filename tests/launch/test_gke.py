"""launch/gke.sh: the manifest, read as Kubernetes reads it."""

import json
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


def test_the_arguments_are_what_json_reads(manifest):
    """As many kinds of text as a shell can pass; YAML reads back each of them."""
    words = ["\\" * n + '"' * n for n in range(4)]
    words += [chr(code) for code in range(0x20, 0x7F)]
    words += [f"{chr(code)}x: {chr(code)}" for code in range(0x20, 0x7F)]
    words += [
        "\xa0",
        "é",
        "日本",
        "😀",
        "null",
        "0o17",
        "1e3",
        "~",
        "---",
        "!!python/object:x",
        "@A@",
    ]
    m = manifest("--bucket=mine", *TPU, "--", *words)
    assert arguments(m)[:-2] == words


FORBIDDEN = [chr(code) for code in range(1, 0x20)] + ["\x7f", "\x85", "\x9f", "\u2028", "\u2029"]
FORBIDDEN += ["\ufeff", "\ufffe", "\udcff", "\udced\udca0\udc80"]  # the last are no UTF-8


@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
def test_arguments_that_yaml_would_change_are_refused(run, character):
    word = f"--config.name=a{character}b"
    done = run("gke.sh", "--dry-run", *HEAD, "--bucket=a", *TPU, "--", word)
    assert done.returncode == 2 and done.stdout == ""
    assert re.search("an argument of the run must (not contain|be UTF-8)", done.stderr)
    assert done.stderr.strip().isprintable()


OPTIONS = {
    "--name": "my-run",
    "--image": "registry:5000/a/moco_jax@sha256:0123",
    "--bucket": "a.b-c_d",
    "--tpu": "tpu-v5-lite-podslice",
    "--topology": "2x2x4",
    "--chips": "4",
    "--hosts": "4",
    "--service-account": "a.b-c",
    "--restarts": "0",
}
VALUES = [
    'a"b',
    "a\nb: c",
    "a\n",
    "-a",
    "$(id)",
    "`id`",
    "a b",
    "a;b",
    "a'b",
    "a#",
    "a: b",
    "é",
    "\x1b[2J",
]
VALUES += ["{a: b}", "*a", "&a", "!a", "@IMAGE@", "a\\", "x" * 500]
NUMBERS = ["01", "08x2", "1e3", "1" * 30]  # a name may be one, and YAML must not read a number
NAMES = ("--image", "--bucket", "--claim", "--gpu", "--tpu", "--service-account")


@pytest.mark.parametrize("option", [*OPTIONS, "--claim", "--gpu"])
def test_values_that_are_no_names_are_refused(run, option):
    given = dict(OPTIONS)
    if option == "--claim":
        del given["--bucket"]
    if option == "--gpu":
        del given["--tpu"], given["--topology"]
    for value in [*VALUES, *NUMBERS]:
        words = [f"{name}={text}" for name, text in (given | {option: value}).items()]
        done = run("gke.sh", "--dry-run", *words, *RUN)
        if value in NUMBERS and option in NAMES:
            assert done.returncode == 0 and value in leaves(yaml.safe_load(done.stdout))
        else:
            assert done.returncode == 2 and option in done.stderr and done.stdout == "", value
            assert done.stderr.strip().isprintable()


def leaves(tree) -> list:
    """Returns the values of nested mappings and lists."""
    if isinstance(tree, dict | list):
        parts = tree.values() if isinstance(tree, dict) else tree
        return [leaf for part in parts for leaf in leaves(part)]
    return [tree]


def test_kubectl_gets_the_manifest_of_the_dry_run_and_a_secret(run, tmp_path):
    kubectl = f"""#!/bin/sh
        echo "$@" >>"{tmp_path}/arguments"
        cat >"{tmp_path}/input-$1"
    """
    write_program(tmp_path / "bin" / "kubectl", kubectl)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    options = (*HEAD, "--bucket=mine", *TPU)
    done = run("gke.sh", *options, *RUN, env=environment)
    assert done.returncode == 0 and "kubectl delete jobset,secret my-run" in done.stdout
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "create --filename=-",
        "apply --server-side --filename=-",
    ]
    dry = run("gke.sh", *options, "--dry-run", *RUN)
    assert (tmp_path / "input-create").read_text() == dry.stdout
    secret = json.loads((tmp_path / "input-apply").read_text())
    assert secret["metadata"] == {"name": "my-run"}
    token = secret["stringData"]["token"]
    assert re.fullmatch("[0-9a-f]{32}", token)
    assert token not in done.stdout + done.stderr + dry.stdout + dry.stderr
    assert token not in (tmp_path / "input-create").read_text()


def test_the_pods_get_the_token_from_the_secret(manifest):
    def environment(m):
        [container] = pod(m)["containers"]
        assert container["command"] == ["bash", "launch/gke_pod.sh"]
        return {entry["name"]: entry["valueFrom"] for entry in container["env"]}

    several, one = (
        manifest("--claim=c", *GPU, *RUN),
        manifest("--claim=c", *GPU[:2], "--hosts=1", *RUN),
    )
    label = "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert environment(one) == {"MOCO_JAX_JOB": {"fieldRef": {"fieldPath": label}}}
    assert environment(several)["MOCO_JAX_TOKEN"] == {
        "secretKeyRef": {"name": "my-run", "key": "token"}
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RUN, "give the run a name"),
        (("--name=My_Run", *RUN), "--name=My_Run must be a name of up to 40"),
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
