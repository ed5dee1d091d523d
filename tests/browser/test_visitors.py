"""Two visitors of a Space: each sees only their own runs, also after a reload or restart."""

import pytest
from playwright.sync_api import expect

from peft_space.runs.store import list_runs
from tests.browser.conftest import SLOW, start_with_sample_data, wait_until_finished
from tests.fixtures.app_process import App

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_each_visitor_sees_only_their_own_runs_also_after_a_restart(
    browser, page, shoot, tmp_path, monkeypatch
):
    monkeypatch.setenv("PEFT_SPACE_HOME", str(tmp_path / "home"))
    space = App(tmp_path / "home", SYSTEM="spaces")
    space.start()
    stranger = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    try:
        start_with_sample_data(page, space, 2)
        wait_until_finished(page)
        [owner] = [folder.name for folder in (tmp_path / "home" / "runs").iterdir()]
        [run] = list_runs(owner)

        stranger.goto(space.url)
        expect(stranger.locator("#run-list")).to_contain_text("No runs yet", timeout=SLOW)
        assert run.name not in stranger.content()
        stored = stranger.evaluate("() => Object.keys(localStorage)")
        assert "peft_space_visitor" in stored
        for guess in ('""', f'"{owner}"', f'"{run.directory.name}"', '"local"', "not even JSON"):
            stranger.evaluate("guess => localStorage.setItem('peft_space_visitor', guess)", guess)
            stranger.reload()
            expect(stranger.locator("#machine")).to_contain_text("CPU,", timeout=SLOW)
            expect(stranger.locator("#run-list")).to_contain_text("No runs yet", timeout=SLOW)
            assert run.name not in stranger.content(), guess
        shoot(stranger, "stranger")

        space.kill()
        space.start()
        secret = page.evaluate("() => localStorage.getItem('peft_space_visitor')")
        page.goto(
            space.url
        )  # another port is another site to the browser, which knows nothing of it yet
        page.evaluate("secret => localStorage.setItem('peft_space_visitor', secret)", secret)
        page.reload()
        expect(page.locator("#run-list button.run")).to_have_count(1, timeout=SLOW)
    finally:
        stranger.context.close()
        space.kill()
