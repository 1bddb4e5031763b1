"""LoRA Demucs as a system of the trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor, nn

from ..trainer.system import System
from . import augment, base, layers, memory, metrics, ranks, separation, stems
from .adapters import AdapterInfo, Adapters
from .config import LoraDemucsSettings
from .losses import LOSSES
from .tracks import StemTrack


class Trained(nn.Module):
    """A model whose state is what is trained alone: checkpoints of adapters then take megabytes, not the whole model."""

    def __init__(self, separator: nn.Module):
        super().__init__()
        self.separator = separator

    def forward(self, mixture: Tensor) -> Tensor:
        """Stems ``[B, S, C, T]`` of mixtures ``[B, C, T]``."""
        return self.separator(mixture)

    def state_dict(self, *_, **__) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}


class LoraDemucsSystem(System):
    """Trains on random crops of stems, mixed anew in part; validates nSDR on whole held-out tracks."""

    def __init__(self, settings: LoraDemucsSettings, train: Sequence[StemTrack], valid: Sequence[StemTrack], separator=None):
        self.settings, self.train_tracks, self.held_out = settings, train, valid
        torch.manual_seed(settings.training.random_seed)
        separator = separator or base.build(settings)
        self.frames = int(separator.samplerate * separator.segment)
        self.sources = settings.dset.sources
        self.weights = torch.tensor([settings.loss_weights.get(source, 1.0) for source in self.sources])
        self.adapters: Adapters | None = None
        if settings.method == "lora":
            self.adapters = Adapters(separator, settings.base)
            self.adapters.add("default", self._allocate(separator), seed=settings.training.random_seed)
        if settings.htdemucs.enable_checkpointing:
            memory.enable_checkpointing(separator)
        self.model = Trained(separator)
        lengths = numpy.array([track.frames for track in train], float)
        self.shares = lengths / lengths.sum()
        steps = settings.steps_per_epoch or max(1, int(0.1 * lengths.sum() / self.frames / settings.training.batch_size))
        self.examples = steps * settings.training.batch_size

    def __len__(self) -> int:
        return self.examples

    def example(self, index: int, rng: numpy.random.Generator) -> Tensor:
        number = int(rng.choice(len(self.train_tracks), p=self.shares))
        return self._crop(number, rng)

    def _crop(self, number: int, rng: numpy.random.Generator) -> Tensor:
        return torch.from_numpy(augment.crop(self.train_tracks, number, self.frames, self.sources, self.settings.augment, rng))

    def loss(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        found = model(batch.sum(1))
        return {"loss": self._loss(found.float(), batch)}

    def _loss(self, found: Tensor, true: Tensor) -> Tensor:
        return LOSSES[self.settings.loss](found, true, self.weights.to(found.device))

    def validate(self, trainer) -> dict[str, float]:
        rows = []
        for number in trainer.share(list(range(len(self.held_out)))):
            rows.append(self.score(trainer.model.separator, self.held_out[number]))
        values = metrics.means(row for group in trainer.gather(rows) for row in group)
        heard = [value for value in values.values() if not math.isnan(value)]
        found = {f"val_nsdr_{name}": value for name, value in values.items() if not math.isnan(value)}
        return {"val_nsdr": float(numpy.mean(heard)) if heard else 0.0, **found}

    def score(self, separator: nn.Module, track: StemTrack) -> list[dict]:
        """nSDR of a track's sources, on its middle ``valid_seconds`` where that is set."""
        limit = self.settings.valid_seconds
        frames = min(track.frames, int(limit * separator.samplerate)) if limit else track.frames
        true = track.read((track.frames - frames) // 2, frames, self.sources)
        found = separation.separate(separator, true.sum(0))
        return [{"source": name, "nsdr": metrics.nsdr(*pair)} for name, *pair in zip(self.sources, true, found, strict=True)]

    def _allocate(self, separator: nn.Module) -> AdapterInfo:
        """Sources, widened layers and ranks of the adapter to train."""
        settings, own = self.settings, tuple(separator.sources)
        starts = stems.parents(self.sources, own, settings.parents)
        heads = tuple(stems.heads(separator)) if tuple(self.sources) != own else ()
        self.layers = found = layers.adaptable(separator, heads)
        spectra = None
        if settings.htdemucs.lora_rank_mode == "gradient":
            spectra = self.calibrate(separator, found, starts)
        given = settings.htdemucs
        self.allocated = chosen = ranks.allocate(found, given, spectra)
        if given.lora_rank_adaptation:  # room to grow; what is not in use stays zero
            chosen = {layer.name: min(given.lora_max_rank, layer.full_rank) for layer in found if layer.name in chosen}
        return AdapterInfo(
            sources=tuple(self.sources),
            ranks=chosen,
            alpha=given.lora_alpha,
            dropout=given.lora_dropout,
            parents=starts,
            heads=heads,
            base=settings.base,
            base_sources=own,
            digest=self.adapters.digest,
        )

    def calibrate(self, separator: nn.Module, found: Sequence[layers.Layer], starts: dict[str, str]) -> dict[str, list[float]]:
        """Singular values of each layer's gradient, added up over ``calibration_batches`` training batches."""
        own, kept = list(separator.sources), {name: separator.get_submodule(name) for name in stems.heads(separator)}
        stems.put(separator, stems.widen(separator, self.sources, starts), self.sources)
        rng = numpy.random.default_rng(self.settings.training.random_seed)
        separator.requires_grad_(True).train()
        size = self.settings.training.batch_size
        for _ in range(self.settings.htdemucs.calibration_batches):
            batch = torch.stack([self._crop(int(rng.integers(len(self.train_tracks))), rng) for _ in range(size)])
            self._loss(separator(batch.sum(1)), batch).backward()
        spectra = {layer.name: _spectrum(separator.get_submodule(layer.name)) for layer in found}
        separator.zero_grad(set_to_none=True)
        separator.requires_grad_(False).eval()
        stems.put(separator, kept, own)
        return spectra


def _spectrum(module: nn.Module) -> list[float]:
    if isinstance(module, nn.MultiheadAttention):
        parts = [torch.linalg.svdvals(weight.grad) for weight in (module.in_proj_weight, module.out_proj.weight)]
        return (parts[0].square() + parts[1].square()).sqrt().tolist()
    return torch.linalg.svdvals(module.weight.grad.flatten(1)).tolist()


def system_of(settings: LoraDemucsSettings) -> LoraDemucsSystem:
    """The system of ``settings`` with its tracks."""
    from . import tracks

    torch.manual_seed(settings.training.random_seed)
    separator = base.build(settings)
    if settings.method == "lora":
        stems.parents(settings.dset.sources, separator.sources, settings.parents)  # a wrong name is told before files are read
    train, valid = tracks.load(settings, separator.samplerate, separator.audio_channels)
    return LoraDemucsSystem(settings, train, valid, separator)
