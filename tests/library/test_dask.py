"""Segments by the workers of a dask scheduler: the same bytes as by processes, also when a worker is killed."""

import os
import signal
import threading
import time

import pytest
import soundfile
from test_fingerprints import noise_song

from music_training import files, parallel
from music_training.errors import UserError
from music_training.library import catalogue, fingerprints, segments

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50) as running:
        yield running


def _slowly(number):
    time.sleep(0.05)
    return number * number


def _die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def make_catalogue(count=6):
    folder = files.outputs_root() / "audio"
    folder.mkdir(parents=True)
    tracks = []
    for number in range(count):
        path = folder / f"{number}.wav"
        soundfile.write(path, noise_song(number, 11.0), 44100)
        tracks.append(catalogue.Track(f"t{number}", files.relative(path), "x", f"a{number}"))
    catalogue.write(catalogue.path_of("d"), tracks)


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_segments_and_fingerprints_are_the_same_bytes(cluster):
    make_catalogue()
    settings = segments.SegmentSettings(segment_seconds=5, workers=1)
    segments.segment("d", "s", settings)
    fingerprints.make("d", "s", workers=1)
    here, prints = tree(files.outputs_root() / "segments"), fingerprints.path_of("d").read_bytes()
    segments.segment("d", "s", settings, cluster.scheduler_address, force=True)
    fingerprints.path_of("d").unlink()
    fingerprints.make("d", "s", scheduler=cluster.scheduler_address)
    assert tree(files.outputs_root() / "segments") == here
    assert fingerprints.path_of("d").read_bytes() == prints


def test_order_errors_and_no_scheduler(cluster, monkeypatch):
    monkeypatch.setattr(parallel, "DASK_PATIENCE", 1.0)
    assert list(parallel.map_dask(_slowly, range(40), cluster.scheduler_address)) == [n * n for n in range(40)]
    with pytest.raises(UserError, match="no answer"):
        list(parallel.map_dask(_slowly, [1], "tcp://127.0.0.1:1"))


@pytest.mark.long
def test_a_killed_worker_loses_nothing(cluster):
    address = cluster.scheduler_address
    client = distributed.Client(address, set_as_default=False)
    victim = next(iter(client.run(os.getpid).values()))

    def kill():
        time.sleep(0.6)
        os.kill(victim, signal.SIGKILL)

    threading.Thread(target=kill).start()
    assert list(parallel.map_dask(_slowly, range(100), address)) == [n * n for n in range(100)]
    client.close()
    with pytest.raises(UserError, match="run it again"):
        list(parallel.map_dask(_die, [1], address))


@pytest.mark.long
def test_segments_are_the_same_bytes_when_a_worker_is_killed_on_the_way(cluster):
    make_catalogue(40)
    settings = segments.SegmentSettings(segment_seconds=5, workers=1)
    segments.segment("d", "s", settings)
    folder = files.outputs_root() / "segments"
    here = tree(folder)
    client = distributed.Client(cluster.scheduler_address, set_as_default=False)
    victim = next(iter(client.run(os.getpid).values()))
    client.close()

    def kill():
        while sum(path.suffix == ".wav" for path in (folder / "d" / ".staging.tmp").glob("*")) == 0:
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    segments.segment("d", "s", settings, cluster.scheduler_address, force=True)
    killer.join(timeout=60)
    assert not killer.is_alive()
    assert tree(folder) == here
