"""The listening page in a real browser, from the disk: players are there and can be played, and no script ran."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy
import pytest
import soundfile

from training_checks.listening_page import Card, Clip, write_card, write_index

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not tried in a browser")
QUIET = ("gpu", "background-networking", "component-update", "sync", "extensions")
EVIL = "<script>document.title='EVIL'</script><img src=x onerror=\"document.title='EVIL'\">"
# Loads every player of the page in a frame of its own and writes what came of each into the title.
PROBE = """<!doctype html><title>waiting</title><script>
const sources = %s;
Promise.all(sources.map(source => new Promise(done => {
  const audio = new Audio(source);
  audio.preload = "metadata";
  audio.onloadedmetadata = () => done(audio.duration.toFixed(2));
  audio.onerror = () => done("error " + audio.error.code);
}))).then(found => document.title = "DONE " + found.join(" "));
</script>"""


def dump(path, profile) -> str:
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


class Elements(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def index(tmp_path):
    """A page with two epochs of one clip whose name is hard to link, and markup in every text."""
    samples = tmp_path / "samples #1 at 50%"
    for epoch in (1, 2):
        folder = samples / "run 1" / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        soundfile.write(folder / "a #1 50%.wav", numpy.zeros(16000 * epoch), 32000)
        clip = Clip(EVIL, "a #1 50%.wav", text=EVIL)
        write_card(folder, Card("MusicGen", EVIL, EVIL, about=EVIL, epoch=epoch, clips=(clip,), metrics={EVIL: 1.0}))
    return write_index(samples)


def test_the_page_opens_from_the_disk_and_runs_no_script(index, tmp_path):
    dom = dump(index, tmp_path / "profile")
    page = Elements(dom)
    assert "<title>Samples</title>" in dom
    assert len(page.of("audio")) == 2 and all(player["src"] and "controls" in player for player in page.of("audio"))
    assert page.of("script") == [] and page.of("img") == []
    assert "&lt;script&gt;" in dom


def test_every_player_finds_its_clip(index, tmp_path):
    sources = [player["src"] for player in Elements(index.read_text(encoding="utf-8")).of("audio")]
    probe = index.with_name("probe.html")
    probe.write_text(PROBE % sources, encoding="utf-8")
    assert "<title>DONE 0.50 1.00</title>" in dump(probe, tmp_path / "profile")
