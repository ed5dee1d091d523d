"""The form of a recipe: made from its declaration, and back."""

import pytest

from peft_space.recipe import Recipe
from peft_space.web.recipe_form import GROUPS, Form

FULL = Recipe(
    base_model="a/b", revision="main", lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], learning_rate=3e-4,
    max_steps=7, eval_steps=3, save_steps=2, early_stopping_patience=2, load_best_model_at_end=False, double_quantization=False, num_epochs=1.5, layers_to_transform=[0, 2],
    task="dpo", high_rank_reason="Many facts, measured at 64.", lora_rank=128,
)  # fmt: skip


def test_every_field_has_exactly_one_widget_in_a_group_that_is_shown():
    form = Form()
    assert list(form.widgets) == list(Recipe.model_fields)
    assert len({id(widget) for widget in form.widgets.values()}) == len(Recipe.model_fields)
    assert {field.json_schema_extra["group"] for field in Recipe.model_fields.values()} == set(
        GROUPS
    )


@pytest.mark.parametrize("recipe", [Recipe(), FULL, Recipe(target_modules="attention")])
def test_a_filled_form_read_back_gives_the_same_recipe(recipe):
    form = Form()
    assert form.recipe(form.values(recipe)) == recipe


def test_the_form_opens_on_the_default_recipe():
    form = Form()
    assert form.recipe({widget: widget.value for widget in form.widgets.values()}) == Recipe()


def test_titles_and_help_come_from_the_declaration():
    rank = Form().widgets["lora_rank"]
    assert rank.label == Recipe.model_fields["lora_rank"].title
    assert rank.info == Recipe.model_fields["lora_rank"].description
