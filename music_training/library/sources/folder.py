"""A person's own folder of audio as a source: every file below it becomes a track of a catalogue.

The artist comes from the file's tags, else from the name of the folder it lies in. A sidecar ``<stem>.json`` beside a
file is honoured and wins over the tags: title, artist, album, genre, key, bpm, moods, keywords (or tags), instrument,
description, licence, attribution, valence, arousal, intensity.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import files, stages
from ...errors import UserError
from .. import audio, catalogue

_TEXTS = ("title", "artist", "album", "genre", "key", "description", "licence", "attribution")
_NUMBERS = ("bpm", "valence", "arousal", "intensity")


def catalogue_folder(audio_dir: str | Path, dataset: str, scope: str) -> stages.StageResult:
    """Write the catalogue of a folder, read recursively; its result holds the number of ``tracks`` and ``artists``.

    Raises UserError where there is no such folder, no audio in it, or where it holds the outputs.
    """
    folder = Path(audio_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"{audio_dir}: {'not a folder' if folder.exists() else 'no such folder'}; give a folder of audio files")
    if files.outputs_root().is_relative_to(folder):
        raise UserError(f"{folder}: holds the outputs folder {files.outputs_root()}; give a folder of audio files alone")

    def make(_: stages.Draft) -> stages.Made:
        tracks = [read_track(folder, path) for path in find(folder)]
        if not tracks:
            raise UserError(f"{folder}: no audio files in it ({' '.join(sorted(audio.SUFFIXES))})")
        path = catalogue.write(catalogue.path_of(dataset), tracks)
        return stages.Made([path], {"tracks": len(tracks), "artists": len({track.artist_id for track in tracks})})

    return stages.run("catalogue_folder", make, scope=scope, params={"dataset": dataset}, inputs=roots(folder))


def roots(audio_dir: str | Path) -> list[Path]:
    """The folders whose listings say whether anything changed: the folder itself and what its links lead to.

    An empty name (no folder was given) has none.
    """
    if not str(audio_dir):
        return []
    folder = Path(audio_dir).expanduser().resolve()
    linked = {Path(root).resolve() for root, _, _ in _walk(folder) if not Path(root).resolve().is_relative_to(folder)}
    return [folder, *sorted(linked)]


def find(folder: Path) -> Iterator[Path]:
    """The audio files below a folder, links followed, each folder once; hidden files are passed over."""
    for root, _, names in _walk(folder):
        for name in sorted(names):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in audio.SUFFIXES:
                continue
            try:
                os.path.join(root, name).encode()
            except UnicodeEncodeError:
                print(f"{os.path.join(root, name)!a}: passed over, its name is not UTF-8; rename it", flush=True)
                continue
            yield Path(root, name)


def read_track(folder: Path, path: Path) -> catalogue.Track:
    """The catalogue row of one file: its sidecar over its tags over its place."""
    relative = path.relative_to(folder)
    parent = relative.parent.name or folder.name
    known = {"title": path.stem, "artist": parent, **_tags(path), **_sidecar(path.with_suffix(".json"))}
    short = hashlib.sha256(relative.as_posix().encode()).hexdigest()[:8]
    track = catalogue.Track(
        id=f"{_slug(relative.with_suffix('').as_posix())[-60:].strip('-') or 'track'}-{short}",
        path=str(path),
        source="folder",
        artist_id=" ".join(known["artist"].casefold().split()),
    )
    return replace(track, **known)


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder already read
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield root, folders, names


def _tags(path: Path) -> dict[str, Any]:
    """What mutagen reads: texts, the tempo and the duration (s); nothing from a file that it cannot read."""
    import mutagen

    try:
        file = mutagen.File(path, easy=True)
    except (mutagen.MutagenError, ValueError, OSError):
        file = None
    if file is None:
        return {}
    names = {"title": "title", "artist": "artist", "album": "album", "genre": "genre", "bpm": "bpm", "initialkey": "key"}
    content = {}
    for name, ours in names.items():
        value = (file.tags or {}).get(name) if hasattr(file.tags, "get") else None
        content[ours] = str(value[0]) if isinstance(value, list) and value else ""
    return {**_known(content), "duration": round(float(getattr(file.info, "length", 0) or 0), 3)}


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: a sidecar has to be JSON ({error}); mend it or rename it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a sidecar has to be a JSON object with keys such as title and artist; mend it or rename it")
    known = _known(content)
    lists = {"moods": content.get("moods"), "instruments": content.get("instruments") or content.get("instrument")}
    lists["tags"] = content.get("keywords") or content.get("tags")
    known.update((name, _list(value)) for name, value in lists.items() if value)
    return known


def _known(content: dict[str, Any]) -> dict[str, Any]:
    """The texts and numbers that a catalogue row has a place for, empty ones left out."""
    known: dict[str, Any] = {name: str(content[name]).strip() for name in _TEXTS if content.get(name)}
    known = {name: text for name, text in known.items() if text}
    for name in _NUMBERS:
        try:
            known[name] = float(content[name])
        except (KeyError, TypeError, ValueError):
            continue
    return known


def _list(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else str(value).split(",")
    return tuple(str(word).strip() for word in words if str(word).strip())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
