"""Ranks that move while training: directions that matter little are taken away, layers that ask for more get them.

Every adapter has room for ``lora_max_rank`` directions, of which those of its allocated rank are in use at first. A
direction that is not in use has a zero second factor and gets no gradient. The parameters in use never exceed the
budget that the allocation spent. Decisions follow from weights and gradients, which all processes share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..trainer.callbacks import Callback
from .adapters import AdapterInfo
from .config import HtDemucs

MEMORY = 0.9  # of the moving averages of what a direction matters and of what a layer asks for


class RankAdaptation(Callback):
    """Prunes and regrows directions each ``adaptation.interval`` steps; the first masks are the system's allocated ranks."""

    order = 5  # before gradients are clipped

    def __init__(self, settings: HtDemucs):
        self.settings = settings
        self.masks: dict[str, Tensor] = {}
        self.matters: dict[str, Tensor] = {}
        self.asks: dict[str, Tensor] = {}
        self.moved = 0

    def on_train_start(self, trainer) -> None:
        made = trainer.system.adapters
        info = made.known["default"]
        costs = {layer.name: layer.cost for layer in trainer.system.layers}
        self.costs = {name: costs[name] for name in info.ranks}
        self.factors = {name: second_factors(made.model.get_submodule(name), "default") for name in info.ranks}
        for name, rank in info.ranks.items():
            if name not in self.masks:
                self.masks[name] = torch.arange(rank) < trainer.system.allocated[name]
                self.matters[name], self.asks[name] = torch.zeros(rank), torch.zeros(())

    def on_gradients(self, trainer) -> None:
        for name, mask in self.masks.items():
            effect, want = torch.zeros(len(mask)), torch.zeros(len(mask))
            for weight, place in self.factors[name]:
                gradient = weight.grad.movedim(place, 0).flatten(1).float()
                effect += (weight.detach().movedim(place, 0).flatten(1) * gradient).abs().sum(1).cpu()
                want += gradient.square().sum(1).cpu()
                shape = [-1 if dimension == place else 1 for dimension in range(weight.dim())]
                weight.grad.mul_(mask.to(weight).view(shape))
            self.matters[name].lerp_(effect, 1 - MEMORY)
            if not mask.all():
                self.asks[name].lerp_(want[~mask].mean(), 1 - MEMORY)

    def on_step_end(self, trainer, step: int, metrics) -> None:
        chosen, done = self.settings.adaptation, step / trainer.total_steps
        if step % chosen.interval == 0 and chosen.start <= done <= chosen.end:
            self.reallocate(trainer.optimizer)

    def parameters(self) -> int:
        """Adapter parameters in use."""
        return sum(int(mask.sum()) * self.costs[name] for name, mask in self.masks.items())

    @torch.no_grad()
    def reallocate(self, optimizer) -> None:
        """Take the least important share of the parameters in use, and spend as many where gradients ask for more."""
        budget = self.parameters()
        used = [
            (float(self.matters[name][place]) / self.costs[name], name, place)
            for name, mask in self.masks.items()
            for place in mask.nonzero().flatten().tolist()
        ]
        freed = 0
        for _, name, place in sorted(used):
            mask = self.masks[name]
            if freed + self.costs[name] > self.settings.adaptation.share * budget or mask.sum() <= 1:
                continue
            mask[place] = False
            freed += self.costs[name]
            for weight, dimension in self.factors[name]:
                weight.select(dimension, place).zero_()
                for value in optimizer.state.get(weight, {}).values():
                    if torch.is_tensor(value) and value.shape == weight.shape:
                        value.select(dimension, place).zero_()
        self.moved += freed
        for name in sorted(self.asks, key=lambda name: (-float(self.asks[name]) / self.costs[name], name)):
            free = (~self.masks[name]).nonzero().flatten().tolist()
            while free and self.costs[name] <= freed:
                self.masks[name][free.pop(0)] = True
                freed -= self.costs[name]

    def state_dict(self) -> dict:
        return {"masks": dict(self.masks), "matters": dict(self.matters), "asks": dict(self.asks), "moved": self.moved}

    def load_state_dict(self, state: dict) -> None:
        self.masks, self.matters, self.asks = dict(state["masks"]), dict(state["matters"]), dict(state["asks"])
        self.moved = state["moved"]


def second_factors(module: nn.Module, adapter: str) -> list[tuple[nn.Parameter, int]]:
    """The second factors of a layer's adapter, each with the dimension that counts directions."""
    found = [getattr(module, name)[adapter] for name in ("lora_B", "lora_out_B") if hasattr(module, name)]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)
    return [(factor.weight, 0 if isinstance(factor, transposed) else 1) for factor in found if hasattr(factor, "weight")]


def compact(info: AdapterInfo, tensors: Mapping[str, Tensor], transposed: set[str]) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """An adapter without the directions whose second factor is zero: the same update in fewer parameters.

    ``transposed`` names the layers whose second factor counts directions in its first dimension.
    """
    made, kept_ranks = dict(tensors), {}
    for layer, rank in info.ranks.items():
        side = 0 if layer in transposed else 1
        seconds = [name for name in (f"{layer}.lora_B.weight", f"{layer}.lora_out_B.weight") if name in tensors]
        used = sum(tensors[name].movedim(side, 0).flatten(1).abs().sum(1) for name in seconds) > 0
        if not used.any():
            used[0] = True
        kept_ranks[layer] = int(used.sum())
        if kept_ranks[layer] == rank:
            continue
        for name in seconds:
            made[name] = tensors[name].movedim(side, 0)[used].movedim(0, side).contiguous()
            first = name.replace("_B.", "_A.")
            made[first] = tensors[first][used].contiguous()
    return replace(info, ranks=kept_ranks), made
