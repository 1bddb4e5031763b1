"""Settings of both bridges; no torch here. Seed words of the training YAML are understood beside the trainer's own.

``training.min_epochs``, ``early_stopping.enabled``, ``amp`` with ``amp_dtype``, ``grad_accum_steps``, ``resume_from`` and
``data.{batch_size, num_workers, prefetch_factor}`` say what the trainer calls ``early_stopping.min_epochs``,
``mixed_precision``, ``gradient_accumulation_steps``, ``checkpoint.resume``, ``batch_size`` and ``performance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ..config import Settings
from ..trainer.config import Checkpoint, EarlyStopping, Optimizer, Performance, Scheduler, Training


class Studio(Settings):
    """What is composed where there are no manifests: ``artists`` x ``tracks_per_artist`` scores beside the library's tracks."""

    artists: int = Field(80, ge=2)
    tracks_per_artist: int = Field(3, ge=1)
    seconds: tuple[float, float] = (36.0, 60.0)
    seed: int = Field(1001, ge=0)


class Data(Settings):
    """Where examples come from: two manifests, or a library (``dataset``) of whose artists ``val_split`` are held out."""

    train_manifest: str | None = None
    val_manifest: str | None = None
    dataset: str | None = None
    val_split: float = Field(0.2, gt=0, lt=1)
    studio: Studio = Studio()


class BridgeSettings(Settings):
    """What both models share: the data, the emotion dropped from a share of the examples, the trainer's section."""

    system: Literal["emotion_bridges"] = "emotion_bridges"
    data: Data = Data()
    training: Training = Training()

    @model_validator(mode="before")
    @classmethod
    def _seed_words(cls, content: Any) -> Any:
        return translate(content) if isinstance(content, Mapping) else content


class SpectocloudSettings(BridgeSettings):
    """Everything that training Spectocloud is told.

    A clip is ``seconds`` long and becomes ``points`` points; ``crops`` clips per file and epoch. ``width`` and
    ``layers`` size the encoder. ``color_weight`` stands beside the Chamfer distance; ``recolour`` is the share of clips
    that get another emotion, and its colours, in training.
    """

    model: Literal["spectocloud"] = "spectocloud"
    seconds: float = Field(8.0, gt=0.5, le=60)
    points: int = Field(1200, ge=60)
    crops: int = Field(4, ge=1)
    width: int = Field(96, ge=16)
    layers: int = Field(4, ge=1)
    color_weight: float = Field(0.2, ge=0)
    recolour: float = Field(0.5, ge=0, le=1)
    training: Training = Training(
        epochs=150,
        batch_size=32,
        optimizer=Optimizer(lr=1e-3),
        scheduler=Scheduler(warmup_steps=20),
        early_stopping=EarlyStopping(patience=10, min_delta=0.001, min_epochs=50),
        checkpoint=Checkpoint(save_total_limit=2),
        performance=Performance(num_workers=8),
    )


class MidiSettings(BridgeSettings):
    """Everything that training the MIDI generator is told.

    An example is ``bars`` bars of a score, begun every ``hop`` bars, of at most ``context`` tokens. ``drums`` keeps
    them; ``merge`` plays all pitched tracks on one instrument; velocities fall on every ``velocity_step``-th value.
    ``drop`` is the share of examples that lose their emotion, tempo or mode, each by itself, so that the model also
    works without. ``bigrams`` starts the output from the training tokens' bigram statistics, which it then refines.
    """

    model: Literal["midi_generator"] = "midi_generator"
    bars: int = Field(8, ge=1)
    hop: int = Field(4, ge=1)
    context: int = Field(1024, ge=64)
    drums: bool = True
    merge: bool = False
    velocity_step: int = Field(4, ge=4, le=64)
    main_part: bool = False
    drop: float = Field(0.15, ge=0, lt=1)
    width: int = Field(256, ge=16)
    heads: int = Field(8, ge=1)
    layers: int = Field(8, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    bigrams: bool = True
    training: Training = Training(
        epochs=150,
        batch_size=64,
        optimizer=Optimizer(lr=6e-4),
        scheduler=Scheduler(warmup_steps=100),
        early_stopping=EarlyStopping(patience=10, min_delta=0.001, min_epochs=50),
        checkpoint=Checkpoint(save_total_limit=2),
        performance=Performance(num_workers=8),
    )

    @model_validator(mode="after")
    def _agree(self):
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width}: must be a multiple of twice the heads ({self.heads}), for rotary positions")
        return self


def translate(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the seed's words in the trainer's; what is in neither's is left for the strict check."""
    result = dict(content)
    training = result.get("training")
    data = result.get("data")
    if isinstance(training, Mapping):
        result["training"] = training = dict(training)
        _move(training, "grad_accum_steps", training, "gradient_accumulation_steps")
        if "resume_from" in training:
            training["checkpoint"] = {**_mapping(training.get("checkpoint")), "resume": training.pop("resume_from")}
        if "amp" in training or "amp_dtype" in training:
            wanted, kind = training.pop("amp", True), str(training.pop("amp_dtype", "auto"))
            kinds = {"float16": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "auto": True}
            training["mixed_precision"] = kinds.get(kind, kind) if wanted is True else wanted
        stopping = training.get("early_stopping")
        if isinstance(stopping, Mapping):
            stopping = dict(stopping)
            if stopping.pop("enabled", True) is False:
                stopping = None
        if "min_epochs" in training:
            least = training.pop("min_epochs")
            if stopping is not None:
                stopping = {**_mapping(stopping), "min_epochs": least}
        if "early_stopping" in training or stopping is not None:
            training["early_stopping"] = stopping
    if isinstance(data, Mapping) and {"batch_size", "num_workers", "prefetch_factor"} & set(data):
        result["data"] = data = dict(data)
        training = result["training"] = dict(_mapping(result.get("training")))
        _move(data, "batch_size", training, "batch_size")
        loading = {name: data.pop(name) for name in ("num_workers", "prefetch_factor") if name in data}
        if loading:
            training["performance"] = {**_mapping(training.get("performance")), **loading}
    return result


def _move(source: dict, name: str, target: dict, new: str) -> None:
    if name in source:
        value = source.pop(name)
        target[new] = value


def _mapping(value: Any) -> dict[str, Any]:
    return value.model_dump() if isinstance(value, Settings) else dict(value) if isinstance(value, Mapping) else {}


class NotebookSettings(Settings):
    """Both models of notebook 08 on one library; ``repeats`` scores are generated for each point of the emotion grid."""

    dataset: str
    spectocloud: SpectocloudSettings = SpectocloudSettings()
    midi_generator: MidiSettings = MidiSettings()
    repeats: int = Field(4, ge=1)

    def of(self, model: str) -> BridgeSettings:
        """The settings of one model, with the library."""
        data = self.midi_generator.data.model_copy(update={"dataset": self.dataset})  # one set of manifests for both
        return getattr(self, model).model_copy(update={"data": data})
