"""The estimate counts a vision tower and the patches of pictures."""

import pytest

from peft_space.data.tokenization.render import render
from peft_space.estimation.memory import estimate
from peft_space.models.architecture import linear_layers, tower_parameters
from peft_space.models.config_values import image_token, patches_a_token
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.planning.training_estimate import (
    estimate_prepared,
    flops_a_token,
    multiplied_parameters,
)
from peft_space.recipe import Recipe
from peft_space.training.prepare import prepare
from tests.fixtures.pictures import captioned
from tests.fixtures.vision_models import MAKERS

TASK = "image-text-to-text"


def num_patches(arrays):
    """The patches in the arrays of a processor: of 7 x 7 pixels, or rows of flattened ones."""
    shape = arrays["pixel_values"].shape
    if len(shape) == 2:
        return shape[0]
    tiles = shape[1] if len(shape) == 5 else shape[0]
    return tiles * (shape[-1] // 7) * (shape[-2] // 7)


@pytest.mark.parametrize("name", MAKERS)
def test_patches_follow_from_the_tokens_of_a_picture(name, tmp_path):
    base = find_base(MAKERS[name](tmp_path / "base"))
    tokenizer = load_tokenizer(base, task=TASK)
    data = captioned(tmp_path / "rows.zip", ["red", "blue"], size=(50, 30))
    rows = prepare(data, Recipe(base_model=base.location, eval_split=0.0)).data.train
    [example] = render(tokenizer, rows[:1], 512, task=TASK)
    arrays = tokenizer.pictures.process(example.pictures[0]).arrays
    found = example.input_ids.count(image_token(base.config)) * patches_a_token(base.config)
    assert found == num_patches(arrays)


def test_tower_and_pictures_count_in_memory_and_time(tmp_path):
    base = find_base(MAKERS["Gemma 3"](tmp_path / "base"))
    layers = linear_layers(base.config, TASK)
    tower = sum(
        parameter.numel()
        for name, parameter in layers.model.named_parameters()
        if "vision_tower" in name or "projector" in name
    )
    assert tower_parameters(layers) == tower > 0
    recipe = Recipe(base_model=base.location, quantization="none", eval_split=0.0)
    without = estimate(layers, recipe, 4, 16)
    assert estimate(layers, recipe, 4, 16, patches=10**6).activations > without.activations
    data = captioned(tmp_path / "rows.zip", size=(50, 30))
    prepared = prepare(data, recipe)
    assert prepared.train.has_pictures
    time = estimate_prepared(prepared, recipe).time
    a_token = flops_a_token(multiplied_parameters(base.config, TASK), TASK, False)
    of_tower = 2 * tower * 16 * 8  # 16 patches of each picture of 8 rows
    assert time.flops == pytest.approx(a_token * time.tokens + of_tower)
