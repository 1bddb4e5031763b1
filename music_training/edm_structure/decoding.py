"""From activations to events: beats by grids of constant tempo, downbeats, sections. Plain numpy, times in seconds.

Electronic music is made on a grid. A track's beats are the grid that fits its beat activation best (its complex
demodulation at the tempo and at twice the tempo, then a search of the phase); where two halves of a recording fit
clearly better on grids of their own (a DJ mix, a drift), each gets its own. Boundaries lie on bars of that grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from . import LABELS

SLOWEST, FASTEST, PREFERRED = 70.0, 200.0, 130.0  # bpm
SHORTEST, LONGEST = 20.0, 600.0  # seconds that a grid of its own must last, and of a stretch that is looked at as a whole
SILENT, ECHO = 0.2, 0.6  # of the median beat: fainter ones at a grid's beginning, or its end, are left out
TRIMMED = 8  # at most so many
KICKS, SNARES, DOWNBEATS, PHASE = 0.25, 0.5, 1.0, 1.0  # weights of what tells beats from off-beats, ``NOVELTY_WEIGHT`` with them
LINES = ("beat", "downbeat", "boundary", "bass", "mid", "spectrum")
KEPT = ("downbeat", "boundary", "energy", "label")  # what is needed when the grids are known
NOVELTY_WEIGHT = 40.0  # of the change of sound at boundaries, whose ratios are near 1
SURE = 1.4  # its vote is at most so large
DOUBTFUL = 0.2  # of the best grid's fit: where the grid between its beats fits so well, other evidence decides
BETTER = 0.1  # by how much the mean activation on beats must rise for a split


@dataclass(frozen=True)
class Decoding:
    """What decides: the ``threshold`` of a boundary on a phrase's first bar (off it, it takes ``stray`` times as much),
    whether boundaries are moved to downbeats, bars to a phrase and beats to a bar."""

    threshold: float = 0.2
    stray: float = 2.0
    snap: bool = True
    phrase: int = 4
    beats_per_bar: int = 4


@dataclass(frozen=True)
class Structure:
    """The structure of one track; ``segments`` are (start, end, label), ``beat_positions`` count from 1 on a downbeat."""

    bpm: float
    beats: numpy.ndarray
    beat_positions: numpy.ndarray
    segments: list[tuple[float, float, str]]
    duration: float

    @property
    def downbeats(self) -> numpy.ndarray:
        """The beats at position 1."""
        return self.beats[self.beat_positions == 1]


def decode(activations: dict[str, numpy.ndarray], frame_rate: float, duration: float, settings: Decoding | None = None) -> Structure:
    """Structure from activations in [0, 1]: ``beat``, ``downbeat``, ``boundary`` ``[T]``, ``energy`` ``[T, 3]``, ``label`` ``[T, 5]``.

    Every one may be missing; ``bass`` and ``mid`` ``[T]``, onsets in two bands, and the log
    ``spectrum`` ``[T, n]`` help to tell beats from off-beats.
    """
    decoder = Decoder(frame_rate, settings)
    decoder.add(activations)
    return decoder.finish(duration)


class Decoder:
    """:func:`decode` for activations that come window by window: a long mix's memory is that of a few numbers a frame.

    Grids are fitted to stretches of ``LONGEST`` seconds (a shorter rest belongs to the last), and what only they need is dropped.
    """

    def __init__(self, frame_rate: float, settings: Decoding | None = None):
        self.frame_rate, self.settings = frame_rate, settings or Decoding()
        self.grids: list[numpy.ndarray] = []
        self._held: dict[str, list[numpy.ndarray]] = {}  # since the last stretch
        self._kept: dict[str, list[numpy.ndarray]] = {}
        self._start = self._length = 0  # of what is held, in frames

    def add(self, activations: dict[str, numpy.ndarray]) -> None:
        """Take in the next window."""
        for name, line in activations.items():
            self._held.setdefault(name, []).append(line.copy())  # the window's own array can go
            if name in KEPT:
                self._kept.setdefault(name, []).append(line.astype(numpy.float16))
        self._length += len(next(iter(activations.values()), ()))
        while self._length >= 1.5 * LONGEST * self.frame_rate:
            self._fit(round(LONGEST * self.frame_rate))

    def finish(self, duration: float) -> Structure:
        """The structure of all that was added; ``duration`` in seconds."""
        self._fit(self._length)
        found = {name: numpy.concatenate(self._kept.pop(name)) for name in list(self._kept)}
        beats, positions = number_beats(self.grids, found, self.frame_rate, self.settings)
        keep = beats < duration
        beats, positions = beats[keep], positions[keep]
        edges = [0.0, *boundaries(found.get("boundary"), self.frame_rate, beats[positions == 1], duration, self.settings), duration]
        segments = [
            (start, end, label(found, self.frame_rate, start, end, number, len(edges) - 1))
            for number, (start, end) in enumerate(zip(edges, edges[1:], strict=False))
        ]
        bpm = 60 / float(numpy.median(numpy.diff(beats))) if len(beats) > 1 else 0.0
        return Structure(round(bpm, 2), beats, positions, segments, duration)

    def _fit(self, frames: int) -> None:
        """Fit grids to the first ``frames`` held, and let them go."""
        joined = {name: numpy.concatenate(parts) for name, parts in self._held.items()}
        if "beat" in joined:
            for grid in beat_grids({name: line[:frames] for name, line in joined.items()}, self.frame_rate):
                grid = grid + self._start / self.frame_rate
                if self.grids and len(grid) > 1:  # the grids of two neighbours may both claim a beat at their seam
                    grid = grid[grid > self.grids[-1][-1] + 0.5 * (grid[1] - grid[0])]
                if len(grid):
                    self.grids.append(grid)
        self._held = {name: [line[frames:].copy()] for name, line in joined.items()}
        self._start, self._length = self._start + frames, self._length - frames


# Beats


def beat_grids(activations: dict[str, numpy.ndarray], frame_rate: float) -> list[numpy.ndarray]:
    """Beat times ``[n]`` of each stretch of constant tempo, in order."""
    lines = {name: numpy.asarray(activations[name], numpy.float32) for name in LINES if name in activations}
    return _split(lines, frame_rate, *_grid(lines, frame_rate))[0]


def _split(lines: dict[str, numpy.ndarray], frame_rate: float, grid: numpy.ndarray, fit: float) -> tuple[list[numpy.ndarray], float]:
    """The grid itself, or those of its halves where they fit clearly better."""
    middle = len(lines["beat"]) // 2
    if middle < SHORTEST * frame_rate:
        return [grid], fit
    halves = [{name: line[part] for name, line in lines.items()} for part in (slice(None, middle), slice(middle, None))]
    fitted = [_split(half, frame_rate, *_grid(half, frame_rate)) for half in halves]
    own = sum(value for _, value in fitted) / 2
    if own < fit + BETTER:
        return [grid], fit
    (left, _), (right, _) = fitted
    if all(_same_tempo(piece, grid) for piece in [*left, *right]):  # only the phase differs: the whole knows better
        return [grid], fit
    return left + [times + middle / frame_rate for times in right], own


def _same_tempo(one: numpy.ndarray, other: numpy.ndarray) -> bool:
    """Whether two grids have one tempo, within half a percent; its double and its half count as the same."""
    periods = [(grid[-1] - grid[0]) / (len(grid) - 1) for grid in (one, other) if len(grid) > 1]
    return len(periods) < 2 or any(abs(periods[0] / periods[1] / ratio - 1) < 0.005 for ratio in (0.5, 1, 2))


def _grid(lines: dict[str, numpy.ndarray], frame_rate: float) -> tuple[numpy.ndarray, float]:
    """The best grid of one tempo: its beat times, and its fit: the mean activation on its beats."""
    activation = lines["beat"]
    if len(activation) < 2 * frame_rate or activation.max() < 1e-3:
        return numpy.zeros(0), 0.0
    tempo = _tempo(activation, frame_rate)
    period = frame_rate / tempo  # frames
    peaks = numpy.maximum(activation, numpy.maximum(numpy.roll(activation, 1), numpy.roll(activation, -1)))
    offsets = numpy.arange(0, period, period / 80)
    count = int((len(activation) - 1) / period)
    places = (offsets[:, None] + period * numpy.arange(count)).round().astype(int).clip(0, len(activation) - 1)
    fits = peaks[places].mean(1) + 0.5 * activation[places].mean(1)
    best = int(fits.argmax())
    half = (best + 40) % 80
    if fits[half] > DOUBTFUL * fits[best] and _evidence(lines, frame_rate, offsets[[best, half]], places[[best, half]], period) < 0:
        best = half  # both could be beats: what else sounds there decides
    # a last fine fit of phase and period: regress the peaks near the grid on their numbers
    numbers = numpy.arange(-1, int((len(activation) - 1 - offsets[best]) / period) + 1)
    expected = offsets[best] + period * numbers
    start, period = _refine(activation, expected, numbers, offsets[best], period)
    numbers = numpy.arange(int(numpy.ceil(-start / period - 0.05)), int((len(activation) - 1 - start) / period) + 1)
    times = numpy.maximum(start + period * numbers, 0.0)
    heights = peaks[times.round().astype(int).clip(0, len(activation) - 1)]
    usual = numpy.median(heights)
    first = int((heights[: TRIMMED + 1] > SILENT * usual).argmax())
    last = len(heights) - int((heights[::-1][: TRIMMED + 1] > ECHO * usual).argmax())
    return times[first:last] / frame_rate, float(heights.mean())


def _tempo(activation: numpy.ndarray, frame_rate: float) -> float:
    """The frequency (Hz) of the beat: where the spectrum and its second harmonic are strongest, near a plausible tempo."""
    centred = activation - activation.mean()
    size = max(1 << 16, 1 << (len(centred) * 2 - 1).bit_length())
    spectrum = numpy.abs(numpy.fft.rfft(centred, size))
    step = frame_rate / (2 * (len(spectrum) - 1))
    numbers = numpy.arange(int(SLOWEST / 60 / step), min(int(FASTEST / 60 / step), (len(spectrum) - 1) // 2))
    octaves = numpy.log2(numbers * step * 60 / PREFERRED)
    score = (spectrum[numbers] + 0.5 * spectrum[2 * numbers]) * numpy.exp(-0.5 * (octaves / 0.6) ** 2)
    best = int(numbers[score.argmax()])
    slower = best // 2 + numpy.arange(-1, 2)  # pulses at half the tempo have this line too
    if slower[0] * step * 60 >= SLOWEST and spectrum[slower].max() > 0.7 * spectrum[best]:
        best = int(slower[spectrum[slower].argmax()])
    # where the activation changes between beats and off-beats, its line at the tempo is torn apart, that at twice the tempo is not
    twice = numpy.arange(int(1.96 * best), int(2.04 * best) + 1)
    return float(twice[spectrum[twice].argmax()]) / 2 * step


def _evidence(lines: dict[str, numpy.ndarray], frame_rate: float, starts: numpy.ndarray, places: numpy.ndarray, period: float) -> float:
    """Above 0 where the first of two grids half a beat apart has the beats; the beat head, which is in doubt, has no vote."""
    total = 0.0
    if "bass" in lines:
        total += KICKS * _log_ratio(*(_near(lines["bass"], grid).mean() for grid in places))
    if "mid" in lines:
        total += SNARES * _log_ratio(*(numpy.percentile(_near(lines["mid"], grid), 90) for grid in places))
    if "downbeat" in lines:
        phases = [[_near(lines["downbeat"], grid[phase::4]).mean() for phase in range(4) if len(grid) > phase] for grid in places]
        total += DOWNBEATS * _log_ratio(*map(max, phases))
    if "boundary" in lines:
        peaks = _peaks(lines["boundary"], frame_rate, len(lines["boundary"]) / frame_rate, 0.2)
        if peaks:  # sections begin on beats: where in the beat do the boundaries lie?
            turns = (numpy.array(peaks) * frame_rate - starts[0]) / period
            total += PHASE * float(numpy.cos(2 * numpy.pi * turns).mean())
        if "spectrum" in lines:
            change = NOVELTY_WEIGHT * _log_ratio(*(_novelty_on(lines, frame_rate, start, period) for start in starts))
            total += float(numpy.clip(change, -SURE, SURE))
    return total


def _near(line: numpy.ndarray, places: numpy.ndarray) -> numpy.ndarray:
    """The largest values of a line within a frame of ``places``."""
    return numpy.max([line[(places + shift).clip(0, len(line) - 1)] for shift in (-1, 0, 1)], 0)


def _log_ratio(one: float, other: float) -> float:
    """By how much one exceeds the other, at most a factor of 10 either way."""
    return float(numpy.clip(numpy.log((one + 1e-9) / (other + 1e-9)), -2.3, 2.3))


def _novelty_on(lines: dict[str, numpy.ndarray], frame_rate: float, start: float, period: float) -> float:
    """How much the sound changes on beats near the boundaries: the spectrum's mean over a bar before and after, which no rhythm within
    the bar disturbs. A section begins on a beat, so that the true grid has the larger changes."""
    spectrum = numpy.pad(numpy.cumsum(lines["spectrum"], 0, dtype=numpy.float64), ((1, 0), (0, 0)))
    bar, total = round(4 * period), 0.0
    for time in _peaks(lines["boundary"], frame_rate, len(lines["boundary"]) / frame_rate, 0.2):
        beats = start + period * (round((time * frame_rate - start) / period) + numpy.arange(-3, 4))
        places = beats.round().astype(int)
        places = places[(places >= bar) & (places + bar < len(spectrum))]
        if len(places):
            change = spectrum[places + bar] - 2 * spectrum[places] + spectrum[places - bar]
            total += float(numpy.abs(change).mean(1).max())
    return total


def _refine(activation, expected, numbers, start: float, period: float) -> tuple[float, float]:
    """Least squares of the activation's centres of mass within +-3 frames of the grid, weighted by their height."""
    reach = numpy.arange(-3, 4)
    places = (expected.round().astype(int)[:, None] + reach).clip(0, len(activation) - 1)
    heights = activation[places]
    weights = heights.max(1)
    centres = (heights * places).sum(1) / numpy.maximum(heights.sum(1), 1e-6)
    good = weights > 0.3 * weights.max()
    if good.sum() < 4:
        return start, period
    slope, intercept = numpy.polyfit(numbers[good], centres[good], 1, w=weights[good])
    return (float(intercept), float(slope)) if abs(slope / period - 1) < 0.01 else (start, period)


def number_beats(grids, activations, frame_rate: float, settings: Decoding) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Beats of all grids with their positions in the bar, 1 being the phase where downbeats and boundaries are."""
    positions = []
    bar = settings.beats_per_bar
    for beats in grids:
        score = numpy.zeros(bar)
        for name, weight in (("downbeat", 1.0), ("boundary", 2.0)):
            if name in activations:
                near = _peak_near(activations[name], beats, frame_rate, 0.04 if name == "downbeat" else 0.1)
                total = numpy.array([near[phase::bar].mean() if len(near) > phase else 0.0 for phase in range(bar)])
                score += weight * total / max(total.max(), 1e-6)
        phase = int(score.argmax())
        positions.append((numpy.arange(len(beats)) - phase) % bar + 1)
    return (numpy.concatenate(grids), numpy.concatenate(positions)) if grids else (numpy.zeros(0), numpy.zeros(0, int))


# Sections


def boundaries(
    activation: numpy.ndarray | None, frame_rate: float, downbeats: numpy.ndarray, duration: float, settings: Decoding
) -> list[float]:
    """Times of the boundaries inside a track: bars whose activation is the largest around and reaches the threshold."""
    if activation is None:
        return []
    if not settings.snap or len(downbeats) < 2:
        return _peaks(activation, frame_rate, duration, settings.threshold)
    bar = float(numpy.median(numpy.diff(downbeats)))
    height = _peak_near(activation, downbeats, frame_rate, bar / 2)
    phrase = max(1, settings.phrase)
    votes = [height[place::phrase].sum() for place in range(phrase)]
    on_phrase = (numpy.arange(len(downbeats)) - int(numpy.argmax(votes))) % phrase == 0
    height = numpy.where(on_phrase, height, height / settings.stray)
    found = []
    for place in numpy.flatnonzero(height >= settings.threshold):
        around = height[max(0, place - 2) : place + 3]
        first = place - max(0, place - 2)
        if around.argmax() == first and 2 * bar - 0.1 < downbeats[place] < duration - 2 * bar:
            found.append(float(downbeats[place]))
    return found


def _peaks(activation: numpy.ndarray, frame_rate: float, duration: float, threshold: float, reach: float = 3.0) -> list[float]:
    """Local maxima within ``reach`` seconds that are at least ``threshold``."""
    found, size = [], round(reach * frame_rate)
    for place in numpy.flatnonzero(activation >= threshold):
        around = activation[max(0, place - size) : place + size + 1]
        if around.argmax() == place - max(0, place - size) and 1.0 < place / frame_rate < duration - 1.0:
            found.append(float(place / frame_rate))
    return found


def label(activations, frame_rate: float, start: float, end: float, number: int, count: int) -> str:
    """The label of a section: the label head's mean, else by place and energy (a rule, for models without that head)."""
    low, high = int(start * frame_rate), max(int(end * frame_rate), int(start * frame_rate) + 1)
    if "label" in activations:
        part = activations["label"][low:high]
        return LABELS[int(part.mean(0).argmax())] if len(part) else LABELS[0]
    if number == 0:
        return "intro"
    if number == count - 1:
        return "outro"
    if "energy" not in activations:
        return "drop"
    energy = activations["energy"].mean(1)
    part = energy[low:high]
    if part.mean() >= numpy.percentile(energy, 60):
        return "drop"
    third = max(1, len(part) // 3)
    return "buildup" if part[-third:].mean() > part[:third].mean() + 0.03 else "breakdown"


def _peak_near(activation: numpy.ndarray, times: numpy.ndarray, frame_rate: float, reach: float) -> numpy.ndarray:
    """The largest activation within ``reach`` seconds of each time."""
    places = (times * frame_rate).round().astype(int)
    size = round(reach * frame_rate)
    window = places[:, None] + numpy.arange(-size, size + 1)
    values = activation[window.clip(0, len(activation) - 1)]
    return numpy.where((window >= 0) & (window < len(activation)), values, 0).max(1)
