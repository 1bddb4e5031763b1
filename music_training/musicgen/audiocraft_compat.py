"""AudioCraft 1.3 on today's packages: a few named patches, each a no-op where it is not needed.

AudioCraft's metadata pins torch 2.1 and packages that have no wheels any more; it is installed without its
dependencies, and :func:`install` must run before the first ``import audiocraft``. Stubs stand in only for packages
that are absent; a real xformers, spacy or librosa is left alone.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

from .. import files

HYDRA_TREE = files.REPOSITORY / "model_config" / "audiocraft"
_applied: list[str] = []


def install(skip: Collection[str] = ()) -> list[str]:
    """Apply every patch that is needed, once per process; returns the names of those applied.

    ``skip`` leaves patches out (the tests show what fails without each).
    """
    if not _applied:
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch|audiocraft")  # weight_norm, torch.cuda.amp
        os.environ.setdefault("AUDIOCRAFT_CONFIG", str(HYDRA_TREE / "teams.yaml"))
        os.environ.setdefault("AUDIOCRAFT_CLUSTER", "default")
        os.environ.setdefault("AUDIOCRAFT_DORA_DIR", str(files.outputs_root()))
        _applied.extend(name for name, patch in PATCHES.items() if name not in skip and patch())
    return list(_applied)


def stub_xformers() -> bool:
    """``modules/transformer.py`` imports it unconditionally; the torch attention backend calls only ``unbind``."""
    if importlib.util.find_spec("xformers"):
        return False
    import torch

    def memory_efficient_attention(*_, **__):
        raise RuntimeError("xformers is not installed; use efficient_attention_backend=torch")

    ops = _module("xformers.ops", unbind=torch.unbind, memory_efficient_attention=memory_efficient_attention)
    ops.LowerTriangularMask = type("LowerTriangularMask", (), {})
    _module("xformers", ops=ops, __path__=[])
    return True


def stub_spacy() -> bool:
    """``modules/conditioners.py`` imports it; only the whitespace tokenizer of the ``lut`` conditioner uses it."""
    if importlib.util.find_spec("spacy"):
        return False

    class Word(types.SimpleNamespace):
        def __str__(self) -> str:
            return self.text

    def split(text: str) -> list[Word]:
        words = re.findall(r"\w+|[^\w\s]", text)
        return [Word(text=word, lemma_=word.lower(), is_stop=False, is_punct=not word[0].isalnum()) for word in words]

    _module("spacy", load=lambda *_, **__: split)
    return True


def stub_librosa() -> bool:
    """``modules/chroma.py`` imports its filters; only chroma conditioning calls them."""
    if importlib.util.find_spec("librosa"):
        return False
    filters = _module("librosa.filters")
    _module("librosa", filters=filters, __path__=[])
    return True


def allow_omegaconf() -> bool:
    """torch >= 2.6 refuses the configuration objects in AudioCraft's checkpoints: name exactly those classes as safe.

    Everything is still read with ``weights_only=True``; a checkpoint that holds any other object is refused.
    """
    import typing

    import omegaconf
    import torch
    from omegaconf import base, nodes

    torch.serialization.add_safe_globals(
        [omegaconf.DictConfig, omegaconf.ListConfig, base.ContainerMetadata, base.Metadata]
        + [nodes.AnyNode, nodes.StringNode, nodes.IntegerNode, nodes.FloatNode, nodes.BooleanNode]
        + [typing.Any, dict, list, int, (_plain_dict, "collections.defaultdict")]
    )
    return True


def write_with_soundfile() -> bool:
    """``audio_write`` pipes to an ffmpeg process for every file; soundfile writes wav, flac, ogg and mp3 in-process."""
    import soundfile
    from audiocraft.data import audio

    def write(out_path, wav, sample_rate, flags):  # flags: ffmpeg options for the format, which the suffix says too
        soundfile.write(str(out_path), wav.detach().t().cpu().float().numpy(), sample_rate)

    audio._piping_to_ffmpeg = write
    return True


def resolve_run_folders() -> bool:
    """Checkpoint references: a run name or a path, relative to the outputs root; upstream wants its own train module."""
    from audiocraft.utils import checkpoint

    def resolve(sig_or_path, name=None, use_fsdp=False) -> Path | None:
        text = str(sig_or_path).removeprefix("//sig/")
        for path in (files.absolute(text), files.outputs_root() / "training" / text):
            if path.is_dir() and (path / "ckpt").is_dir():
                path = path / "ckpt" / "last.th"
            if path.is_file():
                return path
        return None

    checkpoint.resolve_checkpoint_path = resolve
    return True


def load_safetensors_codecs() -> bool:
    """The codec of a run is a folder with ``model.safetensors`` and ``config.yaml``; upstream knows only pickles."""
    from audiocraft.solvers.compression import CompressionSolver

    from .models import load_codec

    upstream = CompressionSolver.model_from_checkpoint

    def model_from_checkpoint(checkpoint_path, device="cpu"):
        folder = files.absolute(str(checkpoint_path).removeprefix("//pretrained/"))
        return load_codec(folder, device) if folder.is_dir() and not (folder / "ckpt").is_dir() else upstream(checkpoint_path, device)

    CompressionSolver.model_from_checkpoint = staticmethod(model_from_checkpoint)
    return True


def accept_local_t5() -> bool:
    """``T5Conditioner`` accepts hub names only; let a local folder with a T5 in it through."""
    import json

    from audiocraft.modules.conditioners import T5Conditioner

    upstream = T5Conditioner.__init__

    def __init__(self, name, *args, **kwargs):
        config = Path(str(name)) / "config.json"
        if name not in self.MODELS and config.is_file():
            T5Conditioner.MODELS = [*T5Conditioner.MODELS, name]
            T5Conditioner.MODELS_DIMS = {**T5Conditioner.MODELS_DIMS, name: json.loads(config.read_text())["d_model"]}
        upstream(self, name, *args, **kwargs)

    T5Conditioner.__init__ = __init__
    return True


def stride_within_training_length() -> bool:
    """``MusicGen`` strides by 18 s by default and refuses models trained on less; stride by 60% of what they know."""
    from audiocraft.models.musicgen import MusicGen

    upstream = MusicGen.set_generation_params

    def set_generation_params(self, *args, extend_stride=None, **kwargs):
        upstream(self, *args, extend_stride=min(18.0, 0.6 * self.max_duration) if extend_stride is None else extend_stride, **kwargs)

    MusicGen.set_generation_params = set_generation_params
    return True


PATCHES: dict[str, Callable[[], bool]] = {
    "xformers": stub_xformers,
    "spacy": stub_spacy,
    "librosa": stub_librosa,
    "omegaconf": allow_omegaconf,
    "soundfile": write_with_soundfile,
    "run_folders": resolve_run_folders,
    "safetensors_codec": load_safetensors_codecs,
    "local_t5": accept_local_t5,
    "stride": stride_within_training_length,
}


def _plain_dict(*_factory: object) -> dict:
    """What stands for a default dictionary when a checkpoint is read: the reader fills only plain ones."""
    return {}


def _module(name: str, **attributes) -> types.ModuleType:
    """Register an empty module with a spec (``importlib.util.find_spec`` fails on a module without one)."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module
