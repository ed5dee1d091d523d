"""HTML of the cards of base models, made without gradio."""

import html
from typing import Any

from peft_space.formatting import gigabytes

TOY = {
    "id": "demo",
    "parameters": 4_331_264,
    "languages": "English",
    "license": "Apache 2.0",
    "gated": False,
    "good_for": "A toy for the sample data. It cannot learn your task.",
}
"""The built-in model, as the list describes models."""


def cards_html(models: list[dict[str, Any]], chosen: str, machine: dict[str, Any]) -> str:
    """Return one card per model: size, languages, license, and if it fits here.

    Args:
        models: of the list.
        chosen: the id of the chosen model.
        machine: the result of the operation `machine`; empty until it is known.
    """
    cards = [_card_html(model, model["id"] == chosen, machine) for model in [*models, TOY]]
    return f'<div class="cards models">{"".join(cards)}</div>'


def _card_html(model: dict[str, Any], is_chosen: bool, machine: dict[str, Any]) -> str:
    owner, _, name = model["id"].rpartition("/")
    facts = [size(model["parameters"]), model["languages"]]
    if "context" in model:
        facts.append(f"{model['context'] // 1024:,}k context")
    facts.append(model["license"] + (" (gated)" if model["gated"] else ""))
    kind, words = badge(model, machine)
    return (
        f'<button class="card" data-value="{html.escape(model["id"])}" aria-pressed="{is_chosen}">'
        f"<b>{html.escape(name)}</b> <small>{html.escape(owner)}</small>"
        f"<span>{html.escape(model['good_for'])}</span>"
        f"<small>{html.escape(' · '.join(facts))}</small>"
        f'<span class="badge {kind}">{html.escape(words)}</span></button>'
    )


def size(parameters: int) -> str:
    """Return a number of parameters as people write it: 135 M, 1.7 B."""
    if parameters < 1e9:
        return f"{parameters / 1e6:.0f} M"
    return f"{parameters / 1e9:.1f} B"


def badge(model: dict[str, Any], machine: dict[str, Any]) -> tuple[str, str]:
    """Return the kind of a badge and its words: if the model can be trained on this machine.

    The list has the estimated memory of a training with the default settings.
    """
    if model["id"] == TOY["id"]:
        return "toy", "toy"
    if not machine:
        return "", "checking memory"
    needs, free = model["memory"][machine["device"]], machine["free"]
    if needs["none"] <= free:
        return "ok", "fits"
    if needs["nf4"] <= free:
        return "warn", "fits in 4-bit"
    return "bad", f"needs {gigabytes(min(needs.values()) - free)} more"
