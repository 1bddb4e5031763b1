"""Which annotated tracks there are: those of a catalogue, or a folder of annotations (YAML, JAMS) with its audio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy

from .. import files
from ..config import ConfigError
from ..errors import UserError
from ..library import annotations, catalogue
from ..library.annotations import Annotation
from .config import EdmSettings
from .data import AnnotatedTrack

AUDIO = (".flac", ".wav", ".mp3", ".m4a", ".ogg", ".opus", ".aac")


def load(settings: EdmSettings) -> list[AnnotatedTrack]:
    """The tracks of the settings' ``annotations`` folder or ``dataset``; all faults at once."""
    if settings.annotations:
        return from_folder(Path(settings.annotations).expanduser(), settings.audio_dir)
    if settings.dataset:
        return from_catalogue(settings.dataset)
    raise UserError("no data: give a folder of annotations, or dataset=NAME for a library that has them (studio_mini, say)")


def from_catalogue(dataset: str) -> list[AnnotatedTrack]:
    """The annotated tracks of a data set's catalogue."""
    rows = [row for row in catalogue.read(catalogue.path_of(dataset)) if row.annotation]
    if not rows:
        raise UserError(f"{catalogue.path_of(dataset)}: none of its tracks has an annotation")
    return [_from_row(row) for row in rows]


def _from_row(row: catalogue.Track) -> AnnotatedTrack:
    path = files.absolute(row.annotation)
    track = _track(row.id, _read(path), files.absolute(row.path), row.artist_id, path)
    parts = {name: stem for name, stem in row.stems.items() if name != "drums" or not {"kick", "hihat"} & set(row.stems)}
    return replace(track, stems=tuple(files.absolute(stem) for stem in parts.values()))


def from_folder(folder: Path, audio_dir: str | None = None) -> list[AnnotatedTrack]:
    """The tracks of all ``*.yaml`` and ``*.jams`` below ``folder``; ``audio_dir`` is searched by file name for their audio."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of annotations")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml", ".jams") and not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: no annotation (*.yaml, *.jams) in this folder")
    known = _by_name(Path(audio_dir).expanduser()) if audio_dir else {}
    found, faults = [], []
    for path in paths:
        try:
            annotation = _read(path)
            sound = _find_audio(annotation, path, known, audio_dir)
            found.append(_track(path.stem, annotation, sound, annotation.metadata.artist or path.stem, path))
        except ConfigError as error:
            faults += error.errors
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError(faults)
    return found


def beats_of(annotation: Annotation, path: Path | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Beats and downbeats (s): of ``beats.tsv`` or ``<name>.beats.tsv`` (time, position) beside the annotation, else the grid of its bpm.

    Empty where the annotation says no tempo either.
    """
    for listed in (path.with_name("beats.tsv"), path.with_suffix(".beats.tsv")) if path else ():
        if listed.is_file() and (listed.stem != "beats" or path.name.startswith("annotation.")):
            rows = numpy.loadtxt(listed, ndmin=2)
            return rows[:, 0], rows[rows[:, 1] == 1, 0]
    if not annotation.audio.bpm:
        return numpy.zeros(0), numpy.zeros(0)
    period, bar = 60 / annotation.audio.bpm, annotation.audio.time_signature[0]
    before = int(annotation.audio.downbeat / period)
    numbers = numpy.arange(-before, int((annotation.audio.duration - annotation.audio.downbeat) / period) + 1)
    times = annotation.audio.downbeat + period * numbers
    return times, times[numbers % bar == 0]


def _read(path: Path) -> Annotation:
    return annotations.read_jams(path) if path.suffix == ".jams" else annotations.read(path)


def _track(name: str, annotation: Annotation, sound: Path, artist: str, path: Path) -> AnnotatedTrack:
    beats, downbeats = beats_of(annotation, path)
    starts = numpy.array([section.time for section in annotation.structure])
    labels = [section.label or section.original or "unlabelled" for section in annotation.structure]
    return AnnotatedTrack(name, sound, artist, annotation.audio.duration, starts, labels, beats, downbeats, annotation.audio.bpm)


def _find_audio(annotation: Annotation, path: Path, known: dict[str, Path], audio_dir: str | None) -> Path:
    named = Path(annotation.audio.file).expanduser()
    if audio_dir:
        for name in (named.stem, path.stem):
            if name in known:
                return known[name]
        raise UserError(f"{path}: no audio named {named.stem}.* or {path.stem}.* below {audio_dir}")
    for candidate in (path.parent / named, files.absolute(named)):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: audio.file: {annotation.audio.file} does not exist; give --audio-dir with the folder that holds it")


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of audio")
    return {path.stem: path for path in sorted(audio_files(folder), reverse=True)}


def audio_files(folder: Path) -> Iterable[Path]:
    """Audio files anywhere below a folder."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO and not path.name.startswith("."))
