"""What do int8 weights cost a full-size HTDemucs, ours beside torchao's weight-only quantisation?

``python benchmarks/int8_weights.py [--seconds 2]``: size of the file and SNR (dB) of the reloaded model's output, of the
published architecture with random weights. torchao is measured
where it is installed (``pip install torchao``; peft then imports it and complains of libraries for GPUs).
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> None:
    """Quantise, write, reload, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    import torch
    from lora_training import published

    from music_training.lora_demucs import export

    model = published().eval()
    model.segment = arguments.seconds  # a short window, so that little is computed
    mixture = 0.1 * torch.randn(1, 2, int(arguments.seconds * 44100), generator=torch.Generator().manual_seed(0))
    whole = sum(value.numel() * value.element_size() for value in model.state_dict().values())

    @torch.no_grad()
    def show(name: str, path: Path, reloaded, quantised: int) -> None:
        reloaded.segment = arguments.seconds
        found = reloaded(mixture)
        snr = 10 * math.log10(float(wanted.square().sum() / (wanted - found).square().sum()))
        size = path.stat().st_size
        print(
            f"{name:34s} {size / 2**20:8.1f} MiB, {size / whole:.2f} of float, {quantised / (whole / 4):5.0%} of the weights, {snr:5.1f} dB"
        )

    with torch.no_grad():
        wanted = model(mixture)
    print(f"{'float':34s} {whole / 2**20:8.1f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        for best in (True, False):
            path = export.write_quantized(model, Path(folder) / "ours.safetensors", best)
            many = sum(value.numel() for value in model.state_dict().values() if value.dim() > 1)
            show("ours" if best else "ours, scales by the largest weight", path, export.read_quantized(path), many)
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError:
            print("torchao is not installed")
            return
        theirs = copy.deepcopy(model)
        quantize_(theirs, Int8WeightOnlyConfig())
        many = sum(value.numel() for value in theirs.state_dict().values() if type(value) is not torch.Tensor)
        path = Path(folder) / "theirs.pt"
        torch.save(theirs.state_dict(), path)
        again = published().eval()
        again.load_state_dict(torch.load(path, weights_only=True), assign=True)
        show("torchao, linear layers", path, again, many)
        kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d)
        for kind in kinds:
            try:
                changed = copy.deepcopy(model)
                quantize_(changed, Int8WeightOnlyConfig(), lambda module, name, kind=kind: isinstance(module, kind))
                with torch.no_grad():
                    changed(mixture)
                print(f"torchao, {kind.__name__}: works")
            except Exception as error:  # whatever a kind of layer that it does not know raises
                print(f"torchao, {kind.__name__}: {type(error).__name__}: {str(error).splitlines()[0][:90]}")


if __name__ == "__main__":
    main()
