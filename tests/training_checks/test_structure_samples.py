"""A predicted structure on the listening page: heard and seen beside its annotation, or alone."""

import numpy
import pytest
import soundfile

from music_training import files, runs
from music_training.edm_structure.data import AnnotatedTrack
from music_training.errors import UserError
from training_checks import listening_page, structure_samples


@pytest.fixture
def run(outputs, tmp_path):
    """A run with the prediction of a track: a beat every half second, two sections; and the track, annotated the same."""
    folder = runs.create("cnn", run_name="structure")
    audio = tmp_path / "music" / "one & two.wav"
    audio.parent.mkdir()
    soundfile.write(audio, 0.1 * numpy.sin(numpy.arange(8 * 8000) / 10), 8000)
    beats = [round(0.5 * number, 3) for number in range(16)]
    content = {"path": str(audio), "bpm": 120, "beats": beats, "downbeats": beats[::4], "beat_positions": [1, 2, 3, 4] * 4}
    content["segments"] = [{"start": 0.0, "end": 4.0, "label": "intro"}, {"start": 4.0, "end": 8.0, "label": "drop"}]
    files.write_json(folder / "predictions" / "one & two.json", content)
    soundfile.write(folder / "predictions" / "one & two.sonified.wav", numpy.zeros(8 * 8000), 8000)
    files.write_json(folder / "evaluation" / "summary.json", {"HR.5F": {"mean": 0.75}, "beat_F1": {"mean": 0.5}, "other": {"mean": 1}})
    times = numpy.array(beats)
    return folder, AnnotatedTrack("one & two", audio, "me", 8.0, numpy.array([0.0, 4.0]), ["intro", "drop"], times, times[::4], 120.0)


def test_an_annotated_track_is_heard_with_both_and_the_card_knows_the_scores(run, outputs):
    folder = structure_samples.contribute(*run)
    ((where, card),) = listening_page.read_cards(outputs / "samples")
    assert where == folder and (card.section, card.run, card.synthetic) == ("EDM structure", "structure", True)
    assert [(clip.version, clip.role) for clip in card.clips] == [("annotated", "reference"), ("predicted", "")]
    assert all((folder / clip.path).resolve().is_relative_to(outputs) and (folder / clip.path).is_file() for clip in card.clips)
    assert card.metrics == {"HR.5F": 0.75, "beat_F1": 0.5}
    assert (folder / card.pictures[0].path).read_bytes()[:4] == b"\x89PNG" and [link.text for link in card.links] == ["one & two.json"]
    clicks, rate = soundfile.read(folder / "annotated.wav")
    loud = numpy.abs(clicks).reshape(-1, rate // 20).max(1).reshape(-1, 10)  # halves of a second in twentieths
    assert (loud[:, 0] > 0.3).all() and (loud[:8, 5] < 0.1).all()
    page = (outputs / "samples" / "index.html").read_text()
    assert "EDM structure" in page and "one &amp; two" in page


def test_a_track_without_an_annotation_is_heard_alone(run, outputs):
    from music_training.edm_structure import train

    folder, track = run
    structure_samples.contribute(folder, train.unknown_track(track.audio))
    ((_, card),) = listening_page.read_cards(outputs / "samples")
    assert [clip.version for clip in card.clips] == ["predicted"] and card.metrics == {}


def test_what_was_not_predicted_is_one_line(run):
    from music_training.edm_structure import train

    with pytest.raises(UserError, match=r"no prediction with clicks of .*other\.wav; predict it first"):
        structure_samples.contribute(run[0], train.unknown_track(run[1].audio.with_name("other.wav")))
