"""Composition: from an artist and a number to a song, section by section and bar by bar.

The emotion comes first and shapes the rest: valence the mode, the progressions and the register; arousal the tempo
within the style's range, the number of notes, the velocities and the loudness; intensity the layers, the brightness
and the drive.
"""

from __future__ import annotations

import numpy as np

from . import patterns
from .artists import STYLES, Artist, generator
from .song import DRUM_NOTES, LABELS, TAIL, Note, Section, Song, draw_emotion, draw_form


def compose(seed: int, artist: Artist, artist_index: int, track_index: int, seconds: tuple[float, float]) -> Song:
    """Compose the track ``track_index`` of an artist; its length is drawn from ``seconds`` and cut to whole phrases."""
    rng = generator("song", seed, artist_index, track_index)
    emotion = draw_emotion(artist_index + 61 * track_index + 7 * seed, rng)
    style = STYLES[artist.styles[0] if track_index == 0 or rng.random() < 0.6 else artist.styles[1]]
    place = np.clip(0.5 + 0.42 * emotion.arousal + 0.08 * artist.tempo_bias, 0, 1)
    bpm = float(round(style.bpm[0] + (style.bpm[1] - style.bpm[0]) * place))
    length = rng.uniform(*seconds)
    song = Song(
        id=f"{artist.id}_track_{track_index + 1:03d}",
        title=patterns.title(emotion.valence, emotion.arousal, rng),
        artist=artist,
        style=style,
        emotion=emotion,
        bpm=bpm,
        tonic=artist.tonics[int(rng.integers(len(artist.tonics)))],
        mode=patterns.mode(emotion.valence, rng),
        pickup=int(rng.choice([0, 0, 1, 2])),
        sections=draw_form((length - TAIL) * bpm / 240, rng),
    )
    _Arranger(song, rng).write()
    song.notes.sort(key=lambda note: (note.time, note.part, note.pitch))
    return song


class _Arranger:
    """Writes the notes of a song, section by section and bar by bar."""

    def __init__(self, song: Song, rng: np.random.Generator):
        self.song, self.rng = song, rng
        valence, arousal, self.intensity = song.emotion.valence, song.emotion.arousal, song.emotion.intensity
        self.density = float(np.clip(0.5 + 0.5 * arousal, 0.05, 1.0))  # how many of the possible notes are played
        self.force = 0.62 + 0.3 * self.density  # velocity
        self.step = song.beat / 4
        self.level = 1.0  # of the section
        pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
        style = song.style
        self.kick, self.stab = (patterns.steps(pick(options)) for options in (style.kick, style.stab))
        bass = patterns.steps(pick(style.bass[:2] if arousal < 0 else style.bass))
        self.bass = [note for index, note in enumerate(bass) if index < 2 or rng.random() < 0.5 + 0.5 * self.density]
        self.scale = patterns.SCALES[song.mode]
        self.chords = patterns.progression(song.mode, rng)
        self.centre = 60 + round(3 * valence + 2 * arousal)
        self.lead = patterns.melody(rng, self.density, steps=32)
        self.hook = patterns.melody(rng, 0.35 + 0.3 * self.density, steps=32)
        self.arp = pick(patterns.ARPS)
        self.perc = patterns.euclid(3 + int(4 * self.density), 16, int(rng.integers(16)))
        self.ghost = tuple(int(step) for step in rng.choice([3, 7, 9, 11, 14, 15], 2, replace=False))
        self.wobbles = [int(rate) for rate in rng.choice([1, 2, 3, 4, 6], 4)]
        self.vowels = [int(vowel) for vowel in rng.integers(0, 5, 16)]
        broken = any(section.label == "breakdown" for section in song.sections)
        chance = lambda share: bool(rng.random() < share)  # noqa: E731
        self.sung = {"intro": False, "buildup": chance(0.5), "drop": chance(0.55) or not broken, "breakdown": True, "outro": chance(0.2)}
        arped = chance(0.6), True, self.intensity > 0.35, chance(0.6), chance(0.4)
        self.arped = dict(zip(LABELS, arped, strict=True))
        self.bare_intro = chance(0.4)  # no kick in its first half

    # Placing

    def add(self, part, bar, step, length, pitch, velocity, colour=0.5, shape=0, tight=False):
        """A note at a step (16ths, may be fractional) of a bar, with the artist's swing and timing."""
        song, rng = self.song, self.rng
        time = song.bar_time(bar) + step * self.step
        if not tight:
            time += song.artist.swing * self.step * (step % 2 == 1) + float(np.clip(rng.normal(0, song.artist.human), -0.012, 0.012))
        velocity = float(np.clip(velocity * self.level * self.force * rng.uniform(0.93, 1.07), 0.08, 1.0))
        level = round(float(np.clip(colour, 0, 1)) * 8) / 8  # few levels, so that sounds are rendered once
        song.notes.append(Note(part, max(0.0, time), length * self.step, int(pitch), velocity, level, shape))

    def hit(self, part, bar, step, velocity, shape=0, tight=False):
        self.add(part, bar, step, 1, DRUM_NOTES[part], velocity, 0.5, shape, tight)

    def pitch(self, degree: int, centre: int) -> int:
        """The pitch of a scale degree in the octave nearest to ``centre``."""
        octave, step = divmod(degree, 7)
        base = self.song.tonic + self.scale[step]
        return base + 12 * round((centre - base) / 12) + (12 * octave if octave > 0 and abs(octave) < 2 else 0)

    def chord(self, bar: int) -> int:
        """The degree on which the chord of a bar stands."""
        return self.chords[((bar - 1) // self.song.style.bars_per_chord) % len(self.chords)]

    def voicing(self, bar: int, notes: int) -> list[int]:
        root = self.chord(bar)
        return sorted({self.pitch((root + third) % 7, self.centre + 2 * index) for index, third in enumerate((0, 2, 4, 6)[:notes])})

    # Form

    def write(self) -> None:
        song = self.song
        for step in range(4 * song.pickup):  # the pickup: hats and a voice of the fill lead into bar 1
            self.hit("hat_closed", 1, step - 4 * song.pickup, 0.35 + 0.05 * step)
        for index, section in enumerate(song.sections):
            following = song.sections[index + 1].label if index + 1 < len(song.sections) else ""
            if index:
                self.transition(section, song.sections[index - 1])
            self.level = dict(zip(LABELS, (0.75, 0.8, 1.0, 0.72, 0.75), strict=True))[section.label]
            for bar in range(section.bar, section.bar + section.bars):
                place = (bar - section.bar) / section.bars
                self.drums(section, bar, place, following)
                self.tones(section, bar, place, following)

    def transition(self, section: Section, before: Section) -> None:
        """What marks a new section: a crash or a fall of noise, and before it a rise of noise."""
        bar = section.bar
        if section.label in ("drop", "breakdown", "outro") or self.rng.random() < 0.4:
            self.hit("crash", bar, 0, 0.9 if section.label == "drop" else 0.6)
        if section.label in ("breakdown", "outro"):
            self.add("fall", bar, 0, 24, 60, 0.5, tight=True)
        rise = before.bars if before.label == "buildup" else 2 if self.rng.random() < 0.7 else 0
        if rise:
            self.add("rise", bar - min(rise, 8), 0, 16 * min(rise, 8), 60, 0.95 if section.label == "drop" else 0.45, tight=True)

    def drums(self, section: Section, bar: int, place: float, following: str) -> None:
        song, rng, label = self.song, self.rng, section.label
        style, last = song.style, bar == section.bar + section.bars - 1
        phrase_end = (bar - section.bar) % 4 == 3
        half = style.name == "dubstep"
        bare = half or self.bare_intro
        beaten = {"intro": place >= 0.5 or not bare, "buildup": not last, "drop": True, "breakdown": False, "outro": place < 0.75}[label]
        if beaten:
            for step in (0, 4, 8, 12) if label == "buildup" and not half else (step for step, _ in self.kick):
                if not (last and following == "drop" and step >= 8):
                    self.hit("kick", bar, step, 0.95 if step == 0 else 0.9, tight=True)
        if label == "breakdown" and self.sung["drop"] and (bar - section.bar) % 2 == 0:
            self.hit("kick", bar, 0, 0.45, tight=True)
        backbeat = label == "drop" or (label in ("intro", "outro") and 0.25 <= place < 0.75 and self.intensity > 0.3)
        if backbeat:
            for step, _ in patterns.steps(style.backbeat):
                self.hit(style.backbeat_part, bar, step, 0.9, int(rng.integers(3)))
            if style.backbeat_part == "snare" and self.density > 0.4:
                for step in self.ghost:
                    self.hit("snare", bar, step, 0.28, int(rng.integers(3)))
        if label == "buildup":
            self.roll(section, bar, last)
        if (label == "drop" or (label in ("intro", "outro") and self.density > 0.3)) and self.density > 0.15:
            for step in self.perc:
                self.hit("perc", bar, step, rng.uniform(0.3, 0.6) * (1 if label == "drop" else 0.7))
        self.hats(section, bar, place)
        if phrase_end and label != "buildup" and (last or rng.random() < 0.5):
            self.fill(bar, soft=label == "breakdown")

    def hats(self, section: Section, bar: int, place: float) -> None:
        label, rng = section.label, self.rng
        levels = 0.6 * place + 0.1, 0.5 + 0.3 * place, 0.85, 0.3 * (place >= 0.5), 0.75 * (1 - place)
        level = dict(zip(LABELS, levels, strict=True))[label]
        if level < 0.15:
            return
        sixteenths = label == "drop" and self.density > 0.45 or label == "buildup" and place >= 0.5
        for step in range(0, 16, 1 if sixteenths else 2):
            accent = (0.8, 0.35, 0.95 if label == "drop" else 0.6, 0.4)[step % 4]
            if rng.random() < 0.55 + 0.45 * self.density or step % 4 == 0:
                self.hit("hat_closed", bar, step, level * accent, int(rng.integers(3)))
        if label in ("drop", "outro") or (label in ("intro", "buildup") and place >= 0.5):
            for step, _ in patterns.steps(self.song.style.open_hat):
                if rng.random() < 0.35 + 0.65 * self.density:
                    self.hit("hat_open", bar, step, 0.75 * level, int(rng.integers(3)))
        if label == "drop" and self.intensity > 0.55 and place >= 0.5:
            for step in range(0, 16, 4 if self.density < 0.7 else 2):
                self.hit("ride", bar, step, 0.4 if step % 4 else 0.55)

    def roll(self, section: Section, bar: int, last: bool) -> None:
        """A snare roll that doubles its pace towards the end of a build-up."""
        left = section.bar + section.bars - bar  # bars to go, this one too
        every = 4.0 if left > section.bars * 0.6 else 2.0 if left > 2 else 1.0
        for step in np.arange(0, 12 if last else 16, every):
            rise = 1 - (left - step / 16) / section.bars
            self.hit("snare", bar, float(step), 0.25 + 0.55 * rise, int(self.rng.integers(3)))
        if last and self.intensity > 0.4:
            for step in np.arange(8, 12, 0.5):
                self.hit("snare", bar, float(step), 0.55, int(self.rng.integers(3)))

    def fill(self, bar: int, soft: bool) -> None:
        """A few hits in the last beat or two of a phrase."""
        start = int(self.rng.choice([8, 12, 12, 14]))
        part = "tom" if self.rng.random() < 0.5 else "snare"
        for index, step in enumerate(range(start, 16, 1 if self.density > 0.5 else 2)):
            self.hit(part, bar, step, (0.3 if soft else 0.5) + 0.04 * index, index % 3)

    def tones(self, section: Section, bar: int, place: float, following: str) -> None:
        song, label = self.song, section.label
        last = bar == section.bar + section.bars - 1
        lift = 0.2 * (self.intensity - 0.5) + 0.08 * song.emotion.valence + 0.08 * song.artist.brightness
        colours = 0.2 + 0.25 * place, 0.3 + 0.5 * place, 0.72, 0.4 - 0.1 * place, 0.45 - 0.3 * place
        colour = lift + dict(zip(LABELS, colours, strict=True))[label]
        span = song.style.bars_per_chord
        if label == "drop" or (label in ("intro", "outro") and 0.25 <= place < 0.8 and song.style.name != "dubstep"):
            self.bass_line(bar, colour, quiet=label != "drop")
        elif label == "breakdown" and (bar - 1) % 2 == 0 and self.intensity < 0.7:
            self.add("bass", bar, 0, 28, self.pitch(self.chord(bar), 40), 0.45, colour - 0.1)
        if (bar - section.bar) % min(span, 2) == 0 and label != "outro" or label == "outro" and place < 0.6:
            level = {"intro": 0.5, "buildup": 0.65, "drop": 0.5, "breakdown": 0.7, "outro": 0.5}[label]
            length = 16 * (min(span, 2) if label != "outro" else 1) + (6 if last else 1)  # into the next section
            for pitch in self.voicing(bar, 4 if abs(song.emotion.valence) < 0.6 else 3):
                self.add("pad", bar, 0, length, pitch, level, colour)
        if label == "drop":
            for step, _ in self.stab:
                if self.rng.random() < 0.5 + 0.5 * self.density:
                    for pitch in self.voicing(bar, 3):
                        pitch += 12 * (song.emotion.valence > 0.3)
                        self.add("stab", bar, step, 1.5, pitch, 0.8 if step % 4 == 0 else 0.65, colour)
        if self.arped[label]:
            self.arpeggio(bar, colour, dict(zip(LABELS, (0.45, 0.4 + 0.3 * place, 0.5, 0.5, 0.4 * (1 - place)), strict=True))[label])
        if label == "drop" and (place >= 0.5 or section.bars <= 4 or self.intensity > 0.6) or label == "breakdown" and place >= 0.5:
            centre = 72 + round(4 * song.emotion.valence + 3 * song.emotion.arousal)
            self.melody("lead", self.lead, bar, centre, colour, 0.8 if label == "drop" else 0.55)
        if self.sung[label] and not (label == "buildup" and place < 0.5) and not (last and following == "drop"):
            self.voice(bar, label)

    def bass_line(self, bar: int, colour: float, quiet: bool) -> None:
        root = self.pitch(self.chord(bar), 36)
        wobbly = self.song.style.name == "dubstep"
        for index, (step, length) in enumerate(self.bass):
            leap = 12 if step % 8 == 6 and self.density > 0.6 and not wobbly else 0
            shape = self.wobbles[(bar + index) % 4] if wobbly and not quiet else 0
            self.add("bass", bar, step, length * 0.92, root + leap, 0.65 if quiet else 0.9, colour - (0.15 if quiet else 0), shape)

    def arpeggio(self, bar: int, colour: float, level: float) -> None:
        tones = self.voicing(bar, 4)
        tones = [tone + 12 for tone in tones] + [tones[0] + 24]
        for step in range(0, 16, 1 if self.density > 0.65 else 2):
            if self.rng.random() < 0.45 + 0.5 * self.density:
                tone = tones[self.arp[step % len(self.arp)] % len(tones)]
                self.add("arp", bar, step, 1.2, tone, level * (1.1 if step % 4 == 0 else 0.85), colour)

    def melody(self, part: str, motif, bar: int, centre: int, colour: float, level: float) -> None:
        """One bar of a two-bar motif, over the bar's chord; every fourth time its end is turned."""
        half, turned = (bar - 1) % 2, (bar - 1) % 8 >= 6
        for step, length, degree in motif:
            if step // 16 != half:
                continue
            degree = self.chord(bar) + (degree if not turned else -degree)
            self.add(part, bar, step % 16, length, self.pitch(degree % 7, centre), level, colour)

    def voice(self, bar: int, label: str) -> None:
        """A phrase of the voice: long syllables in a breakdown, chopped ones in a drop."""
        centre = round(self.song.artist.voice[0]) + round(2 * self.song.emotion.arousal)
        if label == "drop" and (bar - 1) % 4 not in (1, 3):
            return
        half = (bar - 1) % 2
        for index, (step, length, degree) in enumerate(self.hook):
            if step // 16 != half:
                continue
            length = min(length, 1.5) if label == "drop" else max(length, 2)
            pitch = self.pitch((self.chord(bar) + 2 * (degree // 2)) % 7, centre)
            self.add("vocal", bar, step % 16, length, pitch, 0.85 if label == "drop" else 0.65, 0.5, self.vowels[index % 16])
