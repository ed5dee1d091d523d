"""The Data tab: it asks about ambiguous files, and mappings can be changed and rows fixed."""

import re
import socket

import pytest
from playwright.sync_api import expect

from peft_space.data.dataset import load_run_data
from peft_space.runs.store import list_runs
from tests.browser.conftest import (
    SLOW,
    choose,
    choose_model,
    open_inner_tab,
    open_panel,
    open_tab,
    press_start,
    set_steps,
    upload,
    visit,
    wait_until_finished,
)
from tests.fixtures.app_process import App

pytestmark = pytest.mark.browser


def wait_for_tokens(page, css, words):
    """Wait until the preview's tokens of this class contain these words."""
    tokens = f"[...document.querySelectorAll('#preview .tokens .{css}')]"
    texts = f"{tokens}.map(token => token.innerText).join('')"
    page.wait_for_function(f"words => {texts}.includes(words)", arg=words, timeout=SLOW)


def press_upload(page, selector, path):
    """Press a button that uploads a file, and choose the file."""
    with page.expect_file_chooser() as chooser:
        page.locator(selector).click()
    chooser.value.set_files(path)


@pytest.mark.slow
def test_an_ambiguous_file_is_asked_about_corrected_and_fixed(app, home, page, shoot, tmp_path):
    rows = [f"Wie heisst Nummer {i}?,Sie heisst {i}." for i in range(30)]
    (tmp_path / "fragen.csv").write_text(
        "\n".join(["Anfrage,Reaktion", *rows, rows[0], rows[1]]) + "\n"
    )
    visit(page, app)
    upload(page, tmp_path / "fragen.csv")
    expect(page.locator("#mapping-question label")).to_have_count(3, timeout=SLOW)
    expect(page.locator("#data-summary")).to_contain_text("32 rows")
    shoot(page, "1-asked")
    choose_model(page)
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#train-missing")).to_contain_text("Choose which columns", timeout=SLOW)
    open_tab(page, "Data")

    page.locator(
        "#mapping-question label",
        has_text="First row: question: Sie heisst 0.; answer: Wie heisst Nummer 0?",
    ).click()
    wait_for_tokens(page, "trained", "Wie heisst Nummer")
    shoot(page, "2-answered")

    open_panel(page, "change-columns")
    choose(page, "#role-question", "Anfrage")
    choose(page, "#role-answer", "Reaktion")
    page.locator("#apply-mapping").click()
    wait_for_tokens(page, "masked", "Wie heisst Nummer")
    wait_for_tokens(page, "trained", "Sie heisst")

    expect(page.locator("#data-tiles")).to_contain_text("29")
    page.locator("#findings .card", has_text="Duplicates").locator("button").click()
    expect(page.locator("#preview .tokens")).to_have_attribute(
        "aria-label", "Row 31, token by token", timeout=SLOW
    )
    page.locator("#fixes input[value=deduplicate], #fixes label").first.click()
    expect(page.locator("#data-tiles")).to_contain_text("27", timeout=SLOW)
    expect(page.locator("#preview .tokens")).to_have_attribute(
        "aria-label", "Row 1, token by token"
    )
    shoot(page, "3-fixed")

    set_steps(page, 2)
    press_start(page)
    wait_until_finished(page)
    data = load_run_data(list_runs("local")[0])
    mapping = data.column_mapping.as_json()
    assert mapping["schema"] == "question_answer"
    assert mapping["columns"] == {"question": "Anfrage", "answer": "Reaktion"}
    assert mapping["fixes"] == ["deduplicate"]
    assert len(data.train) == 27


@pytest.mark.slow
def test_labels_are_trained_with_recommended_settings(app, home, page, shoot, tmp_path):
    lines = [
        f"I want {i} {'lamps' if i % 3 else 'stories'},{'order' if i % 3 else 'other'}"
        for i in range(30)
    ]
    (tmp_path / "intents.csv").write_text("\n".join(["text,category", *lines]) + "\n")
    visit(page, app)
    upload(page, tmp_path / "intents.csv")
    choose_model(page)
    open_tab(page, "Data")
    expect(page.locator("#data-summary")).to_contain_text(
        "The model will learn to classify texts", timeout=SLOW
    )
    expect(page.locator("#preview")).to_contain_text("Label: other")
    open_inner_tab(page, "Labels")
    expect(page.locator("#labels")).to_contain_text("order", timeout=SLOW)
    shoot(page, "1-labels")

    open_tab(page, "Recipe")
    page.locator("#recommend").click()
    expect(page.locator("#recommend-progress")).to_contain_text(
        re.compile("[0-9] recommended change"), timeout=SLOW
    )
    expect(page.locator("#recommendations")).to_contain_text("LoRA Without Regret")
    shoot(page, "2-advice")
    page.locator("#apply-recommendation").click()
    expect(page.locator("#recommend-progress")).to_contain_text("Applied", timeout=SLOW)
    open_panel(page, "recipe-tools")
    open_panel(page, "layers-panel")
    expect(page.locator("#layers")).to_contain_text("saved with the adapter: score", timeout=SLOW)

    open_tab(page, "Train")
    expect(page.locator("#about-to-train")).to_contain_text(
        re.compile("Quantization.* none"), timeout=SLOW
    )
    press_start(page)
    wait_until_finished(page)
    open_tab(page, "Compare")
    open_inner_tab(page, "Your prompts")
    page.locator("#prompts textarea").fill("I want 7 lamps")
    page.locator("#generate").click()
    expect(page.locator("#answers")).to_contain_text(re.compile("order: .*%"), timeout=SLOW)
    page.locator("#evaluate").click()
    open_inner_tab(page, "All scores")
    expect(page.locator("#scores")).to_contain_text("macro-F1", timeout=SLOW)
    shoot(page, "3-compared")
    assert list_runs("local")[0].recipe.lora_rank == 8


@pytest.mark.slow
def test_files_are_added_and_replaced_by_different_buttons(app, page, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"prompt": "{name} {i}", "completion": "yes"}}\n' for i in range(50))
        )
    visit(page, app)
    upload(page, tmp_path / "one.jsonl")
    expect(page.locator("#data-tiles")).to_contain_text("45", timeout=SLOW)
    press_upload(page, "#add-data", tmp_path / "two.jsonl")
    expect(page.locator("#data-summary")).to_contain_text(
        "one.jsonl + two.jsonl: 100 rows", timeout=SLOW
    )
    expect(page.locator("#data-tiles")).to_contain_text("90")
    press_upload(page, "#replace-data", tmp_path / "two.jsonl")
    expect(page.locator("#data-tiles")).to_contain_text("45", timeout=SLOW)
    expect(page.locator("#source")).to_have_text("two.jsonl")
    page.locator("#search-rows input, #search-rows textarea").first.fill("two 17")
    page.keyboard.press("Enter")
    expect(page.locator("#rows-range")).to_contain_text("of 1", timeout=SLOW)


@pytest.mark.slow
def test_a_part_of_the_task_and_a_wrong_model_are_named_where_they_are(app, page, tmp_path):
    lines = [f"{i},What costs item {i}?,It costs {i} pennies." for i in range(30)]
    (tmp_path / "problems.csv").write_text("\n".join(["id,body,reply", *lines]) + "\n")
    visit(page, app)
    upload(page, tmp_path / "problems.csv")
    expect(page.locator("#mapping-question")).to_contain_text("What costs item 0?", timeout=SLOW)
    expect(page.get_by_role("tab", name="Data !")).to_be_visible(timeout=SLOW)
    page.locator("#mapping-question label", has_text="It costs 0 pennies.").first.click()
    expect(page.locator("#data-tiles")).to_contain_text("27", timeout=SLOW)

    open_tab(page, "Recipe")
    model = page.locator("#recipe-base_model input")
    model.fill("/no/such/model")
    model.press("Enter")
    expect(page.locator("#model-status")).to_contain_text("[models.not_found]", timeout=SLOW)
    expect(page.get_by_role("tab", name="Recipe !")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("tab", name="Data ✓")).to_be_visible()
    expect(page.locator("#recipe-missing")).to_contain_text("Recipe:")
    expect(page.locator(".toast-body.error")).to_have_count(0)
    choose_model(page)
    expect(page.get_by_role("tab", name="Recipe ✓")).to_be_visible(timeout=SLOW)


@pytest.mark.slow
def test_a_look_at_a_model_ends_by_itself_or_is_canceled(page, tmp_path):
    lines = "".join(f'{{"prompt": "q {i}", "completion": "a {i}"}}\n' for i in range(20))
    (tmp_path / "rows.jsonl").write_text(lines)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        port = silent.getsockname()[1]
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}
        online = App(tmp_path / "home", HF_HUB_OFFLINE="0", **hub)
        online.start()
        try:
            visit(page, online)
            upload(page, tmp_path / "rows.jsonl")
            expect(page.locator("#data-tiles")).to_contain_text("18", timeout=SLOW)
            open_tab(page, "Recipe")
            model = page.locator("#recipe-base_model input")
            status = page.locator("#model-status")
            model.fill("nobody/nothing")
            model.press("Enter")
            expect(status).to_contain_text("[hub.unreachable]", timeout=SLOW)
            expect(page.locator("#cancel-look-up")).to_be_hidden()
            model.fill("nobody/else")
            model.press("Enter")
            page.locator("#cancel-look-up").click(timeout=SLOW)
            expect(status).to_contain_text("Canceled", timeout=SLOW)
            choose_model(page)
            expect(page.get_by_role("tab", name="Recipe ✓")).to_be_visible(timeout=SLOW)
            expect(page.get_by_role("tab", name="Data ✓")).to_be_visible()
        finally:
            online.kill()
