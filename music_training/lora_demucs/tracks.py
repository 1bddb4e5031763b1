"""Tracks with stems: from a folder ``train|valid/<track>/<stem>.wav`` or a library, at the rate that a model hears.

What is known of each file (rate, channels, frames) is kept in ``outputs/cache/stems/files.json`` with its size and
time of change, so that a changed file is read anew and an unchanged one is not. Files at other rates are converted
once, into the same folder.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import soundfile

from .. import config, files
from ..errors import UserError
from ..library import audio, catalogue
from .config import LoraDemucsSettings

CACHE = "cache/stems"
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class StemTrack:
    """A track: its stems by name as files of one rate, and the number of frames that all of them have."""

    id: str
    artist: str
    stems: dict[str, Path]
    frames: int

    def read(self, start: int = 0, frames: int = -1, sources: Sequence[str] | None = None) -> numpy.ndarray:
        """Stems from frame ``start`` on, float32 ``[S, C, n]``."""
        frames = self.frames - start if frames < 0 else frames
        names = self.stems if sources is None else sources
        return numpy.stack([soundfile.read(self.stems[name], frames, start, dtype="float32", always_2d=True)[0].T for name in names])


def load(settings: LoraDemucsSettings, sample_rate: int, channels: int) -> tuple[list[StemTrack], list[StemTrack]]:
    """Training and validation tracks with the sources of ``settings``; UserError names what is missing."""
    groups = _groups(settings)
    where = settings.dataset or settings.dset.wav
    for split in SPLITS:
        if not groups[split]:
            raise UserError(f"{where}: no track to {'train on' if split == 'train' else 'validate with'}")
    train, valid = (_opened(groups[split], settings, sample_rate, channels) for split in SPLITS)
    return train, valid


def judged(settings: LoraDemucsSettings, sample_rate: int, channels: int) -> list[StemTrack]:
    """The tracks that an evaluation is on: those kept for nothing else (``test_split``, a folder ``test/``), or those of validation."""
    groups = _groups(settings)
    return _opened(groups["test"] or groups["valid"], settings, sample_rate, channels)


def _groups(settings: LoraDemucsSettings) -> dict[str, list]:
    """``(id, artist, stems)`` of the tracks for training, validation and test (none: an empty list)."""
    if settings.dataset:
        rows = [row for row in catalogue.read(catalogue.path_of(settings.dataset)) if row.stems]
        if not rows:
            raise UserError(f"dataset {settings.dataset}: none of its tracks has stems")
        found = [(row.id, row.artist_id, {name: files.absolute(path) for name, path in row.stems.items()}) for row in rows]
        valid, test = held_out({artist for _, artist, _ in found}, settings)
        of = {artist: "test" if artist in test else "valid" if artist in valid else "train" for _, artist, _ in found}
        return {split: [item for item in found if of[item[1]] == split] for split in (*SPLITS, "test")}
    if settings.dset.wav:
        root = Path(settings.dset.wav).expanduser()
        splits = (*SPLITS, "test") if (root / "test").is_dir() else SPLITS
        return {"test": []} | {split: [(path.name, path.name, stems_of(path)) for path in folders(root, split)] for split in splits}
    raise UserError("no data: give dset.wav=FOLDER (train|valid/<track>/<stem>.wav) or dataset=NAME")


def _opened(items: Sequence, settings: LoraDemucsSettings, sample_rate: int, channels: int) -> list[StemTrack]:
    known = Known()
    made = [_track(item, settings.dset.sources, sample_rate, channels, known) for item in items]
    known.save()
    return made


def of_folder(folder: Path, sources: Sequence[str], sample_rate: int, channels: int) -> list[StemTrack]:
    """Tracks ``<track>/<stem>.wav`` of a folder."""
    known = Known()
    items = [(path.name, path.name, stems_of(path)) for path in sorted(Path(folder).expanduser().iterdir()) if path.is_dir()]
    if not items:
        raise UserError(f"{folder}: no track's folder in it")
    made = [_track(item, sources, sample_rate, channels, known) for item in items]
    known.save()
    return made


def held_out(artists: set[str], settings: LoraDemucsSettings) -> tuple[set[str], set[str]]:
    """The artists kept for validation and for the test: the same for the same seed, whatever else is trained."""
    order = sorted(artists, key=lambda name: (zlib.crc32(f"{settings.training.random_seed}{name}".encode()), name))
    test = round(len(order) * settings.test_split)
    count = max(1, round(len(order) * (1 - settings.train_split)) - test)
    return set(order[test : test + count]), set(order[:test])


def folders(root: Path, split: str) -> list[Path]:
    """The tracks' folders of a split."""
    if not (root / split).is_dir():
        raise UserError(f"{root}: no folder {split}/; it is to hold {split}/<track>/<stem>.wav")
    return sorted(path for path in (root / split).iterdir() if path.is_dir() and not path.name.startswith("."))


def stems_of(folder: Path) -> dict[str, Path]:
    """Audio files of a track's folder by their names without suffix."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in audio.SUFFIXES}


def _track(item, sources: Sequence[str], rate: int, channels: int, known: Known) -> StemTrack:
    name, artist, paths = item
    wanted = {}
    for source in sources:
        if source not in paths:
            missing = config.suggest(source, [stem for stem in paths if stem != "mixture"])
            raise UserError(f"{name}: there is no stem {source!r}{missing}")
        wanted[source] = converted(paths[source], rate, channels, known)
    lengths = {source: known.of(path)["frames"] for source, path in wanted.items()}
    return StemTrack(name, artist, wanted, min(lengths.values()))


class Known:
    """What is known of audio files; an entry holds for one size and one time of change."""

    def __init__(self) -> None:
        self.path = files.outputs_root() / CACHE / "files.json"
        self.entries: dict[str, dict] = files.read_json(self.path) or {}
        self.read = 0  # files that had to be opened

    def of(self, path: Path) -> dict:
        """``rate``, ``channels``, ``frames``, ``subtype`` and ``format`` of a file."""
        state = path.stat()
        entry = self.entries.get(str(path))
        if not entry or entry["size"] != state.st_size or entry["changed"] != state.st_mtime_ns:
            self.read += 1
            try:
                about = soundfile.info(str(path))
            except soundfile.LibsndfileError as error:
                raise UserError(f"{path}: cannot be read ({error.error_string})") from None
            entry = {"rate": about.samplerate, "channels": about.channels, "frames": about.frames, "subtype": about.subtype}
            entry |= {"format": about.format, "size": state.st_size, "changed": state.st_mtime_ns}
            self.entries[str(path)] = entry
        return entry

    def save(self) -> None:
        """Write what was learnt."""
        if self.read:
            files.write_json(self.path, self.entries)


def converted(path: Path, rate: int, channels: int, known: Known) -> Path:
    """A WAV or FLAC file at ``rate`` with ``channels``: the file itself, or a copy in the cache that is made once."""
    try:
        about = known.of(path)
        if (about["rate"], about["channels"]) == (rate, channels) and about["format"] in ("WAV", "WAVEX", "FLAC"):
            return path
    except UserError:  # libsndfile cannot read it: ffmpeg may
        about = {"subtype": ""}
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {rate} {channels}".encode()).hexdigest()[:20]
    target = files.outputs_root() / CACHE / f"{key}.wav"
    if not target.is_file():
        several = channels > 1  # one channel is mixed down before it is resampled, which is half of the work
        samples = with_channels(numpy.atleast_2d(audio.read(path, rate, channels=several)[0]), channels)
        whole = about["subtype"] == "PCM_16" and numpy.abs(samples).max(initial=0.0) < 1.0
        with files.atomic(target) as temporary:
            soundfile.write(temporary, samples.T, rate, "PCM_16" if whole else "FLOAT", format="WAV")
    return target


def with_channels(samples: numpy.ndarray, channels: int) -> numpy.ndarray:
    """``[C, n]`` with another number of channels: their mean, or copies."""
    if len(samples) == channels:
        return samples
    return numpy.repeat(samples.mean(0, keepdims=True), channels, 0)
