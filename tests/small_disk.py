"""A disk that is small enough to be full."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a small disk and gives its folder and a way to make it larger; needs root."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", *options, "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")

    def resize(size: int) -> None:
        mount("-o", f"{'remount,' if os.path.ismount(folder) else ''}size={size}")

    yield folder, resize
    subprocess.run(["umount", "--lazy", str(folder)], check=False)
