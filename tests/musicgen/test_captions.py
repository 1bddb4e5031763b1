"""Captions say what is known and nothing else, vary, repeat with their seed, and drop facts as often as asked."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from music_training.musicgen.captions import TEMPLATES, CaptionSettings, caption

KNOWN = {
    "genre": "techno",
    "moods": ["dark", "tense"],
    "instrument": "kick drum, synth bass, pads",
    "bpm": 136.0,
    "key": "C minor",
    "description": "A catalogue's own words",
}
MADE = CaptionSettings(original=0)


def many(known, settings, count=400):
    return [caption(known, settings, random.Random(index)) for index in range(count)]


def test_the_description_comes_as_often_as_asked():
    share = Counter(many(KNOWN, CaptionSettings(original=0.4)))["A catalogue's own words"] / 400
    assert 0.33 < share < 0.47
    assert caption(KNOWN, MADE) == "A catalogue's own words"  # without chance


def test_without_chance_everything_that_is_known_is_said():
    text = caption({**KNOWN, "description": ""}, MADE)
    assert text == "a dark, tense techno track with kick drum, synth bass and pads at 136 bpm in C minor"
    assert caption({"genre": "ambient", "instrument": "Mix", "bpm": "", "moods": None}, MADE) == "an ambient track"
    assert caption({}, MADE) == caption({"instrument": "Mix", "bpm": "unknown"}, MADE) == ""


def test_captions_vary_and_repeat():
    texts = many(KNOWN, MADE)
    assert texts == many(KNOWN, MADE)
    assert len(set(texts)) > 100
    assert all(
        any(word in text for text in texts) for word in ("techno", "dark", "136 bpm", "fast", "C minor", "pads", "featuring", "piece")
    )
    one = many({"genre": "techno"}, CaptionSettings(original=0, drop=0))
    assert len(set(one)) >= len(TEMPLATES) - 2 and all("techno" in text for text in one)


def test_facts_are_dropped_as_often_as_asked():
    share = sum("C minor" in text for text in many(KNOWN, CaptionSettings(original=0, drop=0.25), 1000)) / 1000
    in_templates = sum(any("{key}" in part for part in template) for template in TEMPLATES) / len(TEMPLATES)
    assert abs(share - 0.75 * in_templates) < 0.06
    assert set(many(KNOWN, CaptionSettings(original=0, drop=1))) == {""}


words = st.text("abc ,.{}%", max_size=6)
rows = {"genre": words, "moods": st.lists(words), "instrument": words, "key": words, "bpm": words | st.floats(0, 300)}


@given(st.fixed_dictionaries({}, optional=rows), st.integers(0, 999))
def test_any_catalogue_row_gives_a_line_without_blanks_or_template_left_over(known, seed):
    text = caption(known, MADE, random.Random(seed))
    assert text == text.strip()
    assert not {"{genre}", "{key}", "{moods}", "{instruments}", "None"} & set(text.split())
