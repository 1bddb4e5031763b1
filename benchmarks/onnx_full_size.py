"""Does the published architecture export to ONNX, how exactly, and is it quicker there?

``python benchmarks/onnx_full_size.py [--seconds 7.8] [--rounds 2]``: an adapter for five stems on a full-size HTDemucs, both
with random weights, merged and exported for a window of so many seconds, as ``export --onnx`` does. Prints the largest
difference of the stems from PyTorch's as a share of their peak, sizes, and CPU seconds of a window in turns, Fourier
transforms included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

STEMS = ("other", "kick", "vocals", "bass", "hihat")


def main() -> None:
    """Adapt, merge, export, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=7.8)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    import onnxruntime
    import torch
    from lora_training import published

    from music_training.lora_demucs import adapters, base, export, layers, ranks, stems
    from music_training.lora_demucs.config import HtDemucs

    torch.manual_seed(0)
    made = adapters.Adapters(published())
    chosen = ranks.allocate(layers.adaptable(made.model, tuple(stems.heads(made.model))), HtDemucs())
    starts = stems.parents(STEMS, made.base_sources)
    made.add("random", adapters.AdapterInfo(STEMS, chosen, parents=starts, heads=tuple(stems.heads(made.model))))
    with torch.no_grad():
        for value in made.tensors().values():
            value.add_(0.01 * torch.randn_like(value))
    made.model.segment = arguments.seconds
    model = made.merged_model()
    mixture = 0.1 * torch.randn(1, model.audio_channels, int(model.samplerate * model.segment))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "full.onnx", Path(folder) / "full.safetensors"
        begun = time.process_time()
        difference = export.to_onnx(model, path)
        base.write(model, plain)
        sizes = [file.stat().st_size / 2**20 for file in (path, plain)]
        print(
            f"window of {float(model.segment):g} s: differs by {difference:.1g} of the peak at most; {sizes[0]:.1f} MiB "
            f"(safetensors {sizes[1]:.1f}); {time.process_time() - begun:.0f} CPU s for export and check"
        )
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @torch.no_grad()
    def by_onnx():
        spectrum = model._spec(mixture)
        given = {"spectrum": model._magnitude(spectrum).numpy(), "mixture": mixture.numpy()}
        spectra, waves = map(torch.from_numpy, session.run(None, given))
        return model._ispec(model._mask(spectrum, spectra), mixture.shape[-1]) + waves

    @torch.no_grad()
    def by_torch():
        return model(mixture)

    spent = {by_torch: [], by_onnx: []}
    for _ in range(arguments.rounds + 1):  # the first warms up
        for run, times in spent.items():
            begun = time.process_time()
            run()
            times.append(time.process_time() - begun)
    ours, theirs = (statistics.median(times[1:]) for times in spent.values())
    print(f"CPU s a window: PyTorch {ours:.2f}, onnxruntime {theirs:.2f} ({ours / theirs:.2f} times as fast)")


if __name__ == "__main__":
    main()
