"""A real app process, a real Chromium, and what the tests do on the page."""

import io
import os
import re
import shutil

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.fixtures.app_process import ROOT

SLOW = 120_000
"""Milliseconds that a step may take; two cores may be busy with other tests."""
ARTIFACTS = ROOT / "test-artefacts"
PICTURE_HEIGHT = 1_200
MAX_PICTURE_BYTES = 150_000
FILM_SIZE, MAX_FILM_BYTES = (960, 600), 2_000_000
expect.set_options(timeout=SLOW)
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
    """Start the system's headless Chromium. Without one, tests are skipped; in CI they fail."""
    path = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        message = "no Chromium: install the system's chromium package, or set CHROMIUM to a path"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


_GRADIO_ERRORS = {"Cannot read properties of null (reading 'getBoundingClientRect')"}
"""Gradio measures an element that it has just removed; harmless, seen once in some thirty runs."""


@pytest.fixture
def page(browser):
    """Open a new page; fail if it has seen a JavaScript error when the test ends."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(SLOW)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert [error for error in errors if error not in _GRADIO_ERRORS] == []


@pytest.fixture
def shoot(request):
    """Save a screenshot of a step as a test artifact."""
    ARTIFACTS.mkdir(exist_ok=True)

    def shoot_page(page, name: str) -> None:
        path = ARTIFACTS / f"{request.node.name}-{name}.png"
        page.screenshot(path=path, full_page=True, timeout=SLOW)

    return shoot_page


@pytest.fixture
def picture():
    """Save a picture of a view for the documentation, light and dark; do nothing by default.

    Set PEFT_SPACE_PICTURES to the folder for the pictures.
    """
    folder = os.environ.get("PEFT_SPACE_PICTURES")

    def save(page, name: str) -> None:
        if not folder:
            return
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        height = min(page.evaluate("document.documentElement.scrollHeight"), PICTURE_HEIGHT)
        clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(1_000)  # plots are drawn again
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip, timeout=SLOW)))
            path = ROOT / folder / f"{name}-{scheme}.webp"
            shot.convert("RGB").save(path, quality=80, method=6)
            assert path.stat().st_size <= MAX_PICTURE_BYTES, path
        page.emulate_media(color_scheme="light")

    return save


@pytest.fixture
def film():
    """Collect frames of a journey for the documentation's animated picture; nothing by default.

    Set PEFT_SPACE_PICTURES to the folder for it.
    """
    folder, frames, durations = os.environ.get("PEFT_SPACE_PICTURES"), [], []

    def take(page, seconds: float) -> None:
        if folder:
            page.wait_for_timeout(500)  # what has just changed is drawn
            shot = Image.open(io.BytesIO(page.screenshot(timeout=SLOW))).convert("RGB")
            frames.append(shot.resize(FILM_SIZE, Image.Resampling.LANCZOS))
            durations.append(int(1000 * seconds))

    yield take
    if folder:
        path = ROOT / folder / "journey.webp"
        frames[0].save(
            path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=60
        )
        assert path.stat().st_size <= MAX_FILM_BYTES, path


@pytest.fixture
def home(app, monkeypatch):
    """Let the test read the app's home directory."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(app.home))


PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Gradio sets the values of an accordion's fields again in the frame in which it opens."""


def open_tab(page, name):
    page.get_by_role("tab", name=name).first.click()


def open_panel(page, elem_id):
    """Open or close an accordion."""
    page.locator(f"#{elem_id} button").first.click()


def visit(page, app):
    """Open the page with an empty new fine-tune, whatever earlier tests have left."""
    for draft in app.home.glob("runs/*/draft.json"):
        draft.unlink()
    page.goto(app.url)
    new_fine_tune(page)


def new_fine_tune(page):
    """Show the new fine-tune, once the page has loaded and knows the machine."""
    button = page.locator("#run-list button.new")
    expect(button).to_be_visible(timeout=SLOW)
    expect(page.locator("#machine")).to_contain_text(re.compile("(CPU|ZeroGPU),"), timeout=SLOW)
    button.click()
    expect(page.locator("#header")).to_contain_text("New fine-tune", timeout=SLOW)


def use_sample_data(page):
    """Choose the sample data and wait until it has been read."""
    page.locator("#use-tickets").click()
    expect(page.locator("#data-tiles")).to_contain_text("300", timeout=SLOW)
    expect(page.locator("#data-tiles")).to_contain_text("53 tokens", timeout=SLOW)


def upload(page, *paths):
    """Upload files as the data."""
    page.locator("#data-file input[type=file]").set_input_files(list(paths))


def choose_model(page, name="demo"):
    """Choose a base model by its card."""
    open_tab(page, "Recipe")
    page.locator(f"#model-cards [data-value='{name}']").click()
    expect(page.locator(f"#model-cards [data-value='{name}']")).to_have_attribute(
        "aria-pressed", "True", timeout=SLOW
    )


def choose(page, selector, option):
    """Select an option of one of Gradio's dropdowns."""
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)


def wait_until_finished(page):
    """Wait until the selected run's training is finished."""
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)


def set_field(page, name, value):
    """Type a setting on the opened Recipe tab and leave its field."""
    field = page.locator(f"#recipe-{name} textarea, #recipe-{name} input").first
    expect(field).to_be_visible()
    page.evaluate(PAINTED)
    field.fill(str(value))
    field.press("Tab")


def set_steps(page, count, epochs=None):
    """Limit the training to `count` steps. Four epochs of the sample data are 152 steps."""
    open_tab(page, "Recipe")
    if not page.locator("#search-settings").is_visible():
        open_panel(page, "settings")
    set_field(page, "max_steps", count)
    if epochs:
        set_field(page, "num_epochs", epochs)
    expect(page.locator("#changed-settings")).to_contain_text(str(count), timeout=SLOW)


def press_start(page):
    """Start the training once the page allows it."""
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_enabled(timeout=SLOW)
    page.locator("#start").click()


def start_with_sample_data(page, app, steps, epochs=None):
    """Start a training of `steps` steps on the sample data and wait for its first step."""
    visit(page, app)
    use_sample_data(page)
    set_steps(page, steps, epochs)
    press_start(page)
    expect(page.locator("#tiles")).to_contain_text(f"of {steps}", timeout=SLOW)


def show_run(page, number=0):
    """Show a run of the sidebar, the newest by default, on the tab on which it opens."""
    page.locator("#run-list button.run").nth(number).click()
    expect(page.locator("#header .pill")).to_be_visible(timeout=SLOW)


def open_newest_run(page, app):
    """Open the page of an app that this browser has not seen: it shows the newest run."""
    page.goto(app.url)
    expect(page.locator("#header .pill")).to_be_visible(timeout=SLOW)


def open_all_runs(page):
    """Show the list of all runs."""
    page.locator("#run-list button.all").click()
    expect(page.locator("#runs")).to_be_visible(timeout=SLOW)


def open_inner_tab(page, name):
    """Open a tab within a tab."""
    page.get_by_role("tab", name=name, exact=True).click()
