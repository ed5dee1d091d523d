"""State that the tabs share: the recipe form, the data, the selected run, the visitor, workers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from peft_space import settings
from peft_space.errors import UserError
from peft_space.operations import OPERATIONS
from peft_space.recipe import Recipe, make_recipe
from peft_space.runs.run import Run
from peft_space.runs.store import open_run
from peft_space.runtime.supervisor import keep_standby
from peft_space.runtime.worker_pool import Workers
from peft_space.runtime.zerogpu import SlicedWorkers
from peft_space.web import states
from peft_space.web.auth import account_owner, owner_of
from peft_space.web.recipe_form import OptionsForm

Values = dict[Any, Any]
"""The input of a handler: the value of each of its input components."""
Inputs = set[Any]
"""The components whose values a handler receives."""
Updates = dict[Any, Any]
"""The output of a handler: a new value or `gr.update` for some of its output components."""

Subject = Literal["run", "draft"]


@dataclass(frozen=True)
class Listener:
    """A handler that shares an event with others."""

    handler: Callable[[Values], Updates]
    inputs: Inputs
    outputs: list[Any]


PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress_on": []}
"""For every handler of a widget: the public API is declared elsewhere. Gradio shows no progress on
the outputs: with each state of an event it would update every output of every earlier event, which
keeps a browser busy all the time. Handlers that take long say so themselves."""
HIDDEN: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
"""For handlers that answer at once."""
EDIT: dict[str, Any] = {"concurrency_id": "recipe", "concurrency_limit": 1, **HIDDEN}
"""For handlers that change the recipe: one after the other, so that no change is lost."""

NO_MODEL = ""
"""The form's base model until the visitor chooses one."""
DATA_FIELDS = (
    *("base_model", "revision", "task", "max_length", "eval_split", "seed"),
    *("train_on", "chat_template"),
)
"""The fields that change how data are read."""

SECONDS_LIVE, SECONDS_IDLE, SECONDS_FALLBACK = 3.0, 5.0, 15.0
"""Between checks of the run. After each event Gradio updates every input of every earlier event, so
a check can cost the visitor's browser a second on a slow machine."""


class PageContext:
    """The shared state of a page. Create it inside `gr.Blocks`, before the tabs.

    The page shows either the new fine-tune, which is made of `data` and the form, or one run. The
    two are never mixed: `run` is empty exactly while the new fine-tune is shown.
    """

    def __init__(self) -> None:
        self.workers = SlicedWorkers(OPERATIONS) if settings.on_zerogpu() else Workers()
        self.form = OptionsForm(Recipe, "recipe")
        self.base_model = gr.Dropdown(
            [],
            value=NO_MODEL,
            label="Base model",
            info="A model on the Hugging Face Hub, such as Qwen/Qwen3-0.6B, or a local folder.",
            allow_custom_value=True,
            render=False,
            elem_id="recipe-base_model",
        )
        self.form.replace("base_model", self.base_model, NO_MODEL)
        # Any page can read this constant. A secret that changes at each start would make
        # every visitor a new one after a restart.
        self.visitor = gr.BrowserState("", storage_key="peft_space_visitor", secret="peft_space")
        self.data = gr.State("")
        """A path, a list of paths, or `demo`."""
        self.held_out = gr.State("")
        self.column_mapping = gr.State({})
        """How the visitor wants the data to be read; empty means automatic."""
        self.data_state = gr.State(states.NO_DATA)
        """What the last check of the data found; see `states.DataState`."""
        self.recipe_state = gr.State(states.DEFAULT_RECIPE)
        """The recipe, as what is changed and what is wrong in the form; see `states.RecipeState`.
        Handlers read it here: the form's many fields as inputs would slow each event down."""
        self.data_recipe = gr.State({})
        """The changed settings that shape the data; these are read again when it changes."""
        self.measured_seconds = gr.State(None)
        """Duration of the whole training, measured by a dry run; None before one."""
        self.task = gr.State("automatic")
        """The task that the data implies, once it has been read."""
        self.run = gr.State("")
        """The id of the run that the page shows; empty for the new fine-tune."""
        self.run_state = gr.State(None)
        """[status, whether there is an adapter] of the shown run; the Train tab sets it."""
        self.run_progress = gr.State(None)
        """[share, seconds left] of the shown run while it trains."""
        self.machine = gr.State({})
        """What the machine is, from the operation `machine`; empty until it is known."""
        self.runs_opened = gr.State(0.0)
        """The time when the list of all runs was opened; it is read then."""
        self.to_compare = gr.State([])
        """The ids of the runs that the list of all runs compares when it is opened."""
        self.runs_changed = gr.State(0.0)
        """The time of the last change of a run's name or score; the list is read again then."""
        self._listeners: dict[Subject, list[Listener]] = {"run": [], "draft": []}
        self._buttons: list[gr.components.Component] = []
        self._resets: Updates = {}
        self.timer = gr.Timer(SECONDS_IDLE)  # not on a tab: it would rest until that is opened
        self.fallback_timer = gr.Timer(SECONDS_FALLBACK)
        """Gradio sends no more ticks while an answer is outstanding. One lost froze the page."""

    def warm(self) -> None:
        """Start what the next check and the next training need, before someone waits for it."""
        self.workers.warm()
        if not settings.on_zerogpu():
            keep_standby()

    @property
    def selection(self) -> Inputs:
        """Inputs of a handler that works on the selected run."""
        return {self.visitor, self.run}

    @property
    def data_inputs(self) -> Inputs:
        """Inputs of a handler that needs the data and the recipe."""
        return {self.data, self.held_out, self.column_mapping, self.recipe_state}

    @property
    def recipe_outputs(self) -> list[Any]:
        """Outputs of a handler that changes any fields of the recipe."""
        return [*self.form.widgets.values(), self.recipe_state, self.data_recipe]

    @property
    def training_inputs(self) -> Inputs:
        """Inputs of a handler that creates a run."""
        return self.selection | self.data_inputs

    def owners(self, values: Values) -> list[str]:
        """Return the owners whose runs the visitor sees: their Hub account, their browser."""
        account = account_owner()
        return [*([account] if account else []), owner_of(values[self.visitor])]

    def owner(self, values: Values) -> str:
        """Return the owner of the visitor's new runs."""
        return self.owners(values)[0]

    def data_arguments(
        self, values: Values, no_model: str = NO_MODEL, **dump_options: Any
    ) -> dict[str, Any]:
        """Return the arguments of an operation on the page's data and recipe.

        Args:
            values: of `data_inputs`.
            no_model: the base model if none is chosen.
            dump_options: of pydantic's `model_dump` for the recipe.

        Raises:
            UserError: there is no data, or the recipe is not valid.
        """
        if not values[self.data]:
            raise UserError(
                "web.no_data",
                "There is no data yet. Upload a file or pick an example on the Data tab.",
            )
        return {
            "data": values[self.data],
            "held_out": values[self.held_out] or None,
            "column_mapping": values[self.column_mapping] or None,
            "recipe": self.recipe(values, no_model).model_dump(**dump_options),
        }

    def recipe(self, values: Values, no_model: str = NO_MODEL) -> Recipe:
        """Return the recipe in the form, with the base model `no_model` if none is chosen.

        Raises:
            UserError: a setting is wrong, or there is no base model.
        """
        state: states.RecipeState = values[self.recipe_state]
        if not (model := state["model"] or no_model):
            raise UserError("web.no_model", "Choose a base model on the Recipe tab.")
        return make_recipe(state["changed"] | {"base_model": model})

    def edit_recipe(self, values: Values, changed: dict[str, Any]) -> Updates:
        """Make `changed` the only fields of the recipe that are not at their default.

        Args:
            values: of `recipe_state`.
            changed: field -> value, which need not be valid.

        Returns:
            The new state, and updates of the widgets of fields that differ.
        """
        before: states.RecipeState = values[self.recipe_state]
        changed = self.form.without_defaults(changed)
        state: states.RecipeState = {
            "model": changed.get("base_model", NO_MODEL),
            "changed": changed,
            "problems": self.form.problems(changed),
            "refused": "",
            "seen": before["seen"],
        }
        return {
            **self.form.show(before["changed"], before["problems"], changed, state["problems"]),
            self.recipe_state: state,
            self.data_recipe: {name: changed[name] for name in DATA_FIELDS if name in changed},
        }

    @staticmethod
    def timer_for(live: bool) -> gr.Timer:
        """Return the timer that checks a run: often only while it changes."""
        return gr.Timer(SECONDS_LIVE if live else SECONDS_IDLE)

    def selected_run(self, values: Values) -> Run:
        """Return the selected run. Raises UserError if there is none."""
        if not values[self.run]:
            raise UserError(
                "web.no_run", "No run is selected. Choose one in the sidebar, or start a training."
            )
        return open_run(self.owners(values), values[self.run])

    def trained_run(self, values: Values) -> Run:
        """Return the selected run. Raises UserError if there is none, or it has no adapter."""
        run = self.selected_run(values)
        _ = run.adapter
        return run

    def listen(
        self, subject: Subject, handler: Callable[[Values], Updates], inputs: Inputs, outputs: Any
    ) -> None:
        """Call a handler whenever the shown run, or the new fine-tune, changes.

        All handlers of a subject share one event, because each event costs the browser a request.

        Args:
            subject: "run" is the shown run and its status, "draft" the data and the recipe.
            handler: takes the values of `inputs` and returns updates of `outputs`.
            inputs: besides the states of the subject and the visitor.
            outputs: every component that the handler may update.
        """
        self._listeners[subject].append(Listener(handler, inputs, list(outputs)))

    def wire_listeners(self, wrap: Callable[..., Any]) -> None:
        """Wire what `listen`, `enable_with_adapter` and `reset_with_run` collected.

        Args:
            wrap: applied to each handler, so that errors are shown.
        """

        def enable(values: Values) -> Updates:
            enabled = gr.update(interactive=has_adapter(values[self.run_state]))
            return dict.fromkeys(self._buttons, enabled)

        self.listen("run", enable, set(), self._buttons)
        states: dict[Subject, list[Any]] = {
            "run": [self.run, self.run_state],
            "draft": [self.data_state, self.recipe_state],
        }
        for subject, listeners in self._listeners.items():
            inputs: Inputs = {*self.selection, *states[subject]}.union(
                *(one.inputs for one in listeners)
            )
            outputs = list(dict.fromkeys(part for one in listeners for part in one.outputs))
            changes = [state.change for state in states[subject]]
            gr.on(changes, wrap(self._notifier(listeners)), inputs, outputs, **HIDDEN)
        resets = self._resets
        self.run.change(lambda: resets, None, list(resets), **HIDDEN)

    @staticmethod
    def _notifier(listeners: list[Listener]) -> Callable[[Values], Updates]:
        def notify(values: Values) -> Updates:
            updates: Updates = {}
            for one in listeners:
                updates |= one.handler(values)
            return updates

        return notify

    def enable_with_adapter(self, *buttons: gr.components.Component) -> None:
        """Keep these buttons enabled exactly while the selected run has an adapter."""
        self._buttons += buttons

    def reset_with_run(self, updates: Updates) -> None:
        """Apply these updates whenever another run is selected."""
        self._resets |= updates


def has_adapter(state: list[Any] | None) -> bool:
    """Read from the value of `PageContext.run_state` whether the selected run has an adapter."""
    return bool(state and state[1])
