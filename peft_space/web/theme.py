"""The page's theme, light and dark. `style.css` holds the rules that a theme cannot express."""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("style.css")

TRAINING, TEST, DANGER = "#0d9488", "#d97706", "#dc2626"
"""Colors of plots: at least 3 to 1 against white and slate (WCAG 1.4.11). The style sheet has the
same three as tokens, and slate for the base model."""


def theme() -> gr.themes.Base:
    """Return quiet grays and one green, with text at least 4.5 to 1 on its background (WCAG AA)."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_cancel_background_fill="#dc2626",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#b91c1c",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_cancel_text_color="white",
        button_cancel_text_color_dark="white",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        block_radius="12px",
        button_large_radius="8px",
        button_medium_radius="8px",
        button_small_radius="8px",
        button_primary_text_color_dark="white",
    )
