"""The Compare tab: many rows with marked differences, a chat, a blind vote, and scores."""

import csv
import re

import pytest
from playwright.sync_api import expect

from peft_space.evaluation.blind_vote import result
from peft_space.runs.store import list_runs
from tests.browser.conftest import (
    SLOW,
    new_fine_tune,
    open_inner_tab,
    open_tab,
    show_run,
    start_with_sample_data,
    wait_until_finished,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CUT = """table => [...table.querySelectorAll('*')].some(
    one => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX != 'visible')"""


def test_prompts_chat_vote_and_scores_on_the_compare_tab(app, home, page, shoot, tmp_path):
    start_with_sample_data(page, app, 30)
    wait_until_finished(page)
    open_tab(page, "Compare")
    open_inner_tab(page, "Your prompts")

    (tmp_path / "prompts.txt").write_text("Hello. My lamp is broken.\n---\nWhere is my order?\n")
    with page.expect_file_chooser() as chooser:
        page.locator("#prompts-file").click()
    chooser.value.set_files(tmp_path / "prompts.txt")
    expect(page.locator("#prompts textarea")).to_have_value(
        "Hello. My lamp is broken.\n---\nWhere is my order?", timeout=SLOW
    )

    page.locator("#how-many input").fill("24")
    page.locator("#use-rows").click()
    expect(page.locator("#prompts textarea")).to_have_value(
        re.compile("(---.*){23}", re.DOTALL), timeout=SLOW
    )
    page.locator("#generate").click()
    expect(page.locator("#answers .prompt summary")).to_have_count(24, timeout=SLOW)
    expect(page.locator("#answers .fair")).to_be_visible()
    expect(page.locator("#answers .badge").first).to_be_visible()
    expect(page.locator("#answers")).to_contain_text("24 answers")
    shoot(page, "1-many")

    page.locator("#compare-with input").click()
    page.get_by_role("option", name="Step 30").click()
    page.keyboard.press("Escape")
    page.locator("#prompts textarea").fill("Hello. My lamp is broken.")
    page.locator("#generate").click()
    expect(page.locator("#answers h4")).to_have_text(
        ["Prompt", "Base", "Fine-tuned", "Step 30"], timeout=SLOW
    )
    expect(page.locator("#answers .fair")).to_be_visible(timeout=SLOW)
    cells = page.locator("#answers .side pre")
    assert (
        cells.nth(-1).text_content() == cells.nth(-2).text_content()
    )  # the checkpoint of the last step is the adapter
    shoot(page, "2-beside")

    open_inner_tab(page, "Chat")
    for number, text in enumerate(("Hello. My lamp is broken.", "Thank you."), 1):
        page.locator("#chat-message textarea").fill(text)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#chat-answers .prompt summary")).to_have_count(number, timeout=SLOW)
    expect(page.locator("#chat-answers .fair")).to_be_visible()
    page.locator("#chat-answers .prompt summary").last.click()
    expect(page.locator("#chat-answers .prompt details pre").last).to_contain_text(
        "Hello. My lamp is broken."
    )
    shoot(page, "3-chat")

    open_inner_tab(page, "Blind test")
    page.locator("#vote-count input").fill("3")
    page.locator("#vote-start").click()
    for left in (3, 2, 1):
        expect(page.locator("#vote-progress")).to_contain_text(f"{left} left", timeout=SLOW)
        expect(page.locator("#vote-pair")).not_to_contain_text("dapter")
        if left == 2:
            shoot(page, "4-vote")
        page.locator("#vote-left" if left > 1 else "#vote-same").click()
    expect(page.locator("#vote-pair")).to_be_hidden(timeout=SLOW)
    [run] = list_runs("local")
    votes = result(run)
    assert len(votes["votes"]) == 3
    assert votes["neither"] == 1
    page.locator("#vote-export").click()
    expect(page.locator("#vote-files a[download]")).to_have_count(2, timeout=SLOW)
    with page.expect_download() as download:
        page.locator("#vote-files a[download]").first.click()
    assert len(list(csv.DictReader(download.value.path().read_text().splitlines()))) == 3

    page.locator("#evaluate").click()
    expect(page.locator("#verdict")).to_contain_text("Side effects", timeout=2 * SLOW)
    shown = page.locator("#examples-scored .comparison")
    open_inner_tab(page, "Test examples")
    expect(page.get_by_role("tab", name="Compare ✓")).to_be_visible(timeout=SLOW)
    for choice in ("Worse", "All"):  # none of these answers, and all of them
        label = page.locator("#outcome-filter label", has_text=choice)
        count = int(re.search(r"\((\d+)\)", label.inner_text())[1])
        assert (count > 0) == (choice == "All")
        label.click()
        expect(shown).to_have_count(count, timeout=SLOW)
    open_inner_tab(page, "All scores")
    expect(page.locator("#scores")).to_contain_text("Difference", timeout=SLOW)
    expect(page.locator("#scores")).to_contain_text("ROUGE-L")
    page.set_viewport_size({"width": 1280, "height": 800})
    assert not page.locator("#scores").evaluate(CUT), "no number is cut"
    expect(page.locator("#more-scores details .comparison").first).to_be_attached()
    expect(page.locator("#more-scores .fair")).to_be_visible()
    shoot(page, "5-scores")

    new_fine_tune(page)
    show_run(page)
    open_tab(page, "Compare")
    expect(page.locator("#verdict")).to_contain_text("Side effects", timeout=SLOW)
    open_inner_tab(page, "Your prompts")
    expect(page.locator("#prompts textarea")).to_have_value("", timeout=SLOW)
    expect(page.locator("#answers .comparison")).to_have_count(0)
