"""The errors of `spaces` still have the titles and texts that the app parses."""

import importlib.util
from pathlib import Path

import gradio as gr
import pytest

from peft_space.compat.spaces import (
    MESSAGES,
    TITLES,
    GpuError,
    granted_seconds,
    parse_gpu_error,
    requested_seconds,
)


@pytest.fixture(scope="module")
def source():
    """The source of the installed package, without importing it."""
    folder = Path(importlib.util.find_spec("spaces").submodule_search_locations[0], "zero")
    return "\n".join(path.read_text() for path in folder.rglob("*.py"))


@pytest.mark.parametrize("text", [*TITLES, *MESSAGES])
def test_spaces_still_raises_this_title_or_message(source, text):
    assert f'"{text}' in source


def test_spaces_still_reports_requested_and_left_seconds_in_this_form(source):
    assert 'f"({requested}s requested vs. {res.left}s left). "' in source


@pytest.mark.parametrize(
    ("title", "message", "expected"),
    [
        (
            "ZeroGPU quota exceeded",
            "You have exceeded your free ZeroGPU quota (60s requested vs. -2s left). Try again",
            GpuError("runtime.gpu_quota_exceeded", 60, -2),
        ),
        (
            "ZeroGPU quota exceeded",
            "You have exceeded your ZeroGPU runs limit.",
            GpuError("runtime.gpu_quota_exceeded"),
        ),
        (
            "ZeroGPU client error",
            "No GPU was available after 60s",
            GpuError("runtime.no_gpu_available"),
        ),
        (
            "ZeroGPU client error",
            "Expired ZeroGPU proxy token",
            GpuError("runtime.sign_in_expired"),
        ),
        ("ZeroGPU worker error", "GPU task aborted", GpuError("runtime.gpu_taken_away")),
        ("Error", "anything else", None),
    ],
)
def test_an_error_is_recognized_by_its_title_or_message(title, message, expected):
    assert parse_gpu_error(gr.Error(message, title=title)) == expected


@pytest.mark.parametrize(
    ("model", "asked", "requested", "granted"),
    [
        ("NVIDIA H200", 60, 60, 60),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 60, 40, 60),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 20, 13, 19),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1, 1, 1),
    ],
)
def test_no_more_seconds_are_charged_than_the_app_counts(
    model, asked, requested, granted, monkeypatch
):
    from spaces.zero import config

    monkeypatch.setattr(config, "_read_gpu_information", lambda: f"Model: \t {model}\n")
    config.get_config.cache_clear()
    try:
        assert (requested_seconds(asked), granted_seconds(asked)) == (requested, granted)
    finally:
        config.get_config.cache_clear()
