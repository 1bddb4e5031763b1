"""The generator: its data, that the cache changes nothing, a grammar without hanging notes, what it is measured by."""

import itertools

import numpy
import pytest
import symusic
import torch

from music_training import runs
from music_training.emotion_bridges import studio, train
from music_training.emotion_bridges.midi_generator import baselines, data, following, measures, sampling
from music_training.emotion_bridges.midi_generator.model import MidiTransformer
from music_training.emotion_bridges.midi_generator.tokenizer import BAR, BOS, EOS, MidiTokenizer, bar_starts
from music_training.errors import UserError

C_MAJOR = (60, 64, 67, 72, 71, 67, 65, 62)


def melody(pitches, tempo=100.0, beats=1, velocity=80):
    score, track = symusic.Score(24), symusic.Track("", 0, False)
    for number, pitch in enumerate(pitches):
        track.notes.append(symusic.Note(24 * beats * number, 24 * beats, pitch, velocity))
    score.tracks.append(track)
    score.tempos.append(symusic.Tempo(0, qpm=tempo))
    return score


def lively(settings, seed=0):
    """A model whose every part speaks: what starts at zero is random."""
    torch.manual_seed(seed)
    model = MidiTransformer(settings)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_the_cache_changes_nothing(midi_settings):
    model = lively(midi_settings)
    tokens = torch.randint(0, 388, (3, 40), generator=torch.Generator().manual_seed(1))
    emotion, context = torch.randn(3, 64), torch.rand(3, 5)
    with torch.no_grad():
        wanted = model(tokens, emotion, context)
        past, state = model.beginning(3)
        parts, caches, own = [], model.caches(3, 40), state
        stepped = []
        for start, stop in itertools.pairwise((0, 7, 8, 9, 25, 40)):
            logits, past, state = model(tokens[:, start:stop], emotion, context, past, state)
            parts.append(logits)
            logits, own = model.step(tokens[:, start:stop], emotion, context, caches, own)
            stepped.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(stepped, 1), wanted, atol=2e-5, rtol=1e-4)


def test_positions_and_condition_matter(midi_settings):
    model = lively(midi_settings)
    tokens = torch.tensor([[BOS, 360, 300, BAR, 60, 64, 60, 67]])
    emotion, context = torch.zeros(1, 64), torch.zeros(1, 5)
    swapped = tokens[:, [0, 1, 2, 3, 5, 4, 6, 7]]
    with torch.no_grad():
        one, other = model(tokens, emotion, context), model(swapped, emotion, context)
        assert not torch.allclose(one[0, -1], other[0, -1])  # an earlier order, the same set
        assert not torch.allclose(one, model(tokens, emotion + 0.5, context))
        assert torch.equal(one[:, :4], other[:, :4])  # causal


def test_states_follow_the_tokens(midi_settings):
    score = melody(C_MAJOR)
    tokens = MidiTokenizer().encode_array(score)
    counts, ticks = MidiTransformer.states(torch.from_numpy(tokens)[None], None)
    assert counts[0].sum(1).max() == 1 and counts[0, -1].sum() == 0
    place = tokens.tolist().index(BAR, 4)
    assert ticks[0, place - 1] == 96 and ticks[0, place] == 0


@pytest.mark.parametrize("cached", [True, False])
def test_generated_sequences_are_valid_and_repeatable(midi_settings, cached):
    model = lively(midi_settings)
    drawn = sampling.Sampling(bars=2, max_tokens=60, seed=3, cache=cached, top_k=50, temperature=1.2)
    emotion, context = torch.randn(3, 64).clamp(-1, 1), torch.from_numpy(numpy.stack([data.context_of()] * 3))
    rows = sampling.generate(model, emotion, context, drawn)
    assert rows == sampling.generate(model, emotion, context, sampling.Sampling(**{**vars(drawn), "cache": not cached}))
    for row in rows:
        sounding = set()
        assert row[0] == BOS and 352 <= row[1] < 384 and 256 <= row[2] < 352 and row[3] == BAR
        for before, token in itertools.pairwise(row[2:]):
            if token < 128:
                assert token not in sounding
                sounding.add(token)
            elif token < 256:
                assert token - 128 in sounding
                sounding.remove(token - 128)
            if 352 <= before < 384:
                assert token < 128
            assert token != EOS or not sounding
        assert row.count(BAR) <= 3
        _, ticks = MidiTransformer.states(torch.tensor([row[3:]]), None)
        places = [number for number, token in enumerate(row[3:]) if token == BAR]
        assert ticks.max() <= 96 and all(ticks[0, place - 1] == 96 for place in places[1:])
        assert symusic.Score.from_midi(MidiTokenizer().decode(row).dumps_midi()) is not None


def test_sampling_obeys_its_limits(midi_settings):
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(200, 1)
    rng = torch.Generator().manual_seed(0)
    draws = lambda **options: set(sampling._draw(logits, sampling.Sampling(**{"top_p": 1.0, **options}), rng).tolist())  # noqa: E731
    assert draws(temperature=0.0) == {0} and draws(top_k=2) == {0, 1} and draws(top_p=0.6) == {0} and draws() == {0, 1, 2, 3}
    with pytest.raises(UserError, match="top_p"):
        sampling.Sampling(top_p=0.0)


def test_key_tempo_prompt_and_more_bars_than_trained(midi_settings, tmp_path):
    model = lively(midi_settings)
    drawn = sampling.Sampling(bars=2, max_tokens=60, seed=1, guidance=1.0)
    plain, moved = (sampling.longer(model, midi_settings, [[0.5, 0.5, 0.5]], drawn, key=key)[0] for key in ("C major", "D major"))
    pitches = [numpy.array([note.pitch for note in score.tracks[0].notes]) for score in (plain, moved)]
    assert set(pitches[1] - pitches[0]) <= {2, -10}  # what leaves the range moves an octave back
    quick = sampling.longer(model, midi_settings, [[0.0, 0.0, 0.5]], drawn, tempo=171.3)[0]
    assert round(measures.tempo_of(quick), 1) == 171.3
    prompt = melody(C_MAJOR)
    path = tmp_path / "prompt.mid"
    prompt.dump_midi(str(path))
    made = sampling.longer(model, midi_settings, [[0.0, 0.0, 0.5]], drawn, prompt=path, prompt_bars=1)[0]
    begun = [(note.time, note.pitch) for track in made.tracks for note in track.notes if note.time < 96]
    assert begun == [(24 * number, pitch) for number, pitch in enumerate(C_MAJOR[:4])]
    assert round(measures.tempo_of(made)) == 100
    with pytest.raises(UserError, match="key 'H major'"):
        sampling.longer(model, midi_settings, [[0.0, 0.0, 0.5]], drawn, key="H major")


def test_excerpts_hold_the_notes_of_their_bars(midi_settings):
    song, score = next(studio.songs(5, [0], 1, (20, 24)))
    settings = midi_settings.model_copy(update={"bars": 2, "hop": 2})
    plain, tonic, major = data.prepared(score, settings, song.key)
    assert data.parse_key(song.key) == (tonic, major)
    cuts = data.excerpts_of(plain, settings)
    starts = bar_starts(plain, plain.end())
    assert 0 < len(cuts) <= len(starts) // 2 + 1
    assert sum(cut.note_num() for cut in cuts) <= plain.note_num()
    for cut in cuts:
        assert MidiTokenizer().encode(MidiTokenizer().decode(MidiTokenizer().encode(cut))) == MidiTokenizer().encode(cut)
        pitches = [(note.time, note.end, note.pitch) for note in cut.tracks[0].notes]
        for (_, end, pitch), (start, _, other) in itertools.pairwise(sorted(pitches, key=lambda one: (one[2], one[0]))):
            assert pitch != other or end <= start  # one keyboard


def test_bigram_tables_are_distributions_and_fit_what_they_saw():
    rng = numpy.random.default_rng(0)
    chain = [numpy.array([BOS, *(number % 5 for number in range(int(start), int(start) + 50)), EOS]) for start in rng.integers(0, 5, 40)]
    seen = baselines.counts(chain)
    assert seen.sum() == 40 * 51
    numpy.testing.assert_allclose(baselines.bigram(seen, 0.1).sum(1), 1)
    found = baselines.perplexities(chain, chain)
    assert found["bigram"] < 1.5 < 4 < found["unigram"]


def test_measures_know_their_music():
    bright, dark = measures.measure(melody(C_MAJOR), tonic=0), measures.measure(melody([60, 63, 67, 68, 70, 72, 63, 60]), tonic=0)
    assert bright["mode"] == 1 and dark["mode"] == -1
    assert measures.key_of(melody(C_MAJOR)) == (0, True) and measures.key_of(melody([69, 72, 76, 68, 69, 74, 72, 69])) == (9, False)
    quick = measures.measure(melody(C_MAJOR, tempo=200.0))
    assert quick["tempo"] == pytest.approx(200, abs=0.01) and quick["notes_per_second"] == pytest.approx(200 / 60, rel=1e-3)
    assert bright["notes_per_beat"] == 1 and bright["loudness"] == 80 and bright["groove_consistency"] == 1
    even = measures.measure(melody(range(60, 72)))
    assert even["pitch_class_entropy"] == pytest.approx(numpy.log2(12))
    assert set(measures.measure(symusic.Score(24)).values()) == {0.0}


@pytest.mark.long
def test_the_estimator_learns_from_other_scores_only(midi_settings):
    settings = midi_settings.model_copy(update={"bars": 2, "hop": 2, "main_part": True})
    estimator = following.fit(*following.reference(settings, artists=16))
    scores, felt = following.reference(settings, artists=8, seed=99)
    found = following.correlations(felt, estimator(scores))
    assert found["valence"] > 0.6 and found["arousal"] > 0.4
    assert abs(found["valence_shuffled"]) < 0.2 and abs(found["arousal_shuffled"]) < 0.2


@pytest.mark.long
def test_training_learns_and_leaves_a_run(midi_settings):
    outcome = train.train(midi_settings, run_name="m")
    assert outcome.step == 6 and (outcome.run / "ckpt" / "best" / "model.safetensors").is_file()
    rows = runs.read_metrics(outcome.run)
    assert rows[-1]["val_perplexity"] < 388
    model, settings = train.load(outcome.run)
    assert settings == midi_settings
    found = train.evaluate(outcome.run, repeats=1)
    assert found["generated"] == 25 and set(found["perplexity"]) == {"model", "unigram", "bigram"}
    with pytest.raises(UserError, match="a run of midi_generator, not of spectocloud"):
        train.load(outcome.run, "spectocloud")
