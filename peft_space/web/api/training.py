"""The endpoints that bring data, ask what to train, and train it."""

import json
import re
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from peft_space import settings
from peft_space.errors import UserError
from peft_space.operations import Json
from peft_space.recipe import make_recipe
from peft_space.runs import events, quotas
from peft_space.runs.run import Run
from peft_space.runs.status import evaluations_of, selected_checkpoint, steps_of, warnings_of
from peft_space.runs.store import list_runs, open_run
from peft_space.runtime import zerogpu, zerogpu_slices
from peft_space.runtime.supervisor import start_training
from peft_space.runtime.worker_pool import Workers
from peft_space.training.loss_analysis import overfits_from
from peft_space.web.api.arguments import AS_IT_IS, Files, Upload, Uploads
from peft_space.web.auth import new_owner, owners_of


class Training:
    """From data to a trained run. Name, types, defaults and description of a method are what callers see of it."""

    def __init__(self, workers: Workers, files: Files):
        self._workers, self._files = workers, files

    def bring_text(self, text: str, name: str = "rows.jsonl") -> Json:
        """Bring data as text, where no file can be uploaded: `data` of the answer is what the other endpoints take as `data` or `held_out`.

        Args:
            text: what would be in the file.
            name: what the file would be called; its ending says how it is read (.jsonl, .json, .csv, .tsv, .txt, .conll).
        """
        if not re.fullmatch(r"[\w -]{1,80}\.(jsonl|json|csv|tsv|txt|conll)", name):
            raise UserError(
                "todo",
                f"{name!r} is no name for text. End it in .jsonl, .json, .csv, .tsv, .txt or .conll, and use letters and digits before.",
            )
        if len(text.encode()) > settings.max_file_megabytes() * 1e6:
            raise UserError(
                "todo",
                f"The text is larger than {settings.max_file_megabytes():g} MB. Bring less of it.",
            )
        return {"data": self._files.keep(text, name)}

    def check_data(
        self,
        data: Uploads,
        recipe: Json = AS_IT_IS,
        held_out: Upload | None = None,
        column_mapping: Json = AS_IT_IS,
    ) -> Json:
        """Say what is in a data file, what is wrong with which row, and how the recipe's base model will read it.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            column_mapping: how to read the columns and what to mend: {"schema", "columns", "fixes"}, as an earlier check returned it in `column_mapping` or `question`.
        """
        values = make_recipe(recipe).model_dump()
        return self._workers.call(
            "check",
            data=self._files.paths(data),
            recipe=values,
            held_out=self._files.one(held_out),
            column_mapping=column_mapping or None,
        )

    def advise(
        self,
        data: Uploads,
        recipe: Json = AS_IT_IS,
        held_out: Upload | None = None,
        column_mapping: Json = AS_IT_IS,
    ) -> Json:
        """Say what to choose for these data, this base model and this machine, with reasons: `advice`, the `recipe` with all of it, and `red_lines`.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are made already; {} leaves everything open.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            column_mapping: how to read the columns and what to mend, as /check_data takes it.
        """
        values = make_recipe(recipe).model_dump()
        return self._workers.call(
            "recommend",
            data=self._files.paths(data),
            recipe=values,
            held_out=self._files.one(held_out),
            column_mapping=column_mapping or None,
        )

    def estimate(
        self,
        data: Uploads,
        recipe: Json = AS_IT_IS,
        held_out: Upload | None = None,
        column_mapping: Json = AS_IT_IS,
    ) -> Json:
        """Say roughly what memory and time the training will take here, and on which hardware of a Space it would fit.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            column_mapping: how to read the columns and what to mend, as /check_data takes it.
        """
        return self._before_training("estimate", data, recipe, held_out, column_mapping)

    def dry_run(
        self,
        data: Uploads,
        recipe: Json = AS_IT_IS,
        held_out: Upload | None = None,
        column_mapping: Json = AS_IT_IS,
    ) -> Json:
        """Train four steps for real, the last of the longest rows, and say what the whole training will take; nothing of it is kept.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            column_mapping: how to read the columns and what to mend, as /check_data takes it.
        """
        return self._before_training("dry_run", data, recipe, held_out, column_mapping)

    def start(
        self,
        data: Uploads,
        recipe: Json = AS_IT_IS,
        held_out: Upload | None = None,
        owner: str = "",
        column_mapping: Json = AS_IT_IS,
        later: bool = False,
    ) -> Json:
        """Begin a training and return at once: `run` is its id, `owner` the secret that all further calls need on a Space.

        On ZeroGPU it is made ready alone; each call of /resume trains it for a slice.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            owner: the secret of an earlier start, to have this run in the same list; without one a new secret is made.
            column_mapping: how to read the columns and what to mend, as /check_data takes it.
            later: only make the run, to be trained elsewhere: /hand_over and /script take it, and so does /resume.
        """
        secret = new_owner(owner)
        folder = quotas.new_run(owners_of(secret)[0])
        values = make_recipe(recipe).model_dump(exclude_defaults=True)
        given = {
            "data": self._files.paths(data),
            "held_out": self._files.one(held_out),
            "column_mapping": column_mapping or None,
        }
        self._workers.call("make_run", directory=str(folder), recipe=values, **given)
        run = Run(folder)
        if not later and not settings.on_zerogpu():
            start_training(run)
        return {"run": folder.name, "owner": secret, "status": run.status()}

    def status(self, run: str, owner: str = "", since_step: int = 0) -> Json:
        """How far a training is, and what was measured in it.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            since_step: losses up to this step are left out.
        """
        opened = open_run(owners_of(owner), run)
        happened = opened.history()
        started = [event for event in happened if isinstance(event, events.Started)]
        losses = [_told(event, *_LOSS) for event in steps_of(happened) if event.step > since_step]
        return _line(opened, happened) | {
            "total_steps": started[-1].total_steps if started else None,
            "recipe": opened.recipe.model_dump(),
            "plan": _plan(opened),
            "losses": losses,
            "evaluations": [_told(event, "step", "loss") for event in evaluations_of(happened)],
            "overfits_from": overfits_from(happened),
            "adjustments": [
                _told(event, "what", "why")
                for event in happened
                if isinstance(event, events.Notice)
            ],
            "warnings": [_told(event, "step", "what", "advice") for event in warnings_of(happened)],
            "kept": _told(kept, "step", "why") if (kept := selected_checkpoint(happened)) else None,
            **_slices(opened),
        }

    def stop(self, run: str, owner: str = "") -> Json:
        """Ask a training to save and leave after its current step. /resume goes on from there.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        opened = open_run(owners_of(owner), run)
        if opened.status() in ("queued", "running"):
            opened.request_stop("stop")
        return {"run": run, "status": opened.status()}

    def resume(
        self,
        run: str,
        owner: str = "",
        shorter: bool = False,
        anyway: bool = False,
        slice_seconds: Annotated[int, Field(ge=0)] = 0,
    ) -> Json:
        """Go on with a training that was stopped or interrupted. `more` says whether to call again: on ZeroGPU a call trains for one slice.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            shorter: cut rows off at half their length, where the message of the run says that memory did not do.
            anyway: go on also where rows, recipe or libraries have changed since, which is refused otherwise.
            slice_seconds: on ZeroGPU the longest that the slice may be; 0 leaves it to the app, mostly 60.
        """
        opened = open_run(owners_of(owner), run)
        if (status := opened.status()) in ("queued", "on_job", "running", "finished"):
            raise UserError(
                "todo",
                f"The run {opened.name!r} is {status}: there is nothing to resume. Ask /status how far it is.",
            )
        quotas.check_open_runs(opened.directory.parent.name)
        if settings.on_zerogpu():
            zerogpu.start(opened, shorter)
            more = zerogpu.run_slice(
                opened, self._workers, slice_seconds or settings.slice_seconds(), anyway
            )
            return {"run": run, "status": opened.status(), "more": more, **_slices(opened)}
        start_training(opened, shorter, anyway)
        return {"run": run, "status": opened.status(), "more": False}

    def runs(self, owner: str = "") -> list[Json]:
        """Your runs, newest first.

        Args:
            owner: the secret that /start returned.
        """
        return [
            _line(run) | {"created": run.about["created"], "base_model": run.recipe.base_model}
            for run in list_runs(*owners_of(owner))
        ]

    def _before_training(
        self, verb: str, data: Any, recipe: Json, held_out: Any, column_mapping: Json
    ) -> Json:
        values = make_recipe(recipe).model_dump()
        return self._workers.call(
            verb,
            data=self._files.paths(data),
            recipe=values,
            held_out=self._files.one(held_out),
            column_mapping=column_mapping or None,
        )


_LOSS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "seconds")


def _slices(run: Run) -> Json:
    """What of the GPU quota is used and left, and why training paused, if something came in between."""
    happened = run.history()
    paused = (
        [event.why for event in happened if isinstance(event, events.Paused)][-1:]
        if run.status(happened) == "paused"
        else []
    )
    failed = _failure(run, happened)
    used = (
        asdict(zerogpu_slices.slice_account(happened, settings.slice_seconds()))
        if settings.on_zerogpu()
        else None
    )
    return {"message": failed or (paused and paused[0]) or None, "slices": used}


def _told(event: events.Event, *fields: str) -> Json:
    return event.model_dump(include=set(fields))


def _line(run: Run, happened: list[events.Event] | None = None) -> Json:
    """What a list of runs says of one."""
    happened = run.history() if happened is None else happened
    steps = steps_of(happened)
    return {
        "run": run.directory.name,
        "name": run.name,
        "status": run.status(happened),
        "step": steps[-1].step if steps else 0,
    }


def _plan(run: Run) -> Json | None:
    """What was chosen for the machine. Read as it is written: the module that knows it would bring torch into the page."""
    path = run.path("plan.json")
    return json.loads(path.read_text()) if path.is_file() else None


def _failure(run: Run, happened: list[events.Event]) -> str | None:
    last = [event.message for event in happened if isinstance(event, events.Failed)][-1:]
    return last[0] if last and run.status(happened) == "failed" else None
