"""The recipe's defaults, and the errors of invalid recipes."""

import pytest

from peft_space.errors import UserError
from peft_space.recipe import Recipe, make_recipe, read_recipe


def test_an_empty_recipe_is_valid_and_has_the_defaults():
    recipe = make_recipe({})
    assert (recipe.lora_rank, recipe.alpha, recipe.lora_dropout) == (16, 32, 0.05)
    assert recipe.target_modules == "all-linear"
    assert (recipe.quantization, recipe.double_quantization) == ("nf4", True)


def test_alpha_is_twice_the_rank_unless_chosen():
    assert make_recipe({"lora_rank": 8}).alpha == 16
    assert make_recipe({"lora_rank": 8, "lora_alpha": 8}).alpha == 8


def test_the_promised_keys_exist():
    promised = (
        "base_model revision task method lora_rank lora_alpha lora_dropout target_modules "
        "modules_to_save quantization learning_rate num_epochs max_steps batch_size "
        "gradient_accumulation_steps max_length eval_steps save_steps seed"
    )
    assert set(promised.split()) <= set(Recipe.model_fields)


def test_every_field_has_a_title_and_a_help_text():
    for name, field in Recipe.model_fields.items():
        assert field.title, name
        assert field.description, name


@pytest.mark.parametrize(
    ("values", "code", "parts"),
    [
        ({"lora_rnk": 3}, "recipe.unknown_key", ["lora_rnk", "lora_rank?"]),
        ({"learningrate": 3}, "recipe.unknown_key", ["learning_rate?"]),
        ({"lora_rank": 0}, "recipe.invalid_value", ["lora_rank", "0", "16"]),
        ({"lora_rank": "many"}, "recipe.invalid_value", ["lora_rank", "'many'"]),
        ({"quantization": "3bit"}, "recipe.invalid_value", ["'3bit'", "'nf4'"]),
        ({"lora_dropout": 1}, "recipe.invalid_value", ["lora_dropout"]),
        ({"lora_rank": 0, "batch_size": 0}, "recipe.invalid_value", ["lora_rank", "batch_size"]),
        ({"answer_pattern": "(a"}, "recipe.invalid_value", ["answer_pattern", "'(a'", "null"]),
        ([1], "recipe.not_an_object", ["list"]),
    ],
)
def test_an_invalid_recipe_is_rejected_with_every_key_and_value(values, code, parts):
    with pytest.raises(UserError) as error:
        make_recipe(values)
    assert error.value.code == code
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)


def test_a_recipe_is_read_from_a_file_or_from_json_itself(write):
    path = write("recipe.json", '{"lora_rank": 4}')
    assert read_recipe(path).lora_rank == read_recipe('{"lora_rank": 4}').lora_rank == 4


@pytest.mark.parametrize(
    ("text", "code"), [("{", "recipe.not_json"), ("missing.json", "recipe.unreadable")]
)
def test_a_recipe_that_is_missing_or_not_json_is_rejected(text, code):
    with pytest.raises(UserError) as error:
        read_recipe(text)
    assert error.value.code == code
