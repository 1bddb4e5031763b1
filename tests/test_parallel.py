"""The process pool: order, errors, a bounded look-ahead, killed workers."""

import os
import signal

import pytest

from music_training import parallel
from music_training.errors import UserError


def _double(number: int) -> int:
    if number == 13:
        raise UserError("thirteen")
    return 2 * number


def _die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_map_processes_keeps_the_order_and_the_errors(workers):
    assert list(parallel.map_processes(_double, range(50, 100), workers)) == [2 * number for number in range(50, 100)]
    with pytest.raises(UserError, match="thirteen"):
        list(parallel.map_processes(_double, range(20), workers))
    assert list(parallel.map_processes(_double, [], workers)) == []


def test_map_processes_reads_only_a_little_ahead():
    read_items = []

    def items():
        for number in range(1000, 2000):
            read_items.append(number)
            yield number

    results = parallel.map_processes(_double, items(), 2)
    next(results)
    assert len(read_items) <= 2 * parallel.AHEAD + 1
    results.close()


def test_a_killed_worker_is_one_line():
    with pytest.raises(UserError, match="was killed"):
        list(parallel.map_processes(_die, range(3), 2))
