"""The form: made from a model's declaration, and read back into it."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from peft_space.recipe import Recipe, make_recipe
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
    return OptionsForm(Recipe, make_recipe, "recipe")


def test_every_field_has_exactly_one_widget_in_a_visible_group(form):
    assert list(form.widgets) == list(Recipe.model_fields)
    assert len({id(widget) for widget in form.widgets.values()}) == len(Recipe.model_fields)
    groups = {field.json_schema_extra["group"] for field in Recipe.model_fields.values()}
    assert groups == set(GROUPS)


@pytest.mark.parametrize("recipe", [Recipe(), FULL, Recipe(target_modules="attention")])
def test_a_form_that_shows_a_recipe_reads_back_the_same_recipe(form, recipe):
    assert form.read(form.show(recipe)) == recipe


def test_the_form_opens_on_the_default_recipe(form):
    assert form.read({widget: widget.value for widget in form.widgets.values()}) == Recipe()


def test_titles_and_help_come_from_the_declaration(form):
    rank, field = form.widgets["lora_rank"], Recipe.model_fields["lora_rank"]
    assert rank.label == field.title
    assert rank.info == " ".join(field.description.split())


def test_any_model_of_options_has_a_form():
    form = OptionsForm(Sampling, Sampling.model_validate, "sampling")
    options = Sampling(max_new_tokens=5, mode="random", stop=["a", "b"], seed=3)
    assert form.read(form.show(options)) == options
    assert form.read(form.show(Sampling())) == Sampling()
    assert form.widgets["mode"].elem_id == "sampling-mode"
