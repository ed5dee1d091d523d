"""Signing in on a Space, in a real browser: the runs of the account and those of the browser."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SLOW, open_tab, start_with_sample_data
from tests.conftest import WRITER
from tests.fixtures.app_process import App
from tests.fixtures.fake_oidc import OpenIdProvider

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def space(hub_environment, tmp_path_factory):
    hub = {
        name: hub_environment[name]
        for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME", "NO_PROXY")
    }
    with OpenIdProvider(WRITER) as provider:
        running = App(
            tmp_path_factory.mktemp("space"), SYSTEM="spaces", **hub, **provider.environment
        )
        running.start()
        yield running
        running.kill()


def press_sign_in(page, shows):
    page.locator("#sign-in").click()
    expect(page.locator("#sign-in")).to_contain_text(shows, timeout=SLOW)


def listed(page, count):
    """The page offers so many runs to the visitor."""
    if not count:
        return expect(page.locator("#run")).to_have_count(0)
    expect(page.locator("#run input")).to_be_visible(timeout=SLOW)
    page.locator("#run input").click()
    expect(page.locator("#run [role=option]")).to_have_count(count, timeout=10_000)
    page.keyboard.press("Escape")


def test_signing_in_adds_the_runs_of_the_account_and_loses_none(space, page, browser, shoot):
    start_with_sample_data(page, space, 2)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    expect(page.locator("#not-kept")).to_contain_text("The disk of this Space is not kept")
    with page.expect_download() as download:
        page.locator("#download-adapter").click()
    assert download.value.suggested_filename.endswith("-adapter.zip")

    press_sign_in(page, "Logout (maria)")
    listed(page, 1)
    start_with_sample_data(page, space, 3)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    listed(page, 2)
    shoot(page, "signed-in")

    elsewhere = browser.new_context()
    other = elsewhere.new_page()
    other.goto(space.url)
    expect(other.locator("#sign-in")).to_contain_text("Sign in with Hugging Face", timeout=SLOW)
    listed(other, 0)
    press_sign_in(other, "Logout (maria)")
    listed(other, 1)
    elsewhere.close()

    press_sign_in(page, "Sign in with Hugging Face")
    listed(page, 1)


def test_who_is_signed_in_saves_a_run_and_takes_it_up_without_a_token(space, the_hub, page):
    start_with_sample_data(page, space, 2)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    open_tab(page, "Runs")
    page.get_by_role("button", name="Save a run, and go on elsewhere").click()
    page.locator("#save").click()
    expect(page.locator("#saving")).to_contain_text("'' is no repository name", timeout=SLOW)
    page.locator("#save-repo textarea, #save-repo input").first.fill("maria/kept")
    page.locator("#save").click()
    expect(page.locator("#saving")).to_contain_text(
        "There is no Hub token. Sign in at the top of the page", timeout=SLOW
    )
    page.reload()
    press_sign_in(page, "Logout (maria)")
    expect(page.locator("#run input")).to_be_visible(timeout=SLOW)
    page.locator("#run input").click()
    had = page.locator("#run [role=option]").count()
    page.keyboard.press("Escape")
    open_tab(page, "Runs")
    page.get_by_role("button", name="Save a run, and go on elsewhere").click()
    page.locator("#save-repo textarea, #save-repo input").first.fill("maria/kept")
    page.locator("#save").click()
    expect(page.locator("#saving")).to_contain_text(
        f"Saved to {the_hub.url}/datasets/maria/kept", timeout=SLOW
    )
    assert the_hub.repositories["datasets/maria/kept"].private
    page.locator("#take-up").click()
    expect(page.locator("#saving")).to_contain_text("It is chosen as the run now", timeout=SLOW)
    listed(page, had + 1)
