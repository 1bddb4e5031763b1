"""Shared fixtures: a private outputs folder for every test, and the real data where it is present."""

import os
import signal
from pathlib import Path

import pytest
from namespaces import pods  # noqa: F401 (a fixture)
from small_disk import small_disk  # noqa: F401 (a fixture)

from music_training import files

# A shell starts its background jobs with SIGINT ignored, and their children inherit that: the tests that send one to
# a child need it to arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch) -> Path:
    """Everything a test writes lies in its own folder."""
    root = tmp_path / "outputs"
    monkeypatch.setenv("MUSIC_OUTPUTS", str(root))
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real audio and annotations."""
    folder = Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real")
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set REAL_DATA_DIR")
    return folder.resolve()
