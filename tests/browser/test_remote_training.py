"""A run is trained by a job, watched on the Train tab, canceled, and written as a script."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import (
    SLOW,
    open_panel,
    open_tab,
    set_steps,
    use_sample_data,
    visit,
    wait_until_finished,
)
from tests.conftest import WRITER
from tests.fixtures.app_process import App

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def online(the_hub, hub_environment, tmp_path):
    """Start the app with a Hub whose jobs run."""
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


def test_a_job_is_started_and_watched_and_its_adapter_comes_back(online, the_hub, page, shoot):
    visit(page, online)
    use_sample_data(page)
    set_steps(page, 12)
    open_tab(page, "Train")
    open_panel(page, "jobs")
    page.locator("#prepare-run").click()
    expect(page.locator("#status")).to_contain_text("ready", timeout=SLOW)
    page.locator("#job-token input").fill("hf_wrong")
    page.locator("#job-hardware").click()
    expect(page.locator("#job-offers")).to_contain_text("cpu-basic", timeout=SLOW)
    expect(page.locator("#job-offers")).to_contain_text("an hour")
    expect(page.locator("#submit-job")).to_be_enabled(timeout=SLOW)
    page.locator("#job-flavor input").click()
    page.get_by_role("option", name="cpu-basic").click()
    expect(page.locator("#job-timeout textarea, #job-timeout input").first).to_have_value(
        "360m", timeout=SLOW
    )
    shoot(page, "hardware")
    page.locator("#submit-job").click()
    expect(page.locator("#job-progress")).to_contain_text("⚠", timeout=SLOW)
    expect(page.locator("#job-progress")).to_contain_text("token")
    page.locator("#job-token input").fill(WRITER)
    expect(page.locator("#submit-job")).to_be_enabled(timeout=SLOW)
    page.locator("#submit-job").click()
    expect(page.locator("#status")).to_contain_text("training on Hugging Face Jobs", timeout=SLOW)
    expect(page.locator("#resume")).to_be_hidden()
    expect(page.locator("#pause")).to_be_hidden()
    expect(page.locator("#tiles")).to_contain_text("of 12", timeout=SLOW)
    shoot(page, "submitted")
    page.reload()
    wait_until_finished(page)
    expect(page.locator("#tiles")).to_contain_text("Step 12 of 12")
    expect(page.locator("#loss")).to_be_visible(timeout=SLOW)
    open_panel(page, "jobs")
    page.locator("#make-script").click()
    expect(page.locator("#script")).to_contain_text("MB", timeout=SLOW)
    shoot(page, "back")


def test_a_job_is_canceled_from_the_page(online, the_hub, page):
    visit(page, online)
    use_sample_data(page)
    set_steps(page, 2_000, epochs=100)
    open_tab(page, "Train")
    open_panel(page, "jobs")
    page.locator("#prepare-run").click()
    expect(page.locator("#status")).to_contain_text("ready", timeout=SLOW)
    page.locator("#job-token input").fill(WRITER)
    page.locator("#job-hardware").click()
    expect(page.locator("#submit-job")).to_be_enabled(timeout=SLOW)
    page.locator("#submit-job").click()
    expect(page.locator("#job-progress")).to_contain_text("Started", timeout=SLOW)
    page.locator("#cancel-job").click()
    expect(page.locator("#status")).to_contain_text("paused", timeout=SLOW)
    open_panel(page, "automatic-settings")
    expect(page.locator("#adjustments")).to_contain_text("job", timeout=SLOW)
    expect(page.locator("#resume")).to_be_visible()
