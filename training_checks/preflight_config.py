"""The part of the preflight that looks at a resolved configuration: what is legal, runs for hours, and then is worth nothing.

``cfg`` is the configuration that ``music_training.musicgen.train.compose`` returns. Facts about the data and the codec
are handed in; None where they are not known yet.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from music_training import files, parallel, runs
from training_checks.report import Finding

if TYPE_CHECKING:
    from omegaconf import DictConfig


def frame_rate(cfg: DictConfig) -> float:
    """Frames that the codec of a configuration makes of a second (Hz)."""
    return cfg.sample_rate / math.prod(cfg.seanet.ratios)


def total_steps(cfg: DictConfig) -> int:
    """Updates of the whole training."""
    return cfg.optim.epochs * cfg.optim.updates_per_epoch


def codebooks(cfg: DictConfig, processes: int = 1) -> list[Finding]:
    """A batch has to hold enough frames for the codebook: codes used too rarely are taken for dead and thrown away.

    Each process counts the codes of its own part of the batch.
    """
    frames = cfg.dataset.batch_size / processes * cfg.dataset.segment_duration * frame_rate(cfg)
    use, threshold = frames / cfg.rvq.bins, cfg.rvq.threshold_ema_dead_code
    figures = f"{frames:.0f} frames a batch for {cfg.rvq.bins} codes are {use:.2f} uses of a code"
    if threshold and use < threshold:
        least = processes * math.ceil(2 * threshold * cfg.rvq.bins / frame_rate(cfg) / cfg.dataset.segment_duration)
        todo = f"batch_size={least}, or hydra: [rvq.threshold_ema_dead_code={use / 4:.2g}], or fewer bins"
        return [
            Finding("fault", "codebook", f"{figures}, and below {threshold:g} a code counts as dead: all are resampled at every step", todo)
        ]
    if frames < cfg.rvq.bins / 16:
        todo = "a larger batch, longer examples or fewer bins"
        return [Finding("warning", "codebook", f"{figures}: most codes are hardly ever trained", todo)]
    return []


def precision(cfg: DictConfig) -> list[Finding]:
    """What half precision does to each solver; ``auto`` is right everywhere."""
    if cfg.autocast in (False, "auto"):
        return []
    if cfg.solver == "compression":
        message = "autocast=true: spectral losses and codebook distances of the codec lose their small values in half precision"
        return [Finding("warning", "precision", message, "leave autocast=auto, which trains the codec in float32")]
    if cfg.autocast_dtype == "float16":
        message = "autocast in float16 overflows now and then (grad_norm=INF), and the schedule goes on over skipped steps"
        return [Finding("warning", "precision", message, "autocast_dtype=bfloat16, where the GPU has it")]
    return []


def schedule(cfg: DictConfig) -> list[Finding]:
    """Learning rate, warm-up and averaging against the number of steps there are."""
    found, steps = [], total_steps(cfg)
    name = cfg.schedule.lr_scheduler
    warmup = (cfg.schedule.get(name) or {}).get("warmup", 0) if name else 0
    if warmup >= steps:
        message = f"{warmup} steps of warm-up, {steps} steps in all: the learning rate never gets where it should"
        found.append(Finding("fault", "schedule", message, f"give warmup_steps={max(1, steps // 20)}, or more epochs"))
    elif warmup > steps / 2:
        found.append(Finding("warning", "schedule", f"{warmup} of {steps} steps are warm-up", f"give warmup_steps={max(1, steps // 20)}"))
    ema = cfg.optim.ema
    if ema.use and ema.updates / (1 - ema.decay) > steps:
        message = f"weights averaged over about {ema.updates / (1 - ema.decay):.0f} steps, {steps} in all: the average stays near the start"
        found.append(Finding("warning", "averaging", message, f"hydra: [optim.ema.decay={1 - 10 / max(steps, 20):.3g}]"))
    if cfg.optim.optimizer == "dadam":  # finds the rate by itself; lr is a factor of it
        if not 0.1 <= cfg.optim.lr <= 10:
            found.append(Finding("warning", "learning rate", f"{cfg.optim.lr:g} is a factor for D-Adaptation, not a rate", "1"))
    elif cfg.optim.lr > 0.02:
        found.append(Finding("warning", "learning rate", f"{cfg.optim.lr:g} is far above what such models bear", "1e-4 to 3e-3"))
    return found


def finished(run: Path, cfg: DictConfig) -> list[Finding]:
    """A run whose cosine schedule has come to its end learns nothing from more epochs."""
    from omegaconf import OmegaConf

    path = run / "config.yaml"
    if not path.is_file():
        return []
    before = OmegaConf.load(path)
    done = runs.read_metadata(run).get("steps", 0)
    if before.schedule.lr_scheduler != "cosine" or done < total_steps(before) or total_steps(cfg) <= total_steps(before):
        return []
    message = f"{run.name} has done the {done} steps of its cosine schedule: further epochs would train at a rate of 0"
    return [Finding("fault", "schedule", message, f"start a new run with continue_from={run.name} and a warm-up")]


def loaders(cfg: DictConfig) -> int:
    """Reading processes of each training process; ``auto`` picks what fits."""
    return 0 if cfg.dataset.num_workers == "auto" else int(cfg.dataset.num_workers)


def data_against_batch(cfg: DictConfig, clips: int | None, processes: int = 1) -> list[Finding]:
    """Batches against processes and clips."""
    found = []
    parts = processes * cfg.optim.get("accumulate", 1)
    if cfg.dataset.batch_size % parts:
        message = f"{cfg.dataset.batch_size} is not divisible by processes x optim.accumulate = {parts}"
        found.append(Finding("fault", "batch", message, f"batch_size={math.ceil(cfg.dataset.batch_size / parts) * parts}"))
    if clips is not None and 0 < clips < cfg.dataset.batch_size:
        message = f"a batch of {cfg.dataset.batch_size} from {clips} clips repeats them within itself"
        found.append(Finding("warning", "batch", message, f"batch_size={max(1, clips // 2)}, or more audio"))
    workers, cores = loaders(cfg) * processes, parallel.cores()
    if workers > 2 * cores:
        found.append(Finding("warning", "workers", f"{workers} loader processes on {cores} cores wait for each other", f"workers={cores}"))
    return found


def conditioning(cfg: DictConfig, described: float | None) -> list[Finding]:
    """Conditioners against the data; ``described``: the share of clips with a caption."""
    if described is None:
        return []
    text = "description" in (cfg.conditioners or {})
    if text and described == 0:
        message = "the model is conditioned on text, and not one clip has a description"
        return [Finding("fault", "conditioning", message, "conditioning=none, or give the tracks captions")]
    if text and described < 0.5:
        message = f"the model is conditioned on text, and {1 - described:.0%} of the clips have no description"
        return [Finding("warning", "conditioning", message, "add captions; python -m training_checks.validate_conditioning says more")]
    if not text and described > 0.5:
        message = f"{described:.0%} of the clips have a description, which an unconditional model does not use"
        return [Finding("note", "conditioning", message, "conditioning=lut (offline) or t5, if prompts are wanted")]
    return []


def checkpoints(cfg: DictConfig) -> list[Finding]:
    """What the configuration names as codec and as starting point has to exist, as this project names it."""
    found = []
    for key in ("compression_model_checkpoint", "continue_from"):
        reference = cfg.get(key)
        if not reference or key == "compression_model_checkpoint" and cfg.solver != "musicgen":
            continue
        text = str(reference)
        if text.startswith("//pretrained/"):
            name = text.removeprefix("//pretrained/")
            if os.environ.get("HF_HUB_OFFLINE") == "1" and not (files.absolute(name).exists() or _cached(name)):
                message = f"{key}={text}: not in the hub's cache, and HF_HUB_OFFLINE=1"
                found.append(Finding("fault", "checkpoint", message, "download it once without HF_HUB_OFFLINE, or give a folder"))
        elif not (files.absolute(text.removeprefix("//sig/")).exists() or (runs.folder() / text.removeprefix("//sig/")).is_dir()):
            hub = "/" in text and not text.startswith(("/", ".", "training/"))
            todo = f"for a published model write //pretrained/{text}" if hub else "name a run, a weights folder or a file"
            found.append(Finding("fault", "checkpoint", f"{key}={text}: neither a run nor a file", todo))
    return found


def _cached(name: str) -> bool:
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir()


def codec_of(reference: str) -> dict[str, Any] | None:
    """Codebooks, bins and frame rate of a codec that lies here; None for a published one."""
    from omegaconf import OmegaConf

    path = files.absolute(reference) / "config.yaml"
    if not path.is_file():
        return None
    codec = OmegaConf.load(path)
    return {"n_q": codec.rvq.n_q, "bins": codec.rvq.bins, "frame_rate": frame_rate(codec), "sample_rate": codec.sample_rate}


def codec_against_model(cfg: DictConfig, codec: dict[str, Any] | None) -> list[Finding]:
    """The language model's codebooks have to be the codec's."""
    if codec is None:
        return []
    found = []
    model, asked = cfg.transformer_lm, cfg.get("compression_model_n_q") or codec["n_q"]
    if (model.n_q, model.card) != (asked, codec["bins"]):
        message = f"the model speaks {model.n_q} codebooks of {model.card}, the codec {asked} of {codec['bins']}"
        todo = f"hydra: [transformer_lm.n_q={asked}, transformer_lm.card={codec['bins']}], or the codec it was made for"
        found.append(Finding("fault", "codec", message, todo))
    if codec["sample_rate"] != cfg.sample_rate:
        message = f"the codec works at {codec['sample_rate']} Hz, the data at {cfg.sample_rate} Hz"
        found.append(Finding("fault", "codec", message, "segment the audio at the codec's rate, or train a codec on it"))
    return found


def generation(cfg: DictConfig, seconds: float | None, top_k: int | None) -> list[Finding]:
    """What is to be generated, against what the model will have seen."""
    found = []
    if seconds and seconds > cfg.dataset.segment_duration:
        message = f"clips of {seconds:g} s from a model trained on {cfg.dataset.segment_duration:g} s: positions beyond were never seen"
        found.append(Finding("note", "generation", message, "expect repetition there; train on longer examples (curriculum_train.py)"))
    if top_k and top_k > cfg.transformer_lm.card:
        found.append(
            Finding("fault", "generation", f"top_k={top_k} of {cfg.transformer_lm.card} codes", f"top_k={cfg.transformer_lm.card} at most")
        )
    return found
