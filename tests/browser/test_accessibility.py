"""Accessibility: no serious Axe violation, light and dark, narrow and wide; keyboard only."""

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import (
    SLOW,
    choose_model,
    new_fine_tune,
    open_all_runs,
    open_inner_tab,
    open_tab,
    press_start,
    set_steps,
    show_run,
    upload,
    visit,
    wait_until_finished,
)

pytestmark = pytest.mark.browser
# Tables scroll in their own frame, and Gradio measures its tabs on a hidden copy.
TOO_WIDE = """[...document.querySelectorAll('button, input, textarea, p, label, pre, progress')]
    .filter(e => e.offsetParent && !e.closest('[aria-hidden=true], .table-wrap, .overflow-menu'))
    .filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 120))"""
IS_OPEN = re.compile(r"\bopen\b")
TABS = ("Data", "Recipe", "Train", "Compare", "Publish")
MAX_STOPS = 15
"""Presses of Tab from the sample data to Start."""


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
    visit(page, app)
    upload(page, data)
    expect(page.locator("#data-summary")).to_contain_text("20 rows", timeout=SLOW)
    choose_model(page)
    set_steps(page, 3)
    press_start(page)
    wait_until_finished(page)
    open_tab(page, "Compare")
    open_inner_tab(page, "Your prompts")
    page.locator("#prompts textarea").fill("Hello. My lamp is broken.")
    page.locator("#generate").click()
    expect(page.locator("#answers .prompt summary")).to_have_count(1, timeout=SLOW)
    page.locator("#evaluate").click()
    expect(page.locator("#verdict")).to_contain_text("Test rows", timeout=SLOW)
    yield page
    context.close()


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.slow
def test_axe_finds_no_serious_violation(seen, shoot, tab):
    open_tab(seen, tab)
    seen.wait_for_timeout(500)  # plots are drawn late
    shoot(seen, "step")
    check_axe(seen)


def check_axe(page):
    """Fail if Axe finds a serious violation on the page as it is."""
    violations = [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.slow
def test_nothing_is_wider_than_a_phone(seen, shoot, tab):
    seen.set_viewport_size({"width": 390, "height": 844})
    seen.wait_for_timeout(300)
    for title in TABS:
        expect(seen.get_by_role("tab", name=title).first).to_be_visible()
    open_tab(seen, tab)
    seen.wait_for_timeout(300)
    shoot(seen, "phone")
    wide = seen.evaluate(TOO_WIDE)
    seen.set_viewport_size({"width": 1280, "height": 900})
    assert wide == []


@pytest.mark.slow
def test_a_choice_in_the_sidebar_uncovers_the_page_on_a_phone(seen):
    seen.set_viewport_size({"width": 390, "height": 844})
    expect(seen.locator("#sidebar")).not_to_have_class(IS_OPEN)
    seen.get_by_label("Toggle Sidebar").click()
    expect(seen.locator("#sidebar")).to_have_class(IS_OPEN)
    show_run(seen)
    expect(seen.locator("#sidebar")).not_to_have_class(IS_OPEN)
    open_tab(seen, "Data")
    seen.set_viewport_size({"width": 1280, "height": 900})
    expect(seen.locator("#sidebar")).to_have_class(IS_OPEN)


@pytest.mark.slow
def test_axe_finds_no_serious_violation_in_a_new_fine_tune(seen, shoot):
    new_fine_tune(seen)
    for tab in TABS:
        open_tab(seen, tab)
        seen.wait_for_timeout(300)
        check_axe(seen)
    open_all_runs(seen)
    shoot(seen, "all-runs")
    check_axe(seen)
    show_run(seen)


@pytest.mark.slow
def test_the_journey_works_with_the_keyboard_alone(app, home, page, shoot):
    visit(page, app)
    focus(page, "#use-tickets")
    page.keyboard.press("Enter")
    expect(page.locator("#data-tiles")).to_contain_text("53 tokens", timeout=SLOW)
    before = len(list_runs("local"))
    stops = focus_tab(page, "Train", backwards=True)
    page.keyboard.press("Enter")
    expect(page.locator("#start")).to_be_enabled(timeout=SLOW)
    stops += focus(page, "#start")
    assert stops <= MAX_STOPS
    page.keyboard.press("Enter")
    expect(page.locator("#tiles")).to_contain_text("Step ", timeout=SLOW)
    assert len(list_runs("local")) == before + 1
    focus(page, "#stop")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("stopped", timeout=SLOW)
    shoot(page, "keyboard-train")
    focus(page, "#see-comparison")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("Test rows", timeout=2 * SLOW)
    focus_tab(page, "Your prompts")
    page.keyboard.press("Enter")
    focus(page, "#prompts textarea")
    page.keyboard.type("My lamp is broken.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answers .prompt summary")).to_have_count(1, timeout=SLOW)
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
    here = f"document.activeElement && document.activeElement.matches({selector!r})"
    return press_until(page, here)


def focus_tab(page, name, backwards=False):
    element = "document.activeElement"
    is_tab = f"{element} && {element}.role === 'tab' && {element}.textContent.includes({name!r})"
    return press_until(page, is_tab, backwards)


def press_until(page, condition, backwards=False):
    """Press Tab until the focus is there, up to 80 times; return how often it was pressed."""
    for presses in range(80):
        if page.evaluate(condition):
            return presses
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
    raise AssertionError(f"pressing Tab 80 times did not lead to {condition}")
