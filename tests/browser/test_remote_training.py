"""A run is made without training it here, handed over to a job, watched on the Train tab, cancelled, and written as a script."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SLOW, open_tab, set_steps
from tests.conftest import WRITER
from tests.fixtures.app_process import App

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def online(the_hub, hub_environment, tmp_path):
    """The app, with a Hub whose jobs run."""
    inherited = {
        name: value
        for name, value in hub_environment.items()
        if name not in {"HF_TOKEN", "HF_HOME"}
    }
    own = {
        "PEFT_SPACE_HOME": str(tmp_path / "job-home"),
        "HF_HOME": str(tmp_path / "job-hf"),
        "PEFT_SPACE_JOB_SECONDS": "0.3",
    }
    the_hub.job_environment = inherited | own | {"OMP_NUM_THREADS": "1"}
    hub = {
        name: hub_environment[name]
        for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "NO_PROXY")
    }
    running = App(tmp_path / "home", **hub)
    running.start()
    yield running
    running.kill()
    the_hub.end_jobs()


def test_a_job_is_started_watched_and_comes_back_to_the_same_page(online, the_hub, page, shoot):
    page.goto(online.url)
    page.locator("#use-sample").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, 12)
    open_tab(page, "Train")
    page.get_by_role("button", name="Train it elsewhere").click()
    page.locator("#make-only").click()
    expect(page.locator("#status")).to_contain_text("ready to train", timeout=SLOW)
    page.locator("#job-token input").fill("hf_wrong")
    page.locator("#job-hardware").click()
    expect(page.locator("#job-choices")).to_contain_text("cpu-basic", timeout=SLOW)
    expect(page.locator("#job-choices")).to_contain_text("an hour")
    expect(page.locator("#hand-over")).to_be_enabled(timeout=SLOW)
    page.locator("#job-flavor input").click()
    page.get_by_role("option", name="cpu-basic").click()
    expect(page.locator("#job-timeout textarea, #job-timeout input").first).to_have_value(
        "360m", timeout=SLOW
    )
    shoot(page, "hardware")
    page.locator("#hand-over").click()
    expect(page.locator("#job-told")).to_contain_text(
        "The job was not started: the Hub does not accept the token", timeout=SLOW
    )
    page.locator("#job-token input").fill(WRITER)
    expect(page.locator("#hand-over")).to_be_enabled(timeout=SLOW)
    page.locator("#hand-over").click()
    expect(page.locator("#status")).to_contain_text("training on Hugging Face Jobs", timeout=SLOW)
    expect(page.locator("#resume")).to_be_disabled()
    expect(page.locator("#pause")).to_be_disabled()
    expect(page.locator("#status")).to_contain_text("of 12", timeout=SLOW)
    shoot(page, "handed-over")
    page.reload()
    open_tab(page, "Train")
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    expect(page.locator("#status")).to_contain_text("Step 12 of 12")
    expect(page.locator("#loss")).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Train it elsewhere").click()
    page.locator("#make-script").click()
    expect(page.locator("#script")).to_contain_text("MB", timeout=SLOW)
    shoot(page, "back")


def test_a_job_is_cancelled_from_the_page(online, the_hub, page):
    page.goto(online.url)
    page.locator("#use-sample").click()
    expect(page.locator("#data-summary")).to_contain_text("300 rows to train on", timeout=SLOW)
    set_steps(page, 2_000, epochs=100)
    open_tab(page, "Train")
    page.get_by_role("button", name="Train it elsewhere").click()
    page.locator("#make-only").click()
    expect(page.locator("#status")).to_contain_text("ready to train", timeout=SLOW)
    page.locator("#job-token input").fill(WRITER)
    page.locator("#job-hardware").click()
    expect(page.locator("#hand-over")).to_be_enabled(timeout=SLOW)
    page.locator("#hand-over").click()
    expect(page.locator("#job-told")).to_contain_text("Handed over", timeout=SLOW)
    page.locator("#cancel-job").click()
    expect(page.locator("#status")).to_contain_text("paused", timeout=SLOW)
    page.get_by_role("button", name="What was chosen for this machine, and why").click()
    expect(page.locator("#adjustments")).to_contain_text("The job was cancelled.", timeout=SLOW)
    expect(page.locator("#resume")).to_be_enabled()
