"""The examples under deploy/: they parse, listen nowhere but here, hold no secret, and start what there is."""

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from launch.test_kubernetes import SCHEMA
from ruamel.yaml import YAML

from flows.settings import FlowsEnvironment, load_flows_environment
from ral.launch import dry_run

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env")
MANIFESTS = [DEPLOY / "kubernetes" / f"{name}.yaml" for name in ("storage", "server", "worker", "jobs")]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text()))


def manifests() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests() if manifest["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    """Every pod that the manifests and the job template describe."""
    job = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())["job_configuration"][
        "job_manifest"
    ]
    return [owner["spec"]["template"]["spec"] for owner in [*of_kind("Deployment"), job]]


def compose() -> dict[str, Any]:
    return documents(DEPLOY / "compose.yaml")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_parse_say_their_job_and_hold_no_secret(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".yaml":
        assert documents(path)
    elif path.suffix == ".toml":
        assert tomllib.loads(text)
    elif path.suffix == ".json":
        assert json.loads(text)["description"]
    assert path.suffix == ".json" or text.startswith("# ")
    for name, value in re.findall(
        r"(\w*(?:PASSWORD|SECRET|TOKEN|AUTH_STRING|API_KEY)\w*)\s*[:=]\s*(\S+)", text
    ):
        assert value.startswith(("${", "$(openssl", "…")), f"{path.name}: {name} has a value"
    assert not re.search(r"://[^/\s:]+:[^/\s$]+@", text), f"{path.name}: a password in an address"


def test_the_password_file_is_ignored_by_git() -> None:
    subprocess.run(["git", "check-ignore", "--quiet", "deploy/.env"], cwd=ROOT, check=True)


def test_every_port_is_bound_to_this_machine_or_the_cluster() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:4200:4200"]
    assert all("network_mode" not in service for service in compose()["services"].values())
    assert [service["spec"]["type"] for service in of_kind("Service")] == ["ClusterIP"]
    assert not of_kind("Ingress")
    assert not any("hostNetwork" in pod for pod in pods())
    assert not any(
        "hostPort" in port for pod in pods() for c in pod["containers"] for port in c.get("ports", [])
    )
    for unit in (DEPLOY / "slurm").glob("*.service"):
        assert "0.0.0.0" not in unit.read_text()
    assert "--host 127.0.0.1" in (DEPLOY / "slurm/prefect-server.service").read_text()


def test_usage_statistics_are_off_in_every_container() -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    assert "DO_NOT_TRACK=1" in image
    assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in image
    assert "DVC_NO_ANALYTICS=1" in image
    assert compose()["services"]["server"]["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def commands() -> list[list[str]]:
    """What containers and units run."""
    found = [service["command"] for service in compose()["services"].values() if "command" in service]
    found += [
        container["args"]
        for manifest in of_kind("Deployment")
        for container in manifest["spec"]["template"]["spec"]["containers"]
    ]
    for unit in (DEPLOY / "slurm").glob("*.service"):
        (line,) = re.findall(r"^ExecStart=%h/ral/\.venv/bin/(.*)$", unit.read_text(), re.MULTILINE)
        found.append(line.split())
    return found


def test_commands_are_prefects_and_name_the_pools_of_prefect_yaml(run) -> None:
    pools = {
        deployment["work_pool"]["name"] for deployment in documents(ROOT / "prefect.yaml")[0]["deployments"]
    }
    told: dict[tuple[str, ...], str] = {}
    for command in commands():
        words = tuple(command[:3])
        if words not in told:
            told[words] = run(*words, "--help", cwd=ROOT, COLUMNS="300").stdout
        assert all(word in told[words] for word in command if word.startswith("--")), command
    assert set(told) == {("prefect", "server", "start"), ("prefect", "worker", "start")}
    assert {command[command.index("--pool") + 1] for command in commands() if "--pool" in command} == pools


def test_paths_and_modules_that_are_named_exist() -> None:
    for path in [*FILES, ROOT / "prefect.yaml"]:
        for named in re.findall(
            r"\b(?:deploy|docs|flows|tasks|ral)/[\w/.-]+\.(?:md|py|yaml|json|service|toml)", path.read_text()
        ):
            if named != "ral/ral.toml":  # in the image
                assert (ROOT / named).is_file(), f"{path.name}: {named}"
        for module in re.findall(r"python -m ((?:flows|tasks|ral)[\w.]*)", path.read_text()):
            assert importlib.util.find_spec(module), f"{path.name}: {module}"


def test_the_image_copies_what_exists_and_runs_as_nobody() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied), copied
    assert {
        "params.yaml",
        "prefect.yaml",
        "prefect.toml",
        "constraints.txt",
        "ral",
        "tasks",
        "flows",
    } <= copied
    assert "-c constraints.txt" in text
    extras = set(re.search(r"'\.\[([\w,]+)\]'", text)[1].split(","))
    assert extras <= set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert "useradd --uid 10001" in text


def test_the_image_has_what_a_first_step_on_a_gpu_builds_with() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    # This image has Python's headers below /usr/local/include, and no compiler; its gcc alone brings no headers of C.
    assert re.search(r"^FROM python:3\.\d+-slim$", text, re.MULTILINE)
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends (.*?) \\$", text, re.MULTILINE)
    assert set(installed.split()) == {"gcc", "git", "libc6-dev", "tini"}


def test_any_user_of_the_image_has_a_home_and_a_name() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    told = dict(
        word.split("=")
        for line in re.findall(r"^ENV (\w+=.*)$", text, re.MULTILINE)
        for word in line.rstrip("\\ ").split()
    )
    assert (told["HOME"], told["USER"]) == ("/home/ral", "ral")
    opened = set(re.findall(r"(?:chmod|-m) 1777 (\S+)", text))
    assert opened == {told["HOME"], f"{told['HOME']}/.prefect"}
    (place,) = [v for v in compose()["services"]["server"]["volumes"] if v.startswith("server:")]
    assert place == f"server:{told['HOME']}/.prefect"


def test_pods_run_without_rights() -> None:
    for pod in pods():
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    for role in of_kind("Role"):
        assert not any("*" in rule[part] for rule in role["rules"] for part in rule)


def test_manifests_have_what_kubernetes_requires_and_fit_together() -> None:
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests()}
    assert len(names) == len(manifests())
    for manifest in manifests():
        assert manifest["apiVersion"] in {
            "v1",
            "apps/v1",
            "rbac.authorization.k8s.io/v1",
            "networking.k8s.io/v1",
        }
        if manifest["kind"] == "Deployment":
            spec = manifest["spec"]
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    for binding in of_kind("RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in names
        assert all(("ServiceAccount", subject["name"]) in names for subject in binding["subjects"])
    template = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())
    default = {name: value.get("default") for name, value in template["variables"]["properties"].items()}
    assert ("ServiceAccount", default["service_account_name"]) in names
    for claim in (default["claim"], default["data_claim"], "prefect-server"):
        assert ("PersistentVolumeClaim", claim) in names
    for pod in pods():
        assert {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", [])} == {
            volume["name"] for volume in pod.get("volumes", [])
        }
    listed = documents(DEPLOY / "kubernetes/kustomization.yaml")[0]
    assert [DEPLOY / "kubernetes" / name for name in listed["resources"]] == MANIFESTS


def test_the_deployment_sets_what_the_template_leaves_open() -> None:
    template = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    (deployment,) = [
        d
        for d in documents(ROOT / "prefect.yaml")[0]["deployments"]
        if d["work_pool"]["name"] == "ral-kubernetes"
    ]
    assert set(deployment["work_pool"]["job_variables"]) <= used
    (step,) = deployment["pull"]
    assert (
        f"WORKDIR {step['prefect.deployments.steps.set_working_directory']['directory']}\n"
        in (DEPLOY / "Dockerfile").read_text()
    )


def test_prefects_worker_takes_the_template() -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="the extra kubernetes is not installed")
    template = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())
    configuration = worker.KubernetesWorkerJobConfiguration
    # The client would look up blocks, of which the template has none; without one Prefect starts a server.
    values = {"claim": "other"}
    made = asyncio.run(
        configuration.from_template_and_values(base_job_template=template, values=values, client=object())
    )
    volumes = made.job_manifest["spec"]["template"]["spec"]["volumes"]
    assert {"name": "state", "persistentVolumeClaim": {"claimName": "other"}} in volumes


def example(folder: str, tmp_path: Path, **variables: str) -> FlowsEnvironment:
    shutil.copyfile(DEPLOY / folder / "ral.toml", tmp_path / "ral.toml")
    return load_flows_environment(tmp_path, variables)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "train.json").write_text(json.dumps({"failure": str(tmp_path / "rank_failure.json")}))
    return tmp_path / "train.json"


def test_slurm_would_get_this_script(tmp_path: Path, spec: Path) -> None:
    environment = example("slurm", tmp_path, RAL_TRAINING_SLURM_PARTITION="a100")
    assert environment.dask.target == "slurm"
    shown = dry_run(spec, environment.training, tmp_path)
    for line in (
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=8",
        "partition=a100",
        "time=08:00:00",
        "signal=TERM@120",
        "no-requeue",
    ):
        assert f"#SBATCH --{line}\n" in shown
    assert f"ral.launch.ranks slurm 60.0 {spec}" in shown
    (tmp_path / "train.sbatch").write_text(shown)
    subprocess.run(["bash", "-n", str(tmp_path / "train.sbatch")], check=True)


def test_kubernetes_would_get_this_job(tmp_path: Path, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = example("kubernetes", tmp_path, RAL_TRAINING_KUBERNETES_MOUNT=str(tmp_path))
    manifest = YAML(typ="safe").load(dry_run(spec, environment.training, tmp_path))
    jsonschema.validate(manifest, SCHEMA["TrainJob"])
    assert (
        manifest["metadata"]["namespace"]
        == documents(DEPLOY / "kubernetes/kustomization.yaml")[0]["namespace"]
    )
    assert manifest["spec"]["trainer"]["resourcesPerNode"] == {
        "requests": {"cpu": "32"},
        "limits": {"nvidia.com/gpu": 4, "memory": "128Gi"},
    }
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in manifest["spec"]["trainer"]["env"]
    # The night's pod and the training's must see the same state under the same path.
    plain = example("kubernetes", tmp_path)
    night = pods()[-1]
    mounts = {mount["name"]: mount["mountPath"] for mount in night["containers"][0]["volumeMounts"]}
    assert mounts["state"] == plain.training.kubernetes.mount
    assert plain.state_dir.is_relative_to(mounts["state"])
    assert mounts["data"] == plain.data_root
    template = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())["variables"]["properties"]
    assert template["claim"]["default"] == plain.training.kubernetes.claim
    assert template["image"]["default"] == plain.training.kubernetes.image


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_knows_every_key_of_the_units(tmp_path: Path) -> None:
    for unit in (DEPLOY / "slurm").glob("*.service"):
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, tmp_path.glob("*.service"))],
        capture_output=True, text=True,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if ".service" in line]
    assert not complaints, done.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_puts_the_manifests_together(tmp_path: Path) -> None:
    made = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=True
    ).stdout
    found = list(YAML(typ="safe", pure=True).load_all(made))
    assert {manifest["metadata"]["namespace"] for manifest in found} == {"ral"}
    assert "image: registry.example.org/ral:1" in made
    (config,) = [manifest for manifest in found if manifest["kind"] == "ConfigMap"]
    assert config["data"]["ral.toml"] == (DEPLOY / "kubernetes/ral.toml").read_text()
    (tmp_path / "all.yaml").write_text(made)
    told = subprocess.run(
        ["kubectl", "apply", "--dry-run=client", "--filename", str(tmp_path / "all.yaml"), "--request-timeout=5s"],
        capture_output=True, text=True,
    )  # fmt: skip
    if re.search("refused|no such host|timeout|i/o|Unable to connect|openapi", told.stderr):
        pytest.skip(f"put together; not applied: no cluster answers ({told.stderr.splitlines()[0][:80]})")
    assert told.returncode == 0, told.stderr


def test_docker_reads_the_compose_file(tmp_path: Path) -> None:
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    command = [
        "docker",
        "compose",
        "--file",
        str(DEPLOY / "compose.yaml"),
        "--env-file",
        str(tmp_path / "env"),
        "config",
    ]
    (tmp_path / "env").write_text("RAL_STATE=/srv/ral\nRAL_DATA=/data\n")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert "set it in .env" in refused.stderr
    (tmp_path / "env").write_text("RAL_STATE=/srv/ral\nRAL_DATA=/data\nPOSTGRES_PASSWORD=x\n")
    subprocess.run(command, capture_output=True, check=True)


def test_compose_starts_in_order_and_keeps_what_must_stay() -> None:
    services = compose()["services"]
    assert set(services["server"]["depends_on"]) == {"postgres"}
    assert set(services["worker"]["depends_on"]) == {"server"}
    assert "ports" not in services["postgres"]
    places = [volume.rpartition("}")[2].lstrip(":") or volume for volume in services["worker"]["volumes"]]
    settings = load_flows_environment(
        Path("nowhere"), {k: v for k, v in services["worker"]["environment"].items() if k.startswith("RAL_")}
    )
    assert str(settings.state_dir) == "/state" == places[0]
    assert f"{settings.data_root}:ro" == places[1]
    assert services["worker"]["volumes"][2] == f"..:{settings.flows.repository}:ro"
    assert (DEPLOY / services["server"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["server"]["build"]["dockerfile"]).is_file()
    for name in ("POSTGRES_PASSWORD", "PREFECT_SERVER_DATABASE_PASSWORD"):
        (value,) = [s["environment"][name] for s in services.values() if name in s.get("environment", {})]
        assert value == "${POSTGRES_PASSWORD:?set it in .env}"
