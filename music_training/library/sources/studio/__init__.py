"""The studio library: composed electronic music with known ground truth, and speech-like dialogues. All synthetic.

``python -m music_training.library.sources.studio --profile mini`` writes, under ``outputs/library/<dataset>/``:

``tracks/<id>/``      mixture.wav, stems/*.wav, annotation.yaml, beats.tsv, midi/all.mid, track.json
``dialogues/<id>.*``  wav (16 kHz, mono) and rttm; ``dialogues.jsonl`` lists them
``catalogue.jsonl``   a row per track

The same settings give the same bytes on one kind of machine, on any number of workers. A killed run keeps its finished tracks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .... import config, files, parallel, progress, stages
from ... import catalogue

VERSION = 1  # raised with every change of what the same settings sound like
DONE = "studio.json"  # in a finished folder: the hash of what it was made from, and its files' sizes

StyleName = Literal["house", "techno", "trance", "drum_and_bass", "dubstep"]


class StudioSettings(config.Settings):
    """What the studio library holds.

    ``seconds`` is the range from which a track's length is drawn (it is then cut to whole four-bar phrases);
    ``dialogues`` recordings of ``dialogue_seconds`` with 2 to 4 of ``speakers`` voices; ``workers`` 0 means all cores.
    """

    artists: int = Field(10, ge=1, le=1000)
    tracks_per_artist: int = Field(2, ge=1, le=1000)
    seconds: tuple[float, float] = (36.0, 60.0)
    sample_rate: int = Field(44100, ge=16000, le=96000)
    styles: tuple[StyleName, ...] = ("house", "techno", "trance", "drum_and_bass", "dubstep")
    stems: bool = True
    dialogues: int = Field(20, ge=0)
    dialogue_seconds: float = Field(30.0, ge=5.0, le=3600.0)
    speakers: int = Field(20, ge=4)
    seed: int = Field(1, ge=0)
    workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> StudioSettings:
        low, high = self.seconds
        if not 20.0 <= low <= high <= 900.0:
            raise ValueError(f"seconds: [{low:g}, {high:g}] is not a range within 20 to 900 seconds; write it as seconds=[36, 60]")
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ValueError("styles: name at least one style, and each only once")
        if self.sample_rate % 2:
            raise ValueError(f"sample_rate: {self.sample_rate} is odd; use 44100, 48000 or 32000")
        return self


def compose_library(settings: StudioSettings, dataset: str, scope: str, force: bool = False) -> stages.StageResult:
    """Compose the tracks and dialogues of ``settings`` as the stage ``compose_library``; its result counts them."""
    params = {"dataset": dataset, **settings.model_dump(mode="json", exclude={"workers"})}
    make = partial(_make, settings, dataset, force)
    return stages.run("compose_library", make, scope=scope, params=params, version=VERSION, force=force)


def _make(settings: StudioSettings, dataset: str, force: bool, draft: stages.Draft) -> stages.Made:
    root = files.outputs_root() / "library" / dataset
    plan = [("track", artist, track) for artist in range(settings.artists) for track in range(settings.tracks_per_artist)]
    plan += [("dialogue", index, 0) for index in range(settings.dialogues)]
    workers = min(settings.workers or parallel.cores(), len(plan))
    rows, talks = [], []
    with progress.Progress(len(plan), "composing", "recordings") as shown:
        for kind, row in parallel.map_processes(partial(_make_item, settings, dataset, str(root), force), plan, workers):
            (rows if kind == "track" else talks).append(row)
            shown.update(note=row["id"])
    _remove_others(root / "tracks", {row["id"] for row in rows})
    _remove_others(root / "dialogues", {row["id"] for row in talks})
    tracks = [catalogue.Track(**row) for row in rows]
    outputs = [catalogue.write(catalogue.path_of(dataset), tracks), root / "tracks"]
    (root / "dialogues.jsonl").unlink(missing_ok=True)
    if talks:
        lines = (json.dumps({**row, "synthetic": True}, ensure_ascii=False) + "\n" for row in talks)
        outputs += [files.write_text(root / "dialogues.jsonl", "".join(lines)), root / "dialogues"]
    seconds = sum(track.duration for track in tracks)
    return stages.Made(outputs, {"tracks": len(tracks), "dialogues": len(talks), "minutes": round(seconds / 60, 2)})


def _make_item(settings: StudioSettings, dataset: str, root: str, force: bool, item: tuple[str, int, int]) -> tuple[str, dict]:
    """Make one track or dialogue, unless it is already there; returns its row. Runs in a worker process."""
    kind, first, second = item
    if kind == "track":
        return kind, _make_track(settings, dataset, Path(root) / "tracks", force, first, second)
    return kind, _make_dialogue(settings, Path(root) / "dialogues", force, first)


def _make_track(settings: StudioSettings, dataset: str, tracks: Path, force: bool, artist_index: int, track_index: int) -> dict:
    from . import arrangement, artists, mixing, truth

    artist = artists.draw_artist(settings.seed, artist_index, settings.styles)
    composed = arrangement.compose(settings.seed, artist, artist_index, track_index, settings.seconds)
    folder = tracks / composed.id
    count = mixing.samples(composed, settings.sample_rate)
    duration = count / settings.sample_rate
    identity = _hash(VERSION, settings, ("seconds", "sample_rate", "styles", "stems", "seed"), dataset, artist_index, track_index)
    if force or not _finished(folder, identity):
        with files.atomic(folder) as temporary:
            temporary.mkdir()
            stems = mixing.mix(composed, settings.sample_rate, settings.seed)
            mixing.write_wav(temporary / "mixture.wav", mixing.add_up(list(stems.values())), settings.sample_rate)
            if settings.stems:
                (temporary / "stems").mkdir()
                stems["drums"] = mixing.add_up([stems["kick"], stems["hihat"]])
                for stem, path in truth.stem_paths(temporary).items():
                    mixing.write_wav(path, stems[stem], settings.sample_rate)
            truth.write_truth(composed, temporary, folder, duration)
            _finish(temporary, identity)
    return asdict(truth.catalogue_row(composed, dataset, folder, duration, settings.stems))


def _make_dialogue(settings: StudioSettings, dialogues: Path, force: bool, index: int) -> dict:
    from . import dialogue

    recording = dialogue.plan(settings.seed, index, settings.dialogue_seconds, settings.speakers)
    folder = dialogues / recording.id
    identity = _hash(VERSION, settings, ("dialogue_seconds", "speakers", "seed"), index)
    if force or not _finished(folder, identity):
        with files.atomic(folder) as temporary:
            temporary.mkdir()
            dialogue.write(recording, temporary)
            _finish(temporary, identity)
    return dialogue.row(recording, folder)


def _hash(version: int, settings: StudioSettings, names: tuple[str, ...], *more: object) -> str:
    """What a recording is made from, as a hash."""
    chosen = settings.model_dump(mode="json", include=set(names))
    return hashlib.sha256(json.dumps([version, chosen, *more], sort_keys=True).encode()).hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _finish(folder: Path, identity: str) -> None:
    files.write_json(folder / DONE, {"made_from": identity, "sizes": _sizes(folder)})


def _finished(folder: Path, identity: str) -> bool:
    known = files.read_json(folder / DONE)
    if not known or known["made_from"] != identity:
        return False
    sizes = _sizes(folder)
    sizes.pop(DONE)
    return sizes == known["sizes"]


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """Remove what other settings or a killed run left."""
    if folder.is_dir():
        files.sweep(folder)
        for path in folder.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path)
