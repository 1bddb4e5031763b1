"""Reads audio files: decode, mean of the channels, resample. Nothing else in the project opens one.

A ladder, each rung usable alone: :func:`open_stream` decodes a file in blocks ``[n, C]`` that stay in the processor's
cache, :func:`mono` turns them into resampled mono blocks ``[n]``, :func:`read` joins those to one array. Mono is the
*mean* of the channels (ffmpeg's ``-ac 1`` is 3 dB louder on float samples). libsndfile decodes; what it cannot read
(m4a, aac), and mp3 files that do not state their length truthfully, go through ffmpeg.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..errors import UserError

SUFFIXES = frozenset([".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".au", ".caf", ".sph", ".w64"])
BLOCK = 65536  # frames of a block: half a megabyte in stereo
QUALITY = "HQ"  # soxr's: a pass band to 0.913 of the Nyquist frequency, what lies above it rejected by over 100 dB
UNKNOWN_SIZE = 0xFFFF0000  # a WAV that was written to a pipe states (about) the largest size there is


class DecodeError(Exception):
    """Audio that cannot be decoded, or not to its end; the message is the decoder's."""


class _Forward(soundfile.SoundFile):
    """A file read once from its start to its end.

    soundfile seeks after every block of a seekable file; in mp3 that costs up to a third of the decoding time, and in
    one without a table of contents it lands elsewhere.
    """

    def seekable(self) -> bool:
        return False


@dataclass
class Stream:
    """An open audio file: ``blocks`` yields float32 ``[n, C]``, each valid until the next one is asked for.

    ``declared`` is the length that the file's header states, in frames; None where it states none that can be trusted.
    """

    sample_rate: int
    channels: int
    declared: int | None
    blocks: Iterator[np.ndarray]


@contextlib.contextmanager
def open_stream(path: Path | str) -> Iterator[Stream]:
    """Open a file for decoding. Raises DecodeError, here or from ``blocks``, and FileNotFoundError.

    The declared length is the header's for flac, ogg and opus; for WAV the size of the data chunk, also where the file
    is shorter; for mp3 the Xing/Info header's if there is one and it does not say less than the file holds (libsndfile
    would stop there); for m4a the container's. An mp3 or aac without one declares nothing.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(2, "no such file", path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_quiet())
            sound = stack.enter_context(_Forward(path))
        except soundfile.LibsndfileError as error:
            yield stack.enter_context(_ffmpeg(path, why=error.error_string))
            return
        if sound.format == "MP3" and not _mp3_states_length(path):
            yield stack.enter_context(_ffmpeg(path, why="an mp3 without a length"))
            return
        yield Stream(sound.samplerate, sound.channels, _declared(sound), _sound_blocks(sound))


def mono(stream: Stream, sample_rate: int, meter: Callable[[np.ndarray, np.ndarray], None] | None = None) -> Iterator[np.ndarray]:
    """Yield the mean of the channels at ``sample_rate`` Hz, float32 ``[n]``; blocks differ in length and may be empty.

    The result does not depend on the block length and equals resampling in one piece. ``meter(block, mean)`` sees each
    decoded block ``[n, C]`` with its mean ``[n]``, before resampling.
    """
    same = stream.sample_rate == sample_rate
    resampler = None if same else soxr.ResampleStream(stream.sample_rate, sample_rate, 1, dtype="float32", quality=QUALITY)
    buffer = None if same else np.empty(BLOCK, np.float32)
    for block in stream.blocks:
        mean = average(block, out=buffer)
        if meter:
            meter(block, mean)
        yield mean if resampler is None else resampler.resample_chunk(mean)
    if resampler is not None:
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def average(block: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The mean of the channels, ``[n, C] -> [n]``, in a new array or at the start of ``out``.

    Columns are added one to another: ``block.mean(1)`` reduces along the short axis and takes many times as long.
    """
    mean = np.empty(len(block), np.float32) if out is None else out[: len(block)]
    if block.shape[1] == 1:
        mean[:] = block[:, 0]
        return mean
    np.add(block[:, 0], block[:, 1], out=mean)
    for channel in range(2, block.shape[1]):
        mean += block[:, channel]
    mean *= np.float32(1 / block.shape[1])
    return mean


def read(path: Path | str, sample_rate: int | None = None, *, channels: bool = False) -> tuple[np.ndarray, int]:
    """Read a whole file: ``(float32 [T] of the mean, sample rate in Hz)``; with ``channels`` ``[C, T]``.

    ``sample_rate`` None keeps the file's own. Raises UserError for a file that cannot be decoded.
    """
    try:
        with open_stream(path) as stream:
            rate = sample_rate or stream.sample_rate
            if not channels:
                return np.concatenate([np.empty(0, np.float32), *mono(stream, rate)]), rate
            x = np.concatenate([np.empty((0, stream.channels), np.float32), *(block.copy() for block in stream.blocks)])
            x = x if rate == stream.sample_rate else soxr.resample(x, stream.sample_rate, rate, QUALITY)
            return np.ascontiguousarray(x.T), rate
    except DecodeError as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from None


# libsndfile


def _sound_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    buffer = np.empty((BLOCK, sound.channels), np.float32)
    try:
        while len(block := sound.read(out=buffer)):
            yield block
    except soundfile.LibsndfileError as error:
        raise DecodeError(error.error_string or f"damaged {sound.format} data") from None


def _declared(sound: soundfile.SoundFile) -> int | None:
    if sound.frames <= 0 or sound.frames >= 1 << 62:  # a stream of unknown length
        return None
    size = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if size and 0 < int(size[2]) < int(size[1]) < UNKNOWN_SIZE:
        return sound.frames * int(size[1]) // int(size[2])
    return sound.frames


def _mp3_states_length(path: str) -> bool:
    """Whether the first frame of an mp3 is a Xing or Info header with a number of frames, and no audio follows its end.

    Without one libsndfile guesses the length from the first bit rate and silently stops there; the header of the first
    of several files put together ends it as early.
    """
    with open(path, "rb") as stream:
        head, start = stream.read(10), 0
        if head[:3] == b"ID3" and len(head) == 10:
            start = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        stream.seek(start)
        frame = stream.read(512)
    found = re.search(b"Xing|Info", frame)
    if not found:
        return False
    fields = frame[found.end() : found.end() + 12]
    flags, frames, size = (int.from_bytes(fields[i : i + 4], "big") for i in (0, 4, 8))
    if not flags & 1 or not frames:
        return False
    return not flags & 2 or os.path.getsize(path) - start <= 1.02 * size + 65536  # tags and pictures may follow


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what mpg123, inside libsndfile, writes to the standard error: it names no file; its errors are raised anyway."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# ffmpeg


@contextlib.contextmanager
def _ffmpeg(path: str, why: str) -> Iterator[Stream]:
    import ffmpeg

    url = f"file:{path}"  # a name may begin with a dash or hold what looks like a protocol
    try:
        about = ffmpeg.probe(url, select_streams="a:0")
        stream = about["streams"][0]
        rate, channels = int(stream["sample_rate"]), int(stream["channels"])
    except FileNotFoundError:
        raise UserError(f"{path}: needs ffmpeg, which is not installed (apt-get install ffmpeg)") from None
    except (ffmpeg.Error, LookupError, ValueError):
        raise DecodeError(why or "not an audio file") from None
    seconds = about["format"].get("duration") if "mp4" in about["format"]["format_name"] else None
    declared = int(float(seconds) * rate) if seconds else None
    command = ffmpeg.input(url)["a:0"].output("pipe:", format="f32le", acodec="pcm_f32le").global_args("-nostdin", "-v", "error").compile()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield Stream(rate, channels, declared, _pipe_blocks(process, channels))
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _pipe_blocks(process: subprocess.Popen, channels: int) -> Iterator[np.ndarray]:
    buffer = bytearray(BLOCK * channels * 4)
    while filled := _fill(process.stdout, memoryview(buffer)):
        yield np.frombuffer(buffer, np.float32, filled // (4 * channels) * channels).reshape(-1, channels)
    if process.wait() != 0:
        raise DecodeError(f"ffmpeg ended with {process.returncode}")


def _fill(pipe, view: memoryview) -> int:
    filled = 0
    while filled < len(view) and (count := pipe.readinto(view[filled:])):
        filled += count
    return filled
