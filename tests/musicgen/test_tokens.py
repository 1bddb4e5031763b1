"""The token cache: the codes of encoding on the way, except at edges; resumable, and never those of another codec."""

import json
import signal
import subprocess
import sys
import time

import numpy
import pytest
import soundfile

from music_training import files
from music_training.errors import UserError
from music_training.musicgen import audiocraft_compat, tokens

audiocraft_compat.install()

import torch  # noqa: E402
from audiocraft.data.audio_dataset import AudioMeta  # noqa: E402
from audiocraft.data.music_dataset import MusicDataset  # noqa: E402
from audiocraft.models import builders  # noqa: E402

from music_training.musicgen.captions import CaptionSettings  # noqa: E402
from music_training.musicgen.examples import refine  # noqa: E402
from music_training.musicgen.models import load_codec, save_weights  # noqa: E402
from music_training.musicgen.train import compose  # noqa: E402

RATE, SECONDS = 32000, 2


def save_codec(name: str, seed: int, *overrides: str):
    """A random codec with codebooks that fit its own latents; returns its reference."""
    torch.manual_seed(seed)
    config = compose(["model=codec_tiny", "device=cpu", *overrides])
    model = builders.get_compression_model(config)
    model(torch.randn(4, 1, RATE))
    save_weights(files.outputs_root() / name, model.state_dict(), config)
    return name


@pytest.fixture
def codec(outputs) -> str:
    return save_codec("codec", 0)


@pytest.fixture
def music(outputs) -> str:
    """Two tracks of 3 s parts in train, the second with a gap; one in valid. Returns the data set's name."""
    random = numpy.random.default_rng(1)
    parts = {"a": (0, 1, 2), "b": (0, 1, 3), "c": (0, 1)}
    index, lines = [], {"train": [], "valid": []}
    for track, numbers in parts.items():
        for number in numbers:
            path = outputs / "segments" / "music" / "audio" / f"{track}_{number:04d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * random.standard_normal(SECONDS * RATE), RATE, subtype="PCM_16")
            sidecar = dict(title=track, artist="", key="C minor", bpm=120, genre="noise", moods=[], name="", instrument="")
            files.write_json(path.with_suffix(".json"), {**sidecar, "keywords": [], "description": f"part {number} of {track}"})
            about = {"path": files.relative(path), "duration": float(SECONDS), "sample_rate": RATE}
            index.append(
                {**about, "track": track, "start": float(SECONDS * number), "frames": SECONDS * RATE, "sha256": f"{track}{number}"}
            )
            lines["valid" if track == "c" else "train"].append({**about, "amplitude": None, "weight": None, "info_path": None})
    lines_of = {"segments/music/segments.jsonl": index, **{f"egs/music/{split}/data.jsonl": rows for split, rows in lines.items()}}
    for path, rows in lines_of.items():
        files.write_text(outputs / path, "".join(json.dumps(row) + "\n" for row in rows))
    return "music"


def audio_of(track: str, *numbers: int) -> torch.Tensor:
    paths = [files.outputs_root() / "segments" / "music" / "audio" / f"{track}_{number:04d}.wav" for number in numbers]
    return torch.from_numpy(numpy.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths]))


def encode(model, audio: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(audio[None, None])[0][0]


def test_a_window_has_the_codes_of_encoding_it_by_itself_except_at_its_edges(music, codec, monkeypatch):
    model = load_codec(codec)
    before, after = tokens.reach(model)
    assert 0 < before <= 8 and 0 < after <= 8
    monkeypatch.setattr(tokens, "PIECE", 1.3)  # a stretch is encoded in pieces: no seam is to be seen
    made = tokens.encode(music, codec, "test").result
    cache = tokens.Tokens(made["tokens"])
    assert sorted(len(row["paths"]) for row in cache.rows) == [1, 2, 2, 3]  # the gap in b, and the splits, divide
    first = "segments/music/audio/a_0000.wav"
    whole, path, start = cache.window(first, 0.0, 10**6)
    assert path.endswith("a_0001.wav") and start == -2.0  # of the file in its middle
    assert torch.equal(whole.long(), encode(model, audio_of("a", 0, 1, 2)))
    frames = 75  # 1.5 s, from 1 s on: over the border of two files
    window, path, start = cache.window(first, 50 / (300 - frames), frames)
    assert start == 1.0 and path.endswith("a_0000.wav")
    alone = encode(model, audio_of("a", 0, 1, 2)[RATE : RATE + RATE * 3 // 2])
    assert torch.equal(window[:, before : frames - after].long(), alone[:, before : frames - after])
    assert not torch.equal(window.long(), alone)  # there is an edge effect, and no more than is said


def test_shifted_codes_are_those_of_windows_that_begin_between_the_frames(music, codec):
    model = load_codec(codec)
    before, after = tokens.reach(model)
    cache = tokens.Tokens(tokens.encode(music, codec, "test", tokens.TokenSettings(shifts=4)).result["tokens"])
    plain = tokens.Tokens(tokens.encode(music, codec, "test").result["tokens"])
    first, frames = "segments/music/audio/a_0000.wav", 75
    room = 300 - frames
    for place in (0.1, 0.5, 0.77):
        fine = int(place * (room + 1) * 4)
        window, path, start = cache.window(first, place, frames)
        begin = (int(path[-8:-4]) * 2 + start) * RATE
        assert begin == fine * 160  # a quarter of a frame
        alone = encode(model, audio_of("a", 0, 1, 2)[round(begin) : round(begin) + frames * 640])
        assert torch.equal(window[:, before : frames - after].long(), alone[:, before : frames - after])
    assert cache.window(first, 1.0, frames)[0].shape[1] == frames  # the shifted codes are a frame fewer
    assert cache.window(first, 0.999999, 10**6)[0].shape[1] == 299
    valid = "segments/music/audio/c_0000.wav"
    assert torch.equal(cache.window(valid, 0.3, 40)[0], plain.window(valid, 0.3, 40)[0])  # validation is on the frames
    assert torch.equal(cache.split("train"), plain.split("train"))


def test_reach_is_as_far_as_a_change_is_felt(codec):
    model = load_codec(codec)
    before, after = tokens.reach(model)
    audio = torch.randn(1, 1, 64 * 640, generator=torch.Generator().manual_seed(0))
    changed = audio.clone()
    changed[..., 30 * 640 : 31 * 640] += torch.randn(640)
    with torch.no_grad():
        felt = (model.encoder(audio) != model.encoder(changed)).any(dim=1)[0].nonzero().flatten().tolist()
    assert (felt[0], felt[-1]) == (30 - after, 30 + before)


def test_a_codec_with_a_memory_forgets_within_the_seconds_that_its_pieces_begin_early(outputs):
    model = load_codec(save_codec("lstm", 0, "seanet.lstm=2"))
    before, after = tokens.reach(model)
    assert before is None and after > 0
    audio = torch.randn(20 * RATE, generator=torch.Generator().manual_seed(0)) * 0.3
    whole = encode(model, audio)
    late = encode(model, audio[10 * RATE :])
    skip = int(tokens.PAST * 50)
    assert (late[:, skip:] == whole[:, 500 + skip :]).float().mean() > 0.999


CHILD = """
import sys
from music_training.musicgen import tokens
tokens.SHARD_SECONDS = 1.0
tokens.encode("music", sys.argv[1], "test")
"""


def digests(outputs) -> dict[str, str]:
    return {files.relative(path): files.digest(path) for path in (outputs / "tokens").rglob("*") if path.is_file()}


def test_a_killed_encoding_keeps_its_shards_and_ends_with_the_same_bytes(music, codec, outputs, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", CHILD, codec])
    deadline = time.monotonic() + 120
    while not (done := list((outputs / "tokens").glob("*/*/*.safetensors"))):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    inode = done[0].stat().st_ino
    monkeypatch.setattr(tokens, "SHARD_SECONDS", 1.0)
    tokens.encode(music, codec, "test", tokens.TokenSettings(workers=2))
    assert done[0].stat().st_ino == inode  # not written again
    whole = digests(outputs)
    assert len(whole) >= 3
    for path in (outputs / "tokens").glob("*/*/*"):
        path.unlink()
    tokens.encode(music, codec, "test")
    assert digests(outputs) == whole


def test_another_codec_or_other_audio_is_encoded_anew_and_nothing_else(music, codec, outputs, monkeypatch, capsys):
    monkeypatch.setattr(tokens, "SHARD_SECONDS", 1.0)
    first = tokens.encode(music, codec, "test").result
    before = digests(outputs)
    assert tokens.encode(music, codec, "test").skipped
    other = tokens.encode(music, save_codec("other", 1), "test").result
    assert other["tokens"] != first["tokens"]
    save_codec("codec", 2)  # the same place, other weights
    assert tokens.encode(music, codec, "test").result["tokens"] not in (first["tokens"], other["tokens"])
    save_codec("codec", 0)
    index = outputs / "segments" / "music" / "segments.jsonl"
    files.write_text(index, index.read_text().replace('"sha256": "b3"', '"sha256": "new"'))
    assert not tokens.encode(music, codec, "test").skipped
    after = {path: digest for path, digest in digests(outputs).items() if path.startswith(first["tokens"])}
    kept = [path for path in before if path in after and path.endswith(".safetensors")]
    assert 0 < len(kept) == sum(path.endswith(".safetensors") for path in before) - 1
    with pytest.raises(UserError, match="no token cache"):
        tokens.Tokens("nowhere")


def dataset(split: str, seconds: float, **more) -> MusicDataset:
    manifest = files.outputs_root() / "egs" / "music" / split / "data.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    metas = [AudioMeta.from_dict({**row, "path": str(files.absolute(row["path"]))}) for row in rows]
    known = dict(segment_duration=seconds, sample_rate=RATE, channels=1, sample_on_duration=False, min_segment_ratio=1.0)
    return MusicDataset(metas, **known, num_samples=40, **more)


def test_examples_come_at_any_length_with_the_text_of_where_they_lie(music, codec, outputs):
    cache = tokens.Tokens(tokens.encode(music, codec, "test").result["tokens"])
    plain, cached = dataset("train", 1.0), dataset("train", 1.0)
    refine(cached, None, 0, cache, padding=32)
    for one in (plain, cached):
        one.current_epoch = 3
    assert {info.description for _, info in map(cached.__getitem__, range(40))} == {
        info.description for _, info in map(plain.__getitem__, range(40))
    }
    codes, info = cached[5]
    assert codes.shape == (2, 50) and codes.dtype == torch.int64 and codes.max() < 32
    assert info.genre == "noise" and info.bpm == 120
    assert torch.equal(cached[5][0], codes)
    cached.current_epoch = 4
    assert not torch.equal(cached[5][0], codes)

    long = dataset("train", 5.0)
    refine(long, CaptionSettings(original=0), 0, cache, padding=32)
    long.current_epoch = 1
    seen = [long[index] for index in range(40)]
    known = {int((codes[0] != 32).sum()) for codes, _ in seen}
    assert known == {250, 200, 100}  # of a; all of the parts of b, which are shorter, and padding
    assert len({info.description for _, info in seen}) > 5
    audio, infos = long.collater(seen[:4])
    assert audio.shape == (4, 2, 250) and len(infos) == 4


def test_a_language_model_trains_from_the_cache(music, codec, train, language_model_overrides):
    cache = tokens.encode(music, codec, "test").result["tokens"]
    known = [text.replace("tones", "music") for text in language_model_overrides]
    known += [f"compression_model_checkpoint={codec}", f"token_cache={cache}", "dataset.segment_duration=3", "+captions.drop=0.5"]
    done = train(*known, "optim.epochs=1", "optim.updates_per_epoch=3", "run=cached")
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in (files.outputs_root() / "training/cached/metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["train"] * 3 + ["valid"] and all(0 < row["ce"] < 10 for row in rows)


def test_the_cross_entropy_is_upstreams(outputs):
    from contextlib import nullcontext
    from types import SimpleNamespace

    from audiocraft.solvers.musicgen import MusicGenSolver

    from music_training.musicgen.solvers import LanguageModelSolver

    torch.manual_seed(0)
    model = builders.get_lm_model(compose(["solver=musicgen", "model=lm_tiny", "device=cpu"]))
    codes, mask = torch.randint(model.card, (2, model.n_q, 20)), torch.rand(2, model.n_q, 20) > 0.2
    predicted = model.compute_predictions(codes, [])
    theirs = MusicGenSolver._compute_cross_entropy(None, predicted.logits, codes, mask & predicted.mask)
    ours = LanguageModelSolver.cross_entropy(SimpleNamespace(model=model, autocast=nullcontext()), codes, mask, {})
    torch.testing.assert_close(ours[1], torch.stack(theirs[1]))
    gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (ours[0], theirs[0])]
    assert gradients[0][0].any()
    torch.testing.assert_close(*gradients)
