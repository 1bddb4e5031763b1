"""The listening page in a real browser, from the disk: it plays in sync, tests blindly, exports, and is plain without scripts."""

import base64
import json
import re
import subprocess
import sys
from collections import Counter

import numpy
import pytest
import soundfile

from music_training import files
from training_checks.listening_page import Card, Clip, analysis, write_card, write_index

RATE = 44100  # of the browser's output: nothing is resampled
PERIOD = 2205  # samples between clicks
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
RECORD = """async () => {
  const { player } = listeningPage.panel;
  const code = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([[samples]]) { this.port.postMessage([currentFrame, samples?.slice() ?? new Float32Array(128)]); return true; } })`;
  await player.context.audioWorklet.addModule("data:text/javascript," + encodeURIComponent(code));
  const tap = new AudioWorkletNode(player.context, "tap");
  window.heard = [];
  tap.port.onmessage = (event) => heard.push(event.data);
  player.output.connect(tap);
}"""
AS_BYTES = """() => {
  const blocks = heard.sort((a, b) => a[0] - b[0]);
  const first = blocks[0][0], last = blocks.at(-1);
  const whole = new Float32Array(last[0] + last[1].length - first).fill(NaN);
  for (const [frame, samples] of blocks) whole.set(samples, frame - first);
  const bytes = new Uint8Array(whole.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}"""
# The player itself in an offline context: version 1 after 0.5 s, a loop from 0.2 to 0.7 s, 2 s in all.
OFFLINE = """async () => {
  const context = new OfflineAudioContext(1, 2 * 44100, 44100);
  const player = new listeningPage.Player(context);
  const buffers = [1, -1].map((sign, version) => {
    const buffer = context.createBuffer(1, 44100 - 4410 * version, 44100);
    const samples = buffer.getChannelData(0);
    for (let i = 0; i < samples.length; i++) samples[i] = sign * 0.5 * Math.sin((2 * Math.PI * 100 * i) / 44100);
    return buffer;
  });
  player.load(buffers, [1, 0.5]);
  player.setLoop([0.2, 0.7]);
  player.play();
  context.suspend(0.5).then(() => { player.select(1); context.resume(); });
  return [...(await context.startRendering()).getChannelData(0)];
}"""
# The lowest contrast (WCAG 2) of any text that is to be seen, and what it says.
CONTRAST = """() => {
  const channel = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return [v[0], v[1], v[2], v[3] ?? 1]; };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  let lowest = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest("script, :disabled")) continue;
    if (!node.checkVisibility({ visibilityProperty: true })) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, walker.currentNode.data];
  }
  return lowest;
}"""
NAMELESS = """() => {
  const nodes = [...document.querySelectorAll("button, input, select, audio, img, a, section, [role=slider], [role=group]")];
  const named = (node) => node.labels?.length || node.textContent.trim() || node.closest(".stage img")
    || ["aria-label", "aria-labelledby", "alt"].some((name) => node.getAttribute(name));
  return nodes.filter((node) => !named(node)).map((node) => node.outerHTML);
}"""


def clicks(seconds: float, sign: int) -> numpy.ndarray:
    signal = numpy.zeros(int(seconds * RATE))
    signal[100::PERIOD] = 0.5 * sign
    return signal


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Click trains in two versions (of opposite sign) and three epochs, in a folder whose name is hard to link."""
    samples = tmp_path_factory.mktemp("page") / "samples #1 at 50%"
    folder = samples / "codec run" / "reconstruction"
    folder.mkdir(parents=True)
    for name, sign in (("original", 1), ("rebuilt", -1)):
        soundfile.write(folder / f"a #1 {name}.wav", clicks(6, sign), RATE)
    versions = (
        Clip("clicks", "a #1 original.wav", "original", "every 50 ms", role="reference"),
        Clip("clicks", "a #1 rebuilt.wav", "rebuilt", "every 50 ms", {"SDR dB": -3.0}),
    )
    write_card(folder, Card("Codec", "codec run", "Reconstruction", clips=versions, metrics={"SDR dB": -3.0}, baseline={"SDR dB": -9.0}))
    for epoch in (1, 2, 10):
        folder = samples / "lm run" / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        soundfile.write(folder / "x.wav", 0.1 * epoch * numpy.sin(numpy.arange(RATE) / 20), RATE)
        clips = tuple(Clip(name, "x.wav", text=text) for name, text in ((EVIL, EVIL), ("=1+1", "a formula")))
        write_card(folder, Card("MusicGen", "lm run", "Generated clips", EVIL, epoch=epoch, synthetic=True, clips=clips))
    return write_index(samples)


def open_row(page, number: int = 0):
    page.locator("button.open").nth(number).click()
    page.wait_for_selector(".panel .choices")


def mode(page, name: str):
    page.locator(".tabs").get_by_role("button", name=name, exact=True).click()


def answer_abx(page, wrong: int = 0) -> None:
    """Ten trials by keyboard: X is heard, and known by which version the player then plays."""
    mode(page, "ABX")
    page.get_by_role("button", name="Start").click()
    for trial in range(10):
        assert page.get_by_text(f"Trial {trial + 1} of 10").is_visible()
        page.keyboard.press("a")
        first = page.evaluate("listeningPage.panel.player.selected")
        page.keyboard.press("b")
        page.keyboard.press("x")
        is_a = page.evaluate("listeningPage.panel.player.selected") == first
        page.keyboard.press("1" if is_a != (trial < wrong) else "2")


def exported(page, name: str, folder):
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_versions_switch_in_sync_while_they_play(index, visit):
    page = visit(index, bypass_csp=True)  # the recorder of this test is an inline script, which the page itself forbids
    open_row(page)
    page.evaluate(RECORD)
    page.keyboard.press(" ")
    for key in "21212":
        page.wait_for_timeout(250)
        page.keyboard.press(key)
    page.wait_for_timeout(250)
    page.keyboard.press(" ")
    heard = numpy.frombuffer(base64.b64decode(page.evaluate(AS_BYTES)), numpy.float32)
    heard = numpy.nan_to_num(heard)  # blocks that the recorder missed while it was being connected
    at = numpy.flatnonzero(abs(heard) > 0.05)
    signs = numpy.sign(heard[at])
    assert len(at) > 15 and (numpy.diff(signs) != 0).sum() == 5  # every version in its turn
    offsets = (at - at[0]) % PERIOD
    offsets = numpy.minimum(offsets, PERIOD - offsets)
    assert offsets.max() / RATE < 0.010
    assert offsets.max() == 0  # the same sample, in fact


def test_switches_are_short_and_smooth_and_loops_of_all_versions_agree(index, visit):
    page = visit(index)
    heard = numpy.array(page.evaluate(OFFLINE))
    time = numpy.arange(len(heard)) / RATE
    start, fade = 0.03, 0.008
    wave = 0.5 * numpy.sin(2 * numpy.pi * 100 * ((time - start) % 0.5))  # 0.2 s and the loop's 0.5 s hold whole periods
    first, second = (time > start + 2 * fade) & (time < 0.5), time > 0.5 + 2 * fade
    assert abs(heard - wave)[first].max() < 1e-3
    assert abs(heard + 0.5 * wave)[second].max() < 1e-3  # of the other sign, at its own gain, a shorter file
    assert abs(numpy.diff(heard)).max() < 1.1 * 0.5 * 2 * numpy.pi * 100 / RATE + 0.75 / (fade * RATE)


def test_levels_loop_and_epochs(index, visit):
    page = visit(index)
    open_row(page, 1)
    player = "listeningPage.panel.player"
    gains = page.evaluate(f"{player}.gains")
    assert gains[0] / gains[1] == pytest.approx(2, rel=0.01) and gains[0] / gains[2] == pytest.approx(10, rel=0.01)
    page.keyboard.press("m")
    assert not page.get_by_label("Match levels").is_checked() and not page.evaluate(f"{player}.matched")
    slider = page.get_by_role("slider", name="Epoch", exact=True)
    slider.focus()
    page.keyboard.press("End")
    assert page.evaluate(f"{player}.selected") == 2 and page.locator(".panel output").text_content() == "10"
    page.locator(".panel").focus()
    for key, chosen in (("ArrowUp", 1), ("ArrowDown", 2), ("ArrowDown", 0), ("3", 2), ("9", 2)):
        page.keyboard.press(key)
        assert page.evaluate(f"{player}.selected") == chosen
    page.keyboard.press("l")
    assert page.evaluate(f"{player}.loop") == [0, pytest.approx(1, abs=0.01)]
    stage = page.locator(".stage").bounding_box()
    page.mouse.move(stage["x"] + 0.25 * stage["width"], stage["y"] + 20)
    page.mouse.down()
    page.mouse.move(stage["x"] + 0.75 * stage["width"], stage["y"] + 20)
    page.mouse.up()
    assert page.evaluate(f"{player}.loop") == [pytest.approx(0.25, abs=0.01), pytest.approx(0.75, abs=0.01)]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{player}.position") == pytest.approx(1, abs=0.01)
    columns = page.locator("article", has_text="Generated clips").get_by_label("Columns of epoch")
    columns.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("article", has_text="Generated clips").locator("thead th:visible").all_inner_texts() == ["clip", "epoch 1"]
    page.keyboard.press("Escape")
    columns.press("Home")
    page.locator("button.open").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".panel .choices")
    page.keyboard.press("Escape")
    assert page.locator(".panel").count() == 0 and page.evaluate("document.activeElement.className") == "open"


def test_ten_trials_by_keyboard_are_exported_and_analysed(index, visit, tmp_path):
    page = visit(index)
    page.get_by_label("Listener").fill("Zoë")
    open_row(page)
    answer_abx(page, wrong=1)
    assert "9 of 10 right" in page.locator(".result").inner_text() and "p = 0.0107" in page.locator(".result").inner_text()
    page.reload()  # the ratings are kept
    assert page.get_by_text("1 rating", exact=True).is_visible()
    path = exported(page, "Export JSON", tmp_path)
    (rating,) = json.loads(path.read_text(encoding="utf-8"))["ratings"]
    assert (
        len(rating["trials"]) == 10
        and Counter(trial["x"] for trial in rating["trials"]).keys() == {"a", "b"}
        and rating["listener"] == "Zoë"
    )
    command = [sys.executable, "-m", "training_checks.listening_page", "analyse", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=files.REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    assert "9 of 10 right (90%, 95% CI 55% to 100%), p = 0.0107" in ended.stdout


def test_the_order_of_a_seed_is_the_same_again(index, visit):
    page = visit(index)
    draw = "(seed) => { const g = listeningPage.generator(seed); return Array.from({ length: 2000 }, g); }"
    once, again, other = (page.evaluate(draw, seed) for seed in (7, 7, 8))
    assert once == again != other and 0.48 < numpy.mean(once) < 0.52 and 0.27 < numpy.std(once) < 0.31
    assert page.evaluate("[listeningPage.guessing(9, 10), listeningPage.guessing(0, 10)]") == [pytest.approx(11 / 1024), pytest.approx(1)]


def test_ratings_and_preferences_are_blind_and_exported(index, visit, tmp_path):
    page = visit(index)
    open_row(page)
    mode(page, "Rate")
    page.get_by_role("button", name="Start").click()
    panel = page.locator(".panel")
    assert panel.locator(".stage img").is_hidden() and not re.search("original|rebuilt|anchor", panel.inner_text())
    sliders = panel.locator(".scores input")
    assert sliders.count() == 3  # both versions and the low-pass anchor; the reference is one of them
    panel.get_by_role("button", name="Save").click()
    assert "3 not scored yet" in panel.inner_text()
    for number in range(3):
        page.keyboard.press(str(number + 1))
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight" if number else "ArrowLeft")
    panel.get_by_role("button", name="Save").click()
    assert "Saved" in panel.inner_text() and "original (reference)" in panel.inner_text()
    mode(page, "Prefer")
    page.get_by_role("button", name="Start").click()
    assert not re.search("original|rebuilt", panel.inner_text())
    for key in "ab5":
        page.keyboard.press(key)
    assert "B is much better" in panel.inner_text()
    answers = [analysis.read(exported(page, f"Export {name}", tmp_path)) for name in ("JSON", "CSV")]
    assert answers[0] == answers[1] and len(answers[0]) == 4
    assert {one.values["role"] for one in answers[0] if one.kind == "rating"} == {"reference", "anchor", ""}
    assert [one.values["choice"] for one in answers[0] if one.kind == "preference"] == [2]


def test_names_that_are_markup_or_formulas_do_nothing(index, visit, tmp_path):
    page = visit(index)
    for number in (1, 2):
        open_row(page, number)
        mode(page, "Prefer")
        page.get_by_role("button", name="Start").click()
        page.keyboard.press("1")
    assert page.title() == "Samples" and page.locator("img[src=x]").count() == 0
    assert page.locator(".name").nth(1).inner_text() == EVIL
    text = exported(page, "Export CSV", tmp_path).read_text(encoding="utf-8")
    assert "'=1+1" in text and ",=1+1" not in text
    assert {one.clip for one in analysis.read(tmp_path / "ratings.csv")} == {EVIL, "=1+1"}
    assert [url for url in page.requests if not url.startswith(("file://", "blob:"))] == []


def test_without_scripts_every_clip_has_a_player(index, visit):
    page = visit(index, java_script_enabled=False)
    players = page.locator("audio[controls][preload=none]")
    assert players.count() == 8 and page.locator("button, input").count() == 0
    for player, length in zip(players.all(), [6, 6, 1, 1, 1, 1, 1, 1], strict=True):
        player.focus()
        page.keyboard.press("Space")
        state = {}
        for _ in range(100):
            state = player.evaluate("audio => ({ length: audio.duration, at: audio.currentTime })")
            if state["at"] > 0:
                break
            page.wait_for_timeout(50)
        assert state["length"] == pytest.approx(length, abs=0.05) and state["at"] > 0
    assert page.locator("td img").first.evaluate("image => image.naturalWidth") == 480
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_can_be_read_named_and_held_in_every_mode(index, visit, scheme, width):
    page = visit(index, color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 800})
    open_row(page)
    for name in ("Compare", "ABX", "Rate", "Prefer"):
        mode(page, name)
        for started in (False, True):
            if started and name != "Compare":
                page.get_by_role("button", name="Start").click()
            ratio, text = page.evaluate(CONTRAST)
            assert ratio >= 4.5, text
            assert page.evaluate(NAMELESS) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.locator(".panel").evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2


def test_a_thousand_clips_load_only_what_is_looked_at(visit, tmp_path):
    samples = tmp_path / "samples"
    for epoch in range(4):
        folder = samples / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        soundfile.write(folder / "x.wav", numpy.zeros(100), 8000)
        write_card(folder, Card("MusicGen", "run", "Many", epoch=epoch, clips=tuple(Clip(f"clip {i}", "x.wav") for i in range(250))))
    page = visit(write_index(samples))
    assert page.locator("audio").count() == 1000

    def fetched(kind: str) -> list[str]:
        return [url for url in page.requests if f"/{kind}/" in url or url.endswith(kind)]

    assert fetched("rows") == fetched(".wav") == [] and page.locator("tr[data-row]").count() == 250
    page.get_by_label("Show rows with").fill("clip 24")
    assert page.locator("tr[data-row]:visible").count() == 11
    page.locator("button.open:visible").last.click()
    page.wait_for_selector(".panel .choices")
    assert len(fetched("rows")) == 1 and fetched(".wav") == []
    assert page.locator(".panel .choices button").count() == 4
