"""The card of LoRA Demucs: every stem as mixture, base, adapted and truth, with figures that can be checked."""

import numpy
import pytest
import soundfile
import torch

pytest.importorskip("demucs")

from demucs.htdemucs import HTDemucs

from music_training import config, files, runs
from music_training.lora_demucs import base, layers, metrics, stems
from music_training.lora_demucs.adapters import AdapterInfo, Adapters
from music_training.lora_demucs.config import LoraDemucsSettings
from training_checks import separation_samples
from training_checks.listening_page import read_cards

RATE, STEMS, BASE = 8000, ("other", "kick", "vocals", "bass", "hihat"), ("drums", "bass", "other", "vocals")


@pytest.fixture
def run(tmp_path):
    """A run with an untrained adapter on a tiny base model, and tracks of noise."""
    torch.manual_seed(0)
    arguments = {"channels": 8, "depth": 2, "nfft": 512, "t_layers": 0, "dconv_mode": 0, "samplerate": RATE, "segment": 1}
    path = base.write(HTDemucs(list(BASE), **arguments).eval(), tmp_path / "base.safetensors")
    rng = numpy.random.default_rng(0)
    for split in ("train", "valid"):
        folder = tmp_path / "stems" / split / f"{split}_track"
        folder.mkdir(parents=True)
        for name in STEMS:
            level = 0.0 if name == "vocals" else 0.05
            soundfile.write(folder / f"{name}.wav", level * rng.standard_normal((3 * RATE, 2)), RATE, "PCM_16")
    made = runs.create("lorademucs", run_name="adapted")
    model = base.load(str(path))
    starts = stems.parents(STEMS, model.sources)
    heads = tuple(stems.heads(model))
    ranks = {layer.name: 1 for layer in layers.adaptable(model, heads)}
    adapters = Adapters(model, str(path))
    adapters.add(
        "default", AdapterInfo(STEMS, ranks, parents=starts, heads=heads, base=str(path), base_sources=BASE, digest=adapters.digest)
    )
    adapters.save(made / "adapter")
    content = {"base": str(path), "dset": {"wav": str(tmp_path / "stems"), "sources": list(STEMS)}}
    config.save(config.load(LoraDemucsSettings, content), made / "config.yaml")
    values = {"kick": 3.0, "hihat": 1.0, "vocals": float("nan")}
    scores = {name: {"nsdr": dict.fromkeys(values, 0.0) | (values if name == "adapted" else {})} for name in ("adapted", "unadapted")}
    files.write_json(made / "evaluation" / "summary.json", {"summary": scores | {"split": {"nsdr": {"kick": 2.0, "hihat": 0.5}}}})
    return made


def test_every_stem_in_four_versions_with_its_figures(run):
    folder = separation_samples.make_samples(run, scope="test", seconds=1.5)
    [(where, card)] = read_cards(files.outputs_root() / "samples")
    assert where == folder and card.section == "LoRA Demucs" and not card.synthetic
    rows = {}
    for clip in card.clips:
        rows.setdefault(clip.name, {})[clip.version] = clip
        assert soundfile.info(folder / clip.path).frames == int(1.5 * RATE)
    assert list(rows) == [f"valid_track: {name}" for name in STEMS]
    hihat = rows["valid_track: hihat"]
    assert list(hihat) == ["mixture", "base model", "adapted", "true stem"] and hihat["true stem"].role == "reference"
    assert "its drums is heard" in hihat["adapted"].text and rows["valid_track: bass"]["adapted"].text == ""
    true, found = (soundfile.read(folder / hihat[name].path)[0].T for name in ("true stem", "adapted"))
    assert hihat["adapted"].figures == {"nSDR dB": pytest.approx(metrics.nsdr(true, found))}
    assert rows["valid_track: vocals"]["adapted"].figures == {}  # silent: there is no ratio
    assert card.metrics["nSDR dB, kick"] == 3.0 and card.baseline["nSDR dB, kick"] == 0.0
    assert card.metrics["nSDR dB, hihat, by splitting the base's drums"] == 0.5 and "nSDR dB, vocals" not in card.metrics
    page = (files.outputs_root() / "samples" / "index.html").read_text()
    assert "valid_track: hihat" in page and "by splitting the base" in page


def test_done_once(run, capsys):
    separation_samples.make_samples(run, scope="test", seconds=1.0)
    before = {path: path.stat().st_mtime_ns for path in (files.outputs_root() / "samples").rglob("*.wav")}
    capsys.readouterr()
    separation_samples.make_samples(run, scope="test", seconds=1.0)
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
