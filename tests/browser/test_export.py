"""A merged model, and what Ollama takes of it, leave the page with their proofs."""

import json
import zipfile

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import SLOW, open_tab, start_with_sample_data

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_merged_model_is_exported_with_its_proof(app, home, page, shoot):
    start_with_sample_data(page, app, 12)
    expect(page.locator("#status")).to_contain_text("finished", timeout=SLOW)
    open_tab(page, "Publish")
    page.get_by_label("vLLM").click()
    expect(page.locator("#deploy-advice")).to_contain_text("Serve it as an adapter, with --max-lora-rank 16", timeout=SLOW)
    page.get_by_label("Somewhere that takes whole models alone").click()
    expect(page.locator("#deploy-advice")).to_contain_text("Merge it, and look at the proof", timeout=SLOW)
    expect(page.locator("#merge-into")).to_be_visible()

    page.locator("#make-zip").click()
    page.locator("#cancel-export").click()
    expect(page.locator("#packing")).to_contain_text("Cancelled. Nothing was kept.", timeout=SLOW)

    page.locator("#export-dtype input").click()
    page.get_by_role("option", name="float32, exact and twice as large").click()
    expect(page.locator("#cancel-export")).to_be_hidden(timeout=SLOW)
    page.get_by_label("the numbers that the adapter was trained on").click()
    page.locator("#make-zip").click()
    expect(page.locator("#packing")).to_contain_text("60 of 60 greedy answers are the same", timeout=SLOW)
    expect(page.locator("#packing")).to_contain_text("✓ Passed.")
    expect(page.locator("#zip")).to_contain_text("demo-on-demo-merged", timeout=SLOW)
    shoot(page, "proven")
    with page.expect_download() as download:
        page.locator("#zip a[download]").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert json.loads(archive.read("merged/proof.json"))["passed"]
        assert "merged/model.safetensors" in archive.namelist()

    page.get_by_label("Ollama", exact=True).click()
    expect(page.locator("#deploy-advice")).to_contain_text("Ollama reads GGUF files", timeout=SLOW)
    page.locator("#make-zip").click()
    expect(page.locator("#packing")).to_contain_text("ollama create", timeout=SLOW)
    expect(page.locator("#zip")).to_contain_text("demo-on-demo-ollama", timeout=SLOW)
    shoot(page, "ollama")
