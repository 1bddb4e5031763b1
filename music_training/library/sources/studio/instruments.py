"""The instruments of an artist: every sound is rendered once per track and placed as often as it is played."""

from __future__ import annotations

import numpy as np
from scipy import fft

from .artists import Artist, generator
from .song import Note
from .wavetables import (
    ROWS,
    VOWELS,
    band_pass,
    fade,
    filtered_table,
    fm_table,
    frequency,
    high_pass,
    oscillate,
    row_offsets,
    shaped_noise,
    vowel_table,
)

PITCHED = ("pad", "stab", "arp", "lead", "bass", "vocal")


class Band:
    """The instruments of one artist at one sample rate; :meth:`render` gives a sound [1 or 2, samples], cached."""

    def __init__(self, artist: Artist, rate: int, seed: int, beat: float, drive: float):
        self.artist, self.rate, self.seed, self.beat = artist, rate, seed, beat
        self.drive = artist.drive * (0.7 + 0.6 * drive)
        self._sounds: dict[tuple, np.ndarray] = {}
        self._tables: dict[tuple, np.ndarray] = {}
        self._times = np.arange(20 * rate, dtype=np.float32) / np.float32(rate)

    def render(self, note: Note) -> np.ndarray:
        """The sound of a note, without its velocity."""
        length = round(note.duration / (self.beat / 8)) if note.part in PITCHED or note.part in ("rise", "fall") else 0
        key = (note.part, note.pitch, length, note.colour, note.shape)
        if key not in self._sounds:
            rng = generator("sound", self.seed, self.artist.id, *key)
            self._sounds[key] = np.atleast_2d(getattr(self, f"_{note.part}")(note, rng)).astype(np.float32, copy=False)
        return self._sounds[key]

    def _seconds(self, seconds: float) -> np.ndarray:
        return self._times[: int(seconds * self.rate)]

    def _wave(self, wave: str, pitch: int) -> np.ndarray:
        key = (wave, pitch)
        if key not in self._tables:
            hz = frequency(pitch)
            if wave == "voice":
                self._tables[key] = vowel_table(hz, self.rate, self.artist.voice[1])
            elif wave == "fm":
                self._tables[key] = fm_table(hz, self.rate)
            else:
                self._tables[key] = filtered_table(wave, hz, self.rate, self.artist.resonance)
        return self._tables[key]

    def _unison(self, wave: str, pitch: int, colour: np.ndarray | float, count: int, voices: int, cents: float, rng) -> np.ndarray:
        """Detuned voices spread over the stereo field [2, count]."""
        table, hz = self._wave(wave, pitch), frequency(pitch)
        rows = row_offsets(colour) if np.ndim(colour) else int(np.clip(colour, 0, 1) * (ROWS - 1))
        out = np.zeros((2, count), np.float32)
        for index, place in enumerate(np.linspace(-1, 1, voices)):
            voice = oscillate(table, rows, hz * 2 ** (place * cents / 2400), count, rng.random(), self.rate)
            pan = 0.5 + 0.42 * place * (-1) ** index
            out[0] += np.float32(np.sqrt(1 - pan)) * voice
            out[1] += np.float32(np.sqrt(pan)) * voice
        return out * np.float32(1 / np.sqrt(voices))

    # Pitched parts

    def _pad(self, note: Note, rng) -> np.ndarray:
        count = int((note.duration + 0.5) * self.rate)
        colour, artist = 0.12 + 0.62 * note.colour, self.artist
        sound = self._unison(artist.pad_wave, note.pitch, colour, count, artist.voices, artist.detune, rng)
        return fade(sound, self.rate, 0.09, 0.5) * 0.30

    def _stab(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(note.duration + 0.25)
        colour = (0.2 + 0.3 * note.colour) + 0.45 * note.colour * np.exp(-t / 0.09)
        sound = self._unison(self.artist.pad_wave, note.pitch, colour, len(t), min(5, self.artist.voices), self.artist.detune, rng)
        return fade(sound * np.exp(-np.maximum(t - 0.03, 0) / (0.5 * note.duration + 0.05)), self.rate, 0.003, 0.1) * 0.42

    def _arp(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(note.duration + 0.3)
        colour = 0.08 + 0.75 * note.colour * np.exp(-t / 0.07)
        table = self._wave(self.artist.arp_wave, note.pitch)
        sound = oscillate(table, row_offsets(colour), frequency(note.pitch), len(t), rng.random(), self.rate)
        return fade(sound * np.exp(-t / 0.14), self.rate, 0.002, 0.1) * 0.40

    def _lead(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(note.duration + 0.12)
        colour = 0.25 + 0.4 * note.colour + 0.2 * np.exp(-t / 0.12)
        sound = self._unison(self.artist.lead_wave, note.pitch, colour, len(t), 3, 0.6 * self.artist.detune, rng)
        return fade(sound, self.rate, 0.006, 0.1) * 0.34

    def _bass(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(note.duration + 0.03)
        hz = frequency(note.pitch)
        if note.shape:
            sweep = 0.5 - 0.5 * np.cos(2 * np.pi * note.shape / self.beat * t)
            colour = 0.08 + (0.25 + 0.6 * note.colour) * sweep
        else:
            colour = 0.08 + 0.5 * note.colour * (0.45 + 0.55 * np.exp(-t / 0.12))
        rows, table = row_offsets(colour), self._wave(self.artist.bass_wave, note.pitch)
        spread = 2 ** (0.25 * self.artist.detune / 1200)
        sound = oscillate(table, rows, hz, len(t), 0.0, self.rate) + 0.6 * oscillate(table, rows, hz * spread, len(t), 0.37, self.rate)
        sound += 0.9 * np.sin(np.float32(2 * np.pi * hz) * t)
        return fade(np.tanh(sound * np.float32(0.55 * self.drive)), self.rate, 0.004, 0.025) * 0.5

    def _vocal(self, note: Note, rng) -> np.ndarray:
        """A syllable: a burst of breath, then a vowel that glides into the next one, with vibrato."""
        t = self._seconds(note.duration + 0.08)
        hz = frequency(note.pitch) * (1 - 0.06 * np.exp(-t / 0.04) + 0.009 * np.sin(2 * np.pi * 5.4 * t) * np.minimum(t / 0.35, 1))
        path = (note.shape + np.minimum(t / max(note.duration, 0.2), 1) * 0.9) / len(VOWELS) % 1.0
        table, rows = self._wave("voice", note.pitch), row_offsets(path * ROWS / (ROWS - 1))
        out = np.empty((2, len(t)), np.float32)
        main = oscillate(table, rows, hz, len(t), 0.0, self.rate)
        for side, cents in enumerate((-9, 9)):  # doubled, a little apart
            out[side] = main + 0.5 * oscillate(table, rows, hz * 2 ** (cents / 1200), len(t), rng.random(), self.rate)
        breath = shaped_noise(rng, len(t), band_pass(3200 * self.artist.voice[1], 0.9), self.rate)
        out += breath * (np.float32(0.5 * self.artist.voice[2]) + 0.35 * np.exp(-t / 0.025))
        return fade(out, self.rate, 0.02, 0.07) * 0.36

    # Noise

    def _rise(self, note: Note, rng) -> np.ndarray:
        return self._sweep(note, rng, up=True)

    def _fall(self, note: Note, rng) -> np.ndarray:
        return self._sweep(note, rng, up=False)

    def _sweep(self, note: Note, rng, up: bool) -> np.ndarray:
        """Noise whose band moves from 300 Hz to 9 kHz (or back): bands of a loop, faded one into the next."""
        count, loop = int(note.duration * self.rate), int(1.7 * self.rate)
        place = np.linspace(0, 1, count, dtype=np.float32)
        path = 5 * (place if up else (1 - place) ** 2)
        out = np.zeros((2, count), np.float32)
        copies = -(-count // loop)
        for index in range(6):
            weight = np.maximum(0, 1 - np.abs(path - index))
            used = np.flatnonzero(weight)
            if not len(used):
                continue
            part = slice(used[0], used[-1] + 1)
            for side in range(2):
                noise = shaped_noise(rng, loop, band_pass(300.0 * 30 ** (index / 5), 0.6), self.rate)
                out[side, part] += weight[part] * np.tile(noise, copies)[part]
        out *= place**1.5 if up else (1 - place) ** 2
        return fade(out, self.rate, 0.02, 0.02) * 0.16

    # Drums

    def _kick(self, note: Note, rng) -> np.ndarray:
        start, end, sweep, decay = self.artist.kick
        t = self._seconds(2.0 * decay + 0.12)
        phase = np.cumsum(end + (start - end) * np.exp(-t / sweep), dtype=np.float64) / self.rate
        body = np.cos(2 * np.pi * phase + 0.6).astype(np.float32) * np.exp(-np.maximum(t - 0.04, 0) / decay)
        click = self.artist.click * shaped_noise(rng, len(t), high_pass(1800, 2), self.rate) * np.exp(-t / 0.003)
        return fade(np.tanh(1.6 * self.drive**0.5 * (body + 0.5 * click)), self.rate, 0.0006, 0.05) * 0.8

    def _snare(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(0.34)
        body_hz, share = self.artist.snare
        body = np.sin(2 * np.pi * (body_hz * t + 0.9 * (1 - np.exp(-t / 0.012)))) * np.exp(-t / 0.055)
        body += 0.5 * np.sin(2 * np.pi * 1.72 * body_hz * t) * np.exp(-t / 0.035)
        noise = [shaped_noise(rng, len(t), high_pass(1100, 2), self.rate) * np.exp(-t / 0.085) for _ in range(2)]
        sound = (1 - share) * body + share * 0.7 * (np.stack(noise) * 0.5 + noise[0] * 0.5)
        return fade(np.tanh(1.5 * sound), self.rate, 0.0008, 0.06) * 0.55

    def _clap(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(0.32)
        envelope = 0.5 * np.exp(-np.maximum(t - 0.03, 0) / 0.09) * (t >= 0.03)
        for burst in (0.0, 0.011, 0.021):
            envelope += (t >= burst) * np.exp(-np.maximum(t - burst, 0) / 0.005)
        noise = [shaped_noise(rng, len(t), band_pass(self.artist.clap_tone, 1.1), self.rate) for _ in range(2)]
        return fade((0.7 * noise[0] + 0.5 * np.stack(noise)) * envelope, self.rate, 0.0006, 0.08) * 0.22

    def _tom(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(0.36)
        hz = (95, 125, 165)[note.shape % 3] * (1 + 0.5 * np.exp(-t / 0.03))
        sound = np.sin(2 * np.pi * np.cumsum(hz, dtype=np.float64) / self.rate).astype(np.float32) * np.exp(-t / 0.11)
        return fade(sound, self.rate, 0.001, 0.08) * 0.45

    def _perc(self, note: Note, rng) -> np.ndarray:
        t = self._seconds(0.16)
        hz, ratio = self.artist.perc
        sound = np.sin(2 * np.pi * hz * t + 3 * np.exp(-t / 0.03) * np.sin(2 * np.pi * hz * ratio * t)) * np.exp(-t / 0.035)
        return fade(sound, self.rate, 0.001, 0.05) * 0.3

    def _cymbal(self, rng, decay: float, length: float, lowest: float, metal: float) -> np.ndarray:
        """Noise and six inharmonic square waves above ``lowest`` Hz, decaying; stereo."""
        t = self._seconds(length)
        ring = np.zeros(len(t), np.float32)
        for hz in (205.3, 304.4, 369.6, 522.7, 635.1, 800.0):
            ring += np.sign(np.sin(np.float32(2 * np.pi * hz * lowest / 2600) * t))
        noise = rng.standard_normal((2, len(t)), dtype=np.float32)
        mixed = (1 - metal) * (0.6 * noise + 0.4 * noise[:1]) + metal * 0.45 * ring
        size = fft.next_fast_len(len(t), real=True)
        bins = fft.rfft(mixed, size)
        bins *= high_pass(lowest, 4)(np.linspace(0, self.rate / 2, bins.shape[1], dtype=np.float32))
        sound = fft.irfft(bins, size)[:, : len(t)]
        sound *= np.exp(-t / decay) * np.float32(0.2 / np.sqrt(np.mean(sound * sound)))
        return fade(sound, self.rate, 0.0006, min(0.05, length / 3))

    def _hat_closed(self, note: Note, rng) -> np.ndarray:
        lowest, metal, decay = self.artist.hat
        return self._cymbal(rng, decay * (0.85, 1.0, 1.15)[note.shape % 3], 5 * decay, lowest, metal)

    def _hat_open(self, note: Note, rng) -> np.ndarray:
        lowest, metal, decay = self.artist.hat
        return self._cymbal(rng, 4 * decay, min(0.35, 9 * decay), 0.85 * lowest, metal) * 0.9

    def _ride(self, note: Note, rng) -> np.ndarray:
        return self._cymbal(rng, 0.16, 0.5, 0.8 * self.artist.hat[0], 0.75) * 0.6

    def _crash(self, note: Note, rng) -> np.ndarray:
        return self._cymbal(rng, 0.55, 2.2, 3200.0, 0.3) * 0.8
