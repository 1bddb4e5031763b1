"""Stand-ins: a pod on this machine (an unprivileged sshd on loopback), the state of a fake API server, a laptop's home."""

import getpass
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import runpod_ssh_sync

TOOL = Path(runpod_ssh_sync.__file__)
KEY = "rpa_SECRET0123456789"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def v2_pod(id: str, name: str, port: int | None = None, host: str = "127.0.0.1", user: str | None = None) -> dict:
    """A pod as v2 lists it; without a port it is stopped."""
    direct = {"host": host, "port": port, "username": user or getpass.getuser(), "command": "ssh ..."} if port else None
    proxy = {"host": "ssh.runpod.io", "username": f"{id}-6441"}
    return {"id": id, "name": name, "status": "RUNNING" if port else "EXITED", "ssh": {"direct": direct, "proxy": proxy} if port else None}


@dataclass
class Api:
    """What the fake server answers, by path; ``pods`` is the answer of v2 unless ``answers`` holds another one."""

    url: str = ""
    pods: list = field(default_factory=list)
    answers: dict = field(default_factory=dict)
    delay: float = 0.0
    seen: list = field(default_factory=list)
    bodies: list = field(default_factory=list)

    def reply(self, path: str) -> tuple[int, bytes]:
        if path in self.answers:
            status, body = self.answers[path]
            return status, body if isinstance(body, bytes) else json.dumps(body).encode()
        return (200, json.dumps({"pods": self.pods}).encode()) if path == "/v2/pods" else (404, b"{}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Sshd:
    """A real sshd of this user with its own keys and settings; it can move to another port and get another host key."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None
        self.identity = folder / "id_ed25519"
        self._keygen(self.identity)
        shutil.copy(self.identity.with_suffix(".pub"), folder / "authorized_keys")
        self.new_host_key()

    def _keygen(self, path: Path) -> None:
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    def new_host_key(self) -> None:
        self._keygen(self.folder / "host_key")

    def start(self) -> None:
        self.port = free_port()
        settings = f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.folder}/host_key
AuthorizedKeysFile {self.folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
AllowTcpForwarding yes
MaxStartups 50
"""
        (self.folder / "sshd_config").write_text(settings)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL)
        for _ in range(200):
            if self.process.poll() is not None:
                pytest.skip(f"sshd does not start here: {(self.folder / 'log').read_text()[-300:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        pytest.fail("sshd did not answer in 4 s")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class Laptop:
    """A faked home and the tool in it."""

    home: Path

    @property
    def config(self) -> Path:
        return self.home / ".ssh" / "config"

    @property
    def own(self) -> Path:
        return self.home / ".ssh" / "config.d" / "runpod"

    def run(self, *words: object, **more) -> subprocess.CompletedProcess:
        """The tool in a process of its own."""
        command = [sys.executable, TOOL, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **more)

    def start(self, *words: object, **more) -> subprocess.Popen:
        command = [sys.executable, TOOL, *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(command, start_new_session=True, **{**pipes, **more})

    def effective(self, host: str) -> dict[str, str]:
        """What ssh itself makes of the configuration: ``ssh -G``."""
        done = subprocess.run(["ssh", "-G", "-F", self.config, host], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)

    def snapshot(self) -> dict[str, bytes]:
        """All files below ~/.ssh but the lock."""
        files = [path for path in (self.home / ".ssh").rglob("*") if path.is_file() and not path.name.endswith(".lock")]
        return {str(path.relative_to(self.home)): path.read_bytes() for path in files}
