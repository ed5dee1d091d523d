"""Comparing on the page: many rows with their differences, a chat in both columns, a blind vote, and scores that say how sure they are."""

import csv
import re

import pytest
from playwright.sync_api import expect

from peft_space.evaluation.blind_vote import result
from peft_space.runs.store import list_runs
from tests.browser.conftest import SLOW, open_tab, start_with_sample_data

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_many_rows_are_compared_chatted_with_voted_on_and_scored(app, home, page, shoot, tmp_path):
    start_with_sample_data(page, app, 30)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    open_tab(page, "Compare")

    (tmp_path / "prompts.txt").write_text("Hello. My lamp is broken.\n---\nWhere is my order?\n")
    with page.expect_file_chooser() as chooser:
        page.locator("#prompts-file").click()
    chooser.value.set_files(tmp_path / "prompts.txt")
    expect(page.locator("#prompts textarea")).to_have_value(
        "Hello. My lamp is broken.\n---\nWhere is my order?", timeout=SLOW
    )

    page.locator("#how-many input").fill("24")
    page.locator("#take-rows").click()
    expect(page.locator("#prompts textarea")).to_have_value(
        re.compile("(---.*){23}", re.DOTALL), timeout=SLOW
    )
    page.locator("#ask").click()
    expect(page.locator("#answers summary")).to_have_count(24, timeout=SLOW)
    expect(page.locator("#answers .fair")).to_contain_text("to the bit those of the base alone")
    expect(page.locator("#answers .fair")).to_contain_text("in 24 prompts")
    expect(page.locator("#answers ins").first).to_be_visible()
    expect(page.locator("#answers")).to_contain_text("of 24 answers are the same")
    shoot(page, "1-many")

    page.locator("#also input").click()
    page.get_by_role("option", name="Step 30").click()
    page.keyboard.press("Escape")
    page.locator("#prompts textarea").fill("Hello. My lamp is broken.")
    page.locator("#ask").click()
    expect(page.locator("#answers th")).to_have_text(
        ["Prompt", "Base", "Adapter", "Step 30"], timeout=SLOW
    )
    expect(page.locator("#answers .fair")).to_contain_text(
        "to the bit those of the base alone", timeout=SLOW
    )
    cells = page.locator("#answers td pre")
    assert (
        cells.nth(-1).text_content() == cells.nth(-2).text_content()
    )  # of 30 steps the last is that of the adapter
    shoot(page, "2-beside")

    page.get_by_role("button", name="Chat of several turns").click()
    for number, text in enumerate(("Hello. My lamp is broken.", "Thank you."), 1):
        page.locator("#chat-message textarea").fill(text)
        page.locator("#chat-send").click()
        expect(page.locator("#chat-said summary")).to_have_count(number, timeout=SLOW)
    expect(page.locator("#chat-said .fair")).to_contain_text(
        "each column goes on with its own answers"
    )
    page.locator("#chat-said summary").last.click()
    expect(page.locator("#chat-said details pre").last).to_contain_text("Hello. My lamp is broken.")
    shoot(page, "3-chat")

    page.get_by_role("button", name="Blind vote").click()
    page.locator("#vote-count input").fill("3")
    page.locator("#vote-begin").click()
    for left in (3, 2, 1):
        expect(page.locator("#vote-progress")).to_contain_text(f"{left} to go", timeout=SLOW)
        expect(page.locator("#vote-pair")).not_to_contain_text("dapter")
        if left == 2:
            shoot(page, "4-vote")
        page.locator("#vote-left" if left > 1 else "#vote-same").click()
    expect(page.locator("#vote-progress")).to_contain_text("decided pairs", timeout=SLOW)
    [run] = list_runs("local")
    found = result(run)
    assert len(found["votes"]) == 3
    assert found["neither"] == 1
    page.locator("#vote-export").click()
    expect(page.locator("#vote-files a[download]")).to_have_count(2, timeout=SLOW)
    with page.expect_download() as download:
        page.locator("#vote-files a[download]").first.click()
    assert len(list(csv.DictReader(download.value.path().read_text().splitlines()))) == 3

    page.locator("#score").click()
    expect(page.locator("#scores")).to_contain_text("difference", timeout=2 * SLOW)
    expect(page.locator("#scores")).to_contain_text("ROUGE-L")
    expect(page.locator("#more-scores")).to_contain_text("general questions")
    expect(page.locator("#more-scores .fair")).to_contain_text("Checked")
    shoot(page, "5-scores")
