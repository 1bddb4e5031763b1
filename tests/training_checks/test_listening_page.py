"""The listening page: cards round trip, nothing in a card becomes markup, links resolve, a rerun writes nothing."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from music_training import files
from training_checks.listening_page import Card, Clip, Picture, link, read_cards, write_card, write_index

EVIL = "<script>alert(1)</script>"
ODD = "50% of #1 & \"two\" 'three' ü?.wav"


class Page(HTMLParser):
    """Every element with its attributes, and the text between."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def target(page: Path, source: str) -> Path:
    """The file that a browser opens for a link of the page."""
    parts = urlsplit(source)
    assert not (parts.scheme or parts.netloc or parts.query or parts.fragment), source
    return page.parent / unquote(parts.path)


@pytest.fixture
def samples(tmp_path) -> Path:
    return tmp_path / "samples"


def write(samples: Path, folder: str, *names: str, **values) -> Path:
    path = samples / folder
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(b"RIFF")
    fields = dict(section="MusicGen", run="run_1", title="Generated clips", clips=tuple(Clip(name, name) for name in names))
    write_card(path, Card(**{**fields, **values}))
    return path


def test_a_card_round_trips(samples):
    card = Card(
        "Codec",
        "run_1",
        "Reconstruction",
        about="2 kbit/s",
        epoch=3,
        synthetic=True,
        clips=(Clip("a", "a_o.wav", "original"), Clip("a", "a_r.wav", "reconstructed", "text ü", {"SI-SNR dB": -1.5})),
        pictures=(Picture("a picture", "a.png"),),
        metrics={"mel": 0.5},
        baseline={"mel": 1.0},
        made_from={"weights": "abc", "prompts": [{"seed": 1}]},
    )
    write_card(samples / "one", card)
    assert read_cards(samples) == [(samples / "one", card)]


def test_nothing_in_a_card_becomes_markup(samples):
    write(
        samples,
        "a",
        "a.wav",
        section=EVIL,
        run=EVIL,
        title=EVIL,
        about=EVIL,
        clips=(Clip(f'"{EVIL}', "a.wav", f'"{EVIL}', EVIL, {EVIL: 1.0}),),
        pictures=(Picture(f'" onerror="alert(1)"{EVIL}', "a.png"),),
        metrics={EVIL: 1.0},
        baseline={EVIL: 2.0},
    )
    index = write_index(samples)
    page = Page(index)
    assert page.of("script") == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "".join(page.text).count(EVIL) >= 8
    assert page.of("audio")[0]["aria-label"] == f'"{EVIL} "{EVIL}'
    assert page.of("img")[0]["alt"] == f'" onerror="alert(1)"{EVIL}'


def test_links_with_odd_names_resolve(samples):
    folder = write(samples, "run #1 at 50%/epoch 1", ODD, "plain.wav", pictures=(Picture("p", "spec #1.png"),))
    (folder / "spec #1.png").write_bytes(b"PNG")
    index = write_index(samples)
    page = Page(index)
    found = [target(index, element["src"]) for element in page.of("audio") + page.of("img")]
    assert found == [folder / ODD, folder / "plain.wav", folder / "spec #1.png"]
    assert all(path.is_file() for path in found)


def test_epochs_stand_side_by_side_and_nothing_comes_from_elsewhere(samples):
    for epoch in (10, 2):
        write(samples, f"run_1/epoch_{epoch}", "x.wav", "y.wav", epoch=epoch, synthetic=True)
    page = Page(write_index(samples))
    assert len(page.of("audio")) == 4 and len(page.of("table")) == 1
    assert [text for text in page.text if text.startswith("epoch")] == ["epoch 2", "epoch 10"]
    assert all("controls" in player for player in page.of("audio"))
    assert "trained on synthetic music" in page.text
    sources = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 4 and not any("//" in source for source in sources)


def test_a_second_time_writes_nothing_and_a_new_card_shows(samples):
    write(samples, "a", "a.wav")
    index = write_index(samples)
    before = index.stat(), index.read_bytes()
    write_index(samples)
    assert (index.stat(), index.read_bytes()) == before
    write(samples, "b", "b.wav", run="run_2")
    write_index(samples)
    assert index.stat().st_ino != before[0].st_ino and len(Page(index).of("audio")) == 2
    assert sorted(path.name for path in samples.iterdir()) == ["a", "b", "index.html"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"clips": [], "pictures": []}',
        '{"clips": [1], "pictures": []}',
        '{"clips": null, "pictures": []}',
    ],
)
def test_a_broken_card_is_ignored(samples, content):
    write(samples, "good", "a.wav")
    files.write_text(samples / "broken" / "card.json", content)
    index = write_index(samples)
    assert [folder.name for folder, _ in read_cards(samples)] == ["good"]
    assert len(Page(index).of("audio")) == 1


def test_a_card_that_is_no_text_is_ignored(samples):
    write(samples, "good", "a.wav")
    (samples / "broken").mkdir()
    (samples / "broken" / "card.json").write_bytes(b"\xff\xfe\x00")
    write_index(samples)
    assert [folder.name for folder, _ in read_cards(samples)] == ["good"]


def test_an_empty_page_says_what_to_run(samples):
    samples.mkdir()
    page = Page(write_index(samples))
    assert page.of("audio") == [] and any("04_train_codec" in text for text in page.text)


def test_the_link_of_a_notebook_opens_from_the_disk(samples):
    write(samples, "a", "a.wav")
    write_index(samples)
    assert f'href="{(samples / "index.html").as_uri()}"' in link(samples).data
