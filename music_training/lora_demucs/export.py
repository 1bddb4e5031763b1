"""Export: the merged model in demucs' own formats, with int8 weights, and as ONNX."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy
import safetensors
import safetensors.torch
import torch
from demucs.htdemucs import HTDemucs
from torch import Tensor, nn

from .. import files
from ..errors import UserError
from . import adapters, base, train

PARITY = 1e-3  # of the peak: 60 dB below it
PREFIX = "int8."  # of quantised tensors; their scales follow under the same name with .scale


def export(
    adapter: str, folder: Path, name: str | None = None, include_lora: bool = False, onnx: bool = False, base_name: str | None = None
) -> list[str]:
    """Write ``NAME.safetensors`` and ``NAME.th`` of the merged model, which ``demucs -n NAME --repo FOLDER`` opens; returns a line each.

    ``include_lora`` puts the adapter beside it as ``NAME_lora/``, ``onnx`` the network as ``NAME.onnx``.
    """
    source = train.find_adapter(adapter)
    made = train.open_adapted(adapter, base_name)
    model = made.merged_model()
    name = name or (source.parent.name if source.name == train.ADAPTER else source.name)
    written = [base.write(model, folder / f"{name}.safetensors"), base.write_package(model, folder / f"{name}.th")]
    lines = [f"{path}: {path.stat().st_size / 2**20:.2f} MiB, sources {', '.join(model.sources)}" for path in written]
    if include_lora:
        with files.atomic(folder / f"{name}_lora") as temporary:
            shutil.copytree(source, temporary)
        size = sum(path.stat().st_size for path in (folder / f"{name}_lora").iterdir())
        lines.append(f"{folder / f'{name}_lora'}: {size / 2**20:.2f} MiB")
    if onnx:
        difference = to_onnx(model, folder / f"{name}.onnx")
        lines.append(
            f"{folder / f'{name}.onnx'}: {(folder / f'{name}.onnx').stat().st_size / 2**20:.2f} MiB, the network for one window of "
            f"{float(model.segment):g} s; its stems differ from PyTorch's by {difference:.1g} of their peak at most; the Fourier "
            "transforms before and behind it, and windows over a track, are left to the caller"
        )
    return lines


def load_lora_weights(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put an adapter into a model that demucs loaded (also a bag of one) and return it, ready for ``apply_model``.

    The HTDemucs has then ``lora``, its :class:`~music_training.lora_demucs.adapters.Adapters`.
    """
    inner = getattr(model, "models", None)
    if inner is not None:
        if len(inner) != 1:
            raise UserError(f"a bag of {len(inner)} models: an adapter belongs to one; load htdemucs, not htdemucs_ft")
        load_lora_weights(inner[0], folder)
        model.sources, model.weights = inner[0].sources, [[1.0] * len(inner[0].sources)]
        return model
    made = adapters.Adapters(model)
    made.load(train.find_adapter(folder))
    model.__dict__["lora"] = made
    return model.eval()


# int8


def quantize(model: nn.Module, optimize_scales: bool = True) -> dict[str, Tensor]:
    """The state of a model with its matrices and kernels as int8: one scale for each row (first dimension), vectors as they are.

    ``optimize_scales`` takes the clipping with the least square error, between 0.8 and 1 times the largest weight.
    """
    made: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if value.dim() < 2 or not value.is_floating_point():
            made[name] = value.detach().cpu().contiguous()
            continue
        rows = value.detach().cpu().flatten(1)
        largest = rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
        best, least = largest / 127, torch.full_like(largest, math.inf)
        for share in torch.linspace(0.8, 1.0, 11) if optimize_scales else [torch.tensor(1.0)]:
            scale = largest * share / 127
            error = ((rows / scale).round().clamp(-127, 127) * scale - rows).square().sum(1, keepdim=True)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        made[PREFIX + name] = (rows / best).round().clamp(-127, 127).to(torch.int8).view(value.shape).contiguous()
        made[f"{PREFIX}{name}.scale"] = best.flatten().contiguous()
    return made


def write_quantized(model: HTDemucs, path: Path, optimize_scales: bool = True) -> Path:
    """Write a model with int8 weights as safetensors (atomically); :func:`read_quantized` opens it."""
    args, kwargs = base.arguments(model)
    about = {"klass": base.KLASS, "kwargs": json.dumps(base._encoded(kwargs)), "args": json.dumps(args), "weights": "int8"}
    with files.atomic(path) as temporary:
        safetensors.torch.save_file(quantize(model, optimize_scales), str(temporary), about)
    return path


def read_quantized(path: Path) -> HTDemucs:
    """A model from its int8 file, with the weights that the integers stand for."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as content:
            about = content.metadata() or {}
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if about.get("weights") != "int8":
        raise UserError(f"{path}: holds no int8 weights")
    whole = {}
    for name, value in state.items():
        if name.endswith(".scale") and name.startswith(PREFIX):
            continue
        if name.startswith(PREFIX):
            scale = state[f"{name}.scale"].view(-1, *[1] * (value.dim() - 1))
            value, name = value.float() * scale, name.removeprefix(PREFIX)
        whole[name] = value
    model = HTDemucs(**base._decoded(json.loads(about["kwargs"])))
    model.load_state_dict(whole)
    return model.eval()


def quantize_adapter(adapter: str, target: Path, optimize_scales: bool = True, base_name: str | None = None) -> dict:
    """Merge, quantise, write and reload; returns sizes (MiB), their ratio and the SNR (dB) of the reloaded model's output."""
    model = train.open_adapted(adapter, base_name).merged_model()
    write_quantized(model, target, optimize_scales)
    whole = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    size = target.stat().st_size
    noise = numpy.random.default_rng(0).standard_normal((1, 2 if model.audio_channels == 2 else 1, int(model.samplerate * model.segment)))
    mixture = torch.from_numpy(0.1 * noise.astype(numpy.float32))
    with torch.no_grad():
        wanted, found = model(mixture), read_quantized(target)(mixture)
    snr = 10 * math.log10(float(wanted.square().sum()) / float((wanted - found).square().sum()))
    return {
        "path": str(target), "float_mib": round(whole / 2**20, 3), "int8_mib": round(size / 2**20, 3),
        "ratio": round(size / whole, 3), "snr_db": round(snr, 1),
    }  # fmt: skip


# ONNX


class Network(nn.Module):
    """An HTDemucs between its Fourier transforms: spectrum ``[B, 2 C, F, T]`` and mixture ``[B, C, n]`` in, both branches out.

    The stems are the inverse transform of the first output plus the second one. A model of magnitudes takes and gives ``C``
    in place of ``2 C`` channels, and the first output then wants the mixture's phase.
    """

    def __init__(self, model: HTDemucs):
        super().__init__()
        self.model = model

    def forward(self, spectrum: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra ``[B, S, 2 C, F, T]`` and waveforms ``[B, S, C, n]`` of the two branches."""
        kept = {}

        def keep(_, spectra):
            kept["spectra"] = spectra
            return spectra

        model = self.model
        steps = {
            "_spec": lambda _: spectrum,
            "_magnitude": lambda value: value,
            "_mask": keep,
            "_ispec": lambda *_: torch.zeros((), dtype=mixture.dtype),
        }
        model.__dict__.update(steps)
        try:
            waves = model(mixture)
        finally:
            for name in steps:
                del model.__dict__[name]
        return kept["spectra"], waves


def to_onnx(model: HTDemucs, target: Path) -> float:
    """Write the network for one segment as ONNX; returns the largest difference of its stems from PyTorch's, as a share of their peak.

    The stems of noise are compared, through onnxruntime. UserError, and no file, where they differ by over PARITY.
    """
    import onnxruntime

    model = model.eval()
    count = int(model.samplerate * model.segment)
    noise = numpy.random.default_rng(0).standard_normal((1, model.audio_channels, count)).astype(numpy.float32)
    mixture = torch.from_numpy(0.1 * noise)
    with torch.no_grad():
        wanted = model(mixture)
        heard = model._spec(mixture)
        spectrum = model._magnitude(heard).contiguous()
        with files.atomic(target) as temporary:
            program = torch.onnx.export(
                Network(model).eval(), (spectrum, mixture), dynamo=True, opset_version=20, verbose=False,
                input_names=["spectrum", "mixture"], output_names=["spectra", "waves"],
            )  # fmt: skip
            program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        spectra, waves = map(torch.from_numpy, session.run(None, {"spectrum": spectrum.numpy(), "mixture": mixture.numpy()}))
        found = model._ispec(model._mask(heard, spectra), count) + waves
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= PARITY:
        target.unlink()
        raise UserError(f"{target}: not kept, onnxruntime's stems differ from PyTorch's by {difference:.1g} of their peak")
    return difference
