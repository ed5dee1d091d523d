"""The sheets of a workbook, and the configurations and splits of a dataset, are offered."""

import openpyxl
import pytest
from playwright.sync_api import expect

from peft_space.web.panels.sources import NO_TEST_SPLIT
from tests.browser.conftest import SLOW, choose, upload, visit
from tests.fixtures.app_process import App

CARD = b"""---
configs:
- config_name: small
  data_files: [{split: train, path: small-train.jsonl}, {split: test, path: small-test.jsonl}]
- config_name: large
  data_files: [{split: train, path: large.jsonl}]
---
"""

pytestmark = pytest.mark.browser


def lines(count, name="q"):
    return "".join(
        f'{{"prompt": "{name} {n}", "completion": "a {n}"}}\n' for n in range(count)
    ).encode()


@pytest.mark.slow
def test_a_sheet_is_chosen_on_the_page(app, page, shoot, tmp_path):
    book = openpyxl.Workbook()
    for title, count in (("Prices", 20), ("Questions", 40)):
        sheet = book.create_sheet(title)
        for line in [("prompt", "completion"), *[(f"q {n}", f"a {n}") for n in range(count)]]:
            sheet.append(line)
    book.save(tmp_path / "book.xlsx")
    visit(page, app)
    upload(page, tmp_path / "book.xlsx")
    expect(page.locator("#data-tiles")).to_contain_text("18", timeout=SLOW)
    expect(page.locator("#part-0")).to_contain_text("Sheet")
    expect(page.locator("#part-0 input")).to_have_value("Prices")
    choose(page, "#part-0", "Questions")
    expect(page.locator("#data-tiles")).to_contain_text("36", timeout=SLOW)
    expect(page.locator("#part-0 input")).to_have_value("Questions", timeout=SLOW)
    expect(page.locator("#source")).to_contain_text("book.xlsx#Questions")
    shoot(page, "1-sheet")
    page.locator("#remove-data").click()
    expect(page.locator("#part-0")).to_be_hidden()


@pytest.mark.slow
def test_a_configuration_and_a_split_are_chosen_on_the_page(
    the_hub, hub_environment, page, shoot, tmp_path
):
    files = {"README.md": CARD, "large.jsonl": lines(30)}
    files |= {"small-train.jsonl": lines(20), "small-test.jsonl": lines(5, "test")}
    the_hub.add_repository("datasets/maria/rows", files)
    names = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "NO_PROXY")
    app = App(tmp_path / "home", **{name: hub_environment[name] for name in names})
    app.start()
    try:
        visit(page, app)
        page.locator("#hub-dataset input, #hub-dataset textarea").first.fill("maria/rows")
        page.locator("#use-hub").click()
        expect(page.locator("#data-summary")).to_contain_text("ambiguous_split", timeout=SLOW)
        choose(page, "#part-0", "small")
        expect(page.locator("#data-tiles")).to_contain_text("18", timeout=SLOW)
        expect(page.locator("#part-1 input")).to_have_value("train", timeout=SLOW)
        expect(page.locator("#test-split input")).to_have_value(NO_TEST_SPLIT)
        choose(page, "#test-split", "test")
        expect(page.locator("#data-tiles")).to_contain_text("20", timeout=SLOW)
        expect(page.locator("#data-tiles")).to_contain_text("5")
        shoot(page, "1-splits")
        choose(page, "#part-0", "large")
        expect(page.locator("#data-tiles")).to_contain_text("27", timeout=SLOW)
        expect(page.locator("#test-split")).to_be_hidden()
    finally:
        app.kill()
