"""Fingerprints: the same recording is found through codec, gain and cut; others are not."""

import subprocess

import numpy as np
import pytest
import soundfile

from music_training.library import audio, fingerprints


def noise_song(seed, seconds=20.0, rate=44100):
    """Chords that change four times a second, different for every seed."""
    random = np.random.default_rng(seed)
    time = np.arange(int(rate * seconds)) / rate
    step = (time * 4).astype(int)
    pitches = 110 * 2 ** (random.integers(0, 48, (step[-1] + 1, 4)) / 12)
    return sum(0.1 * np.sin(2 * np.pi * pitches[step, n] * time) for n in range(4)).astype("float32")


def print_of(samples, rate=44100):
    import soxr

    return fingerprints.fingerprint(soxr.resample(samples, rate, fingerprints.RATE))


def test_gain_and_a_cut_of_a_second_do_not_hide_a_double():
    songs = {seed: noise_song(seed) for seed in range(6)}
    prints = {f"{seed}": print_of(song) for seed, song in songs.items()}
    prints["2 again"] = print_of(songs[2][44100:] * 0.2)
    prints["4 again"] = print_of(
        songs[4][:-30000] * 1.4 + 1e-3 * np.random.default_rng(0).standard_normal(len(songs[4]) - 30000).astype("float32")
    )
    assert fingerprints.near(prints) == {"2 again": "2", "4 again": "4"}
    matches = {match.second: match for match in fingerprints.find(prints)}
    assert matches["2 again"].offset == pytest.approx(1.0, abs=0.05)


def test_doubles_of_doubles_go_to_the_first():
    song = print_of(noise_song(1))
    assert fingerprints.near({"a": song, "b": song[5:], "c": song[:-9]}) == {"b": "a", "c": "a"}


def test_silence_and_short_pieces_match_nothing():
    quiet = np.zeros(5512 * 20, "float32")
    prints = {"a": fingerprints.fingerprint(quiet), "b": fingerprints.fingerprint(quiet), "c": fingerprints.fingerprint(quiet[:100])}
    assert not prints["a"].any() and len(prints["c"]) == 0 and fingerprints.find(prints) == [] and fingerprints.find({}) == []


def test_a_shared_sample_does_not_make_two_songs_one():
    one, two = noise_song(1), noise_song(2)
    two[: 6 * 44100] = one[: 6 * 44100]
    assert fingerprints.find({"one": print_of(one), "two": print_of(two)}) == []


def test_the_file_keeps_them(tmp_path):
    prints = {"a": print_of(noise_song(1, 5)), "empty": np.zeros(0, np.uint32), "b": print_of(noise_song(2, 5))}
    path = fingerprints.write(tmp_path / "f.npz", prints)
    again = fingerprints.read(path)
    assert list(again) == list(prints) and all(np.array_equal(again[name], prints[name]) for name in prints)
    first = path.read_bytes()
    assert fingerprints.write(path, prints).read_bytes() == first


def test_a_real_clip_through_mp3_at_64k(real_data, tmp_path):
    source = real_data / "fma" / "fma_small" / "000" / "000002.mp3"
    other = real_data / "audiocraft" / "dataset" / "example" / "electro_1.mp3"
    again = tmp_path / "again.mp3"
    command = ["ffmpeg", "-v", "error", "-ss", "0.8", "-i", source, "-vn", "-af", "volume=-6dB", "-b:a", "64k", again]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("no ffmpeg with an mp3 encoder")
    prints = {name: fingerprints.of_file(path) for name, path in (("x", other), ("source", source), ("again", again))}
    assert fingerprints.near(prints) == {"again": "source"}


def test_an_undecodable_file_has_no_fingerprint(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"nothing")
    assert len(fingerprints.of_file(tmp_path / "a.mp3")) == 0
    soundfile.write(tmp_path / "b.wav", noise_song(1, 5), 44100)
    assert len(fingerprints.of_file(tmp_path / "b.wav")) == len(print_of(audio.read(tmp_path / "b.wav")[0]))
