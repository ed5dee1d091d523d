"""The one training function: it resumes a run or starts it, trains until it is finished, asked to stop, or at its deadline, and can be killed anywhere."""

import gc
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, set_seed

from peft_space import hardware
from peft_space.data.batches import Examples
from peft_space.data.dataset import TrainingData, load_run_data
from peft_space.data.tokenization.tokenize import tokenize
from peft_space.errors import UserError, oom_device
from peft_space.formatting import gigabytes
from peft_space.models.loading import inference_dtype, load_base_model, new_adapter, task_spec_for
from peft_space.models.lora_init import (
    FROM_BASE,
    initial_base,
    load_initial_adapter,
    to_plain_lora,
    write_initial_adapter,
)
from peft_space.models.resolve import (
    BaseModelRef,
    find_base,
    first_line,
    load_tokenizer,
    pin_revision,
)
from peft_space.recipe import Recipe, TaskSpec
from peft_space.runs import checkpoints, events
from peft_space.runs.events import failed_event
from peft_space.runs.plan import Plan, plan_for_processes, read_plan, write_plan
from peft_space.runs.run import Run, append_notice_once
from peft_space.runs.status import steps_of
from peft_space.storage import atomic_io
from peft_space.training import distributed, early_stopping, trackers
from peft_space.training.autotune import make_plan
from peft_space.training.callbacks import RunCallback
from peft_space.training.length_grouping import ByLength, goes_by_length, saved_by_length
from peft_space.training.model_cache import ModelCache
from peft_space.training.oom_fallback import out_of_memory_failure, reduce_memory
from peft_space.training.precision import (
    avoid_repeated_casts,
    cast_frozen_weights,
    set_compute_dtype,
)
from peft_space.training.prepare import Prepared
from peft_space.training.provenance import check_provenance, current_provenance
from peft_space.training.trainers import make_trainer

logger = logging.getLogger(__name__)

AdapterSaved = Callable[[Run, Path, Prepared, BaseModelRef, Plan], None]
"""Called with the folder of a new adapter before it takes its place in the run, to add files to it."""

_ADAPTER_ASIDE = ".adapter.new"
_OF_DTYPES = re.compile("BFloat16|bfloat16|mixed dtype")
"""Words in which PyTorch says that it does not compute with bfloat16, or not with float32 together."""
_LONGEST_BETWEEN_SAVES = 100
"""Steps; an epoch of many rows is not to be lost."""


def train(
    run: Run,
    deadline: float | None = None,
    shuffled: bool = True,
    anyway: bool = False,
    report_to: Sequence[str] = (),
    warm: ModelCache | None = None,
    on_adapter_saved: AdapterSaved | None = None,
) -> events.Outcome:
    """Train `run` from its newest complete checkpoint, or from the start, and return how it ended.

    Args:
        deadline: seconds since 1970 after which training saves and leaves at the end of its step; None for no limit.
        shuffled: whether rows come in a random order, as they should; a dry run wants its longest rows in a certain step.
        anyway: whether to go on from a checkpoint of other rows, another recipe or other libraries, which is refused otherwise.
        report_to: of `reporting.TOOLS`, those that the losses are also told to.
        on_adapter_saved: adds files to the folder of the adapter before it takes its place in the run.
        warm: where the model stays in memory when training leaves at its deadline, for the next call in this process.

    The caller holds the run's lock. Where memory runs out, training goes on with less of it (see `room.py`). Any other exception is written as
    a Failed event and raised again.
    """
    while isinstance(
        outcome := attempt(
            run, deadline, shuffled, anyway, report_to, warm=warm, on_adapter_saved=on_adapter_saved
        ),
        events.OutOfMemory,
    ):
        gc.collect()  # model and trainer hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return outcome


def attempt(
    run: Run,
    deadline: float | None = None,
    shuffled: bool = True,
    anyway: bool = False,
    report_to: Sequence[str] = (),
    ended_for_memory: bool = False,
    warm: ModelCache | None = None,
    on_adapter_saved: AdapterSaved | None = None,
) -> events.Outcome | events.OutOfMemory:
    """The same once. Where memory ran out, the plan is changed and the event that says so is returned: another attempt takes less.

    Args:
        ended_for_memory: whether the system ended the attempt before this one for want of memory.
    """
    run = distributed.view_for_rank(run)
    run.truncate_partial_event()
    if ended_for_memory and reduce_memory(run, "This machine") is None:
        raise _no_memory(run, "This machine")
    try:
        trackers.check(report_to)
        outcome = _train_in_any_dtype(
            run, deadline, shuffled, anyway, report_to, warm or ModelCache(), on_adapter_saved
        )
    except Exception as error:
        if distributed.is_main():  # on a full disk this makes room to tell
            checkpoints.remove_unfinished(run)
            shutil.rmtree(run.path(_ADAPTER_ASIDE), ignore_errors=True)
        where = oom_device(error)
        if where is None:
            run.append(failed_event(error))
            raise
        changed = reduce_memory(run, where)
        if changed is None:
            raise _no_memory(run, where) from error
        return changed
    if isinstance(outcome, events.Paused) and run.requested_stop():
        outcome = outcome.model_copy(update={"asked": True})
    run.append(outcome)
    if isinstance(outcome, events.Finished):
        shutil.rmtree(run.path("start"), ignore_errors=True)  # nothing is resumed any more
    run.clear_stop_request()  # it has been followed; one made while the run waited for its turn has not
    return outcome


def _no_memory(run: Run, where: str) -> UserError:
    failed = out_of_memory_failure(run, where)
    run.append(failed)
    return UserError("todo", failed.message)


@dataclass(frozen=True)
class _TrainingSetup:
    """What an attempt trains with, and the checkpoint that it goes on from."""

    base: BaseModelRef
    goal: TaskSpec
    tokenizer: Any
    data: TrainingData
    rows: Examples
    held_out: Examples
    model: Any
    plan: Plan
    checkpoint: Path | None


def _train_in_any_dtype(run: Run, *options: Any) -> events.Outcome:
    """Train, and begin again in float32 where the first step shows that the model does not compute in the dtype that was chosen for it.

    On one CPU: a GPU holds the base in 16 bits whatever the plan says, and of several processes each would have to begin again.
    """
    try:
        return _train(run, *options)
    except (RuntimeError, TypeError) as error:
        plan = read_plan(run)
        if (
            plan is None
            or plan.compute_dtype == "float32"
            or plan.device != "cpu"
            or distributed.num_processes() > 1
        ):
            raise
        if steps_of(run.history()) or not _OF_DTYPES.search(str(error)):
            raise
        why = f"This model does not compute in {plan.compute_dtype}: {first_line(error)}"
        if run.recipe.compute_dtype != "automatic":
            raise UserError(
                "todo",
                f"{why} Leave it to the app what is computed in (compute_dtype automatic), or choose float32.",
            ) from error
        logger.info("%s does not compute in %s", plan.base_name, plan.compute_dtype, exc_info=error)
        write_plan(
            run,
            plan.model_copy(update={"compute_dtype": "float32", "frozen_dtype": "", "why": why}),
        )
    gc.collect()  # model and trainer hold each other
    return _train(run, *options)


def _train(
    run: Run,
    deadline: float | None,
    shuffled: bool,
    anyway: bool,
    report_to: Sequence[str],
    warm: ModelCache,
    on_adapter_saved: AdapterSaved | None,
) -> events.Outcome:
    with distributed.main_first():
        ready = _setup(run, shuffled, anyway, warm)
    recipe, goal, rows, held_out, model, plan = (
        run.recipe,
        ready.goal,
        ready.rows,
        ready.held_out,
        ready.model,
        ready.plan,
    )
    torch.set_num_threads(plan.threads)
    set_compute_dtype(model, plan.compute_dtype)
    if plan.frozen_dtype:
        cast_frozen_weights(model, ready.base, goal.task, plan.frozen_dtype)
    if plan.device == "cpu":
        avoid_repeated_casts(model, plan.compute_dtype)
    set_seed(recipe.seed)  # measuring drew from the dropout's random numbers

    number = 1 + sum(isinstance(event, events.Started) for event in run.history())
    callback = RunCallback(
        run,
        number,
        deadline,
        current_provenance(run, plan, ready.base, rows.tokens, held_out.tokens),
    )
    arguments = _arguments(run, recipe, plan, len(rows), bool(held_out)) | (
        {} if shuffled else {"train_sampling_strategy": "sequential"}
    )
    arguments |= trackers.arguments(report_to, run)
    order = None
    if plan.by_length and shuffled:
        order = ByLength(
            rows.lengths(plan.max_length),
            recipe.batch_size * recipe.gradient_accumulation_steps,
            recipe.seed,
        )
    trainer = make_trainer(
        goal,
        recipe,
        model,
        ready.tokenizer,
        arguments,
        rows,
        held_out if len(held_out) else None,
        [callback],
        order,
    )
    trainer.remove_callback(PrinterCallback)  # events tell the same
    checkpoint = ready.checkpoint
    from_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    total = total_steps(recipe, len(rows))
    run.append(events.Started(attempt=number, from_step=from_step, total_steps=total))
    if checkpoint and (
        from_step >= total or early_stopping.is_over(early_stopping.state_of(checkpoint), recipe)
    ):
        early_stopping.restore_final_state(
            checkpoint, trainer
        )  # it was killed after its last step; the trainer would take another one
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    if callback.left == "pause":
        warm.keep(run, plan, trainer)
        return events.Paused(step=step)
    early_stopping.select_best_adapter(run, trainer)
    if distributed.is_main():
        _save_adapter(
            run,
            model,
            ready.tokenizer,
            Prepared(goal, ready.data, rows.tokens, held_out.tokens),
            ready.base,
            plan,
            on_adapter_saved,
        )
    distributed.wait()
    if callback.left == "stop":
        return events.Stopped(step=step)
    return events.Finished(
        step=step, seconds=sum(event.seconds for event in steps_of(run.history()))
    )


def _setup(run: Run, shuffled: bool, anyway: bool, warm: ModelCache) -> _TrainingSetup:
    """Render the rows, load the model with its adapter, and have a plan."""
    recipe, plan, data, goal = run.recipe, read_plan(run), load_run_data(run), task_spec_for(run)
    base = pin_revision(
        find_base(recipe.base_model, plan.base_revision if plan else recipe.revision),
        plan.base_revision if plan else None,
    )
    tokenizer = load_tokenizer(base, recipe.chat_template, goal.task)
    run.append(events.Preparing(what=f"Rendering {len(data.train) + len(data.held_out):,} rows"))
    rows, held_out = _examples(
        tokenizer, recipe, goal, data, plan.max_length if plan else recipe.max_length, shuffled
    )
    checkpoint = checkpoints.newest_checkpoint(run)
    if checkpoint:
        _refuse_another_origin(run, checkpoint, plan, base, rows, held_out, anyway)
    run.append(events.Preparing(what=f"Loading {base.name}"))
    set_seed(recipe.seed)  # the adapter's first weights are random
    free = hardware.free_memory()
    model = warm.take(run, plan, checkpoint) or _adapted(run, recipe, base, goal)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = (
            tokenizer.pad_token_id
        )  # a classifier looks for the last token before the padding
    if (
        plan is None or not plan.device
    ):  # an adapter from elsewhere has a plan that nothing was measured for
        plan = _first_plan(run, recipe, base, goal, model, rows, free)
    elif plan.num_processes != distributed.num_processes():
        plan = plan_for_processes(plan, distributed.num_processes())
        write_plan(run, plan)
    _tell_plan(run, plan)
    tokenizer_bytes = len(tokenizer.backend_tokenizer.to_str().encode())
    checkpoints.ensure_disk_space(run, plan.trainable_parameters, tokenizer_bytes)
    return _TrainingSetup(base, goal, tokenizer, data, rows, held_out, model, plan, checkpoint)


def _examples(
    tokenizer: Any,
    recipe: Recipe,
    goal: TaskSpec,
    data: TrainingData,
    max_length: int,
    shuffled: bool,
) -> tuple[Examples, Examples]:
    """The rows to train on and those held out."""
    train, held_out = (
        tokenize(tokenizer, part, max_length, recipe.train_on, task=goal.task)
        for part in (data.train, data.held_out)
    )
    if goal.task == "sequence-classification":  # a label that is held out alone cannot be right
        known = [label in goal.labels for label in held_out.labels()]
        held_out = held_out.at(held_out.positions[np.array(known, dtype=bool)])
    return Examples(train, recipe.seed if goal.task == "kto" and shuffled else None), Examples(
        held_out
    )


def _adapted(run: Run, recipe: Recipe, base: BaseModelRef, goal: TaskSpec) -> Any:
    """The base with the adapter that training starts from."""
    if recipe.method not in FROM_BASE and not run.path("start").is_dir():
        return new_adapter(
            load_base_model(base, recipe, _load_dtype(recipe), goal), recipe, base, goal
        )
    start = run.path("start")
    if not start.is_dir():
        run.append(events.Preparing(what=f"Working out where {recipe.method} starts"))
        write_initial_adapter(start, base, recipe, goal)
    model = load_base_model(initial_base(start, base), recipe, _load_dtype(recipe), goal)
    return new_adapter(
        model, recipe, base, goal, put=lambda model: load_initial_adapter(model, start)
    )


def _load_dtype(recipe: Recipe) -> str:
    """The dtype in which the base is loaded: on a CPU float32, until the plan says what is computed and held in 16 bits."""
    return (
        inference_dtype()
        if recipe.compute_dtype == "automatic" or hardware.device() == "cpu"
        else recipe.compute_dtype
    )


def total_steps(recipe: Recipe, num_rows: int) -> int:
    """Optimizer steps of a whole training on `num_rows` rows."""
    steps = math.ceil(recipe.num_epochs * steps_per_epoch(recipe, num_rows))
    return min(steps, recipe.max_steps or steps)


def steps_per_epoch(recipe: Recipe, num_rows: int) -> int:
    """Optimizer steps in which each row is seen once."""
    return math.ceil(math.ceil(num_rows / recipe.batch_size) / recipe.gradient_accumulation_steps)


def steps_between_saves(recipe: Recipe, num_rows: int) -> int:
    """Optimizer steps after which a checkpoint is written."""
    return recipe.save_steps or min(steps_per_epoch(recipe, num_rows), _LONGEST_BETWEEN_SAVES)


def _first_plan(
    run: Run, recipe: Recipe, base: Any, goal: TaskSpec, model: Any, rows: Examples, free: int
) -> Plan:
    """Make the plan of a run that is trained for the first time, and keep it."""
    run.append(events.Preparing(what="Measuring what is fastest on this machine"))
    lengths = rows.lengths(recipe.max_length)
    longest = int(lengths.max())
    num_tokens = len(rows.of_median_length().input_ids)
    plan = make_plan(
        recipe,
        base,
        goal,
        model,
        num_tokens,
        longest,
        free,
        total_steps(recipe, len(rows)),
        distributed.num_processes(),
    )
    plan = plan.model_copy(update={"by_length": goes_by_length(lengths, recipe, goal.task)})
    write_plan(run, plan)
    if plan.by_length and recipe.row_order == "automatic":
        why = f"{saved_by_length(lengths, recipe, goal.task):.0%} less is computed than with rows in any order, where short ones are padded more."
        append_notice_once(
            run,
            events.Notice(what="Rows of about the same length share a step.", why=why),
            ever=True,
        )
    if plan.gradient_checkpointing and recipe.gradient_checkpointing == "automatic":
        why = f"With a longest row of {longest:,} tokens it would not fit into {gigabytes(free)} of free memory otherwise."
        what = "Activations are computed again in place of being kept (gradient checkpointing)."
        append_notice_once(run, events.Notice(what=what, why=why), ever=True)
    return plan


def _tell_plan(run: Run, plan: Plan) -> None:
    """Tell the user what was chosen, once, though training may be killed before it is told."""
    computing = (
        f"Computing in {plan.compute_dtype} with {plan.threads} thread{'s' * (plan.threads > 1)}."
    )
    append_notice_once(run, events.Notice(what=computing, why=plan.why), ever=True)
    if plan.num_processes > 1:
        rows = plan.gradient_accumulation_steps * plan.batch_size
        what = f"{plan.num_processes} processes train together, each on {rows} rows of a step."
        together = events.Notice(
            what=what, why="There are as many devices, or so many were asked for."
        )
        append_notice_once(run, together, ever=True)
    append_notice_once(
        run,
        events.Notice(
            what=f"Learning rate {plan.learning_rate:g},", why=f"{plan.learning_rate_why}."
        ),
        ever=True,
    )


def _refuse_another_origin(
    run: Run,
    checkpoint: Path,
    plan: Plan | None,
    base: BaseModelRef,
    rows: Examples,
    held_out: Examples,
    anyway: bool,
) -> None:
    """Raise UserError where a checkpoint is of something else than what is here; going on from it anyway is told."""
    if plan is None:
        raise UserError(
            "todo",
            "This run has checkpoints, and no plan.json, which says how it computes. Put it back, or train anew.",
        )
    step = checkpoints.step_of(checkpoint)
    here = current_provenance(run, plan, base, rows.tokens, held_out.tokens)
    if differences := check_provenance(
        step, checkpoints.checkpoint_provenance(checkpoint), here, anyway
    ):
        append_notice_once(
            run,
            events.Notice(
                what=f"Going on from step {step} as you asked, although",
                why=f"{'; '.join(differences)}.",
            ),
        )


def _arguments(
    run: Run, recipe: Recipe, plan: Plan, num_rows: int, evaluate: bool
) -> dict[str, Any]:
    """What transformers' `TrainingArguments` and TRL's children of it take."""
    epoch = steps_per_epoch(recipe, num_rows)
    return dict(  # noqa: C408 - read as the arguments that they are
        output_dir=str(run.path("checkpoints")),
        seed=recipe.seed,
        max_steps=total_steps(recipe, num_rows),
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=plan.learning_rate,
        warmup_steps=recipe.warmup_ratio,
        lr_scheduler_type=recipe.lr_scheduler_type,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=plan.compute_dtype == "bfloat16",
        fp16=plan.compute_dtype == "float16",
        use_cpu=plan.device == "cpu",
        eval_strategy="steps" if evaluate else "no",
        eval_steps=recipe.eval_steps or epoch,
        save_strategy="steps",
        save_steps=steps_between_saves(recipe, num_rows),
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a loss that is not a number would be told as 0
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        disable_tqdm=True,
        gradient_checkpointing=plan.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False}
        if plan.gradient_checkpointing
        else None,
    )


def _order_sets(adapter_config: Path) -> None:
    """Sort what PEFT holds as sets, and writes in an order that differs from process to process."""
    config: dict[str, Any] = json.loads(adapter_config.read_text())
    sets = {
        name: sorted(config[name])
        for name in ("target_modules", "modules_to_save")
        if isinstance(config.get(name), list)
    }
    atomic_io.write_text(adapter_config, json.dumps(config | sets, indent=2, sort_keys=True) + "\n")


def _save_adapter(
    run: Run,
    model: Any,
    tokenizer: Any,
    prepared: Prepared,
    base: BaseModelRef,
    plan: Plan,
    on_adapter_saved: AdapterSaved | None,
) -> None:
    """Write adapter/ whole or not at all: weights and config as PEFT writes them, tokenizer, and the measured figures."""
    aside, folder, old = run.path(_ADAPTER_ASIDE), run.path("adapter"), run.path(".adapter.old")
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    for measured in ("scores.json", "votes.json"):  # they are of the adapter that was there before
        run.path(measured).unlink(missing_ok=True)
    # no look at the Hub for the vocabulary's size: embeddings are not trained
    model.save_pretrained(aside, save_embedding_layers=False, selected_adapters=["default"])
    _order_sets(aside / "adapter_config.json")
    if run.recipe.method in FROM_BASE:
        to_plain_lora(aside, run.path("start"))
    tokenizer.save_pretrained(aside)
    if on_adapter_saved:
        on_adapter_saved(run, aside, prepared, base, plan)
    if folder.exists():
        os.replace(folder, old)
    atomic_io.atomic_rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
