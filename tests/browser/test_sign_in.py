"""Signing in on a Space: the account's runs and the browser's runs."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import (
    SLOW,
    open_all_runs,
    open_panel,
    show_run,
    start_with_sample_data,
    wait_until_finished,
)
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
    """Check that the visitor has `count` runs to choose from."""
    expect(page.locator("#run-list button.new")).to_be_attached(timeout=SLOW)
    expect(page.locator("#run-list button.run")).to_have_count(count, timeout=SLOW)


def test_signing_in_adds_the_runs_of_the_account_and_loses_none(space, page, browser, shoot):
    start_with_sample_data(page, space, 2)
    wait_until_finished(page)
    expect(page.locator("#storage-notice")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#download-adapter").click()
    assert download.value.suggested_filename.endswith("-adapter.zip")

    press_sign_in(page, "Logout (maria)")
    listed(page, 1)
    start_with_sample_data(page, space, 3)
    wait_until_finished(page)
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


def test_a_signed_in_visitor_backs_up_and_restores_without_a_token(space, the_hub, page):
    start_with_sample_data(page, space, 2)
    wait_until_finished(page)
    open_all_runs(page)
    open_panel(page, "backup-panel")
    page.locator("#backup").click()
    expect(page.locator("#backup-progress")).to_contain_text("⚠", timeout=SLOW)
    page.locator("#backup-repo textarea, #backup-repo input").first.fill("maria/kept")
    page.locator("#backup").click()
    expect(page.locator("#backup-progress")).to_contain_text("token", timeout=SLOW)
    page.reload()
    expect(page.locator("#run-list button.run").first).to_be_visible(timeout=SLOW)
    press_sign_in(page, "Logout (maria)")
    expect(page.locator("#run-list button.run").first).to_be_visible(timeout=SLOW)
    had = page.locator("#run-list button.run").count()
    show_run(page)
    open_all_runs(page)
    open_panel(page, "backup-panel")
    page.locator("#backup-repo textarea, #backup-repo input").first.fill("maria/kept")
    page.locator("#backup").click()
    expect(page.locator("#backup-progress")).to_contain_text(
        f"Backed up to {the_hub.url}/datasets/maria/kept", timeout=SLOW
    )
    assert the_hub.repositories["datasets/maria/kept"].private
    page.locator("#restore").click()
    listed(page, had + 1)
