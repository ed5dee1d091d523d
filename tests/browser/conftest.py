"""A real app process and a real Chromium."""

import os
import shutil

import pytest
from playwright.sync_api import expect

from tests.fixtures.app_process import ROOT

ARTEFACTS = ROOT / "test-artefacts"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium from the system; without one the tests are skipped, in CI they fail."""
    path = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        message = "no Chromium on the path: install the system's chromium package, or name one in CHROMIUM"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


_OF_GRADIO = {"Cannot read properties of null (reading 'getBoundingClientRect')"}
"""Gradio measures a part that it has just taken off the page; seen once in some thirty walks, and nothing is lost by it."""


@pytest.fixture
def page(browser):
    """A fresh page that has seen no JavaScript error when the test ends."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert [error for error in errors if error not in _OF_GRADIO] == []


@pytest.fixture
def shoot(request):
    """Keeps a screenshot of a step as a test artefact."""
    ARTEFACTS.mkdir(exist_ok=True)

    def shoot_page(page, name: str) -> None:
        page.screenshot(path=ARTEFACTS / f"{request.node.name}-{name}.png", full_page=True)

    return shoot_page


@pytest.fixture
def home(app, monkeypatch):
    """The test looks into the app's home."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(app.home))


# What the tests do on the page

SLOW = 120_000
"""Milliseconds that a step may take; two cores may be busy with other tests."""


PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Gradio sets the values of a folded part's fields once more in the frame in which it unfolds; nobody types before it is painted."""


def open_tab(page, name):
    page.get_by_role("tab", name=name).first.click()


def set_steps(page, count, epochs=None):
    """Open the Recipe tab and limit the training to `count` steps; four epochs of the sample data are 152."""
    open_tab(page, "Recipe")
    page.get_by_role("button", name="Training").click()
    field = page.locator("#recipe-max_steps textarea, #recipe-max_steps input").first
    expect(field).to_be_visible()
    page.evaluate(PAINTED)
    field.fill(str(count))
    if epochs:
        page.locator("#recipe-num_epochs input").fill(str(epochs))


def start_with_sample_data(page, app, steps, epochs=None):
    """Start a training of `steps` steps on the sample data, and wait until it has begun."""
    page.goto(app.url)
    page.locator("#use-sample").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, steps, epochs)
    open_tab(page, "Train")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text(f"of {steps}", timeout=SLOW)
