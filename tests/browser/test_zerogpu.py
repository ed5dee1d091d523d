"""The page on ZeroGPU, in a browser: it begins slice after slice, and a tab that is closed or refused leaves a run that goes on."""

import shutil
import time

import pytest
from playwright.sync_api import expect

from peft_space.runs import events
from peft_space.runs.run import Run
from tests.browser.conftest import SLOW, open_tab, set_steps
from tests.fixtures.fake_zerogpu import HASTY_SECONDS, TRAINED, Lender, Page, hasty_page
from tests.fixtures.fake_zerogpu import much_to_score as much_to_score_in

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def space(tmp_path):
    """The page on ZeroGPU, and who lends it GPUs."""
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
    page.get_by_text("Try the demo", exact=False).first.wait_for()
    page.get_by_role("tab", name="1 · Data").click()
    page.get_by_role("button", name="Use the sample data").click()
    page.get_by_role("tab", name="3 · Train").click()
    page.get_by_text("It goes in slices of at most 15 s").wait_for(timeout=60_000)
    page.get_by_role("button", name="Start training").click()
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
    again.get_by_role("tab", name="3 · Train").click()
    lending.quota = 1
    again.locator("#resume").click()
    again.get_by_text("Your GPU quota is used up").first.wait_for(timeout=60_000)
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
    """The page where slices are so short that a scoring needs several, with a trained run; and who lends it GPUs."""
    with Lender() as lending:
        running = hasty_page(tmp_path / "hasty", much_to_score, lending)
        running.start()
        yield running, lending
        running.kill()


def test_a_scoring_and_a_vote_go_on_by_themselves_while_the_page_is_open(hasty, page):
    running, lending = hasty
    page.goto(running.url)
    open_tab(page, "Compare")
    expect(page.locator("#score")).to_be_enabled(timeout=SLOW)
    page.locator("#score").click()
    expect(page.locator("#score-progress")).to_contain_text(
        "held-out rows, each with the interval", timeout=2 * SLOW
    )
    assert len(lending.asked) >= 2
    had = len(lending.asked)
    page.locator("#score").click()
    wait_for(lambda: len(lending.asked) >= had + 2)
    page.locator("#stop-answers").click()
    expect(page.locator("#compare-progress")).to_contain_text("goes on where it was", timeout=SLOW)
    time.sleep(3)
    had = len(lending.asked)
    time.sleep(HASTY_SECONDS + 3)
    assert len(lending.asked) == had, "what was stopped begins no slice"

    page.get_by_role("button", name="Blind vote").click()
    page.locator("#vote-count input").fill("100")
    page.locator("#vote-begin").click()
    expect(page.locator("#vote-progress")).to_contain_text("to go", timeout=2 * SLOW)
    assert len(lending.asked) >= had + 2


def test_what_needs_no_gpu_is_done_on_the_cpu_and_the_page_says_so(space, much_to_score, page):
    running, lending = space
    shutil.copytree(much_to_score.directory, running.home / "runs" / "local" / TRAINED)
    page.goto(running.url)
    page.locator("#use-sample").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, 2)
    page.get_by_role("button", name="Which rank is enough? Measure it").click()
    expect(page.get_by_text("The study runs on this Space's own CPU").first).to_be_visible(
        timeout=SLOW
    )
    page.locator("#study").click()
    expect(page.locator("#study-plot")).to_be_visible(timeout=4 * SLOW)
    page.locator("#recommend").click()
    expect(page.locator("#advice")).to_be_visible(timeout=SLOW)
    assert not lending.asked
    open_tab(page, "Publish")
    page.get_by_role("button", name="How much of its rank does the adapter use?").click()
    page.locator("#smaller-rank textarea, #smaller-rank input").first.fill("4")
    page.locator("#compress").click()
    expect(page.locator("#smaller-zip")).to_contain_text("adapter-rank-4", timeout=SLOW)
    assert len(lending.asked) == 1, "its scores take one slice"


def list_runs_of(running):
    return [Run(path.parent) for path in (running.home / "runs" / "local").glob("[!.]*/run.json")]


def number_of_slices(run):
    return len([event for event in run.history() if isinstance(event, events.SliceStarted)])


def wait_for(found, seconds=120):
    """What `found` returns once it is something."""
    deadline = time.time() + seconds
    while not (value := found()):
        assert time.time() < deadline, "it did not come"
        time.sleep(0.2)
    return value
