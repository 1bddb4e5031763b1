"""What does LoRA save against training all weights of a full-size HTDemucs, and what do checkpointing and bf16 change?

``python benchmarks/lora_training.py [--steps 4] [--seconds 2] [--variants lora full]`` trains the architecture of the published
htdemucs (its weights are random here: that needs no download, and says nothing about quality) from four stems to five, on
one synthetic example. Every variant is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PUBLISHED = {"channels": 48, "depth": 4, "nfft": 4096, "bottom_channels": 512, "t_layers": 5, "t_heads": 8, "dconv_mode": 3}
BASE, STEMS = ("drums", "bass", "other", "vocals"), ("other", "kick", "vocals", "bass", "hihat")
VARIANTS = ("lora", "full", "lora checkpointing", "full checkpointing", "lora bf16", "full bf16")


def published(sources=BASE):
    """The published architecture with random weights; its layer scales are 0.1, for at 1e-4 half of the model is mute."""
    import torch
    from demucs.htdemucs import HTDemucs
    from demucs.transformer import LayerScale

    torch.manual_seed(0)
    model = HTDemucs(list(sources), segment=39 / 5, **PUBLISHED)
    for module in model.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.constant_(module.scale, 0.1)
    return model


def example(seconds: float):
    """Five stems of tones, noise and hits ``[1, S, 2, n]``."""
    import torch

    rng, time_ = numpy.random.default_rng(1), numpy.arange(int(seconds * 44100)) / 44100
    beat = (2 * time_) % 1
    waves = {
        "other": numpy.sin(2 * numpy.pi * 660 * time_), "kick": numpy.sin(400 * beat) * numpy.exp(-18 * beat),
        "vocals": numpy.sin(2 * numpy.pi * 300 * time_ + numpy.sin(30 * time_)), "bass": numpy.sin(2 * numpy.pi * 80 * time_),
        "hihat": rng.standard_normal(len(time_)) * numpy.exp(-40 * ((time_ * 4 + 0.5) % 1)),
    }  # fmt: skip
    return torch.tensor(numpy.stack([0.2 * numpy.stack([waves[name], 0.8 * waves[name]]) for name in STEMS])[None], dtype=torch.float32)


def measure(variant: str, steps: int, seconds: float, rank: int) -> dict:
    """Train ``steps`` steps in this process; figures of memory, time, size and loss."""
    import psutil
    import torch

    from music_training.lora_demucs import adapters, base, layers, memory, ranks, stems
    from music_training.lora_demucs.config import HtDemucs
    from music_training.lora_demucs.losses import log_ratio

    imported = psutil.Process().memory_info().rss  # the libraries are not what is compared
    method, _, extra = variant.partition(" ")
    model, batch = published(), example(seconds)
    starts = stems.parents(STEMS, BASE)
    made = None
    if method == "lora":
        heads = tuple(stems.heads(model))
        chosen = ranks.allocate(layers.adaptable(model, heads), HtDemucs(lora_rank=rank))
        made = adapters.Adapters(model)
        made.add("default", adapters.AdapterInfo(STEMS, chosen, parents=starts, heads=heads, base_sources=BASE, digest=made.digest), 1)
    else:
        stems.put(model, stems.widen(model, STEMS, starts), STEMS)
    if extra == "checkpointing":
        memory.enable_checkpointing(model)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3 if made else 1e-4, weight_decay=0.0)
    losses, spent, without = [], [], 0
    model.train()
    for step in range(steps):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=extra == "bf16"):
            found = model(batch.sum(1))
        loss = log_ratio(found.float(), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        if step == steps - 1:  # in the first step no gradient passes the factors that are zero
            without = sum(1 for value in trained if value.grad is None or not float(value.grad.abs().sum()) > 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent.append(time.process_time() - start)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - imported / 2**20
    with tempfile.TemporaryDirectory() as folder:
        if made:
            written = made.save(Path(folder) / "adapter")
            size = sum(path.stat().st_size for path in written.iterdir())
        else:
            size = base.write(model, Path(folder) / "model.safetensors", list(STEMS)).stat().st_size
    own = sum(value.numel() for value in trained)
    state = sum(value.numel() * value.element_size() for group in optimizer.state.values() for value in group.values())
    whole = sum(value.numel() for value in adapters.plain_state(model).values())
    return {
        "variant": variant, "trained": own, "share": own / whole, "peak": peak, "size": size / 2**20, "model": whole * 4 / 2**20,
        "state": state / 2**20, "step": float(numpy.median(spent[1:] or spent)), "first": losses[0], "last": losses[-1],
        "without": without, "tensors": len(trained),
    }  # fmt: skip


def main() -> None:
    """Measure every variant in a process and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the example (default 1)")
    parser.add_argument("--rank", type=int, default=4, help="base rank of the heuristic (default 4)")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.steps, arguments.seconds, arguments.rank)))
        return
    print(
        f"{'variant':20s} {'trained':>12s} {'share':>7s} {'peak MiB':>9s} {'file MiB':>9s} {'optimizer MiB':>14s} {'CPU s a step':>13s}"
        f" {'nSDR dB, first and last step':>30s} {'without gradient':>17s}"
    )
    plain: dict[str, float] = {}
    for variant in arguments.variants:
        command = [sys.executable, __file__, "--one", variant, "--steps", str(arguments.steps), "--seconds", str(arguments.seconds)]
        done = subprocess.run([*command, "--rank", str(arguments.rank)], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        plain.setdefault("model", found["model"])
        gains = f"{-10 * found['first']:.2f}, {-10 * found['last']:.2f}" if math.isfinite(found["last"]) else "not finite"
        print(
            f"{variant:20s} {found['trained']:12,d} {100 * found['share']:6.2f}% {found['peak']:9.0f} {found['size']:9.2f}"
            f" {found['state']:14.1f} {found['step']:13.2f} {gains:>30s} {found['without']:8d} of {found['tensors']:5d}",
            flush=True,
        )
    print(f"all weights: {plain['model']:.1f} MiB; nSDR of the training example itself, from random weights")


if __name__ == "__main__":
    main()
