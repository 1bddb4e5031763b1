"""Which layer gets which rank: pure functions from layers and settings to ``{layer name: rank}``."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from .. import config
from ..errors import UserError
from .config import HtDemucs
from .layers import Layer

# Ranges of the heuristic mode and the multiple of lora_rank that is clipped to them
CRITICAL, MIDDLE, FINAL = (8, 16, 3.0), (4, 8, 1.5), (2, 4, 0.75)


def allocate(layers: Sequence[Layer], settings: HtDemucs, spectra: Mapping[str, Sequence[float]] | None = None) -> dict[str, int]:
    """The rank of each layer; layers of rank 0 have no adapter and are left out.

    ``spectra`` are the singular values of each layer's calibration gradient, which the mode ``gradient`` wants. All
    ranks are at most ``lora_max_rank`` and the layer's own; ``layer_ranks`` come last and count as they stand.
    UserError where a pattern matches no layer.
    """
    patterns = _patterns(layers, settings)
    free = [layer for layer in layers if layer.name not in patterns]
    if settings.lora_rank_mode == "gradient":
        if spectra is None:
            raise UserError("lora_rank_mode gradient: ranks need calibration gradients, which training measures at its start")
        spent = sum(layer.cost * patterns[layer.name] for layer in layers if layer.name in patterns)
        budget = settings.budget or cost(layers, {layer.name: settings.lora_rank for layer in layers})
        ranks = _by_gradient(free, settings, spectra, budget - spent)
    else:
        wanted = {layer.name: _wanted(layer, settings) for layer in free}
        ranks = _fitted(free, wanted, settings, patterns, layers) if settings.budget else _clipped(free, wanted, settings)
    chosen = {**ranks, **patterns}
    return {layer.name: chosen[layer.name] for layer in layers if chosen[layer.name] > 0}


def cost(layers: Sequence[Layer], ranks: Mapping[str, int]) -> int:
    """Adapter parameters of an allocation."""
    return sum(layer.cost * min(ranks.get(layer.name, 0), layer.full_rank) for layer in layers)


def table(layers: Sequence[Layer], ranks: Mapping[str, int]) -> list[dict]:
    """A row for each layer: name, kind, rank, adapter parameters and the share (%) of the layer's own parameters."""
    return [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "rank": (rank := ranks.get(layer.name, 0)),
            "parameters": layer.cost * rank,
            "share %": round(100 * layer.cost * rank / layer.parameters, 2),
        }
        for layer in layers
    ]


def _wanted(layer: Layer, settings: HtDemucs) -> float:
    if settings.lora_rank_mode == "uniform":
        return settings.lora_rank
    if settings.lora_rank_mode == "growth":
        return settings.base_rank * settings.rank_growth**layer.depth
    critical = layer.part == "transformer" or (layer.part == "encoder" and layer.depth == 0)
    final = layer.part == "decoder" and layer.depth <= 1
    low, high, times = CRITICAL if critical else FINAL if final else MIDDLE
    return min(high, max(low, times * settings.lora_rank))


def _patterns(layers: Sequence[Layer], settings: HtDemucs) -> dict[str, int]:
    chosen = {}
    for pattern, rank in settings.layer_ranks.items():
        matching = [layer for layer in layers if layer.matches(pattern, settings.time_branch)]
        if not matching:
            known = sorted({".".join(layer.names[1].split(".")[:2]) + ".*" for layer in layers})
            raise UserError(f"layer_ranks: {pattern!r} matches no layer{config.suggest(pattern, known)}")
        chosen.update({layer.name: min(rank, settings.lora_max_rank, layer.full_rank) for layer in matching})
    return chosen


def _clipped(layers: Sequence[Layer], wanted: Mapping[str, float], settings: HtDemucs, times: float = 1.0) -> dict[str, int]:
    limit = settings.lora_max_rank
    return {layer.name: max(1, min(int(wanted[layer.name] * times), limit, layer.full_rank)) for layer in layers}


def _fitted(layers, wanted, settings, patterns, everything) -> dict[str, int]:
    """The mode's ranks times the largest factor with which they stay within the budget."""
    budget = settings.budget - cost(everything, patterns)
    low, high = 0.0, 64.0
    if cost(layers, _clipped(layers, wanted, settings, low)) > budget:
        least = cost(everything, patterns) + cost(layers, _clipped(layers, wanted, settings, low))
        raise UserError(f"budget {settings.budget}: rank 1 in every layer takes {least} parameters already")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(layers, _clipped(layers, wanted, settings, middle)) <= budget else (low, middle)
    return _clipped(layers, wanted, settings, low)


def _by_gradient(layers, settings: HtDemucs, spectra, budget: int) -> dict[str, int]:
    """Greedy: the direction that explains most gradient energy per parameter is bought next, until nothing fits."""
    limits = {layer.name: min(settings.max_rank, settings.lora_max_rank, layer.full_rank) for layer in layers}
    ranks = {layer.name: min(settings.min_rank, limits[layer.name]) for layer in layers}
    left = budget - sum(layer.cost * ranks[layer.name] for layer in layers)
    if left < 0:
        raise UserError(f"budget {budget}: min_rank {settings.min_rank} in every layer takes {budget - left} parameters already")

    def offer(layer: Layer):
        rank, values = ranks[layer.name], spectra[layer.name]
        gain = float(values[rank]) ** 2 / layer.cost if rank < len(values) else 0.0
        return (-gain, layer.name)

    by_name = {layer.name: layer for layer in layers}
    heap = [offer(layer) for layer in layers]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        if by_name[name].cost > left or ranks[name] >= limits[name]:
            continue
        ranks[name] += 1
        left -= by_name[name].cost
        heapq.heappush(heap, offer(by_name[name]))
    return ranks
