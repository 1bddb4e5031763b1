"""What notebooks 04 and 05 do: train a codec, then a language model on its tokens, each as a stage.

Training runs in a process of its own (``scripts/train_audiocraft.py``, under torchrun where several processes are
asked for), which writes its own log and rows of metrics; this module starts it, shows how far it is and remembers its
run folder, so that a killed notebook continues in it. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .. import files, parallel, runs, signals, stages
from ..config import Settings
from ..errors import INTERRUPTED, UserError
from ..live import Live, page_of
from . import finetune, tokens
from .captions import CaptionSettings
from .finetune import LoraSettings
from .models import weights_file

SCRIPT = files.REPOSITORY / "scripts" / "train_audiocraft.py"


class TrainSettings(Settings):
    """What training the codec and the language model have in common.

    ``segment_seconds`` is the length of a training example, ``batch_size`` the examples of an update over all processes,
    computed in ``accumulate`` parts (more parts, less memory). ``workers`` are loader processes (None: as the device
    wants), ``threads`` the compute threads of a process on a CPU, ``processes`` those of torchrun (one a GPU). The
    training's state is written every ``checkpoint_minutes``, after every epoch and, where given, ``checkpoint_steps``.
    ``hydra`` are further overrides of ``model_config/audiocraft``; ``run_name`` replaces the run's generated name.
    """

    epochs: int = Field(1, ge=1)
    updates_per_epoch: int = Field(1000, ge=1)
    batch_size: int = Field(4, ge=1)
    workers: int | None = Field(None, ge=0)
    threads: int = Field(1, ge=1)
    processes: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 2036
    keep_weights_every: int = Field(1, ge=1)
    accumulate: int = Field(1, ge=1)
    checkpoint_minutes: float = Field(10, gt=0)
    checkpoint_steps: int | None = Field(None, ge=1)
    description: str = "default"
    run_name: str | None = None
    hydra: list[str] = []

    def overrides(self, dataset: str) -> list[str]:
        """The settings as Hydra overrides, for a data set's manifests."""
        return [
            f"label={self.description}",
            f"datasource.train=egs/{dataset}/train",
            f"datasource.valid=egs/{dataset}/valid",
            f"optim.epochs={self.epochs}",
            f"optim.updates_per_epoch={self.updates_per_epoch}",
            f"dataset.batch_size={self.batch_size}",
            f"dataset.num_workers={'auto' if self.workers is None else self.workers}",
            f"num_threads={self.threads}",
            f"device={self.device}",
            f"seed={self.seed}",
            f"checkpoint.keep_weights_every={self.keep_weights_every}",
            f"checkpoint.every_minutes={self.checkpoint_minutes}",
            f"checkpoint.every_steps={'null' if self.checkpoint_steps is None else self.checkpoint_steps}",
            f"optim.accumulate={self.accumulate}",
        ]


class CodecSettings(TrainSettings):
    """How to get a codec: trained, or ``pretrained`` (a hub name such as ``facebook/encodec_32khz``, or a file).

    ``check_every`` epochs (0: never; None: as $CODEC_CHECK_EVERY says) it is checked on ``check_samples`` clips.
    """

    pretrained: str = ""
    model: str = "codec_large_32khz"
    segment_seconds: float = Field(1.0, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    adversarial: bool = True
    check_every: int | None = Field(None, ge=0)
    check_samples: int = Field(5, ge=1)

    def overrides(self, dataset: str) -> list[str]:
        return [
            "solver=compression",
            f"model={self.model}",
            *super().overrides(dataset),
            f"dataset.segment_duration={self.segment_seconds}",
            f"optim.lr={self.learning_rate}",
            *([] if self.adversarial else ["adversarial.adversaries=[]"]),
            *self.hydra,
        ]


class LanguageModelSettings(TrainSettings):
    """How to train MusicGen's language model on the tokens of ``codec`` (None: the one of 04_train_codec).

    ``conditioning``: none, or text through ``lut`` (learnt word vectors, offline) or ``t5`` (a frozen text encoder:
    ``t5`` is its hub name or local folder). ``token_cache`` encodes the data set once instead of every example again, its
    training split ``token_shifts`` times, each begun a part of a frame later (:mod:`.tokens`).
    ``captions`` has a description written anew for every training example, from what the catalogue knows;
    ``guidance_dropout`` is the share of examples without their text, which classifier-free guidance needs (None: as the
    conditioner's file says). ``recompute`` computes the activations a second time instead of keeping them in memory.
    ``pretrained`` names a model to begin with (:mod:`.finetune`): ``model``, ``conditioning`` and ``codec`` are then its own,
    and ``lora.rank`` trains adapters in place of all its weights.
    """

    codec: str | None = None
    model: str = "lm_small"
    conditioning: Literal["none", "lut", "t5"] = "none"
    t5: str = "t5-base"
    segment_seconds: float = Field(10.0, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    token_cache: bool = True
    token_shifts: int = Field(1, ge=1, le=64)
    captions: CaptionSettings | None = CaptionSettings()
    guidance_dropout: float | None = Field(None, ge=0, lt=1)
    recompute: bool = False
    pretrained: str = ""
    lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _beginning(self) -> LanguageModelSettings:
        if self.pretrained and self.codec:
            raise ValueError(f"codec {self.codec!r}: {self.pretrained} comes with its own; leave codec empty")
        if self.lora.rank and not self.pretrained:
            raise ValueError("lora.rank: adapters need a model that they adapt; give pretrained")
        return self

    def overrides(self, dataset: str) -> list[str]:
        kind = [f"start_from={self.pretrained}"] if self.pretrained else [f"model={self.model}", f"conditioner={self.conditioning}"]
        text = bool(self.pretrained) or self.conditioning != "none"
        return [
            "solver=musicgen",
            *kind,
            *([f"lora.rank={self.lora.rank}", f"lora.alpha={self.lora.alpha}"] if self.lora.rank else []),
            *super().overrides(dataset),
            f"dataset.segment_duration={self.segment_seconds}",
            f"optim.lr={self.learning_rate}",
            f"schedule.cosine.warmup={self.warmup_steps}",
            *([f"conditioners.description.t5.name={self.t5}"] if self.conditioning == "t5" and not self.pretrained else []),
            *([f"+captions.{name}={value}" for name, value in self.captions] if self.captions and text else []),
            *(["transformer_lm.checkpointing=torch"] if self.recompute else []),
            *([] if self.guidance_dropout is None else [f"classifier_free_guidance.training_dropout={self.guidance_dropout}"]),
            *self.hydra,
        ]


def train_codec(
    settings: CodecSettings, dataset: str, scope: str, price: str | float | None = None, force: bool = False, guard: str = ""
) -> stages.StageResult:
    """Train a codec on a data set; the result names its ``run`` and its ``codec`` (a weights folder, or a published one).

    ``price`` is what an hour costs, for the live view (None: as :mod:`music_training.prices` knows it). ``guard``, a
    ``package.module:function``, makes what looks after the updates (:mod:`music_training.guard`).
    """

    def make(draft: stages.Draft) -> stages.Made:
        if settings.pretrained:
            return stages.Made([], {"run": "", "codec": settings.pretrained})
        run = _train(draft, "codec", settings, [*settings.overrides(dataset), *_guarded(guard)], price)
        return stages.Made(_weights(run), {"run": run.name, "codec": files.relative(run / "ckpt" / "best")})

    params = {**settings.model_dump(exclude=_PLACE), **({"guard": guard} if guard else {})}
    return stages.run("train_codec", make, scope=scope, params=params, inputs=_manifests(dataset), force=force)


def train_language_model(
    settings: LanguageModelSettings, dataset: str, scope: str, price: str | float | None = None, force: bool = False, guard: str = ""
) -> stages.StageResult:
    """Train the language model; the result names its ``run``, its weights (``model``) and the ``codec`` it speaks.

    ``price`` is what an hour costs, for the live view (None: as :mod:`music_training.prices` knows it). ``guard``, a
    ``package.module:function``, makes what looks after the updates (:mod:`music_training.guard`).
    """
    begins = finetune.fetch(settings.pretrained) if settings.pretrained else None
    codec = begins["codec"] if begins else settings.codec or stages.latest("train_codec", scope, "04_train_codec")["codec"]
    weights = files.absolute(codec) / "model.safetensors"
    encoding = tokens.TokenSettings(device=settings.device, shifts=settings.token_shifts)
    cache = tokens.encode(dataset, codec, scope, encoding).result if settings.token_cache else {}

    def make(draft: stages.Draft) -> stages.Made:
        reference = codec if files.absolute(codec).exists() else f"//pretrained/{codec.removeprefix('//pretrained/')}"
        overrides = [*settings.overrides(dataset), *_guarded(guard)]
        overrides += [] if begins else [f"compression_model_checkpoint={reference}"]
        overrides += [f"token_cache={cache['tokens']}"] if cache else []
        run = _train(draft, "musicgen", settings, overrides, price)
        result = {"run": run.name, "model": files.relative(run / "ckpt" / "best"), "codec": codec, "tokens": cache.get("tokens", "")}
        return stages.Made(_weights(run), result)

    params = {**settings.model_dump(exclude=_PLACE), "codec": codec, **({"guard": guard} if guard else {})}
    inputs = [*_manifests(dataset), *([weights] if weights.is_file() else [])]
    inputs += [files.absolute(cache["tokens"]) / tokens.INDEX] if cache else []
    inputs += [files.absolute(begins["model"]) / "model.safetensors"] if begins else []
    return stages.run("train_musicgen", make, scope=scope, params=params, inputs=inputs, force=force)


# Where and how fast, and how closely watched: not what.
_PLACE = {"workers", "threads", "processes", "device", "check_every", "check_samples", "checkpoint_minutes", "checkpoint_steps"}


def _guarded(guard: str) -> list[str]:
    return [f"guard={guard}"] if guard else []


def _train(draft: stages.Draft, system: str, settings: TrainSettings, overrides: list[str], price: str | float | None) -> Path:
    """Train in the stage's unfinished run folder, or in a new one; returns it."""
    known = draft.memory.get("run")
    if known and (runs.folder() / known).is_dir():
        run = runs.folder() / known
        print(f"continuing {run.name}", flush=True)
    else:
        run = runs.create(system, settings.description, settings.run_name)
        draft.remember(run=run.name)
    log = run / "logs" / "train.log"
    print(f"log: {log}", flush=True)
    print(f"curves: {page_of(run)}", flush=True)
    launcher = [] if settings.processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={settings.processes}"]
    with open(log, "a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, *launcher, str(SCRIPT), *overrides, f"run={run.name}"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_checks(settings)},
            preexec_fn=functools.partial(parallel.die_with_parent, os.getpid()),
        )
        try:
            with signals.handled(lambda _: process.terminate(), signal.SIGTERM):  # it writes its checkpoint and ends
                _follow(process, run, settings.epochs * settings.updates_per_epoch, price)
        finally:
            if process.poll() is None:  # this process is being interrupted
                process.terminate()
                process.wait()
    return run


def _checks(settings: TrainSettings) -> dict[str, str]:
    """The environment that asks for a codec to be checked while it trains."""
    if getattr(settings, "check_every", None) is None:
        return {}
    return {"CODEC_CHECK_EVERY": str(settings.check_every), "CODEC_CHECK_SAMPLES": str(settings.check_samples)}


def _follow(process: subprocess.Popen, run: Path, steps: int, price: str | float | None) -> None:
    """Show the rows of metrics as they come, until the process ends; raise what it died of."""
    with Live(run, steps, price) as shown:
        while process.poll() is None:
            shown.look()
            time.sleep(0.5)
        shown.look()
        if process.returncode:
            raise _failure(process.returncode, run)


def _failure(code: int, run: Path) -> Exception:
    log = run / "logs" / "train.log"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code == INTERRUPTED:
        return UserError(f"{run.name} was stopped by SIGTERM at a checkpoint; run the same again to go on")
    if code == 2 and lines and lines[-1].startswith("error: "):
        return UserError(lines[-1].removeprefix("error: "))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RuntimeError(f"training {how}; its last line: {lines[-1] if lines else '(none)'}; the whole log: {log}")


def _manifests(dataset: str) -> list[Path]:
    folder = files.outputs_root() / "egs" / dataset
    found = [folder / split / "data.jsonl" for split in ("train", "valid")]
    for manifest in found:
        if not manifest.is_file():
            raise UserError(f"{manifest}: no manifest; run 03_segment_audio first")
    return found


def _weights(run: Path) -> list[Path]:
    return [weights_file(run / "ckpt" / "best"), run / "config.yaml", run / "metrics.jsonl"]
