"""A form for any pydantic model of options: one widget for each field, and its value back."""

import types
import typing
from collections.abc import Collection
from typing import Any, Literal

import gradio as gr
from pydantic import BaseModel, ValidationError

GROUPS = {
    "model": "Base model",
    "adapter": "Adapter",
    "training": "Training",
    "evaluation": "Evaluation and checkpoints",
}
"""The groups of the recipe's fields, in the order of the page."""


class OptionsForm:
    """The widgets of a model's fields, not yet on the page; `place` renders them.

    Args:
        model: declares each field's type, default, title, help and group.
        prefix: of the widgets' element ids.
    """

    def __init__(self, model: type[BaseModel], prefix: str):
        self.model = model
        self.defaults: dict[str, Any] = {
            name: field.default for name, field in model.model_fields.items()
        }
        """What the widgets show at first: the model's defaults."""
        self.widgets: dict[str, gr.components.Component] = {
            name: _widget(model, name, f"{prefix}-{name}") for name in model.model_fields
        }
        self._unmarked: set[str] = set()

    def replace(self, name: str, widget: gr.components.Component, default: Any) -> None:
        """Use another widget, which shows no marks, and another default for a field."""
        self.widgets[name], self.defaults[name] = widget, default
        self._unmarked.add(name)

    def help(self, name: str) -> str:
        """Return the help text of a field, in one line."""
        return " ".join((self.model.model_fields[name].description or "").split())

    def place(self, group: str, but: Collection[str] = ()) -> None:
        """Render the widgets of one group, in the order of their declaration.

        Args:
            group: the group.
            but: fields that are placed elsewhere.
        """
        for name, field in self.model.model_fields.items():
            if name in but:
                continue
            if typing.cast(dict[str, str], field.json_schema_extra)["group"] == group:
                with gr.Column(min_width=260, elem_classes=["setting"]):
                    self.widgets[name].render()

    def parse(self, name: str, value: Any) -> Any:
        """Return the field's value for its widget's: empty is None if allowed, commas make lists.

        The value need not be valid.
        """
        kind, optional = _type_of(self.model, name)
        if value in (None, "") and optional:
            return None
        if isinstance(value, str) and (_is_list(kind) or isinstance(kind, tuple)):
            if isinstance(kind, tuple) and value in _literals(kind):
                return value
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    def without_defaults(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the known ones of some fields that are not at their default."""
        return {
            name: fields[name]
            for name, default in self.defaults.items()
            if name in fields and fields[name] != default
        }

    def problems(self, fields: dict[str, Any]) -> dict[str, str]:
        """Return what is wrong with some fields: field -> a sentence with its title."""
        try:
            self.model.model_validate(fields)
        except ValidationError as error:
            names = [str(details["loc"][0]) for details in error.errors()]
            return {name: describe_problem(self.model, name) for name in names}
        return {}

    def show(
        self,
        before: dict[str, Any],
        problems_before: dict[str, str],
        changed: dict[str, Any],
        problems: dict[str, str],
    ) -> dict[gr.components.Component, Any]:
        """Return updates of the widgets whose value or mark differs.

        Args:
            before: the fields that were not at their default, with their values.
            problems_before: what was wrong.
            changed: the fields that are not at their default now, with their values.
            problems: what is wrong now.
        """
        shown = {}
        for name, widget in self.widgets.items():
            update: dict[str, Any] = {}
            default = self.defaults[name]
            if (value := changed.get(name, default)) != before.get(name, default):
                update["value"] = _format(self.model, name, value)
            problem = problems.get(name)
            marks_before = (problems_before.get(name), name in before)
            marks = (problem, name in changed)
            if name not in self._unmarked and marks != marks_before:
                css = ["wrong"] if problem else ["changed"] if name in changed else []
                update |= {"info": problem or self.help(name), "elem_classes": css}
            if update:
                shown[widget] = gr.update(**update)
        return shown


def describe_problem(model: type[BaseModel], name: str) -> str:
    """Return what a field accepts: "LoRA rank must be between 1 and 256 (default 16)", say."""
    field = model.model_fields[name]
    limits = {
        key: getattr(part, key)
        for part in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if getattr(part, key, None) is not None
    }
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    kind, _ = _type_of(model, name)
    number = "a whole number" if kind is int else "a number"
    if low is not None and high is not None:
        accepted = f"between {low:g} and {high:g}"
    elif low is not None:
        accepted = f"{number} {'from' if 'ge' in limits else 'over'} {low:g}"
    else:
        accepted = {int: number, float: number}.get(kind, "filled in with a value of its kind")
    default = "automatic" if field.default is None else _format(model, name, field.default)
    return f"{field.title} must be {accepted} (default {default})."


def _type_of(model: type[BaseModel], name: str) -> tuple[Any, bool]:
    """Return the field's type without None (a tuple for a union), and whether None is allowed."""
    annotation = model.model_fields[name].annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        members = typing.get_args(annotation)
        inner = [member for member in members if member is not type(None)]
        return (inner[0] if len(inner) == 1 else tuple(inner)), len(inner) < len(members)
    return annotation, False


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list


def _literals(union: tuple[Any, ...]) -> list[str]:
    """Return the fixed values of a field that is either a list or one of a few words."""
    return list(next(typing.get_args(part) for part in union if typing.get_origin(part) is Literal))


def _widget(model: type[BaseModel], name: str, elem_id: str) -> gr.components.Component:
    field = model.model_fields[name]
    kind, optional = _type_of(model, name)
    shared: dict[str, Any] = {
        "label": field.title,
        "info": " ".join((field.description or "").split()),  # joins the lines of the source
        "render": False,
        "elem_id": elem_id,
        "value": _format(model, name, field.default),
    }
    if kind is bool:
        return gr.Checkbox(**shared)
    if typing.get_origin(kind) is Literal:
        return gr.Dropdown(list(typing.get_args(kind)), **shared)
    if isinstance(kind, tuple):
        return gr.Dropdown(_literals(kind), allow_custom_value=True, **shared)
    is_number = kind in (int, float)
    if is_number and not optional:  # an empty gr.Number shows 0, so optional ones are text
        return gr.Number(precision=0 if kind is int else None, **shared)
    return gr.Textbox(placeholder="automatic" if is_number else None, **shared)


def _format(model: type[BaseModel], name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    is_text = isinstance(value, float) and _type_of(model, name)[1]
    return f"{value:g}" if is_text else value
