"""What the machine at hand is: processor, memory, GPU, disk and the packages that matter, without loading torch.

Inside a container the kernel's own figures (``os.cpu_count``, ``/proc/meminfo``) are those of the whole host; what the
container may use stands in its cgroup.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from . import files

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

CGROUP = Path("/sys/fs/cgroup")
PACKAGES = ("torch", "torchaudio", "audiocraft", "transformers", "peft", "accelerate", "demucs", "numpy", "soundfile", "jupyterlab")
GIB = 2**30


def cpu_count(cgroup: Path = CGROUP) -> int:
    """Processors that this process may use: its affinity, limited by the quota of its cgroup (version 2 or 1)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _words(cgroup / "cpu.max") or [*_words(cgroup / "cpu/cpu.cfs_quota_us"), *_words(cgroup / "cpu/cpu.cfs_period_us")]
    if len(limit) == 2 and limit[0].isdigit():  # "max" or -1: no limit
        count = min(count, math.ceil(int(limit[0]) / int(limit[1])))
    return max(1, count)


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Memory that this process may use, in bytes: that of the machine, or its cgroup's limit where that is smaller."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for words in (_words(cgroup / "memory.max"), _words(cgroup / "memory/memory.limit_in_bytes")):
        if words and words[0].isdigit():
            limit = min(limit, int(words[0]))
    return limit


def disk(folder: Path | None = None) -> tuple[int, int]:
    """Free and total bytes of the disk that ``folder`` (default: the outputs root) is or will be on."""
    folder = folder or files.outputs_root()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def gpus() -> list[str]:
    """Name and memory of every GPU, as NVIDIA's own tool reports them."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def gpu_memory() -> list[tuple[int, int]]:
    """Memory in use and there is of every GPU, in MiB."""
    try:
        command = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return [tuple(int(word) for word in line.split(",")) for line in output.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):  # a GPU that does not say
        return []


def package_version(name: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe() -> pandas.DataFrame:
    """A table of what matters for training: one row for the machine's parts, one for each package."""
    import pandas

    free, total = disk()
    ffmpeg = shutil.which("ffmpeg")
    rows = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": "; ".join(gpus()) or "none (everything runs on the CPU)",
        "cpu": f"{cpu_count()} cores",
        "memory": f"{memory_limit() / GIB:.1f} GiB",
        "outputs": str(files.outputs_root()),
        "disk of outputs": f"{free / GIB:.0f} of {total / GIB:.0f} GiB free",
        "ffmpeg": _ffmpeg_version(ffmpeg) if ffmpeg else "missing: run scripts/startup_script.sh",
        **{name: package_version(name) for name in PACKAGES},
    }
    return pandas.DataFrame({"what": rows.keys(), "value": rows.values()}).set_index("what")


def draw() -> Figure:
    """Draw what is taken and free of the outputs' disk, and the memory that may be used, in GiB."""
    from matplotlib import pyplot

    free, total = disk()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 1.8), layout="constrained")
    left.barh(["disk of\noutputs"], [(total - free) / GIB], color="#b0b7c3", label="taken")
    left.barh(["disk of\noutputs"], [free / GIB], left=[(total - free) / GIB], color="#7fb685", label="free")
    right.barh(["memory"], [memory_limit() / GIB], color="#6fa3d0", label="may be used")
    for axes in (left, right):
        axes.set_xlabel("GiB")
        axes.legend(fontsize=8)
    pyplot.close(figure)  # the caller shows it, once
    return figure


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _ffmpeg_version(program: str) -> str:
    words = subprocess.run([program, "-version"], capture_output=True, text=True).stdout.split()
    return words[2] if len(words) > 2 else "unknown version"
