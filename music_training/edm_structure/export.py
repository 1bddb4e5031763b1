"""Export of a CNN model to ONNX with its mel front end: 24 kHz samples in, activations out, no other code needed."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import files
from ..errors import UserError
from . import features, inference


class Waveform(nn.Module):
    """Samples ``[B, n]`` to activations in [0, 1]; the Fourier transform is a convolution, which every runtime has."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        time = torch.arange(features.WINDOW, dtype=torch.float64)
        angle = 2 * torch.pi * torch.outer(torch.arange(features.WINDOW // 2 + 1, dtype=torch.float64), time) / features.WINDOW
        window = torch.hann_window(features.WINDOW, dtype=torch.float64) * (2 / features.WINDOW)
        waves = torch.cat([angle.cos() * window, -angle.sin() * window]).float()
        self.register_buffer("waves", waves.unsqueeze(1))
        self.register_buffer("bank", features.mel_bank())

    def forward(self, samples: Tensor) -> tuple[Tensor, ...]:
        padded = functional.pad(samples.unsqueeze(1), (features.WINDOW // 2, features.WINDOW // 2))
        real, imaginary = functional.conv1d(padded, self.waves, stride=features.HOP).chunk(2, 1)
        magnitude = (real.square() + imaginary.square()).sqrt().transpose(1, 2)
        outputs = self.model((magnitude @ self.bank).clamp(min=features.FLOOR).log())
        return tuple(self.finish(name, value) for name, value in outputs.items())

    @staticmethod
    def finish(name: str, value: Tensor) -> Tensor:
        """Logits to activations."""
        return value if name == "energy" else value.softmax(-1) if name == "label" else value.sigmoid()


def to_onnx(run: Path | str, target: Path) -> float:
    """Write ``target`` with dynamic batch and length and return its largest difference from PyTorch on 17 s of noise and clicks."""
    import onnxruntime

    predictor = inference.load(run)
    if hasattr(predictor.model.backbone, "from_samples"):
        raise UserError("export: only models with the cnn backbone have a mel front end; MERT goes through transformers' own export")
    model = Waveform(predictor.model).eval()
    example = torch.zeros(2, 10 * features.SAMPLE_RATE)
    names = [*predictor.model.near, *predictor.model.far]
    dynamic = torch.export.Dim.DYNAMIC
    with files.atomic(target) as temporary:
        program = torch.onnx.export(
            model, (example,), dynamo=True, input_names=["samples"], output_names=names,
            dynamic_shapes=({0: dynamic, 1: dynamic},), opset_version=20, verbose=False,
        )  # fmt: skip
        program.save(str(temporary), external_data=False)
    rng = numpy.random.default_rng(0)
    samples = (0.1 * rng.standard_normal((1, 17 * features.SAMPLE_RATE + 123))).astype(numpy.float32)
    samples[:, :: features.SAMPLE_RATE // 2] = 1.0
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    found = session.run(None, {"samples": samples})
    with torch.no_grad():
        wanted = model(torch.from_numpy(samples))
    return max(float(numpy.abs(one - other.numpy()).max()) for one, other in zip(found, wanted, strict=True))
