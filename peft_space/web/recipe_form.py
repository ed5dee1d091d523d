"""A form for any pydantic model of options: one widget for each field, and back to the model."""

import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Generic, Literal, TypeVar

import gradio as gr
from pydantic import BaseModel, ValidationError

GROUPS = {
    "model": "Base model",
    "adapter": "Adapter",
    "training": "Training",
    "evaluation": "Evaluation and checkpoints",
}
"""The groups of the recipe's fields, in the order of the page."""

Options = TypeVar("Options", bound=BaseModel)


class OptionsForm(Generic[Options]):
    """The widgets of a model's fields, not yet on the page; `place` renders them.

    Args:
        model: declares each field's type, default, title, help and group.
        validate: makes the model from the widgets' values, or raises UserError.
        prefix: of the widgets' element ids.
    """

    def __init__(
        self, model: type[Options], validate: Callable[[dict[str, Any]], Options], prefix: str
    ):
        self.model, self._validate = model, validate
        self.defaults: dict[str, Any] = {
            name: field.default for name, field in model.model_fields.items()
        }
        """What the widgets show at first: the model's defaults."""
        self.widgets: dict[str, gr.components.Component] = {
            name: _widget(model, name, f"{prefix}-{name}") for name in model.model_fields
        }

    @property
    def inputs(self) -> set[Any]:
        """Inputs of a handler that reads the form."""
        return set(self.widgets.values())

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

    def read(self, values: dict[Any, Any]) -> Options:
        """Return the options that the widgets show. Raises UserError if one is not valid."""
        return self._validate(self._fields(values))

    def problems(self, values: dict[Any, Any]) -> dict[str, str]:
        """Return what is wrong with the widgets' values: field -> a sentence with its title."""
        fields = self._fields(values)
        try:
            self.model.model_validate(fields)
        except ValidationError as error:
            return {
                str(details["loc"][0]): describe_problem(self.model, str(details["loc"][0]))
                for details in error.errors()
            }
        return {}

    def changed(self, values: dict[Any, Any]) -> dict[str, Any]:
        """Return the fields whose widgets do not show the default, with their values."""
        return {
            name: value
            for name, value in self._fields(values).items()
            if value != self.defaults[name]
        }

    def _fields(self, values: dict[Any, Any]) -> dict[str, Any]:
        return {
            name: _parse(self.model, name, values[widget]) for name, widget in self.widgets.items()
        }

    def show_values(self, values: dict[str, Any]) -> dict[gr.components.Component, Any]:
        """Return the value of each widget for some of the fields; the others get their default.

        The values need not be valid, and unknown fields are left out.
        """
        shown = {name: values.get(name, default) for name, default in self.defaults.items()}
        return {
            widget: _format(self.model, name, shown[name]) for name, widget in self.widgets.items()
        }

    def show(self, options: Options) -> dict[gr.components.Component, Any]:
        """Return the value of each widget for these options."""
        return {
            widget: _format(self.model, name, getattr(options, name))
            for name, widget in self.widgets.items()
        }


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


def _parse(model: type[BaseModel], name: str, value: Any) -> Any:
    """Turn a widget's value into the field's: empty is None if allowed, commas make lists."""
    kind, optional = _type_of(model, name)
    if value in (None, "") and optional:
        return None
    if isinstance(value, str) and (_is_list(kind) or isinstance(kind, tuple)):
        if isinstance(kind, tuple) and value in _literals(kind):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _format(model: type[BaseModel], name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    is_text = isinstance(value, float) and _type_of(model, name)[1]
    return f"{value:g}" if is_text else value
