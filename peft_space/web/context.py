"""What the tabs share: the recipe form, the chosen run, the visitor, the workers, and how errors reach the visitor."""

import functools
import hashlib
import inspect
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.utils import get_upload_folder

from peft_space import settings
from peft_space.errors import UserError, as_user_error, user_message
from peft_space.operations import OPERATIONS
from peft_space.runs.run import Run
from peft_space.runs.store import list_runs, open_run
from peft_space.runtime.worker_pool import WorkerFault, Workers
from peft_space.runtime.zerogpu import SlicedWorkers
from peft_space.web.auth import account_of
from peft_space.web.recipe_form import Form
from peft_space.web.render import overview as render_overview

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""For every handler of a widget: the public API is in `api/`."""

SECONDS_LIVE, SECONDS_IDLE, SECONDS_LOST = 1.0, 5.0, 15.0
"""Between looks at the run. A look costs the visitor's browser about a tenth of a second, however little has changed."""

logger = logging.getLogger(__name__)


class PageContext:
    """Made inside `gr.Blocks`, before the tabs; every tab gets it."""

    def __init__(self) -> None:
        self.workers = SlicedWorkers(OPERATIONS) if settings.on_zerogpu() else Workers()
        self.form = Form()
        # the secret is no secret, any page can read it; one of each start would make the visitor another after a restart
        self.visitor = gr.BrowserState("", storage_key="peft_space_visitor", secret="peft_space")
        self.data = gr.State("")
        """A path, a list of paths, or `demo`."""
        self.held_out = gr.State("")
        self.column_mapping = gr.State({})
        """How the visitor wants the data to be read; empty leaves that to be recognised."""
        self.num_rows = gr.State(0)
        self.measured = gr.State(None)
        """Seconds that the whole training takes, as a dry run has measured; None before one."""
        self.task = gr.State("automatic")
        """What the data show, once they are read."""
        self.state = gr.State(None)
        """[status, whether there is an adapter] of the chosen run; the Train tab keeps it."""
        self.trained = gr.State("")
        """The data that a run was started with last; others are fresh."""
        self.timer = gr.Timer(SECONDS_IDLE)  # not on a tab: it would rest until that is opened
        self.lookout = gr.Timer(SECONDS_LOST)
        """Looks too. Gradio asks nothing more by the one timer while an answer to it is out, and where that got lost, the page stood still."""
        self.run = gr.Dropdown(
            [],
            label="Run",
            info="Train, Compare and Publish are about this run.",
            render=False,
            visible=False,
            elem_id="run",
        )

        self.shown = gr.State("")
        """The id of the run that the page is about. Gradio tells of a change of the list again and again, the same run being chosen: on a Space
        without end, and each time all that is shown of the run was cleared. Of this it tells only when it is another."""

    def owners(self, values: dict[Any, Any]) -> list[str]:
        """Whose runs a visitor sees: those of the Hub account they are signed in with, and of the secret in their browser. New ones are the first's."""
        return [
            *([f"hub-{_digest(account)}"] if (account := signed_in_as()) else []),
            owner_of(values[self.visitor]),
        ]

    def owner(self, values: dict[Any, Any]) -> str:
        """Whose a visitor's new runs are."""
        return self.owners(values)[0]

    @property
    def for_training(self) -> set[gr.components.Component]:
        """What a handler has to take to start a training."""
        return {
            self.visitor,
            self.run,
            self.data,
            self.held_out,
            self.column_mapping,
            *self.form.inputs,
        }

    def data_arguments(self, values: dict[Any, Any]) -> dict[str, Any]:
        """What a verb has to be told of the data."""
        return {
            "data": values[self.data],
            "held_out": values[self.held_out] or None,
            "column_mapping": values[self.column_mapping] or None,
        }

    def working(
        self,
        where: gr.components.Component,
        show: Callable[[dict[str, Any]], dict[Any, Any]],
        verb: str,
        **arguments: Any,
    ) -> Iterator[dict[Any, Any]]:
        """Do a verb in a worker; say `where` what is being done, and in the end what `show` makes of its result."""
        for message in self.workers.stream(verb, **arguments):
            if report := message.get("report"):
                share = f" ({report['share']:.0%})" if report.get("share") else ""
                yield {where: f"{render_overview.escape(report['what'])}…{share}"}
            elif "result" in message:
                yield show(message["result"])
            else:
                yield {where: gr.skip()}

    def chosen_run(self, values: dict[Any, Any]) -> Run:
        """The visitor's run that is chosen in the list. Raises UserError where none is."""
        if not values[self.run]:
            raise UserError("todo", "There is no run yet. Start a training on the Train tab.")
        return open_run(self.owners(values), values[self.run])

    def runs(self, values: dict[Any, Any], choose: str | None = None) -> Any:
        """The list of the visitor's runs, freshly read. `choose` is the id to select; else what was chosen stays, or the newest."""
        choices = render_overview.run_choices(list_runs(*self.owners(values)))
        ids = [run_id for _, run_id in choices]
        chosen = choose or (
            values.get(self.run) if values.get(self.run) in ids else next(iter(ids), None)
        )
        return gr.update(choices=choices, value=chosen, visible=bool(choices))


def served_folder() -> str:
    """A new folder that nobody can guess, and whose files Gradio serves as they are: from anywhere else it would copy them there."""
    os.makedirs(get_upload_folder(), exist_ok=True)
    return tempfile.mkdtemp(prefix="peft_space-", dir=get_upload_folder())


_SHORTEST_SECRET = 16
_SECONDS_OF_A_TOAST = 10
"""Where the words also stay on the page; elsewhere a toast stays until it is closed."""


def owner_of(secret: str) -> str:
    """Whose runs a secret opens: on a Space those started with it, on one's own machine all of them. Raises UserError where it is none."""
    if not settings.on_space():
        return "local"
    if (
        len(secret) < _SHORTEST_SECRET
    ):  # a shorter one could be guessed, and the empty one would be everybody's
        raise UserError(
            "todo",
            "It is not said whose runs these are. Give the `owner` that /train returned; on the page, reload it.",
        )
    return _digest(secret)


def owners_of(secret: str) -> list[str]:
    """Whose runs a program sees: those of its secret, and of the account that its Hub token is of. New ones are the first's. UserError where it has neither."""
    account = [f"hub-{_digest(account)}"] if (account := signed_in_as()) else []
    return [owner_of(secret), *account] if secret or not account else account


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


request_token: ContextVar[str | None] = ContextVar("brought", default=None)
"""The `oauth_token` of the program whose call is being answered."""


def signed_in_as() -> str | None:
    """The Hub account that the visitor whose event is being handled is signed in with, or whose token a program brings: its id, which stays when its name is changed."""
    request = LocalContext.request.get(None)
    scope = request.request.scope if isinstance(request, gr.Request) and settings.signs_in() else {}
    signed_in = scope.get("session", {}).get("oauth_info") or {}
    if signed_in.get("expires_at", 0) > time.time():
        return signed_in["userinfo"]["sub"]
    token = request_token.get()
    return account_of(token) if token and settings.signs_in() else None


def token_of(typed: str | None, signed_in: gr.OAuthToken | None) -> str | None:
    """The Hub token for what a visitor asks for: the one they typed, or that of their signing in."""
    return (typed or "").strip() or (signed_in.token if signed_in else None)


def new_visitor(secret: str) -> str:
    """The visitor's secret; made on the first visit."""
    return secret or secrets.token_hex(24)


def new_owner(secret: str) -> str:
    """The secret of a program's new run; made on a Space, where there is none and no account either."""
    return new_visitor(secret) if settings.on_space() and not signed_in_as() else secret


def cpu_notice(what: str, takes: str) -> None:
    """Where GPUs are lent, say of `what` is computed without one that it is, and what it `takes`. To be called inside `gr.Blocks`."""
    if settings.on_zerogpu():
        gr.Markdown(
            f"{what} on this Space's own CPU, not on a lent GPU: nothing of your quota goes on it, but {takes}."
        )


def reset_on_failure(event: Any, as_before: dict[Any, Any]) -> None:
    """Where an event fails, its buttons are as before. A step of its own: what a generator shows just before it raises can be lost."""
    event.failure(lambda: as_before, None, list(as_before), show_progress="hidden", **PRIVATE)


def show_errors(
    handler: Callable[..., Any], where: gr.components.Component | None = None
) -> Callable[..., Any]:
    """The one place where the page puts exceptions into words: a UserError's own, or that it is our fault, with its traceback in the log.

    A generator can name a component `where` the words stay, besides the toast.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any) -> Any:
            try:
                yield from handler(*args)
            except Exception as error:  # noqa: BLE001 - see the docstring
                told = _in_words(error)
                if where is not None:
                    told.duration = _SECONDS_OF_A_TOAST
                    yield {where: f"⚠ {render_overview.escape(told.message)}"}
                raise told from None

        return generator

    @functools.wraps(handler)
    def function(*args: Any) -> Any:
        try:
            return handler(*args)
        except Exception as error:  # noqa: BLE001 - see the docstring
            raise _in_words(error) from None

    return function


def _in_words(error: Exception) -> gr.Error:
    if isinstance(error, WorkerFault):
        return gr.Error(str(error), duration=None, print_exception=False)
    if as_user_error(error) is not None:
        return gr.Error(user_message(error), duration=None, print_exception=False)
    logger.exception("a handler of the page failed", exc_info=error)
    return gr.Error(user_message(error), duration=None, print_exception=False)
