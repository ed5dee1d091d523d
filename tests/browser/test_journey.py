"""The journey with a real training: data in, adapter out; reloads and kills lose nothing."""

import json
import re
import shutil
import socket
import time
import zipfile

import psutil
import pytest
from playwright.sync_api import expect

from peft_space.data.arrow_store import MASKED
from peft_space.data.dataset import load_run_data
from peft_space.data.table import demo_files
from peft_space.data.tokenization.render import render
from peft_space.evaluation.results import read_scores
from peft_space.runs.events import steps_of
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, new_run_directory
from tests.browser.conftest import (
    SLOW,
    choose_model,
    new_fine_tune,
    open_all_runs,
    open_inner_tab,
    open_newest_run,
    open_panel,
    open_tab,
    press_start,
    set_steps,
    show_run,
    start_with_sample_data,
    upload,
    visit,
    wait_until_finished,
)
from tests.fixtures.app_process import ROOT, App

pytestmark = pytest.mark.browser
STORED_RUN = ROOT / "tests" / "fixtures" / "stored_run"
TOKENS = """[...document.querySelectorAll('#preview .tokens > span')].map(
    span => [span.textContent.replaceAll(/[↵‧]/g, ''), span.classList.contains('trained')])"""


def test_an_uploaded_file_is_trained_as_it_was_shown(app, home, page, shoot, tmp_path, tokenizer):
    rows = [
        {"question": f"What is thing {i} called?", "answer": f"It is called\nnumber {i}."}
        for i in range(40)
    ] + [{"question": "No answer"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    visit(page, app)
    upload(page, tmp_path / "mine.jsonl")
    tiles = page.locator("#data-tiles")
    expect(tiles).to_contain_text(re.compile(r"36.*4.*1", re.DOTALL), timeout=SLOW)
    expect(page.locator("#findings")).to_contain_text("Skipped rows: 1")
    expect(page.locator("#preview")).to_contain_text("Choose a base model", timeout=SLOW)
    choose_model(page, "demo")
    open_tab(page, "Data")
    expect(page.locator("#preview .trained").first).to_be_visible(timeout=SLOW)
    shown = page.evaluate(TOKENS)
    shoot(page, "1-data")

    set_steps(page, 6)
    open_tab(page, "Train")
    expect(page.locator("#about-to-train")).to_contain_text(
        re.compile("mine.jsonl.*36 rows.*6", re.DOTALL), timeout=SLOW
    )
    press_start(page)
    expect(page.locator("#tiles")).to_contain_text("of 6", timeout=SLOW)
    page.reload()
    wait_until_finished(page)
    expect(page.locator("#tiles")).to_contain_text("Step 6 of 6")
    shoot(page, "2-train")

    [run] = list_runs("local")
    [example] = render(tokenizer, load_run_data(run).train[:1], 512)
    trained = [
        [text, label != MASKED] for text, label in zip(example.texts, example.labels, strict=True)
    ]
    assert shown == trained, "the preview shows other tokens, or another mask, than training gets"


@pytest.mark.slow
def test_a_trained_run_is_compared_and_downloaded(app, home, page, shoot):
    start_with_sample_data(page, app, 12)
    wait_until_finished(page)
    held_out = load_run_data(list_runs("local")[0]).held_out[:2]
    new_fine_tune(page)  # it keeps the data and the settings
    open_tab(page, "Recipe")
    open_panel(page, "recipe-tools")
    open_panel(page, "layers-panel")
    expect(page.locator("#layers")).to_contain_text("35 layers get an adapter", timeout=SLOW)
    expect(page.locator("#layers")).to_contain_text("trainable parameters")
    shoot(page, "1-recipe")

    show_run(page)
    open_tab(page, "Compare")
    open_inner_tab(page, "Your prompts")
    page.locator("#how-many input").fill("2")
    page.locator("#use-rows").click()
    expect(page.locator("#prompts textarea")).to_have_value(
        "\n---\n".join(row.messages[-2]["content"] for row in held_out), timeout=SLOW
    )
    page.locator("#generate").click()
    expect(page.locator("#answers .prompt summary")).to_have_count(2, timeout=SLOW)
    expect(page.locator("#answers")).to_contain_text(
        held_out[1].messages[-1]["content"].splitlines()[0]
    )
    page.locator("#evaluate").click()
    expect(page.locator("#verdict")).to_contain_text("60 test rows", timeout=3 * SLOW)
    shoot(page, "2-compare")

    open_tab(page, "Publish")
    page.locator("#export").click()
    expect(page.locator("#zip")).to_contain_text(".zip", timeout=SLOW)
    with page.expect_download() as download:
        page.locator("#zip a[download]").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "adapter/adapter_model.safetensors" in archive.namelist()
    shoot(page, "3-publish")


@pytest.mark.slow
def test_a_mistake_is_shown_on_the_page_and_makes_no_run(app, home, page, shoot, tmp_path):
    before = len(list_runs("local"))
    (tmp_path / "empty.csv").write_text("")
    visit(page, app)
    upload(page, tmp_path / "empty.csv")
    error = re.compile(r"empty\.csv.*\[[a-z_.]+\]")
    expect(page.locator("#data-summary")).to_contain_text(error, timeout=SLOW)
    expect(page.get_by_role("tab", name="Data !")).to_be_visible(timeout=SLOW)
    shoot(page, "mistake")
    open_tab(page, "Train")
    expect(page.locator("#start")).to_be_disabled()
    expect(page.locator("#train-missing")).to_contain_text("Data")
    assert len(list_runs("local")) == before


@pytest.mark.slow
def test_a_training_survives_the_app_and_is_listed_after_a_restart(app, home, page, shoot):
    start_with_sample_data(page, app, 30)
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
    page.goto(app.url)  # another port is another site to the browser, which shows the newest run
    open_tab(page, "Train")
    expect(page.locator("#tiles")).to_contain_text("Step 30 of 30", timeout=SLOW)
    shoot(page, "after-restart")


@pytest.mark.parametrize(
    ("button", "state", "steps"),
    [("#pause", "paused", 50), pytest.param("#stop", "stopped", 40, marks=pytest.mark.slow)],
    ids=["pause", "stop"],
)
@pytest.mark.slow
def test_a_training_is_paused_or_stopped_and_resumed_from_the_page(
    app, home, page, shoot, button, state, steps
):
    start_with_sample_data(page, app, steps)
    run = list_runs("local")[0]
    expect(page.locator(button)).to_be_enabled(timeout=SLOW)
    steps_back = {
        one.nice()
        for one in psutil.process_iter(["cmdline"])
        if "peft_space.runtime.train_process" in (one.info["cmdline"] or [])
    }
    assert steps_back == {psutil.Process().nice() + 10}, "the page has priority over the training"
    page.locator(button).click()
    expect(page.locator("#status")).to_contain_text(state, timeout=SLOW)
    assert steps_of(run.history())[-1].step < steps
    shoot(page, state.replace(" ", "-"))
    if state == "paused":
        check_recipe_after_reload(page, run)
    page.locator("#resume").click()
    wait_until_finished(page)
    happened = run.history()
    assert [event.step for event in steps_of(happened)] == list(range(1, steps + 1))
    assert len([event for event in happened if event.event == "Step"]) == steps, (
        "no step was trained twice"
    )


def check_recipe_after_reload(page, run):
    page.reload()
    expect(page.locator("#status")).to_contain_text("paused", timeout=SLOW)
    open_panel(page, "snippets")
    expect(page.locator("#as-commands")).to_contain_text('"max_steps": 50', timeout=SLOW)
    open_tab(page, "Recipe")
    expect(page.locator("#run-settings")).to_contain_text("50", timeout=SLOW)
    open_tab(page, "Train")


@pytest.mark.slow
def test_ten_reloads_during_a_training_change_nothing(app, home, page, shoot):
    before = len(list_runs("local"))
    start_with_sample_data(page, app, 240, epochs=10)
    run = list_runs("local")[0]
    for _ in range(10):
        page.reload()
        expect(page.get_by_role("tab", name=re.compile("Train .*%"))).to_be_visible(timeout=SLOW)
        expect(page.locator("#tiles")).to_contain_text("of 240", timeout=SLOW)
    assert run.status() == "running", "all ten reloads happened during the training"
    assert len(list_runs("local")) == before + 1
    expect(page.locator("#status")).to_contain_text("finished", timeout=2 * SLOW)
    assert [event.step for event in run.history() if event.event == "Step"] == list(range(1, 241))
    shoot(page, "finished")


@pytest.mark.slow
def test_a_push_shows_its_progress_and_can_be_canceled(app, page, shoot):
    start_with_sample_data(page, app, 2)
    wait_until_finished(page)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        online = App(
            app.home, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}", HF_HUB_OFFLINE="0"
        )
        online.start()
        try:
            open_newest_run(page, online)
            open_tab(page, "Publish")
            page.locator("#repo textarea, #repo input").first.fill("maria/adapter")
            page.locator("#token input").fill("hf_maria_may_write")
            page.locator("#push").click()
            expect(page.locator("#pushed")).to_contain_text("Checking the token", timeout=SLOW)
            expect(page.locator("#push")).to_be_disabled()
            shoot(page, "pushing")
            page.locator("#cancel-push").click()
            expect(page.locator("#pushed")).to_contain_text("Canceled", timeout=SLOW)
            expect(page.locator("#push")).to_be_enabled()
        finally:
            online.kill()


MAX_SHIFT = 0.1
"""Cumulative layout shift of the demo: up to here a page is called stable."""
SHIFT = """() => { window.shift = 0; let sum = 0, first = 0, last = 0;
    new PerformanceObserver(list => list.getEntries().forEach(entry => {
        const {startTime, value} = entry;
        if (entry.hadRecentInput) return;
        const goesOn = startTime - last < 1000 && startTime - first < 5000;
        sum = goesOn ? sum + value : value;
        first = goesOn ? first : startTime;
        last = startTime;
        window.shift = Math.max(window.shift, sum);
    })).observe({type: 'layout-shift', buffered: false}); }"""
"""Cumulative layout shift as browsers report it: the largest sum of a burst of up to 5 seconds."""


@pytest.mark.slow
def test_the_demo_ends_in_its_verdict_and_touches_nobody_s_data(
    app, home, page, shoot, picture, tmp_path
):
    page.set_viewport_size({"width": 1280, "height": 800})
    (tmp_path / "mine.csv").write_text("question,answer\n" + "Who?,Me.\nWhere?,Here.\n" * 9)
    visit(page, app)
    page.evaluate(SHIFT)
    page.locator("#try-demo").click()
    expect(page.locator("#about-to-train")).to_contain_text("Demo: support tickets", timeout=SLOW)
    expect(page.locator("#train-missing")).not_to_contain_text("Add data")
    expect(page.locator("#status")).to_contain_text("Demo: support tickets", timeout=SLOW)
    expect(page.locator("#start")).to_be_hidden()
    expect(page.locator("#tiles")).to_contain_text("Step ", timeout=SLOW)
    shoot(page, "1-training")
    expect(page.locator("#verdict")).to_contain_text("Better than the base", timeout=3 * SLOW)
    box = page.locator("#verdict").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 800, "the verdict is on the screen without scrolling"
    assert page.evaluate("window.scrollY") == 0
    first = page.locator("#examples-scored .comparison").first
    assert first.bounding_box()["y"] < 800, "the first answers begin on the screen"
    expect(first).to_contain_text(re.compile("Expected.*Base.*Fine-tuned", re.DOTALL))
    assert page.evaluate("window.shift") < MAX_SHIFT
    scores = read_scores(list_runs("local")[0])
    assert scores.base.exact_match <= 0.1
    assert scores.adapter.exact_match >= 0.8
    shoot(page, "2-compared")
    picture(page, "compare")
    for tab in ("Data", "Recipe", "Train", "Publish"):
        open_tab(page, tab)
        picture(page, tab.lower())
    new_fine_tune(page)
    expect(page.locator("#data-file")).to_be_visible(timeout=SLOW)
    expect(page.locator("#source-row")).to_be_hidden()
    open_tab(page, "Train")
    expect(page.locator("#train-missing")).to_contain_text("Add data first", timeout=SLOW)
    expect(page.locator("#start")).to_be_disabled()


@pytest.mark.slow
def test_an_upload_leads_to_its_verdict(app, home, page, film, tmp_path):
    page.set_viewport_size({"width": 1280, "height": 800})
    rows, _ = demo_files()
    visit(page, app)
    film(page, 1.5)
    upload(page, shutil.copy(rows, tmp_path / "tickets.jsonl"))
    expect(page.locator("#data-tiles")).to_contain_text("270", timeout=SLOW)
    choose_model(page, "demo")
    film(page, 1.5)
    open_tab(page, "Data")
    expect(page.locator("#preview .trained").first).to_be_visible(timeout=SLOW)
    page.locator("#preview").scroll_into_view_if_needed()
    film(page, 2)
    press_start(page)
    expect(page.locator("#tiles")).to_contain_text("Step ", timeout=SLOW)
    page.evaluate("window.scrollTo(0, 0)")
    while "finished" not in page.locator("#status").inner_text():
        film(page, 0.4)
        page.wait_for_timeout(3_000)
    film(page, 1)
    open_tab(page, "Compare")
    page.locator("#evaluate").click()
    expect(page.locator("#verdict")).to_contain_text("Better than the base", timeout=3 * SLOW)
    film(page, 4)


def store_run():
    """Store a run that was trained elsewhere as the newest of the page."""
    run = Run(shutil.copytree(STORED_RUN, new_run_directory("local")))
    run.path("run.json").write_text(json.dumps({**run.about, "created": time.time()}))
    return run


@pytest.mark.slow
def test_a_run_that_is_deleted_elsewhere_leaves_a_new_fine_tune(app, home, page):
    visit(page, app)
    run = store_run()
    page.reload()
    expect(page.locator("#run-list")).to_contain_text(run.name, timeout=SLOW)
    show_run(page)
    expect(page.locator("#header h1")).to_have_text(run.name, timeout=SLOW)
    run.delete()
    expect(page.locator("#header h1")).to_have_text("New fine-tune", timeout=SLOW)
    expect(page.locator("#run-list")).not_to_contain_text(run.name, timeout=SLOW)
    page.wait_for_timeout(6_000)  # longer than between two checks
    expect(page.locator(".toast-body.error")).to_have_count(0)


@pytest.mark.slow
def test_runs_are_renamed_duplicated_and_deleted_after_a_question(app, home, page, shoot):
    others = list_runs("local")
    newest = store_run()
    page.goto(app.url)
    expect(page.locator("#run-list")).to_contain_text(newest.name, timeout=SLOW)
    show_run(page)
    page.locator("#manage-run").click()
    page.locator("#new-name textarea, #new-name input").first.fill("Renamed <b>")
    page.locator("#rename").click()
    expect(page.locator("#header h1")).to_have_text("Renamed <b>", timeout=SLOW)
    expect(page.locator("#run-list")).to_contain_text("Renamed <b>", timeout=SLOW)
    page.locator("#manage-run").click()
    page.locator("#duplicate").click()
    expect(page.locator("#header h1")).to_have_text("New fine-tune", timeout=SLOW)
    changed = page.locator("#changed-settings")
    expect(changed).to_contain_text("LoRA rank 2", timeout=SLOW)
    expect(page.get_by_role("tab", name="Recipe")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".toast-body", has_text="settings of Renamed")).to_be_in_viewport()
    expect(changed).to_contain_text("Maximum steps 3")
    shoot(page, "duplicated")
    show_run(page)
    page.locator("#manage-run").click()
    colors = page.locator("#delete").evaluate("button => getComputedStyle(button).backgroundColor")
    assert colors == "rgb(220, 38, 38)", "danger is red"
    page.locator("#delete").click()
    expect(page.locator("#delete-question")).to_contain_text("cannot be undone", timeout=SLOW)
    assert newest.directory.exists()
    page.locator("#delete-confirm").click()
    expect(page.locator("#header h1")).to_have_text("New fine-tune", timeout=SLOW)
    assert [run.directory for run in list_runs("local")] == [run.directory for run in others]
    open_all_runs(page)
    expect(page.locator("#runs")).not_to_contain_text("Renamed", timeout=SLOW)
