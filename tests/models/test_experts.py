"""Experts that are stored as one tensor are adapted on request, and named otherwise."""

import pytest
from safetensors.torch import load_file

from peft_space import operations
from peft_space.errors import UserError
from peft_space.models.architecture import linear_layers, unadapted_notes
from peft_space.models.loading import expert_adapter
from peft_space.models.resolve import find_base
from peft_space.recipe import Recipe
from peft_space.runs.events import Finished, Notice
from peft_space.runs.plan import read_plan
from peft_space.training.prepare import make_run
from peft_space.training.train import train
from tests.census.tiny_kinds import build

FAMILIES = [
    "qwen3_moe",
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("mixtral", "gpt_oss", "olmoe", "granitemoe")
    ),
]
TWO_STEPS = {
    "quantization": "none", "max_steps": 2, "batch_size": 4, "max_length": 64, "eval_split": 0.2,
}  # fmt: skip
WORDS = "ab cd ef gh ij kl mn op qr st".split()


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    """The folder of a tiny model with experts."""
    folder = tmp_path_factory.mktemp("experts") / request.param
    assert build(request.param, "causal-lm", folder) is None
    return str(folder)


@pytest.fixture
def rows(write):
    """A file with a few short rows."""
    return str(write("rows.json", [{"prompt": f"Say {w}", "completion": 3 * w} for w in WORDS]))


@pytest.mark.slow
def test_experts_are_trained_scored_and_merged(base, rows, tmp_path):
    recipe = Recipe(base_model=base, adapt_experts=True, lora_dropout=0.0, **TWO_STEPS)
    run = make_run(tmp_path / "run", rows, recipe)
    with run.lock():
        assert isinstance(train(run), Finished)
    weights = load_file(run.adapter / "adapter_model.safetensors")
    experts = {name: value for name, value in weights.items() if "experts" in name}
    assert len(experts) == 2 * 2 * 2  # blocks, tensors of experts, and matrices
    assert all(value.any() for name, value in experts.items())
    assert not any("experts" in note for note in read_plan(run).not_adapted)
    scores = operations.evaluate(str(run.directory))
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    answers = operations.compare(str(run.directory), ["Hello"], sampling={"max_new_tokens": 4})
    assert answers["fairness"]["fair"]
    out = str(tmp_path / "merged")
    merged = operations.export(str(run.directory), out, {"target": "merged", "dtype": "float32"})
    assert merged["proof"]["passed"]
    with pytest.raises(UserError) as caught:
        operations.spectrum(str(run.directory))
    assert caught.value.code == "export.rank_of_experts"


@pytest.mark.slow
def test_check_advice_plan_notices_and_page_name_experts_without_an_adapter(base, rows, tmp_path):
    recipe = {"base_model": base, **TWO_STEPS, "max_steps": 1}
    told = unadapted_notes(Recipe(**recipe), linear_layers(find_base(base).config))
    assert "experts" in told[0]
    assert operations.check(rows, recipe)["not_adapted"] == told
    assert operations.recommend(rows, recipe)["not_adapted"] == told
    assert operations.layers(recipe)["not_adapted"] == told
    run = make_run(tmp_path / "run", rows, Recipe(**recipe))
    with run.lock():
        train(run)
    assert read_plan(run).not_adapted == told
    notices = [event.why for event in run.history() if isinstance(event, Notice)]
    assert set(told) <= set(notices)
    assert "blocks of experts get no adapter" in operations.model_card(str(run.directory))["card"]


@pytest.mark.parametrize(
    "choices",
    [
        {"lora_dropout": 0.1},
        {"lora_dropout": 0.0, "method": "dora"},
        {"lora_dropout": 0.0, "layers_to_transform": [0]},
        {"lora_dropout": 0.0, "base_model": "demo"},
    ],
    ids=str,
)
@pytest.mark.sample(1)
def test_a_recipe_that_cannot_adapt_experts_is_refused(choices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts") / "base"
    build("qwen3_moe", "causal-lm", folder)
    recipe = Recipe(**{"base_model": str(folder), "adapt_experts": True} | choices)
    layers = linear_layers(find_base(recipe.base_model).config)
    with pytest.raises(UserError) as caught:
        expert_adapter(recipe, layers)
    assert caught.value.code == "models.experts_impossible"
