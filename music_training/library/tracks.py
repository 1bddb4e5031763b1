"""One track, from its file to its segments: decode, measure, judge, cut, write.

:func:`segment_track` is the unit of parallel work: plain values in, plain values out. Memory stays flat: a track is
decoded in blocks, and of one longer than ``KEPT_SECONDS`` nothing is kept, it is decoded a second time to be cut (its
peak, which decides the gain, is known only at its end).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from . import audio, duplicates

KEPT_SECONDS = 600.0  # 77 MB at 32 kHz
FULL_SCALE = 32768.0


def segment_track(job: dict[str, Any]) -> dict[str, Any]:
    """Write the segments of one track and return its row: ``segments`` and ``rejects``, ``seconds``, ``gain``, ``sha256``.

    ``sha256`` (of the decoded, converted audio) is empty for a track that is not used.
    """
    settings = job["settings"]
    meter = _Meter()
    try:
        with np.errstate(all="ignore"):  # what is not finite is found and rejected below
            kept = meter.listen(job["file"], settings["sample_rate"])
        failure = None
    except (audio.DecodeError, FileNotFoundError, PermissionError) as error:
        kept, failure = None, error
    row = {
        "track": job["track"],
        "artist": job["artist"],
        "source": job["source"],
        "seconds": round(meter.decoded / meter.rate, 6) if meter.rate else 0.0,
        "gain": 1.0,
        "sha256": "",
        "segments": [],
        "rejects": [],
    }
    reason, figures = judge(meter, settings, failure)
    if reason:
        row["rejects"].append(_reject(job, reason, figures, seconds=row["seconds"]))
        return row
    row["gain"] = 1.0 if meter.peak <= 1.0 else (FULL_SCALE - 1) / FULL_SCALE / meter.peak
    size = round(settings["segment_seconds"] * settings["sample_rate"])
    if kept is None:
        with audio.open_stream(job["file"]) as stream:
            _cut(job, row, _pieces(audio.mono(stream, settings["sample_rate"]), size), size)
    else:
        _cut(job, row, (kept[start : start + size] for start in range(0, len(kept), size)), size)
    return row


@functools.lru_cache(maxsize=1)
def _room(size: int) -> np.ndarray:
    """The memory of a process for the track in hand: touched once, where new memory for every track would cost a tenth."""
    return np.empty(size, np.float32)


class _Meter:
    """The figures by which a track is judged, gathered block by block."""

    def __init__(self) -> None:
        self.rate = self.decoded = self.frames = 0
        self.declared: int | None = None
        self.channel_power = self.mean_power = self.total = self.peak = 0.0

    def listen(self, path: str, sample_rate: int) -> np.ndarray | None:
        """Decode and convert a file; returns the mono audio ``[T]`` (until the next call), or None where it is too long to keep."""
        room = _room(int(KEPT_SECONDS * sample_rate))
        with audio.open_stream(path) as stream:
            self.rate, self.declared = stream.sample_rate, stream.declared
            for block in audio.mono(stream, sample_rate, self._channels):
                if not len(block):
                    continue
                start, self.frames = self.frames, self.frames + len(block)
                if self.frames <= len(room):
                    room[start : self.frames] = block
                self.total += float(block.sum())
                self.peak = max(self.peak, float(block.max()), -float(block.min()))
        return room[: self.frames] if self.frames <= len(room) else None

    def _channels(self, block: np.ndarray, mean: np.ndarray) -> None:
        self.decoded += len(mean)
        self.mean_power += _power(mean)
        self.channel_power += _power(block.reshape(-1)) / block.shape[1]


def judge(meter: _Meter, settings: dict[str, Any], failure: Exception | None = None) -> tuple[str, dict[str, Any]]:
    """Why a track cannot be used (empty: it can), with the figures that say so.

    Truncated: less than ``truncated_share`` of the declared length was decoded and over half a second is missing (a
    decoder may drop its delay), or decoding failed on the way.
    """
    if failure is not None and not meter.decoded:
        return "undecodable", {"error": str(failure)}
    declared, decoded = (meter.declared or 0) / meter.rate, meter.decoded / meter.rate
    lengths = {"decoded_s": round(decoded, 3), "declared_s": round(declared, 3)}
    if failure is not None:
        return "truncated", {**lengths, "error": str(failure)}
    if decoded < settings["truncated_share"] * declared and declared - decoded > 0.5:
        return "truncated", lengths
    if not math.isfinite(meter.mean_power + meter.channel_power):
        return "not finite", {}
    if round(meter.frames / settings["sample_rate"], 4) < settings["keep_remainder"] * settings["segment_seconds"]:
        return "too short", {"seconds": round(decoded, 3)}
    level = _db(meter.mean_power / meter.decoded)
    channels = _db(meter.channel_power / meter.decoded)
    cancelled = _db(meter.mean_power / meter.channel_power) if meter.channel_power else 0.0
    if channels >= settings["silence_db"] and cancelled < settings["antiphase_db"]:
        return "anti-phase", {"mean_against_channels_db": cancelled, "channels_db": channels}
    if level < settings["silence_db"]:
        return "silent", {"rms_db": level}
    offset = meter.total / meter.frames
    if abs(offset) > settings["dc_offset"]:
        return "dc", {"offset": round(offset, 4), "rms_db": level}
    return "", {}


def _cut(job: dict[str, Any], row: dict[str, Any], pieces: Iterable[np.ndarray], size: int) -> None:
    """Write the pieces (changed in place) that make segments, put them in their places, and complete the row."""
    settings, rate = job["settings"], job["settings"]["sample_rate"]
    place = Path(job["folder"]) / "audio" / hashlib.sha256(job["track"].encode()).hexdigest()[:2]
    staging = Path(job["folder"]) / ".staging.tmp"
    digests, written = [], []
    for number, samples in enumerate(pieces):
        start = round(number * size / rate, 6)
        np.multiply(samples, np.float32(row["gain"] * FULL_SCALE), out=samples)
        rms = math.sqrt(_power(samples) / len(samples)) / FULL_SCALE
        np.rint(samples, out=samples)
        np.minimum(samples, FULL_SCALE - 1, out=samples)  # +1.0 itself has no int16
        pcm = samples.astype("<i2")
        digests.append(duplicates.digest(pcm))
        seconds = round(len(pcm) / rate, 6)
        if len(pcm) < settings["keep_remainder"] * size:
            row["rejects"].append(_reject(job, "remainder", {}, start=start, seconds=seconds))
            continue
        if _db(rms * rms) < settings["silence_db"]:
            row["rejects"].append(_reject(job, "silent", {"rms_db": _db(rms * rms)}, start=start, seconds=seconds))
            continue
        name = f"{job['track']}_{number:04d}"
        _write_audio(staging / f"{name}.{settings['format']}", pcm, rate)
        sidecar = {**job["sidecar"], "name": name, "duration": seconds, "sample_rate": rate, "file_extension": settings["format"]}
        with open(staging / f"{name}.json", "w", encoding="utf-8") as stream:
            stream.write(json.dumps(sidecar, ensure_ascii=False))
        path = place / f"{name}.{settings['format']}"
        written += [path.with_suffix(".json"), path]
        row["segments"].append(
            {
                "path": os.path.relpath(path, job["root"]),
                "track": job["track"],
                "artist": job["artist"],
                "start": start,
                "duration": seconds,
                "frames": len(pcm),
                "sample_rate": rate,
                "peak": round(max(int(pcm.max()), -int(pcm.min())) / FULL_SCALE, 6),
                "rms": round(rms, 6),
                "sha256": digests[-1],
            }
        )
    place.mkdir(parents=True, exist_ok=True)
    for path in written:
        os.replace(staging / path.name, path)
    row["sha256"] = duplicates.joined_digest(digests)


def _pieces(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield consecutive pieces of ``size`` samples in one reused buffer; the last may be shorter."""
    buffer, filled = np.empty(size, np.float32), 0
    for block in blocks:
        while len(block):
            taken = min(size - filled, len(block))
            buffer[filled : filled + taken] = block[:taken]
            filled, block = filled + taken, block[taken:]
            if filled == size:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _write_audio(path: Path, pcm: np.ndarray, rate: int) -> None:
    if path.suffix != ".wav":
        soundfile.write(path, pcm, rate, subtype="PCM_16")
        return
    count = pcm.nbytes  # the canonical header of 44 bytes: one channel, 16 bits
    header = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 36 + count, b"WAVEfmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", count)
    with open(path, "wb", buffering=0) as stream:
        stream.write(header)
        stream.write(pcm)


def _reject(job: dict[str, Any], reason: str, figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"reason": reason, "path": job["source"], "track": job["track"], "artist": job["artist"], "figures": figures, **more}


def _power(x: np.ndarray) -> float:
    """The sum of squares; not by BLAS, whose result depends on its number of threads."""
    return float(np.einsum("i,i->", x, x))


def _db(power: float) -> float:
    return round(10 * math.log10(max(power, 1e-20)), 2)
