"""The ``training`` section of a configuration: typed, strict, with its defaults; no torch here.

A system has this section under ``training`` of its own settings and may narrow the defaults there. Intervals count
optimizer steps; ``null`` means once an epoch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ..config import Settings


class Optimizer(Settings):
    """What updates the weights; ``rates`` scales the rate of parameters whose name matches a regular expression."""

    type: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(0.9, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    rates: dict[str, float] = {}


class Scheduler(Settings):
    """How the rate goes from ``lr`` to ``min_lr`` after a linear warm-up."""

    type: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)


class Loss(Settings):
    """Losses by their names in the registry: one main loss and weighted auxiliary ones."""

    main: str = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    options: dict[str, Any] = {}
    auxiliary: dict[str, float] = {}


class Validation(Settings):
    """When to validate: each ``interval`` steps, or (null) every so many ``epochs``; in batches of which size (null: as in training)."""

    interval: int | None = Field(None, ge=1)
    epochs: int = Field(1, ge=1)
    batch_size: int | None = Field(None, ge=1)


class EarlyStopping(Settings):
    """Stop after ``patience`` validations without an improvement of more than ``min_delta``, but not before ``min_epochs``."""

    patience: int = Field(5, ge=1)
    metric: str = "val_loss"
    min_delta: float = Field(0.0, ge=0)
    mode: Literal["min", "max"] = "min"
    min_epochs: int = Field(0, ge=0)


class Checkpoint(Settings):
    """When to save, how many of the periodic checkpoints stay, and which validation metric makes one the best.

    ``save_dir`` replaces the run's ``ckpt`` folder; ``resume`` names a run to continue (as ``--resume``).
    """

    save_dir: str | None = None
    interval: int | None = Field(None, ge=1)
    save_total_limit: int = Field(2, ge=0)
    resume: str | None = None
    metric: str = "val_loss"
    mode: Literal["min", "max"] = "min"


class Logging(Settings):
    """Where metrics go beside ``metrics.jsonl``; ``log_metrics`` keeps only the named ones (null: all)."""

    interval: int = Field(50, ge=1)
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "music-training"
    wandb_entity: str | None = None
    log_metrics: tuple[str, ...] | None = None


class Performance(Settings):
    """Loading and threads; ``threads`` is per process (null: as torch finds it)."""

    num_workers: int = Field(0, ge=0)
    pin_memory: bool = True
    prefetch_factor: int = Field(2, ge=1)
    threads: int | None = Field(None, ge=1)


class Distributed(Settings):
    """Several processes, started by torchrun; ``world_size`` only checks that as many were started."""

    backend: Literal["nccl", "gloo"] | None = None
    world_size: int | None = Field(None, ge=1)
    sync_gradient_barrier: bool = False
    find_unused_parameters: bool = False


class Training(Settings):
    """Everything the trainer is told. ``batch_size`` counts examples per process and micro step."""

    epochs: int = Field(50, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    random_seed: int = Field(42, ge=0)
    deterministic: bool = False
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    gradient_clipping: float | None = Field(1.0, gt=0)
    gradient_accumulation_steps: int = Field(1, ge=1)
    mixed_precision: bool | Literal["fp16", "bf16"] = True
    amp_loss_scale: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    feature_redraw_interval: int | None = Field(None, ge=1)
    fixed_projection: bool = False
    loss: Loss = Loss()
    validation: Validation = Validation()
    early_stopping: EarlyStopping | None = None
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()
    performance: Performance = Performance()
    distributed: Distributed = Distributed()
    profiling: bool = False

    @model_validator(mode="after")
    def _agree(self):
        if self.scheduler.min_lr > self.optimizer.lr:
            raise ValueError(f"scheduler.min_lr {self.scheduler.min_lr:g} is above optimizer.lr {self.optimizer.lr:g}")
        return self
