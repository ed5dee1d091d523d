"""A page on which nothing happens asks for little: Gradio can tell of a change of the chosen run again and again, which would clear what it shows."""

import json

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SLOW, start_with_sample_data
from tests.fixtures.app_process import App

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module", params=["own machine", "Space"])
def somewhere(request, tmp_path_factory):
    """The app."""
    running = App(
        tmp_path_factory.mktemp("home"),
        HF_HUB_OFFLINE="1",
        **({"SYSTEM": "spaces"} if request.param == "Space" else {}),
    )
    running.start()
    yield running
    running.kill()


def test_a_look_at_the_run_that_gets_lost_is_not_the_last(somewhere, page):
    start_with_sample_data(page, somewhere, 30)
    lost = []

    def lose(route):
        asked = json.loads(route.request.post_data)
        if not lost and asked["fn_index"] in looks:
            lost.append(route)  # neither answered nor refused
        else:
            route.continue_()

    dependencies = httpx.get(f"{somewhere.url}/config").json()["dependencies"]
    looks = [
        one["id"] for one in dependencies if any(target[1] == "tick" for target in one["targets"])
    ][:1]
    page.route("**/queue/join*", lose)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    assert lost
    page.unroute_all(behavior="ignoreErrors")


def test_a_page_that_is_loaded_again_with_a_finished_run_rests(somewhere, page):
    start_with_sample_data(page, somewhere, 2)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    asked = []
    page.on(
        "request",
        lambda request: (
            asked.append(json.loads(request.post_data)) if "queue/join" in request.url else None
        ),
    )
    page.reload()
    expect(page.locator("#run input")).to_be_visible(timeout=SLOW)
    page.wait_for_timeout(10_000)
    asked.clear()
    page.wait_for_timeout(10_000)
    assert len(asked) <= 4, [
        (one["trigger_id"], one["fn_index"]) for one in asked
    ]  # a look at the run every five seconds
