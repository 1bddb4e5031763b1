"""Settings of LoRA Demucs; no torch here. The trainer's section is ``training``, with this system's defaults.

Short names that are common for Demucs (``optim.lr``, ``batch_size``, ``continue_from``, ``htdemucs.lora_rank`` ...) are
understood beside the full ones; :data:`SHORT` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..config import Settings
from ..trainer.config import Checkpoint, Optimizer, Performance, Scheduler, Training

DEMUCS_SOURCES = ("drums", "bass", "other", "vocals")
RANK_MODES = ("uniform", "heuristic", "growth", "gradient")

# Short name -> where it belongs. The trainer's section has its own names.
SHORT = {
    "continue_from": "base",
    "variant": "preset",
    "segment": "htdemucs.segment",
    "use_train_segment": "htdemucs.use_train_segment",
    "optim.lr": "training.optimizer.lr",
    "optim.warmup_steps": "training.scheduler.warmup_steps",
    "optim.scheduler": "training.scheduler.type",
    "batch_size": "training.batch_size",
    "gradient_clip": "training.gradient_clipping",
    "mixed_precision": "training.mixed_precision",
    "htdemucs.batch_size": "training.batch_size",
    "htdemucs.gradient_clip": "training.gradient_clipping",
    "htdemucs.mixed_precision": "training.mixed_precision",
    "htdemucs.precision": "training.mixed_precision",
    "dset.num_workers": "training.performance.num_workers",
    "dset.prefetch_factor": "training.performance.prefetch_factor",
    "dset.pin_memory": "training.performance.pin_memory",
}
VALUES = {"float16": "fp16", "bfloat16": "bf16", "float32": False, "finetune": "fine_tuning"}

# Learning rates by what is trained: preset -> settings of the trainer that hold where none are given.
PRESETS: dict[str, dict[str, Any]] = {
    "from_scratch": {"optimizer.lr": 1e-4, "scheduler.warmup_steps": 1000, "scheduler.type": "cosine"},
    "fine_tuning": {"optimizer.lr": 5e-5, "scheduler.warmup_steps": 500, "scheduler.type": "linear"},
}


class Audio(Settings):
    """What is heard: the stems to separate, the sample rate (Hz) and the channels.

    ``wav`` is a folder ``train|valid/<track>/<stem>.wav``. ``sample_rate`` and ``channels`` null are the base model's
    (44100 Hz and stereo from scratch); files at other rates are converted once.
    """

    wav: str | None = None
    sources: tuple[str, ...] = DEMUCS_SOURCES
    sample_rate: int | None = Field(None, ge=8000)
    channels: int | None = Field(None, ge=1, le=2)

    @model_validator(mode="after")
    def _agree(self):
        if len(set(self.sources)) < len(self.sources) or len(self.sources) < 2:
            raise ValueError(f"sources: name at least two stems, each once; got {list(self.sources)}")
        return self


class Adaptation(Settings):
    """Re-allocation of rank while training: each ``interval`` steps from ``start`` to ``end`` (shares of the training).

    Of the directions in use the ``share`` that matters least is taken away, and as many parameters are given to layers
    whose gradient asks for more, up to ``lora_max_rank``.
    """

    interval: int = Field(100, ge=1)
    share: float = Field(0.1, gt=0, lt=1)
    start: float = Field(0.1, ge=0, le=1)
    end: float = Field(0.7, ge=0, le=1)


class HtDemucs(Settings):
    """The model and its adapters. What is null is the base model's, or demucs' default from scratch.

    ``lora_alpha`` scales the update: W + lora_alpha * B A. ``layer_ranks`` maps patterns (``encoder.0.*``,
    ``transformer.cross_attn.*``, ``decoder.*``) to ranks over what the mode gives; ``time_branch`` lets encoder and
    decoder patterns reach the time branch, too. ``budget`` is a number of adapter parameters to which the mode's ranks
    are scaled (gradient mode: the one of rank ``lora_rank`` everywhere, where null).

    With ``cac`` false the frequency branch gives magnitudes and takes the mixture's phase; ``start`` masks lets such a
    model begin as masks of the mixture, from which small ones learn in hundreds of steps what else takes thousands.
    """

    lora_rank: int = Field(4, ge=1)
    lora_alpha: float = Field(1.0, gt=0)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    lora_rank_mode: Literal["uniform", "heuristic", "growth", "gradient"] = "heuristic"
    lora_max_rank: int = Field(16, ge=1)
    layer_ranks: dict[str, int] = {}
    time_branch: bool = True
    base_rank: int = Field(4, ge=1)
    rank_growth: float = Field(1.5, gt=0)
    min_rank: int = Field(2, ge=0)
    max_rank: int = Field(16, ge=1)
    budget: int | None = Field(None, ge=1)
    calibration_batches: int = Field(8, ge=1)
    lora_rank_adaptation: bool = False
    adaptation: Adaptation = Adaptation()

    channels: int | None = Field(None, ge=8)
    channels_time: int | None = Field(None, ge=4)
    growth: float | None = Field(None, gt=0)
    depth: int | None = Field(None, ge=1)
    nfft: int | None = Field(None, ge=64)
    hop_length: int | None = Field(None, ge=16)
    dconv_mode: int | None = Field(None, ge=0, le=3)
    bottom_channels: int | None = Field(None, ge=0)
    cac: bool | None = None
    start: Literal["random", "masks"] = "random"
    t_layers: int | None = Field(None, ge=0)
    t_heads: int | None = Field(None, ge=1)
    t_dropout: float | None = Field(None, ge=0, lt=1)
    segment: float | None = Field(None, gt=0)
    use_train_segment: bool | None = None

    enable_checkpointing: bool = False
    enable_profiling: bool = False
    profile_memory: bool = False

    @model_validator(mode="after")
    def _agree(self):
        if self.min_rank > self.max_rank:
            raise ValueError(f"min_rank {self.min_rank} is above max_rank {self.max_rank}")
        if self.hop_length and self.nfft and self.hop_length * 4 != self.nfft:
            raise ValueError(f"hop_length {self.hop_length}: HTDemucs has windows that overlap by three quarters, so it is nfft/4")
        wrong = {name: rank for name, rank in self.layer_ranks.items() if rank < 0}
        if wrong:
            raise ValueError(f"layer_ranks: a rank is 0 (no adapter) or more; got {wrong}")
        return self


class Augment(Settings):
    """Random changes of a training example, each with its share of the examples; 0 switches one off.

    ``remix`` takes each stem from another place of another track; ``scale`` is the range of gains; ``flip`` turns a
    stem's polarity, ``swap`` its left and right; ``repitch`` shifts by up to ``semitones`` with the tempo changed by
    up to ``tempo`` (share), the drums with the tempo only.
    """

    remix: float = Field(0.5, ge=0, le=1)
    scale: tuple[float, float] = (0.5, 1.5)
    flip: float = Field(0.5, ge=0, le=1)
    swap: float = Field(0.5, ge=0, le=1)
    repitch: float = Field(0.0, ge=0, le=1)
    semitones: float = Field(2.0, ge=0, le=12)
    tempo: float = Field(0.12, ge=0, lt=0.5)


class LoraDemucsSettings(Settings):
    """Everything that training LoRA Demucs is told.

    ``base`` is a name that demucs knows (``htdemucs``, ``htdemucs_6s``, a signature), a file, a run, or ``scratch``;
    ``method`` trains adapters (``lora``) or all weights (``full``). ``dataset`` is a library under ``outputs/library``
    whose tracks have stems, divided by artist with ``train_split``, of the rest ``test_split`` (a share of all artists) for the
    evaluation alone (0: it is on the validation's tracks); ``dset.wav`` a folder instead (with ``test/`` or without). ``parents`` says
    from which stem of the base a new one starts. ``steps_per_epoch`` examples times ``training.batch_size`` make an
    epoch (null: a tenth of what the segments of all tracks would be). ``loss``: ``l1``, ``l2``, ``spectral`` (several
    resolutions, with L1), ``log_ratio`` (error over energy of each stem and example, logarithmic), ``batch_log_ratio``
    (of each stem over the batch) or ``bright_log_ratio`` (the same, the treble counting as much); ``loss_weights`` lets
    stems count for more or less than 1.
    """

    system: Literal["lora_demucs"] = "lora_demucs"
    base: str = "htdemucs"
    method: Literal["lora", "full"] = "lora"
    preset: Literal["from_scratch", "fine_tuning"] | None = None
    dataset: str | None = None
    train_split: float = Field(0.8, gt=0, lt=1)
    test_split: float = Field(0.0, ge=0, lt=1)
    parents: dict[str, str] = {}
    dset: Audio = Audio()
    htdemucs: HtDemucs = HtDemucs()
    loss: Literal["l1", "l2", "spectral", "log_ratio", "batch_log_ratio", "bright_log_ratio"] = "l1"
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    augment: Augment = Augment()
    steps_per_epoch: int | None = Field(None, ge=1)
    valid_seconds: float | None = Field(None, gt=0)
    training: Training = Training(
        epochs=50,
        batch_size=4,
        optimizer=Optimizer(lr=5e-5, weight_decay=0.0),
        scheduler=Scheduler(type="linear", warmup_steps=500),
        gradient_clipping=0.5,
        checkpoint=Checkpoint(metric="val_nsdr", mode="max", save_total_limit=2),
        performance=Performance(num_workers=4),
    )

    @model_validator(mode="before")
    @classmethod
    def _understand_short_names(cls, content: Any) -> Any:
        return expand(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _agree(self):
        if self.method == "lora" and self.base == "scratch":
            raise ValueError("base scratch with method lora: nothing would learn but the adapters of a random model; take method full")
        if self.train_split + self.test_split >= 1:
            raise ValueError(f"train_split {self.train_split:g} and test_split {self.test_split:g} leave nothing to validate with")
        if strange := sorted(set(self.loss_weights) - set(self.dset.sources)):
            raise ValueError(f"loss_weights: {', '.join(strange)} is not among the sources {', '.join(self.dset.sources)}")
        if self.dataset and self.dset.wav:
            raise ValueError("dataset and dset.wav: give one of the two")
        return self


def expand(content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every short name moved to its full one, and the preset's rates where none are given."""
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}
    moved = {}
    for short, full in SHORT.items():
        *parents, leaf = short.split(".")
        level: Any = result
        for parent in parents:
            level = level.get(parent) if isinstance(level, dict) else None
        if isinstance(level, dict) and leaf in level:
            value = level.pop(leaf)
            moved[full] = VALUES.get(value, value) if isinstance(value, str) else value
    if isinstance(result.get("optim"), dict) and not result["optim"]:
        del result["optim"]
    for full, value in moved.items():
        result = _placed(result, full, value)
    for name, value in PRESETS.get(str(result.get("preset")), {}).items():
        if not _has(result, f"training.{name}"):
            result = _placed(result, f"training.{name}", value)
    return result


def _placed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    inner = content.get(head)
    return {**content, head: _placed(dict(inner) if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def _has(content: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return False
        content = content[part]
    return True
