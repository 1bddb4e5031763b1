"""The listening page: cards round trip, nothing in a card becomes markup or script, links resolve, only what changed is written."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy
import pytest
import soundfile

from music_training import files
from training_checks.listening_page import Card, Clip, Link, Picture, link, read_cards, write_card, write_index

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

    @property
    def inline_scripts(self) -> list:
        return [element for element in self.of("script") if not (element.get("src") or "").startswith("listening_page/")]

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


def row_of(script: Path) -> dict:
    """What the script of a row hands to the page."""
    call = script.read_text(encoding="utf-8").split("\n", 1)[1]
    return json.loads(call.removeprefix("listeningPage.receive(").removesuffix(");\n"))


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """What identifies every file below a folder: another inode is a file that was written anew."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def write(samples: Path, folder: str, *names: str, **values) -> Path:
    path = samples / folder
    path.mkdir(parents=True)
    for name in names:
        soundfile.write(path / name, 0.1 * numpy.sin(numpy.arange(3200) / 5), 32000)
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
        clips=(
            Clip("a", "a_o.wav", "original", role="reference"),
            Clip(
                "a", "a_r.wav", "reconstructed", "text ü", {"SI-SNR dB": -1.5}, pictures=(Picture("p", "p.png"),), links=(Link("l", "l"),)
            ),
        ),
        pictures=(Picture("a picture", "a.png"),),
        metrics={"mel": 0.5},
        baseline={"mel": 1.0},
        made_from={"weights": "abc", "prompts": [{"seed": 1}]},
        links=(Link("a viewer", "view.html"),),
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
        links=(Link(EVIL, "javascript:alert(1)"),),
    )
    index = write_index(samples)
    page = Page(index)
    assert page.inline_scripts == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "".join(page.text).count(EVIL) >= 8
    assert page.of("audio")[0]["aria-label"] == f'"{EVIL} "{EVIL}'
    assert page.of("img")[-1]["alt"] == f'" onerror="alert(1)"{EVIL}'
    assert [one["href"] for one in page.of("a")] == ["./a/javascript%3Aalert%281%29"]
    (script,) = (samples / "listening_page" / "rows").iterdir()
    assert not set("<>&") & set(script.read_text(encoding="utf-8").split("\n", 1)[1]) and EVIL in str(row_of(script))


def test_links_with_odd_names_resolve(samples):
    folder = write(samples, "run #1 at 50%/epoch 1", ODD, "plain.wav", pictures=(Picture("p", "spec #1.png"),))
    (folder / "spec #1.png").write_bytes(b"PNG")
    index = write_index(samples)
    page = Page(index)
    found = [target(index, element["src"]) for element in page.of("audio") + page.of("img")]
    assert found[:2] == [folder / ODD, folder / "plain.wav"] and found[-1] == folder / "spec #1.png" and len(found) == 5
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
    assert len(sources) == 8 + len(page.of("script")) and not any("//" in source for source in sources)


def test_a_second_time_writes_nothing_and_a_new_card_shows(samples):
    write(samples, "a", "a.wav")
    index = write_index(samples)
    before = index.stat(), state(samples)
    write_index(samples)
    assert (index.stat(), state(samples)) == before
    write(samples, "b", "b.wav", run="run_2")
    write_index(samples)
    assert index.stat().st_ino != before[0].st_ino and len(Page(index).of("audio")) == 2
    assert sorted(path.name for path in samples.iterdir()) == ["a", "b", "index.html", "listening_page"]


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


def test_a_row_is_made_again_only_when_its_clip_changed_and_goes_with_it(samples):
    folder = write(samples, "a", "a.wav", "b.wav")
    write_index(samples)
    made = samples / "listening_page"
    assert [len(list((made / name).iterdir())) for name in ("rows", "pictures")] == [2, 2]
    before = state(made)
    soundfile.write(folder / "b.wav", numpy.zeros(6400), 32000)
    write_index(samples)
    after = state(made)
    assert len(set(before.items()) - set(after.items())) == 2 and len(after) == len(before)  # b's script, b's picture
    (folder / "card.json").unlink()
    write_index(samples)
    assert [len(list((made / name).iterdir())) for name in ("rows", "pictures")] == [0, 0]


def test_a_row_holds_every_sample_of_its_clips(samples):
    folder = samples / "a"
    folder.mkdir(parents=True)
    rng = numpy.random.default_rng(0)
    wanted = {"wide.wav": rng.integers(-(2**23), 2**23, (1000, 2)) / 2**23, "narrow.wav": rng.integers(-(2**15), 2**15, (1000, 1)) / 2**15}
    for name, signal in wanted.items():
        soundfile.write(folder / name, signal, 32000, subtype="PCM_24" if name == "wide.wav" else "PCM_16")
    content = {name: (folder / name).read_bytes() for name in wanted}
    write_card(folder, Card("s", "r", "t", clips=tuple(Clip("x", name, name) for name in wanted)))
    write_index(samples)
    (script,) = (samples / "listening_page" / "rows").iterdir()
    for version in row_of(script)["versions"]:
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(version["audio"])), always_2d=True)
        assert rate == 32000 and numpy.array_equal(heard, wanted[version["version"]])
    assert {name: (folder / name).read_bytes() for name in wanted} == content


def test_what_cannot_be_heard_is_said_and_spoils_nothing(samples):
    folder = write(
        samples, "a", "good.wav", clips=tuple(Clip("x", f"{name}.wav", name) for name in ("good", "gone", "text", "nan", "empty"))
    )
    (folder / "text.wav").write_text("no audio")
    soundfile.write(folder / "nan.wav", numpy.full(3200, numpy.nan), 32000, subtype="FLOAT")
    soundfile.write(folder / "empty.wav", numpy.zeros(0), 32000)
    page = Page(write_index(samples))
    (script,) = (samples / "listening_page" / "rows").iterdir()
    problems = {version["version"]: version["problem"] for version in row_of(script)["versions"]}
    assert problems["good"] == "" and "missing" in problems["gone"] and "decoded" in problems["text"]
    assert "finite" in problems["nan"] and "no audio" in problems["empty"] and str(folder) not in str(problems)
    assert len(page.of("audio")) == 5 and len(page.of("img")) == 1


def test_runs_that_share_prompts_share_rows(samples):
    for run in ("run_1", "run_2"):
        write(samples, run, "x.wav", run=run, epoch=1, metrics={"loss": 2.0}, baseline={"loss": 5.0})
    write(samples, "other", "x.wav", title="Something else")
    page = Page(write_index(samples))
    assert len([one for one in page.of("table") if one["class"] == "clips"]) == 2
    assert {"run_1 · epoch 1", "run_2 · epoch 1", "baseline"} <= set(page.text)
    assert len([one for one in page.of("tr") if "data-row" in one]) == 2


def test_a_card_that_cannot_be_read_is_named(samples):
    write(samples, "good", "a.wav")
    files.write_text(samples / "misspelt" / "card.json", '{"section": "a", "run": "b", "title": "c", "clipz": []}')
    assert any("misspelt/card.json" in text for text in Page(write_index(samples)).text)


def test_a_reference_that_every_epoch_brings_stands_there_once(samples):
    clips = (Clip("x", "o.wav", "original", role="reference"), Clip("x", "r.wav", "rebuilt"))
    for epoch in (1, 2):
        write(samples, f"epoch_{epoch}", "o.wav", "r.wav", epoch=epoch, clips=clips)
    page = Page(write_index(samples))
    heads = [text for text in page.text if text in ("original", "epoch 1 · rebuilt", "epoch 2 · rebuilt", "epoch 1 · original")]
    assert heads == ["original", "epoch 1 · rebuilt", "epoch 2 · rebuilt"]
    assert [one.get("data-epoch") for one in page.of("td") if "data-column" in one] == [None, "1", "2"]
    soundfile.write(samples / "epoch_2" / "o.wav", numpy.zeros(100), 32000)  # now they differ: both are shown
    assert len(Page(write_index(samples)).of("audio")) == 4
