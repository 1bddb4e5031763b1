"""Adapters on an HTDemucs: add, switch, merge, save and load. The model stays an HTDemucs, so demucs' own code runs it.

An adapter is a folder: ``adapter.safetensors`` (both factors of each layer, and the layers of new stems whole) and
``adapter.json`` (ranks, scale, sources, where new stems started, and which base model it belongs to).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from demucs.htdemucs import HTDemucs
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .. import files
from ..errors import UserError
from . import layers, stems

WEIGHTS, ABOUT = "adapter.safetensors", "adapter.json"
FORMAT = 1


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is: everything that a reload needs beside the tensors.

    ``ranks`` by layer; ``alpha`` scales the update W + alpha B A; ``heads`` are the layers that are held whole;
    ``base`` names the base model and ``digest`` identifies its weights.
    """

    sources: tuple[str, ...]
    ranks: dict[str, int]
    alpha: float = 1.0
    dropout: float = 0.0
    parents: dict[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    base: str = ""
    base_sources: tuple[str, ...] = ()
    digest: str = ""
    made_from: dict[str, Any] = field(default_factory=dict)


class Adapters:
    """The adapters of one model, of which one (or none) is active."""

    def __init__(self, model: HTDemucs, base: str = ""):
        self.model, self.base = model, base
        self.base_sources = tuple(model.sources)
        self.digest = digest(model)
        self.known: dict[str, AdapterInfo] = {}
        self.active: str | None = None
        self._before: dict[str, Tensor] = {}
        self._heads = {None: {name: model.get_submodule(name) for name in stems.heads(model)}}
        model.requires_grad_(False)

    def add(self, name: str, info: AdapterInfo, seed: int | None = None) -> None:
        """Add an adapter that changes nothing yet and make it the active one; its tensors want gradients."""
        if name in self.known or not re.fullmatch(r"\w+", name):
            raise UserError(f"adapter {name!r}: a new name of letters, digits and _ is needed")
        self.activate(None)
        if info.heads:
            starts = info.parents or {source: source for source in info.sources}
            self._mount(stems.widen(self.model, info.sources, starts), info.sources)
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            _inject(self.model, name, info)
        self._heads[name] = {place: self.model.get_submodule(place) for place in self._heads[None]}
        for place in info.heads:
            self._heads[name][place].requires_grad_(True)
        self.known[name] = info
        self.active = None
        self.activate(name)

    def activate(self, name: str | None) -> None:
        """Make an adapter the active one; None is the base model as it was."""
        if name is not None and name not in self.known:
            raise UserError(f"adapter {name!r}: not loaded; there are {', '.join(self.known) or 'none'}")
        if self.merged:
            raise UserError("the active adapter is merged into the weights; unmerge it first")
        sources = self.known[name].sources if name else self.base_sources
        self._mount(self._heads[name], sources)
        for module in self._lora():
            module.enable_adapters(name is not None)
            if name is not None:
                module.set_adapter(name)
        for module in self._layers():  # peft marks the active one trainable; heads are not its business
            module.requires_grad_(False)
        for key, value in self.model.named_parameters():
            value.requires_grad_(name is not None and _belongs(key, name))
        for place in self.known[name].heads if name else ():
            self._heads[name][place].requires_grad_(True)
        self.active = name

    @contextlib.contextmanager
    def disabled(self) -> Iterator[HTDemucs]:
        """The base model inside the block, the active adapter again after it."""
        before = self.active
        self.activate(None)
        try:
            yield self.model
        finally:
            self.activate(before)

    @property
    def merged(self) -> bool:
        """Whether the active adapter is merged into the base weights."""
        return any(module.merged for module in self._lora())

    def merge(self) -> None:
        """Add the active adapter's update to the base weights; :meth:`unmerge` brings them back bit for bit."""
        self._before = {key: value.detach().clone() for key, value in self._base_weights()}
        for module in self._lora():
            module.merge()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo :meth:`merge`; what rounding would leave is put right."""
        for module in self._lora():
            if module.merged:
                module.unmerge()
        for key, value in self._base_weights():
            if key in self._before:
                value.copy_(self._before[key])
        self._before = {}

    def merged_model(self) -> HTDemucs:
        """A plain HTDemucs, without peft, with the active adapter's update in its weights; this one is left as it is."""
        from . import base

        self.merge()
        try:
            state = {key: value.clone() for key, value in plain_state(self.model).items()}
        finally:
            self.unmerge()
        args, kwargs = base.arguments(self.model)
        plain = HTDemucs(*args, **kwargs)
        plain.load_state_dict(state)
        plain._init_args_kwargs = ((), kwargs)
        return plain.to(next(self.model.parameters()).device).eval()

    def tensors(self, name: str | None = None) -> dict[str, Tensor]:
        """An adapter's tensors by the names of the file."""
        name = name or self.active
        found = {}
        for key, value in self.model.named_parameters():
            if _belongs(key, name):
                found[key.replace(f".{name}.", ".").replace(".base_layer.", ".")] = value
        for place in self.known[name].heads:
            found.update({f"heads.{place}.{key}": value for key, value in self._heads[name][place].named_parameters()})
        return found

    def save(self, folder: Path, name: str | None = None, info: AdapterInfo | None = None) -> Path:
        """Write an adapter's folder (atomically)."""
        from . import reallocation

        name = name or self.active
        tensors = {key: value.detach().to("cpu").contiguous() for key, value in self.tensors(name).items()}
        transposed = {layer for layer in self.known[name].ranks if "ConvTranspose" in type(self.model.get_submodule(layer)).__name__}
        info, tensors = reallocation.compact(info or self.known[name], tensors, transposed)
        about = {"format": FORMAT, **asdict(info)}
        with files.atomic(folder) as temporary:
            temporary.mkdir()
            safetensors.torch.save_file(tensors, str(temporary / WEIGHTS))
            files.write_json(temporary / ABOUT, about)
        return folder

    def load(self, folder: Path, name: str = "default", check: bool = True) -> AdapterInfo:
        """Add the adapter of a folder and make it the active one; UserError where it belongs to another base model."""
        info, tensors = read(folder)
        if tuple(info.base_sources) != self.base_sources:
            raise UserError(
                f"{folder}: made for a base model with {', '.join(info.base_sources)}; this one has {', '.join(self.base_sources)}"
            )
        if check and info.digest != self.digest:
            raise UserError(f"{folder}: made for other weights ({info.base}); on this base model it would only make noise")
        self.add(name, info)
        own = self.tensors(name)
        wrong = sorted(set(own) ^ set(tensors)) or [key for key in own if own[key].shape != tensors[key].shape]
        if wrong:
            raise UserError(f"{folder}: {wrong[0]} is missing or of another shape; the files do not belong together")
        with torch.no_grad():
            for key, value in tensors.items():
                own[key].copy_(value)
        return info

    def _lora(self) -> list[LoraLayer]:
        return [module for module in self.model.modules() if isinstance(module, LoraLayer)]

    def _base_weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(key, value) for key, value in self.model.named_parameters() if ".base_layer." in key]

    def _layers(self) -> list[nn.Module]:
        return [layer for group in self._heads.values() for layer in group.values()]

    def _mount(self, made: Mapping[str, nn.Module], sources: Sequence[str]) -> None:
        stems.put(self.model, made, sources)


def read(folder: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """The description and the tensors of an adapter's folder; UserError where it is none."""
    folder = Path(folder).expanduser()
    about = files.read_json(folder / ABOUT)
    if not isinstance(about, dict) or "ranks" not in about:
        raise UserError(f"{folder}: not an adapter (no readable {ABOUT})")
    if about.pop("format", None) != FORMAT:
        raise UserError(f"{folder}: an adapter of another format than {FORMAT}")
    try:
        tensors = safetensors.torch.load_file(str(folder / WEIGHTS))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
    for name in ("sources", "heads", "base_sources"):
        about[name] = tuple(about[name])
    return AdapterInfo(**about), tensors


def _belongs(key: str, name: str) -> bool:
    """Whether a parameter is a factor of the adapter ``name``."""
    return re.search(rf"\.lora_\w+\.{name}\.", key) is not None


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with adapters as that of one without: base weights only, under their first names."""
    state = model.state_dict()
    return {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}


def digest(model: nn.Module) -> str:
    """What identifies a model's weights: a hash over names, shapes and values (of a model without adapters)."""
    made = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        made.update(f"{name}{tuple(value.shape)}".encode())
        made.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return made.hexdigest()[:16]


def _inject(model: HTDemucs, name: str, info: AdapterInfo) -> None:
    wanted = [layer for layer in info.ranks if layer not in info.heads]
    if not wanted:
        raise UserError("no layer has a rank: there is nothing to adapt")
    config = LoraConfig(
        r=1,
        lora_alpha=info.alpha,
        lora_dropout=info.dropout,
        target_modules=wanted,
        rank_pattern={re.escape(layer): info.ranks[layer] for layer in wanted},
        alpha_pattern={re.escape(layer): info.alpha * info.ranks[layer] for layer in wanted},
        bias="none",
    )
    config._register_custom_module(layers.custom_modules())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type|Already found a `peft_config`")
        inject_adapter_in_model(config, model, name)
    for layer in wanted:
        module = model.get_submodule(layer)
        if not isinstance(module, LoraLayer) or module.r.get(name) != info.ranks[layer]:
            raise RuntimeError(f"{layer}: the adapter was not put there with rank {info.ranks[layer]}")
