"""Whether an adapter is ready for production: what was done and what was not, worked out from its run, none of it ticked by hand."""

import json
from pathlib import Path

from peft_space.export.checklist import Check
from peft_space.models.architecture import linear_layers, wrapped_layers
from peft_space.models.resolve import BaseModelRef
from peft_space.planning.facts import data_facts, machine_facts, model_facts
from peft_space.recommend import rules
from peft_space.runs.plan import Plan
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, selected_checkpoint, steps_of
from peft_space.training import loss_analysis
from peft_space.training.prepare import Prepared


def check_ready(
    run: Run, base: BaseModelRef, prepared: Prepared, plan: Plan, adapter: Path
) -> list[Check]:
    """The list for the adapter in the folder `adapter`, that training has just written."""
    facts, model = (
        data_facts(prepared, base, run.recipe, measured=False),
        model_facts(base, run.recipe, prepared.task_spec.task),
    )
    rank = next(
        one for one in rules.recommend(facts, model, machine_facts()) if one.field == "lora_rank"
    )
    return [
        _rank(run.recipe.lora_rank, rank),
        _targets(run, base, plan),
        _check_no_base_weights(adapter),
        Check(
            "Merged model compared with the adapter",
            False,
            "No merged model has been made. Until one is, deploy base and adapter apart.",
        ),
        Check("Quantization goes with training", True, _quantization(plan)),
        _share(plan),
        _best(run),
    ]


def _rank(rank: int, advised: rules.Recommendation) -> Check:
    same = rank == advised.value
    return Check(
        "Rank chosen for the task",
        same,
        f"Rank {rank}. {'As advised' if same else f'Advised is {advised.value}'}: {advised.why}",
    )


def _targets(run: Run, base: BaseModelRef, plan: Plan) -> Check:
    expected = len(wrapped_layers(run.recipe, linear_layers(base.config, plan.task)))
    words = f"{plan.num_wrapped} of {expected} layers that the recipe names were found in this architecture and have an adapter."
    return Check(
        "Target modules verified for the architecture", plan.num_wrapped == expected, words
    )


def _check_no_base_weights(adapter: Path) -> Check:
    from safetensors import safe_open

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    saved = tuple(config.get("modules_to_save") or ())
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        others = [
            name
            for name in file.keys()  # noqa: SIM118 - not a dict
            if ".lora_" not in name and not any(part in name for part in saved)
        ]
    base = config.get("base_model_name_or_path")
    return Check(
        "Adapter saved apart from its base",
        not others and bool(base),
        f"It names {base}, and holds no weights of it.",
    )


def _quantization(plan: Plan) -> str:
    if plan.quantization == "none":
        return "The base is not quantized."
    return f"The base was held as {plan.quantization} and prepared for training before the adapter was put on it."


def _share(plan: Plan) -> Check:
    share = plan.trainable_parameters / plan.all_parameters
    why = (
        ""
        if share <= 0.01
        else " More than 1 %, because the model is small."
        if plan.all_parameters < 1e9
        else " A lower rank would do with less."
    )
    return Check(
        "Share of trainable parameters",
        share <= 0.01 or plan.all_parameters < 1e9,
        f"{share:.2%} of all parameters.{why}",
    )


def _best(run: Run) -> Check:
    title, happened = "Best adapter of the training kept", run.history()
    evaluations = [(event.step, event.loss) for event in evaluations_of(happened)]
    kept = selected_checkpoint(happened)
    if not evaluations or kept is None:
        return Check(title, None, "No rows were held out to tell which is the best.")
    best = loss_analysis.step_to_keep(evaluations, steps_of(happened)[-1].step)
    return Check(title, kept.step == best, f"That of step {kept.step}: {kept.why}")
