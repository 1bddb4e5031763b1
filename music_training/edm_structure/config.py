"""Settings of the EDM structure system; no torch here. The trainer's section is ``training``, with this system's defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..config import Settings
from ..trainer.config import Checkpoint, Optimizer, Performance, Training

BACKBONES = {"mert-95m": "m-a-p/MERT-v1-95M", "mert-330m": "m-a-p/MERT-v1-330M", "cnn": ""}


class Augmentation(Settings):
    """Random changes of a crop, each with the share of crops that get it; targets move along.

    ``tempo`` is the largest change of speed (0.25: x0.75 ... x1.25), ``pitch`` in semitones, ``equaliser`` in dB,
    ``noise`` a floor at most so many dB below the crop, ``masks`` the number of masked stripes in time and in frequency.
    ``remix`` changes the levels of a track's stems by up to so many dB, each with an equaliser and a pitch (by up to
    twice ``pitch``) of its own, where a library has stems; 0 leaves the stems unread. ``tail`` is the largest share of
    its power that a remixed stem keeps from frame to frame: other sounds ring longer. ``syncopation`` is the share of
    remixed bass and hi-hat stems that are played half a beat late, so that neither tells where the beat is.
    """

    share: float = Field(0.8, ge=0, le=1)
    tempo: float = Field(0.25, ge=0, lt=1)
    pitch: float = Field(4.0, ge=0)
    equaliser: float = Field(9.0, ge=0)
    noise: float = Field(20.0, ge=0)
    masks: int = Field(2, ge=0)
    remix: float = Field(0.0, ge=0)
    tail: float = Field(0.0, ge=0, lt=1)
    syncopation: float = Field(0.0, ge=0, le=1)


class CnnSettings(Settings):
    """Size of the CNN on mel features: ``channels`` of the temporal network and its number of dilated layers."""

    channels: int = Field(32, ge=8)
    layers: int = Field(9, ge=1, le=12)
    dropout: float = Field(0.1, ge=0, lt=1)


class EdmSettings(Settings):
    """Everything that training EDM structure is told.

    ``dataset`` is a catalogue under ``outputs/library`` whose tracks have annotations; ``annotations`` a folder of YAML
    or JAMS files instead, with ``audio_dir`` in place of the folders that they name. ``backbone`` auto is ``mert-95m``
    where there is a GPU, else ``cnn``; ``backbone_model`` is a hub name or a local folder. ``duration`` is that of the
    training crops in seconds, ``crops`` their number per track and epoch; ``train_split`` divides the artists.
    """

    system: Literal["edm_structure"] = "edm_structure"
    dataset: str | None = None
    annotations: str | None = None
    audio_dir: str | None = None
    train_split: float = Field(0.8, gt=0, lt=1)
    fold: int | None = Field(None, ge=0)
    folds: int = Field(5, ge=2)

    backbone: Literal["auto", "mert-95m", "mert-330m", "cnn"] = "auto"
    backbone_model: str | None = None
    backbone_layer: int = -1
    freeze_backbone: bool = False
    cnn: CnnSettings = CnnSettings()

    boundary: bool = True
    energy: bool = True
    beat: bool = True
    downbeat: bool = True
    label: bool = False
    boundary_weight: float = Field(1.0, ge=0)
    energy_weight: float = Field(0.5, ge=0)
    beat_weight: float = Field(0.5, ge=0)
    downbeat_weight: float = Field(0.5, ge=0)
    label_weight: float = Field(0.3, ge=0)
    boundary_loss: Literal["focal", "shift_tolerant", "f1"] = "focal"
    beat_loss: Literal["focal", "shift_tolerant"] = "focal"
    energy_loss: Literal["weighted_mse", "mse"] = "weighted_mse"

    duration: float = Field(30.0, gt=1)
    crops: int = Field(1, ge=1)
    augmentation: Augmentation = Augmentation()
    training: Training = Training(
        epochs=50,
        batch_size=4,
        optimizer=Optimizer(lr=1e-4),
        checkpoint=Checkpoint(metric="val_loss", mode="min", save_total_limit=2),
        performance=Performance(num_workers=4),
    )

    @model_validator(mode="after")
    def _agree(self):
        if not any(getattr(self, task) for task in TASKS):
            raise ValueError(f"all tasks are switched off; keep one of {', '.join(TASKS)}")
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold}: there are {self.folds} folds, counted from 0")
        return self


TASKS = ("boundary", "energy", "beat", "downbeat", "label")
