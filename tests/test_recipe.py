"""The recipe's defaults, what it refuses, and in which words."""

import pytest

from peft_space.errors import UserError
from peft_space.recipe import Recipe, make_recipe, read_recipe


def test_an_empty_recipe_is_valid_and_has_the_house_defaults():
    recipe = make_recipe({})
    assert (recipe.lora_rank, recipe.alpha, recipe.lora_dropout, recipe.target_modules) == (
        16,
        32,
        0.05,
        "all-linear",
    )
    assert (recipe.quantization, recipe.double_quantization) == ("nf4", True)


def test_alpha_is_twice_the_rank_unless_chosen():
    assert make_recipe({"lora_rank": 8}).alpha == 16
    assert make_recipe({"lora_rank": 8, "lora_alpha": 8}).alpha == 8


def test_the_promised_keys_exist():
    promised = (
        "base_model revision task method lora_rank lora_alpha lora_dropout target_modules modules_to_save quantization learning_rate num_epochs "
        "max_steps batch_size gradient_accumulation_steps max_length eval_steps save_steps seed"
    )
    assert set(promised.split()) <= set(Recipe.model_fields)


def test_every_field_says_what_it_is():
    for name, field in Recipe.model_fields.items():
        assert field.title, name
        assert field.description, name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora_rnk": 3}, "Did you mean lora_rank?"),
        ({"learningrate": 3}, "Did you mean learning_rate?"),
        ({"lora_rank": 0}, "lora_rank cannot be 0"),
        ({"lora_rank": "many"}, "lora_rank cannot be 'many'"),
        ({"quantization": "3bit"}, "'nf4'"),
        ({"lora_dropout": 1}, "less than 1"),
        ({"lora_rank": 0, "batch_size": 0}, "batch_size cannot be 0"),
        ([1], "not an object"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(values, said):
    with pytest.raises(UserError) as refusal:
        make_recipe(values)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_recipe_is_read_from_a_file_or_from_json_itself(write):
    path = write("recipe.json", '{"lora_rank": 4}')
    assert read_recipe(path).lora_rank == read_recipe('{"lora_rank": 4}').lora_rank == 4


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("missing.json", "cannot be read")])
def test_a_recipe_that_is_not_there_or_not_json_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        read_recipe(text)
