"""A page to look at clouds: one HTML file without any network, truth beside prediction, turning with the mouse, in time with the audio.

Positions and colours lie in the page as typed arrays (int16 and uint8, base64); the drawing is a plain canvas.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy

from ... import files
from ...library import audio
from .. import emotions, lexicon
from ..manifests import Entry

TEMPLATE = Path(__file__).with_name("viewer.html")
AUDIO_RATE = 24000


@dataclass(frozen=True)
class Scene:
    """What one entry of the page shows: a title, the seconds it lasts, clouds by name, and the audio of the clip (mono) at 24 kHz."""

    title: str
    seconds: float
    clouds: Sequence[tuple[str, numpy.ndarray, numpy.ndarray]]
    samples: numpy.ndarray | None = None


def write(path: Path, scenes: Sequence[Scene], title: str, about: str = "") -> Path:
    """Write the page (atomically)."""
    content = [
        {
            "title": scene.title,
            "seconds": scene.seconds,
            "audio": _mp3(scene.samples) if scene.samples is not None else "",
            "clouds": [{"name": name, "points": _packed(cloud), "colours": _bytes(tint)} for name, cloud, tint in scene.clouds],
        }
        for scene in scenes
    ]
    data = json.dumps(content).replace("</", "<\\/")  # so that no title can end the script
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", escape(title)).replace("{{about}}", escape(about))
    return files.write_text(path, page.replace("{{data}}", data))


def of_clips(model, clips: Sequence, path: Path, title: str, about: str = "") -> Path:
    """The page of held-out clips: truth beside prediction, with their audio."""
    import torch

    from .system import tensors

    scenes = []
    for clip in clips:
        mel, emotion, *_ = tensors([clip])
        with torch.no_grad():
            cloud, tint = (part[0].numpy() for part in model.eval()(mel, emotion))
        seconds = len(clip.mel) / 25
        felt = ", ".join(f"{name} {value:+.2f}" for name, value in zip(emotions.DIMENSIONS, clip.emotion[:3], strict=True))
        samples = clip_audio(files.absolute(clip.entry.audio_path), clip.start, seconds)
        clouds = [("truth", clip.cloud, clip.colours), ("prediction", cloud, tint)]
        scenes.append(Scene(f"{clip.entry.id or clip.entry.audio_path} at {clip.start:.0f} s ({felt})", seconds, clouds, samples))
    return write(path, scenes, title, about)


def of_files(run: Path | str, paths: Sequence[Path], emotion: Sequence[float] | None, out_dir: Path) -> Path:
    """Clouds of audio files, 8 s after 8 s: ``<name>_<seconds>.npy`` with ``colours/``, and ``index.html``."""
    import torch

    from ...errors import UserError
    from ..train import load
    from . import mel
    from .data import Clip
    from .targets import target

    model, settings = load(run, "spectocloud")
    frames, clips = round(settings.seconds * mel.FRAME_RATE), []
    for path in paths:
        found = emotion or (lexicon.infer_from_path(path) or [None])[0]
        if found is None:
            raise UserError(f"{path}: neither folder nor name says an emotion; give --emotion")
        samples, _ = audio.read(path, mel.SAMPLE_RATE)
        whole = mel.frames(samples)
        for start in range(0, max(1, len(whole) - frames // 4), frames):
            cut = mel.clip(whole, start, frames)
            cloud, tint = target(cut, numpy.asarray(found), settings.points)
            entry = Entry(list(found), audio_path=str(path.resolve()), id=path.stem)
            clips.append(Clip(entry, start / mel.FRAME_RATE, cut, emotions.padded(found), cloud, tint))
            with torch.no_grad():
                made = model(torch.from_numpy(cut)[None], torch.from_numpy(emotions.padded(found))[None])
            name = f"{path.stem}_{start / mel.FRAME_RATE:03.0f}s.npy"
            for place, content in zip((out_dir / name, out_dir / "colours" / name), made, strict=True):
                with files.atomic(place) as temporary, open(temporary, "wb") as stream:
                    numpy.save(stream, content[0].numpy())
    return of_clips(model, clips, out_dir / "index.html", "Spectocloud", f"run {run}")


def clip_audio(path: Path, start: float, seconds: float) -> numpy.ndarray:
    """A stretch of a file, mono at 24 kHz."""
    samples, _ = audio.read(path, AUDIO_RATE)
    return samples[round(start * AUDIO_RATE) : round((start + seconds) * AUDIO_RATE)]


def _packed(cloud: numpy.ndarray) -> str:
    whole = numpy.rint(numpy.clip(cloud, -1, 1) * 32767).astype("<i2")
    return base64.b64encode(whole.tobytes()).decode()


def _bytes(colours: numpy.ndarray) -> str:
    return base64.b64encode(numpy.rint(numpy.clip(colours, 0, 1) * 255).astype(numpy.uint8).tobytes()).decode()


def _mp3(samples: numpy.ndarray) -> str:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, AUDIO_RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(stream.getvalue()).decode()
