"""The Publish tab: verified exports of a merged model and for Ollama, and a pushed card."""

import json
import re
import zipfile

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import (
    SLOW,
    open_newest_run,
    open_panel,
    open_tab,
    start_with_sample_data,
    wait_until_finished,
)
from tests.conftest import WRITER
from tests.fixtures.app_process import App

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_merged_model_is_exported_and_verified(app, home, page, shoot):
    start_with_sample_data(page, app, 12)
    wait_until_finished(page)
    open_tab(page, "Publish")
    page.locator("#deploy-target input[value=vLLM]").click()
    expect(page.locator("#deploy-advice")).to_contain_text("--max-lora-rank 16", timeout=SLOW)
    expect(page.locator("#export-target input:checked")).to_have_value("adapter")
    page.locator("#deploy-target input[value=whole]").click()
    expect(page.locator("#export-target")).to_be_hidden(timeout=SLOW)  # one format only
    expect(page.locator("#merge-into")).to_be_visible()

    page.locator("#export").click()
    page.locator("#cancel-export").click()
    expect(page.locator("#export-progress")).to_contain_text(
        "Canceled. Nothing was kept.", timeout=SLOW
    )

    page.locator("#export-dtype input").click()
    page.get_by_role("option", name="float32, exact and twice as large").click()
    expect(page.locator("#cancel-export")).to_be_hidden(timeout=SLOW)
    page.locator("#merge-into input[value=dequantized]").click()
    page.locator("#export").click()
    expect(page.locator("#export-progress")).to_contain_text(
        re.compile("60.60|60 of 60"), timeout=SLOW
    )
    progress = page.locator("#export-progress")
    expect(progress).to_contain_text("✓")
    # the exact commands of this target alone, with the names of the files in the .zip
    expect(progress).to_contain_text("unzip demo-on-demo-merged")
    expect(progress).not_to_contain_text("path/of")
    expect(progress).not_to_contain_text("peft_space/demo")
    expect(progress).not_to_contain_text("ollama create")
    expect(page.locator("#zip")).to_contain_text("demo-on-demo-merged", timeout=SLOW)
    shoot(page, "proven")
    with page.expect_download() as download:
        page.locator("#zip a[download]").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert json.loads(archive.read("merged/proof.json"))["passed"]
        assert "merged/model.safetensors" in archive.namelist()

    page.locator("#deploy-target input[value=Ollama]").click()
    expect(page.locator("#export-precision")).to_be_visible(timeout=SLOW)
    expect(page.locator("#export-target")).to_be_hidden()
    expect(page.locator("#zip")).to_be_hidden()  # it is for another target
    expect(page.locator("#export-progress")).not_to_contain_text("✓")
    page.locator("#export").click()
    expect(page.locator("#export-progress")).to_contain_text("ollama create", timeout=SLOW)
    expect(page.locator("#zip")).to_contain_text("demo-on-demo-ollama", timeout=SLOW)
    shoot(page, "ollama")


def test_the_card_is_previewed_edited_and_pushed(app, home, page, shoot, hub_server):
    hub_server.forget()
    start_with_sample_data(page, app, 2)
    wait_until_finished(page)
    online = App(
        app.home,
        HF_ENDPOINT=hub_server.url,
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
        NO_PROXY="127.0.0.1,localhost",
    )
    online.start()
    try:
        open_newest_run(page, online)
        open_tab(page, "Publish")
        expect(page.locator("#push")).to_be_enabled(timeout=SLOW)
        open_panel(page, "card-panel")
        expect(page.locator("#card-shown")).to_contain_text("demo", timeout=SLOW)
        assert (
            page.locator("#card-shown img").first.evaluate(
                "picture => picture.decode().then(() => picture.naturalWidth)"
            )
            > 100
        )
        height = page.evaluate("document.documentElement.scrollHeight")
        assert height < 5_000, "the card scrolls inside"
        editor = page.locator("#card .cm-content")
        editor.click()
        page.keyboard.press("Control+End")
        page.keyboard.type("Seen by a person.")
        expect(page.locator("#card-shown")).to_contain_text("Seen by a person.", timeout=SLOW)
        shoot(page, "card")
        page.locator("#repo textarea, #repo input").first.fill("maria/adapter")
        page.locator("#token input").fill(WRITER)
        page.locator("#push").click()
        expect(page.locator("#pushed")).to_contain_text("Pushed to", timeout=SLOW)
        expect(page.locator("#token input")).to_have_value("")
        pushed = hub_server.repositories["maria/adapter"]
        assert pushed.private
        assert pushed.files["README.md"].decode().rstrip().endswith("Seen by a person.")

        page.locator("#what-to-push input[value=export]").click()
        page.locator("#deploy-target input[value=whole]").click()
        expect(page.locator("#merge-into")).to_be_visible(timeout=SLOW)
        page.locator("#repo textarea, #repo input").first.fill("maria/merged")
        page.locator("#token input").fill(WRITER)
        page.locator("#push").click()
        expect(page.locator("#pushed a")).to_have_attribute(
            "href", f"{hub_server.url}/maria/merged", timeout=SLOW
        )
        assert json.loads(hub_server.repositories["maria/merged"].files["proof.json"])["passed"]
        shoot(page, "pushed")
    finally:
        online.kill()
