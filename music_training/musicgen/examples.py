"""What a language model is shown: windows of music with their text, from audio files or from the token cache.

AudioCraft's data sets and loaders are used as they are; :func:`refine` changes the class of a data set in place, so
that everything else (which file is drawn, with which random numbers) stays upstream's.
"""

from __future__ import annotations

import math
import random

import torch
from audiocraft.data.audio_dataset import AudioDataset
from audiocraft.data.music_dataset import MusicDataset, MusicInfo
from audiocraft.modules.conditioners import WavCondition

from .. import files
from .captions import CaptionSettings, caption
from .tokens import Tokens


class CaptionedMusic(MusicDataset):
    """Audio ``[C, T]`` with what is known of it; where ``captions`` are asked for, the description is written anew."""

    captions: CaptionSettings | None
    caption_seed: int

    def __getitem__(self, index: int) -> tuple[torch.Tensor, MusicInfo]:
        wav, info = super().__getitem__(index)
        return wav, self.with_caption(info, index)

    def with_caption(self, info: MusicInfo, index: int) -> MusicInfo:
        """Give an example the text that belongs to (seed, epoch, index); without shuffling (validation) nothing is dropped."""
        if self.captions:
            seed = f"{self.caption_seed} {self.current_epoch} {index}"
            info.description = caption(vars(info), self.captions, random.Random(seed) if self.shuffle else None) or None
        return info


class TokenizedMusic(CaptionedMusic):
    """The same from the token cache: codes ``[K, frames]`` (int64) in place of audio.

    A file is drawn as upstream does, then a window anywhere in the stretch that it belongs to. A stretch that is
    shorter than the window is filled up with ``padding``, which the loss leaves out.
    """

    tokens: Tokens
    padding: int

    def __getitem__(self, index: int) -> tuple[torch.Tensor, MusicInfo]:
        random_state = torch.Generator()
        epoch = random.randint(0, 2**24) if self.current_epoch is None else self.current_epoch + self.shuffle_seed
        random_state.manual_seed(index + self.num_samples * epoch if self.shuffle else index)
        about = self.tokens.about
        frames = math.ceil(int(self.segment_duration * self.sample_rate) / about["hop"])
        drawn = self.sample_file(index, random_state)
        codes, path, seconds = self.tokens.window(files.relative(drawn.path), torch.rand(1, generator=random_state).item(), frames)
        known = codes.shape[1]
        window = torch.full((codes.shape[0], frames), self.padding)
        window[:, :known] = codes
        segment = {
            "meta": drawn,
            "seek_time": seconds,
            "n_frames": known * about["hop"],
            "total_frames": frames * about["hop"],
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "audio_tokens": None,
        }
        sidecar = files.read_json(files.absolute(path).with_suffix(".json"))
        info = MusicInfo.from_dict({**(sidecar or {}), **segment}, fields_required=self.info_fields_required and sidecar is not None)
        # There is no audio: a conditioner that wants it has none to hear.
        info.self_wav = WavCondition(torch.zeros(1, 1, 1), torch.tensor([0]), [self.sample_rate], [path], [seconds])
        return window, self.with_caption(info, index)


def refine(dataset: AudioDataset, captions: CaptionSettings | None, seed: int, tokens: Tokens | None, padding: int) -> None:
    """Turn AudioCraft's music data set, in place, into one of the above."""
    dataset.captions, dataset.caption_seed = captions, seed
    dataset.__class__ = CaptionedMusic
    if tokens:
        dataset.tokens, dataset.padding, dataset.__class__ = tokens, padding, TokenizedMusic
