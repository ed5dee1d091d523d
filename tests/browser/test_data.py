"""The Data tab in a real browser: what is doubtful is asked, what was understood can be corrected, what is wrong can be mended."""

import re

import pytest
from playwright.sync_api import expect

from peft_space.data.dataset import load_run_data
from peft_space.runs.store import list_runs
from tests.browser.conftest import SLOW, open_tab, set_steps

pytestmark = pytest.mark.browser


def choose(page, selector, option):
    """Pick an option of one of Gradio's dropdowns."""
    page.locator(f"{selector} input").click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)


def wait_for_fate(page, fate, words):
    """Wait until the preview's tokens of this fate read as these words."""
    texts = f"[...document.querySelectorAll('#preview .tokens .{fate}')].map(token => token.innerText).join('')"
    page.wait_for_function(f"words => {texts}.includes(words)", arg=words, timeout=5_000)


def test_an_ambiguous_file_is_asked_about_corrected_and_mended(app, home, page, shoot, tmp_path):
    rows = [f"Wie heisst Nummer {i}?,Sie heisst {i}." for i in range(30)]
    (tmp_path / "fragen.csv").write_text(
        "\n".join(["Frage,Antwort", *rows, rows[0], rows[1]]) + "\n"
    )
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(tmp_path / "fragen.csv")
    expect(page.locator("#data-summary")).to_contain_text(
        "can be read in several ways", timeout=SLOW
    )
    expect(page.locator("#reading-question label")).to_have_count(3)
    shoot(page, "1-asked")
    open_tab(page, "Train")
    page.locator("#start").click()
    expect(page.get_by_text("can be read in several ways").last).to_be_visible(timeout=SLOW)
    open_tab(page, "Data")

    page.locator(
        "#reading-question label",
        has_text="First row: question: Sie heisst 0.; answer: Wie heisst Nummer 0?",
    ).click()
    expect(page.locator("#data-summary")).to_contain_text("'Antwort' as question", timeout=SLOW)
    wait_for_fate(page, "trained", "Wie heisst Nummer")
    shoot(page, "2-answered")

    page.get_by_role("button", name="Read the columns differently").click()
    choose(page, "#role-question", "Frage")
    choose(page, "#role-answer", "Antwort")
    page.locator("#read-so").click()
    expect(page.locator("#data-summary")).to_contain_text("'Frage' as question", timeout=SLOW)
    wait_for_fate(page, "masked", "Wie heisst Nummer")
    wait_for_fate(page, "trained", "Sie heisst")

    expect(page.locator("#data-summary")).to_contain_text("29 rows to train on, 3 held out")
    choose(page, "#which-rows", "Duplicates (2)")
    expect(page.locator("#preview .tokens")).to_have_attribute(
        "aria-label", "Row 31, token by token", timeout=SLOW
    )
    page.locator("#fixes label", has_text="Keep one of each row").click()
    expect(page.locator("#data-summary")).to_contain_text(
        "27 rows to train on, 3 held out", timeout=SLOW
    )
    expect(page.locator("#preview .tokens")).to_have_attribute(
        "aria-label", "Row 1, token by token"
    )
    shoot(page, "3-mended")

    set_steps(page, 2)
    open_tab(page, "Train")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    kept = load_run_data(list_runs("local")[0])
    assert kept.column_mapping.as_json() == {
        "schema": "question_answer", "columns": {"question": "Frage", "answer": "Antwort"}, "fixes": ["deduplicate"],
    }  # fmt: skip
    assert len(kept.train) == 27


@pytest.mark.slow
def test_labels_are_recommended_a_recipe_for_trained_and_compared(app, home, page, shoot, tmp_path):
    lines = [
        f"I want {i} {'lamps' if i % 3 else 'stories'},{'order' if i % 3 else 'other'}"
        for i in range(30)
    ]
    (tmp_path / "intents.csv").write_text("\n".join(["text,category", *lines]) + "\n")
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(tmp_path / "intents.csv")
    expect(page.locator("#data-summary")).to_contain_text(
        "The model will learn which label a text has", timeout=SLOW
    )
    expect(page.locator("#preview")).to_contain_text("Label: other")
    expect(page.locator("#labels")).to_be_visible()
    shoot(page, "1-labels")

    open_tab(page, "Recipe")
    page.locator("#recommend").click()
    expect(page.locator("#advising")).to_contain_text(
        "of your choices would be others", timeout=SLOW
    )
    expect(page.locator("#advice")).to_contain_text("LoRA Without Regret")
    shoot(page, "2-advice")
    page.locator("#take-advice").click()
    expect(page.locator("#advising")).to_contain_text("shows what is recommended", timeout=SLOW)
    page.locator("#show-layers").click()
    expect(page.locator("#layers")).to_contain_text(
        "Trained in full, and kept with the adapter: score", timeout=SLOW
    )

    open_tab(page, "Train")
    expect(page.locator("#about-to-train")).to_contain_text(
        "Quantization of the base model none", timeout=SLOW
    )
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    open_tab(page, "Compare")
    page.locator("#prompts textarea").fill("I want 7 lamps")
    page.locator("#ask").click()
    expect(page.locator("#answers")).to_contain_text(re.compile("order: .*%"), timeout=SLOW)
    page.locator("#score").click()
    expect(page.locator("#scores")).to_contain_text("macro-F1", timeout=SLOW)
    shoot(page, "3-compared")
    assert list_runs("local")[0].recipe.lora_rank == 8


def test_several_files_are_joined(app, page, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"prompt": "{name} {i}", "completion": "yes"}}\n' for i in range(50))
        )
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(
        [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    )
    expect(page.locator("#data-summary")).to_contain_text(
        "one.jsonl + two.jsonl: 100 rows", timeout=SLOW
    )
    expect(page.locator("#data-summary")).to_contain_text("90 rows to train on, 10 held out")
