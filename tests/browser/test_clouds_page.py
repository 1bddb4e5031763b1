"""Spectocloud's page in a real browser: it draws, turns, follows the slider and the audio, and asks nobody for anything."""

import numpy
import pytest

from music_training.emotion_bridges.spectocloud import viewer

LIT = """() => [...document.querySelectorAll("canvas")].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let lit = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 40) { lit++; sum += (i % 100003) * (data[i] + 2 * data[i + 1] + 3 * data[i + 2]); }
  }
  return [lit, sum];
})"""
PLAYED = """new Promise((done) => {
  const look = () => (time.value > 0.5 && (audio.ended || audio.currentTime > 0.4) ? done() : setTimeout(look, 20));
  look();
})"""
SETTLED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def page_of_clouds(tmp_path_factory):
    rng = numpy.random.default_rng(0)
    scenes = []
    for number in range(60):
        clouds = [rng.uniform(-1, 1, (1200, 3)).astype(numpy.float32) for _ in range(2)]
        named = [(name, cloud, (cloud + 1) / 2) for name, cloud in zip(("truth", "prediction"), clouds, strict=True)]
        sound = 0.1 * numpy.sin(numpy.arange(viewer.AUDIO_RATE) / 20) if number == 0 else None
        scenes.append(viewer.Scene(f"clip {number} <b>", 1.0, named, sound))
    return viewer.write(tmp_path_factory.mktemp("clouds") / "clouds.html", scenes, "Clouds", "About.")


def test_clouds_turn_and_follow_the_time(visit, page_of_clouds):
    page = visit(page_of_clouds, viewport={"width": 1000, "height": 640})

    def drawn():
        page.evaluate(SETTLED)
        return page.evaluate(LIT)

    first = drawn()
    assert len(first) == 2 and all(lit > 1500 for lit, _ in first)
    assert page.locator("option").count() == 60 and page.locator("option").first.inner_text() == "clip 0 <b>"
    canvas = page.locator("canvas").first
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert drawn() != first
    page.locator("#time").fill("0.25")
    assert sum(lit for lit, _ in drawn()) < sum(lit for lit, _ in first)
    assert page.locator("#clock").inner_text() == "0.3 of 1.0 s"
    page.evaluate("audio.play()")
    page.evaluate(PLAYED)
    for number in (1, 30, 59):
        page.locator("#choice").select_option(str(number))
        assert all(lit > 1500 for lit, _ in drawn())
    assert [url for url in page.requests if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in page.requests) == 1
