"""Lets a model in training answer the same held-out prompts after every evaluation."""

import logging
import time
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_space import hardware
from peft_space.data.dataset import TrainingData
from peft_space.data.messages import shown_text
from peft_space.data.row_normalization import Conversation
from peft_space.data.tokenization.render import without_reasoning
from peft_space.evaluation.evaluate import expected_answer
from peft_space.evaluation.generate import decode, generate_greedy, pictures_in, tokenize_prompt
from peft_space.models.label_scorer import as_loaded, computing_in
from peft_space.models.loading import AdaptedModel
from peft_space.models.packing import own_attention
from peft_space.models.resolve import first_line
from peft_space.recipe import TaskSpec
from peft_space.runs import events
from peft_space.runs.plan import Plan
from peft_space.runs.run import Run, append_notice_once
from peft_space.training import distributed

logger = logging.getLogger(__name__)

NUM_PROMPTS = 2
MAX_NEW_TOKENS = 64
MAX_SHARE, FREE_SECONDS = 0.1, 1.0
"""An evaluation is passed over if the last answers took longer than FREE_SECONDS, and longer than
MAX_SHARE of the time since then."""


def makes_samples(run: Run, task_spec: TaskSpec, plan: Plan, data: TrainingData) -> bool:
    """Return True if this run's model can answer held-out prompts while it is trained."""
    writes = task_spec.task in ("causal-lm", "seq2seq-lm", "image-text-to-text")
    # each process has only a part of a sharded base, and compiled layers expect training's shapes
    is_whole = not plan.shard_base and not run.recipe.torch_compile
    return writes and is_whole and any(isinstance(row, Conversation) for row in data.held_out[:1])


class SampleAnswersCallback(TrainerCallback):
    """Records a `SampleAnswers` event after an evaluation. It draws no random numbers.

    Put it before the callback that records the evaluation: the time between steps and evaluations
    tells how long a ZeroGPU slice has to be.

    Args:
        run: the run that is trained.
        model: the model in training.
        tokenizer: the base model's.
        task_spec: a task that writes text.
        plan: its dtype is the one in which answers are computed.
        data: the first held-out rows are the prompts.
    """

    def __init__(
        self,
        run: Run,
        model: PeftModel,
        tokenizer: Any,
        task_spec: TaskSpec,
        plan: Plan,
        data: TrainingData,
    ):
        self._run, self._plan = run, plan
        rows = list(data.held_out[:NUM_PROMPTS])
        if run.recipe.reasoning_of_rows == "leave_out":
            rows = [without_reasoning(row) for row in rows]
        self._rows = [row for row in rows if isinstance(row, Conversation)]
        self._adapted = AdaptedModel(model, tokenizer, task_spec)
        self._prompts = [
            tokenize_prompt(self._adapted, row.messages[:-1], row.tools) for row in self._rows
        ]
        self._ended_at, self._seconds = time.monotonic(), 0.0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        started = time.monotonic()
        allowed = max(FREE_SECONDS, MAX_SHARE * (started - self._ended_at))
        if not self._rows or not distributed.is_main() or self._seconds > allowed:
            return
        try:
            answers = self._answers()
        except Exception as error:  # noqa: BLE001 - training continues without answers
            self._give_up(error)
            return
        self._run.append(events.SampleAnswers(step=state.global_step, answers=answers))
        self._ended_at = time.monotonic()
        self._seconds = self._ended_at - started

    def _give_up(self, error: Exception) -> None:
        """Answer no more rows. Some models train but cannot generate, or not in this memory."""
        logger.warning("held-out rows cannot be answered", exc_info=error)
        self._rows = []
        hardware.release_memory()
        what = "No more held-out rows are answered during training."
        append_notice_once(self._run, events.Notice(what=what, why=first_line(error)), ever=True)

    def _answers(self) -> list[events.SampleAnswer]:
        model, device = self._adapted.model, self._adapted.model.device
        pictures = [pictures_in(row.messages[:-1]) for row in self._rows]
        was_training = model.training
        model.eval()
        try:
            in_dtype = computing_in(self._plan.compute_dtype, device.type)
            with as_loaded(model), own_attention(model), in_dtype:
                written = generate_greedy(self._adapted, self._prompts, MAX_NEW_TOKENS, pictures)
        finally:
            model.train(was_training)
        return [
            events.SampleAnswer(
                row=row.row,
                prompt=shown_text(row.messages[-2]["content"]) if len(row.messages) > 1 else "",
                expected=expected_answer(self._adapted, row),
                answer=decode(self._adapted, ids),
            )
            for row, ids in zip(self._rows, written, strict=True)
        ]
