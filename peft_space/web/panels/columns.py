"""The columns of the data on the Data tab: which column plays which role."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from peft_space.data.column_mapping import SCHEMA_TITLES, SCHEMAS, roles
from peft_space.web.components import show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values

_ANSWER_ROLES = ("answer", "target", "rejected", "tags", "label")
"""Roles whose column comes after the column that they answer."""


def _roles_in_order() -> list[str]:
    required = [role for schema in SCHEMAS for role in roles(schema)[0]]
    optional = [role for schema in SCHEMAS for role in roles(schema)[1]]
    questions = [role for role in required if role not in _ANSWER_ROLES]
    return list(dict.fromkeys([*questions, *_ANSWER_ROLES, *optional]))


class ColumnsPanel:
    """The panel's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        with gr.Accordion("Change columns", open=False, elem_id="change-columns"):
            formats = [(SCHEMA_TITLES[schema].capitalize(), schema) for schema in SCHEMAS]
            self.schema = gr.Dropdown(formats, label="Format", elem_id="schema")
            with gr.Row():
                hidden: dict[str, Any] = {"visible": False, "min_width": 160}
                self.roles = {
                    role: gr.Dropdown(
                        [], label=f"{role.capitalize()} column", elem_id=f"role-{role}", **hidden
                    )
                    for role in _roles_in_order()
                }
            self.apply = gr.Button("Apply", size="md", elem_id="apply-mapping")

    def show(
        self, schema: str | None, selected: dict[str, str], columns: list[str] | None = None
    ) -> Updates:
        """Show which column plays each role of a schema.

        Args:
            schema: hides the roles that it does not have.
            selected: role -> column.
            columns: what to choose from; None leaves the choices as they are.
        """
        required, optional = roles(schema) if schema else ([], [])  # type: ignore[arg-type]
        choices: dict[str, Any] = {}
        if columns is not None:
            choices = {"choices": [("", ""), *((column, column) for column in columns)]}
        updates: Updates = {self.schema: schema}
        for role, dropdown in self.roles.items():
            is_used = role in (*required, *optional)
            title = f"{role.capitalize()} column"
            label = f"{title} (optional)" if role in optional else title
            updates[dropdown] = gr.update(
                visible=is_used, value=selected.get(role, ""), label=label, **choices
            )
        return updates

    def read(self, values: Values, fixes: list[str]) -> dict[str, Any]:
        """Return the column mapping that the widgets show."""
        schema = values[self.schema]
        required, optional = roles(schema) if schema else ([], [])
        columns = {
            role: values[dropdown]
            for role, dropdown in self.roles.items()
            if values[dropdown] and role in (*required, *optional)
        }
        mapping = {"schema": schema, "columns": columns, "fixes": fixes}
        before = values[self.page.column_mapping] or {}
        if before.get("schema") == schema:  # the answers to the question stay
            answers = ("good_from", "left_out", "assistant", "others")
            mapping |= {key: before[key] for key in answers if before.get(key)}
        return mapping


def wire(panel: ColumnsPanel, more: Inputs, fixes: Callable[[Values], list[str]]) -> None:
    """Wire the panel.

    Args:
        panel: its components.
        more: inputs of `fixes`.
        fixes: returns the chosen fixes, which stay.
    """
    widgets = [panel.schema, *panel.roles.values()]
    panel.schema.input(lambda schema: panel.show(schema, {}), panel.schema, widgets, **HIDDEN)

    @show_errors
    def apply(values: Values) -> dict[str, Any]:
        return panel.read(values, fixes(values))

    mapping = panel.page.column_mapping
    panel.apply.click(apply, {*widgets, *more, mapping}, mapping, **HIDDEN)
