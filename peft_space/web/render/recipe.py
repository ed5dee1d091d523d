"""Text and HTML of the Recipe tab, made from results alone: without gradio."""

import html
from typing import Any

from peft_space.formatting import duration, gigabytes
from peft_space.recipe import Recipe
from peft_space.web.render.overview import escape, plain, table_html

BIG_MODEL = 1_000_000_000
"""Parameters from which an adapter over 1 % is large; in smaller models it is normal."""


def words_markdown(words: list[str]) -> str:
    """Return sentences such as "Time: 3 s." as paragraphs that begin in bold."""
    pairs = [sentence.split(": ", 1) for sentence in words]
    return "\n\n".join(f"**{escape(subject)}:** {escape(rest)}" for subject, rest in pairs)


def spaces_html(hardware: list[dict[str, Any]]) -> str:
    """Return one line per hardware of a Space: name, whether training fits, and a minimal time."""
    rows = []
    for item in hardware:
        name = f"{html.escape(item['title'])} <small>{html.escape(item['name'])}</small>"
        verdict = "✓ fits" if item["fits"] else "✗ does not fit"
        need = f"{verdict}: {gigabytes(item['need'])} of {gigabytes(item['memory'])}"
        rows.append([name, need, _at_least(item["least_seconds"]) if item["fits"] else ""])
    return table_html(["Hardware", "Memory", "Time"], rows, "answers advice")


def _at_least(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours and not minutes:
        return "at least seconds"
    return f"at least {hours} h {minutes} min" if hours else f"at least {minutes} min"


def summary_html(
    layers: dict[str, Any] | None, estimate: dict[str, Any] | None, reason: str = ""
) -> str:
    """Return the card that tells memory, time and trainable share.

    Args:
        layers: the result of the operation `layers`; None if no model is chosen.
        estimate: the result of `estimate` or of `dry_run`; None without data.
        reason: why there is nothing to tell, or no estimate.
    """
    if layers is None:
        return _card([("Memory", "–", reason), ("Time", "–", ""), _trainable(None)])
    facts = [_memory(layers, estimate), _time(estimate, reason), _trainable(layers)]
    if estimate:
        rate = estimate.get("estimates", estimate)["learning_rate"]
        facts.append(("Learning rate", f"{rate:g}", ""))
    return _card(facts)


def _card(facts: list[tuple[str, str, str]]) -> str:
    lines = "".join(
        f"<div><dt>{title}</dt><dd><b>{html.escape(figure)}</b>"
        f"{f'<small>{html.escape(note)}</small>' if note else ''}</dd></div>"
        for title, figure, note in facts
    )
    return f'<dl class="summary">{lines}</dl>'


def _memory(layers: dict[str, Any], estimate: dict[str, Any] | None) -> tuple[str, str, str]:
    worst = layers["memory"]
    if estimate and "step_seconds" in estimate:  # a dry run, which has measured it
        return ("Memory", gigabytes(estimate["memory"]), "measured")
    mine = (estimate or {}).get("memory") or worst
    if mine is None:
        return ("Memory", "not known", "The base model comes quantized. Measure a few steps.")
    fits = "free here" if mine["total"] <= mine["free"] else "free: it does not fit"
    note = f"± {mine['error']:.0%}; " if mine["error"] else ""
    note += f"{gigabytes(mine['free'])} {fits}"
    if mine is not worst and worst and worst["total"] > mine["total"]:
        note += f"; up to {gigabytes(worst['total'])} for rows at the length limit"
    if mine["to_fit"]:
        note += f". It would fit with {mine['to_fit'][0]['what']}"
    return ("Memory", f"about {gigabytes(mine['total'])}", note)


def _time(estimate: dict[str, Any] | None, reason: str) -> tuple[str, str, str]:
    if estimate is None:
        return ("Time", "–", reason)
    if "step_seconds" in estimate:
        return ("Time", duration(estimate["seconds"]), "measured")
    time = estimate["time"]
    note = f"{time['steps']:,} steps, estimated"
    if time["between"]:
        least, most = map(duration, time["between"])
        note = f"{least} to {most} for {time['steps']:,} steps"
    return ("Time", f"about {duration(time['seconds'])}", note)


def _trainable(layers: dict[str, Any] | None) -> tuple[str, str, str]:
    if layers is None:
        return ("Trainable", "–", "")
    share = layers["trainable"] / layers["parameters"]
    return ("Trainable", f"{share:.2%}", f"{layers['trainable']:,} of {layers['parameters']:,}")


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
    lines += layers["not_adapted"]
    lines.append(f"This model supports: {', '.join(layers['tasks'])}.")
    trainable, total = layers["trainable"], layers["parameters"]
    share = trainable / total
    lines.append(
        f"**{trainable:,} trainable parameters**, {share:.2%} of {total:,}. "
        + _share_sentence(share, total)
    )
    return "\n\n".join(lines)


def _counted(layers: dict[str, int]) -> list[str]:
    return [f"`{name}` ({count})" for name, count in layers.items()]


def _share_sentence(share: float, num_parameters: int) -> str:
    if share <= 0.01:
        return "Under 1 %, typical for LoRA."
    if num_parameters < BIG_MODEL:
        return "More than the usual 1 %, because the model is small."
    return "More than the usual 1 %: a lower rank or only attention layers would shrink it."


def advice_html(recommendation: dict[str, Any]) -> str:
    """Return the recommended changes, each with its reason and source; then what stays."""
    changes = [advice for advice in recommendation["advice"] if advice["changes"]]
    kept = [advice for advice in recommendation["advice"] if not advice["changes"]]
    shown = _advice_table(changes) if changes else ""
    if kept:
        count = f"{len(kept)} settings stay as they are"
        shown += f"<details><summary>{count}</summary>{_advice_table(kept)}</details>"
    return shown


def _advice_table(advice: list[dict[str, Any]]) -> str:
    rows = [
        [
            html.escape(Recipe.model_fields[one["field"]].title or ""),
            _difference(one),
            f"{html.escape(one['why'])} <small>(source: {html.escape(one['source'])})</small>",
        ]
        for one in advice
    ]
    return table_html(["Setting", "Change", "Why"], rows, "answers advice")


def _difference(advice: dict[str, Any]) -> str:
    now = html.escape(plain(advice["now"]))
    if not advice["changes"]:
        return f"{now} (keep)"
    return f"{now} → <strong>{html.escape(plain(advice['value']))}</strong>"


def red_lines_markdown(lines: list[dict[str, Any]]) -> str:
    """Return the recipe's errors and its warnings."""
    titles = {"stop": "**Not possible.**"}
    return "\n".join(f"- {titles.get(line['kind'], '⚠')} {escape(line['words'])}" for line in lines)


def changed_html(changed: dict[str, Any]) -> str:
    """Return the changed settings as buttons that reset them."""
    known = {name: value for name, value in changed.items() if name != "base_model"}
    if not known:
        return '<p class="none">All settings are at their defaults.</p>'
    buttons = []
    for name, value in known.items():
        field = Recipe.model_fields[name]
        title, shown = html.escape(field.title or ""), html.escape(plain(value))
        default = html.escape(plain(field.default))
        label = f"Reset {title} to {default}"
        buttons.append(
            f'<button class="chip" data-value="{name}" title="{label}" aria-label="{label}">'
            f"{title} <b>{shown}</b> <span aria-hidden=true>↺</span></button>"
        )
    return f'<div class="chips"><span>Changed:</span>{"".join(buttons)}</div>'


def settings_html(recipe: Recipe) -> str:
    """Return the settings of a run: those that differ from the defaults, then the others."""
    changed = recipe.model_dump(exclude_defaults=True)
    rows = {
        name: [html.escape(field.title or ""), html.escape(plain(getattr(recipe, name)))]
        for name, field in Recipe.model_fields.items()
    }
    titles = ["Setting", "Value"]
    first = [rows[name] for name in rows if name in changed or name == "base_model"]
    rest = [rows[name] for name in rows if name not in changed and name != "base_model"]
    others = table_html(titles, rest, "answers advice")
    return (
        table_html(titles, first, "answers advice")
        + f"<details><summary>{len(rest)} settings at their defaults</summary>{others}</details>"
    )
