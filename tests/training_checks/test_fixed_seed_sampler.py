"""The sampler on untrained models: what exists is kept, what changed is made again, and every clip is measured."""

import sys

import pytest
import soundfile
import torch

from music_training import files, runs
from music_training.errors import UserError
from music_training.library import catalogue
from music_training.musicgen import audiocraft_compat, generate, models
from training_checks import fixed_seed_sampler as sampler
from training_checks.listening_page import cards

audiocraft_compat.install()

from audiocraft.models import builders  # noqa: E402

from music_training.musicgen.train import compose  # noqa: E402

PROMPTS = "- {name: house, text: house, seed: 1}\n- {name: quiet, seed: 2}\n- {name: more, text: house, seed: 3, audio: song.wav}\n"


@pytest.fixture
def make_run(outputs, tmp_path):
    """Makes a run with the untrained weights of two epochs; returns its folder."""
    config = compose(["model=codec_tiny", "device=cpu"])
    torch.manual_seed(0)
    codec = builders.get_compression_model(config)
    codec(torch.randn(1, 1, 32000))
    models.save_weights(outputs / "codec", codec.state_dict(), config)
    soundfile.write(tmp_path / "song.wav", 0.1 * torch.randn(6400).numpy(), 32000)
    (tmp_path / "prompts.yaml").write_text(PROMPTS)

    def make(name: str, conditioner: str = "lut"):
        run = runs.create("musicgen", run_name=name)
        overrides = ["device=cpu", "solver=musicgen", "model=lm_tiny", f"conditioner={conditioner}", "dataset.segment_duration=1"]
        config = compose([*overrides, "datasource.train=egs/tones/train", "compression_model_checkpoint=codec"])
        for epoch in (1, 2):
            torch.manual_seed(epoch)
            models.save_weights(run / "ckpt" / f"epoch_{epoch}", builders.get_lm_model(config).state_dict(), config)
        return run

    return make


@pytest.fixture
def settings(tmp_path):
    return sampler.SamplerSettings(prompts_file=str(tmp_path / "prompts.yaml"), duration=0.4)


@pytest.fixture
def drawn(monkeypatch):
    """The names of the prompts that are really generated."""
    names = []
    original = generate.generate_all

    def spy(model, prompts, *rest):
        names.extend(prompt.name for prompt in prompts)
        return original(model, prompts, *rest)

    monkeypatch.setattr(sampler, "generate_all", spy)
    return names


def clips_of(run, epoch: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((sampler.samples_root() / run.name / f"epoch_{epoch}").glob("*.wav"))}


def test_every_epoch_gets_the_same_prompts_and_only_what_is_missing_is_drawn(make_run, settings, drawn, tmp_path):
    run = make_run("one")
    first, second = sampler.sample(run, settings)
    assert drawn == ["house", "quiet", "more"] * 2 and (first.epoch, second.epoch) == (1, 2)
    before = clips_of(run, 1)
    assert list(before) == ["house_seed1.wav", "more_seed3.wav", "quiet_seed2.wav"]
    assert all(before[name] != data for name, data in clips_of(run, 2).items())  # other weights, the same seeds
    drawn.clear()
    assert sampler.sample(run, settings) == [first, second] and drawn == []

    (sampler.samples_root() / "one" / "epoch_1" / "quiet_seed2.wav").unlink()
    sampler.sample(run, settings)
    assert drawn == ["quiet"] and clips_of(run, 1) == before  # the bits do not depend on the company
    drawn.clear()

    (tmp_path / "prompts.yaml").write_text(PROMPTS.replace("{name: quiet, seed: 2}", "{name: loud, seed: 2}"))
    card = sampler.sample(run, settings)[0]
    assert drawn == ["loud"] * 2 and [clip.name for clip in card.clips] == ["house", "loud", "more"]
    assert list(clips_of(run, 1)) == ["house_seed1.wav", "loud_seed2.wav", "more_seed3.wav"]  # what is asked no more is gone
    drawn.clear()

    soundfile.write(tmp_path / "song.wav", 0.1 * torch.ones(6400).numpy(), 32000)
    sampler.sample(run, settings)
    assert drawn == ["more"] * 2


def test_another_way_of_drawing_or_other_weights_make_all_again(make_run, settings, drawn):
    run = make_run("one")
    sampler.sample(run, settings)
    drawn.clear()
    sampler.sample(run, settings.model_copy(update={"temperature": 0.5}))
    assert len(drawn) == 6
    drawn.clear()
    models.save_weights(
        run / "ckpt" / "epoch_2",
        {name: tensor + 1e-3 for name, tensor in models.load_language_model(run / "ckpt" / "epoch_2").state_dict().items()},
        models.read_config(run / "ckpt" / "epoch_2"),
    )
    sampler.sample(run, settings.model_copy(update={"temperature": 0.5}))
    assert len(drawn) == 3


def test_every_clip_is_measured(make_run, settings):
    card = sampler.sample(make_run("one"), settings)[0]
    for clip in card.clips:
        assert set(clip.figures) == {"RMS dB", "peak", "silence", "clipping", "repetition"}
        assert set(card.made_from[clip.path.removesuffix(".wav")]) == {"key", "faults"}
    assert card.metrics["RMS dB"] == pytest.approx(sum(clip.figures["RMS dB"] for clip in card.clips) / 3)
    assert card.metrics["clips with faults"] == sum(bool(one["faults"]) for one in card.made_from.values())


def test_held_out_clips_are_continued(make_run, settings, outputs):
    lines = []
    for number in range(4):
        path = outputs / "segments" / f"clip{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * torch.randn(9600).numpy(), 32000)
        lines.append(f'{{"path": "segments/clip{number}.wav"}}\n')
    files.write_text(outputs / "egs" / "tones" / "test" / "data.jsonl", "".join(lines))
    more = settings.model_copy(update={"continuations": 2, "continue_seconds": 0.2, "prompts": 1})
    card = sampler.sample(make_run("one"), more)[0]
    assert [clip.name for clip in card.clips] == ["house", "continue clip0", "continue clip2"]
    assert all((sampler.samples_root() / "one" / "epoch_1" / clip.path).is_file() for clip in card.clips)


def test_a_model_without_text_is_asked_for_the_seeds_alone(make_run, settings):
    run = make_run("plain", "none")
    card = sampler.sample(run, settings)[0]
    assert [(clip.name, clip.text) for clip in card.clips] == [("unconditional 1", ""), ("unconditional 2", ""), ("more", "")]
    assert len(set(clips_of(run, 1).values())) == 3  # another seed is another clip


@pytest.fixture
def command(monkeypatch, capsys, settings):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fixed_seed_sampler", "--profile", "tiny", *arguments])
        assert sampler.main() == 0
        return capsys.readouterr().out

    return run


def test_the_command_samples_runs_side_by_side(make_run, command, settings):
    make_run("one"), make_run("two")
    assert "one  epoch 1" in command("--run", "one", "--list-epochs") and not sampler.samples_root().exists()
    options = ["--prompts", settings.prompts_file, "duration=0.4", "prompts=2"]
    output = command("--run", "one", "--run", "two", "--epoch", "2", *options)
    assert "one  epoch 2  2 clips" in output and "two  epoch 2  2 clips" in output and output.rstrip().endswith("index.html")
    assert [(card.run, card.epoch) for _, card in cards.read_cards(sampler.samples_root())] == [("one", 2), ("two", 2)]
    page = sampler.samples_root() / "index.html"
    text = page.read_text()
    page.unlink()
    command("--generate-index")
    assert page.read_text() == text
    assert list(sampler.table("one", "two")["run"]) == ["one", "one", "two", "two"]
    assert "run" not in sampler.table("one")


def test_mistakes_are_one_line(make_run, settings, tmp_path):
    run = make_run("one")
    with pytest.raises(UserError, match="one: no checkpoint of epoch 9; there are 1, 2"):
        sampler.sample(run, settings.model_copy(update={"epochs": [1, 9]}))
    with pytest.raises(UserError, match="no kept checkpoints"):
        sampler.sample(runs.create("musicgen", run_name="empty"), settings)
    (tmp_path / "prompts.yaml").write_text("- {name: gone, audio: gone.wav}")
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        sampler.sample(run, settings)


def test_what_is_trained_on_composed_music_says_so(make_run, settings):
    run = make_run("one")
    assert not sampler.sample(run, settings)[0].synthetic
    catalogue.write(catalogue.path_of("tones"), [catalogue.Track("a", "a.wav", "studio", "b", synthetic=True)])
    assert sampler.sample(run, settings)[0].synthetic
