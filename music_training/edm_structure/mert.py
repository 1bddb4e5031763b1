"""MERT as a backbone, and its embeddings kept on disk while it is frozen.

The public MERT-v1 models are HuBERT models at 24 kHz and 75 frames a second: transformers' own ``HubertModel`` loads
them, and no code from a model repository is executed. What that class cannot express (a CQT input, deep norm) is
refused. The MERT-v1 weights are licensed CC BY-NC 4.0: not for commercial use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import files
from ..errors import UserError
from ..library import audio
from . import augment, evaluation, features
from .config import BACKBONES, EdmSettings
from .data import AnnotatedTrack, Example, event_targets
from .system import EdmSystem

STEP = 320  # samples a frame
FRAME_RATE = features.SAMPLE_RATE / STEP
WINDOW, MARGIN = 30, 3  # seconds of a window of embeddings, and of what is heard beyond it on either side


class MertBackbone(nn.Module):
    """Samples ``[B, n]`` at 24 kHz to features ``[B, n // 320, D]`` of one layer; frame i is centred on sample 320 i."""

    frame_rate = FRAME_RATE
    from_samples = True

    def __init__(self, hubert: nn.Module, layer: int = -1):
        super().__init__()
        self.hubert, self.layer, self.width = hubert, layer, hubert.config.hidden_size
        count = hubert.config.num_hidden_layers
        if not -1 <= layer <= count:
            raise UserError(f"backbone_layer {layer}: this model has layers 0 ... {count}, or -1 for the last")

    def forward(self, samples: Tensor) -> Tensor:
        samples = samples[:, : samples.shape[1] // STEP * STEP]
        deviation, mean = torch.std_mean(samples, 1, keepdim=True)
        heard = functional.pad((samples - mean) / (deviation + 1e-5), (200, 0))
        if self.layer == -1:
            return self.hubert(heard).last_hidden_state
        return self.hubert(heard, output_hidden_states=True).hidden_states[self.layer]


def load(settings: EdmSettings) -> MertBackbone:
    """The backbone of the settings, from a local folder or the hub, with its weights; frozen where they say so."""
    from .model import resolve_backbone

    name = settings.backbone_model or BACKBONES[resolve_backbone(settings.backbone)]
    backbone = MertBackbone(_hubert(name), settings.backbone_layer)
    backbone.key = hashlib.sha256(b"".join(_bytes(value) for value in backbone.hubert.state_dict().values())).hexdigest()[:24]
    if settings.freeze_backbone:
        backbone.requires_grad_(False)
    return backbone


def _hubert(name: str) -> nn.Module:
    from transformers import HubertConfig, HubertModel

    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        else:
            described, _ = HubertConfig.get_config_dict(name)
    except OSError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"backbone_model {name}: neither a folder with config.json nor reachable on the hub ({first})") from None
    for key in ("feature_extractor_cqt", "deepnorm"):
        if described.get(key):
            raise UserError(f"backbone_model {name}: its config says {key}=true, which the built-in Hubert class has not; use MERT-v1")
    rate = described.get("sample_rate", features.SAMPLE_RATE)
    if rate != features.SAMPLE_RATE:
        raise UserError(f"backbone_model {name}: works at {rate} Hz, not at {features.SAMPLE_RATE}")
    about = ("auto_map", "architectures", "model_type", "transformers_version")
    known = {key: value for key, value in described.items() if key not in about}
    known |= {"apply_spec_augment": False, "layerdrop": 0.0}  # in training they would drop what the frame targets need
    made, report = HubertModel.from_pretrained(name, config=HubertConfig(**known), output_loading_info=True)
    lacking = [key for key in report["missing_keys"] if "masked_spec_embed" not in key]
    if lacking:
        raise UserError(f"backbone_model {name}: {len(lacking)} tensors are missing in its weights ({', '.join(sorted(lacking)[:3])} ...)")
    return made.float()


class Embeddings:
    """A frozen backbone's features of whole tracks, computed once: content-addressed, float16, memory-mapped.

    A track is cut into windows of 30 s, each heard with 3 s on either side, so that every frame has one value whatever
    crop it is in. The key of a file: the audio's hash, the weights' hash, the layer and the window.
    """

    def __init__(self, backbone: MertBackbone, use_cache: bool = True):
        self.backbone, self.use_cache = backbone, use_cache

    def read(self, track: AnnotatedTrack, start: int, stop: int) -> numpy.ndarray:
        """Frames ``start`` ... ``stop`` of a track, float16 ``[n, D]``."""
        if self.use_cache:
            return numpy.load(self._file(track), mmap_mode="r")[start:stop]
        samples = samples_of(track.audio)
        size = round(WINDOW * FRAME_RATE)
        parts = [self._window(samples, number) for number in range(start // size, -(-stop // size))]
        first = start // size * size
        return numpy.concatenate(parts)[start - first : stop - first]

    def _file(self, track: AnnotatedTrack) -> Path:
        digest = _digest(str(track.audio), track.audio.stat().st_mtime_ns)
        key = hashlib.sha256(json.dumps([digest, self.backbone.key, self.backbone.layer, WINDOW, MARGIN]).encode()).hexdigest()[:32]
        path = files.outputs_root() / "cache" / "edm_embeddings" / f"{key}.npy"
        if not path.is_file():
            samples = samples_of(track.audio)
            count = -(-len(samples) // (WINDOW * features.SAMPLE_RATE))
            with files.atomic(path) as temporary, open(temporary, "wb") as target:
                numpy.save(target, numpy.concatenate([self._window(samples, number) for number in range(count)]))
        return path

    @torch.no_grad()
    def _window(self, samples: numpy.ndarray, number: int) -> numpy.ndarray:
        size, margin = WINDOW * features.SAMPLE_RATE, MARGIN * features.SAMPLE_RATE
        start, stop = number * size, min((number + 1) * size, len(samples))
        first = max(0, start - margin)
        heard = torch.from_numpy(samples[first : stop + margin].astype(numpy.float32) / 32768)
        self.backbone.eval()
        found = self.backbone(heard.unsqueeze(0).to(next(self.backbone.parameters()).device))[0]
        low = (start - first) // STEP
        return found[low : low + (stop - start) // STEP].half().cpu().numpy()


def samples_of(path: Path) -> numpy.ndarray:
    """A track as mono int16 ``[n]`` at 24 kHz, decoded once and then memory-mapped."""
    cached = files.outputs_root() / "cache" / "edm_audio" / f"{_digest(str(path), path.stat().st_mtime_ns)[:32]}.npy"
    if not cached.is_file():
        samples, _ = audio.read(path, features.SAMPLE_RATE)
        with files.atomic(cached) as temporary, open(temporary, "wb") as target:
            numpy.save(target, (samples.clip(-1, 1) * 32767).round().astype(numpy.int16))
    return numpy.load(cached, mmap_mode="r")


class MertExample(Example):
    """Crops for MERT: samples while it learns, embeddings while it is frozen; targets at 75 frames a second.

    Neither is stretched or shifted: the augmentation of the CNN's features does not apply.
    """

    def __init__(self, tracks: Sequence[AnnotatedTrack], settings: EdmSettings, embeddings: Embeddings | None):
        super().__init__(tracks, settings)
        self.embeddings = embeddings
        self.frames = round(settings.duration * FRAME_RATE)

    def crop(self, number: int, rng: numpy.random.Generator) -> dict[str, Tensor]:
        start = int(rng.integers(0, max(1, self._length(number) - self.frames + 1)))
        return self._cut(number, start, self.frames)

    def whole(self, number: int) -> dict[str, Tensor]:
        length = self._length(number)
        if self.embeddings:
            batch = self._cut(number, 0, length)
        else:  # a learning backbone does not hear a whole track at once: its middle
            batch = self._cut(number, max(0, (length - self.frames) // 2), min(length, self.frames))
        return {name: value.unsqueeze(0) for name, value in batch.items()}

    def _length(self, number: int) -> int:
        """Whole frames of a track."""
        return len(samples_of(self.tracks[number].audio)) // STEP

    def _cut(self, number: int, start: int, frames: int) -> dict[str, Tensor]:
        track, there = self.tracks[number], min(frames, self._length(number) - start)
        if self.embeddings:
            inputs = self.embeddings.read(track, start, start + there).astype(numpy.float32)
            inputs = numpy.pad(inputs, ((0, frames - there), (0, 0)))
        else:
            inputs = samples_of(track.audio)[start * STEP : (start + there) * STEP].astype(numpy.float32) / 32768
            inputs = numpy.pad(inputs, (0, (frames - there) * STEP))
        ratio = features.FRAME_RATE / FRAME_RATE
        made = {"inputs": inputs, "energy": augment.resample(self.energy[number], start * ratio, ratio, frames)}
        made |= event_targets(track, self.settings, start / FRAME_RATE, 1.0, frames, FRAME_RATE)
        made["mask"] = (numpy.arange(frames) < there).astype(numpy.float32)
        made["beat_mask"] = made["mask"] * float(len(track.beats) > 0)
        return {name: torch.from_numpy(numpy.ascontiguousarray(value)) for name, value in made.items()}


class MertSystem(EdmSystem):
    """EDM structure on MERT; while the backbone is frozen, only its cached embeddings are read."""

    use_cache = True

    def examples(self, tracks: Sequence[AnnotatedTrack]) -> MertExample:
        embeddings = Embeddings(self.model.backbone, self.use_cache) if self.settings.freeze_backbone else None
        return MertExample(tracks, self.settings, embeddings)

    def scores(self, predictor, number: int) -> dict[str, float]:
        samples = samples_of(self.held_out[number].audio).astype(numpy.float32) / 32768
        return evaluation.of_features(predictor, self.held_out[number], samples)


_known_digests: dict[tuple[str, int], str] = {}


def _digest(path: str, modified: int) -> str:
    if (path, modified) not in _known_digests:
        _known_digests[path, modified] = files.digest(path)
    return _known_digests[path, modified]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
