"""The journey with pictures: an archive in, a new picture answered, an adapter out."""

import re
import zipfile

import pytest
from playwright.sync_api import expect

from peft_space.data.dataset import load_run_data
from peft_space.evaluation.results import read_scores
from peft_space.runs.store import list_runs
from tests.browser.conftest import (
    SLOW,
    open_inner_tab,
    open_tab,
    press_start,
    set_steps,
    upload,
    visit,
)
from tests.fixtures.pictures import COLORS, captioned, picture
from tests.fixtures.vision_models import idefics3

pytestmark = [pytest.mark.browser, pytest.mark.slow]
IS_SHOWN = "image => image.complete && image.naturalWidth > 1"


def expect_picture(locator):
    """Expect that a picture has been loaded, not only placed."""
    expect(locator).to_be_visible(timeout=2 * SLOW)
    assert locator.evaluate(IS_SHOWN)


def test_the_journey_from_an_archive_of_pictures_to_the_adapter(app, home, page, shoot, tmp_path):
    base = idefics3(tmp_path / "base")
    archive = captioned(tmp_path / "colors.zip", size=(60, 40))
    visit(page, app)
    upload(page, archive)
    expect(page.locator("#data-tiles")).to_contain_text(re.compile(r"9.*1", re.DOTALL))

    open_tab(page, "Recipe")
    model = page.locator("#recipe-base_model input")
    model.fill(base)
    model.press("Enter")
    open_tab(page, "Data")
    expect_picture(page.locator("#preview .row-pictures img").first)
    expect(page.locator("#preview figcaption").first).to_contain_text("34 tokens")
    expect(page.locator("#preview .trained").first).to_be_visible(timeout=SLOW)
    shoot(page, "1-data")

    set_steps(page, 4)
    press_start(page)
    expect(page.locator("#status")).to_contain_text("finished", timeout=3 * SLOW)
    [run] = [run for run in list_runs("local") if "colors" in run.name]
    assert len(load_run_data(run).train.picture_files()) == len(COLORS) - 1

    open_tab(page, "Compare")
    open_inner_tab(page, "Your prompts")
    (tmp_path / "new.png").write_bytes(picture("cyan", (50, 40)))
    page.locator("#prompt-pictures input[type=file]").set_input_files(tmp_path / "new.png")
    page.locator("#prompts textarea").fill("What does the picture show?")
    page.locator("#generate").click()
    expect_picture(page.locator("#answers .pictures img").first)
    expect(page.locator("#answers")).to_contain_text("the same pictures", timeout=SLOW)
    page.locator("#evaluate").click()
    expect(page.locator("#verdict")).to_contain_text("1 test row", timeout=SLOW)
    open_inner_tab(page, "Test examples")
    expect_picture(page.locator("#examples-scored .pictures img").first)
    shoot(page, "2-compare")
    assert read_scores(run).samples[0]["pictures"]

    open_inner_tab(page, "Chat")
    page.locator("#chat-pictures input[type=file]").set_input_files(tmp_path / "new.png")
    for number, question in enumerate(("What does the picture show?", "And which color?"), 1):
        page.locator("#chat-message textarea").fill(question)
        page.locator("#chat-send").click()
        expect(page.locator("#chat-answers .prompt")).to_have_count(number, timeout=SLOW)
        fair = "the same pictures" if number == 1 else "Fair comparison verified"
        expect(page.locator("#chat-answers")).to_contain_text(fair, timeout=SLOW)
    expect(page.locator("#chat-answers .pictures img")).to_have_count(1)
    expect_picture(page.locator("#chat-answers .pictures img"))
    shoot(page, "3-chat")

    open_tab(page, "Publish")
    page.locator("#export").click()
    expect(page.locator("#zip")).to_contain_text(".zip", timeout=SLOW)
    with page.expect_download() as download:
        page.locator("#zip a[download]").first.click()
    with zipfile.ZipFile(download.value.path()) as exported:
        names = exported.namelist()
    assert {"adapter/adapter_model.safetensors", "adapter/processor_config.json"} <= set(names)
    shoot(page, "4-publish")
