"""The form: made from a model's declaration, and read back into it."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from peft_space.recipe import Recipe
from peft_space.web.recipe_form import GROUPS, OptionsForm

FULL = Recipe(
    base_model="a/b",
    revision="main",
    lora_alpha=8,
    target_modules=["q_proj", "v_proj"],
    modules_to_save=["lm_head"],
    learning_rate=3e-4,
    max_steps=7,
    eval_steps=3,
    save_steps=2,
    early_stopping_patience=2,
    load_best_model_at_end=False,
    double_quantization=False,
    num_epochs=1.5,
    layers_to_transform=[0, 2],
    task="dpo",
    high_rank_reason="Many facts, measured at 64.",
    lora_rank=128,
)


class Sampling(BaseModel):
    """Options other than a recipe."""

    max_new_tokens: int = Field(128, title="Max new tokens", json_schema_extra={"group": "length"})
    mode: Literal["greedy", "random"] = "greedy"
    stop: list[str] = []
    seed: int | None = None


@pytest.fixture
def form():
    return OptionsForm(Recipe, "recipe")


def _shown(form, options):
    """What each widget shows once the options' fields were set: name -> value."""
    changed = form.without_defaults(dict(options))
    updates = form.show({}, {}, changed, {})
    return {
        name: updates[widget]["value"] if "value" in updates.get(widget, {}) else widget.value
        for name, widget in form.widgets.items()
    }


def _read(form, options):
    return type(options)(
        **{name: form.parse(name, value) for name, value in _shown(form, options).items()}
    )


def test_every_field_has_exactly_one_widget_in_a_visible_group(form):
    assert list(form.widgets) == list(Recipe.model_fields)
    assert len({id(widget) for widget in form.widgets.values()}) == len(Recipe.model_fields)
    groups = {field.json_schema_extra["group"] for field in Recipe.model_fields.values()}
    assert groups == set(GROUPS)


@pytest.mark.parametrize("recipe", [Recipe(), FULL, Recipe(target_modules="attention")])
def test_a_form_that_shows_a_recipe_reads_back_the_same_recipe(form, recipe):
    assert _read(form, recipe) == recipe


def test_the_form_opens_on_the_default_recipe(form):
    assert _shown(form, Recipe()) == {name: one.value for name, one in form.widgets.items()}
    assert _read(form, Recipe()) == Recipe()


def test_only_the_widgets_of_fields_that_differ_are_updated(form):
    before = {"lora_rank": 8, "seed": 3}
    after = {"lora_rank": 1000, "num_epochs": 1.0}
    problems = form.problems(after)
    updates = form.show(before, {}, after, problems)
    assert list(problems) == ["lora_rank"]
    assert updates.keys() == {form.widgets[name] for name in ("lora_rank", "seed", "num_epochs")}
    rank, seed = updates[form.widgets["lora_rank"]], updates[form.widgets["seed"]]
    assert (rank["value"], rank["info"], rank["elem_classes"]) == (
        1000,
        problems["lora_rank"],
        ["wrong"],
    )
    assert (seed["value"], seed["elem_classes"]) == (Recipe().seed, [])


def test_a_field_that_stays_as_it_is_keeps_its_widget(form):
    assert form.show({"seed": 3}, {}, {"seed": 3}, {}) == {}


def test_titles_and_help_come_from_the_declaration(form):
    rank, field = form.widgets["lora_rank"], Recipe.model_fields["lora_rank"]
    assert rank.label == field.title
    assert rank.info == " ".join(field.description.split())


def test_any_model_of_options_has_a_form():
    form = OptionsForm(Sampling, "sampling")
    options = Sampling(max_new_tokens=5, mode="random", stop=["a", "b"], seed=3)
    assert _read(form, options) == options
    assert _read(form, Sampling()) == Sampling()
    assert form.widgets["mode"].elem_id == "sampling-mode"
