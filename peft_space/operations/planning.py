"""Answers questions before a training: layers, recommendations, memory, time and rank."""

import json
import shlex
from collections import Counter
from dataclasses import asdict

from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.operations.registry import (
    ColumnMapping,
    DataSource,
    HeldOut,
    Json,
    Progress,
    RecipeChoices,
    operation,
    progress,
)
from peft_space.recipe import make_recipe


@operation(group="planning")
def layers(recipe: RecipeChoices = None) -> Json:
    """List the linear layers of the base model and which of them get an adapter.

    Returns:
        The `layers`, those `wrapped` by an adapter, and the number of `trainable` parameters.
        `not_adapted` says which layers and experts cannot get one, and why.
        `serving` says how engines can serve the adapter, and `memory` is that of a training at the
        length limit.
    """
    from peft_space.export.serving_support import engine_support, traits_of_recipe
    from peft_space.models.architecture import (
        linear_layers,
        modules_to_save,
        tasks_of,
        unadapted_notes,
        wrapped_layers,
    )
    from peft_space.models.loading import expected_parameter_counts
    from peft_space.models.quantization import quantization_of
    from peft_space.models.resolve import find_base
    from peft_space.planning.training_estimate import memory_here

    chosen = make_recipe(recipe or {})
    config = find_base(chosen.base_model, chosen.revision).config
    tasks = tasks_of(config)
    if not tasks:
        raise UserError(
            "operations.model_without_task",
            f"Models of type {config.model_type!r} support none of the tasks of this app. "
            "Choose another base model.",
        )
    task = tasks[0] if chosen.task == "automatic" else chosen.task
    linear = linear_layers(config, task)
    wrapped = wrapped_layers(chosen, linear)
    quantization = quantization_of(chosen, config)
    trainable, total = expected_parameter_counts(chosen, linear, task)
    memory = memory_here(chosen, config, task, chosen.max_length)
    engines = engine_support(traits_of_recipe(chosen, linear, quantization))
    return {
        "tasks": tasks,
        "task": task,
        "layers": linear.counts,
        "wrapped": dict(Counter(name.rpartition(".")[2] for name in wrapped)),
        "head": linear.head,
        "saved": modules_to_save(chosen, linear),
        "not_adapted": unadapted_notes(chosen, linear),
        "trainable": trainable,
        "parameters": total,
        "serving": [asdict(engine) for engine in engines],
        "memory": asdict(memory) if memory else None,
    }


def _recommend_text(result: Json, arguments: Json) -> str:
    lines = [
        f"{advice['field']}: {json.dumps(advice['value'])}"
        f"{'' if advice['changes'] else ' (your recipe has it)'}. "
        f"{advice['why']} [{advice['source']}]"
        for advice in result["advice"]
    ]
    for line in result["red_lines"]:
        kind = "Not possible" if line["kind"] == "stop" else "Warning"
        lines.append(f"{kind}: {line['words']}")
    lines += result["not_adapted"]
    recipe = json.dumps(make_recipe(result["recipe"]).model_dump(exclude_defaults=True))
    data = arguments["data"]
    files = shlex.join([data] if isinstance(data, str) else data)
    following = f"peft-space train {files} --recipe {shlex.quote(recipe)} --out RUN_DIR"
    return "\n".join([*lines, f"Next: {following}"])


@operation(group="planning", text=_recommend_text)
def recommend(
    data: DataSource,
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    report: Progress = None,
) -> Json:
    """Recommend a recipe for the data, the base model and this machine, with reasons.

    Returns:
        `advice`, each item with its reason and source, and the `recipe` that follows all of it.
        `red_lines` lists the settings that make training impossible or inadvisable, and
        `not_adapted` the layers and experts that get no adapter, with the reasons.
    """
    from peft_space.models.resolve import find_base
    from peft_space.models.vocabulary import with_new_tokens
    from peft_space.planning.recommendation_facts import data_facts, machine_facts, model_facts
    from peft_space.recommend import rules
    from peft_space.training.prepare import prepare

    chosen, on_progress = make_recipe(recipe or {}), progress(report)
    # the longest row decides on the length limit, and a recipe beyond a red line gets its remedy
    prepared = prepare(data, chosen, held_out, column_mapping, on_progress, allow_red_lines=True)
    base = with_new_tokens(find_base(chosen.base_model, chosen.revision), chosen)
    on_progress(0.9, "Measuring how well the base model predicts such answers")
    facts = data_facts(prepared, base, chosen)
    model = model_facts(base, chosen, prepared.task_spec.task)
    advice = rules.recommend(facts, model, machine_facts())
    changed = rules.changed_recommendations(chosen, advice)
    return {
        "task": prepared.task_spec.task,
        "not_adapted": prepared.not_adapted,
        "advice": [
            asdict(item) | {"now": getattr(chosen, item.field), "changes": item in changed}
            for item in advice
        ],
        "recipe": rules.recommended_recipe(chosen, advice).model_dump(),
        "red_lines": [asdict(line) for line in rules.red_lines(chosen, model, facts)],
        "facts": {**asdict(facts), "lengths": None, **asdict(model)},
    }


def _estimate_text(result: Json, arguments: Json) -> str:
    lines = [
        f"{line['name']:14} {'fits' if line['fits'] else 'does not fit'}: "
        f"{gigabytes(line['need'])} of {gigabytes(line['memory'])}"
        for line in result["spaces"]
    ]
    return "\n".join([*result["words"], *lines])


@operation(group="planning", text=_estimate_text)
def estimate(
    data: DataSource,
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    report: Progress = None,
) -> Json:
    """Estimate the memory and time of a training, and which Space hardware it fits.

    Returns:
        `memory`, `time`, the hardware of Spaces (`spaces`), and a summary in `words`.
    """
    from peft_space.planning.training_estimate import describe_estimates, estimate_training

    chosen = make_recipe(recipe or {})
    result = estimate_training(data, chosen, held_out, column_mapping, progress(report))
    return asdict(result) | {"words": describe_estimates(result)}


@operation(
    group="planning",
    gpu=True,
    takes_turn=True,
    text=lambda result, arguments: "\n".join(result["words"]),
)
def dry_run(
    data: DataSource,
    recipe: RecipeChoices = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    report: Progress = None,
) -> Json:
    """Train four steps to measure the memory and time of the whole training.

    Nothing of the training is kept.

    Returns:
        `memory`, `step_seconds` and `seconds` as measured, the `estimates`, and their errors.
    """
    from peft_space.planning import dry_run as planning

    chosen = make_recipe(recipe or {})
    result = planning.dry_run(data, chosen, held_out, column_mapping, progress(report))
    return asdict(result) | {"words": planning.describe_dry_run(result)}


@operation(group="planning", internal="The page shows with it what the machine is.")
def machine() -> Json:
    """Describe the hardware that trains, without loading a model.

    Returns:
        The `device`, its `name`, and the `free` bytes of its memory.
    """
    from peft_space import hardware
    from peft_space.estimation.hub_hardware import zerogpu_hardware

    if kind := zerogpu_hardware():
        return {"device": kind.device, "name": kind.title, "free": kind.usable}
    name, free = hardware.device_name(), hardware.free_memory()
    return {"device": hardware.device(), "name": name, "free": free}


def _rank_sweep_text(result: Json, arguments: Json) -> str:
    lines = [
        f"rank {one['rank']:3}: held-out loss {one['loss']:.4f}, "
        f"{one['trainable_parameters']:,} trainable"
        for one in result["results"]
    ]
    enough = (
        f"Rank {result['enough']} is enough: its loss after {result['steps']} steps is within 2 %, "
        "or 0.01, of the best."
    )
    return "\n".join([*lines, enough])


@operation(group="planning", takes_turn=True, text=_rank_sweep_text)
def rank_sweep(
    data: DataSource,
    recipe: RecipeChoices = None,
    ranks: list[int] | None = None,
    held_out: HeldOut = None,
    column_mapping: ColumnMapping = None,
    report: Progress = None,
) -> Json:
    """Train briefly at several ranks to find the smallest that is enough.

    Args:
        ranks: the ranks to try; without them 2, 4, 8, 16, 32 and 64.

    Returns:
        `results`, for each rank `trainable_parameters`, `loss` and `seconds`; and `enough`.
    """
    from peft_space.planning import rank_sweep as planning

    chosen, tried = make_recipe(recipe or {}), tuple(ranks or planning.RANKS)
    return asdict(
        planning.rank_sweep(data, chosen, tried, held_out, column_mapping, progress(report))
    )
