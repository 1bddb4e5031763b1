"""The layers of HTDemucs that can be adapted, and LoRA for the kinds that peft lacks.

peft adapts Linear, Conv1d and Conv2d. Its Conv1d forgets the dilation, its convolutions keep more for the backward pass
than those they adapt (:class:`InWeights`), it has no transposed ones, and its attention adds the update of the
out-projection twice and lets the frozen weights drift by rounding in each step (it adds and subtracts the update in
place). :func:`custom_modules` fills these gaps.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.MultiheadAttention)


@dataclass(frozen=True)
class Layer:
    """A layer that can be adapted: its name and kind, parameters, parameters per unit of rank, the largest useful rank.

    ``part`` is encoder, transformer, decoder or other; ``depth`` counts from the outside (0) to the transformer.
    """

    name: str
    kind: str
    parameters: int
    cost: int
    full_rank: int
    part: str
    depth: int

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns may call it: its name, with ``transformer`` for ``crosstransformer``, without the layers' numbers."""
        short = self.name.replace("crosstransformer", "transformer")
        return self.name, short, re.sub(r"\.layers(_t)?\.\d+\.", ".", short)

    def matches(self, pattern: str, time_branch: bool = True) -> bool:
        """Whether a pattern with ``*`` means this layer; one for ``encoder`` or ``decoder`` reaches ``tencoder`` too if asked."""
        names = self.names
        if time_branch and self.name.startswith(("tencoder.", "tdecoder.")):
            names += (self.name[1:],)
        return any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f"{name}.", pattern) for name in names)


def adaptable(model: nn.Module, without: tuple[str, ...] = ()) -> list[Layer]:
    """The layers of an HTDemucs that adapters can change, in the model's order; ``without`` names some to leave out."""
    found, inside = [], ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, (nn.MultiheadAttention, LoraLayer)):
            inside = (*inside, f"{name}.")
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if isinstance(layer, KINDS) and name not in without and getattr(layer, "groups", 1) == 1:
            found.append(_describe(name, layer, model.depth))
    return found


def _describe(name: str, module: nn.Module, depth: int) -> Layer:
    if isinstance(module, nn.MultiheadAttention):
        cost, full, weights = 6 * module.embed_dim, module.embed_dim, 4 * module.embed_dim**2
    else:
        cost = sum(_factors(module))
        weights = module.weight.numel()
        rows = module.weight.shape[0]
        full = min(rows, weights // rows)
    head, _, rest = name.partition(".")
    index = int(rest.split(".")[0]) if rest.split(".")[0].isdigit() else 0
    part = {"encoder": "encoder", "tencoder": "encoder", "decoder": "decoder", "tdecoder": "decoder", "crosstransformer": "transformer"}
    place = part.get(head, "other")
    level = index if place == "encoder" else depth - 1 - index if place == "decoder" else depth
    return Layer(name, type(module).__name__, weights, cost, full, place, level)


def _factors(module: nn.Module) -> tuple[int, int]:
    """Parameters of the two factors at rank 1."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    kernel = module.weight[0, 0].numel()
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return module.in_channels, module.out_channels * kernel
    return module.in_channels * kernel, module.out_channels


class InWeights:
    """A convolution that runs once, with the update in its weights, in place of three in a row.

    peft's way keeps the output of the first factor for the backward pass, which in the narrow layers at full resolution is
    a third of what is kept at all. Dropout is over the first factor.
    """

    def forward(self, inputs: Tensor, *_, **__) -> Tensor:
        base = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(inputs)
        weight = base.weight
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                weight = weight + self.get_delta_weight(adapter)
        return torch.func.functional_call(base, {"weight": weight}, (inputs,))

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of the layer's weight, of the same shape."""
        first, second = self.lora_dropout[adapter](self.lora_A[adapter].weight), self.lora_B[adapter].weight
        return self.product(first, second).view_as(self.get_base_layer().weight) * self.scaling[adapter]

    def merge(self, *arguments, **options) -> None:
        """Add the update, without dropout."""
        training = self.training
        self.eval()
        super().merge(*arguments, **options)
        self.train(training)

    def unmerge(self) -> None:
        """Take it away again."""
        training = self.training
        self.eval()
        super().unmerge()
        self.train(training)

    @staticmethod
    def product(first: Tensor, second: Tensor) -> Tensor:
        """Factors ``[r, in, kernel]`` and ``[out, r, 1]`` to ``[out, in * kernel]``."""
        return second.flatten(1) @ first.flatten(1)


class Conv1d(InWeights, lora.layer.Conv1d):
    """LoRA of a Conv1d, also with dilation: the factor's is not used."""


class Conv2d(InWeights, lora.layer.Conv2d):
    """LoRA of a Conv2d."""


class _ConvTransposeNd(InWeights, lora.layer._ConvNd):
    """LoRA of a transposed convolution: a 1x1 convolution to ``r`` channels, then a transposed one like the layer itself."""

    pointwise: type[nn.Module]

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return module.in_channels, module.out_channels

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: LoraConfig, **options) -> None:
        base = self.get_base_layer()
        self.r[adapter_name], self.lora_alpha[adapter_name], self.scaling[adapter_name] = r, lora_alpha, lora_alpha / r
        self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.lora_bias[adapter_name] = self.use_rslora[adapter_name] = self.use_dora[adapter_name] = False
        self.lora_A[adapter_name] = self.pointwise(base.in_channels, r, 1, bias=False)
        self.lora_B[adapter_name] = type(base)(
            r, base.out_channels, base.kernel_size, base.stride, base.padding, base.output_padding, bias=False, dilation=base.dilation
        )
        if config.init_lora_weights:
            self.reset_lora_parameters(adapter_name, True)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @staticmethod
    def product(first: Tensor, second: Tensor) -> Tensor:
        """Factors ``[r, in, 1]`` and ``[r, out, kernel]`` to ``[in, out * kernel]``."""
        return first.flatten(1).T @ second.flatten(1)


class ConvTranspose1d(_ConvTransposeNd):
    pointwise = nn.Conv1d


class ConvTranspose2d(_ConvTransposeNd):
    pointwise = nn.Conv2d


class MultiheadAttention(nn.Module, LoraLayer):
    """LoRA of the in- and out-projections of an attention; the frozen weights are read, never written, in a step."""

    adapter_layer_names = ("lora_A", "lora_B", "lora_out_A", "lora_out_B")

    def __init__(self, base_layer: nn.MultiheadAttention, adapter_name: str, config: LoraConfig, r: int = 0, lora_alpha: float = 1, **_):
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self.lora_out_A, self.lora_out_B = nn.ModuleDict(), nn.ModuleDict()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: LoraConfig, **_) -> None:
        size = self.get_base_layer().embed_dim
        self.r[adapter_name], self.lora_alpha[adapter_name], self.scaling[adapter_name] = r, lora_alpha, lora_alpha / r
        self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.lora_bias[adapter_name] = self.use_rslora[adapter_name] = self.use_dora[adapter_name] = False
        for first, second, rows in ((self.lora_A, self.lora_B, 3 * size), (self.lora_out_A, self.lora_out_B, size)):
            first[adapter_name], second[adapter_name] = nn.Linear(size, r, bias=False), nn.Linear(r, rows, bias=False)
            nn.init.zeros_(second[adapter_name].weight)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def get_delta_weight(self, adapter: str) -> dict[str, Tensor]:
        """Updates of both projections; dropout is over the directions, as the products are formed here."""
        made = {}
        pairs = {"in_proj_weight": (self.lora_A, self.lora_B), "out_proj.weight": (self.lora_out_A, self.lora_out_B)}
        for name, (first, second) in pairs.items():
            directions = self.lora_dropout[adapter](first[adapter].weight)
            made[name] = second[adapter].weight @ directions * self.scaling[adapter]
        return made

    def forward(self, *inputs, **options):
        if self.disable_adapters or self.merged:
            return self.base_layer(*inputs, **options)
        weights = {name: self.base_layer.get_parameter(name) for name in ("in_proj_weight", "out_proj.weight")}
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                weights = {name: weights[name] + change for name, change in self.get_delta_weight(adapter).items()}
        return torch.func.functional_call(self.base_layer, weights, inputs, options)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        for adapter in adapter_names or self.active_adapters:
            if adapter in self.lora_A and adapter not in self.merged_adapters:
                self._shift(adapter, 1)
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        while self.merged_adapters:
            self._shift(self.merged_adapters.pop(), -1)

    @torch.no_grad()
    def _shift(self, adapter: str, sign: int) -> None:
        training = self.training
        self.eval()  # without dropout
        for name, change in self.get_delta_weight(adapter).items():
            self.base_layer.get_parameter(name).add_(change, alpha=sign)
        self.train(training)


def custom_modules() -> dict[type[nn.Module], type[nn.Module]]:
    """What peft is told to use for the kinds of layers that it lacks."""
    return {
        nn.MultiheadAttention: MultiheadAttention,
        nn.Conv1d: Conv1d,
        nn.Conv2d: Conv2d,
        nn.ConvTranspose1d: ConvTranspose1d,
        nn.ConvTranspose2d: ConvTranspose2d,
    }
