"""The journey in a real browser, with a real training: data in, adapter out."""

import json
import time
import zipfile

import pytest
from playwright.sync_api import expect

from peft_space.data.check import data_of
from peft_space.data.render import MASKED, render
from peft_space.run import list_runs, steps_of

pytestmark = pytest.mark.browser
SLOW = 120_000  # milliseconds; two cores may be busy with other tests


@pytest.fixture
def home(app, monkeypatch):
    """The test looks into the app's home."""
    monkeypatch.setenv("PEFT_SPACE_HOME", str(app.home))


def step(page, title):
    page.get_by_role("tab", name=title).click()


def set_steps(page, count):
    step(page, "2 · Recipe")
    page.get_by_role("button", name="Training").click()
    page.locator("#recipe-max_steps textarea").fill(str(count))


def test_from_a_file_of_ones_own_to_the_adapter(app, home, page, shoot, tmp_path, tokenizer):
    rows = [{"question": f"What is thing {i} called?", "answer": f"It is called number {i}."} for i in range(40)] + [
        {"question": "No answer"}
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(tmp_path / "mine.jsonl")
    expect(page.locator("#data-summary")).to_contain_text("41 rows. Recognised as question/answer", timeout=SLOW)
    expect(page.locator("#data-summary")).to_contain_text("1 rows cannot be used")
    expect(page.locator("#problems")).to_contain_text("the answer is empty")
    shown = page.locator("#preview").inner_text()
    shoot(page, "1-data")

    set_steps(page, 4)
    page.locator("#show-layers").click()
    expect(page.locator("#layers")).to_contain_text("q_proj", timeout=SLOW)
    shoot(page, "2-recipe")

    step(page, "3 · Train")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    expect(page.locator("#status")).to_contain_text("Step 4 of 4")
    shoot(page, "3-train")

    [run] = list_runs("local")
    [example] = render(tokenizer, data_of(run).train[:1], 512)
    trained = "".join(text for text, label in zip(example.texts, example.labels, strict=True) if label != MASKED)
    assert "".join(trained.split()) in "".join(shown.split()), "the preview shows another mask than the batch has"

    step(page, "4 · Compare")
    page.locator("#take-row").click()
    expect(page.locator("#expected textarea")).to_have_value(data_of(run).held_out[0].messages[-1]["content"], timeout=SLOW)
    page.locator("#ask").click()
    expect(page.locator("#base-answer textarea")).not_to_have_value("…", timeout=SLOW)
    page.locator("#score").click()
    expect(page.locator("#scores")).to_contain_text("adapter", timeout=SLOW)
    shoot(page, "4-compare")

    step(page, "5 · Publish")
    page.locator("#make-zip").click()
    expect(page.locator("#zip")).to_contain_text(".zip", timeout=SLOW)
    with page.expect_download() as download:
        page.locator("#zip a[download]").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "adapter/adapter_model.safetensors" in archive.namelist()
    shoot(page, "5-publish")


def test_a_mistake_is_told_on_the_page_and_makes_no_run(app, home, page, shoot, tmp_path):
    before = len(list_runs("local"))
    (tmp_path / "empty.csv").write_text("")
    page.goto(app.url)
    page.locator("#data-file input[type=file]").set_input_files(tmp_path / "empty.csv")
    expect(page.get_by_text("empty.csv: the file is empty. Bring a file with at least one row.").first).to_be_visible(timeout=SLOW)
    shoot(page, "mistake")
    step(page, "3 · Train")
    page.locator("#start").click()
    expect(page.get_by_text("the file is empty").first).to_be_visible(timeout=SLOW)
    assert len(list_runs("local")) == before


def test_a_run_goes_on_when_the_page_is_killed_and_is_listed_after_a_restart(app, home, page, shoot):
    page.goto(app.url)
    page.locator("#use-demo").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, 30)
    step(page, "3 · Train")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("of 30", timeout=SLOW)
    page.goto("about:blank")
    app.kill()
    run = list_runs("local")[0]
    assert run.status() == "running"
    deadline = time.time() + 120
    while run.status() == "running" and time.time() < deadline:
        time.sleep(0.2)
    assert run.status() == "finished"
    assert [event.step for event in steps_of(run.history())] == list(range(1, 31))
    app.start()
    page.goto(app.url)
    step(page, "3 · Train")
    expect(page.locator("#status")).to_contain_text("Step 30 of 30", timeout=SLOW)
    shoot(page, "after-restart")


def test_a_training_is_stopped_and_resumed_from_the_page_and_survives_a_reload(app, home, page, shoot):
    page.goto(app.url)
    page.locator("#use-demo").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, 40)
    step(page, "3 · Train")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("of 40", timeout=SLOW)
    page.reload()
    step(page, "3 · Train")
    expect(page.locator("#stop")).to_be_enabled(timeout=SLOW)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("stopped", timeout=SLOW)
    run = list_runs("local")[0]
    stopped_at = steps_of(run.history())[-1].step
    assert stopped_at < 40
    shoot(page, "stopped")
    page.locator("#resume").click()
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    assert [event.step for event in steps_of(run.history())] == list(range(1, 41))
