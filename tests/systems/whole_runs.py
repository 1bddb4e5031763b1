"""The pipeline as a command, and what it leaves in an outputs folder."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from music_training import files


def environment(outputs: Path, repository: Path = files.REPOSITORY) -> dict[str, str]:
    return {**os.environ, "MUSIC_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}


def start(outputs: Path, *arguments: str, profile: str = "tiny", repository: Path = files.REPOSITORY) -> subprocess.Popen:
    """Start the pipeline of a checkout in a process group of its own."""
    command = [sys.executable, str(repository / "scripts" / "run_notebooks.py"), "--profile", profile, *arguments]
    known = environment(outputs, repository)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known, start_new_session=True)


def pipeline(outputs: Path, *arguments: str, **how) -> subprocess.CompletedProcess:
    """Run the pipeline to its end."""
    process = start(outputs, *arguments, **how)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def states(output: str) -> dict[str, str]:
    """The state of every notebook in the summary table."""
    table = output[output.index("notebook  ") :].splitlines()[1:]
    return {line[:24].strip(): line[24:36].strip() for line in table if line[:2].isdigit()}


def listing(root: Path) -> dict[str, tuple[int, int, int]]:
    """Size, mtime and inode of everything below a folder, except its logs."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if name.parts[0] != "logs":
            status = path.lstat()
            found[name.as_posix()] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def contents(root: Path, *folders: str) -> dict[str, str]:
    """The digest of every file below some folders of an outputs root."""
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): files.digest(path) for path in paths}


def temporary_names(root: Path) -> list[str]:
    """What a killed process left half-made, outside the logs."""
    return [name for name in listing(root) if name.endswith(".tmp")]


@dataclass
class Spine:
    """An outputs folder with a whole run of profile tiny, what the command said, and how long it took (s)."""

    outputs: Path
    ended: subprocess.CompletedProcess
    seconds: float
