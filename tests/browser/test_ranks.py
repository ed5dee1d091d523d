"""Ranks: a sweep before training, a smaller adapter after it, and its import as a run."""

import re
import zipfile

import pytest
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import (
    SLOW,
    new_fine_tune,
    open_all_runs,
    open_panel,
    open_tab,
    set_steps,
    start_with_sample_data,
    use_sample_data,
    visit,
    wait_until_finished,
)
from tests.fixtures.waiting import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_rank_sweep_can_be_canceled_and_run_again(app, page, shoot):
    visit(page, app)
    use_sample_data(page)
    set_steps(page, 6)
    open_panel(page, "recipe-tools")
    open_panel(page, "rank-panel")
    page.locator("#rank-sweep").click()
    expect(page.locator("#rank-sweep")).to_be_disabled()
    expect(page.locator("#rank-sweep-progress")).to_contain_text("%", timeout=SLOW)
    page.locator("#cancel-rank-sweep").click()
    expect(page.locator("#rank-sweep-progress")).to_have_text("Canceled.", timeout=SLOW)
    expect(page.locator("#rank-sweep")).to_be_enabled()
    page.wait_for_timeout(5000)  # Gradio ignores a click until it knows that the event has ended
    page.locator("#rank-sweep").click()
    expect(page.locator("#rank-sweep-plot")).to_be_visible(timeout=4 * SLOW)
    verdict = page.locator("#rank-sweep-progress")
    expect(verdict).to_contain_text(re.compile(r"Inconclusive|rank \d+ is enough"))
    losses = [float(cell) for cell in verdict.locator("td:nth-child(3)").all_inner_texts()]
    is_open = min(losses[:-1]) > max(1.02 * losses[-1], losses[-1] + 0.01)
    assert is_open == ("Inconclusive" in verdict.inner_text()), "the largest rank tried was best"
    shoot(page, "swept")


def test_a_smaller_adapter_is_made_and_imported_as_a_run(app, home, page, shoot, tmp_path):
    start_with_sample_data(page, app, 4)
    wait_until_finished(page)
    open_tab(page, "Publish")
    open_panel(page, "shrink-panel")
    page.locator("#spectrum").click()
    expect(page.locator("#spectrum-progress")).to_contain_text("of 16 ranks", timeout=SLOW)
    page.locator("#smaller-rank textarea, #smaller-rank input").first.fill("4")
    page.locator("#reduce-rank").click()
    expect(page.locator("#smaller-zip")).to_contain_text("adapter-rank-4", timeout=SLOW)
    shoot(page, "smaller")
    with page.expect_download() as download:
        page.locator("#smaller-zip a[download]").first.click()
    packed = tmp_path / "adapter-rank-4.zip"
    download.value.save_as(packed)
    assert "adapter/adapter_config.json" in zipfile.ZipFile(packed).namelist()

    new_fine_tune(page)
    open_all_runs(page)
    open_panel(page, "import-panel")
    page.locator("#import-adapter").click()
    expect(page.locator("#import-progress")).to_contain_text("[web.no_adapter_named]", timeout=SLOW)
    page.locator("#import-zip input[type=file]").set_input_files(packed)
    expect(page.locator("#import-zip")).to_contain_text("adapter-rank-4", timeout=SLOW)
    page.locator("#import-adapter").click()
    expect(page.locator("#header")).to_contain_text("adapter", timeout=SLOW)
    assert list_runs("local")[0].recipe.lora_rank == 4
    shoot(page, "imported")


def test_a_grid_of_recipes_is_queued_and_its_runs_are_compared(app, home, page, shoot):
    visit(page, app)
    use_sample_data(page)
    set_steps(page, 4)
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_enabled(timeout=SLOW)
    open_panel(page, "grid-panel")
    page.locator("#grid-ranks textarea, #grid-ranks input").first.fill("4, 8")
    rates = page.locator("#grid-rates textarea, #grid-rates input").first
    rates.fill("fast")
    page.locator("#queue-grid").click()
    expect(page.locator("#grid-progress")).to_contain_text("[web.not_numbers]", timeout=SLOW)
    rates.fill("0.001, 0.002")
    before = len(list_runs("local"))
    page.locator("#queue-grid").click()
    expect(page.locator("#grid-progress")).to_contain_text("4 of 4 trainings", timeout=2 * SLOW)
    runs = list_runs("local")
    made = runs[: len(runs) - before]
    recipes = sorted((run.recipe.lora_rank, run.recipe.learning_rate) for run in made)
    assert recipes == [(4, 0.001), (4, 0.002), (8, 0.001), (8, 0.002)]
    assert len({run.name for run in made}) == 4
    shoot(page, "queued")
    wait_for(lambda: all(run.status() == "finished" for run in made), 300)
    page.locator("#compare-grid").click()
    table = page.locator("#recipe-differences")
    for text in ("LoRA rank", "Learning rate", "rank 8, rate 0.002 ·"):
        expect(table).to_contain_text(text, timeout=SLOW)
    expect(page.locator("#runs-curves canvas, #runs-curves svg").first).to_be_visible(timeout=SLOW)
    shoot(page, "compared")
