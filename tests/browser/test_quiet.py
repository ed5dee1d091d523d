"""A page on which nothing happens asks for little: Gradio can tell of a change of the chosen run again and again, which would clear what it shows."""

import json

import pytest
from playwright.sync_api import expect

from tests.app_process import App
from tests.browser.conftest import SLOW, start_with_sample_data

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module", params=["own machine", "Space"])
def somewhere(request, tmp_path_factory):
    """The app."""
    running = App(tmp_path_factory.mktemp("home"), HF_HUB_OFFLINE="1", **({"SYSTEM": "spaces"} if request.param == "Space" else {}))
    running.start()
    yield running
    running.kill()


def test_a_page_that_is_loaded_again_with_a_finished_run_rests(somewhere, page):
    start_with_sample_data(page, somewhere, 2)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    asked = []
    page.on("request", lambda request: asked.append(json.loads(request.post_data)) if "queue/join" in request.url else None)
    page.reload()
    expect(page.locator("#run input")).to_be_visible(timeout=SLOW)
    page.wait_for_timeout(10_000)
    asked.clear()
    page.wait_for_timeout(10_000)
    assert len(asked) <= 4, [(one["trigger_id"], one["fn_index"]) for one in asked]  # a look at the run every five seconds
