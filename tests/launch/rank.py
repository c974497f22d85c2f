"""Fake rank: behaves as the specification's `mode` says, without torch.

Writes rank-N.json (its variables) to the run's folder. Modes: ok; hang (on SIGTERM, saves and exits with
143); stubborn (ignores SIGTERM); slow (needs 3 s to save); slow:R (rank R does); exit:R:C (rank R exits with code C); kill:R (rank
R is killed); say:R (rank R writes the failure file and fails); break:R (rank R is killed, and the others
report a connection error at once). All other ranks hang.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

spec = json.loads(Path(sys.argv[1]).read_text())
folder, rank = Path(spec["run"]), os.environ["RANK"]


def save(number: int, frame: object) -> None:
    if spec["mode"] in ("slow", f"slow:{rank}"):
        time.sleep(3)
    (folder / f"saved-{rank}").touch()
    if spec["mode"] != "stubborn":
        os._exit(143)


signal.signal(signal.SIGTERM, save)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
draft = folder / f".rank-{rank}"
draft.write_text(json.dumps({name: os.environ[name] for name in names} | {"pid": os.getpid()}))
draft.replace(folder / f"rank-{rank}.json")
print(f"rank {rank} speaks", flush=True)
while len(list(folder.glob("rank-*.json"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.02)
mode, *rest = spec["mode"].split(":")
if mode == "ok":
    sys.exit(0)
if rest and rest[0] == rank:
    if mode == "exit":
        sys.exit(int(rest[1]))
    if mode in ("kill", "break"):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "say":
        failure = {"kind": "memory", "retry": False, "message": "out of memory: set train.micro_batch"}
        Path(spec["failure"]).write_text(json.dumps(failure))
        sys.exit(1)
while True:
    time.sleep(0.02)
    if mode == "break":
        peer = json.loads((folder / f"rank-{rest[0]}.json").read_text())["pid"]
        if not Path(f"/proc/{peer}").exists():  # the launcher has reaped it
            failure = {"kind": "bug", "retry": False, "message": "Connection reset by peer"}
            Path(spec["failure"]).write_text(json.dumps(failure))
            sys.exit(1)
