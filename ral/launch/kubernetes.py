"""Kubeflow jobs through kubectl: TrainJob (Trainer 2.2 or later) or PyTorchJob (training operator 1).

    kubectl apply --filename runs/ID/job.yaml

Each pod runs `ral.launch.ranks`, which starts the pod's ranks. The job is deleted when the launcher ends,
even if it is killed.
"""

import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ral.errors import UserError
from ral.files import read_json
from ral.launch.base import AFTER_FAILURE, Job, read_failure, write_failure
from ral.processes import die_with_parent, kill_group, run_on_parent_exit
from ral.records import Json

MANIFEST = "job.yaml"

# Label that selects a job's pods, by kind of job.
POD_LABEL = {"TrainJob": "jobset.sigs.k8s.io/jobset-name", "PyTorchJob": "training.kubeflow.org/job-name"}


def plan(job: Job) -> dict[str, str]:
    """The manifest.

    Raises:
        UserError: image, claim or mount is not set, or the project folder is outside the mount.
    """
    from ruamel.yaml import YAML

    kubernetes = job.target.kubernetes
    for key in ("image", "claim", "mount"):
        if not getattr(kubernetes, key):
            raise UserError(f"The launcher kubernetes needs training.kubernetes.{key}.")
    _require_inside(Path.cwd(), kubernetes.mount, "The project folder")
    manifest = _train_job(job) if kubernetes.kind == "TrainJob" else _pytorch_job(job)
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(manifest, stream)
    return {MANIFEST: stream.getvalue()}


def run(job: Job) -> None:
    """Apply the manifest, stream the pods' logs, wait for the job to end, and delete it.

    Raises:
        UserError: kubectl or training failed.
    """
    if not shutil.which("kubectl"):
        raise UserError("kubectl not found: install it and check that `kubectl get pods` works.")
    _require_inside(Path(read_json(job.spec)["state_dir"]), job.target.kubernetes.mount, "state_dir")
    delete = _kubectl(job, "delete", _kind(job), _name(job), "--ignore-not-found")
    followers: dict[str, subprocess.Popen[bytes]] = {}
    with run_on_parent_exit([*delete, "--wait=false"]):
        try:
            _call(delete)  # from an earlier attempt with the same run id
            _call(_kubectl(job, "apply", "--filename", str(job.folder / MANIFEST)))
            outcome = _wait(job, followers)
            if outcome == "Complete" and not job.failure.exists():
                return
            raise read_failure(job.failure) or UserError(
                f"{_kind(job)} {_name(job)} ended with status {outcome}; see its output above.",
                "lost_process",
                True,
            )
        except (KeyboardInterrupt, SystemExit):
            # The watchers in the pods see the file, and their ranks save. A deleted pod gets less time: a TrainJob
            # cannot set its grace period.
            write_failure(job.failure, "Training was interrupted.", "interrupted", True)
            _wait_for_end(job, followers)
            raise
        finally:
            subprocess.run([*delete, "--cascade=foreground"], stdout=subprocess.DEVNULL, check=False)
            for follower in followers.values():
                kill_group(follower)


def _wait(job: Job, followers: dict[str, subprocess.Popen[bytes]]) -> str:
    """Wait until the job or one of its ranks has ended, and return "Complete" or "Failed" with the reason."""
    while True:
        if (status := _status(job)) is not None:
            return status
        _follow(job, followers)
        if job.failure.exists():
            time.sleep(AFTER_FAILURE)
            return "Failed"
        time.sleep(2)


def _status(job: Job) -> str | None:
    """The status of an ended job: "Complete", or "Failed" with the reason; None while it runs."""
    job_json = json.loads(_call(_kubectl(job, "get", _kind(job), _name(job), "--output", "json")))
    conditions = job_json.get("status", {}).get("conditions", [])
    for condition in [c for c in conditions if c["status"] == "True"]:
        if condition["type"] in ("Complete", "Succeeded"):
            return "Complete"
        if condition["type"] == "Failed":
            return f"Failed ({condition.get('reason', 'no reason given')})"
    return None


def _wait_for_end(job: Job, followers: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until a job whose pods have started has ended, or its ranks have had their time."""
    deadline = time.monotonic() + job.grace + 5
    with contextlib.suppress(UserError):  # whatever kubectl says, the job is deleted next
        _follow(job, followers)
        while followers and time.monotonic() < deadline and _status(job) is None:
            time.sleep(1)


def _follow(job: Job, followers: dict[str, subprocess.Popen[bytes]]) -> None:
    """Stream the logs of each pod that has started."""
    selector = f"{POD_LABEL[_kind(job)]}={_name(job)}"
    pods = json.loads(_call(_kubectl(job, "get", "pods", "--selector", selector, "--output", "json")))[
        "items"
    ]
    for pod in pods:
        name = pod["metadata"]["name"]
        if name not in followers and pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed"):
            followers[name] = subprocess.Popen(
                _kubectl(job, "logs", "--follow", name),
                stdout=sys.stderr, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip


def _train_job(job: Job) -> dict[str, Json]:
    kubernetes = job.target.kubernetes
    trainer: dict[str, Json] = {
        "image": kubernetes.image,
        "numNodes": kubernetes.nodes,
        "command": _command(job),
        "env": _pod_env(job),
    }
    if resources := _resources(job):
        trainer["resourcesPerNode"] = resources
    volumes, mounts = _volumes(job)
    pod: Json = {"volumes": volumes, "containers": [{"name": "node", "volumeMounts": mounts}]}
    node: Json = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch: Json = {
        "manager": "ral.dev/launch",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": _name(job), "namespace": kubernetes.namespace},
        "spec": {"runtimeRef": {"name": kubernetes.runtime}, "trainer": trainer, "runtimePatches": [patch]},
    }


def _pytorch_job(job: Job) -> dict[str, Json]:
    kubernetes = job.target.kubernetes
    volumes, mounts = _volumes(job)
    container: dict[str, Json] = {
        "name": "pytorch",  # the operator requires this name
        "image": kubernetes.image,
        "command": _command(job),
        "env": _pod_env(job),
        "volumeMounts": mounts,
    }
    if resources := _resources(job):
        container["resources"] = resources
    pod: Json = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": math.ceil(job.grace) + 10,
    }
    replicas = {"Master": 1, "Worker": kubernetes.nodes - 1}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": _name(job), "namespace": kubernetes.namespace},
        "spec": {
            "runPolicy": {"backoffLimit": 0, "cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": {
                role: {"replicas": count, "restartPolicy": "Never", "template": {"spec": pod}}
                for role, count in replicas.items()
                if count
            },
        },
    }


def _command(job: Job) -> list[str]:
    """Command of a pod: in the project folder, with the image's Python."""
    command = ["python", *job.command[1:]] if job.command[0] == sys.executable else list(job.command)
    watcher = ["python", "-m", "ral.launch.ranks", "kubeflow", str(job.grace), str(job.spec), *command]
    return ["env", f"--chdir={Path.cwd()}", *watcher]  # a TrainJob cannot set the working directory


def _pod_env(job: Job) -> list[dict[str, str]]:
    kubernetes = job.target.kubernetes
    values = {**kubernetes.env, "RAL_NODES": kubernetes.nodes, "RAL_PER_NODE": kubernetes.processes_per_node}
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def _resources(job: Job) -> dict[str, dict[str, str | int]]:
    """Requests and limits of a pod; a limit is also the request. Only a request for cpu: a limit would throttle."""
    kubernetes = job.target.kubernetes
    limits = dict(kubernetes.resources)
    if kubernetes.gpus_per_node:
        limits["nvidia.com/gpu"] = kubernetes.gpus_per_node
    requests = {name: limits.pop(name) for name in ("cpu",) if name in limits}
    return {kind: values for kind, values in (("requests", requests), ("limits", limits)) if values}


def _volumes(job: Job) -> tuple[list[Json], list[Json]]:
    """The volume claim, and shared memory for the ranks of a pod (the default is 64 MB)."""
    kubernetes = job.target.kubernetes
    volumes: list[Json] = [
        {"name": "project", "persistentVolumeClaim": {"claimName": kubernetes.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[Json] = [
        {"name": "project", "mountPath": kubernetes.mount},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    return volumes, mounts


def _require_inside(path: Path, mount: str, what: str) -> None:
    if not path.resolve().is_relative_to(Path(mount).resolve()):
        raise UserError(
            f"{what} ({path.resolve()}) is outside training.kubernetes.mount ({mount}): pods could not access it."
        )


def _kind(job: Job) -> str:
    return job.target.kubernetes.kind


def _name(job: Job) -> str:
    """The run's id as a valid Kubernetes name, short enough for the suffixes that Kubernetes adds."""
    return ("ral-" + re.sub(r"[^a-z0-9]+", "-", job.folder.name.lower()))[:40].strip("-")


def _kubectl(job: Job, *arguments: str) -> list[str]:
    return ["kubectl", f"--namespace={job.target.kubernetes.namespace}", *arguments]


def _call(command: list[str]) -> str:
    """Run kubectl and return its output.

    Raises:
        UserError: kubectl failed.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"kubectl {command[2]} failed: {result.stderr.strip()}", "queue", True)
    return result.stdout
