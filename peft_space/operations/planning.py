"""What is to be known before a training: layers, advice, memory and time."""

from collections import Counter
from dataclasses import asdict

from peft_space.data.table import Data
from peft_space.errors import UserError
from peft_space.operations.progress import Json, Report, progress
from peft_space.recipe import make_recipe


def layers(recipe: Json) -> Json:
    """Which linear layers the recipe's base model has, which of them get an adapter, and how many parameters that trains."""
    from peft_space.export.serving_support import engine_support, traits_of_recipe
    from peft_space.models.architecture import (
        linear_layers,
        modules_to_save,
        tasks_of,
        wrapped_layers,
    )
    from peft_space.models.loading import expected_parameter_counts
    from peft_space.models.quantization import quantization_of
    from peft_space.models.resolve import find_base
    from peft_space.planning.estimates import memory_here

    wanted = make_recipe(recipe)
    config = find_base(wanted.base_model, wanted.revision).config
    can = tasks_of(config)
    if not can:
        raise UserError(
            "todo",
            f"Models of the kind {config.model_type!r} can learn none of the tasks here. Choose another base model.",
        )
    task = can[0] if wanted.task == "automatic" else wanted.task
    found = linear_layers(config, task)
    wrapped = wrapped_layers(wanted, found)
    saved = modules_to_save(wanted, found)
    served = engine_support(traits_of_recipe(wanted, found, quantization_of(wanted, config)))
    trainable, total = expected_parameter_counts(wanted, found, task)
    memory = memory_here(wanted, config, task, wanted.max_length)
    return {
        "tasks": can,
        "task": task,
        "layers": found.counts,
        "wrapped": dict(Counter(name.rpartition(".")[2] for name in wrapped)),
        "head": found.head,
        "saved": saved,
        "fused_experts": found.fused_experts,
        "taken_for_experts": found.taken_for_experts,
        "trainable": trainable,
        "parameters": total,
        "serving": [asdict(way) for way in served],
        "memory": asdict(memory) if memory else None,
    }


def estimate(
    data: Data,
    recipe: Json | None = None,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    report: Report | None = None,
) -> Json:
    """What training the recipe will take: `memory`, `time`, on which hardware of a Space it would fit (`spaces`), and the same in `words`."""
    from peft_space.planning.estimates import describe_estimates, estimate_training

    found = estimate_training(
        data, make_recipe(recipe or {}), held_out, column_mapping, progress(report)
    )
    return asdict(found) | {"words": describe_estimates(found)}


def dry_run(
    data: Data,
    recipe: Json | None = None,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    report: Report | None = None,
) -> Json:
    """A few steps trained for real: `memory`, `step_seconds` and `seconds` of the whole training, the `estimates` before, and how far they were off."""
    from peft_space.planning import dry_run as measuring

    found = measuring.dry_run(
        data, make_recipe(recipe or {}), held_out, column_mapping, progress(report)
    )
    return asdict(found) | {"words": measuring.describe_dry_run(found)}


def recommend(
    data: Data,
    recipe: Json | None = None,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    report: Report | None = None,
) -> Json:
    """What to choose for these data, this base model and this machine: `advice`, each with its reason, the `recipe` with all of it, and `red_lines`."""
    from peft_space.models.resolve import find_base
    from peft_space.planning.facts import data_facts, machine_facts, model_facts
    from peft_space.recommend import rules
    from peft_space.training.prepare import prepare

    wanted = make_recipe(recipe or {})
    on_progress = progress(report)
    # the longest row decides on the limit, and a recipe that crosses a red line is to be told how to mend it
    prepared = prepare(data, wanted, held_out, column_mapping, on_progress, allow_red_lines=True)
    base = find_base(wanted.base_model, wanted.revision)
    on_progress(0.9, "Measuring how well the base knows such answers")
    facts, model = (
        data_facts(prepared, base, wanted),
        model_facts(base, wanted, prepared.task_spec.task),
    )
    advices = rules.recommend(facts, model, machine_facts())
    changed = rules.changed_recommendations(wanted, advices)
    better = rules.recommended_recipe(wanted, advices)
    return {
        "task": prepared.task_spec.task,
        "advice": [
            asdict(one) | {"now": getattr(wanted, one.field), "changes": one in changed}
            for one in advices
        ],
        "recipe": better.model_dump(),
        "red_lines": [asdict(line) for line in rules.red_lines(wanted, model, facts)],
        "facts": {**asdict(facts), "lengths": None, **asdict(model)},
    }


def rank_sweep(
    data: Data,
    recipe: Json | None = None,
    ranks: list[int] | None = None,
    held_out: Data | None = None,
    column_mapping: Json | None = None,
    report: Report | None = None,
) -> Json:
    """The recipe trained briefly at several ranks: `results` of each (rank, trainable_parameters, loss, seconds), and the rank that is `enough`."""
    from peft_space.planning.rank_sweep import RANKS
    from peft_space.planning.rank_sweep import rank_sweep as study_ranks

    return asdict(
        study_ranks(
            data,
            make_recipe(recipe or {}),
            tuple(ranks or RANKS),
            held_out,
            column_mapping,
            progress(report),
        )
    )
