"""Kubeflow jobs: manifests against the CRDs, and the job's life cycle with a fake kubectl."""

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from _pytest.monkeypatch import MonkeyPatch
from ruamel.yaml import YAML

from ral.config.environment import KubernetesConfig, TrainingTarget
from ral.errors import UserError
from ral.launch import dry_run


def closed(required: list[str] = [], **properties: dict) -> dict:  # noqa: B006
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def listed(item: dict) -> dict:
    return {"type": "array", "items": item, "minItems": 1}


TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 1}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
META = closed(["name", "namespace"], name=NAME, namespace=TEXT)
ENV = listed(closed(["name", "value"], name=TEXT, value=TEXT))
MOUNTS = listed(closed(["name", "mountPath"], name=NAME, mountPath=TEXT))
VOLUMES = listed(
    closed(
        ["name"],
        name=NAME,
        persistentVolumeClaim=closed(["claimName"], claimName=TEXT),
        emptyDir=closed(medium={"enum": ["", "Memory"]}),
    )
)
AMOUNTS = {"type": "object", "additionalProperties": {"anyOf": [COUNT, TEXT]}, "minProperties": 1}
RESOURCES = closed(limits=AMOUNTS, requests=AMOUNTS)
# Fields of trainer.kubeflow.org/v1alpha1 as of Trainer 2.2 (runtimePatches replaced podTemplateOverrides).
PATCHED = closed(volumes=VOLUMES, containers=listed(closed(["name"], name=NAME, volumeMounts=MOUNTS)))
INNER = closed(["name"], name=NAME, template=closed(spec=closed(template=closed(spec=PATCHED))))
PATCH = closed(
    ["manager"],
    manager=TEXT,
    trainingRuntimeSpec=closed(template=closed(spec=closed(replicatedJobs=listed(INNER)))),
)
TRAIN_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "trainer.kubeflow.org/v1alpha1"},
    kind={"const": "TrainJob"},
    metadata=META,
    spec=closed(
        ["runtimeRef"],
        runtimeRef=closed(["name"], name=TEXT, kind=TEXT, apiGroup=TEXT),
        trainer=closed(
            image=TEXT, command=listed(TEXT), args=listed(TEXT), env=ENV, numNodes=COUNT,
            resourcesPerNode=RESOURCES, numProcPerNode=COUNT,
        ),
        runtimePatches=listed(PATCH),
    ),
)  # fmt: skip
# Fields of kubeflow.org/v1, training operator 1.9; and the pod fields that are used.
REPLICA = closed(
    ["template"],
    replicas=COUNT,
    restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    template=closed(
        spec=closed(
            ["containers"],
            containers=listed(
                closed(
                    ["name", "image"], name={"const": "pytorch"}, image=TEXT, command=listed(TEXT), env=ENV,
                    volumeMounts=MOUNTS, resources=RESOURCES,
                )
            ),
            volumes=VOLUMES,
            terminationGracePeriodSeconds=COUNT,
        )
    ),
)  # fmt: skip
PYTORCH_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v1"},
    kind={"const": "PyTorchJob"},
    metadata=META,
    spec=closed(
        ["pytorchReplicaSpecs"],
        runPolicy=closed(
            backoffLimit={"type": "integer", "minimum": 0},
            cleanPodPolicy={"enum": ["None", "Running", "All"]},
        ),
        pytorchReplicaSpecs=closed(["Master"], Master=REPLICA, Worker=REPLICA),
    ),
)
SCHEMA = {"TrainJob": TRAIN_JOB, "PyTorchJob": PYTORCH_JOB}


def target(kind: str, **changes) -> TrainingTarget:
    values = {"image": "lab/ral:1", "namespace": "lab", "claim": "disk", "mount": "/", "nodes": 2} | changes
    kubernetes = KubernetesConfig.model_validate(values | {"kind": kind, "processes_per_node": 2})
    return TrainingTarget(launcher="kubernetes", grace=3600.0, kubernetes=kubernetes)


@pytest.fixture
def cluster(tmp_path: Path, job, monkeypatch: MonkeyPatch) -> Path:
    """State folder of the fake kubectl, which comes first on PATH."""
    state, programs = tmp_path / "cluster", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    (state / "how").write_text("")
    words = [sys.executable, str(Path(__file__).with_name("kubectl.py"))]
    (programs / "kubectl").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (programs / "kubectl").chmod(0o755)
    path = f"{programs}:{job.environment['PATH']}"
    job.environment |= {"PATH": path, "KUBECTL_STANDIN": str(state)}
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("KUBECTL_STANDIN", str(state))
    return state


@pytest.mark.parametrize("kind", SCHEMA)
@pytest.mark.parametrize(
    "changes",
    [{}, {"nodes": 1}, {"gpus_per_node": 8}, {"resources": {"cpu": 16}, "env": {"NCCL_DEBUG": "INFO"}}],
)
def test_manifests_are_what_the_crds_allow(job, kind: str, changes: dict) -> None:
    shown = dry_run(job.specify("ok"), target(kind, **changes), job.folder)
    manifest = YAML(typ="safe").load(shown)
    jsonschema.validate(manifest, SCHEMA[kind])
    assert ("nvidia.com/gpu: 8" in shown) == (changes == {"gpus_per_node": 8})
    manifest["spec"]["nodes"] = 2
    with pytest.raises(jsonschema.ValidationError):  # the schema does reject
        jsonschema.validate(manifest, SCHEMA[kind])


def container(manifest: dict) -> dict:
    """The training container of a manifest, in a form that both kinds of job share."""
    if manifest["kind"] == "PyTorchJob":
        return manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    trainer = manifest["spec"]["trainer"]
    return {"env": trainer["env"], "resources": trainer["resourcesPerNode"]}


@pytest.mark.parametrize("kind", SCHEMA)
def test_variables_and_resources_reach_the_container(job, kind: str) -> None:
    changes = {
        "gpus_per_node": 8, "env": {"NCCL_IB_HCA": "mlx5"},
        "resources": {"cpu": "64", "memory": "512Gi", "rdma/hca": 1},
    }  # fmt: skip
    manifest = YAML(typ="safe").load(dry_run(job.specify("ok"), target(kind, **changes), job.folder))
    jsonschema.validate(manifest, SCHEMA[kind])
    made = container(manifest)
    assert {item["name"]: item["value"] for item in made["env"]} == {
        "NCCL_IB_HCA": "mlx5", "RAL_NODES": "2", "RAL_PER_NODE": "2",
    }  # fmt: skip
    assert made["resources"] == {
        "requests": {"cpu": "64"},
        "limits": {"memory": "512Gi", "rdma/hca": 1, "nvidia.com/gpu": 8},
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": {"RAL_NODES": "3"}}, "RAL_NODES"),
        ({"env": {"NCCL DEBUG": "INFO"}}, "NCCL DEBUG"),
        ({"resources": {"nvidia.com/gpu": 8}}, "gpus_per_node"),
    ],
)
def test_what_the_launcher_sets_itself_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        target("TrainJob", **changes)


@pytest.mark.parametrize(
    ("changes", "grace"), [({}, 6), ({"gpus_per_node": 8}, 60), ({"resources": {"amd.com/gpu": 8}}, 60)]
)
def test_with_gpus_pods_get_more_time_to_save(job, changes: dict, grace: int) -> None:
    job_of = target("PyTorchJob", **changes).model_copy(update={"grace": None})
    shown = dry_run(job.specify("ok"), job_of, job.folder)
    assert f"terminationGracePeriodSeconds: {grace + 10}\n" in shown
    assert f"'{grace}.0'" in shown


@pytest.mark.parametrize("kind", SCHEMA)
def test_pods_may_save_for_longer_than_their_grace_period(
    job, cluster: Path, wait_until: Callable, kind: str
) -> None:
    (cluster / "how").write_text("0.5")
    launcher = job.start("slow", target(kind))
    wait_until(lambda: len(job.ranks()) == 4)
    launcher.terminate()
    launcher.wait()
    wait_until(lambda: not job.remaining())
    assert (cluster / "deleted").exists()
    assert len(list(job.folder.glob("saved-*"))) == 4


@pytest.mark.parametrize("kind", SCHEMA)
def test_pods_make_one_run(job, cluster: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert job.launch("ok", target(kind)) is None
    expected = [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    assert [(rank["RANK"], rank["LOCAL_RANK"]) for rank in job.ranks()] == expected
    rendezvous = {(rank["WORLD_SIZE"], rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in job.ranks()}
    assert len(rendezvous) == 1
    assert "4" in rendezvous.pop()
    assert (cluster / "deleted").exists()
    assert not job.remaining()


@pytest.mark.parametrize(
    ("mode", "how", "kind", "words"),
    [
        ("ok", "forbid", "queue", ["kubectl apply failed", "Forbidden"]),
        ("kill:3", "", "lost_process", ["process 3 of 4", "SIGKILL"]),
        ("say:0", "", "memory", ["set train.micro_batch"]),
    ],
)
def test_failures_are_told_by_their_cause(
    job, cluster: Path, mode: str, how: str, kind: str, words: list[str]
) -> None:
    (cluster / "how").write_text(how)
    error = job.launch(mode, target("TrainJob"))
    assert error is not None
    assert error.kind == kind, str(error)
    assert all(word in str(error) for word in words), str(error)
    assert not job.remaining()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_job_is_deleted_with_its_launcher(
    job, cluster: Path, wait_until: Callable, how: signal.Signals
) -> None:
    launcher = job.start("hang", target("PyTorchJob"))
    wait_until(lambda: len(job.ranks()) == 4)
    launcher.send_signal(how)
    launcher.wait()
    wait_until(lambda: not job.remaining())
    assert (cluster / "deleted").exists()
    assert len(list(job.folder.glob("saved-*"))) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"image": ""}, "image"), ({"claim": ""}, "claim"), ({"mount": "/nowhere"}, "outside")],
)
def test_what_is_missing_is_named(job, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        dry_run(job.specify("ok"), target("TrainJob", **changes), job.folder)
