"""Compares and scores the base model and the adapter, side by side and in blind votes."""

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic accepts no other before Python 3.12

from peft_space import hardware
from peft_space.errors import UserError, oom_device
from peft_space.operations.registry import (
    Json,
    LocalFile,
    Options,
    OtherAdapters,
    OwnPrompts,
    Pictures,
    Progress,
    Prompts,
    Report,
    TrainedRun,
    operation,
    progress,
)
from peft_space.runs.run import Run
from peft_space.runtime import machine_queue

if TYPE_CHECKING:
    from peft_space.models.loading import AdaptedModel

_PROMPTS_PER_BATCH = 8


class Sampling(Options):
    """How both sides draw their tokens."""

    max_new_tokens: int = Field(128, ge=1, le=4096, title="Max new tokens")
    """The length limit of an answer, in tokens."""

    temperature: float = Field(0.0, ge=0, le=5, title="Temperature")
    """0 always takes the likeliest token."""

    top_p: float = Field(1.0, ge=0.01, le=1, title="Top p")
    """Draw from the likeliest tokens that have this probability together."""

    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed")
    """The same seed gives the same answers."""


@with_config(ConfigDict(extra="ignore"))
class Turn(TypedDict):
    """A turn of a conversation, as an answer of `compare` has it."""

    prompt: str
    base: str
    adapter: str


_loaded: dict[tuple[str, float], Any] = {}
"""The model of the last run that was used, by run and time of its adapter."""


def load_cached(run: str) -> "AdaptedModel":
    """The base model and adapter of a run, kept in memory until another or newer one is needed.

    Raises:
        UserError: a training uses the GPU, and the rest of its memory is not enough.
    """
    from peft_space.models.loading import load_adapted

    opened = Run(run)
    key = (run, (opened.adapter / "adapter_config.json").stat().st_mtime)
    if key not in _loaded:
        release_model()  # before the next is loaded, so that there are never two
        try:
            _loaded[key] = load_adapted(opened)
        except Exception as error:
            if not (oom_device(error) and machine_queue.others_need_machine()):
                raise
            raise UserError(
                "evaluation.memory_in_use",
                "A training uses this machine, and the rest of its memory is not enough for "
                "answers. Pause the training, or try again when it has ended.",
            ) from error
    return _loaded[key]


def release_model() -> None:
    """Give back the memory of the cached model, for work that loads models itself."""
    if _loaded:
        _loaded.clear()
        hardware.release_memory()


def release_model_for_training() -> None:
    """Give back the GPU memory of the cached model if a training uses or waits for the machine.

    A CPU's memory stays: the system can move what is not used to the disk.
    """
    if _loaded and hardware.device() == "cuda" and machine_queue.others_need_machine():
        release_model()


def _compare_text(result: Json, arguments: Json) -> str:
    texts = []
    for answer in result["answers"]:
        sides = {"Base": answer["base"], "Adapter": answer["adapter"], **answer["others"]}
        title = "Prompt"
        if answer["cut"]:
            title += f" ({answer['cut']:,} tokens are cut: the model has no positions for them)"
        titled = {title: answer["prompt"], **sides}.items()
        texts.append("\n\n".join(f"{title}:\n{text}" for title, text in titled))
    following = f"Next: peft-space export {arguments['run']} --out DIR"
    return "\n\n---\n\n".join([*texts, f"{result['fairness']['words']}\n{following}"])


@operation(group="evaluation", gpu=True, streams=True, text=_compare_text)
def compare(
    run: TrainedRun,
    prompts: Prompts,
    system: str = "",
    sampling: Sampling = Sampling(),  # noqa: B008 - it is frozen
    history: Annotated[list[Turn] | None, Field(max_length=100)] = None,
    compare_with: OtherAdapters = None,
    pictures: Pictures = None,
    report: Progress = None,
) -> Json:
    """Answer prompts with the base model and the adapter, and check that the comparison is fair.

    Args:
        system: a system message before each prompt
        history: earlier turns, as `answers` has them: {prompt, base, adapter} each
        report: receives {column, prompt, text} while answers grow

    Returns:
        `answers`, each with `base`, `adapter` and `others`; and `fairness`.
    """
    shown = _of_each_prompt(prompts, pictures or [])
    return _compare(run, prompts, shown, system, sampling, history, compare_with, report)


def _of_each_prompt(prompts: Sequence[str], pictures: Sequence[str | list[str]]) -> list[list[str]]:
    """The pictures of each prompt."""
    lists = [[one] if isinstance(one, str) else one for one in pictures]
    if len(prompts) == 1:
        return [[one for part in lists for one in part]]
    if pictures and len(pictures) not in (1, len(prompts)):
        raise UserError(
            "evaluation.unusable_picture",
            f"There are {len(prompts)} prompts and {len(pictures)} pictures. Give one picture for "
            "all, or one for each, in their order.",
        )
    return [lists[number % len(lists)] if lists else [] for number in range(len(prompts))]


def _compare(
    run: str,
    prompts: Sequence[str],
    pictures: Sequence[Sequence[str]],
    system: str,
    sampling: Sampling,
    history: Sequence[Any] | None = None,
    compare_with: list[str] | None = None,
    report: Report | None = None,
) -> Json:
    """Answer prompts with their pictures. The other arguments are those of `compare`."""
    from peft_space.evaluation import adapter_off_check, extra_adapters
    from peft_space.evaluation import compare as comparing
    from peft_space.evaluation.evaluate import commonest_label
    from peft_space.evaluation.prompts import with_pictures

    history, others = history or [], compare_with or []
    first = [history[0]["prompt"] for _ in prompts] if history else prompts
    asked = [with_pictures(*question) for question in zip(first, pictures, strict=True)]
    turns = {
        side: [
            _turns(system, history, side, question, prompt)
            for question, prompt in zip(asked, prompts, strict=True)
        ]
        for side in adapter_off_check.SIDES
    }
    on_text = (
        (lambda side, prompt, text: report({"column": side, "prompt": prompt, "text": text}))
        if report
        else None
    )
    progress(report)(0.0, "Loading the base model and the adapter")
    draw, adapted = comparing.Sampling(**sampling.model_dump()), load_cached(run)
    _check_history(adapted.task_spec.task, bool(history), bool(others))
    _check_pictures(adapted, any(pictures))
    seen: adapter_off_check.SeenTokens = {"base": [], "adapter": []}
    answers = comparing.compare(adapted, turns["base"], draw, on_text, seen, turns["adapter"])
    other_answers: list[Json] = [{} for _ in prompts]
    if others:
        progress(report)(0.5, "The other adapters answer")
        other_answers = extra_adapters.extra_answers(
            adapted, Run(run), others, turns["adapter"], draw
        )
    batched = comparing.can_batch_both_sides(adapted, draw)
    checked = adapter_off_check.check(adapted, seen, batched, own_histories=bool(history))
    return {
        "task": adapted.task_spec.task,
        "commonest": commonest_label(Run(run)) if adapted.task_spec.labels else None,
        "sampling": asdict(draw),
        "answers": [
            asdict(answer) | {"others": more}
            for answer, more in zip(answers, other_answers, strict=True)
        ],
        "fairness": asdict(checked) | {"fair": checked.fair, "words": checked.in_words()},
    }


def _check_history(task: str, has_history: bool, has_others: bool) -> None:
    from peft_space.models.architecture import CLASSIFYING

    if has_history and task in ("seq2seq-lm", *CLASSIFYING):
        raise UserError(
            "operations.no_conversation",
            "This model answers single texts, not conversations. Ask without `history`.",
        )
    if has_history and has_others:
        raise UserError(
            "operations.no_conversation",
            "Other adapters can only answer the first turn. Ask without `history`.",
        )


def _check_pictures(adapted: "AdaptedModel", has_pictures: bool) -> None:
    from peft_space.data.tokenization.render import processor_of

    if has_pictures:
        processor_of(adapted.tokenizer)


def _turns(system: str, history: Sequence[Any], side: str, first: Any, prompt: str) -> list[Any]:
    """A conversation. `first` is its first question, which may have pictures."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    if not history:
        return [*messages, first]
    for number, turn in enumerate(history):
        messages.append({"role": "user", "content": turn["prompt"]} if number else first)
        messages.append({"role": "assistant", "content": turn[side]})
    return [*messages, {"role": "user", "content": prompt}]


def _evaluate_text(result: Json, arguments: Json) -> str:
    from peft_space.evaluation import results

    scores = results.evaluation_from_json(result)
    base = results.shown_with_intervals(scores, "base")
    adapter = results.shown_with_intervals(scores, "adapter")
    change = results.differences(scores)
    lines = [
        f"{name}: base {base[name]}, adapter {adapter[name]}, difference {change[name]}"
        for name in adapter
    ]
    forgetting = scores.general.in_words() if scores.general else ""
    cut = results.cut_words(scores)
    notes = [results.majority_words(scores), cut, forgetting, scores.fairness]
    return "\n".join(
        [
            f"On {result['num_rows']} held-out rows, with 95 % intervals:",
            *lines,
            *filter(None, notes),
            f"Next: peft-space compare {arguments['run']} --prompt TEXT",
        ]
    )


@operation(group="evaluation", gpu=True, resumable=True, text=_evaluate_text)
def evaluate(run: TrainedRun, report: Progress = None) -> Json:
    """Score the base model and the adapter on the held-out rows.

    An interrupted evaluation continues from its stored scores. On ZeroGPU each call scores for one
    slice; `more` says whether to call again.

    Returns:
        The scores of `base` and `adapter` with `intervals`, and the change of general answers
        (`general`).
    """
    from peft_space.evaluation.evaluate import evaluate as evaluate_run

    progress(report)(0.0, "Loading the base model and the adapter")
    return asdict(evaluate_run(Run(run), load_cached(run), progress(report)))


_VOTE_ON_CLI = "A blind vote needs a screen that shows both answers: the page, or a program."


@operation(
    group="evaluation",
    gpu=True,
    resumable=True,
    surfaces=("api", "page"),
    why_not={"cli": _VOTE_ON_CLI},
)
def vote_pairs(
    run: TrainedRun,
    prompts: OwnPrompts = None,
    count: Annotated[int, Field(ge=1, le=200)] = 10,
    system: str = "",
    sampling: Sampling = Sampling(),  # noqa: B008 - it is frozen
    seed: int = 0,
    report: Progress = None,
) -> Json:
    """Start a blind vote on pairs of answers, in random order and on random sides.

    Earlier votes are discarded. An interrupted call continues from its stored answers. On ZeroGPU
    each call answers for one slice; `more` says whether to call again.

    Args:
        prompts: what to ask; without them, held-out rows
        count: how many held-out rows
        system: a system message before each prompt
        seed: of the order and the sides
    """
    from peft_space.evaluation import blind_vote
    from peft_space.evaluation.prompts import held_out_prompts
    from peft_space.evaluation.results import ANSWERING, ResumableBatches, key_of

    opened, on_progress = Run(run), progress(report)
    own = [{"prompt": prompt, "system": system} for prompt in prompts or []]
    questions = own or held_out_prompts(opened, count)
    key = key_of(opened, questions, sampling.model_dump(exclude_unset=True))
    answering = ResumableBatches(opened, key, lambda _: None, ANSWERING)
    answers: list[Json] = []
    for start in range(0, len(questions), _PROMPTS_PER_BATCH):
        share = start / len(questions)
        on_progress(share, "Both sides answer, unseen")
        batch = questions[start : start + _PROMPTS_PER_BATCH]
        for message in dict.fromkeys(question["system"] for question in batch):
            together = [one for one in batch if one["system"] == message]
            # not the answers themselves: they would show which side gave which
            still = functools.partial(_report_share, on_progress, share)
            answer = functools.partial(_answer_unseen, run, together, message, sampling, still)
            answers += answering.batch(message, start, answer)
    answering.done()
    return {"pairs": blind_vote.create_pairs(opened, answers, seed)}


def _report_share(on_progress: Any, share: float, message: Json) -> None:
    on_progress(share, "Both sides answer, unseen")


def _answer_unseen(
    run: str, questions: list[Json], system: str, sampling: Sampling, report: Report
) -> list[Json]:
    prompts = [one["prompt"] for one in questions]
    pictures = [one.get("pictures", []) for one in questions]
    result = _compare(run, prompts, pictures, system, sampling, report=report)
    if result["task"].endswith("classification"):
        raise UserError(
            "operations.no_vote_on_labels",
            "A label is right or wrong, so there is nothing to vote on. Evaluate the run instead.",
        )
    if not result["fairness"]["fair"]:
        raise UserError("operations.unfair_comparison", result["fairness"]["words"])
    return result["answers"]


@operation(
    group="evaluation", in_process=True, surfaces=("api", "page"), why_not={"cli": _VOTE_ON_CLI}
)
def vote(run: TrainedRun, pair: str, choice: Literal["left", "right", "same"]) -> Json:
    """Vote on a pair of answers.

    Args:
        pair: its number in `pairs`
        choice: the better answer

    Returns:
        `left_to_vote`, the number of pairs without a vote.
    """
    from peft_space.evaluation import blind_vote

    blind_vote.vote(Run(run), pair, choice)
    return {"left_to_vote": len(blind_vote.open_pairs(Run(run)))}


@operation(
    group="evaluation",
    command_name="blind-vote",
    in_process=True,
    text=lambda result, _: result["words"],
)
def vote_results(run: TrainedRun, csv: LocalFile = None) -> Json:
    """Show the result of the blind vote that was held on the page or in a program.

    Args:
        csv: also write the votes to this file

    Returns:
        The adapter's `win_rate` with its `interval`, a summary in `words`, and the `votes`.
    """
    from peft_space.evaluation.blind_vote import as_csv, result

    outcome = result(Run(run))
    if csv:
        Path(csv).write_text(as_csv(outcome["votes"]), encoding="utf-8", newline="")
    return outcome
