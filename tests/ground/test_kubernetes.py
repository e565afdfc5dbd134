"""docs/kubernetes.yaml keeps the schema of the Kubernetes API, its parts agree, and torchrun takes its options."""

from __future__ import annotations

import argparse
import copy
import functools
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.helpers import ROOT

MANIFEST = {part["kind"]: part for part in yaml.safe_load_all((ROOT / "docs/kubernetes.yaml").read_text("utf-8"))}
CLAIM, SHELL, SERVICE, JOB = (MANIFEST[kind] for kind in ("PersistentVolumeClaim", "Pod", "Service", "Job"))
TEMPLATE = JOB["spec"]["template"]
VERSIONS = ["1.31", "1.37"]  # the first that has all its fields by default, and the last of which the package knows


def validate(part: dict[str, Any], version: str = VERSIONS[-1]) -> None:
    kubernetes_validate.validate(part, version, strict=True)


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def run_command(path: str) -> subprocess.CompletedProcess[str]:
    """The Job's command as its second pod runs it, with the programs of `path`."""
    environment = environment_of(container_of(TEMPLATE)) | {"PATH": path, "JOB_COMPLETION_INDEX": "1"}
    command = container_of(TEMPLATE)["command"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def torchrun(tmp_path: Path) -> argparse.Namespace:
    """What the real torchrun reads from the arguments that it would get in the second pod."""
    program = tmp_path / "torchrun"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    done = run_command(f"{tmp_path}:/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    return get_args_parser().parse_args(done.stdout.splitlines())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("part", MANIFEST.values(), ids=MANIFEST)
def test_every_part_keeps_the_schema_of_the_api(part: dict[str, Any], version: str) -> None:
    validate(part, version)


@pytest.mark.parametrize(
    ("part", "path", "value"),
    [
        (JOB, ("spec", "completionmode"), "Indexed"),
        (JOB, ("spec", "backoffLimit"), "twenty"),
        (JOB, ("spec", "podFailurePolicy", "rules", 0, "onPodCondition"), []),
        (JOB, ("spec", "template", "spec", "containers", 0, "command"), "torchrun"),
        (SERVICE, ("spec", "clusterIp"), "None"),
        (CLAIM, ("spec", "accessModes"), "ReadWriteMany"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_misspelt_field_or_another_type_is_refused(part: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    wrong = copy.deepcopy(part)
    functools.reduce(lambda inner, key: inner[key], path[:-1], wrong)[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError) as refused:
        validate(wrong)
    assert path[-1] in refused.value.message or path[-1] in refused.value.path


def test_the_pods_meet_at_the_first_one(torchrun: argparse.Namespace) -> None:
    name, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
    selector = SERVICE["spec"]["selector"].items()
    assert selector <= TEMPLATE["metadata"]["labels"].items()
    assert not selector <= SHELL["metadata"]["labels"].items()
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert TEMPLATE["spec"]["subdomain"] == service
    assert torchrun.master_addr == f"{name}-0.{service}"
    assert torchrun.master_port in [port["port"] for port in SERVICE["spec"]["ports"]]
    assert torchrun.node_rank == 1
    assert (torchrun.module, torchrun.training_script, torchrun.training_script_args) == (True, "stages.train", [])


def test_the_numbers_agree(torchrun: argparse.Namespace) -> None:
    job, container = JOB["spec"], container_of(TEMPLATE)
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(torchrun.nnodes)
    threads = int(environment_of(container)["OMP_NUM_THREADS"])
    assert container["resources"]["requests"]["cpu"] == int(torchrun.nproc_per_node) * threads


def test_a_lost_pod_is_replaced_with_the_others() -> None:
    job = JOB["spec"]
    assert TEMPLATE["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 10 * job["completions"]  # ten losses: each pod fails once if one is lost
    assert "backoffLimitPerIndex" not in job


def test_a_command_that_is_not_there_fails_the_job(tmp_path: Path) -> None:
    rules = {rule["action"]: rule for rule in JOB["spec"]["podFailurePolicy"]["rules"]}
    codes = rules["FailJob"]["onExitCodes"]
    assert codes["containerName"] == container_of(TEMPLATE)["name"]
    (tmp_path / "sh").symlink_to("/bin/sh")
    assert run_command(str(tmp_path)).returncode in codes["values"]


@pytest.mark.parametrize("pod", [SHELL, TEMPLATE], ids=["shell", "job"])
def test_both_kinds_of_pods_have_the_clone_at_the_same_place(pod: dict[str, Any]) -> None:
    container, (volume,) = container_of(pod), pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == container["workingDir"] == "/project"
    assert environment_of(container)["PATH"].startswith("/project/.venv/bin:")
    assert container["image"] == container_of(SHELL)["image"]
