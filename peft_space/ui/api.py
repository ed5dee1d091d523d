"""The product for programs and agents: endpoints of stable names and plain types beside the page, told to users in docs/api.md.

A run opens only for who has its owner's secret, and no file is read but one that Gradio itself received.
"""

import functools
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

import gradio as gr
from gradio.context import Context
from gradio.exceptions import InvalidPathError
from gradio.utils import get_upload_folder
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic checks no other before Python 3.12

from peft_space import events, settings, verbs, visitors
from peft_space.curves import overfits_from
from peft_space.data.check import DEMO
from peft_space.data.hub_data import is_address
from peft_space.errors import UserError
from peft_space.execution import slices, zerogpu
from peft_space.execution.following import start_following
from peft_space.execution.trainings import start_training
from peft_space.recipe import make_recipe
from peft_space.run import Run, evaluations_of, kept_of, list_runs, open_run, steps_of, warnings_of
from peft_space.ui.page import Page, new_visitor, owner_of, tells_errors, token_of
from peft_space.verbs import Json

Upload = gr.FileData | str
Uploads = gr.FileData | str | list[gr.FileData | str]
_AS_IT_IS: Json = {}
_NOT_UPLOADED = 'This is no uploaded file. Give handle_file("rows.jsonl") of gradio_client, or the word "demo" for the sample data.'


@with_config(ConfigDict(extra="forbid"))
class Sampling(TypedDict, total=False):
    """How both columns draw their tokens. The same choices and limits as on the page."""

    max_new_tokens: Annotated[int, Field(ge=1, le=4096)]
    temperature: Annotated[float, Field(ge=0, le=5)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0)]


@with_config(ConfigDict(extra="ignore"))
class Turn(TypedDict):
    """A turn of a conversation, as an answer of /compare has it."""

    prompt: str
    base: str
    adapter: str


def build(page: Page) -> None:
    """Offer the endpoints. To be called inside `gr.Blocks`."""
    blocks = Context.root_block
    assert blocks is not None, "endpoints belong to a page"
    _say_why_files_are_refused(blocks)
    api = Api(page, blocks.upload_file_set)
    endpoints = (
        api.bring_text,
        api.check_data,
        api.advise,
        api.estimate,
        api.dry_run,
        api.start,
        api.status,
        api.stop,
        api.resume,
        api.compare,
        api.evaluate,
        api.pairs,
        api.vote,
        api.votes,
        api.export,
        api.card,
        api.push,
        api.save,
        api.take_up,
        api.script,
        api.job_hardware,
        api.hand_over,
        api.follow_job,
        api.cancel_job,
        api.runs,
    )
    for endpoint in endpoints:
        # two, so that one caller's evaluation does not hold up the next one's; there are no more worker processes
        gr.api(tells_errors(_checked(endpoint)), api_name=endpoint.__name__, concurrency_limit=2)


class Api:
    """The endpoints. Name, types, defaults and description of a method are what callers see of it."""

    def __init__(self, page: Page, uploads: set[str]):
        """`uploads`: the paths of the files that Gradio received; it grows."""
        self._workers, self._uploads = page.workers, uploads

    def bring_text(self, text: str, name: str = "rows.jsonl") -> Json:
        """Bring data as text, where no file can be uploaded: `data` of the answer is what the other endpoints take as `data` or `held_out`.

        Args:
            text: what would be in the file.
            name: what the file would be called; its ending says how it is read (.jsonl, .json, .csv, .tsv, .txt, .conll).
        """
        if not re.fullmatch(r"[\w -]{1,80}\.(jsonl|json|csv|tsv|txt|conll)", name):
            raise UserError(
                f"{name!r} is no name for text. End it in .jsonl, .json, .csv, .tsv, .txt or .conll, and use letters and digits before."
            )
        if len(text.encode()) > settings.max_file_megabytes() * 1e6:
            raise UserError(f"The text is larger than {settings.max_file_megabytes():g} MB. Bring less of it.")
        os.makedirs(get_upload_folder(), exist_ok=True)
        path = os.path.join(tempfile.mkdtemp(prefix="peft_space-", dir=get_upload_folder()), name)  # which nobody can guess
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        self._uploads.add(path)
        return {"data": path}

    def check_data(self, data: Uploads, recipe: Json = _AS_IT_IS, held_out: Upload | None = None, reading: Json = _AS_IT_IS) -> Json:
        """Say what is in a data file, what is wrong with which row, and how the recipe's base model will read it.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            reading: how to read the columns and what to mend: {"shape", "columns", "fixes"}, as an earlier check returned it in `reading` or `question`.
        """
        values = make_recipe(recipe).model_dump()
        return self._workers.call(
            "check", data=self._paths(data), recipe=values, held_out=self._held_out(held_out), reading=reading or None
        )

    def advise(self, data: Uploads, recipe: Json = _AS_IT_IS, held_out: Upload | None = None, reading: Json = _AS_IT_IS) -> Json:
        """Say what to choose for these data, this base model and this machine, with reasons: `advice`, the `recipe` with all of it, and `red_lines`.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are made already; {} leaves everything open.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            reading: how to read the columns and what to mend, as /check_data takes it.
        """
        values = make_recipe(recipe).model_dump()
        return self._workers.call(
            "advise", data=self._paths(data), recipe=values, held_out=self._held_out(held_out), reading=reading or None
        )

    def estimate(self, data: Uploads, recipe: Json = _AS_IT_IS, held_out: Upload | None = None, reading: Json = _AS_IT_IS) -> Json:
        """Say roughly what memory and time the training will take here, and on which hardware of a Space it would fit.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            reading: how to read the columns and what to mend, as /check_data takes it.
        """
        return self._before_training("estimate", data, recipe, held_out, reading)

    def dry_run(self, data: Uploads, recipe: Json = _AS_IT_IS, held_out: Upload | None = None, reading: Json = _AS_IT_IS) -> Json:
        """Train four steps for real, the last of the longest rows, and say what the whole training will take; nothing of it is kept.

        Args:
            data: an uploaded file, a list of files that are joined, a dataset on the Hub as "hf://datasets/OWNER/NAME?split=train",
                or the word "demo" for the sample data.
            recipe: the choices that are not to be the defaults; {} is a good start.
            held_out: an uploaded file, or a dataset, of rows to score on; without one, some rows of the data are kept from training.
            reading: how to read the columns and what to mend, as /check_data takes it.
        """
        return self._before_training("dry_run", data, recipe, held_out, reading)

    def start(
        self,
        data: Uploads,
        recipe: Json = _AS_IT_IS,
        held_out: Upload | None = None,
        owner: str = "",
        reading: Json = _AS_IT_IS,
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
            reading: how to read the columns and what to mend, as /check_data takes it.
            later: only make the run, to be trained elsewhere: /hand_over and /script take it, and so does /resume.
        """
        secret = new_visitor(owner) if settings.on_space() else owner
        folder = visitors.new_run(owner_of(secret))
        values = make_recipe(recipe).model_dump(exclude_defaults=True)
        given = {"data": self._paths(data), "held_out": self._held_out(held_out), "reading": reading or None}
        self._workers.call("make", directory=str(folder), recipe=values, **given)
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
        opened = open_run(owner_of(owner), run)
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
            "adjustments": [_told(event, "what", "why") for event in happened if isinstance(event, events.Adjusted)],
            "warnings": [_told(event, "step", "what", "advice") for event in warnings_of(happened)],
            "kept": _told(kept, "step", "why") if (kept := kept_of(happened)) else None,
            **_slices(opened),
        }

    def stop(self, run: str, owner: str = "") -> Json:
        """Ask a training to save and leave after its current step. /resume goes on from there.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        opened = open_run(owner_of(owner), run)
        if opened.status() in ("queued", "running"):
            opened.ask_to_leave("stop")
        return {"run": run, "status": opened.status()}

    def resume(
        self, run: str, owner: str = "", shorter: bool = False, anyway: bool = False, slice_seconds: Annotated[int, Field(ge=0)] = 0
    ) -> Json:
        """Go on with a training that was stopped or interrupted. `more` says whether to call again: on ZeroGPU a call trains for one slice.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            shorter: cut rows off at half their length, where the message of the run says that memory did not do.
            anyway: go on also where rows, recipe or libraries have changed since, which is refused otherwise.
            slice_seconds: on ZeroGPU the longest that the slice may be; 0 leaves it to the app, mostly 60.
        """
        opened = open_run(owner_of(owner), run)
        if (status := opened.status()) in ("queued", "handed over", "running", "finished"):
            raise UserError(f"The run {opened.name!r} is {status}: there is nothing to resume. Ask /status how far it is.")
        visitors.refuse_more_open(owner_of(owner))
        if settings.on_zerogpu():
            zerogpu.start(opened, shorter)
            more = zerogpu.go_on(opened, self._workers, slice_seconds or settings.slice_seconds(), anyway)
            return {"run": run, "status": opened.status(), "more": more, **_slices(opened)}
        start_training(opened, shorter, anyway)
        return {"run": run, "status": opened.status(), "more": False}

    def compare(
        self,
        run: str,
        prompts: Annotated[list[str], Field(min_length=1, max_length=100)],
        owner: str = "",
        system: str = "",
        sampling: Sampling = _AS_IT_IS,  # type: ignore[assignment]
        history: Annotated[list[Turn], Field(max_length=100)] = [],  # noqa: B006 - it is read only
        also: Annotated[list[str], Field(max_length=8)] = [],  # noqa: B006 - it is read only
    ) -> Json:
        """Let base and adapter answer the same prompts, and say whether the comparison was fair.

        Args:
            run: the id that /start returned.
            prompts: what to ask, up to 100 texts.
            owner: the secret that /start returned.
            system: a system message before each prompt.
            sampling: any of max_new_tokens, temperature, top_p and seed; without it the likeliest token is taken always.
            history: the turns before, {"prompt", "base", "adapter"} each, as earlier calls returned them; each column goes on with its own.
            also: what else answers: checkpoints of the run ("checkpoint-40"), or ids of other runs of the same owner on the same base.
        """
        more = [one if one.startswith("checkpoint-") else _trained(one, owner) for one in also]
        given = {"prompts": prompts, "system": system, "sampling": sampling, "history": [dict(turn) for turn in history], "also": more}
        return self._workers.call("compare", run=_trained(run, owner), **given)

    def evaluate(self, run: str, owner: str = "") -> Json:
        """Score base and adapter on the held-out rows.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        return self._workers.call("evaluate", run=_trained(run, owner))

    def pairs(
        self,
        run: str,
        owner: str = "",
        prompts: Annotated[list[str], Field(max_length=100)] = [],  # noqa: B006 - it is read only
        count: Annotated[int, Field(ge=1, le=200)] = 10,
        system: str = "",
        sampling: Sampling = _AS_IT_IS,  # type: ignore[assignment]
        seed: int = 0,
    ) -> Json:
        """Begin a blind vote: pairs of answers without their columns, in random order and on random sides. Votes before are forgotten.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            prompts: what to ask; without them, held-out rows.
            count: how many held-out rows.
            system: a system message before each of the prompts.
            sampling: as /compare takes it.
            seed: of the order and the sides.
        """
        given = {"prompts": prompts or None, "count": count, "system": system, "sampling": sampling, "seed": seed}
        return self._workers.call("pairs", run=_trained(run, owner), **given)

    def vote(self, run: str, pair: str, choice: str, owner: str = "") -> Json:
        """Keep a vote on a pair, and say how many are left.

        Args:
            run: the id that /start returned.
            pair: which one, as /pairs numbered it.
            choice: "left", "right", or "same".
            owner: the secret that /start returned.
        """
        return verbs.vote(_trained(run, owner), pair, choice)

    def votes(self, run: str, owner: str = "") -> Json:
        """Say how the blind vote stands, and list the votes.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        return verbs.votes(_trained(run, owner))

    def export(
        self,
        run: str,
        owner: str = "",
        target: Literal["adapter", "merged", "gguf", "ollama"] = "adapter",
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        merge_into: Literal["", "full", "dequantized"] = "",
        insist: bool = False,
        numbers: Literal["f32", "f16", "q8_0"] = "f16",
        apart: bool = False,
        system: str = "",
    ) -> gr.FileData:
        """The adapter, or the model it is merged into, as a .zip file with its proof; the client downloads it and returns the path.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            target: "adapter", "merged" for engines that take no adapter, "gguf" for llama.cpp, or "ollama", which is that with a Modelfile.
            dtype: of the merged model.
            merge_into: where the base was quantized in training: "full" precision, or "dequantized", the numbers that the adapter was trained on;
                empty is the latter.
            insist: keep it also where it is proven not to answer as the adapter does, which is refused otherwise.
            numbers: how weights are written in GGUF: in 32, 16 or 8 bits.
            apart: base and adapter as GGUF files of their own, instead of one of the merged model.
            system: a system message that Ollama gives conversations without one.
        """
        trained = _trained(run, owner)
        os.makedirs(get_upload_folder(), exist_ok=True)
        folder = tempfile.mkdtemp(prefix="peft_space-", dir=get_upload_folder())  # Gradio would copy it there from anywhere else
        wanted = {"target": target, "dtype": dtype, "merge_into": merge_into or None, "insist": insist}
        wanted["gguf"] = {"numbers": numbers, "apart": apart, "system": system}
        made = self._workers.call("export", run=trained, out=folder, as_zip=True, **wanted)
        return gr.FileData(path=made["path"], orig_name=os.path.basename(made["path"]))

    def card(self, run: str, owner: str = "") -> Json:
        """The model card as /push would push it now, to read and to edit.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        return self._workers.call("card", run=_trained(run, owner))

    def push(
        self,
        run: str,
        repo: str,
        token: str = "",
        public: bool = False,
        owner: str = "",
        card: str = "",
        target: Literal["adapter", "merged", "gguf", "ollama"] = "adapter",
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        merge_into: Literal["", "full", "dequantized"] = "",
        insist: bool = False,
        numbers: Literal["f32", "f16", "q8_0"] = "f16",
        apart: bool = False,
        signed_in: gr.OAuthToken | None = None,
    ) -> Json:
        """Push the adapter, or what /export makes of it, with its proof, to the Hugging Face Hub and return its address.

        Args:
            run: the id that /start returned.
            repo: OWNER/NAME. A new one is made; to one that exists a pull request is opened.
            token: a Hub token with write access, used for this push and forgotten; without it, the client's `oauth_token`.
            public: everybody can see it; otherwise only you can.
            owner: the secret that /start returned.
            card: an edited card, in place of the one that /card shows.
            target: as /export takes it, and so dtype, merge_into, insist, numbers and apart.
        """
        wanted = {"repo": repo.strip(), "token": token_of(token, signed_in), "public": public, "card": card or None}
        wanted["export"] = {"target": target, "dtype": dtype, "merge_into": merge_into or None, "insist": insist}
        wanted["export"]["gguf"] = {"numbers": numbers, "apart": apart}
        return self._workers.call("push", run=_trained(run, owner), **wanted)

    def save(self, run: str, repo: str, token: str = "", owner: str = "", signed_in: gr.OAuthToken | None = None) -> Json:
        """Save a run that is not being trained to a private dataset repository, with its data and all that it takes to go on; return its address.

        Args:
            run: the id that /start returned.
            repo: OWNER/NAME. A new one is made; one that a run was saved to before gets this one instead.
            token: a Hub token with write access, used for this and forgotten; without it, the client's `oauth_token`.
            owner: the secret that /start returned.
        """
        opened = open_run(owner_of(owner), run)
        return self._workers.call("save", run=str(opened.directory), repo=repo.strip(), token=token_of(token, signed_in))

    def take_up(self, repo: str, token: str = "", owner: str = "", signed_in: gr.OAuthToken | None = None) -> Json:
        """Make a run of one that was saved, here or elsewhere; /resume goes on with it. Returns what /start returns.

        Args:
            repo: OWNER/NAME.
            token: a Hub token that may read it, used for this and forgotten; without it, the client's `oauth_token`.
            owner: the secret of an earlier start, to have this run in the same list; without one a new secret is made.
        """
        secret = new_visitor(owner) if settings.on_space() else owner
        folder = visitors.new_run(owner_of(secret))
        self._workers.call("take_up", directory=str(folder), repo=repo.strip(), token=token_of(token, signed_in))
        return {"run": folder.name, "owner": secret, "status": Run(folder).status()}

    def script(self, run: str, owner: str = "") -> gr.FileData:
        """The run as one script that trains it on any machine or cluster, `uv run train.py`; the client downloads it and returns the path.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        opened = open_run(owner_of(owner), run)
        os.makedirs(get_upload_folder(), exist_ok=True)
        folder = tempfile.mkdtemp(prefix="peft_space-", dir=get_upload_folder())
        made = self._workers.call("script", run=str(opened.directory), out=os.path.join(folder, "train.py"))
        return gr.FileData(path=made["path"], orig_name="train.py")

    def job_hardware(self, run: str, token: str = "", owner: str = "") -> Json:
        """The `hardware` that Hugging Face Jobs have now, each with memory, time and cost of this run, and a timeout with margin.

        Args:
            run: the id that /start returned.
            token: a Hub token; empty is the one that this machine is signed in with.
            owner: the secret that /start returned.
        """
        opened = open_run(owner_of(owner), run)
        return self._workers.call("job_hardware", run=str(opened.directory), token=token_of(token, None))

    def hand_over(self, run: str, flavor: str, timeout: str, token: str = "", owner: str = "") -> Json:
        """Let a job on Hugging Face train the run. /status tells how it goes, and in the end the adapter is here.

        Args:
            run: the id that /start returned.
            flavor: the name of the hardware, as /job_hardware lists it.
            timeout: after which the job is ended, such as "90m" or "2h".
            token: a Hub token that may write and run jobs; the job gets it as a secret, to send the run back.
            owner: the secret that /start returned.
        """
        opened, used = open_run(owner_of(owner), run), token_of(token, None)
        handed = self._workers.call("hand_over", run=str(opened.directory), flavor=flavor, timeout=timeout, token=used)
        start_following(opened, used)
        return {"run": run, "status": opened.status(), **{name: handed[name] for name in ("job", "address", "repo")}}

    def follow_job(self, run: str, token: str = "", owner: str = "") -> Json:
        """Bring back what the run's job does, where nobody does so any more, as when this machine was started again.

        Args:
            run: the id that /start returned.
            token: a Hub token that may read the run's dataset.
            owner: the secret that /start returned.
        """
        opened = open_run(owner_of(owner), run)
        if opened.status() == "handed over":
            start_following(opened, token_of(token, None))
        return {"run": run, "status": opened.status()}

    def cancel_job(self, run: str, token: str = "", owner: str = "") -> Json:
        """End the run's job. What it has sent comes back, and /resume or /hand_over goes on from its last checkpoint.

        Args:
            run: the id that /start returned.
            token: a Hub token that may run jobs.
            owner: the secret that /start returned.
        """
        opened, used = open_run(owner_of(owner), run), token_of(token, None)
        self._workers.call("cancel_job", run=str(opened.directory), token=used)
        start_following(opened, used)
        return {"run": run, "status": opened.status()}

    def runs(self, owner: str = "") -> list[Json]:
        """Your runs, newest first.

        Args:
            owner: the secret that /start returned.
        """
        return [_line(run) | {"created": run.about["created"], "base_model": run.recipe.base_model} for run in list_runs(owner_of(owner))]

    def _before_training(self, verb: str, data: Any, recipe: Json, held_out: Any, reading: Json) -> Json:
        values = make_recipe(recipe).model_dump()
        return self._workers.call(verb, data=self._paths(data), recipe=values, held_out=self._held_out(held_out), reading=reading or None)

    def _paths(self, data: Any) -> str | list[str]:
        return [self._path(one) for one in data] if isinstance(data, list) else self._path(data)

    def _path(self, data: gr.FileData | str) -> str:
        """What the caller's data is to a worker. A path that the caller wrote opens nothing, whatever it comes in."""
        if data == DEMO or is_address(data):
            return str(data)
        path = data if isinstance(data, str) else data.path
        if path not in self._uploads:
            raise UserError(_NOT_UPLOADED)
        return path

    def _held_out(self, held_out: gr.FileData | str | None) -> str | None:
        return self._path(held_out) if held_out else None


def _trained(run: str, owner: str) -> str:
    """The folder of a run that has an adapter; where it has none this says so without starting a worker."""
    opened = open_run(owner_of(owner), run)
    _ = opened.adapter
    return str(opened.directory)


def _slices(run: Run) -> Json:
    """What of the GPU quota is used and left, and why training paused, if something came in between."""
    happened = run.history()
    paused = [event.why for event in happened if isinstance(event, events.Paused)][-1:] if run.status(happened) == "paused" else []
    failed = _failure(run, happened)
    used = asdict(slices.account(happened, settings.slice_seconds())) if settings.on_zerogpu() else None
    return {"message": failed or (paused and paused[0]) or None, "slices": used}


_LOSS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "seconds")


def _told(event: events.Event, *fields: str) -> Json:
    return event.model_dump(include=set(fields))


def _line(run: Run, happened: list[events.Event] | None = None) -> Json:
    """What a list of runs says of one."""
    happened = run.history() if happened is None else happened
    steps = steps_of(happened)
    return {"run": run.directory.name, "name": run.name, "status": run.status(happened), "step": steps[-1].step if steps else 0}


def _plan(run: Run) -> Json | None:
    """What was chosen for the machine. Read as it is written: the module that knows it would bring torch into the page."""
    path = run.path("plan.json")
    return json.loads(path.read_text()) if path.is_file() else None


def _failure(run: Run, happened: list[events.Event]) -> str | None:
    last = [event.message for event in happened if isinstance(event, events.Failed)][-1:]
    return last[0] if last and run.status(happened) == "failed" else None


def _checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, which tells in words when an argument is not of the type that it declares."""
    declared = {name: parameter.annotation for name, parameter in inspect.signature(endpoint).parameters.items()}
    # what Gradio gives, not the caller, is as it is
    kinds = {name: TypeAdapter(Any if kind == gr.OAuthToken | None else kind) for name, kind in declared.items()}

    @functools.wraps(endpoint)
    def checked(*given: Any) -> Any:
        arguments = {}
        for (name, kind), value in zip(kinds.items(), given, strict=True):
            try:
                arguments[name] = kind.validate_python(value)
            except ValidationError as error:
                raise UserError(_fault(name, error)) from None
        return endpoint(**arguments)

    return checked


def _fault(name: str, error: ValidationError) -> str:
    # the value is not repeated: it may be a token
    [fault, *_] = error.errors()
    inside = [str(part) for part in fault["loc"] if part not in ("FileData", "str")]  # those name a branch, not a place
    return f"{' '.join([name, *inside])}: {fault['msg'][0].lower()}{fault['msg'][1:]}. docs/api.md says what each endpoint takes."


def _say_why_files_are_refused(blocks: gr.Blocks) -> None:
    """Gradio refuses a file that it did not receive before any endpoint is called, and tells the caller nothing; this tells it."""
    receive = blocks.preprocess_data

    @functools.wraps(receive)
    async def preprocess_data(*args: Any, **named: Any) -> Any:
        try:
            return await receive(*args, **named)
        except InvalidPathError:
            raise gr.Error(_NOT_UPLOADED, print_exception=False) from None

    blocks.preprocess_data = preprocess_data  # type: ignore[method-assign]
