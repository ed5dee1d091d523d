"""An idle page sends few requests: Gradio can repeat the run list's change event endlessly."""

import json

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SLOW, start_with_sample_data, wait_until_finished
from tests.fixtures.app_process import App

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module", params=["own machine", "Space"])
def somewhere(request, tmp_path_factory):
    """Start the app, here or as on a Space."""
    running = App(
        tmp_path_factory.mktemp("home"),
        HF_HUB_OFFLINE="1",
        **({"SYSTEM": "spaces"} if request.param == "Space" else {}),
    )
    running.start()
    yield running
    running.kill()


def test_the_page_recovers_from_a_lost_answer(somewhere, page):
    start_with_sample_data(page, somewhere, 30)
    lost = []

    def lose(route):
        call = json.loads(route.request.post_data)
        if not lost and call["fn_index"] in checks:
            lost.append(route)  # never answered
        else:
            route.continue_()

    dependencies = httpx.get(f"{somewhere.url}/config").json()["dependencies"]
    checks = [
        handler["id"]
        for handler in dependencies
        if any(target[1] == "tick" for target in handler["targets"])
    ][:1]
    page.route("**/queue/join*", lose)
    wait_until_finished(page)
    assert lost
    page.unroute_all(behavior="ignoreErrors")


def test_a_reloaded_page_with_a_finished_run_is_idle(somewhere, page):
    start_with_sample_data(page, somewhere, 2)
    wait_until_finished(page)
    calls = []
    page.on(
        "request",
        lambda request: (
            calls.append(json.loads(request.post_data)) if "queue/join" in request.url else None
        ),
    )
    page.reload()
    expect(page.locator("#run-list button.run").first).to_be_visible(timeout=SLOW)
    page.wait_for_timeout(10_000)
    calls.clear()
    page.wait_for_timeout(10_000)
    assert len(calls) <= 4, [
        (call["trigger_id"], call["fn_index"]) for call in calls
    ]  # a check of the run every five seconds
