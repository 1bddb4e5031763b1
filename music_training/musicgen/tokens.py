"""The token cache: a data set encoded once by a codec, ``python -m music_training.musicgen.tokens --profile mini``.

Segments that follow each other in one track and one split are encoded as the one stretch of music that they are, so
that a language model can train on windows of any length. ``outputs/tokens/<dataset>/<codec>/`` holds shards
(safetensors, int16 ``[K, frames]`` for each stretch) and ``tokens.jsonl``: a row about the codec, then one a stretch. A
shard's name is a digest of the codec's weights, of the audio and of this module's version: what is there under its name
is not encoded again, and another codec has another folder.

A code depends on the audio of a few frames around it (:func:`reach`). Cut from a stretch, the codes of a window are
those of encoding the window by itself, except that many frames at either end: there a window encoded by itself sees
padding, the stretch sees the music. A codec with an LSTM remembers all its past; its pieces begin ``PAST`` seconds
early, which leaves differences that fade with the distance from a window's start.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .. import config, files, parallel, stages
from ..config import Settings
from ..errors import UserError, run_command
from ..library.manifests import egs_of, index_of, read_lines
from ..progress import Progress

if TYPE_CHECKING:
    import numpy
    import torch
    from audiocraft.models import CompressionModel

VERSION = 2
INDEX = "tokens.jsonl"
PIECE = 30.0  # seconds of a stretch that are encoded at once, so that a long one fits in memory
PAST = 5.0  # seconds before a piece that a codec with an unbounded memory hears first
SHARD_SECONDS, SHARDS = 120.0, 256  # at least so long, and at most so many
SERIAL_SECONDS = 3600.0  # less audio is encoded in this process: starting others takes longer


class TokenSettings(Settings):
    """How a data set is encoded; all but ``shifts`` changes nothing of what is written for one kind of device.

    ``workers`` None: one process on a GPU or for less than an hour of audio, else one a core. ``batch`` pieces of 30 s
    are encoded at once on a GPU. The training split is encoded ``shifts`` times.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = Field(None, ge=1)
    batch: int = Field(8, ge=1)
    shifts: int = Field(1, ge=1, le=64)


@dataclass(frozen=True)
class Stretch:
    """Audio files of one split that follow each other without a gap; lengths in samples, ``digests`` of their content."""

    split: str
    track: str
    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    digests: tuple[str, ...]
    sample_rate: int
    shifts: int = 1

    @property
    def seconds(self) -> float:
        return sum(self.lengths) / self.sample_rate * self.shifts


# Encoding


def encode(dataset: str, codec: str, scope: str, settings: TokenSettings | None = None, force: bool = False) -> stages.StageResult:
    """Encode every split of a data set; the result names the folder (``tokens``), its ``codec``, ``seconds`` and ``frames``.

    ``codec`` is whatever :func:`models.load_codec` takes. A stage, and a killed one keeps its finished shards.
    """
    settings = settings or TokenSettings()
    manifests = sorted(egs_of(dataset).glob("*/data.jsonl"))
    if not manifests:
        raise UserError(f"{egs_of(dataset)}: no manifests; run 03_segment_audio first")
    weights = [path for path in _weights_of(codec) if path.is_file()]
    index = [index_of(dataset)] if index_of(dataset).is_file() else []

    def make(draft: stages.Draft) -> stages.Made:
        return _make(dataset, codec, settings, draft.forced)

    params = {"dataset": dataset, "codec": files.relative(files.absolute(codec)) if files.absolute(codec).exists() else codec}
    params["shifts"] = settings.shifts
    return stages.run(
        "encode_tokens", make, scope=scope, params=params, inputs=[*manifests, *index, *weights], version=VERSION, force=force
    )


def _make(dataset: str, codec: str, settings: TokenSettings, forced: bool) -> stages.Made:
    import torch

    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model = _codec(codec, device)
    about = {**describe(model), "shifts": settings.shifts}
    folder = files.outputs_root() / "tokens" / dataset / (about["codec"] + (f"_{settings.shifts}" if settings.shifts > 1 else ""))
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    found = [replace(one, shifts=settings.shifts) if one.split == "train" else one for one in stretches(dataset)]
    rates = {stretch.sample_rate for stretch in found} - {model.sample_rate}
    if rates:
        raise UserError(f"{dataset}: its segments have {min(rates)} Hz, the codec {codec} has {model.sample_rate} Hz; segment again")
    shards = {name: group for name, group in divide(found, about)}
    todo = [
        {"codec": codec, "device": device, "batch": settings.batch if device == "cuda" else 1, "path": str(folder / name), "group": group}
        for name, group in shards.items()
        if forced or not (folder / name).is_file()
    ]
    seconds = sum(stretch.seconds for group in shards.values() for stretch in group)
    open_seconds = sum(stretch.seconds for job in todo for stretch in job["group"])
    workers = settings.workers or (1 if device == "cuda" or open_seconds < SERIAL_SECONDS else parallel.cores())
    with Progress(seconds, f"tokens of {dataset}", "s", done=seconds - open_seconds) as shown:
        for encoded in parallel.map_processes(_write_shard, todo, min(workers, len(todo))):
            shown.update(encoded)
    _codec.cache_clear()
    rows = [_row(name, number, stretch, about["hop"]) for name, group in shards.items() for number, stretch in enumerate(group)]
    for path in set(folder.glob("*.safetensors")) - {folder / name for name in shards}:
        path.unlink()  # of audio that is not in the data set any more
    index = files.write_text(folder / INDEX, "".join(json.dumps(row) + "\n" for row in [about, *rows]))
    frames = sum(row["frames"] for row in rows)
    result = {"tokens": files.relative(folder), "codec": about["codec"], "seconds": round(seconds, 1), "frames": frames}
    return stages.Made([index, *(folder / name for name in shards)], {**result, "stretches": len(rows), "shards": len(shards)})


def describe(codec: CompressionModel) -> dict[str, Any]:
    """What a reader has to know about a codec; ``codec`` is a digest of its structure and weights, ``reach`` as in :func:`reach`."""
    digest = hashlib.sha256(repr(codec).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    known = {"version": VERSION, "codec": digest.hexdigest()[:16], "sample_rate": codec.sample_rate, "reach": reach(codec)}
    hop = round(codec.sample_rate / codec.frame_rate)
    return {**known, "hop": hop, "codebooks": codec.num_codebooks, "cardinality": codec.cardinality}


def reach(codec: CompressionModel) -> list[int | None]:
    """How many frames before and after its own a code depends on, ``[before, after]``; None: on all the past (an LSTM).

    Found by differentiating a frame in the middle of some noise by the noise.
    """
    import torch

    hop, frames = round(codec.sample_rate / codec.frame_rate), 64
    encoder = codec.encoder if hasattr(codec, "encoder") else codec.model.encoder
    noise = torch.randn(1, codec.channels, frames * hop, generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(codec.parameters()).device).requires_grad_()
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN's LSTM has no gradient outside of training
        encoder(noise)[..., frames // 2].sum().backward()
    touched = noise.grad.abs().sum(dim=(0, 1)).nonzero().flatten()
    before = math.ceil((frames // 2 * hop - int(touched[0])) / hop)
    after = math.ceil((int(touched[-1]) + 1 - (frames // 2 + 1) * hop) / hop)
    unbounded = any(isinstance(module, torch.nn.RNNBase) for module in encoder.modules())
    return [None if unbounded else max(0, before), max(0, after)]


def stretches(dataset: str) -> list[Stretch]:
    """The stretches of all splits, in a fixed order; without an index of segments every file is one by itself."""
    index = {row["path"]: row for row in read_lines(index_of(dataset))} if index_of(dataset).is_file() else {}
    found = []
    for manifest in sorted(egs_of(dataset).glob("*/data.jsonl")):
        rows = [index.get(line["path"]) or _unknown(line) for line in read_lines(manifest)]
        rows.sort(key=lambda row: (row["track"], row["start"], row["path"]))
        joined: list[list[dict[str, Any]]] = []
        for row in rows:
            if joined and _follows(joined[-1][-1], row):
                joined[-1].append(row)
            else:
                joined.append([row])
        for group in joined:
            lists = (tuple(row[key] for row in group) for key in ("path", "frames", "sha256"))
            found.append(Stretch(manifest.parent.name, group[0]["track"], *lists, group[0]["sample_rate"]))
    return found


def divide(found: list[Stretch], about: dict[str, Any]) -> Iterator[tuple[str, list[Stretch]]]:
    """Shards by name: a track's shard depends on its name alone, so that a new track leaves most shards as they are."""
    count = min(SHARDS, 2 ** int(math.log2(max(1.0, sum(stretch.seconds for stretch in found) / SHARD_SECONDS))))
    buckets: dict[int, list[Stretch]] = {}
    for stretch in found:
        buckets.setdefault(int(hashlib.sha256(stretch.track.encode()).hexdigest(), 16) % count, []).append(stretch)
    for number, group in sorted(buckets.items()):
        content = [VERSION, about["codec"], PIECE, PAST, [asdict(stretch) for stretch in group]]
        yield f"{number:03d}_{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}.safetensors", group


def encode_stretch(codec: CompressionModel, paths: list[str], lengths: list[int]) -> torch.Tensor:
    """Codes ``[K, frames]`` of the files ``paths`` (relative to the outputs root) as one stretch; whole frames only."""
    return _encode(codec, [(paths, lengths, 0)], 1)[0]


def _encode(codec: CompressionModel, group: list[tuple[list[str], list[int], int]], batch: int) -> list[torch.Tensor]:
    """Codes of several stretches, each begun so many samples late, in pieces; ``batch`` pieces of one length at a time."""
    import torch

    hop, rate = round(codec.sample_rate / codec.frame_rate), codec.sample_rate
    before, after = reach(codec)
    before = math.ceil(PAST * rate / hop) if before is None else before
    size = math.ceil(PIECE * rate / hop)
    pieces = []
    for number, (_, lengths, late) in enumerate(group):
        known = sum(lengths) - late
        for first in range(0, known // hop, size):
            last = min(first + size, known // hop)
            pieces.append((number, first, last, max(0, first - before) * hop, min((last + after) * hop, known)))
    found = [torch.empty(codec.num_codebooks, (sum(lengths) - late) // hop, dtype=torch.int16) for _, lengths, late in group]
    device = next(codec.parameters()).device
    for _, same in itertools.groupby(sorted(pieces, key=lambda piece: piece[4] - piece[3]), key=lambda piece: piece[4] - piece[3]):
        same = list(same)
        for part in (same[start : start + batch] for start in range(0, len(same), batch)):
            audio = torch.stack([torch.from_numpy(_read(*group[number], start, stop)) for number, _, _, start, stop in part])
            with torch.no_grad():
                codes, scale = codec.encode(audio[:, None].expand(-1, codec.channels, -1).to(device))
            if scale is not None:
                raise UserError("this codec normalises levels; MusicGen's tokens cannot hold that: choose another codec")
            for row, (number, first, last, start, _) in zip(codes.cpu().to(torch.int16), part, strict=True):
                found[number][:, first:last] = row[:, first - start // hop : last - start // hop]
    return found


def _read(paths: list[str], lengths: list[int], late: int, start: int, stop: int) -> numpy.ndarray:
    """Samples ``[stop - start]``, counted from ``late`` on, of files that follow each other, as the mean of their channels."""
    import numpy
    import soundfile

    start, stop = start + late, stop + late
    parts, offset = [], 0
    for path, length in zip(paths, lengths, strict=True):
        first, last = max(start - offset, 0), min(stop - offset, length)
        if first < last:
            samples, _ = soundfile.read(files.absolute(path), dtype="float32", start=first, stop=last, always_2d=True)
            if len(samples) != last - first:
                raise UserError(f"{files.absolute(path)}: shorter than its manifest says; run 03_segment_audio again")
            if not numpy.isfinite(samples).all():  # a codec would make tokens of them like any others
                raise UserError(
                    f"{files.absolute(path)}: holds samples that are no numbers; training_checks/preflight.py --fix leaves it out"
                )
            parts.append(samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0])
        offset += length
    return numpy.concatenate(parts)


def _write_shard(job: dict[str, Any]) -> float:
    """Encode a shard and put it in its place; returns its seconds of audio."""
    import torch
    from safetensors.torch import save_file

    if job["device"] == "cpu":
        torch.set_num_threads(1)
    codec = _codec(job["codec"], job["device"])
    group = job["group"]
    hop = round(codec.sample_rate / codec.frame_rate)
    every = [(number, shift) for number, stretch in enumerate(group) for shift in range(stretch.shifts)]
    asked = [(list(group[number].paths), list(group[number].lengths), shift * hop // group[number].shifts) for number, shift in every]
    codes = _encode(codec, asked, job["batch"])
    with files.atomic(job["path"]) as temporary:
        save_file({_name(*one): tensor for one, tensor in zip(every, codes, strict=True)}, temporary)
    return sum(stretch.seconds for stretch in group)


def _name(number: int, shift: int) -> str:
    """What the codes of a stretch are called in their shard."""
    return f"{number}+{shift}" if shift else str(number)


@functools.lru_cache(maxsize=1)
def _codec(reference: str, device: str) -> CompressionModel:
    from .models import load_codec

    return load_codec(reference, device)


def _row(shard: str, number: int, stretch: Stretch, hop: int) -> dict[str, Any]:
    known = {"shard": shard, "number": number, "shifts": stretch.shifts, "split": stretch.split, "frames": sum(stretch.lengths) // hop}
    return {**known, "paths": stretch.paths, "lengths": stretch.lengths}


def _unknown(line: dict[str, Any]) -> dict[str, Any]:
    """What is to be known of a file that no index of segments describes."""
    import soundfile

    path = files.absolute(line["path"])
    about = soundfile.info(path)
    known = {"path": line["path"], "track": line["path"], "start": 0.0, "sha256": files.digest(path)}
    return {**known, "frames": about.frames, "sample_rate": about.samplerate}


def _follows(before: dict[str, Any], row: dict[str, Any]) -> bool:
    rate = row["sample_rate"]
    end = round(before["start"] * rate) + before["frames"]
    return (before["track"], before["sample_rate"]) == (row["track"], rate) and end == round(row["start"] * rate)


def _weights_of(codec: str) -> list[Path]:
    from .models import WEIGHTS

    path = files.absolute(codec)
    return [path, path / WEIGHTS, path / "compression_state_dict.bin"]


# Reading


class Tokens:
    """A token cache on disk, read through the operating system's memory map.

    ``about`` is what :func:`describe` says. Raises UserError where there is none, or one of another version.
    """

    def __init__(self, folder: Path | str):
        self.folder = files.absolute(folder)
        if not (self.folder / INDEX).is_file():
            raise UserError(f"{self.folder}: no token cache; make it with python -m music_training.musicgen.tokens")
        self.about, *self.rows = read_lines(self.folder / INDEX)
        if self.about["version"] != VERSION:
            raise UserError(f"{self.folder}: written by another version; run python -m music_training.musicgen.tokens again")
        self._place = {path: number for number, row in enumerate(self.rows) for path in row["paths"]}
        self._shards: dict[str, Any] = {}

    def frames(self, path: str) -> int:
        """Frames of the stretch that a file belongs to; UserError for a file that was not encoded."""
        return self._row(path)["frames"]

    def window(self, path: str, position: float, frames: int) -> tuple[torch.Tensor, str, float]:
        """A window ``[K, at most frames]`` (int16) of the stretch that ``path`` belongs to, at ``position`` in [0, 1].

        With it come the file in which the window's middle lies and the second of that file at which the window starts
        (negative: before it).
        """
        row, hop = self._row(path), self.about["hop"]
        room = max(0, row["frames"] - frames)
        start, shift = divmod(min(int(position * (room + 1) * row["shifts"]), (room + 1) * row["shifts"] - 1), row["shifts"])
        late = shift * hop // row["shifts"]
        start = max(0, min(start, (sum(row["lengths"]) - late) // hop - frames))  # begun later it may be a frame shorter
        codes = self.stretch(row, start, start + frames, shift)
        begin = start * hop + late
        middle, offset = begin + codes.shape[1] // 2 * hop, 0
        number = 0
        while middle >= offset + row["lengths"][number]:
            offset += row["lengths"][number]
            number += 1
        return codes, row["paths"][number], (begin - offset) / self.about["sample_rate"]

    def stretch(self, row: dict[str, Any], start: int = 0, stop: int | None = None, shift: int = 0) -> torch.Tensor:
        """Codes ``[K, stop - start]`` (int16) of a row of the index, begun ``shift`` parts of a frame late."""
        from safetensors import safe_open

        shard = self._shards.get(row["shard"])
        if shard is None:
            shard = self._shards[row["shard"]] = safe_open(self.folder / row["shard"], framework="pt")
        return shard.get_slice(_name(row["number"], shift))[:, start:stop]

    def split(self, name: str) -> torch.Tensor:
        """The codes of all stretches of a split ``[K, frames]`` (int64), one after the other."""
        import torch

        return torch.cat([self.stretch(row) for row in self.rows if row["split"] == name], dim=1).long()

    def frequencies(self, split: str) -> torch.Tensor:
        """How often each code occurs in a split, as :func:`frequencies`."""
        rows = (row for row in self.rows if row["split"] == split)
        return frequencies((self.stretch(row) for row in rows), self.about["cardinality"])

    def _row(self, path: str) -> dict[str, Any]:
        if path not in self._place:
            raise UserError(f"{path}: not in the token cache {self.folder}; run python -m music_training.musicgen.tokens again")
        return self.rows[self._place[path]]


def frequencies(parts: Iterable[torch.Tensor], cardinality: int) -> torch.Tensor:
    """How often each code occurs in tokens ``[K, T]``, as ``[K, cardinality]`` whose rows sum to 1; one is added to every count."""
    import torch

    counts = sum(torch.stack([book.bincount(minlength=cardinality) for book in codes.long()]) for codes in parts) + 1.0
    return counts / counts.sum(dim=1, keepdim=True)


def main() -> None:
    import argparse

    from .. import profiles

    parser = argparse.ArgumentParser(prog="python -m music_training.musicgen.tokens", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--audio-dir", default="", help="the folder that was segmented in place of the profile's data set")
    parser.add_argument("--codec", default="", help="a weights folder, a file, or a hub name (default: the codec of 04)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one on a GPU, else one a core)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--shifts", type=int, default=1, help="times that the training split is encoded, each begun a part of a frame later"
    )
    parser.add_argument("--force", action="store_true", help="encode again what is there")
    arguments = parser.parse_args()
    dataset, scope = (find(arguments.profile, arguments.audio_dir) for find in (profiles.dataset, profiles.scope))
    codec = arguments.codec or stages.latest("train_codec", scope, "04_train_codec")["codec"]
    given = {"device": arguments.device, "workers": arguments.workers, "shifts": arguments.shifts}
    settings = config.load(TokenSettings, given, name="command line")
    print(json.dumps(encode(dataset, codec, scope, settings, force=arguments.force).result, indent=2))


if __name__ == "__main__":
    run_command(main)
