"""launch/gke.sh and launch/jobset.yaml: the JobSet is one, and says what the settings say."""

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema")
if not shutil.which("envsubst"):
    pytest.skip("there is no envsubst here", allow_module_level=True)

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
SETTINGS = {"IMAGE": "pkg.dev/tests/memjax:1", "BUCKET": "gs://bucket", "RUN_NAME": "tiny"}


def gke(*args: str, status: int = 0, **settings: str) -> str:
    done = subprocess.run(
        [LAUNCH / "gke.sh", *args],
        env=os.environ | SETTINGS | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def valid(manifest: dict) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest)


def test_a_whole_v5e_256_by_default():
    manifest = yaml.safe_load(gke("render"))
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["metadata"] == {
        "name": "tiny",
        "namespace": "default",
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    assert manifest["spec"]["network"]["subdomain"] == "tiny"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 50
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 1
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (64, 64, 0)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert pod["terminationGracePeriodSeconds"] == 300
    (container,) = pod["containers"]
    assert container["image"] == "pkg.dev/tests/memjax:1"
    assert container["command"] == [
        "memjax",
        "train",
        "--config=configs/scaling.py:1.3b-512x8",
        "--workdir=gs://bucket/tiny",
    ]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    # What memjax calls wrong input ends the whole, and nothing else does.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_every_setting_arrives():
    settings = {
        "RUN_NAME": "other",
        "NAMESPACE": "research",
        "SLICES": "4",
        "MAX_RESTARTS": "7",
        "GKE_ACCELERATOR": "tpu-v5p-slice",
        "GKE_TOPOLOGY": "4x4x8",
        "PODS_PER_SLICE": "32",
        "GRACE_SECONDS": "90",
        "SERVICE_ACCOUNT": "trainer",
        "CONFIG": "configs/copying.py:mixer",
        "WORKDIR": "gs://elsewhere/x",
    }
    manifest = yaml.safe_load(
        gke("render", '--config.data.corpus=a "b" $HOME \\n: #\'', **settings)
    )
    jsonschema.validate(manifest, SCHEMA)
    (job,) = manifest["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    found = [
        *(manifest["metadata"]["name"], manifest["metadata"]["namespace"], job["replicas"]),
        *(
            manifest["spec"]["failurePolicy"]["maxRestarts"],
            *pod["nodeSelector"].values(),
            job["template"]["spec"]["parallelism"],
        ),
        *(
            pod["terminationGracePeriodSeconds"],
            pod["serviceAccountName"],
            manifest["spec"]["network"]["subdomain"],
        ),
    ]
    assert found == [
        "other",
        "research",
        4,
        7,
        "tpu-v5p-slice",
        "4x4x8",
        32,
        90,
        "trainer",
        "other",
    ]
    assert pod["containers"][0]["command"] == [
        "memjax",
        "train",
        "--config=configs/copying.py:mixer",
        "--workdir=gs://elsewhere/x",
        '--config.data.corpus=a "b" $HOME \\n: #\'',
    ]


def test_setup_comes_before_memjax():
    manifest = yaml.safe_load(
        gke("render", "--a=b c", SETUP="echo first $0\nprintf '%s' \"second\"; memjax() { false; }")
    )
    command = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]["command"]
    assert command[4:] == [
        "memjax",
        "train",
        "--config=configs/scaling.py:1.3b-512x8",
        "--workdir=gs://bucket/tiny",
        "--a=b c",
    ]
    done = subprocess.run(
        [*command[:4], "printf", " <%s>", *command[5:]], capture_output=True, text=True, check=True
    )
    assert (
        done.stdout == "first bash\nsecond <train> <--config=configs/scaling.py:1.3b-512x8>"
        " <--workdir=gs://bucket/tiny> <--a=b c>"
    )


def test_the_schema_refuses_what_a_cluster_would():
    manifest = yaml.safe_load(gke("render"))
    assert valid(manifest)

    def changed(path: str, value) -> dict:
        other = copy.deepcopy(manifest)
        node = other
        *keys, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in keys:
            node = node[key]
        node[last] = value
        return other

    pod = "spec/replicatedJobs/0/template/spec/template/spec"
    for path, value in {
        "apiVersion": "jobset.x-k8s.io/v1",
        "metadata/name": "Tiny",
        "spec/replicaJobs": [],
        "spec/failurePolicy/maxRestarts": "50",
        "spec/failurePolicy/rules/0/action": "Stop",
        "spec/replicatedJobs/0/replicas": 0,
        "spec/replicatedJobs/0/template/spec/podFailurePolicy/rules/0/onExitCodes/values": [0],
        f"{pod}/restartPolicy": "OnFailure",
        f"{pod}/terminationGracePeriod": 300,
        f"{pod}/containers/0/command": "train",
    }.items():
        assert not valid(changed(path, value)), path


WRONG = {
    "no image": ({"IMAGE": ""}, "IMAGE is not set"),
    "no bucket": ({"BUCKET": ""}, "WORKDIR=runs/tiny is not in a bucket"),
    "machines": (
        {"PODS_PER_SLICE": "16"},
        "GKE_TOPOLOGY=16x16 has 256 chips, 16 pods of 4 chips have 64",
    ),
    "topology": ({"GKE_TOPOLOGY": "256"}, "GKE_TOPOLOGY=256; it is like 16x16"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_are_named(settings, message):
    assert message in gke("render", status=2, **settings)
    assert message in gke("apply", status=2, DRY_RUN="1", **settings)


def test_what_kubectl_is_asked(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/usr/bin/env bash\necho "$*"\n[[ $* == *--filename=-* ]] && cat\nexit 0\n'
    )
    kubectl.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAMESPACE": "research"}
    first, manifest = gke("apply", "--config.seed=1", **path).split("\n", 1)
    assert first == "--namespace=research apply --filename=-"
    assert manifest == gke("render", "--config.seed=1", **path)
    assert gke("delete", **path) == "--namespace=research delete jobsets tiny --ignore-not-found\n"
    assert "job-completion-index=0 --follow" in gke("logs", **path)
    assert "get pods --selector=jobset.sigs.k8s.io/jobset-name=tiny" in gke("status", **path)
    assert (
        gke("delete", DRY_RUN="1", **path)
        == "kubectl --namespace=research delete jobsets tiny --ignore-not-found \n"
    )
