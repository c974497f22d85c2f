"""Fake kubectl, cluster and Kubeflow operators: runs the pods of an applied job as local processes.

Its state is in the folder KUBECTL_STANDIN. If its file `how` contains "forbid", apply is rejected; a number there
is the pods' grace period in seconds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

STATE = Path(os.environ["KUBECTL_STANDIN"])
JOB, PODS = STATE / "job.json", STATE / "pods"


def pods_of(manifest: dict) -> list[tuple[list[str], dict[str, str]]]:
    """Command and variables of each pod, as the operator of that kind sets them."""
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    if manifest["kind"] == "TrainJob":
        trainer = spec["trainer"]
        env = {item["name"]: item["value"] for item in trainer["env"]}
        return [
            (
                trainer["command"],
                env | {"PET_NODE_RANK": str(node), "PET_MASTER_ADDR": f"{name}-node-0-0.{name}", "PET_MASTER_PORT": "29500"},
            )
            for node in range(trainer["numNodes"])
        ]  # fmt: skip
    pods = []
    for role in ("Master", "Worker"):
        replica = spec["pytorchReplicaSpecs"].get(role, {"replicas": 0})
        for _ in range(replica["replicas"]):
            (container,) = replica["template"]["spec"]["containers"]
            env = {item["name"]: item["value"] for item in container["env"]}
            rendezvous = {"RANK": str(len(pods)), "MASTER_ADDR": f"{name}-master-0", "MASTER_PORT": "23456"}
            pods.append((container["command"], env | rendezvous))
    return pods


def apply(arguments: list[str]) -> int:
    if (STATE / "how").read_text() == "forbid":
        print(
            'Error from server (Forbidden): trainjobs is forbidden: User "me" cannot create', file=sys.stderr
        )
        return 1
    manifest = YAML(typ="safe").load(Path(arguments[arguments.index("--filename") + 1]))
    PODS.mkdir()
    JOB.write_text(json.dumps({"kind": manifest["kind"], "name": manifest["metadata"]["name"]}))
    for number, (command, variables) in enumerate(pods_of(manifest)):
        words = [sys.executable, __file__, "pod", str(number), *command]
        subprocess.Popen(words, env=os.environ | variables, start_new_session=True)
    return 0


def pod(number: str, *command: str) -> int:
    """Run a pod's container; its exit code gives the pod's phase."""
    with (PODS / f"{number}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        (PODS / f"{number}.pid").write_text(str(process.pid))
        code = process.wait()
    (PODS / f"{number}.code").write_text(str(code))
    return 0


def codes() -> list[int | None]:
    paths = [PODS / f"{number}.code" for number in range(len(list(PODS.glob("*.pid"))))]
    return [int(path.read_text() or 1) if path.exists() else None for path in paths]


def get(arguments: list[str]) -> int:
    ended = codes()
    if arguments[0] == "pods":
        phases = ["Running" if code is None else "Failed" if code else "Succeeded" for code in ended]
        items = [{"metadata": {"name": f"pod-{n}"}, "status": {"phase": p}} for n, p in enumerate(phases)]
        print(json.dumps({"items": items}))
        return 0
    job = json.loads(JOB.read_text())
    assert arguments[:2] == [job["kind"], job["name"]]
    good = {"TrainJob": "Complete", "PyTorchJob": "Succeeded"}[job["kind"]]
    conditions = [{"type": "Created", "status": "True"}]
    if any(ended):
        conditions.append({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"})
    elif ended and all(code == 0 for code in ended):
        conditions.append({"type": good, "status": "True"})
    print(json.dumps({"status": {"conditions": conditions}}))
    return 0


def logs(arguments: list[str]) -> int:
    number = int(arguments[-1].removeprefix("pod-"))
    while codes()[number] is None:
        time.sleep(0.05)
    print((PODS / f"{number}.log").read_text(), end="")
    return 0


def delete(arguments: list[str]) -> int:
    """Terminate every pod and wait for it."""
    if not JOB.exists():
        assert "--ignore-not-found" in arguments
        return 0
    for path in PODS.glob("*.pid"):
        if not path.with_suffix(".code").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGTERM)
    how = (STATE / "how").read_text()
    deadline = time.monotonic() + (float(how) if how else 3600)
    while "--wait=false" not in arguments and any(code is None for code in codes()):
        time.sleep(0.05)
        if time.monotonic() > deadline:
            for path in PODS.glob("*.pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(path.read_text()), signal.SIGKILL)  # the ranks die with their watcher
    (STATE / "deleted").touch()
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "pod":
        sys.exit(pod(*sys.argv[2:]))
    assert sys.argv[1] == "--namespace=lab"
    verbs = {"apply": apply, "get": get, "logs": logs, "delete": delete}
    sys.exit(verbs[sys.argv[2]](sys.argv[3:]))
