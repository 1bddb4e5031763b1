"""Trained models on disk and in memory: a weights folder is ``model.safetensors`` + ``config.yaml``.

A weights folder holds what inference needs and nothing that has to be unpickled. The folder of a language model names
the codec that it was trained on (``compression_model_checkpoint``), relative to the outputs root. Where only adapters
were trained, their file and peft's ``adapter_config.json`` stand in place of all weights, and the configuration names
the weights folder that they adapt (``start_from``).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import UserError

if TYPE_CHECKING:
    import torch
    from audiocraft.models import CompressionModel, MusicGen
    from audiocraft.models.lm import LMModel
    from omegaconf import DictConfig

WEIGHTS, ADAPTER, CONFIG = "model.safetensors", "adapter_model.safetensors", "config.yaml"


def weights_file(folder: Path) -> Path:
    """The file with the weights of a weights folder (of adapters, where only they were trained)."""
    return folder / (ADAPTER if (folder / ADAPTER).is_file() else WEIGHTS)


def is_weights_folder(path: Path) -> bool:
    """Whether ``path`` holds weights that :func:`load_codec` or :func:`load_musicgen` reads."""
    return weights_file(path).is_file() and (path / CONFIG).is_file()


def save_weights(folder: Path, state: dict[str, torch.Tensor], config: DictConfig) -> Path:
    """Write a weights folder (atomically; an existing one is replaced); of a model with adapters, only these."""
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    from . import finetune

    adapters = finetune.adapter_state(state)
    with files.atomic(folder) as temporary:
        temporary.mkdir()
        if adapters:
            finetune.lora_config(config.lora.rank, config.lora.alpha).save_pretrained(str(temporary))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (adapters or state).items()}
        save_file(tensors, temporary / (ADAPTER if adapters else WEIGHTS))
        (temporary / CONFIG).write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    return folder


def read_config(folder: Path) -> DictConfig:
    """The AudioCraft configuration of a weights folder; UserError where there is none."""
    from omegaconf import OmegaConf

    if not is_weights_folder(folder):
        raise UserError(f"{folder}: no weights here ({WEIGHTS} and {CONFIG}); train a model first (04_train_codec, 05_train_musicgen)")
    return OmegaConf.load(folder / CONFIG)


def load_codec(reference: Path | str, device: str = "cpu") -> CompressionModel:
    """Load a codec: a weights folder, a file or folder in AudioCraft's exported form, or a published model.

    ``reference`` is a path (relative ones start at the outputs root; a folder in transformers' form is read too), or a
    hub name such as ``facebook/encodec_32khz``, with or without the prefix ``//pretrained/``.
    """
    from . import audiocraft_compat

    audiocraft_compat.install()
    from audiocraft.models import CompressionModel, builders

    text = str(reference)
    folder = files.absolute(text.removeprefix("//pretrained/"))
    if folder.exists():
        if (folder / "config.json").is_file():
            from audiocraft.models.encodec import HFEncodecCompressionModel
            from transformers import EncodecModel

            return HFEncodecCompressionModel(EncodecModel.from_pretrained(folder)).to(device).eval()
        if folder.is_file() or (folder / "compression_state_dict.bin").is_file():
            try:
                return _codec_of_training(folder, device) or CompressionModel.get_pretrained(str(folder), device)
            except pickle.UnpicklingError:  # anything but tensors and plain values is refused, not run
                raise UserError(f"{folder}: not an exported codec, or one that holds objects; such a file is not opened") from None
        config = read_config(folder)
        config.device = device
        return _with_weights(builders.get_compression_model(config), folder, device)
    try:
        return CompressionModel.get_pretrained(text.removeprefix("//pretrained/"), device)
    except OSError as error:  # what transformers and huggingface_hub raise for an unknown or unreachable model
        reason = str(error).splitlines()[0]
        raise UserError(f"codec {text!r}: neither a folder or file here nor a model that the hub gives ({reason})") from None


def load_language_model(folder: Path | str, device: str = "cpu", adapter: bool = True) -> LMModel:
    """Load the language model of a weights folder (relative paths start at the outputs root).

    A folder with adapters gives the model that they adapt, with them added to its weights, or without (``adapter``).
    """
    from . import audiocraft_compat, finetune

    audiocraft_compat.install()
    from audiocraft.models import builders

    folder = files.absolute(folder)
    config = read_config(folder)
    config.device = device
    config.dtype = "float32"
    adapts = (folder / ADAPTER).is_file()
    model = _with_weights(builders.get_lm_model(config), files.absolute(config.start_from) if adapts else folder, device)
    if adapts and adapter:
        finetune.merge(model, folder)
    model.cfg = config
    return model.eval()


def load_musicgen(folder: Path | str, device: str = "cpu", adapter: bool = True) -> MusicGen:
    """Load a language model together with its codec, ready to generate; ``adapter`` as in :func:`load_language_model`."""
    language_model = load_language_model(folder, device, adapter)
    from audiocraft.models import MusicGen

    codec = load_codec(language_model.cfg.compression_model_checkpoint, device)
    return MusicGen(str(folder), codec, language_model)


def _codec_of_training(path: Path, device: str) -> CompressionModel | None:
    """The codec of a training state (``ckpt/last.th``): its best weights so far, else the current ones; None for other files."""
    import torch
    from audiocraft.models import builders

    state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
    if "xp.cfg" not in state or "exported" in state or "model" not in state:
        return None
    config = state["xp.cfg"]
    if config.solver != "compression":
        raise UserError(f"{path}: the training state of a {config.solver} solver, not of a codec")
    config.device = device
    model = builders.get_compression_model(config)
    model.load_state_dict((state.get("best_state") or state)["model"])
    return model.to(device).eval()


def _with_weights(model: Any, folder: Path, device: str) -> Any:
    from safetensors.torch import load_file

    # The frozen text encoder is no part of the weights: everything else has to be there.
    missing, unexpected = model.load_state_dict(load_file(folder / WEIGHTS, device=device), strict=False)
    if missing or unexpected:
        raise UserError(f"{folder / WEIGHTS}: not the weights of this configuration (first: {(missing + unexpected)[0]})")
    return model.to(device).eval()
