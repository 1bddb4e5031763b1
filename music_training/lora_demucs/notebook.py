"""What notebook 07 asks of the package beside training: its small base model, and clips to listen to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import LoraDemucsSettings

SMALL = "small"


class NotebookSettings(LoraDemucsSettings):
    """The settings of the notebook: with ``base`` small, ``small_base`` is how a small base model is trained first."""

    small_base: dict[str, Any] = {}


def overrides(**given: Any) -> list[str]:
    """The knobs of the notebook that lie deeper in the settings, as overrides; those that are None are left out."""
    places = {
        "sources": "dset.sources",
        "lora_rank": "htdemucs.lora_rank",
        "lora_rank_mode": "htdemucs.lora_rank_mode",
        "max_steps": "training.max_steps",
    }
    return [f"{places[name]}={json.dumps(value)}" for name, value in given.items() if value is not None]


def with_base(settings: NotebookSettings, *, scope: str) -> LoraDemucsSettings:
    """The settings for training: a base called ``small`` is trained first (the stage ``demucs_base``), others are taken as they are."""
    from . import train

    content = settings.model_dump(mode="json", exclude={"small_base"})
    if settings.base == SMALL:
        wanted = train.base_settings(settings, settings.small_base)
        content["base"] = train.train_stage("demucs_base", wanted, scope=scope, description="base").result["run"]
    return LoraDemucsSettings.model_validate(content)


def clips(run: Path, settings: LoraDemucsSettings, audio_dir: str = "", seconds: float = 8.0) -> dict[str, dict[str, Path]]:
    """Clips of a held-out track under ``samples/<run>/stems``; with ``audio_dir`` its first file is separated, too."""
    from .. import files
    from ..library import audio
    from . import pictures, tracks, train

    made = train.open_adapted(run)
    held = tracks.judged(settings, made.model.samplerate, made.model.audio_channels)
    found = pictures.write_clips(made, held[0], files.outputs_root() / "samples" / run.name / "stems", seconds)
    if audio_dir:
        folder = Path(audio_dir).expanduser()
        own = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
        if not own:
            raise UserError(f"{audio_dir}: no audio file in this folder")
        written = train.separate(run, own[:1], run / "separated", skip_existing=True)
        print(f"{own[0].name}: separated into {written[0].parent}")
    return found
