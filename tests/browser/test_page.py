"""What the page says is true at every moment, and a reload or another window shows the same."""

import json
import re

import pytest
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import (
    SLOW,
    choose_model,
    new_fine_tune,
    open_panel,
    open_tab,
    set_field,
    upload,
    visit,
    wait_until_finished,
)

pytestmark = pytest.mark.browser
TABS = ("Data", "Recipe", "Train", "Compare", "Publish")


@pytest.fixture
def problems(tmp_path):
    """Write a table in which a column that could be the answer has another name."""
    return _write_problems(tmp_path, 40)


def _write_problems(folder, count):
    path = folder / "shop.csv"
    lines = [f"{i},What costs item {i}?,It costs {i} pennies.,note {i}" for i in range(count)]
    path.write_text("\n".join(["id,question,answer,note", *lines]) + "\n")
    return path


@pytest.mark.slow
def test_a_new_fine_tune_is_true_from_the_first_file_to_the_reload(app, home, page, problems):
    page.set_viewport_size({"width": 1280, "height": 800})
    visit(page, app)
    first = page.locator("#try-demo").bounding_box()
    assert first["y"] - page.locator("#header").bounding_box()["y"] <= 320
    expect(page.locator("button.primary:visible")).to_have_text(["Run the demo"])
    for tab in TABS:
        expect(page.get_by_role("tab", name=tab, exact=True).first).to_be_visible()
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#train-missing")).to_contain_text("Add data first")
    open_tab(page, "Compare")
    expect(page.locator("#compare-blocked")).to_contain_text("Train an adapter first")
    expect(page.locator("#generate")).to_be_hidden()

    open_tab(page, "Data")
    upload(page, problems)
    expect(page.locator("#source")).to_have_text("shop.csv", timeout=SLOW)
    expect(page.locator("#columns .unused")).to_have_text(
        [re.compile("id not used"), re.compile("note not used")], timeout=SLOW
    )
    expect(page.locator("#data-file")).to_be_hidden()
    expect(page.locator("#rows")).to_contain_text("It costs 0 pennies.", timeout=SLOW)
    expect(page.get_by_role("tab", name="Data ✓")).to_be_visible()
    expect(page.locator("#data-missing")).to_contain_text("Choose a base model")
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#train-missing")).to_contain_text("Recipe: Choose a base model")

    choose_model(page)
    expect(page.locator("#model-status")).to_contain_text("toy", timeout=SLOW)
    expect(page.locator("#recipe-summary")).to_contain_text("Learning rate", timeout=SLOW)
    card = page.locator("#recipe-summary").inner_text()
    assert re.search(r"about [\d.]+ GiB", card)
    assert re.search(r"± \d+%", card)
    assert not re.search(r"\bGB\b", card), "one unit"
    open_tab(page, "Train")
    assert page.locator("#train-summary").inner_text() == card, "one number on both tabs"
    open_tab(page, "Recipe")
    expect(page.locator("#recipe-lora_rank")).to_be_hidden()
    open_panel(page, "settings")
    set_field(page, "lora_rank", 0)
    rank = page.locator("#recipe-lora_rank")
    expect(rank).to_contain_text("LoRA rank must be between 1 and 256", timeout=SLOW)
    expect(page.get_by_role("tab", name="Recipe !")).to_be_visible()
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    expect(page.locator("#next-train")).to_be_disabled()
    set_field(page, "lora_rank", 8)
    expect(page.locator("#changed-settings")).to_contain_text("LoRA rank 8", timeout=SLOW)
    page.locator("#search-settings input, #search-settings textarea").first.fill("warmup")
    expect(rank).to_be_hidden()
    expect(page.locator("#recipe-warmup_ratio")).to_be_visible()
    expect(page.locator("#next-train")).to_be_enabled(timeout=SLOW)

    page.reload()
    expect(page.get_by_role("tab", name="Recipe ✓")).to_have_attribute(
        "aria-selected", "true", timeout=SLOW
    )
    expect(page.locator("#changed-settings")).to_contain_text("LoRA rank 8", timeout=SLOW)
    window = page.context.new_page()
    window.goto(app.url)
    new_fine_tune(window)
    open_tab(window, "Data")
    expect(window.locator("#source")).to_have_text("shop.csv", timeout=SLOW)
    expect(window.locator("#data-tiles")).to_contain_text("36", timeout=SLOW)
    window.close()
    page.locator("#changed-settings button", has_text="LoRA rank").click()
    expect(page.locator("#changed-settings")).not_to_contain_text("LoRA rank", timeout=SLOW)


@pytest.mark.slow
def test_a_run_and_the_new_fine_tune_are_never_mixed(app, home, page, tmp_path, shoot):
    visit(page, app)
    upload(page, _write_problems(tmp_path, 80))  # four epochs are 36 steps
    choose_model(page)
    page.locator("#preset label", has_text="Quick look").click()
    expect(page.locator("#changed-settings")).to_contain_text("30", timeout=SLOW)
    before = len(list_runs("local"))
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_enabled(timeout=SLOW)
    page.locator("#start").dblclick()
    expect(page.locator("#tiles")).to_contain_text("of 30", timeout=SLOW)
    expect(page.locator("#start")).to_be_hidden()
    expect(page).to_have_title(re.compile("% · .*PEFT Space"), timeout=SLOW)
    expect(page.locator("#pause")).to_be_visible()
    page.locator("#pause").click()
    expect(page.locator("#header .pill")).to_have_text("Paused", timeout=SLOW)
    expect(page.locator("button.primary:visible")).to_have_text(["Resume"])
    expect(page.get_by_role("tab", name=re.compile("Compare$"))).to_be_visible()
    assert len(list_runs("local")) == before + 1, "a second press starts nothing"
    assert "run=" in page.url
    assert "tab=Train" in page.url
    shoot(page, "paused")
    new_fine_tune(page)
    open_tab(page, "Train")
    expect(page.locator("#status")).to_be_hidden()
    expect(page.locator("#about-to-train")).to_contain_text("shop.csv")
    page.locator("#run-list button.run").first.click()
    page.locator("#resume").click()
    wait_until_finished(page)
    expect(page.locator("#tiles")).to_contain_text("Step 30 of 30")
    open_tab(page, "Publish")
    for title in ("Better than the base model", "Enough test rows"):
        line = page.locator("#ready li", has_text=title)
        expect(line).to_contain_text("Not measured", timeout=SLOW)
        expect(line.get_by_label("open")).to_be_visible()
    open_tab(page, "Train")
    page.locator("#see-comparison").click()
    expect(page.locator("#verdict")).to_contain_text("few rows", timeout=2 * SLOW)
    page.locator("#deploy-target input[value='llama.cpp']")
    open_tab(page, "Publish")
    expect(page.locator("#ready")).to_contain_text("Fewer than 20 rows", timeout=SLOW)
    page.locator("#deploy-target input[value='llama.cpp']").click()
    expect(page.locator("#export-precision")).to_be_visible(timeout=SLOW)
    expect(page.locator("#export-dtype")).to_be_hidden()


@pytest.mark.slow
def test_settings_are_refused_applied_and_written_as_they_are_shown(app, page, tmp_path):
    visit(page, app)
    upload(page, _write_problems(tmp_path, 60))
    choose_model(page)
    expect(page.locator("#next-train")).to_be_enabled(timeout=SLOW)

    open_panel(page, "snippets")
    expect(page.locator("#as-commands")).to_contain_text("shop.csv", timeout=SLOW)
    open_panel(page, "settings")
    for rank in (32, 8):
        set_field(page, "lora_rank", rank)
        expect(page.locator("#as-commands")).to_contain_text(f'"lora_rank": {rank}', timeout=SLOW)

    page.locator("#recommend").click()
    expect(page.locator("#apply-recommendation")).to_be_visible(timeout=SLOW)
    set_field(page, "max_length", 200)
    expect(page.locator("#changed-settings")).to_contain_text("200", timeout=SLOW)
    page.locator("#apply-recommendation").click()
    expect(page.locator("#recommend-progress")).to_contain_text("Applied", timeout=SLOW)
    expect(page.locator("#changed-settings")).to_contain_text("200")
    expect(page.locator("#recommendations")).to_be_hidden()
    expect(page.locator("#apply-recommendation")).to_be_hidden()

    search = page.locator("#search-settings input, #search-settings textarea").first
    for words in ("cutoff_len", "max_length"):
        search.fill(words)
        expect(page.locator("#recipe-max_length")).to_be_visible()
        expect(page.locator("#recipe-lora_rank")).to_be_hidden()
    search.fill("")
    targets = page.locator("#recipe-target_modules input").first
    targets.fill("q_prj")
    targets.press("Enter")
    expect(page.get_by_role("tab", name="Recipe !")).to_be_visible(timeout=SLOW)
    expect(page.locator("#next-train")).to_be_disabled()
    expect(page.locator("#recipe-missing")).to_contain_text("q_proj")
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_disabled()
    open_tab(page, "Recipe")
    page.locator("#changed-settings button", has_text="Target modules").click()
    expect(page.locator("#next-train")).to_be_enabled(timeout=SLOW)


@pytest.mark.slow
def test_labels_that_are_equally_frequent_have_bars(app, page, tmp_path):
    rows = [{"text": f"Text {i}", "label": ("a", "b")[i % 2]} for i in range(40)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    visit(page, app)
    upload(page, tmp_path / "labels.jsonl")
    page.get_by_role("tab", name="Labels").click()
    bars = page.locator("#labels td i")
    expect(bars).to_have_count(2, timeout=SLOW)
    assert [bar.evaluate("bar => bar.style.width") for bar in bars.all()] == ["100%", "100%"]
