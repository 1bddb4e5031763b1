"""Near-duplicates: the same recording in another encode, gain or cut, found by an audio fingerprint.

A fingerprint is a 32-bit word per 46 ms: the signs of the energy differences between 33 neighbouring bands (300 to
2000 Hz) and successive frames, after Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002).
Recordings that share a few exact words at one offset are candidates; the share of different bits over their whole
overlap decides, so that two tracks with a common sample or intro are not taken for one. benchmarks/near_duplicates.py
measures precision, recall and cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .. import files, parallel, stages
from ..errors import UserError
from ..progress import progress
from . import audio, catalogue

RATE = 5512  # Hz
WINDOW = 2048  # samples, 0.37 s
HOP = 256  # samples, 46 ms
BANDS = 33
LOW, HIGH = 300.0, 2000.0  # Hz
QUIET = 1e-5  # RMS of a frame below which its word is 0 and never compared
NEIGHBOURS = 24  # equal words that are looked at after each
VOTES = 2  # exact words at one offset that make a candidate
ERROR = 0.31  # share of different bits up to which two recordings are one; unrelated ones lie near 0.5
OVERLAP = 0.85  # of the shorter recording, at least
SHORTEST = 4.0  # seconds of overlap, at least
BLOCK = 4096  # frames that are transformed at a time
VERSION = 1


@dataclass(frozen=True)
class Match:
    """Two recordings that are one: ``second`` begins ``offset`` seconds into ``first``; ``error`` is the share of different bits."""

    first: str
    second: str
    offset: float
    error: float


def fingerprint(samples: np.ndarray) -> np.ndarray:
    """The words (uint32 ``[n]``) of mono audio ``[T]`` at 5512 Hz: ``n = (T - 2048) // 256``, 0 for a quiet frame."""
    count = (len(samples) - WINDOW) // HOP + 1
    if count < 2:
        return np.zeros(0, np.uint32)
    window = np.hanning(WINDOW).astype(np.float32)
    edges = np.geomspace(LOW, HIGH, BANDS + 1) * WINDOW / RATE
    places = np.round(edges).astype(int)
    energies = np.empty((count, BANDS), np.float32)
    loud = np.empty(count, bool)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    for start in range(0, count, BLOCK):
        block = frames[start : start + BLOCK]
        power = np.abs(np.fft.rfft(block * window, axis=1)[:, : places[-1]]) ** 2
        energies[start : start + BLOCK] = np.add.reduceat(power, places[:-1], axis=1)
        loud[start : start + BLOCK] = np.mean(np.square(block), axis=1) > QUIET**2
    change = np.diff(np.diff(energies, axis=1), axis=0) < 0
    words = np.packbits(change, axis=1).view(">u4")[:, 0].astype(np.uint32)
    return np.where(loud[1:], words, 0).astype(np.uint32)


def of_file(path: Path | str) -> np.ndarray:
    """The fingerprint of an audio file; empty where it cannot be decoded (the segments' table of rejects says why)."""
    try:
        samples, _ = audio.read(path, RATE)
    except UserError:
        return np.zeros(0, np.uint32)
    return fingerprint(samples)


def find(prints: Mapping[str, np.ndarray]) -> list[Match]:
    """All pairs of recordings that are one, in the order of ``prints``."""
    names = list(prints)
    arrays = [np.asarray(prints[name], np.uint32) for name in names]
    found = []
    for first, second, offset in _candidates(arrays):
        best = min((_error(arrays[first], arrays[second], offset + shift), abs(shift), shift) for shift in (0, -1, 1))
        if best[0] <= ERROR:
            found.append(Match(names[first], names[second], (offset + best[2]) * HOP / RATE, round(best[0], 4)))
    return _best(found)


def near(prints: Mapping[str, np.ndarray], matches: Iterable[Match] | None = None) -> dict[str, str]:
    """Each recording that is another's double, and the first of ``prints`` that it is a double of."""
    order = {name: place for place, name in enumerate(prints)}
    head = {name: name for name in prints}

    def root(name: str) -> str:
        while head[name] != name:
            head[name] = name = head[head[name]]
        return name

    for match in find(prints) if matches is None else matches:
        one, other = sorted((root(match.first), root(match.second)), key=order.__getitem__)
        head[other] = one
    return {name: root(name) for name in prints if root(name) != name}


def _candidates(arrays: list[np.ndarray]) -> Iterable[tuple[int, int, int]]:
    """Pairs with at least VOTES equal words at one offset (a step apart counts as the same): (first, second, offset)."""
    if not arrays:
        return []
    words = np.concatenate(arrays)
    owner = np.repeat(np.arange(len(arrays), dtype=np.int64), [len(array) for array in arrays])
    place = np.concatenate([np.arange(len(array), dtype=np.int64) for array in arrays])
    kept = words != 0
    words, owner, place = words[kept], owner[kept], place[kept]
    order = np.argsort(words, kind="stable")
    words, owner, place = words[order], owner[order], place[order]
    span = int(place.max(initial=0)) + 2
    keys = []
    for step in range(1, NEIGHBOURS + 1):
        here = np.flatnonzero((words[step:] == words[:-step]) & (owner[step:] != owner[:-step]))
        one, other = here, here + step  # the sort is stable: one's owner comes first
        offset = place[one] - place[other]
        keys.append((owner[one] * len(arrays) + owner[other]) * (2 * span) + offset + span)
    key, votes = np.unique(np.concatenate(keys), return_counts=True)
    together = votes.copy()
    neighbours = np.flatnonzero(np.diff(key) == 1)
    together[neighbours] += votes[neighbours + 1]
    key = key[together >= VOTES]
    pairs, offsets = np.divmod(key, 2 * span)
    return zip((pairs // len(arrays)).tolist(), (pairs % len(arrays)).tolist(), (offsets - span).tolist(), strict=True)


def _error(first: np.ndarray, second: np.ndarray, offset: int) -> float:
    """The share of different bits where ``second`` is laid ``offset`` words into ``first``; 1 where the overlap is too short."""
    start, end = max(0, offset), min(len(first), len(second) + offset)
    a, b = first[start:end], second[start - offset : end - offset]
    sound = (a != 0) & (b != 0)
    count = int(sound.sum())
    shortest = min(np.count_nonzero(first), np.count_nonzero(second))
    if end - start < OVERLAP * min(len(first), len(second)) or count < max(OVERLAP * shortest, SHORTEST * RATE / HOP):
        return 1.0
    return float(_ONES[(a[sound] ^ b[sound]).view(np.uint16)].sum() / (32 * count))


_ONES = np.array([bin(number).count("1") for number in range(1 << 16)], np.uint8)


def _best(matches: list[Match]) -> list[Match]:
    """The best offset of each pair."""
    best: dict[tuple[str, str], Match] = {}
    for match in matches:
        pair = (match.first, match.second)
        if pair not in best or match.error < best[pair].error:
            best[pair] = match
    return list(best.values())


# A catalogue's fingerprints


def path_of(dataset: str) -> Path:
    """Where the fingerprints of a data set lie."""
    return catalogue.path_of(dataset).with_name("fingerprints.npz")


def make(dataset: str, scope: str, workers: int = 0, scheduler: str = "") -> stages.StageResult:
    """Fingerprint every track of a catalogue, by processes or by the workers of a dask scheduler."""
    source = catalogue.path_of(dataset)

    def work(_: stages.Draft) -> stages.Made:
        tracks = catalogue.read(source)
        paths = [str(files.absolute(track.path)) for track in tracks]
        spread = partial(parallel.map_dask, scheduler=scheduler) if scheduler else _processes(workers, len(paths))
        prints = list(progress(spread(of_file, paths), "fingerprints", total=len(paths), unit="track"))
        write(path_of(dataset), {track.id: words for track, words in zip(tracks, prints, strict=True)})
        return stages.Made([path_of(dataset)], {"tracks": len(tracks), "without": sum(not len(words) for words in prints)})

    return stages.run("fingerprint", work, scope=scope, params={"dataset": dataset}, inputs=[source], version=VERSION)


def _processes(workers: int, count: int):
    return partial(parallel.map_processes, workers=min(workers or parallel.cores(), max(1, count)))


def write(path: Path, prints: Mapping[str, np.ndarray]) -> Path:
    """Write fingerprints as arrays (names, lengths, words)."""
    lengths = np.array([len(words) for words in prints.values()], np.int64)
    words = np.concatenate([np.zeros(0, np.uint32), *prints.values()])
    with files.atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, names=np.array(list(prints), dtype=np.str_), lengths=lengths, words=words)
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`write` wrote."""
    if not path.is_file():
        raise UserError(f"{path}: no fingerprints; make them first (fingerprints.make)")
    with np.load(path, allow_pickle=False) as content:
        pieces = np.split(content["words"], np.cumsum(content["lengths"])[:-1])
        return dict(zip(content["names"].tolist(), pieces, strict=True))
