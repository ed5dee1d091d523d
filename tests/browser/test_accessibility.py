"""Every step is readable and reachable: no serious fault for Axe, light and dark, narrow and wide, and by keyboard alone."""

import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import SLOW, open_tab, set_steps

pytestmark = pytest.mark.browser
# What a finger needs; tables scroll in their own frame, and Gradio measures its tabs on a hidden copy
TOO_WIDE = """[...document.querySelectorAll('button, input, textarea, p, label, pre, progress')]
    .filter(e => e.offsetParent && !e.closest('[aria-hidden=true], .table-wrap, .overflow-menu'))
    .filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 120))"""
TABS = ("Data", "Recipe", "Train", "Compare", "Publish", "Runs")


@pytest.fixture(scope="module", params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def seen(request, app, browser, tmp_path_factory):
    """A page with data, a finished run, an answer and scores on it."""
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
    page = context.new_page()
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(data)
    expect(page.locator("#data-summary")).to_contain_text("20 rows", timeout=SLOW)
    set_steps(page, 3)
    open_tab(page, "Train")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    open_tab(page, "Compare")
    page.locator("#prompts textarea").fill("Hello. My lamp is broken.")
    page.locator("#ask").click()
    expect(page.locator("#answers summary")).to_have_count(1, timeout=SLOW)
    page.locator("#score").click()
    expect(page.locator("#scores")).to_contain_text("adapter", timeout=SLOW)
    yield page
    context.close()


@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_no_serious_fault(seen, shoot, tab):
    open_tab(seen, tab)
    seen.wait_for_timeout(500)  # plots are drawn late
    shoot(seen, "step")
    found = [
        fault
        for fault in Axe().run(seen).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    told = [
        f"{fault['id']}: {node['html'][:200]}" for fault in found for node in fault["nodes"][:3]
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("tab", TABS)
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


def test_the_journey_can_be_walked_with_the_keyboard_alone(app, home, page, shoot):
    page.goto(app.url)
    expect(page.locator("#use-sample")).to_be_visible(
        timeout=SLOW
    )  # before there is a page, Tab leads nowhere
    focus(page, "#use-sample")
    page.keyboard.press("Enter")
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    focus_tab(page, "Recipe")
    page.keyboard.press("Enter")
    focus_button(page, "Training")
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
    )  # until then it tells of an earlier run
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    assert len(list_runs("local")) == before + 1
    shoot(page, "keyboard-train")
    focus_tab(page, "Compare", backwards=True)
    page.keyboard.press("Enter")
    focus(page, "#prompts textarea")
    page.keyboard.type("My lamp is broken.")
    focus(page, "#ask")
    page.keyboard.press("Enter")
    expect(page.locator("#answers summary")).to_have_count(1, timeout=SLOW)
    focus_tab(page, "Publish", backwards=True)
    page.keyboard.press("Enter")
    focus(page, "#make-zip")
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
    press_until(
        page,
        f"document.activeElement && document.activeElement.role === 'tab' && document.activeElement.textContent.includes({name!r})",
        backwards,
    )


def focus_button(page, name):
    press_until(
        page,
        f"document.activeElement && document.activeElement.tagName === 'BUTTON' && document.activeElement.textContent.trim().startsWith({name!r})",
    )


def press_until(page, condition, backwards=False):
    """Press Tab until the focus is there; a keyboard user gives up sooner."""
    for _ in range(80):
        if page.evaluate(condition):
            return
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
    raise AssertionError(f"80 times Tab did not lead to {condition}")
