"""The choice of a base model on the Recipe tab: a list of models, and a search of the Hub."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status

from peft_space.demo import MODELS
from peft_space.web.components import cancel_button, choices_html, picked, show_errors
from peft_space.web.context import EDIT, HIDDEN, Inputs, PageContext, Updates, Values
from peft_space.web.render import models as render_models

LIST = Path(__file__).parents[1] / "models.json"
SEARCH_SECONDS = 5.0
MIN_QUERY = 3
MAX_FOUND = 8


@cache
def listed_models() -> list[dict[str, Any]]:
    """Return the models of the list, smallest first."""
    return json.loads(LIST.read_text(encoding="utf-8"))["models"]


class ModelPicker:
    """The field of the base model, and the cards below it."""

    def __init__(self, page: PageContext):
        self.page = page
        page.base_model.choices = [(name, name) for name in _names()]
        page.base_model.render()
        with gr.Row():
            self.status = gr.Markdown(elem_id="model-status")
            self.cancel = cancel_button("cancel-look-up", scale=0, min_width=110, size="sm")
        self.cards = choices_html(
            "model-cards", value=render_models.cards_html(listed_models(), "", {})
        )

    def show(self, model: str, machine: dict[str, Any]) -> str:
        """Return the cards, with the chosen one marked and what fits on this machine."""
        return render_models.cards_html(listed_models(), model, machine)


def _names() -> list[str]:
    return [*MODELS, *(model["id"] for model in listed_models())]


def build(page: PageContext) -> ModelPicker:
    """Place and wire the picker."""
    picker = ModelPicker(page)

    @show_errors
    def pick(values: Values, event: gr.EventData) -> Updates:
        changed = values[page.recipe_state]["changed"]
        return page.edit_recipe(values, changed | {"base_model": picked(event)})

    picker.cards.click(pick, {page.recipe_state}, page.recipe_outputs, **EDIT)

    def show(values: Values) -> Updates:
        model, machine = values[page.recipe_state]["model"], values[page.machine]
        return {picker.cards: picker.show(model, machine)}

    page.listen("draft", show, {page.machine}, [picker.cards])
    inputs: Inputs = {page.recipe_state, page.machine}
    page.machine.change(show, inputs, picker.cards, **HIDDEN)
    page.base_model.key_up(
        search, None, page.base_model, trigger_mode="always_last", queue=False, **HIDDEN
    )
    return picker


def search(event: gr.KeyUpData) -> Any:
    """Offer the models of the list and of the Hub that match what was typed."""
    typed = (event.input_value or "").strip()
    known = [name for name in _names() if typed.lower() in name.lower()]
    if len(typed) < MIN_QUERY or known:
        return gr.update(choices=_names())
    return gr.update(choices=[*_names(), *search_hub(typed)])


def search_hub(query: str) -> list[str]:
    """Return ids of models on the Hub that match; none if it does not answer in time."""
    parameters: dict[str, Any] = {
        "search": query, "filter": "transformers", "sort": "downloads", "limit": MAX_FOUND,
    }  # fmt: skip
    try:
        # HfApi.list_models takes no timeout
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/models", params=parameters, timeout=SEARCH_SECONDS
        )
        hf_raise_for_status(answer)
        return [str(model["id"]) for model in answer.json()]
    except (httpx2.HTTPError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        return []
