"""Text and tables of the Recipe tab, made from results alone: without gradio."""

import html
from typing import Any

from peft_space.formatting import gigabytes
from peft_space.recipe import Recipe
from peft_space.web.render.overview import escape, plain, table_html

BIG_MODEL = 1_000_000_000
"""Parameters from which an adapter over 1 % is large; in smaller models it is normal."""


def layers_markdown(layers: dict[str, Any]) -> str:
    """Return which layers get an adapter, which do not, and how many parameters that trains."""
    adapted = layers["wrapped"]
    rest = {name: count - adapted.get(name, 0) for name, count in layers["layers"].items()}
    others = _counted({name: count for name, count in rest.items() if count})
    others += [f"`{layers['head']}` (output layer)"] if layers["head"] else []
    lines = [f"**{sum(adapted.values())} layers get an adapter:** {', '.join(_counted(adapted))}."]
    if others:
        lines.append(f"Not adapted: {', '.join(others)}.")
    if layers["saved"]:
        saved = ", ".join(f"`{name}`" for name in layers["saved"])
        lines.append(f"Fully trained and saved with the adapter: {saved}.")
    if layers["fused_experts"]:
        lines.append(_experts_sentence(layers["fused_experts"], layers["taken_for_experts"]))
    lines.append(f"This model supports: {', '.join(layers['tasks'])}.")
    trainable, total = layers["trainable"], layers["parameters"]
    share = trainable / total
    lines.append(
        f"**{trainable:,} trainable parameters**, {share:.2%} of {total:,}. "
        + _share_sentence(share, total)
    )
    if layers["memory"]:
        lines.append(_memory_sentence(layers["memory"]))
    lines.append(serving_markdown(layers["serving"]))
    return "\n\n".join(lines)


def _counted(layers: dict[str, int]) -> list[str]:
    return [f"`{name}` ({count})" for name, count in layers.items()]


def _experts_sentence(num_blocks: int, mistaken: list[str]) -> str:
    names = f", and neither do layers named {', '.join(mistaken)}: PEFT treats them as experts"
    return (
        f"{num_blocks} blocks of experts get no adapter, because each is stored as one tensor"
        f"{names if mistaken else ''}."
    )


def serving_markdown(engines: list[dict[str, Any]]) -> str:
    """Return how inference engines can serve the adapter."""
    support = " ".join(f"**{engine['engine']}:** {escape(engine['why'])}" for engine in engines)
    return f"**Serving.** {support}"


def _memory_sentence(memory: dict[str, Any]) -> str:
    """Say how much memory training needs, and what would make it fit."""
    how = ", with gradient checkpointing" if memory["gradient_checkpointing"] else ""
    largest = sorted(memory["parts"].items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in largest)
    need = (
        f"**Up to {gigabytes(memory['total'])} of memory** in training{how}, if every row has "
        f"{memory['length']:,} tokens (estimated: {parts})"
    )
    free = f"{gigabytes(memory['free'])} are free here."
    if memory["total"] <= memory["free"]:
        return f"{need}. {free}"
    ways = "; or ".join(f"{way['what']} ({gigabytes(way['total'])})" for way in memory["to_fit"])
    too_large = (
        "This model is too large for this machine. Choose a smaller one, or train on Hugging Face."
    )
    return f"⚠ {need}. Only {free} " + (f"It would fit with {ways}." if ways else too_large)


def _share_sentence(share: float, num_parameters: int) -> str:
    if share <= 0.01:
        return "Under 1 %, typical for LoRA."
    if num_parameters < BIG_MODEL:
        return "More than the usual 1 %, because the model is small."
    return "More than the usual 1 %: a lower rank or only attention layers would shrink it."


def advice_html(recommendation: dict[str, Any]) -> str:
    """Return one line per setting: current value, recommended value, reason and its source."""
    rows = []
    for advice in recommendation["advice"]:
        value = f"<strong>{html.escape(plain(advice['value']))}</strong>"
        rows.append(
            [
                html.escape(Recipe.model_fields[advice["field"]].title or ""),
                html.escape(plain(advice["now"])),
                value if advice["changes"] else "keep",
                f"{html.escape(advice['why'])} <small>({html.escape(advice['source'])})</small>",
            ]
        )
    return table_html(["Setting", "Now", "Recommended", "Why"], rows, "answers advice")


def red_lines_markdown(lines: list[dict[str, Any]]) -> str:
    """Return what a recipe must not do (⛔), and what it should avoid (⚠)."""
    signs = {"stop": "⛔"}
    return "\n".join(f"- {signs.get(line['kind'], '⚠')} {escape(line['words'])}" for line in lines)
