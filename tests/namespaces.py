"""Network namespaces of this machine as pods: each with an address of its own, all on one volume."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from music_training import files

LAUNCH = files.REPOSITORY / "scripts" / "launch.sh"
CLUSTER = ("NUM_NODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_ADDR", "NUM_TRAINERS", "PRIMARY_ADDR", "PRIMARY_PORT")


def environment(**given: object) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in CLUSTER and not name.startswith(("SKYPILOT_", "DSTACK_"))}
    return {**known, "MUSIC_VENV": sys.prefix, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in given.items()}}


@dataclass
class Pod:
    """A network namespace with an address of its own; like pods with one volume it shares this machine's files."""

    name: str
    address: str
    rank: int
    first: str

    def start(self, *command: object, supervised: bool = False, **given: object) -> subprocess.Popen:
        cluster = {"NUM_NODES": 2, "NODE_RANK": self.rank, "MASTER_ADDR": self.first, "MASTER_PORT": 29511}
        log = open(files.outputs_root().parent / f"{self.name}.log", "ab")  # noqa: SIM115
        supervisor = [sys.executable, "-m", "music_training.supervision", "--retries", "20", "--pause", "1"] if supervised else []
        words = ["ip", "netns", "exec", self.name, *supervisor, *map(str, command)]
        known = environment(**cluster, PYTHONPATH=files.REPOSITORY, **given)
        return subprocess.Popen(words, stdout=log, stderr=log, env=known, cwd=files.REPOSITORY)

    def kill(self) -> None:
        """Like a pod that is gone: everything in it, at once."""
        while found := subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split():
            for process in found:
                try:
                    os.kill(int(process), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def log(self) -> str:
        return (files.outputs_root().parent / f"{self.name}.log").read_text(errors="replace")[-3000:]


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespaces can be made here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def pods():
    """Two namespaces that see each other and nothing else."""
    if os.geteuid():
        pytest.skip("only root can make network namespaces")
    mark = f"mt{os.getpid() % 100000}"
    made = [Pod(f"{mark}p{rank}", f"10.213.77.{rank + 1}", rank, "10.213.77.1") for rank in range(2)]
    try:
        for pod in made:
            ip("netns", "add", pod.name)
        ip("link", "add", f"{mark}e0", "netns", made[0].name, "type", "veth", "peer", "name", f"{mark}e1", "netns", made[1].name)
        for pod in made:
            ip("-n", pod.name, "addr", "add", f"{pod.address}/24", "dev", f"{mark}e{pod.rank}")
            ip("-n", pod.name, "link", "set", f"{mark}e{pod.rank}", "up")
            ip("-n", pod.name, "link", "set", "lo", "up")
        yield made
    finally:
        for pod in made:
            pod.kill()
            subprocess.run(["ip", "netns", "del", pod.name], capture_output=True)


def together(pods: list[Pod], *command: object, **given: object) -> None:
    """Run a command on all pods to its end."""
    processes = [pod.start(*command, **given) for pod in pods]
    assert [process.wait(300) for process in processes] == [0, 0], "\n".join(pod.log() for pod in pods)


def on_one_pod(*command: object) -> None:
    done = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
