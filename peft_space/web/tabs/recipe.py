"""The Recipe tab: a recommendation, the form, the adapted layers, and recipes as JSON files."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from peft_space.formatting import gigabytes
from peft_space.recipe import Recipe, make_recipe, read_recipe
from peft_space.web.components import Operation, cancel_button, cpu_notice, show_errors
from peft_space.web.context import HIDDEN, PRIVATE, PageContext, Updates, Values
from peft_space.web.panels import ranks as ranks_panel
from peft_space.web.recipe_form import GROUPS
from peft_space.web.render.overview import escape, plain, table_html


def build(page: PageContext) -> None:
    """Place and wire the tab."""
    gr.Markdown(
        "The defaults work for most tasks. "
        "Get a recommendation for your data, or adjust settings yourself."
    )
    _build_recommendation(page)
    for group, title in GROUPS.items():
        is_open = group == "model"
        with gr.Accordion(title, open=is_open, elem_id=f"group-{group}"), gr.Row(equal_height=True):
            page.form.place(group)
    _build_layers(page)
    _build_estimates(page)
    ranks_panel.build_rank_sweep(page)
    _build_file(page)


def _build_recommendation(page: PageContext) -> None:
    with gr.Row():
        recommend = gr.Button("Recommend settings", variant="primary", elem_id="recommend")
        apply = gr.Button("Apply recommendation", visible=False, elem_id="apply-recommendation")
        cancel = cancel_button("cancel-recommend")
    cpu_notice(
        "The recommendation is computed",
        "It takes seconds: models over 300 million parameters are not tried on your rows.",
    )
    progress = gr.Markdown(elem_id="recommend-progress")
    table = gr.HTML(visible=False, elem_id="recommendations")
    recommended = gr.State({})
    operation = Operation(page, progress, [recommend], cancel)

    def run(values: Values) -> Iterator[Updates]:
        arguments = page.data_arguments(values)
        yield operation.begin("Analyzing your data and model…")
        yield from operation.stream("recommend", show, **arguments)

    def show(result: dict[str, Any]) -> Updates:
        changes = sum(advice["changes"] for advice in result["advice"])
        count = f"{changes} recommended change{'s' * (changes != 1)}."
        summary = count if changes else "✓ Your settings match the recommendation."
        red_lines = red_lines_markdown(result["red_lines"])
        return {
            progress: "\n\n".join(filter(None, [summary, red_lines])),
            table: gr.update(value=advice_html(result), visible=True),
            apply: gr.update(visible=bool(changes), variant="primary"),
            recommended: result["recipe"],
        }

    @show_errors
    def use(recipe: dict[str, Any]) -> Updates:
        shown = {progress: "✓ Applied.", apply: gr.update(visible=False)}
        return {**page.form.show(make_recipe(recipe)), **shown}

    event = operation.on_click(recommend, run, page.data_inputs, [table, apply, recommended])
    operation.cancel_events([event], "")
    apply.click(use, recommended, [*page.form.widgets.values(), progress, apply], **HIDDEN)
    hidden = gr.update(visible=False)
    cleared = {progress: "", table: hidden, apply: hidden}
    page.data.change(lambda: cleared, None, list(cleared), **HIDDEN)


def _build_layers(page: PageContext) -> None:
    button = gr.Button("Show adapted layers", elem_id="show-layers")
    layers = gr.Markdown(elem_id="layers")

    @show_errors
    def show_layers(values: Values) -> str:
        recipe = page.form.read(values).model_dump()
        if recipe["task"] == "automatic":
            recipe["task"] = values[page.task]
        return layers_markdown(page.workers.call("layers", recipe=recipe))

    button.click(show_layers, {page.task, *page.form.inputs}, layers, **PRIVATE)


def _build_file(page: PageContext) -> None:
    with gr.Accordion("Recipe as a file", open=False, elem_id="recipe-file"):
        with gr.Row():
            show = gr.Button("View as JSON", elem_id="show-json")
            upload = gr.UploadButton(
                "Load a recipe.json", file_types=[".json"], elem_id="load-recipe"
            )
        as_json = gr.Code(
            language="json", label="recipe.json", visible=False, elem_id="recipe-json"
        )

    @show_errors
    def show_json(values: Values) -> Any:
        return gr.update(value=page.form.read(values).model_dump_json(indent=2), visible=True)

    @show_errors
    def load(path: str) -> Updates:
        return page.form.show(read_recipe(path))

    show.click(show_json, page.form.inputs, as_json, **PRIVATE)
    upload.upload(load, upload, list(page.form.widgets.values()), **PRIVATE)


_SOURCES = (
    "10 % of memory is reserved. Sizes: Hub documentation, 2026. Times are lower bounds from the "
    "peak speeds in NVIDIA's data sheets; small models are far slower than that."
)


def _build_estimates(page: PageContext) -> None:
    """Place and wire the panel."""
    with gr.Accordion("Memory and time", open=False, elem_id="memory-and-time"):
        gr.Markdown(
            "*Estimate*: instant, rough. *Measure*: runs four real training steps, the last with "
            "your longest rows; nothing is saved."
        )
        with gr.Row():
            estimate = gr.Button("Estimate memory and time", elem_id="estimate")
            measure = gr.Button("Measure a few steps", elem_id="dry-run")
            cancel = cancel_button("cancel-estimates")
        progress = gr.Markdown(elem_id="estimates")
        with gr.Accordion("Would it fit on a Space?", open=False, visible=False) as on_spaces:
            spaces = gr.HTML(elem_id="on-spaces")
            gr.Markdown(_SOURCES)
    operation = Operation(page, progress, [estimate, measure], cancel)

    def show(result: dict[str, Any]) -> Updates:
        hardware = result.get("estimates", result)["spaces"]
        return {
            progress: words_markdown(result["words"]),
            page.measured_seconds: None,
            spaces: spaces_html(hardware),
            on_spaces: gr.update(visible=bool(hardware)),
        }

    def show_measured(result: dict[str, Any]) -> Updates:
        return show(result) | {page.measured_seconds: result["seconds"]}

    def handler(
        name: str, show: Callable[[dict[str, Any]], Updates]
    ) -> Callable[[Values], Iterator[Updates]]:
        def run(values: Values) -> Iterator[Updates]:
            arguments = page.data_arguments(values)
            yield operation.begin()
            yield from operation.stream(name, show, **arguments)

        return run

    outputs = [page.measured_seconds, spaces, on_spaces]
    events = [
        operation.on_click(button, handler(name, shown), page.data_inputs, outputs)
        for button, name, shown in (
            (estimate, "estimate", show),
            (measure, "dry_run", show_measured),
        )
    ]
    operation.cancel_events(events)
    cleared = {progress: "", page.measured_seconds: None, on_spaces: gr.update(visible=False)}
    page.data.change(lambda: cleared, None, list(cleared), **HIDDEN)


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
        need = f"{verdict}: {item['need'] / 1e9:,.2f} of {item['memory'] / 1e9:,.0f} GB"
        rows.append([name, need, _at_least(item["least_seconds"]) if item["fits"] else ""])
    return table_html(["Hardware", "Memory", "Time"], rows, "answers advice")


def _at_least(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours and not minutes:
        return "at least seconds"
    return f"at least {hours} h {minutes} min" if hours else f"at least {minutes} min"


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
    lines += layers["not_adapted"]
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
    """Return the recipe's errors (⛔) and its warnings (⚠)."""
    signs = {"stop": "⛔"}
    return "\n".join(f"- {signs.get(line['kind'], '⚠')} {escape(line['words'])}" for line in lines)
