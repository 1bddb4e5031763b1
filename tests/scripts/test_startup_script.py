"""The set-up script: its messages, its fast second call, and (long) a whole installation."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from music_training import files

SCRIPT = "scripts/startup_script.sh"
INPUTS = ("requirements.txt", "requirements-nodeps.txt", "requirements-dev.txt", "pyproject.toml", SCRIPT)
POD = "scripts/pod_services.sh"


@pytest.fixture
def repository(tmp_path):
    """What the set-up reads, in a folder of its own."""
    folder = tmp_path / "repository"
    for name in (*INPUTS, POD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.REPOSITORY / name, folder / name)
    return folder


def run(repository: Path, *arguments: str, **environment: str):
    known = {name: value for name, value in os.environ.items() if not name.startswith("MUSIC_")}
    known |= {"MUSIC_PYTHON": sys._base_executable, **environment}
    command = ["bash", str(repository / SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={k: v for k, v in known.items() if v}, timeout=1800)


def only_line(ended, code: int = 1) -> str:
    assert ended.returncode == code, ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    return line


def program(folder: Path, name: str, text: str) -> Path:
    path = files.write_text(folder / name, f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_help_does_nothing(repository):
    ended = run(repository, "--help")
    assert ended.returncode == 0 and ended.stdout.startswith("usage: ") and not (repository / ".venv").exists()


def test_an_unknown_option_is_one_line(repository):
    assert "unknown option '--devel'" in only_line(run(repository, "--devel"))


def test_where_it_lies(repository, tmp_path):
    assert run(repository, "--where").stdout == f"{repository}/.venv\n"
    assert run(repository, "--where", MUSIC_VENV=str(tmp_path / "v")).stdout == f"{tmp_path}/v\n"


@pytest.mark.parametrize("kind, network", [("nfs", True), ("fuse", True), ("fuseblk", False), ("ext2/ext3", False), ("overlayfs", False)])
def test_a_network_volume_gets_its_environment_on_the_local_disk(repository, tmp_path, kind, network):
    program(tmp_path / "bin", "stat", f"echo {kind}")
    where = run(repository, "--where", PATH=f"{tmp_path}/bin:{os.environ['PATH']}", HOME=str(tmp_path)).stdout.strip()
    assert where == (f"{tmp_path}/.venvs/music-training" if network else f"{repository}/.venv")


def test_a_wrong_python_is_one_line(repository, tmp_path):
    old = program(tmp_path, "old", '[ "$1" = --version ] && echo "Python 3.8.10" || echo 3.8')
    assert f"MUSIC_PYTHON={old} is Python 3.8.10; Python 3.10, 3.11 or 3.12 is needed" in only_line(run(repository, MUSIC_PYTHON=str(old)))
    assert "MUSIC_PYTHON=/none: no such program" in only_line(run(repository, MUSIC_PYTHON="/none"))


def test_too_little_disk_is_one_line(repository):
    line = only_line(run(repository, MUSIC_SETUP_GB="9000000"))
    assert "GB free at" in line and "9000000 GB needed" in line
    assert not (repository / ".venv").exists()


def test_a_foreign_folder_is_left_alone(repository, tmp_path):
    kept = files.write_text(tmp_path / "mine" / "thesis.txt", "x")
    assert "exists and is not a virtual environment" in only_line(run(repository, MUSIC_VENV=str(kept.parent)))
    assert kept.read_text() == "x"


def test_no_network_is_one_line_and_no_stamp(repository, tmp_path):
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": ""}
    ended = run(repository, MUSIC_SETUP_GB="0", **nothing)
    assert only_line(ended).startswith("set-up: error: no network: pip cannot reach its package index; check")
    assert "Python 3." in ended.stdout and not list((repository / ".venv").glob(".setup-*"))
    # What was left half made is taken up again, also where Python is gone from it.
    (repository / ".venv" / "bin" / "python").unlink()
    ended = run(repository, MUSIC_SETUP_GB="0", **nothing)
    assert "left half made" in ended.stdout and "no network" in only_line(ended)


@pytest.fixture
def without_root(tmp_path):
    """A PATH on which nobody is root, without ffmpeg and rsync."""
    folder = tmp_path / "bin"
    program(folder, "id", "echo 1000")
    for name in (
        "bash",
        "dirname",
        "readlink",
        "mktemp",
        "rm",
        "cat",
        "grep",
        "sha256sum",
        "stat",
        "ssh",
        "awk",
        "df",
        "du",
        "cut",
        "ls",
        "mkdir",
        "flock",
    ):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def test_missing_programs_are_named_where_nobody_is_root(repository, without_root):
    line = only_line(run(repository, PATH=str(without_root), MUSIC_SETUP_GB="0"))
    assert "missing: ffmpeg rsync" in line and "ask for root: apt-get install ffmpeg rsync" in line


# What pip cannot install


FAKE = """case "$*" in
  *print\\(sys.executable\\)*) echo "$0" ;;
  "-m venv "*)
    for folder in "$@"; do :; done
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    printf 'home = /usr/bin\\nversion = 3.11.7\\ninclude-system-site-packages = false\\n' >"$folder/pyvenv.cfg" ;;
  -) cat >/dev/null ;;
  "-m pip install -q"* | "-m pip --version" | "-m pip download"*) ;;
  "-m pip install"*) cat {said}; exit {code} ;;
  *) exec {python} "$@" ;;
esac"""


@pytest.fixture
def saying(repository, tmp_path):
    """Runs the set-up with a Python whose pip says ``text`` and ends with ``code``; the only line of errors."""

    def run_it(text: str, code: int = 1) -> str:
        said = files.write_text(tmp_path / "said", text + "\n")
        fake = FAKE.replace("{said}", str(said)).replace("{code}", str(code)).replace("{python}", sys._base_executable)
        return only_line(run(repository, MUSIC_PYTHON=str(program(tmp_path, "python-fake", fake)), MUSIC_SETUP_GB="0"))

    return run_it


@pytest.mark.parametrize(
    ("said", "means", "way_out"),
    [
        (
            "  ERROR: Failed building wheel for av",
            "no ready-made PyAV for Python 3.11 on ",
            "take Python 3.10, 3.11 or 3.12 (MUSIC_PYTHON)",
        ),
        ("pkg-config is required for building PyAV", "no ready-made PyAV", "pkg-config and ffmpeg's development files"),
        ("ERROR: Failed to build installable wheels for some pyproject.toml based projects (av)", "no ready-made PyAV", "Python 3.10"),
        ("error: command 'gcc' failed: No such file or directory", "no working C compiler", "apt-get install build-essential"),
        ("error: [Errno 2] No such file or directory: 'gcc'", "no working C compiler", "build-essential"),
        (
            "x.c:3: fatal error: Python.h: No such file or directory\nerror: command '/usr/bin/gcc' failed with exit code 1",
            "headers",
            "-dev",
        ),
        ("ERROR: Package 'x' requires a different Python: 3.11.7 not in '>=3.13'", "does not take Python 3.11", "(MUSIC_PYTHON)"),
        ("ERROR: Could not find a version that satisfies the requirement flashy", "index has none of it for Python 3.11", "PIP_INDEX_URL"),
        ("ERROR: No matching distribution found for torch==2.13.0", "index has none of it for Python 3.11", "take Python 3.11"),
        (
            "ERROR: Cannot install a\n  these conflicts have no matching distributions available for your environment:",
            "has none of it",
            "mirror",
        ),
        ("ERROR: Cannot install a and b because these package versions have conflicting dependencies.", "does not go with", "MUSIC_PYTHON"),
        ("ModuleNotFoundError: No module named 'torch'", "wants torch while it is built", "remove what pip.conf or PIP_* add"),
        ("ValueError: numpy.dtype size changed, may indicate binary incompatibility", "another numpy", "delete "),
        ("ERROR: HTTP error 403 Client Error: Forbidden for url", "the package index refuses", "PIP_INDEX_URL"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificate is not accepted", "ca-certificates"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError", "no network", "check the connection"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full (", "TMPDIR"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", "cannot be written", "must belong"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "downloaded is broken", "pip cache purge"),
    ],
)
def test_what_pip_cannot_install_is_one_line_with_the_way_out(saying, said, means, way_out):
    line = saying(f"Collecting it\n{said}\nand more")
    assert line.startswith("set-up: error: pip could not install the packages of requirements.txt: ")
    assert means in line and way_out in line and "run again" in line and "%" not in line


@pytest.mark.parametrize(("code", "words"), [(137, "pip was ended by signal 9 while"), (1, "ERROR: never seen before (all of it: ")])
def test_a_pip_that_is_killed_and_one_that_says_something_new(saying, code, words):
    assert words in saying("ERROR: never seen before", code)


@pytest.mark.timeout(180)
def test_a_pyav_that_would_have_to_be_built_is_told_of_by_the_real_pip(repository, tmp_path):
    """A source package that behaves as PyAV's does without pkg-config, offered by an index without anything ready-made."""
    offered = tmp_path / "offered"
    backend = "import sys\n\n\ndef get_requires_for_build_wheel(settings=None):\n"
    backend += "    print('pkg-config is required for building PyAV')\n    sys.exit(1)\n"
    about = "Metadata-Version: 2.1\nName: av\nVersion: 18.1.0\n"
    content = {"PKG-INFO": about, "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n'}
    for name, text in {**content, "b.py": backend}.items():
        files.write_text(offered / "av-18.1.0" / name, text)
    subprocess.run(["tar", "-czf", "av-18.1.0.tar.gz", "av-18.1.0"], cwd=offered, check=True)
    with zipfile.ZipFile(offered / "torch-2.13.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch-2.13.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
        wheel.writestr("torch-2.13.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("torch-2.13.0.dist-info/RECORD", "")
    find = "import ensurepip, pathlib; print(*pathlib.Path(ensurepip.__file__).parent.glob('_bundled/pip-*.whl'))"
    bundled = subprocess.run([sys._base_executable, "-c", find], capture_output=True, text=True, check=True).stdout.split()
    shutil.copy([*bundled, *map(str, Path("/usr/share/python-wheels").glob("pip-*.whl"))][0], offered)
    files.write_text(repository / "requirements.txt", "av>=12.3,<19\n")
    alone = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(offered), "MUSIC_SETUP_GB": "0"}
    line = only_line(run(repository, **alone))
    assert "there is no ready-made PyAV for Python 3." in line and "take Python 3.10, 3.11 or 3.12" in line
    assert not list((repository / ".venv").glob(".setup-*"))


# A machine on which nothing can be installed


def path_with(folder: Path, **programs: str) -> str:
    for name, text in programs.items():
        program(folder, name, text)
    return f"{folder}:{os.environ['PATH']}"


def test_a_system_without_torch_is_one_line(repository, tmp_path):
    def on(**programs):
        return only_line(run(repository, PATH=path_with(tmp_path / "bin", **programs)))

    assert "this is Darwin; Linux is needed" in on(uname='[ "$1" = -s ] && echo Darwin || echo arm64')
    assert "this is a armv7l; there is no torch for it" in on(uname='[ "$1" = -s ] && echo Linux || echo armv7l')
    line = on(uname='[ "$1" = -s ] && echo Linux || echo x86_64', ldd="echo 'musl libc (x86_64)' >&2; exit 1")
    assert "the C library musl" in line and "Debian or Ubuntu" in line
    assert not (repository / ".venv").exists()


def test_too_few_inodes_and_places_that_cannot_be_written_to_are_one_line(repository, tmp_path):
    full = path_with(
        tmp_path / "bin", df='case "$1" in -Pi) echo; echo "x 1000 900 100 90% /" ;; *) echo; echo "x 9 9 900000000 1% /" ;; esac'
    )
    line = only_line(run(repository, PATH=full))
    assert "only 100 more files can be made at" in line and "about 80000 are needed" in line
    assert "cannot write to /proc/nothing; name another place in MUSIC_VENV" in only_line(run(repository, MUSIC_VENV="/proc/nothing/venv"))
    assert "no file can be made in /proc/nothing" in only_line(run(repository, TMPDIR="/proc/nothing"))


def test_programs_that_may_not_be_started_where_the_environment_lies_are_one_line(repository, tmp_path):
    broken = FAKE.replace('cp "$0" "$folder/bin/python"', 'echo "#!/none" >"$folder/bin/python"').replace("{python}", sys._base_executable)
    line = only_line(run(repository, MUSIC_PYTHON=str(program(tmp_path, "python-fake", broken)), MUSIC_SETUP_GB="0"))
    assert "cannot be started (is that file system mounted with noexec?)" in line


def stamped(repository: Path) -> Path:
    """A virtual environment that looks as if the set-up had ended."""
    venv = repository / ".venv"
    program(venv / "bin", "python", "exit 0")
    files.write_text(venv / "pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\n")
    state = hashlib.sha256(f"run\n{repository}\n{sys._base_executable}\n".encode() + b"home = /usr/bin\nversion = 3.11.7\n")
    for name in INPUTS:
        state.update((repository / name).read_bytes())
    files.write_text(venv / ".setup-run", f"{state.hexdigest()}  -\n")
    return venv


def test_the_second_call_starts_no_python_and_changes_nothing(repository):
    venv = stamped(repository)
    program(venv / "bin", "python", "touch $0.started")
    ended = run(repository)
    assert (ended.returncode, ended.stdout) == (0, f"set-up: up to date: {venv}\n"), ended.stderr
    assert sorted(os.listdir(venv / "bin")) == ["python"]


@pytest.mark.parametrize("changed", INPUTS)
def test_a_change_sets_up_again(repository, changed):
    stamped(repository)
    with open(repository / changed, "a") as stream:
        stream.write("# changed\n")
    assert "GB needed" in only_line(run(repository, MUSIC_SETUP_GB="9000000"))


# On a pod


@pytest.fixture
def pod(repository, tmp_path):
    """A finished set-up, a volume, a home, a server at the ssh port; gives the environment of such a pod."""
    venv = stamped(repository)
    (tmp_path / "home").mkdir()
    (tmp_path / "volume").mkdir()
    ssh = socket.create_server(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    # Instead of Python: notes how it was called and with which token, and listens as JupyterLab would.
    listen = f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); time.sleep(20)"
    text = f'echo "$@ token=$JUPYTER_TOKEN outputs=$MUSIC_OUTPUTS" >> {tmp_path}/calls\n'
    text += f'case "$2" in jupyterlab) exec {sys.executable} -c "{listen}" ;; esac'
    program(venv / "bin", "python", text)
    home = {"HOME": str(tmp_path / "home"), "MUSIC_VOLUME": str(tmp_path / "volume"), "MUSIC_JUPYTER_PORT": port}
    home["MUSIC_SSH_PORT"] = str(ssh.getsockname()[1])
    yield {**home, "RUNPOD_POD_ID": "abc", "HF_HOME": "", "PIP_CACHE_DIR": "", "TORCH_HOME": "", "MUSIC_VENV": str(venv)}
    ssh.close()


KEYS = "ssh-ed25519 AAAA me@laptop\nssh-rsa BBBB\r\nrm -rf /\n"


def test_a_pod_gets_keys_an_environment_and_jupyter_once(repository, tmp_path, pod):
    home = tmp_path / "home"
    pod |= {"PUBLIC_KEY": KEYS, "JUPYTER_PASSWORD": "pass word$"}
    (home / ".ssh").mkdir()
    files.write_text(home / ".ssh" / "authorized_keys", "ssh-rsa OLD")  # no line end
    first = run(repository, "--pod", **pod)
    assert first.returncode == 0, first.stdout + first.stderr
    for words in (
        f"volume: {tmp_path}/volume",
        f"data and outputs: {tmp_path}/volume/outputs",
        "2 keys of PUBLIC_KEY added",
        "no public key",
    ):
        assert words in first.stdout
    assert "JupyterLab: started" in first.stdout and "pass word" not in first.stdout
    keys = home / ".ssh" / "authorized_keys"
    assert keys.read_text() == "ssh-rsa OLD\nssh-ed25519 AAAA me@laptop\nssh-rsa BBBB\n"
    assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    call = next(line for line in (tmp_path / "calls").read_text().splitlines() if "jupyterlab" in line)
    assert call.endswith(f"token=pass word$ outputs={tmp_path}/volume/outputs") and call.count("pass word") == 1
    assert "--ip 0.0.0.0" in call and f"https://abc-{pod['MUSIC_JUPYTER_PORT']}.proxy.runpod.net" in call
    shell = subprocess.run(["bash", "-c", '. "$HOME/.bashrc"; echo "$MUSIC_OUTPUTS $MUSIC_VENV"'], capture_output=True, text=True, env=pod)
    assert shell.stdout == f"{tmp_path}/volume/outputs {repository}/.venv\n"

    before = {path: path.read_text() for path in (keys, home / ".bashrc", home / ".music-training.env")}
    second = run(repository, "--pod", **pod)
    assert second.returncode == 0 and "0 keys of PUBLIC_KEY added" in second.stdout
    assert f"runs already on port {pod['MUSIC_JUPYTER_PORT']}" in second.stdout
    assert {path: path.read_text() for path in before} == before


@pytest.mark.parametrize(
    ("script", "called"),
    [("run_pipeline.sh", "scripts/run_notebooks.py --profile tiny"), ("supervise.sh", "-m music_training.supervision --profile tiny")],
)
def test_what_is_started_knows_where_things_lie(repository, tmp_path, pod, script, called):
    shutil.copy(files.REPOSITORY / "scripts" / script, repository / "scripts" / script)
    pod = {**os.environ, **pod, "MUSIC_PYTHON": sys._base_executable, "MUSIC_VENV": "", "MUSIC_OUTPUTS": ""}
    command = ["bash", repository / "scripts" / script, "--profile", "tiny"]
    ended = subprocess.run(command, capture_output=True, text=True, env={name: value for name, value in pod.items() if value})
    assert ended.returncode == 0, ended.stderr
    line = (tmp_path / "calls").read_text().splitlines()[-1]
    assert called in line and line.endswith(f"outputs={tmp_path}/volume/outputs")


def test_without_a_password_jupyter_is_for_this_machine_only(repository, tmp_path, pod):
    ended = run(repository, "--pod", JUPYTER_PASSWORD="", **pod)
    assert ended.returncode == 0, ended.stderr
    assert "of this machine only" in ended.stdout and "PUBLIC_KEY is not set" in ended.stdout
    assert "--ip 127.0.0.1" in (tmp_path / "calls").read_text() and "allow_origin" not in (tmp_path / "calls").read_text()


def test_a_jupyter_that_does_not_start_is_one_line(repository, tmp_path, pod):
    program(repository / ".venv" / "bin", "python", 'case "$2" in jupyterlab) echo "no module jupyterlab"; exit 1 ;; esac')
    assert "JupyterLab does not start: no module jupyterlab" in only_line(run(repository, "--pod", **pod))


@pytest.mark.parametrize("how", ["link", "copy"])
def test_it_works_as_post_start(repository, tmp_path, pod, how):
    start = tmp_path / "post_start.sh"
    if how == "link":
        start.symlink_to(repository / SCRIPT)
    else:
        shutil.copy(repository / SCRIPT, start)
        missing = subprocess.run(["bash", start], capture_output=True, text=True, env={**os.environ, **pod})
        assert "the repository is not there; name it in MUSIC_REPOSITORY" in only_line(missing)
    environment = {**os.environ, **pod, "MUSIC_REPOSITORY": str(repository), "MUSIC_PYTHON": sys._base_executable}
    ended = subprocess.run(["bash", start], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0 and "JupyterLab: started" in ended.stdout, ended.stdout + ended.stderr


def variables(ended) -> dict[str, str]:
    return dict(line.removeprefix("export ").split("=", 1) for line in ended.stdout.splitlines())


def test_what_is_small_and_often_read_goes_to_the_local_disk(repository, tmp_path, pod):
    volume = tmp_path / "volume"
    pod["MUSIC_VENV"] = ""
    assert variables(run(repository, "--environment", **pod)) == {
        "MUSIC_VENV": f"{repository}/.venv",
        "MUSIC_OUTPUTS": f"{volume}/outputs",
    }
    # The image puts caches on the volume, and the repository lies there.
    there = shutil.copytree(repository, volume / "music-training")
    pod["HF_HOME"] = f"{volume}/.cache/huggingface"
    found = variables(run(there, "--environment", **pod))
    assert found["HF_HOME"] == f"{tmp_path}/home/.cache/huggingface" and found["MUSIC_VENV"] == f"{tmp_path}/home/.venvs/music-training"
    # A home on the volume is no local disk either.
    found = variables(run(there, "--environment", **{**pod, "HOME": str(volume)}))
    local = f"/var/tmp/music-training-{os.getuid()}"
    assert found["MUSIC_VENV"] == f"{local}/.venvs/music-training" and found["PIP_CACHE_DIR"] == f"{local}/.cache/pip"
    # What a person says counts.
    said = {"MUSIC_CACHE": f"{volume}/cache", "MUSIC_OUTPUTS": "/data/out", "MUSIC_VENV": "/venv"}
    found = variables(run(there, "--environment", **{**pod, **said}))
    assert (found["HF_HOME"], found["MUSIC_OUTPUTS"], found["MUSIC_VENV"]) == (f"{volume}/cache/huggingface", "/data/out", "/venv")
    assert "no folder that this user can write to" in only_line(run(repository, "--pod", **{**pod, "MUSIC_VOLUME": "/none"}))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_whole_set_up_interrupted_continued_and_used(repository):
    (repository / "music_training").mkdir()
    files.write_text(repository / "music_training" / "__init__.py", "")
    (repository / "README.md").write_text("x")
    environment = {**os.environ, "MUSIC_PYTHON": sys._base_executable}
    environment.pop("MUSIC_VENV", None)
    command = ["bash", str(repository / SCRIPT)]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command, env=environment, timeout=25, capture_output=True)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    python = repository / ".venv" / "bin" / "python"
    for module in ("torchaudio.transforms", "transformers", "peft", "music_training", "symusic", "onnxruntime", "flashy"):
        fresh = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, cwd="/")
        assert fresh.returncode == 0, f"{module}: {fresh.stderr[-2000:]}"
    kernels = subprocess.run([python, "-m", "jupyter", "kernelspec", "list", "--json"], capture_output=True, text=True, cwd="/").stdout
    assert '"music-training"' in kernels
    assert "up to date" in run(repository).stdout
