"""Accessibility: no serious Axe violation, light and dark, narrow and wide; keyboard only."""

import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import SLOW, open_tab, set_steps, wait_until_finished

pytestmark = pytest.mark.browser
# Tables scroll in their own frame, and Gradio measures its tabs on a hidden copy.
TOO_WIDE = """[...document.querySelectorAll('button, input, textarea, p, label, pre, progress')]
    .filter(e => e.offsetParent && !e.closest('[aria-hidden=true], .table-wrap, .overflow-menu'))
    .filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 120))"""
TABS = ("Data", "Recipe", "Train", "Compare", "Publish", "Runs")


@pytest.fixture(scope="module", params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def seen(request, app, browser, tmp_path_factory):
    """Open a page with data, a finished run, an answer and scores."""
    data = tmp_path_factory.mktemp("data") / "questions.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question": f"What is thing {i}?", "answer": f"It is\nnumber {i}."}) + "\n"
            for i in range(20)
        )
    )
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme=request.param
    )
    context.set_default_timeout(SLOW)
    page = context.new_page()
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(data)
    expect(page.locator("#data-summary")).to_contain_text("20 rows", timeout=SLOW)
    set_steps(page, 3)
    open_tab(page, "Train")
    page.locator("#start").click()
    wait_until_finished(page)
    open_tab(page, "Compare")
    page.locator("#prompts textarea").fill("Hello. My lamp is broken.")
    page.locator("#generate").click()
    expect(page.locator("#answers summary")).to_have_count(1, timeout=SLOW)
    page.locator("#evaluate").click()
    expect(page.locator("#scores")).to_contain_text("adapter", timeout=SLOW)
    yield page
    context.close()


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.slow
def test_axe_finds_no_serious_violation(seen, shoot, tab):
    open_tab(seen, tab)
    seen.wait_for_timeout(500)  # plots are drawn late
    shoot(seen, "step")
    violations = [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in Axe().run(seen).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.slow
def test_nothing_is_wider_than_a_phone(seen, shoot, tab):
    seen.set_viewport_size({"width": 390, "height": 844})
    seen.wait_for_timeout(300)
    if not seen.get_by_role("tab", name=tab).first.is_visible():
        seen.locator("#steps .overflow-menu > button").first.click()
        seen.locator("#steps .overflow-dropdown button", has_text=tab).click()
    else:
        open_tab(seen, tab)
    seen.wait_for_timeout(300)
    shoot(seen, "phone")
    wide = seen.evaluate(TOO_WIDE)
    seen.set_viewport_size({"width": 1280, "height": 900})
    assert wide == []


@pytest.mark.slow
def test_the_journey_works_with_the_keyboard_alone(app, home, page, shoot):
    page.goto(app.url)
    expect(page.locator("#use-sample")).to_be_visible(
        timeout=SLOW
    )  # before there is a page, Tab leads nowhere
    focus(page, "#use-sample")
    page.keyboard.press("Enter")
    expect(page.locator("#data-summary")).to_contain_text("300 rows for training", timeout=SLOW)
    focus_tab(page, "Recipe")
    page.keyboard.press("Enter")
    focus(page, "#group-training button")
    page.keyboard.press("Enter")
    focus(page, "#recipe-max_steps textarea")
    page.keyboard.type("2")
    focus_tab(page, "Train", backwards=True)
    page.keyboard.press("Enter")
    before = len(list_runs("local"))
    focus(page, "#start")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(
        "Step 2 of 2", timeout=SLOW
    )  # until then it shows an earlier run
    wait_until_finished(page)
    assert len(list_runs("local")) == before + 1
    shoot(page, "keyboard-train")
    focus_tab(page, "Compare", backwards=True)
    page.keyboard.press("Enter")
    focus(page, "#prompts textarea")
    page.keyboard.type("My lamp is broken.")
    focus(page, "#generate")
    page.keyboard.press("Enter")
    expect(page.locator("#answers summary")).to_have_count(1, timeout=SLOW)
    focus_tab(page, "Publish", backwards=True)
    page.keyboard.press("Enter")
    focus(page, "#export")
    page.keyboard.press("Enter")
    expect(page.locator("#zip")).to_contain_text(".zip", timeout=SLOW)
    focus(page, "#zip a[download]")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".zip")
    shoot(page, "keyboard-publish")


def focus(page, selector):
    press_until(page, f"document.activeElement && document.activeElement.matches({selector!r})")


def focus_tab(page, name, backwards=False):
    element = "document.activeElement"
    is_tab = f"{element} && {element}.role === 'tab' && {element}.textContent.includes({name!r})"
    press_until(page, is_tab, backwards)


def press_until(page, condition, backwards=False):
    """Press Tab until the focus is there, up to 80 times."""
    for _ in range(80):
        if page.evaluate(condition):
            return
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
    raise AssertionError(f"pressing Tab 80 times did not lead to {condition}")
