"""Beats, downbeats and sections from activations whose truth is known."""

import numpy
import pytest

from music_training.edm_structure import LABELS, decoding, metrics
from music_training.edm_structure.decoding import Decoding

RATE = 50.0


def pulses(times, duration: float, height=0.9, width: float = 0.02) -> numpy.ndarray:
    grid = numpy.arange(int(duration * RATE) + 1) / RATE
    line = numpy.full(len(grid), 0.02)
    for time, tall in zip(times, numpy.broadcast_to(height, len(times)), strict=True):
        numpy.maximum(line, tall * numpy.exp(-0.5 * ((grid - time) / width) ** 2), out=line)
    return line.astype(numpy.float32)


def song(bpm: float, bars=(8, 8, 16, 8), start: float = 0.3):
    beat = 60 / bpm
    beats = start + beat * numpy.arange(4 * sum(bars))
    starts = start + 4 * beat * numpy.cumsum((0, *bars))[:-1]
    return beats, starts, start + 4 * beat * sum(bars) + 0.5


@pytest.mark.parametrize("bpm", [75.0, 90.5, 118.0, 128.0, 140.3, 174.0, 190.0])
def test_beats_lie_on_one_grid_whatever_the_tempo(bpm):
    beats, starts, duration = song(bpm)
    rng = numpy.random.default_rng(0)
    heights = rng.uniform(0.3, 0.95, len(beats)) * (rng.random(len(beats)) > 0.2)  # a fifth is not heard at all
    found = decoding.decode({"beat": pulses(beats, duration, heights), "downbeat": pulses(beats[::4], duration)}, RATE, duration)
    assert metrics.beats(beats, found.beats) > 0.97
    assert metrics.beats(beats[::4], found.downbeats) > 0.95
    assert found.bpm == pytest.approx(bpm, rel=0.002)


def test_a_set_of_three_tempi_gets_three_grids():
    pieces, at = [], 0.0
    for bpm in (120.0, 128.0, 174.0):
        pieces.append(at + 60 / bpm * numpy.arange(int(120 * bpm / 60)))
        at += 120.0
    beats = numpy.concatenate(pieces)
    found = decoding.decode({"beat": pulses(beats, at)}, RATE, at).beats
    assert metrics.beats(beats, found) > 0.9  # near a change of tempo up to 20 s follow neither grid
    assert metrics.beats(beats, decoding.decode({"beat": pulses(beats[:240], 120.0)}, RATE, at).beats) < 0.6


def test_the_kick_tells_a_beat_from_an_off_beat():
    beats, _, duration = song(126.0)
    off = beats + 30 / 126
    line = numpy.maximum(pulses(beats, duration, 0.5), pulses(off, duration, 0.6))
    assert metrics.beats(beats, decoding.decode({"beat": line}, RATE, duration).beats) < 0.1
    assert metrics.beats(beats, decoding.decode({"beat": line, "bass": pulses(beats, duration)}, RATE, duration).beats) > 0.97


def test_beats_end_with_the_music():
    beats, _, duration = song(128.0, start=1.5)
    found = decoding.decode({"beat": pulses(beats, duration + 3)}, RATE, duration + 3).beats
    assert abs(found[0] - beats[0]) < 0.03 and abs(found[-1] - beats[-1]) < 0.03


def test_boundaries_come_back_and_snap_to_downbeats():
    beats, starts, duration = song(128.0)
    late = pulses(starts[1:] - 0.3, duration, 0.6, width=0.3)  # the model hears the fill
    activations = {"beat": pulses(beats, duration), "downbeat": pulses(beats[::4], duration), "boundary": late}
    found = decoding.decode(activations, RATE, duration)
    edges = [start for start, _, _ in found.segments]
    assert edges[0] == 0.0 and found.segments[-1][1] == duration
    assert numpy.allclose(edges[1:], starts[1:], atol=0.03)
    loose = decoding.decode(activations, RATE, duration, Decoding(snap=False))
    assert numpy.allclose([start for start, _, _ in loose.segments][1:], starts[1:] - 0.3, atol=0.05)


def test_an_off_phrase_boundary_needs_more():
    beats, starts, duration = song(128.0)
    stray = starts[2] + 60 / 128 * 4 * 6
    weak = numpy.maximum(pulses(starts[1:], duration, 0.6, 0.2), pulses([stray], duration, 0.3, 0.2))
    strong = numpy.maximum(pulses(starts[1:], duration, 0.6, 0.2), pulses([stray], duration, 0.8, 0.2))
    base = {"beat": pulses(beats, duration), "downbeat": pulses(beats[::4], duration)}
    assert len(decoding.decode({**base, "boundary": weak}, RATE, duration).segments) == 4
    assert len(decoding.decode({**base, "boundary": strong}, RATE, duration).segments) == 5


def test_labels_by_the_head_and_by_the_rule():
    beats, starts, duration = song(128.0)
    base = {"beat": pulses(beats, duration), "downbeat": pulses(beats[::4], duration), "boundary": pulses(starts[1:], duration, 0.8, 0.2)}
    grid = numpy.arange(len(base["beat"])) / RATE
    place = numpy.searchsorted(starts, grid, side="right").clip(1) - 1
    wanted = ["intro", "buildup", "drop", "outro"]
    head = numpy.eye(5, dtype=numpy.float32)[[LABELS.index(wanted[item]) for item in place]]
    assert [name for _, _, name in decoding.decode({**base, "label": head}, RATE, duration).segments] == wanted
    energy = numpy.array([0.3, 0.4, 0.9, 0.5])[place] + numpy.where(place == 1, (grid - starts[1]) * 0.02, 0)
    ruled = decoding.decode({**base, "energy": numpy.repeat(energy[:, None], 3, 1)}, RATE, duration)
    assert [name for _, _, name in ruled.segments] == wanted


def test_nothing_to_find_is_no_error():
    silent = numpy.zeros(500, numpy.float32)
    found = decoding.decode({"beat": silent, "downbeat": silent, "boundary": silent}, RATE, 10.0)
    assert found.segments == [(0.0, 10.0, "intro")] and not len(found.beats) and found.bpm == 0.0
    assert decoding.decode({}, RATE, 10.0).segments == [(0.0, 10.0, "intro")]


def test_a_long_mix_decodes_window_by_window(monkeypatch):
    monkeypatch.setattr(decoding, "LONGEST", 60.0)
    at = 150.0  # seconds, where the tempo changes
    beats = numpy.concatenate([numpy.arange(0.5, at, 60 / 124), numpy.arange(at + 0.3, 320, 60 / 140)])
    lines = {"beat": pulses(beats, 320.0), "downbeat": pulses(beats[::4], 320.0), "boundary": pulses(beats[64::64], 320.0, 0.5)}
    decoder = decoding.Decoder(RATE)
    for start in range(0, len(lines["beat"]), 2400):
        decoder.add({name: line[start : start + 2400] for name, line in lines.items()})
        assert sum(map(len, decoder._held.get("beat", []))) <= 1.5 * 60 * RATE  # what is held does not grow
    found = decoder.finish(320.0)
    assert metrics.beats(beats, found.beats) > 0.97
    assert len(decoder.grids) >= 4 and all(numpy.diff(found.beats) > 0.2)
