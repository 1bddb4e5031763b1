"""The set-up as a pod's start in a clean Debian root (debootstrap, chroot): as root and as a normal user, each twice."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from music_training import files

PASSWORD = "open sesame"
PIP = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def local_packages() -> list[Path]:
    """Folders of packages that pip uses on this machine beside its index."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    words = " ".join(line.partition("=")[2].strip("'\"") for line in listed.splitlines()).split()
    found = [path for word in dict.fromkeys(words) if (path := Path(word.removeprefix("file://"))).is_absolute() and path.is_dir()]
    return [path.parent if path.name == "simple" else path for path in found]  # an index points to files beside it


@dataclass
class Root:
    """A Debian root: commands in it, and the processes that they leave behind."""

    folder: Path

    def run(self, *command: str, user: str = "root", **environment: str) -> subprocess.CompletedProcess:
        home = "/root" if user == "root" else f"/home/{user}"
        known = {"HOME": home, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **PIP}
        known |= {"PIP_CONFIG_FILE": "/etc/pip-of-the-host.conf", "PIP_CERT": "/etc/ssl/of-the-host.pem", **environment}
        words = ["chroot", f"--userspec={user}", str(self.folder), *command]
        return subprocess.run(words, capture_output=True, text=True, env=known, stdin=subprocess.DEVNULL, cwd="/")

    def processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "root") == str(self.folder):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def end_processes(self) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        while self.processes():
            time.sleep(0.05)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A clean Debian with Python and the repository on its volume."""
    if os.geteuid():
        pytest.skip("only root can make a Debian root and change into it")
    if not shutil.which("debootstrap", path=f"/usr/sbin:{os.environ['PATH']}"):
        pytest.skip("needs debootstrap (Debian: apt-get install debootstrap)")
    folder = tmp_path_factory.mktemp("debian").resolve()
    folder.chmod(0o755)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3", "bookworm", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"debootstrap cannot make a Debian root here: {made.stdout.splitlines()[-1:]}")
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", folder / "etc" / name)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", folder / "etc/ssl/of-the-host.pem")
    pip_conf = [path for path in (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf") if path.is_file()]
    (folder / "etc/pip-of-the-host.conf").write_text("".join(path.read_text() for path in pip_conf[-1:]))
    mounts = [(["-t", "proc", "proc"], folder / "proc")]
    mounts += [(["--bind", str(path)], folder / path.relative_to("/")) for path in local_packages()]
    repository = folder / "workspace" / "music-training"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=files.REPOSITORY, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, listed):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(files.REPOSITORY / name, repository / name)
    (folder / "post_start.sh").symlink_to("/workspace/music-training/scripts/startup_script.sh")
    debian = Root(folder)
    try:
        for what, where in mounts:
            where.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", *what, str(where)], check=True)
        yield debian
    finally:
        debian.end_processes()
        for _, where in reversed(mounts):
            subprocess.run(["umount", "--lazy", str(where)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def jupyter(port: str, path: str, token: str = "") -> tuple[int, object]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"token {token}"} if token else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("user", ["root", "me"])
def test_from_zero_to_jupyterlab_twice(root, tmp_path, user):
    home = "/root" if user == "root" else "/home/me"
    if user == "me":
        if shutil.which("ffmpeg", path=str(root.folder / "usr/bin")) is None:
            assert (
                root.run("bash", "-c", "apt-get update && apt-get install -y --no-install-recommends ffmpeg python3-venv").returncode == 0
            )
        assert root.run("useradd", "-m", "me").returncode == 0
        assert root.run("chown", "-R", "me:", "/workspace").returncode == 0
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    key = (tmp_path / "key.pub").read_text().strip()
    port, ssh = str(free_port()), str(free_port())
    pod = {"RUNPOD_POD_ID": "abc", "PUBLIC_KEY": key, "JUPYTER_PASSWORD": PASSWORD, "MUSIC_JUPYTER_PORT": port, "MUSIC_SSH_PORT": ssh}

    first = root.run("bash", "/post_start.sh", user=user, **pod)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "volume: /workspace" in first.stdout and "WARNING: /workspace lies on the container's own disk" in first.stdout
    assert "data and outputs: /workspace/outputs" in first.stdout and f"virtual environment: {home}/.venvs/music-training" in first.stdout
    assert "1 keys of PUBLIC_KEY added" in first.stdout and PASSWORD not in first.stdout + first.stderr
    assert jupyter(port, "/api/kernelspecs")[0] == 403
    status, specs = jupyter(port, "/api/kernelspecs", PASSWORD)
    spec = specs["kernelspecs"]["music-training"]["spec"]
    assert status == 200 and spec["display_name"] == "Music training" and spec["argv"][0].startswith(f"{home}/.venvs/music-training/")
    assert PASSWORD not in "".join(Path(f"/proc/{process}/cmdline").read_text() for process in root.processes())
    if user == "root":
        options = ["-p", ssh, "-i", str(tmp_path / "key"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        shell = subprocess.run(
            ["ssh", *options, "-o", "BatchMode=yes", "root@127.0.0.1", "echo $MUSIC_OUTPUTS"], capture_output=True, text=True
        )
        assert shell.stdout == "/workspace/outputs\n", shell.stderr
    else:
        assert "only root can start one" in first.stdout

    again = root.run("bash", "/post_start.sh", user=user, **pod)
    assert again.returncode == 0 and f"JupyterLab: runs already on port {port}" in again.stdout, again.stdout + again.stderr
    root.end_processes()  # the pod is stopped and started again
    restarted = root.run("bash", "/post_start.sh", user=user, **pod)
    assert restarted.returncode == 0, restarted.stdout + restarted.stderr
    assert f"up to date: {home}/.venvs/music-training" in restarted.stdout and "0 keys of PUBLIC_KEY added" in restarted.stdout
    assert "installing" not in restarted.stdout and f"JupyterLab: started on port {port}" in restarted.stdout
    assert (root.folder / home[1:] / ".ssh" / "authorized_keys").read_text() == f"{key}\n"

    ended = root.run("bash", "/workspace/music-training/scripts/run_pipeline.sh", "--profile", "tiny", "--only", "01", user=user, **pod)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (root.folder / "workspace/outputs/notebooks/tiny/01_setup.ipynb").is_file()
    assert not (root.folder / "workspace/music-training/outputs").exists()
    root.end_processes()
    shutil.rmtree(root.folder / home[1:] / ".venvs")
