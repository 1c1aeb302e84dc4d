"""The files for clusters: well formed, and the commands in them accepted."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from thrifty.cli import recipes
from thrifty.recipes.recipe import Recipe
from thrifty.runs.job import spread

PLACE = Path(__file__).resolve().parent.parent / "examples" / "clusters"


def commands() -> list[list[str]]:
    script = (PLACE / "slurm.sbatch").read_text().replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if line.startswith("srun torchrun")]
    job = yaml.safe_load((PLACE / "kubernetes.yaml").read_text())
    return [shlex.split(line)[1:], *(replica["template"]["spec"]["containers"][0]["command"]
                                     for replica in job["spec"]["pytorchReplicaSpecs"].values())]


def test_slurm_takes_the_batch_file() -> None:
    path = PLACE / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", path.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == "1"  # torchrun starts the ranks of its machine
    assert f"--nproc-per-node {asked['gpus-per-node']}" in path.read_text()


def test_kubernetes_takes_the_job() -> None:
    job = yaml.safe_load((PLACE / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1 and set(replicas) == {"Master", "Worker"}
    for replica in replicas.values():
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"  # the operator looks for this one
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
        there = {volume["name"] for volume in replica["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == there


@pytest.mark.parametrize("command", commands())
def test_what_they_run_is_a_training_that_is_spread(command: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(command[1:])
    assert command[0] == "torchrun" and parsed.module and parsed.training_script == "thrifty"
    verb, workload, recipe, *options = parsed.training_script_args
    assert verb == "run" and workload == "my.py"
    assert any(map(spread, Recipe.parse(recipe)))
    known = {word for option in recipes.run.__annotations__.values() for word in re.findall(r"--[a-z-]+", str(option))}
    assert {word for word in options if word.startswith("--")} <= known | {"--device", "--study"}
