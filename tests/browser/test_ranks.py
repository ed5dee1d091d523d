"""Ranks on the page: a study before the training, a smaller adapter after it, and an adapter that was made elsewhere opened as a run."""

import zipfile

import pytest
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import SLOW, open_tab, set_steps, start_with_sample_data

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_ranks_are_studied_and_the_study_can_be_cancelled(app, page, shoot):
    page.goto(app.url)
    page.locator("#use-sample").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, 6)
    page.get_by_role("button", name="Which rank is enough? Measure it").click()
    page.locator("#study").click()
    expect(page.locator("#study")).to_be_disabled()
    expect(page.locator("#study-told")).to_contain_text("%", timeout=SLOW)
    page.locator("#cancel-study").click()
    expect(page.locator("#study-told")).to_have_text("Cancelled.", timeout=SLOW)
    expect(page.locator("#study")).to_be_enabled()
    page.locator("#study").click()
    expect(page.locator("#study-plot")).to_be_visible(timeout=4 * SLOW)
    expect(page.locator("#study-told")).to_contain_text("rank", ignore_case=True)
    shoot(page, "studied")


def test_a_smaller_adapter_is_made_and_opened_again_as_a_run(app, home, page, shoot, tmp_path):
    start_with_sample_data(page, app, 4)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    open_tab(page, "Publish")
    page.get_by_role("button", name="How much of its rank does the adapter use?").click()
    page.locator("#spectrum").click()
    expect(page.locator("#spectrum-told")).to_contain_text("Of rank 16", timeout=SLOW)
    page.locator("#smaller-rank textarea, #smaller-rank input").first.fill("4")
    page.locator("#compress").click()
    expect(page.locator("#smaller-zip")).to_contain_text("adapter-rank-4", timeout=SLOW)
    shoot(page, "smaller")
    with page.expect_download() as download:
        page.locator("#smaller-zip a[download]").first.click()
    packed = tmp_path / "adapter-rank-4.zip"
    download.value.save_as(packed)
    assert "adapter/adapter_config.json" in zipfile.ZipFile(packed).namelist()

    open_tab(page, "Runs")
    page.get_by_role("button", name="Open an adapter that was made elsewhere").click()
    page.locator("#adopt").click()
    expect(page.locator("#adopting")).to_contain_text("Which adapter?", timeout=SLOW)
    page.locator("#adopt-zip input[type=file]").set_input_files(packed)
    expect(page.locator("#adopt-zip")).to_contain_text("adapter-rank-4", timeout=SLOW)
    page.locator("#adopt").click()
    expect(page.locator("#adopting")).to_contain_text("It is chosen as the run now", timeout=SLOW)
    assert list_runs("local")[0].recipe.lora_rank == 4
    shoot(page, "opened")
