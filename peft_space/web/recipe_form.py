"""The form of a Recipe: one widget a field, made from the field's own declaration, and back."""

import types
import typing
from typing import Any, Literal

import gradio as gr

from peft_space.recipe import Recipe, make_recipe

GROUPS = {
    "model": "Base model",
    "adapter": "Adapter",
    "training": "Training",
    "evaluation": "Evaluating and saving",
}


class Form:
    """The widgets of every recipe field, not yet placed; `place` puts them where it is called."""

    def __init__(self) -> None:
        self.widgets: dict[str, gr.components.Component] = {
            name: _widget(name) for name in Recipe.model_fields
        }

    @property
    def inputs(self) -> set[gr.components.Component]:
        """What a handler has to take to know the recipe."""
        return set(self.widgets.values())

    def place(self, group: str) -> None:
        """Render the widgets of one group, in the order of their declaration."""
        for name, field in Recipe.model_fields.items():
            if typing.cast(dict[str, str], field.json_schema_extra)["group"] == group:
                with gr.Column(min_width=260):
                    self.widgets[name].render()

    def recipe(self, values: dict[Any, Any]) -> Recipe:
        """The recipe that the widgets show. Raises UserError where it is none."""
        shown = {name: _read(name, values[widget]) for name, widget in self.widgets.items()}
        return make_recipe(shown)

    def values(self, recipe: Recipe) -> dict[gr.components.Component, Any]:
        """What the widgets have to show for `recipe`."""
        return {
            widget: _shown(name, getattr(recipe, name)) for name, widget in self.widgets.items()
        }


def _kinds(name: str) -> tuple[Any, bool]:
    """(the field's type without None, whether None is allowed)."""
    annotation = Recipe.model_fields[name].annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        inner = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        optional = len(inner) < len(typing.get_args(annotation))
        return (inner[0] if len(inner) == 1 else tuple(inner)), optional
    return annotation, False


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list


def _widget(name: str) -> gr.components.Component:
    field = Recipe.model_fields[name]
    kind, optional = _kinds(name)
    about: dict[str, Any] = {
        "label": field.title,
        "info": " ".join(
            (field.description or "").split()
        ),  # a line that ends in the source does not end on the page
        "render": False,
        "elem_id": f"recipe-{name}",
        "value": _shown(name, field.default),
    }
    if kind is bool:
        return gr.Checkbox(**about)
    if typing.get_origin(kind) is Literal:
        return gr.Dropdown(list(typing.get_args(kind)), **about)
    if isinstance(kind, tuple):  # a list, or one of a few words
        words = next(typing.get_args(part) for part in kind if typing.get_origin(part) is Literal)
        return gr.Dropdown(list(words), allow_custom_value=True, **about)
    if (
        kind in (int, float) and not optional
    ):  # an empty gr.Number shows 0, so what may be empty is a Textbox
        return gr.Number(precision=0 if kind is int else None, **about)
    return gr.Textbox(placeholder="automatic" if kind in (int, float) else None, **about)


def _read(name: str, value: Any) -> Any:
    """A widget's value as the recipe has it: empty is None where None is allowed, lists are written with commas."""
    kind, optional = _kinds(name)
    if value in (None, "") and optional:
        return None
    if isinstance(value, str) and (_is_list(kind) or isinstance(kind, tuple)):
        words = (
            ()
            if _is_list(kind)
            else next(typing.get_args(part) for part in kind if typing.get_origin(part) is Literal)
        )
        return (
            value if value in words else [part.strip() for part in value.split(",") if part.strip()]
        )
    return value


def _shown(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and _kinds(name)[1] else value
