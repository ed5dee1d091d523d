"""Signing in on a Space, in a real browser: the runs of the account and those of the browser."""

import pytest
from playwright.sync_api import expect

from tests.app_process import App
from tests.browser.conftest import SLOW, start_with_sample_data
from tests.conftest import WRITER
from tests.openid import OpenIdProvider

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    with OpenIdProvider(WRITER) as provider:
        running = App(tmp_path_factory.mktemp("space"), SYSTEM="spaces", **provider.environment)
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
