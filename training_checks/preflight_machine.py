"""The part of the preflight that looks at the machine: packages, programs, GPU, disk, and where the outputs lie.

Every function returns findings; what it asks the machine can be handed in, so that a test can show it another one.
``serious`` says that a real training is meant (a profile for a GPU): what is no fault in ``mini`` is one there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from music_training import files, machine
from training_checks.report import Finding

MODULES = ("numpy", "pandas", "torch", "torchaudio.functional", "soundfile", "soxr", "av", "transformers", "audiocraft", "matplotlib")
OPTIONAL = ("xformers.ops", "torchcodec")
SET_UP = "run bash scripts/startup_script.sh"
GIB = 2**30

# What the tools say, and what it means. The first pattern that is found counts.
KNOWN_MESSAGES = {
    r"numpy\.dtype size changed": (
        "a package was compiled for another numpy",
        "reinstall it: delete the virtual environment and " + SET_UP,
    ),
    r"pkg-config is required for building PyAV|Failed building wheel for av": (
        "there is no ready-made PyAV for this Python",
        "take Python 3.10, 3.11 or 3.12 (MUSIC_PYTHON) and " + SET_UP,
    ),
    r"No module named 'torch'.*(?:xformers|building)|(?:xformers|building).*No module named 'torch'": (
        "xformers was built before torch was there",
        "xformers is not needed: pip uninstall xformers",
    ),
    r"xFormers can't load C\+\+/CUDA extensions": ("xformers does not fit this torch", "it is not needed: pip uninstall xformers"),
    r"Weights only load failed.*|Unsupported global.*omegaconf": (
        "a checkpoint holds configuration objects, which torch 2.6 and later refuse",
        "load it through music_training.musicgen.models, which names the few classes that are safe",
    ),
    r"Could not load libtorchcodec": ("torchcodec does not fit this torch or ffmpeg", "it is not used: pip uninstall torchcodec"),
    r"libc10_cuda\.so|libcudart\.so": ("a package was built for CUDA, this torch was not", SET_UP + ", which takes that part out"),
    r"CUDA out of memory|OutOfMemoryError": (
        "the GPU's memory is too small for the batch",
        "a smaller batch_size (preflight --find-batch)",
    ),
    r"No space left on device|Disk quota exceeded": ("the disk is full", "free some space and run the same command again"),
    r"[Bb]us error": ("the container's shared memory is too small for the loaders", "workers=0, or a container with more --shm-size"),
    r"No module named '?([\w.]+)": ("a package is missing", SET_UP),
}


def explain(text: str) -> tuple[str, str, str] | None:
    """The line of a log that a known fault shows itself by, what it means and what to do; None where none is known."""
    for pattern, (meaning, todo) in KNOWN_MESSAGES.items():
        found = re.search(pattern, text)
        if found:
            start = text.rfind("\n", 0, found.start()) + 1
            line = text[start:].partition("\n")[0].strip()
            return line[:200], meaning, todo
    return None


def packages(modules: tuple[str, ...] = MODULES, optional: tuple[str, ...] = OPTIONAL) -> list[Finding]:
    """Import what training imports, in a process of its own: a broken installation shows itself only then."""
    program = (
        "import importlib, importlib.util, json, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "failed = {}\n"
        "for name in sys.argv[1].split():\n"
        "    try:\n"
        "        if name == 'audiocraft':\n"
        "            from music_training.musicgen import audiocraft_compat\n"
        "            audiocraft_compat.install()\n"
        "        importlib.import_module(name)\n"
        "    except BaseException as error:\n"
        "        failed[name] = f'{type(error).__name__}: {error}'\n"
        "for name in sys.argv[2].split():\n"
        "    try:\n"
        "        if importlib.util.find_spec(name.partition('.')[0]):\n"
        "            importlib.import_module(name)\n"
        "    except BaseException as error:\n"
        "        failed[name] = f'{type(error).__name__}: {error}'\n"
        "print('result', json.dumps(failed))\n"
    )
    paths = [str(files.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, " ".join(modules), " ".join(optional)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = []
    result = next((line for line in ended.stdout.splitlines() if line.startswith("result ")), None)
    failed = json.loads(result.removeprefix("result ")) if result else {"Python": f"ended with {ended.returncode}: {ended.stderr[-300:]}"}
    for name, message in failed.items():
        _, meaning, todo = explain(message) or ("", "it cannot be imported", SET_UP)
        found.append(
            Finding("warning" if name in optional else "fault", f"package {name}", f"{meaning} ({message.splitlines()[0][:200]})", todo)
        )
    noise = explain(ended.stderr) if not failed else None
    if noise:
        found.append(Finding("warning", "packages", f"{noise[1]} ({noise[0]})", noise[2]))
    return found


def versions(requirements: Path = files.REPOSITORY / "requirements.txt", torch: str | None = None) -> list[Finding]:
    """Compare what is installed with what the project was tried with."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    wrong = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        wanted = Requirement(text)
        version = machine.package_version(wanted.name)
        if version == "not installed":
            wrong.append(Finding("fault", f"package {wanted.name}", "not installed", SET_UP))
        elif not wanted.specifier.contains(Version(version), prereleases=True):
            wrong.append(Finding("warning", f"package {wanted.name}", f"{version}, tried with {wanted.specifier}", SET_UP))
    torch = torch or machine.package_version("torch")
    if torch == "not installed" or Version(torch) < Version("2.6"):
        wrong.append(Finding("fault", "package torch", f"{torch}; 2.6 or newer is needed", SET_UP))
    return wrong


def programs() -> list[Finding]:
    """ffmpeg decodes m4a and aac, and mp3 files that do not state their length."""
    if shutil.which("ffmpeg"):
        return []
    return [Finding("warning", "ffmpeg", "not found: m4a, aac and some mp3 files cannot be read", f"{SET_UP}, or apt-get install ffmpeg")]


def gpu(serious: bool, needed: int = 1, names: list[str] | None = None, cuda: int | None = None) -> list[Finding]:
    """Whether torch sees as many GPUs as processes are asked for; ``cuda``: how many it sees."""
    names = machine.gpus() if names is None else names
    if cuda is None:
        import torch

        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names and not cuda:
        todo = "take a pod image with torch 2.6 or newer (it is kept), or a newer driver"
        return [Finding("fault" if serious else "warning", "CUDA", f"there is a GPU ({names[0]}), but torch does not see it", todo)]
    if serious and not cuda:
        todo = "rent a machine with a GPU, or take the profile mini"
        return [Finding("fault", "CUDA", "not available; this profile's models train for months on a CPU", todo)]
    if serious and needed > cuda:
        return [Finding("fault", "GPUs", f"{needed} processes are asked for and there are {cuda} GPUs", f"give processes={cuda}")]
    return []


def disk(needed: int, entries: int = 0, root: Path | None = None, free: int | None = None, inodes: int | None = None) -> list[Finding]:
    """Whether ``needed`` bytes and ``entries`` files find room where the outputs lie."""
    root = root or files.outputs_root()
    while not root.exists():
        root = root.parent
    status = os.statvfs(root)
    free = status.f_bavail * status.f_frsize if free is None else free
    if inodes is None:
        inodes = status.f_favail if status.f_files else entries  # some file systems count no inodes and say 0
    found = []
    if free < needed:
        message = f"{free / 1e9:.1f} GB are free at {root}, about {needed / 1e9:.1f} GB are needed"
        found.append(Finding("fault", "disk", message, "make room, or set MUSIC_OUTPUTS to a larger volume"))
    if inodes < entries:
        message = f"{inodes} files can still be made at {root}, about {entries} are needed"
        found.append(Finding("fault", "inodes", message, "delete small files, or set MUSIC_OUTPUTS to another volume"))
    return found


def place(serious: bool, root: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Whether the outputs outlive the machine: not under a temporary folder, and on a pod not on the container's own disk."""
    root, environment = root or files.outputs_root(), os.environ if environment is None else environment
    if not serious:
        return []
    if any(root.is_relative_to(temporary) for temporary in ("/tmp", "/var/tmp", "/dev/shm")):
        return [Finding("fault", "outputs", f"{root} is lost when the machine stops", "set MUSIC_OUTPUTS to a folder on the volume")]
    if environment.get("RUNPOD_POD_ID"):
        parent = next((folder for folder in (root, *root.parents) if folder.exists()), root)
        if os.stat(parent).st_dev == os.stat("/").st_dev:
            message = f"{root} lies on the container's own disk, which is lost when the pod stops"
            return [Finding("fault", "outputs", message, "set MUSIC_OUTPUTS=/workspace/outputs (the volume)")]
    return []


def shared_memory(workers: int, free: int | None = None) -> list[Finding]:
    """Loader processes hand batches over in /dev/shm; containers often have 64 MB of it."""
    if not workers:
        return []
    if free is None:
        try:
            status = os.statvfs("/dev/shm")
        except OSError:
            return []
        free = status.f_bavail * status.f_frsize
    if free >= workers * 64e6:
        return []
    message = f"{free / 1e6:.0f} MB of /dev/shm for {workers} loader processes (their Bus error names no cause)"
    return [Finding("warning", "shared memory", message, "give workers=0, or start the container with --shm-size=8g")]


def leftovers(fix: bool = False) -> list[Finding]:
    """Temporary files of killed processes among the runs; ``fix`` removes them."""
    runs = files.outputs_root() / "training"
    left = [path for pattern in ("*/ckpt/.*.tmp", "forecast-*") for path in runs.glob(pattern) if _is_stale(path)]
    if not left:
        return []
    if fix:
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return [Finding("ok", "leftovers", f"removed {len(left)} temporary files of killed runs")]
    return [
        Finding(
            "note", "leftovers", f"{len(left)} temporary files of killed runs, such as {left[0].name}", "preflight.py --fix removes them"
        )
    ]


def _is_stale(path: Path) -> bool:
    """Whether the process whose number a temporary name ends with is gone; a name without one is left alone."""
    number = path.name.removesuffix(".tmp").rpartition(".")[2]
    return number.isdigit() and not Path("/proc", number).exists()
