"""Composed data for both models: the studio library's tracks, and further scores without audio. All synthetic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .. import files, parallel, stages
from ..errors import UserError
from ..library import catalogue
from . import manifests
from .config import BridgeSettings, Data, Studio
from .manifests import Entry

FALLBACK = "studio_bridges"  # the library that is composed where there are no manifests
STYLES = ("house", "techno", "trance", "drum_and_bass", "dubstep")
VERSION = 1


def entries(settings: BridgeSettings, scope: str = "emotion_bridges") -> tuple[list[Entry], list[Entry]]:
    """Training and validation rows of the settings: from the manifests, or a library; missing manifests warn loudly."""
    data = settings.data
    needs = "audio_path" if settings.model == "spectocloud" else "midi_path"
    paths = [files.absolute(Path(text).expanduser()) for text in (data.train_manifest, data.val_manifest) if text]
    missing = [path for path in paths if not path.is_file()]
    if paths and not missing:
        if len(paths) < 2:
            raise UserError("data: train_manifest and val_manifest go together")
        train, val = (manifests.read(path, needs) for path in paths)
        if not train or not val:
            raise UserError(f"{paths[not val and bool(train)]}: the manifest has no rows; build it again with a larger --val-split")
        return train, val
    dataset = data.dataset
    if missing or not dataset:
        for path in missing or [manifests.folder() / f"{settings.model}_train.jsonl"]:
            print(f"WARNING: Manifest not found: {path}", flush=True)
        print("WARNING: Generating synthetic training data for smoke testing only!", flush=True)
        dataset = dataset or FALLBACK
        if dataset == FALLBACK:
            _compose_fallback(needs == "audio_path", scope)
    folder = manifest_stage(dataset, data, scope).result["folder"]
    prefix = "spectocloud" if needs == "audio_path" else "midi"
    return tuple(manifests.read(files.absolute(folder) / f"{prefix}_{part}.jsonl", needs) for part in ("train", "val"))


def manifest_stage(dataset: str, data: Data, scope: str) -> stages.StageResult:
    """Manifests of a library and of scores composed beside it, divided by artist: the stage ``bridge_manifests``."""
    params = {"dataset": dataset, **data.model_dump(mode="json", include={"val_split", "studio"})}
    key = hashlib.sha256(json.dumps([VERSION, params]).encode()).hexdigest()[:8]
    target = files.outputs_root() / "data" / "manifests_studio" / f"{dataset}-{key}"
    listed = catalogue.path_of(dataset)

    def make(draft: stages.Draft) -> stages.Made:
        rows = manifests.from_catalogue(dataset) if listed.is_file() else []
        train, val = manifests.divide(rows, [row.artist for row in rows], data.val_split, 0)
        scores = compose_scores(target / "scores", data.studio)
        more, held = manifests.divide(scores, [row.artist for row in scores], data.val_split, 0)
        outputs = manifests.write_all(target, [*train, *more], [*val, *held])
        counts = {"train": len(train), "val": len(val), "scores train": len(more), "scores val": len(held)}
        return stages.Made(outputs, {"folder": files.relative(target), **counts}, folders=[target / "scores"])

    inputs = [listed] if listed.is_file() else []
    return stages.run("bridge_manifests", make, scope=scope, params=params, inputs=inputs, version=VERSION)


def compose_scores(folder: Path, settings: Studio) -> list[Entry]:
    """Compose scores (MIDI only) into ``folder``; their artists are others than the library's."""
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    jobs = [(artist, track) for artist in range(settings.artists) for track in range(settings.tracks_per_artist)]
    made = parallel.map_processes(partial(_compose, folder, settings), jobs, parallel.cores() if len(jobs) > 100 else 1)
    found = list(made)
    wanted = {files.absolute(entry.midi_path).name for entry in found}
    for path in folder.glob("*.mid"):
        if path.name not in wanted:
            path.unlink()
    return found


def songs(seed: int, artists: Sequence[int], tracks: int, seconds: tuple[float, float] = (36.0, 60.0)):
    """Composed songs of a seed: yields each with its score."""
    from ..library.sources.studio import arrangement, truth
    from ..library.sources.studio.artists import draw_artist

    for artist in artists:
        for track in range(tracks):
            song = arrangement.compose(seed, draw_artist(seed, artist, STYLES), artist, track, seconds)
            yield song, truth.score(song)


def _compose(folder: Path, settings: Studio, job: tuple[int, int]) -> Entry:
    from ..library.sources.studio import arrangement, truth
    from ..library.sources.studio.artists import draw_artist

    artist, track = job
    song = arrangement.compose(settings.seed, draw_artist(settings.seed, artist, STYLES), artist, track, settings.seconds)
    path = folder / f"seed{settings.seed}_{song.id}.mid"
    if not path.is_file():
        with files.atomic(path) as temporary:
            truth.score(song).dump_midi(str(temporary))
    emotion = [song.emotion.valence, song.emotion.arousal, song.emotion.intensity]
    return Entry(
        emotion, midi_path=files.relative(path), id=path.stem, artist=f"seed{settings.seed}_{song.artist.id}", key=song.key, synthetic=True
    )


def _compose_fallback(with_audio: bool, scope: str) -> None:
    """The library that stands in for a person's data: 20 tracks with audio, where audio is needed."""
    if with_audio:
        from ..library.sources import studio

        studio.compose_library(studio.StudioSettings(dialogues=0, stems=False), FALLBACK, scope)
