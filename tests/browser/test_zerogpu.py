"""The page on ZeroGPU starts slice after slice; a closed tab leaves a run that can resume."""

import shutil
import time

import pytest
from playwright.sync_api import expect

from peft_space.runs import events
from peft_space.runs.run import Run
from tests.browser.conftest import (
    SLOW,
    new_fine_tune,
    open_newest_run,
    open_panel,
    open_tab,
    press_start,
    set_steps,
    show_run,
    use_sample_data,
)
from tests.fixtures.fake_zerogpu import HASTY_SECONDS, TRAINED, Lender, Page, hasty_page
from tests.fixtures.fake_zerogpu import much_to_score as much_to_score_in

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def space(tmp_path):
    """Start the page on ZeroGPU, and the stand-in that lends GPUs."""
    with Lender() as lending:
        running = Page(tmp_path / "home", PEFT_SPACE_SLICE_SECONDS="15", **lending.environment)
        running.start()
        yield running, lending
        running.kill()


def test_a_page_chains_slices_and_a_closed_tab_pauses_after_one(space, browser):
    running, lending = space
    known = {run.directory for run in list_runs_of(running)}
    page = browser.new_page()
    page.goto(running.url)
    page.locator("#try-demo").wait_for()
    use_sample_data(page)
    open_tab(page, "Train")
    expect(page.locator("#slices")).to_contain_text("15 s", timeout=SLOW)
    press_start(page)
    run = wait_for(
        lambda: next((run for run in list_runs_of(running) if run.directory not in known), None)
    )
    wait_for(lambda: number_of_slices(run) >= 3)
    page.get_by_text("of GPU quota used").wait_for(timeout=30_000)
    page.close()
    wait_for(lambda: run.status() == "paused")
    had = number_of_slices(run)
    time.sleep(8)
    assert (run.status(), number_of_slices(run)) == ("paused", had)
    again = browser.new_page()
    again.goto(running.url)
    open_tab(again, "Train")
    lending.quota = 1
    again.locator("#resume").click()
    again.get_by_text("GPU quota is").first.wait_for(timeout=60_000)
    lending.quota = float("inf")
    again.locator("#resume").click()
    wait_for(lambda: number_of_slices(run) > had)
    again.locator("#pause").click()
    wait_for(lambda: isinstance(run.history()[-1], events.Paused) and run.history()[-1].asked)


@pytest.fixture(scope="module")
def much_to_score(tmp_path_factory):
    return much_to_score_in(tmp_path_factory.mktemp("much") / "run")


@pytest.fixture
def hasty(tmp_path, much_to_score):
    """Start the page with a trained run and slices so short that an evaluation needs several."""
    with Lender() as lending:
        running = hasty_page(tmp_path / "hasty", much_to_score, lending)
        running.start()
        yield running, lending
        running.kill()


def test_evaluation_and_vote_continue_while_the_page_is_open(hasty, page):
    running, lending = hasty
    open_newest_run(page, running)
    open_tab(page, "Compare")
    expect(page.locator("#evaluate")).to_be_enabled(timeout=SLOW)
    page.locator("#evaluate").click()
    expect(page.locator("#verdict")).to_contain_text("Test rows", timeout=2 * SLOW)
    assert len(lending.asked) >= 2
    had = len(lending.asked)
    page.locator("#evaluate").click()
    wait_for(lambda: len(lending.asked) >= had + 2)
    page.locator("#stop-evaluation").click()
    expect(page.locator("#score-progress")).to_contain_text("Stopped", timeout=SLOW)
    time.sleep(3)
    had = len(lending.asked)
    time.sleep(HASTY_SECONDS + 3)
    assert len(lending.asked) == had, "a stopped evaluation starts no slice"

    page.get_by_role("tab", name="Blind test").click()
    page.locator("#vote-count input").fill("100")
    page.locator("#vote-start").click()
    expect(page.locator("#vote-progress")).to_contain_text("left", timeout=2 * SLOW)
    assert len(lending.asked) >= had + 2


def test_work_without_a_gpu_runs_on_the_cpu_and_the_page_says_so(space, much_to_score, page):
    running, lending = space
    shutil.copytree(much_to_score.directory, running.home / "runs" / "local" / TRAINED)
    page.goto(running.url)
    new_fine_tune(page)
    use_sample_data(page)
    set_steps(page, 2)
    open_panel(page, "recipe-tools")
    open_panel(page, "rank-panel")
    notice = page.get_by_text("The rank sweep runs on this Space's CPU").first
    expect(notice).to_be_visible(timeout=SLOW)
    page.locator("#rank-sweep").click()
    expect(page.locator("#rank-sweep-plot")).to_be_visible(timeout=4 * SLOW)
    page.locator("#recommend").click()
    expect(page.locator("#recommendations")).to_be_visible(timeout=SLOW)
    assert not lending.asked
    show_run(page)
    open_tab(page, "Publish")
    open_panel(page, "shrink-panel")
    page.locator("#smaller-rank textarea, #smaller-rank input").first.fill("4")
    page.locator("#reduce-rank").click()
    expect(page.locator("#smaller-zip")).to_contain_text("adapter-rank-4", timeout=SLOW)
    assert len(lending.asked) == 1, "scoring it takes one slice"


def list_runs_of(running):
    return [Run(path.parent) for path in (running.home / "runs" / "local").glob("[!.]*/run.json")]


def number_of_slices(run):
    return len([event for event in run.history() if isinstance(event, events.SliceStarted)])


def wait_for(condition, seconds=120):
    """Wait until `condition` returns a true value, and return it."""
    deadline = time.time() + seconds
    while not (value := condition()):
        assert time.time() < deadline, "timed out"
        time.sleep(0.2)
    return value
