"""What the Recipe tab shows, from results alone: without gradio."""

import html
from typing import Any

from peft_space.formatting import gigabytes
from peft_space.recipe import Recipe
from peft_space.web.render.overview import escape, plain


def layers_markdown(found: dict[str, Any]) -> str:
    """Which layers get an adapter, which do not, and how many parameters that trains."""
    wrapped = [f"`{name}` ({count})" for name, count in found["wrapped"].items()]
    left = {name: count - found["wrapped"].get(name, 0) for name, count in found["layers"].items()}
    others = [f"`{name}` ({count})" for name, count in left.items() if count]
    others += [f"the output layer `{found['head']}`"] if found["head"] else []
    share = found["trainable"] / found["parameters"]
    lines = [f"**{sum(found['wrapped'].values())} layers get an adapter:** {', '.join(wrapped)}."]
    if others:
        lines.append(f"Without one: {', '.join(others)}.")
    if found["saved"]:
        lines.append(
            f"Trained in full, and kept with the adapter: {', '.join(f'`{name}`' for name in found['saved'])}."
        )
    if found["fused_experts"]:
        taken = (
            f", and layers named {', '.join(found['taken_for_experts'])}, which PEFT takes for them"
            if found["taken_for_experts"]
            else ""
        )
        lines.append(
            f"{found['fused_experts']} blocks of experts get no adapter, because each is one block of numbers{taken}."
        )
    lines.append(f"Models of this kind can learn: {', '.join(found['tasks'])}.")
    lines.append(
        f"**{found['trainable']:,} trainable parameters**, {share:.2%} of {found['parameters']:,}. {_share_in_words(share, found['parameters'])}"
    )
    if found["memory"]:
        lines.append(_memory_in_words(found["memory"]))
    lines.append(serving_markdown(found["serving"]))
    return "\n\n".join(lines)


def serving_markdown(ways: list[dict[str, Any]]) -> str:
    """How engines can serve the adapter."""
    return "**Where it can be deployed.** " + " ".join(
        f"**{way['engine']}:** {escape(way['why'])}" for way in ways
    )


def _memory_in_words(memory: dict[str, Any]) -> str:
    """What training will need, and what would make it fit."""
    how = ", with gradient checkpointing" if memory["gradient_checkpointing"] else ""
    need = f"**About {gigabytes(memory['total'])} of memory** in training{how}, if rows are as long as the limit of {memory['length']:,} tokens"
    largest = sorted(memory["parts"].items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in largest)
    if memory["total"] <= memory["free"]:
        return f"{need} (estimated: {parts}). {gigabytes(memory['free'])} are free here."
    ways = "; or ".join(f"{one['what']} ({gigabytes(one['total'])})" for one in memory["to_fit"])
    remedy = (
        f"It would fit with {ways}."
        if ways
        else "No single change makes it fit: choose a smaller base model, or a larger machine."
    )
    return f"⚠ {need} (estimated: {parts}), and {gigabytes(memory['free'])} are free here. {remedy}"


def _share_in_words(share: float, parameters: int) -> str:
    if share <= 0.01:
        return "Below 1 %, as usual for LoRA."
    if parameters < 1_000_000_000:
        return "More than the usual 1 %, because the model is small: an adapter's size grows with the width of the layers, the model's with its square."
    return "More than the usual 1 %: a lower rank, or attention alone, would do with less."


def advice_html(found: dict[str, Any]) -> str:
    """One line a choice: what is chosen now, what is recommended, why, and where that comes from."""
    lines = []
    for one in found["advice"]:
        recommended = (
            f"<strong>{html.escape(plain(one['value']))}</strong>" if one["changes"] else "as it is"
        )
        why = f"{html.escape(one['why'])} <small>({html.escape(one['source'])})</small>"
        cells = {
            "Choice": html.escape(Recipe.model_fields[one["field"]].title or ""),
            "Now": html.escape(plain(one["now"])),
            "Recommended": recommended,
            "Why": why,
        }
        lines.append(
            "<tr>"
            + "".join(f'<td data-title="{title}">{cell}</td>' for title, cell in cells.items())
            + "</tr>"
        )
    head = "".join(
        f'<th scope="col">{title}</th>' for title in ("Choice", "Now", "Recommended", "Why")
    )
    return f'<table class="answers advice"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def red_lines_markdown(lines: list[dict[str, Any]]) -> str:
    """What a recipe must not do, and what it had better not."""
    return "\n".join(
        f"- {'⛔' if line['kind'] == 'stop' else '⚠'} {escape(line['words'])}" for line in lines
    )
