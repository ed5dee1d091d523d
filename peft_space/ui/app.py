"""Puts the page together and serves it."""

import os
from typing import Any

import gradio as gr

from peft_space import settings
from peft_space.ui import compare_tab, data_tab, publish_tab, recipe_tab, train_tab
from peft_space.ui.page import Page, new_visitor, tells_errors

TABS = {"1 · Data": data_tab, "2 · Recipe": recipe_tab, "3 · Train": train_tab, "4 · Compare": compare_tab, "5 · Publish": publish_tab}


def build() -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="peft_space") as blocks:
        gr.Markdown("# peft_space\nBring data, train a LoRA adapter, compare it with its base, publish it.")
        page = Page()
        page.run.render()
        with gr.Tabs(elem_id="steps"):
            for title, tab in TABS.items():
                with gr.Tab(title):
                    tab.build(page)

        @tells_errors
        def arrive(values: dict[Any, Any]) -> dict[Any, Any]:
            known = values | {page.visitor: new_visitor(values[page.visitor])}
            return {page.visitor: known[page.visitor], page.run: page.runs(known)}

        blocks.load(arrive, {page.visitor, page.run}, [page.visitor, page.run], api_visibility="private")
    return blocks.queue(max_size=64)


def launch(**options: Any) -> Any:
    """Serve the page: on a Space as the Space wants it, elsewhere on 127.0.0.1."""
    return build().launch(
        server_port=None if settings.on_space() else int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        max_file_size=int(settings.max_file_megabytes() * 2e6),
        run_history=False,
        ssr_mode=False,
        footer_links=[],
        **options,
    )
