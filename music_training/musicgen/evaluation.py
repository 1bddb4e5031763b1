"""Is the language model better than counting? Its cross-entropy on held-out music beside a unigram model's.

The unigram model knows how often each code occurs in each codebook of the training tokens (one is added to every
count); a language model that has learnt anything about music over time is below it. Both are measured on the same
tokens, in nats per token, averaged over the codebooks as AudioCraft does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files, runs, stages
from .models import load_codec, load_language_model, load_musicgen, weights_file
from .tokens import Tokens, frequencies

if TYPE_CHECKING:
    import torch
    from audiocraft.models import CompressionModel
    from audiocraft.models.lm import LMModel


def encode_manifest(codec: CompressionModel, manifest: Path, limit: int | None = None) -> tuple[torch.Tensor, list[str]]:
    """Tokens ``[N, K, T]`` of the clips of a manifest (at most ``limit``, spread evenly) and their descriptions.

    Clips are cut to the shortest one's number of frames.
    """
    import soundfile
    import torch

    torch.set_num_threads(1)  # a clip at a time: more threads only wait for each other
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if limit and limit < len(lines):
        lines = [lines[index * len(lines) // limit] for index in range(limit)]
    tokens, descriptions = [], []
    for line in lines:
        path = files.absolute(line["path"])
        audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None, None].to(next(codec.parameters()).device)
        with torch.no_grad():
            tokens.append(codec.encode(audio)[0][0].cpu())
        descriptions.append((files.read_json(path.with_suffix(".json")) or {}).get("description") or "")
    frames = min(clip.shape[-1] for clip in tokens)
    return torch.stack([clip[:, :frames] for clip in tokens]), descriptions


def windows(tokens: torch.Tensor, descriptions: list[str], frames: int) -> tuple[torch.Tensor, list[str]]:
    """Cut tokens ``[N, K, T]`` into windows of ``frames``, with their descriptions: a model knows no longer positions."""
    import torch

    count = max(1, tokens.shape[-1] // frames)
    cut = torch.cat([tokens[..., index * frames : (index + 1) * frames] for index in range(count)])
    return cut, descriptions * count


def unigram_cross_entropy(train: torch.Tensor, held_out: torch.Tensor, cardinality: int) -> float:
    """Cross-entropy (nats per token) of ``held_out`` tokens ``[N, K, T]`` under the code frequencies of ``train``."""
    known = frequencies(train, cardinality).log()
    losses = [-row[held_out[:, k].flatten()].mean() for k, row in enumerate(known)]
    return float(sum(losses) / len(losses))


def model_cross_entropy(model: LMModel, tokens: torch.Tensor, descriptions: list[str], batch: int = 4) -> float:
    """Cross-entropy (nats per token) of tokens ``[N, K, T]`` under the language model, given their descriptions."""
    import torch
    from audiocraft.modules.conditioners import ConditioningAttributes
    from torch.nn import functional as F

    total, clips = 0.0, 0
    for start in range(0, len(tokens), batch):
        codes = tokens[start : start + batch].to(next(model.parameters()).device)
        conditions = [ConditioningAttributes(text={"description": text or None}) for text in descriptions[start : start + batch]]
        with torch.no_grad():
            predicted = model.compute_predictions(codes, conditions if len(model.condition_provider.conditioners) else [])
        losses = [
            F.cross_entropy(predicted.logits[:, k][predicted.mask[:, k]], codes[:, k][predicted.mask[:, k]]) for k in range(codes.shape[1])
        ]
        total += float(sum(losses) / len(losses)) * len(codes)
        clips += len(codes)
    return total / clips


def against_unigram(dataset: str, scope: str, held_out: str = "valid", clips: int = 32, force: bool = False) -> dict[str, float]:
    """Cross-entropies of the model that 05_train_musicgen trained last in ``scope``, of the unigram model and of guessing.

    A stage. The unigram model is fitted on all training clips; both are measured on ``clips`` of the ``held_out`` split.
    """
    trained = stages.latest("train_musicgen", scope, "05_train_musicgen")
    egs = files.outputs_root() / "egs" / dataset
    train, valid = egs / "train" / "data.jsonl", egs / held_out / "data.jsonl"

    def make(_draft: stages.Draft) -> stages.Made:
        model = load_language_model(trained["model"])
        codec = load_codec(model.cfg.compression_model_checkpoint)
        train_tokens = Tokens(trained["tokens"]).split("train")[None] if trained.get("tokens") else encode_manifest(codec, train)[0]
        tokens, descriptions = windows(*encode_manifest(codec, valid, clips), int(model.cfg.dataset.segment_duration * codec.frame_rate))
        result = {
            "language model": model_cross_entropy(model, tokens, descriptions),
            "unigram model": unigram_cross_entropy(train_tokens, tokens, codec.cardinality),
            "guessing": math.log(codec.cardinality),
            "training seconds": train_tokens[:, 0].numel() / codec.frame_rate,
            "held-out clips": len(tokens),
        }
        return stages.Made([], result)

    inputs = [weights_file(files.absolute(trained["model"])), train, valid]
    params = {"run": trained["run"], "held_out": held_out, "clips": clips}
    return stages.run("against_unigram", make, scope=scope, params=params, inputs=inputs, force=force).result


def first_clip(scope: str, seconds: float = 5.0, seed: int = 0):
    """A player with a clip drawn from the best weights of the last language model of ``scope``; a stage."""
    from IPython.display import Audio

    from .generate import generate, write
    from .prompts import Prompt, Sampling

    trained = stages.latest("train_musicgen", scope, "05_train_musicgen")

    def make(_draft: stages.Draft) -> stages.Made:
        model = load_musicgen(trained["model"])
        audio = generate(model, Prompt("first clip", "", seed), Sampling(duration=seconds))
        path = write(runs.folder() / trained["run"] / "samples" / "first_clip.wav", audio, model.sample_rate)
        return stages.Made([path], {"clip": files.relative(path)})

    params = {"run": trained["run"], "seconds": seconds, "seed": seed}
    done = stages.run("first_clip", make, scope=scope, params=params, inputs=[weights_file(files.absolute(trained["model"]))])
    return Audio(str(files.absolute(done.result["clip"])))
