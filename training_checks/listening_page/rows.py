"""What a row needs once it is opened: a script with its audio, and pictures of its clips; made only when a clip changed.

A page at ``file://`` may not fetch files, and sound of media elements is out of reach of its scripts. So the audio of a
row is embedded in ``listening_page/rows/<row>.js``, which the page loads when the row is opened.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
from collections import deque
from pathlib import Path

import numpy as np

from music_training import files, parallel
from music_training.errors import UserError
from music_training.library import audio
from music_training.progress import progress

from . import sound
from .tables import Row, Version

FOLDER = "listening_page"
SECONDS = 120.0  # of every clip are embedded; the native players play all of it
FORMAT = 1  # of the scripts: another number makes them all anew
FEW = 12  # rows that are not worth starting processes for


def picture_path(samples: Path, version: Version) -> Path:
    """Where the picture of a clip lies: a name that changes with the clip."""
    return samples / FOLDER / "pictures" / f"{_state(samples, version)}.png"


def script_path(samples: Path, row: Row) -> Path:
    """Where the script of a row lies."""
    return samples / FOLDER / "rows" / f"{row.id}.js"


def write_rows(samples: Path, rows: list[Row]) -> int:
    """Write scripts and pictures of the rows that changed, remove those of rows and clips that went; returns how many were made."""
    states = {row.id: _row_state(samples, row) for row in rows}
    stale = [row for row in rows if not _is_made(samples, row, states[row.id])]
    make = functools.partial(_make_row, samples)
    work = [(row, states[row.id]) for row in stale]
    if len(work) < FEW:
        deque(map(make, work), maxlen=0)
    else:
        made = parallel.map_processes(make, work, min(4, parallel.cores()))
        deque(progress(made, "listening page", total=len(work), unit="row"), maxlen=0)
    wanted = {script_path(samples, row) for row in rows} | {picture_path(samples, one) for row in rows for one in row.versions.values()}
    for pattern in ("rows/*", "pictures/*"):
        for path in set((samples / FOLDER).glob(pattern)) - wanted:
            path.unlink(missing_ok=True)
    return len(stale)


def as_script(value: object) -> str:
    """JSON that is harmless wherever it stands in a script or a page."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _make_row(samples: Path, task: tuple[Row, str]) -> None:
    row, state = task
    heard = [_hear(version.path) for version in row.versions.values()]
    levels = [(sound.loudness(x, rate), float(np.abs(x).max(initial=0))) for x, rate, _ in heard]
    gains = sound.gains(levels)
    versions = []
    for version, (x, rate, problem), (level, _), gain in zip(row.versions.values(), heard, levels, gains, strict=True):
        about = {"label": version.label, "run": version.card.run, "epoch": version.epoch, "version": version.clip.version}
        about |= {"role": version.clip.role, "problem": problem, "audio": ""}
        if not problem:
            picture = picture_path(samples, version)
            about |= {"loudness": None if math.isinf(level) else round(level, 2), "gain": round(gain, 6), "picture": picture.name}
            about["audio"] = _encode(x, rate)
            if not picture.is_file():
                with files.atomic(picture) as temporary:
                    sound.draw(x, rate, temporary)
        versions.append(about)
    content = {"id": row.id, "section": row.section, "title": row.title, "name": row.name, "text": row.text}
    content |= {"versions": versions, "anchor": _anchor(row, heard, versions)}
    files.write_text(script_path(samples, row), f"// {state}\nlisteningPage.receive({as_script(content)});\n")


def _hear(path: Path) -> tuple[np.ndarray, int, str]:
    """The start of a clip, finite ``[C, T]``, its rate, and why it cannot be heard (then it is empty)."""
    nothing = np.zeros((1, 0), np.float32)
    try:
        x, rate = audio.read(path, channels=True)
    except FileNotFoundError:
        return nothing, 1, "the file is missing"
    except UserError as error:
        return nothing, 1, str(error).replace(str(path), path.name)
    if not x.size or not np.isfinite(x).all():
        return nothing, 1, "the file holds values that are not finite" if x.size else "the file holds no audio"
    return x[:2, : int(SECONDS * rate)], rate, ""


def _anchor(row: Row, heard: list, versions: list[dict]) -> dict | None:
    """The low-pass anchor of the reference, or where there is none of the last version; None where the card brings its own."""
    usable = [i for i, (_, _, problem) in enumerate(heard) if not problem]
    roles = [version.clip.role for version in row.versions.values()]
    if not usable or "anchor" in roles:
        return None
    of = next((i for i in usable if roles[i] == "reference"), usable[-1])
    x, rate, _ = heard[of]
    low = sound.anchor(x, rate)
    gain = versions[of]["gain"] * 10 ** ((versions[of]["loudness"] - sound.loudness(low, rate)) / 20) if versions[of]["loudness"] else 1.0
    gain = min(gain, sound.CEILING / max(float(np.abs(low).max(initial=0)), 1e-9)) if math.isfinite(gain) else 1.0
    label = f"low-pass anchor of {versions[of]['label']}"
    return {"label": label, "role": "anchor", "problem": "", "gain": round(gain, 6), "audio": _encode(low, rate)}


def _encode(x: np.ndarray, rate: int) -> str:
    return base64.b64encode(sound.flac(x, rate)).decode("ascii")


def _is_made(samples: Path, row: Row, state: str) -> bool:
    try:
        with open(script_path(samples, row), encoding="utf-8") as stream:
            if stream.readline() != f"// {state}\n":
                return False
    except FileNotFoundError:
        return False
    return all(picture_path(samples, version).is_file() or _unheard(version) for version in row.versions.values())


def _unheard(version: Version) -> bool:
    """Whether a clip has no picture because it cannot be heard (which is looked up only where one is missing)."""
    return bool(_hear(version.path)[2])


def _row_state(samples: Path, row: Row) -> str:
    """What a row's script is made of: its texts and the state of its clips."""
    about = [(one.label, one.card.run, one.epoch, one.clip.version, one.clip.role, _state(samples, one)) for one in row.versions.values()]
    return hashlib.sha256(json.dumps([FORMAT, row.section, row.title, row.name, row.text, about]).encode()).hexdigest()


def _state(samples: Path, version: Version) -> str:
    """A name for a clip as it is now: its place, size and time."""
    try:
        status = os.stat(version.path)
        size, time = status.st_size, status.st_mtime_ns
    except OSError:
        size, time = -1, 0
    place = os.path.relpath(version.path, samples)
    return hashlib.sha256(f"{FORMAT}\0{place}\0{size}\0{time}".encode("utf-8", "surrogatepass")).hexdigest()[:20]
