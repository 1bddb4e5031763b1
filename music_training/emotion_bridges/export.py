"""Export of both models for other programs: ONNX with dynamic shapes, a fixed-size variant, Core ML where it is installed.

Every ONNX file is run by onnxruntime on several batches and lengths and compared with PyTorch; a difference above
``TOLERANCE`` is an error.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from .. import files, runs
from ..errors import UserError
from . import emotions
from .config import MidiSettings, SpectocloudSettings
from .midi_generator.data import CONTEXT
from .midi_generator.tokenizer import BOS, MidiTokenizer
from .spectocloud import mel as front
from .train import load

TOLERANCE = 1e-4
OPSET = 20
NAMES = {
    "spectocloud": (["mel", "emotion"], ["positions", "colors"]),
    "midi_generator": (["tokens", "emotion", "context", "past", "state"], ["logits", "present", "new_state"]),
}


def newest(model: str) -> str:
    """The newest run of a model that has a checkpoint; UserError where there is none."""
    for row in reversed(runs.listing()):
        if row.get("system") == model.replace("_", "") and any(row["path"].glob(f"{runs.CHECKPOINTS}/*/*.safetensors")):
            return str(row["path"])
    raise UserError(f"no run of {model} to export; train one first (train_{model})")


def export_all(chosen: Mapping[str, str | Path], out_dir: Path | None = None) -> list[str]:
    """Export runs by model name into ``outputs/exports``; returns a line for each file with its largest difference."""
    target = Path(out_dir) if out_dir else files.outputs_root() / "exports"
    lines = []
    for name, run in chosen.items():
        model, settings = load(run, name)
        for path, difference in to_onnx(model, settings, target).items():
            lines.append(f"{path}: largest difference from PyTorch {difference:.2g}")
        lines.append(to_core_ml(model, settings, target))
    files.write_text(target / "README.md", readme(chosen))
    return lines


def export_stage(chosen: Mapping[str, str], *, scope: str) -> dict[str, float]:
    """Both models as ONNX, done once: the stage ``bridge_exports``; returns each file's largest difference from PyTorch."""
    from .. import stages

    target = files.outputs_root() / "exports"

    def make(draft: stages.Draft) -> stages.Made:
        found: dict[str, float] = {}
        for name, run in chosen.items():
            model, settings = load(runs.folder() / run, name)
            found |= {path.name: difference for path, difference in to_onnx(model, settings, target).items()}
        readme_path = files.write_text(target / "README.md", readme(chosen))
        return stages.Made([readme_path, *(target / name for name in found)], found)

    weights = [path for run in chosen.values() for path in sorted((runs.folder() / run / runs.CHECKPOINTS / "best").glob("*.safetensors"))]
    return stages.run("bridge_exports", make, scope=scope, params={"runs": dict(chosen)}, inputs=weights).result


def to_onnx(model: nn.Module, settings: SpectocloudSettings | MidiSettings, folder: Path) -> dict[Path, float]:
    """Write ``<model>.onnx`` (any batch and length) and ``<model>_fixed.onnx``; each with its largest difference from PyTorch."""
    model = model.eval()
    inputs, outputs = NAMES[settings.model]
    dynamic = torch.export.Dim.DYNAMIC
    if settings.model == "spectocloud":
        frames = round(settings.seconds * front.FRAME_RATE)
        shapes = ({0: dynamic, 1: dynamic}, {0: dynamic})
        trials = [_cloud_inputs(batch, length) for batch, length in ((1, frames), (2, frames // 2 + 3), (3, frames + 17))]
        fixed, plain = _cloud_inputs(1, frames), model
        fixed_inputs, fixed_outputs = inputs, outputs
    else:
        shapes = ({0: dynamic, 1: dynamic}, {0: dynamic}, {0: dynamic}, {2: dynamic, 4: dynamic}, {0: dynamic})
        trials = [_midi_inputs(model, batch, past, length) for batch, past, length in ((1, 0, 7), (2, 5, 3), (3, 40, 1), (1, 100, 20))]
        fixed, plain = _midi_inputs(model, 1, 0, settings.context)[:3], _Plain(model)
        fixed_inputs, fixed_outputs = inputs[:3], outputs[:1]
    whole = _write(model, trials[1], shapes, inputs, outputs, folder / f"{settings.model}.onnx")
    part = _write(plain, fixed, None, fixed_inputs, fixed_outputs, folder / f"{settings.model}_fixed.onnx")
    return {whole: parity(whole, model, trials, inputs), part: parity(part, plain, [fixed], fixed_inputs)}


def parity(path: Path, model: nn.Module, trials: Sequence[tuple[Tensor, ...]], names: Sequence[str]) -> float:
    """The largest difference of an ONNX file from PyTorch over all outputs of ``trials``; UserError above ``TOLERANCE``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for trial in trials:
        found = session.run(None, {name: value.numpy() for name, value in zip(names, trial, strict=True)})
        with torch.no_grad():
            wanted = model(*trial)
        for one, other in zip(found, (wanted,) if isinstance(wanted, Tensor) else wanted, strict=True):
            if one.shape != tuple(other.shape):
                raise UserError(f"{path}: gives {one.shape}, PyTorch {tuple(other.shape)}")
            worst = max(worst, float(numpy.abs(one - other.numpy()).max()) if one.size else 0.0)
    if worst > TOLERANCE:
        raise UserError(f"{path}: differs from PyTorch by {worst:.2g}, more than {TOLERANCE:g}; the export is not to be used")
    return worst


class _Plain(nn.Module):
    """The generator without a cache: all logits of a sequence of fixed length."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, emotion: Tensor, context: Tensor) -> Tensor:
        return self.model(tokens, emotion, context)


def _write(model: nn.Module, example: tuple[Tensor, ...], shapes, inputs: Sequence[str], outputs: Sequence[str], path: Path) -> Path:
    with files.atomic(path) as temporary:
        program = torch.onnx.export(
            model.eval(), example, dynamo=True, input_names=list(inputs), output_names=list(outputs), dynamic_shapes=shapes,
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
        program.save(str(temporary), external_data=False)
    return path


def _cloud_inputs(batch: int, frames: int) -> tuple[Tensor, ...]:
    rng = numpy.random.default_rng(batch * 1000 + frames)
    mel = rng.normal(-9, 3, (batch, frames, front.BANDS)) + 6 * (rng.random((batch, frames, 1)) < 0.1)
    return torch.from_numpy(mel.astype(numpy.float32)), _emotion(batch, rng)


def _midi_inputs(model: nn.Module, batch: int, before: int, length: int) -> tuple[Tensor, ...]:
    rng = numpy.random.default_rng(batch * 10000 + before * 100 + length)
    tokens = torch.from_numpy(rng.integers(0, MidiTokenizer.vocab_size, (batch, before + length)))
    tokens[:, 0] = BOS
    emotion, context = _emotion(batch, rng), torch.from_numpy(rng.random((batch, CONTEXT)).astype(numpy.float32))
    past, state = model.beginning(batch)
    if before:
        with torch.no_grad():
            _, past, state = model(tokens[:, :before], emotion, context, past, state)
    return tokens[:, before:], emotion, context, past.detach(), state.detach()


def _emotion(batch: int, rng: numpy.random.Generator) -> Tensor:
    return torch.from_numpy(rng.uniform(-1, 1, (batch, emotions.SIZE)).astype(numpy.float32))


def to_core_ml(model: nn.Module, settings: SpectocloudSettings | MidiSettings, folder: Path) -> str:
    """Write ``<model>.mlpackage`` of the fixed size where coremltools is installed; returns a line that says so, or why not.

    Such a package runs on macOS only, so it is not compared with PyTorch here.
    """
    path = folder / f"{settings.model}.mlpackage"
    if importlib.util.find_spec("coremltools") is None:
        return f"{path.name}: not written, coremltools is not installed"
    import coremltools

    if settings.model == "spectocloud":
        plain, fixed, outputs = model, _cloud_inputs(1, round(settings.seconds * front.FRAME_RATE)), NAMES[settings.model][1]
    else:
        plain, fixed, outputs = _Plain(model), _midi_inputs(model, 1, 0, settings.context)[:3], NAMES[settings.model][1][:1]
    program = torch.export.export(plain.eval(), fixed).run_decompositions({})
    try:
        package = coremltools.convert(
            program,
            outputs=[coremltools.TensorType(name=name) for name in outputs],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT32,  # sums of small powers do not survive float16
        )
    except (NotImplementedError, ValueError, RuntimeError, KeyError) as error:
        versions = f"coremltools {coremltools.__version__} with torch {torch.__version__}"
        return f"{path.name}: not written, {versions} cannot convert it ({str(error).splitlines()[0]})"
    with tempfile.TemporaryDirectory(dir=folder) as place, files.atomic(path) as temporary:
        package.save(str(Path(place) / path.name))  # it insists on the suffix
        os.rename(Path(place) / path.name, temporary)
    return f"{path}: written, not run"


def readme(chosen: Mapping[str, str | Path]) -> str:
    """Names, shapes and ranges of inputs and outputs."""
    made = "\n".join(f"- `{name}` from run `{Path(run).name}`" for name, run in chosen.items())
    return f"""# Exported models

{made}

`<model>.onnx` takes any batch `B` and length; `<model>_fixed.onnx` has the sizes of training and batch 1. ONNX opset {OPSET},
float32; largest difference from PyTorch at most {TOLERANCE:g}, checked at export. Models trained on composed music are
synthetic in what they know.

## spectocloud

| name | shape | what |
|---|---|---|
| `mel` | `[B, T, {front.BANDS}]` | natural log of mel powers of {front.SAMPLE_RATE} Hz mono audio: \
Hann window {front.WINDOW}, hop {front.HOP}, \
{front.BANDS} triangular bands of peak 1 from {front.LOWEST:g} to {front.HIGHEST:g} Hz, floor {front.FLOOR:g} |
| `emotion` | `[B, {emotions.SIZE}]` | valence [-1, 1], arousal [-1, 1], intensity [0, 1], then zeros or an embedding in [-1, 1] |
| `positions` (out) | `[B, points, 3]` | time, frequency, energy in [-1, 1] |
| `colors` (out) | `[B, points, 3]` | RGB in [0, 1] |

## midi_generator

| name | shape | what |
|---|---|---|
| `tokens` | `[B, T]` int64 | \
0-127 note-on, 128-255 note-off, 256-351 time shift of 1-96 ticks (24 a quarter note), \
352-383 velocity, 384 PAD, 385 BOS, 386 EOS, 387 BAR |
| `emotion` | `[B, {emotions.SIZE}]` | as above |
| `context` | `[B, {CONTEXT}]` | emotion known (0/1), tempo known (0/1), (bpm - 120) / 60, major (0/1), minor (0/1) |
| `past` | `[layers, 2, B, heads, P, width]` | keys and values of the P tokens before; P = 0 at the start |
| `state` | `[B, 129]` | how often each pitch sounds, ticks since the bar began; zeros at the start |
| `logits` (out) | `[B, T, {MidiTokenizer.vocab_size}]` | of the next token |
| `present`, `new_state` (out) | as `past`, `state` | to be given back with the next tokens |
"""
