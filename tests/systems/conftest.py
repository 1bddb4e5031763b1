"""One undisturbed run of profile tiny that the tests share."""

import time

import pytest
from whole_runs import Spine, pipeline


@pytest.fixture(scope="session")
def spine(tmp_path_factory) -> Spine:
    outputs = tmp_path_factory.mktemp("spine") / "outputs"
    begin = time.monotonic()
    ended = pipeline(outputs)
    return Spine(outputs, ended, time.monotonic() - begin)
