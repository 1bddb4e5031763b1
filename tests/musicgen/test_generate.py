"""Clips drawn together have the bits of clips drawn alone, and are those of AudioCraft where nothing is left to chance."""

import json
import sys

import numpy
import pytest
import soundfile
import torch

from music_training import files, runs
from music_training.errors import UserError
from music_training.musicgen import audiocraft_compat, generate, models
from music_training.musicgen.prompts import Prompt, Sampling, read_prompts

audiocraft_compat.install()

from audiocraft.models import builders  # noqa: E402

from music_training.musicgen.decoding import chooser  # noqa: E402
from music_training.musicgen.train import compose  # noqa: E402

RATE = 32000
SHORT = Sampling(duration=0.6, top_k=16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Weights of an untrained codec and of two language models on it, with and without text; training length 1 s."""
    root = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSIC_OUTPUTS", str(root))
        torch.manual_seed(0)
        config = compose(["model=codec_tiny", "device=cpu"])
        codec = builders.get_compression_model(config)
        codec(torch.randn(1, 1, RATE))
        models.save_weights(root / "codec", codec.state_dict(), config)
        for name, conditioner in (("plain", "none"), ("text", "lut")):
            overrides = ["device=cpu", "solver=musicgen", "model=lm_tiny", f"conditioner={conditioner}", "dataset.segment_duration=1"]
            overrides += ["transformer_lm.dim=128", "transformer_lm.num_heads=4", f"compression_model_checkpoint={root / 'codec'}"]
            config = compose(overrides)
            models.save_weights(root / name, builders.get_lm_model(config).state_dict(), config)
    return root


@pytest.fixture(scope="module")
def music(folders):
    torch.set_num_threads(1)
    return models.load_musicgen(folders / "text")


@pytest.fixture(scope="module")
def plain(folders):
    return models.load_musicgen(folders / "plain")


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """Half a second of two tones, at a rate that is not the model's."""
    time = numpy.arange(22050) / 44100
    path = tmp_path_factory.mktemp("audio") / "song.wav"
    soundfile.write(path, 0.3 * numpy.sin(440 * time) + 0.3 * numpy.sin(2000 * time), 44100)
    return str(path)


@pytest.fixture
def prompts(song):
    """Eight prompts of every kind."""
    texts = ["house", "a slow and very quiet piece for strings", "", "techno with a kick " * 12, "", "two words", "dub", "house"]
    return [Prompt(f"p{index}", text, index, song if index in (5, 6) else "", 0.2) for index, text in enumerate(texts)]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_clip_has_the_same_bits_in_any_company(music, prompts, count):
    together = generate.generate_all(music, prompts, SHORT)
    for start in range(0, 8, count):
        part = generate.generate_all(music, prompts[start : start + count], SHORT)
        assert all(torch.equal(one, other) for one, other in zip(part, together[start : start + count], strict=True))
    assert len({clip.sum().item() for clip in together}) == 8  # and they are all different


def test_more_clips_than_rows_and_another_order_change_nothing(music, prompts):
    many = [Prompt("x", "house", seed) for seed in range(11)]
    together = generate.generate_all(music, many, SHORT)
    alone = generate.generate(music, many[9], SHORT)
    assert torch.equal(alone, together[9])
    backwards = generate.generate_all(music, prompts[::-1], SHORT)
    assert all(torch.equal(one, other) for one, other in zip(backwards[::-1], generate.generate_all(music, prompts, SHORT), strict=True))


def test_the_seed_the_text_and_the_guidance_matter(music):
    clips = generate.generate_all(
        music, [Prompt("x", "house", 1), Prompt("x", "house", 2), Prompt("x", "techno", 1), Prompt("x", "", 1)], SHORT
    )
    more = [generate.generate(music, Prompt("x", "house", 1), Sampling(duration=0.6, top_k=16, guidance=value)) for value in (1.0, 9.0)]
    assert len({clip.sum().item() for clip in [*clips, *more]}) == 6
    assert all(clip.shape == (1, int(0.6 * RATE)) for clip in clips)


def likeliest(model, text: str, duration: float, song: str = "", seconds: float = 0.2) -> torch.Tensor:
    """AudioCraft's own clip where always the likeliest token is taken; ``[C, T]``."""
    model.set_generation_params(use_sampling=False, duration=duration, cfg_coef=3.0)
    with torch.no_grad():
        if not song:
            return model.generate([text or None])[0]
        samples, rate = soundfile.read(song, dtype="float32")
        import soxr

        samples = soxr.resample(samples, rate, RATE, "HQ")[: int(seconds * RATE)]
        return model.generate_continuation(torch.from_numpy(samples)[None, None], RATE, [text or None])[0]


@pytest.mark.parametrize("duration", [0.6, 2.3])  # within the training length, and over several windows
def test_the_likeliest_tokens_are_those_of_audiocraft(music, plain, song, duration):
    greedy = Sampling(duration=duration, temperature=0)
    asked = [Prompt("a", "house"), Prompt("b", "a longer text of seven words"), Prompt("c"), Prompt("d", "two words", 0, song, 0.2)]
    for prompt, clip in zip(asked, generate.generate_all(music, asked, greedy), strict=True):
        torch.testing.assert_close(clip, likeliest(music, prompt.text, duration, prompt.audio), atol=1e-6, rtol=0)
    assert torch.equal(generate.generate(plain, Prompt("a"), greedy), likeliest(plain, "", duration))


def test_a_frozen_text_encoder_gives_the_clips_of_audiocraft_too(folders, tmp_path):
    """With T5 (untrained here), whose vectors AudioCraft pads to the longest text of a batch."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = Tokenizer(Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581drum", -2.0)], unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    T5EncoderModel(T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    overrides = ["device=cpu", "solver=musicgen", "model=lm_tiny", "conditioner=t5", f"conditioners.description.t5.name={tmp_path}"]
    overrides += ["transformer_lm.dim=128", "dataset.segment_duration=1", f"compression_model_checkpoint={folders / 'codec'}"]
    config = compose(overrides)
    torch.manual_seed(0)
    models.save_weights(tmp_path / "lm", builders.get_lm_model(config).state_dict(), config)
    model = models.load_musicgen(tmp_path / "lm")
    asked = [Prompt("a", "a drum"), Prompt("b", "a drum a drum a drum a"), Prompt("c")]
    for prompt, clip in zip(asked, generate.generate_all(model, asked, Sampling(duration=0.6, temperature=0)), strict=True):
        torch.testing.assert_close(clip, likeliest(model, prompt.text, 0.6), atol=1e-6, rtol=0)
    drawn = generate.generate_all(model, asked, SHORT)
    assert torch.equal(generate.generate(model, asked[1], SHORT), drawn[1])


def test_a_continuation_begins_with_what_it_continues(plain, song):
    clip = generate.generate(plain, Prompt("x", "", 3, song), Sampling(duration=1.5))
    samples, rate = soundfile.read(song, dtype="float32")
    import soxr

    given = torch.from_numpy(soxr.resample(samples, rate, RATE, "HQ"))[None, None]
    with torch.no_grad():
        codes = plain.compression_model.encode(given)[0]
        decoded = plain.compression_model.decode(codes, None)[0]
    alike = decoded.shape[-1] - 6400  # the decoder looks a few frames ahead
    torch.testing.assert_close(clip[:, :alike], decoded[:, :alike], atol=1e-5, rtol=0)
    assert clip.shape == (1, int(1.5 * RATE))


def test_the_model_is_left_as_it_was_even_where_drawing_fails(music, monkeypatch):
    before = likeliest(music, "house", 0.4)
    monkeypatch.setattr("music_training.musicgen.decoding.chooser", lambda *_: lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate.generate(music, Prompt("x", "house"), SHORT)
    assert not any("forward" in vars(module) for module in music.lm.modules())
    assert torch.equal(likeliest(music, "house", 0.4), before)


# How a token is drawn


def test_tokens_come_in_the_shares_that_the_logits_say():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    uniform = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    for temperature in (0.5, 1.0, 2.0):
        drawn = chooser(temperature, 0, 0.0)(logits.expand(10000, -1), uniform).bincount(minlength=5) / 10000
        torch.testing.assert_close(drawn, torch.softmax(logits / temperature, -1), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [(2, 0.0, [1, 2]), (1, 0.0, [2]), (0, 0.0, [0, 1, 2, 3, 4]), (9, 0.0, [0, 1, 2, 3, 4]), (1, 0.7, [1, 2]), (0, 0.01, [2])],
)
def test_only_the_likeliest_are_drawn(top_k, top_p, kept):
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    uniform = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    drawn = chooser(1.0, top_k, top_p)(logits.expand(5000, -1), uniform)
    assert drawn.unique().tolist() == kept
    shares = torch.softmax(logits[kept], -1)
    torch.testing.assert_close(drawn.bincount(minlength=5)[kept] / 5000, shares, atol=5e-4, rtol=0)


def test_the_ends_of_the_interval_are_drawn_from_too():
    logits = torch.tensor([[-1e9, 0.0, 0.0, -1e9]] * 2)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert chooser(1.0, 0, 0.0)(logits, ends).tolist() == [1, 2]
    assert chooser(0.0, 5, 0.5)(torch.tensor([[3.0, 1.0]]), ends[:1]).tolist() == [0]


# Prompts, and mistakes


def test_prompts_are_read_and_named(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("- {name: A <b>/.., text: x, seed: 3}\n- {name: song, audio: a.wav, audio_seconds: 2}\n- {name: song, seed: 1}\n")
    first, second, third = read_prompts(path)
    assert first.stem == "a-b_seed3" and (second.audio, second.audio_seconds) == ("a.wav", 2) and third.seed == 1
    assert len(read_prompts(path, 1)) == 1
    long = [Prompt(40 * "word " + end).stem for end in ("a", "b")]
    assert long[0] != long[1] and max(map(len, long)) < 70


@pytest.mark.parametrize(
    "content, message",
    [
        ("a: b", "expected a YAML list of prompts"),
        ("", "expected a YAML list of prompts"),
        ("- {name: a, texts: b}", "a prompt has name, text, seed, audio and audio_seconds"),
        ("- {name: a}\n- {name: A}", "two prompts would both be written as a_seed0"),
        ("- {name: a, audio: x, audio_seconds: 0}", "more than 0"),
        ("- {name: a, seed: one}", "seed 'one' is no whole number"),
        ("- {name: a, text: }", "name, text and audio are texts"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line(tmp_path, content, message):
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"duration": 0}, {"duration": float("nan")}, {"temperature": -1}, {"top_k": -1}, {"top_p": 2}, {"overlap": 1}, {"rows": 0}]
)
def test_a_sampling_that_cannot_be_is_one_line(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_what_a_model_cannot_do_is_one_line(plain, song, tmp_path):
    with pytest.raises(UserError, match="trained without text"):
        generate.generate(plain, Prompt("x", "house"), SHORT)
    with pytest.raises(UserError, match=r"song.wav: 0.\d+ s to continue leave nothing to generate of a duration of 0.4 s"):
        generate.generate(plain, Prompt("x", "", 0, song), Sampling(duration=0.4))
    with pytest.raises(UserError, match="shorter than one frame"):
        generate.generate(plain, Prompt("x"), Sampling(duration=0.001))
    with pytest.raises(UserError, match="nothing to continue"):
        generate.generate(plain, Prompt("x", "", 0, song, 0.001), SHORT)
    (tmp_path / "no.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match="no.wav: cannot be decoded"):
        generate.generate(plain, Prompt("x", "", 0, str(tmp_path / "no.wav")), SHORT)


# The command


@pytest.fixture
def command(monkeypatch, capsys, folders):
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["generate", "--model", str(folders / "text"), "--duration", "0.6", *arguments])
        code = generate.main()
        return code, capsys.readouterr().out

    return run


def test_candidates_are_ranked_and_written(command, tmp_path, music):
    _, output = command("house", "two words", "--candidates", "3", "--keep", "2", "--seed", "5", "--out", str(tmp_path / "o"), "--json")
    rows = json.loads(output)
    assert [row["rank"] for row in rows] == [1, 2, 1, 2] and {row["text"] for row in rows} == {"house", "two words"}
    assert all(5 <= row["seed"] <= 7 for row in rows)
    assert all(len(one["faults"]) <= len(other["faults"]) for one, other in zip(rows[::2], rows[1::2], strict=True))
    samples, rate = soundfile.read(rows[0]["file"], dtype="float32")
    drawn = generate.generate(music, Prompt("x", "house", rows[0]["seed"]), Sampling(duration=0.6))[0]
    assert rate == RATE and numpy.abs(samples - (drawn / drawn.abs().max().clamp(min=1)).numpy()).max() < 2 / 32768


def test_a_continuation_as_flac(command, tmp_path, song):
    _, output = command("--continue", song, "--prompt-seconds", "0.3", "--format", "flac", "--out", str(tmp_path / "o"))
    (path,) = (tmp_path / "o").iterdir()
    assert path.name == "song_seed0.flac" and str(path) in output
    assert soundfile.info(path).frames == int(0.6 * RATE) and soundfile.info(path).format == "FLAC"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--duration", "-1"], "duration -1"),
        (["--candidates", "0"], "--candidates 0: at least 1"),
        (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--format", "mp3"], "argument --format: invalid choice: 'mp3'"),
        (["--model", "nothing"], "run 'nothing': not found"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["--prompt-seconds", "0", "--continue", "x.wav"], "more than 0"),
    ],
)
def test_bad_arguments_are_one_line(command, arguments, message):
    with pytest.raises(UserError) as caught:
        command(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_to_continue_is_named(command, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        command("--continue", str(tmp_path / "gone.wav"))


def test_weights_are_found_by_run_and_epoch(outputs, folders):
    run = runs.create("musicgen", run_name="one")
    for name in ("best", "epoch_2", "epoch_10"):
        (run / "ckpt" / name).mkdir()
    assert generate.weights_of("one").name == "best" and generate.weights_of("one", 10) == run.resolve() / "ckpt" / "epoch_10"
    with pytest.raises(UserError, match="no weights epoch_3; there are epoch_2, epoch_10"):
        generate.weights_of("one", 3)
    assert generate.weights_of(files.relative(folders / "text")) == folders / "text"
