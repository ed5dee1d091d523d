"""The production checklist of a trained adapter, derived from its run. Imports without torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft_space.runs.events import evaluations_of, selected_checkpoint, steps_of
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

if TYPE_CHECKING:
    from peft_space.models.resolve import BaseModelRef
    from peft_space.recommend.rules import Recommendation
    from peft_space.runs.plan import Plan
    from peft_space.training.prepare import Prepared


@dataclass(frozen=True)
class Check:
    """One line of the checklist."""

    title: str
    done: bool | None
    """None if it does not apply."""
    words: str
    """The reason, in complete sentences."""


def write_checklist(run: Run, checks: list[Check]) -> None:
    """Store the checklist in the run."""
    text = json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=1)
    atomic_io.write_text(run.path("ready.json"), text + "\n")


def read_checklist(run: Run) -> list[Check]:
    """Return the checklist stored in the run; empty if there is none."""
    path = run.path("ready.json")
    if not path.is_file():
        return []
    return [Check(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


def checklist_markdown(checks: list[Check]) -> str:
    """Return the checklist as a Markdown list, for the page and the model card."""
    signs = {True: "✓", False: "○", None: "–"}
    return "\n".join(f"- {signs[check.done]} **{check.title}.** {check.words}" for check in checks)


def describe_adapter(
    run: Run, folder: Path, prepared: "Prepared", base: "BaseModelRef", plan: "Plan"
) -> None:
    """Write the model card into `folder` and the checklist into the run.

    Args:
        run: the run that trained the adapter.
        folder: the new adapter, before it is moved into the run.
        prepared: the rows that it was trained on.
        base: its base model.
        plan: how it was trained.
    """
    from peft_space.export.model_card import write_card

    write_checklist(run, check_ready(run, base, prepared, plan, folder))
    write_card(run, folder, prepared.data, plan)


def check_ready(
    run: Run, base: "BaseModelRef", prepared: "Prepared", plan: "Plan", adapter: Path
) -> list[Check]:
    """Return the checklist of the adapter in the folder `adapter`."""
    from peft_space.planning.recommendation_facts import data_facts, machine_facts, model_facts
    from peft_space.recommend import rules

    facts = data_facts(prepared, base, run.recipe, measured=False)
    model = model_facts(base, run.recipe, prepared.task_spec.task)
    advice = rules.recommend(facts, model, machine_facts())
    quantization = f"The base model was loaded as {plan.quantization} and prepared for training."
    if plan.quantization == "none":
        quantization = "The base model is not quantized."
    return [
        _check_rank(run.recipe.lora_rank, next(a for a in advice if a.field == "lora_rank")),
        _check_target_modules(run, base, plan),
        _check_no_base_weights(adapter),
        Check(
            "Merged model compared with the adapter",
            False,
            "No merged model has been made. Until then, deploy base model and adapter separately.",
        ),
        Check("Quantization supports training", True, quantization),
        _check_trainable_share(plan),
        _check_best_kept(run),
    ]


def _check_rank(rank: int, advice: "Recommendation") -> Check:
    same = rank == advice.value
    verdict = "As recommended" if same else f"The recommended rank is {advice.value}"
    return Check("Rank chosen for the task", same, f"Rank {rank}. {verdict}: {advice.why}")


def _check_target_modules(run: Run, base: "BaseModelRef", plan: "Plan") -> Check:
    from peft_space.models.architecture import linear_layers, wrapped_layers

    expected = len(wrapped_layers(run.recipe, linear_layers(base.config, plan.task)))
    return Check(
        "Target modules verified for the architecture",
        plan.num_wrapped == expected,
        f"{plan.num_wrapped} of {expected} layers that the recipe targets have an adapter.",
    )


def _check_no_base_weights(adapter: Path) -> Check:
    from safetensors import safe_open

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    own = (".lora_", "trainable_tokens_delta", *(config.get("modules_to_save") or ()))
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = file.keys()
    foreign = [name for name in names if not any(part in name for part in own)]
    base = config.get("base_model_name_or_path")
    words = f"It names {base} and contains none of its weights."
    if foreign:
        words = f"It names {base} and contains other weights, such as {foreign[0]}."
    return Check("Adapter saved apart from its base", not foreign and bool(base), words)


def _check_trainable_share(plan: "Plan") -> Check:
    share, small = plan.trainable_parameters / plan.all_parameters, plan.all_parameters < 1e9
    why = ""
    if share > 0.01:
        why = " More than 1 %, because the model is small." if small else " A lower rank would do."
    words = f"{share:.2%} of all parameters.{why}"
    return Check("Share of trainable parameters", share <= 0.01 or small, words)


def _check_best_kept(run: Run) -> Check:
    from peft_space.training import early_stopping

    title, history = "Best adapter of the training kept", run.history()
    evaluations = [(event.step, event.loss) for event in evaluations_of(history)]
    selected = selected_checkpoint(history)
    if not evaluations or selected is None:
        return Check(title, None, "Without held-out rows, the best one is unknown.")
    best = early_stopping.step_to_keep(evaluations, steps_of(history)[-1].step)
    return Check(title, selected.step == best, f"Step {selected.step}: {selected.why}")
