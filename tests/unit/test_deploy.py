"""The files of deploy/: their commands are ours, what they reserve is enough, they hold against published schemas."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from deploy.validate import faults
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.runtime.train import demand
from tests.architecture.imports import ROOT

JOB = yaml.safe_load((ROOT / "deploy/kuberay/rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


def arguments():
    _, door, *given = shlex.split(JOB["spec"]["entrypoint"])
    assert (ROOT / door.removeprefix("/app/")).is_file()
    return [str(ROOT / one.removeprefix("/app/")) if one.startswith("/app/") else one for one in given]


def containers():
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


def test_the_jobs_training_fits_the_jobs_cluster():
    config = load_config(TrainConfig, arguments())
    wanted = demand(config)
    cpus, gpus, nodes = 0, 0, []
    for group in CLUSTER["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes.append((int(limits.get("nvidia.com/gpu", 0)), int(limits["cpu"])))
        cpus, gpus = cpus + group["replicas"] * nodes[-1][1], gpus + group["replicas"] * nodes[-1][0]
    assert cpus >= wanted.cpus
    assert gpus == wanted.gpus
    assert any(node[0] >= wanted.largest[0] and node[1] >= wanted.largest[1] for node in nodes)
    assert config.scale.relation_cpus + config.scale.stream_cpus <= nodes[1][1], "the relation actor has a place"
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_container_mounts_what_the_command_names():
    for container in containers():
        assert "/data" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert [one["name"] for one in container["env"]] == ["MLFLOW_URI"]
    config = load_config(TrainConfig, arguments())
    assert all(place.startswith("/data/") for place in (config.data.root, config.runs, config.encoder.weights))
    assert config.tracking.uri == "$MLFLOW_URI"


def test_versions_are_the_pinned_ones():
    assert CLUSTER["rayVersion"] == PINS["ray"]
    (image,) = re.findall(r"^FROM rayproject/ray:([\d.]+)-py311-gpu$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    assert image == PINS["ray"]


def test_the_machines_file_holds_against_rays_schema():
    schema = json.loads(Path(ray.__file__).with_name("autoscaler").joinpath("ray-schema.json").read_text())
    machines = yaml.safe_load((ROOT / "deploy/cluster.yaml").read_text())
    jsonschema.validate(machines, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(machines | {"worker_ips": []}, schema)


DEFINITION = {
    "spec": {
        "group": "ray.io",
        "names": {"kind": "RayJob"},
        "versions": [
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "cpu": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}]},
                                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "groups": {
                                        "type": "array",
                                        "items": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
                                    },
                                },
                            },
                        },
                    }
                },
            }
        ],
    }
}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"cpu": "4", "labels": {"any": "thing"}, "groups": [{"replicas": 1}]}, []),
        ({"cpus": 4}, ["spec: .*'cpus' was unexpected"]),
        ({"cpu": 1.5}, ["spec.cpu: 1.5 is not of type"]),
        ({"labels": {"one": 1}}, ["spec.labels.one: 1 is not"]),
        (
            {"groups": [{"replicas": "one"}, {"replica": 1}]},
            ["spec.groups.0.replicas: 'one'", "spec.groups.1: .*'replica'"],
        ),
    ],
)
def test_the_validator_finds_what_a_schema_does_not_allow(spec, told):
    resource = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "x"}, "spec": spec}
    found = faults(copy.deepcopy(DEFINITION), resource)
    assert len(found) == len(told)
    for words, pattern in zip(found, told, strict=True):
        assert re.match(pattern, words)


def test_a_definition_of_something_else_is_told():
    assert "the definition is of RayJob" in faults(DEFINITION, {"apiVersion": "ray.io/v1", "kind": "RayCluster"})[0]
    assert "no version v2" in faults(DEFINITION, {"apiVersion": "ray.io/v2", "kind": "RayJob"})[0]
