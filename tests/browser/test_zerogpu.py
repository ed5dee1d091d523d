"""The page on ZeroGPU, in a browser: it begins slice after slice, and a tab that is closed or refused leaves a run that goes on."""

import time

import pytest

from peft_space import events
from peft_space.run import Run
from tests.zerogpu import Lender, Page

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
    run = wait_for(lambda: next((run for run in list_runs_of(running) if run.directory not in known), None))
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


def list_runs_of(running):
    return [Run(path.parent) for path in (running.home / "runs" / "local").glob("[!.]*/run.json")]


def number_of_slices(run):
    return len([event for event in run.history() if isinstance(event, events.Sliced)])


def wait_for(found, seconds=120):
    """What `found` returns once it is something."""
    deadline = time.time() + seconds
    while not (value := found()):
        assert time.time() < deadline, "it did not come"
        time.sleep(0.2)
    return value
