"""One headless Chromium (the system's) for all tests of a module, and pages in it that must not complain."""

import contextlib
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: the page is not tried in a browser")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: the page is not tried in a browser")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """A function that opens a file in a context of its own (options: Playwright's); errors and dialogs fail the test."""
    with contextlib.ExitStack() as stack:
        faults: list[str] = []

        def open_page(path, **options):
            context = stack.enter_context(chromium.new_context(accept_downloads=True, **options))
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
            page.requests = []
            page.on("request", lambda request: page.requests.append(request.url))
            page.goto(path.as_uri())
            return page

        yield open_page
        assert faults == []
