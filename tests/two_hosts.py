"""Two hosts on this machine: namespaces with a network link between them, SLURM, munge and ssh.

Each host has its own network, host name, processes, /run, /etc/hosts and daemons; all files are shared, as on a
cluster's network file system. Debian packages: slurm-wlm, munge, openssh-server, pdsh, iproute2; only root may use them
so.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ral.processes import die_with_parent

PACKAGES = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sshd": "openssh-server",
    "pdsh": "pdsh",
}
# Daemons are in /usr/sbin, which is not on every user's path.
ENVIRONMENT = dict(os.environ) | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

ADDRESSES = {"node1": "10.99.0.1", "node2": "10.99.0.2"}

# No cgroups: SLURM finds a job's processes in /proc. A lost node is noticed after about 20 s, not SLURM's default of
# 300, and may return by itself.
SLURM_CONF = """
ClusterName=two
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout={timeout}
KillWait=30
NodeName=node1 NodeAddr={node1} CPUs=1 RealMemory=8000
NodeName=node2 NodeAddr={node2} CPUs=1 RealMemory=8000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""

SSHD_CONFIG = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
UsePAM no
"""

SSH_CONFIG = """
Host *
  IdentityFile {folder}/key
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  LogLevel ERROR
  BatchMode yes
"""

# The first process of a host: it reaps orphans. When it ends, the kernel kills all other processes of the host.
INIT = """
mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd /run/munge &&
mount --bind {folder}/hosts /etc/hosts && mount --bind {folder}/ssh_config /etc/ssh/ssh_config &&
hostname {name} && ip link set lo up && touch {folder}/{name}.ready && sleep infinity & wait
"""


class Host:
    """A host: its namespaces, and commands in them."""

    def __init__(self, name: str, folder: Path, init: subprocess.Popen[bytes]) -> None:
        self.name, self.folder = name, folder
        (first,) = psutil.Process(init.pid).children()
        self.pid = first.pid
        self._enter = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid"]
        self._environment = ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str, **env: str) -> str:
        """Run a command to its end, which must succeed, and return its output."""
        done = subprocess.run(
            [*self._enter, *command], env=self._environment | env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{self.name}: {shlex.join(command)}:\n{done.stdout}"
        return done.stdout

    def start(self, *command: str, log: Path, cwd: Path | None = None, **env: str) -> subprocess.Popen[bytes]:
        """Start a command with its output in `log`; it ends with the host, or with the tests."""
        if cwd is not None:
            command = ("env", f"--chdir={cwd}", *command)
        with log.open("ab") as stream:
            return subprocess.Popen(
                [*self._enter, *command], env=self._environment | env, stdin=subprocess.DEVNULL,
                stdout=stream, stderr=stream, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def daemon(self, *command: str) -> None:
        """Start a daemon in the foreground, with its output in a log of the cluster's folder."""
        self.start(*command, log=self.folder / f"{Path(command[0]).name}-{self.name}.log")

    def set_link(self, state: str) -> None:
        """Take this end of the network link `up` or `down`."""
        self.run("ip", "link", "set", "eth0", state)

    def processes(self, word: str) -> list[psutil.Process]:
        """Running processes of this host with `word` in their command."""
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter(["cmdline", "name"]):
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                if inside and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return [process for process in found if word in " ".join(process.info["cmdline"] or [])]


class Cluster:
    """Both hosts; `node1` is also SLURM's controller and the host to submit on."""

    def __init__(self, node1: Host, node2: Host, folder: Path) -> None:
        self.node1, self.node2, self.folder = node1, node2, folder

    def remaining(self, word: str) -> list[str]:
        """Commands of processes with `word` in their command, on both hosts."""
        hosts = (self.node1, self.node2)
        return [" ".join(p.info["cmdline"]) for host in hosts for p in host.processes(word)]

    def logs(self) -> str:
        """The ends of the daemons' logs, for messages."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


def skip_unless_possible() -> None:
    """Skip the test, with the reason, where two hosts cannot be made."""
    missing = sorted(
        {PACKAGES[name] for name in PACKAGES if not shutil.which(name, path=ENVIRONMENT["PATH"])}
    )
    if missing:
        pytest.skip(f"two hosts need {', '.join(missing)} (Debian: apt install {' '.join(missing)})")
    if os.geteuid() != 0:
        pytest.skip("two hosts need root: SLURM's and ssh's daemons run as root in namespaces")
    probe = "mount -t tmpfs tmpfs /mnt && ip link add probe0 type veth peer name probe1"
    command = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        pytest.skip(f"two hosts need network namespaces with a veth pair: {done.stderr.strip()}")


@contextlib.contextmanager
def two_hosts(folder: Path, wait_until: Callable[..., None], slurm_timeout: int = 20) -> Iterator[Cluster]:
    """Make two linked hosts with their daemons in `folder`; at the end, however it comes, nothing of them is left.

    Args:
        folder: new folder for keys, settings, logs and state.
        wait_until: the fixture of this name.
        slurm_timeout: seconds after which SLURM gives up a node that does not answer.
    """
    _write_files(folder, slurm_timeout)
    inits: list[subprocess.Popen[bytes]] = []
    try:
        hosts = [_start_host(name, folder, inits, wait_until) for name in ADDRESSES]
        cluster = Cluster(hosts[0], hosts[1], folder)
        subprocess.run(
            ["ip", "link", "add", "eth0", "netns", str(hosts[0].pid), "type", "veth",
             "peer", "name", "eth0", "netns", str(hosts[1].pid)], check=True,
        )  # fmt: skip
        for host in hosts:
            host.run("ip", "address", "add", f"{ADDRESSES[host.name]}/24", "dev", "eth0")
            host.set_link("up")
        _start_daemons(cluster, wait_until)
        yield cluster
    finally:
        for init in inits:
            init.kill()  # and, by --kill-child, its namespaces
            init.wait()


def _write_files(folder: Path, slurm_timeout: int) -> None:
    folder.mkdir()
    for name in ("slurmctld", "slurmd-node1", "slurmd-node2"):
        (folder / name).mkdir()
    text = SLURM_CONF.format(folder=folder, timeout=slurm_timeout, **ADDRESSES)
    (folder / "slurm.conf").write_text(text)
    lines = [f"{address} {name}" for name, address in ADDRESSES.items()]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
    for name, address in ADDRESSES.items():
        (folder / f"sshd_config-{name}").write_text(SSHD_CONFIG.format(folder=folder, address=address))


def _start_host(
    name: str, folder: Path, inits: list[subprocess.Popen[bytes]], wait_until: Callable[..., None]
) -> Host:
    spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["unshare", *spaces, "sh", "-c", INIT.format(folder=folder, name=name)]
    with (folder / f"init-{name}.log").open("wb") as log:
        init = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    inits.append(init)

    def ready() -> bool:
        assert init.poll() is None, (folder / f"init-{name}.log").read_text()
        return (folder / f"{name}.ready").exists()

    wait_until(ready)
    return Host(name, folder, init)


def _start_daemons(cluster: Cluster, wait_until: Callable[..., None]) -> None:
    folder = cluster.folder
    for host in (cluster.node1, cluster.node2):
        host.daemon(
            "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--seed-file={folder}/seed-{host.name}",
            "--socket=/run/munge/munge.socket.2", "--pid-file=/run/munge/munged.pid", "--log-file=/run/munge/log",
        )  # fmt: skip
        host.daemon("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / f"sshd_config-{host.name}"))
    for host in (cluster.node1, cluster.node2):
        wait_until(lambda host=host: "STATUS" in _attempt(host, "sh", "-c", "munge -n | unmunge"))
    cluster.node1.daemon("slurmctld", "-D")
    for host in (cluster.node1, cluster.node2):
        host.daemon("slurmd", "-D", "-N", host.name)
    nodes = ["node1", "idle", "node2", "idle"]
    wait_until(
        lambda: _attempt(cluster.node1, "sinfo", "-h", "-N", "-o", "%N %t").split() == nodes, every=0.5
    )


def _attempt(host: Host, *command: str) -> str:
    try:
        return host.run(*command)
    except AssertionError:
        return ""
