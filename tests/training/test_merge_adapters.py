"""Adapters of one base are joined into a run that answers, scores and exports like any other."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from peft_space import operations
from peft_space.errors import UserError
from peft_space.models.loading import load_adapted
from peft_space.runs.run import Run
from tests.training.test_adapters_of_other_tools import adapter_of, import_run, llama


@pytest.fixture
def runs(tmp_path, write):
    """Two runs on one base, with other ranks, scales and layers."""
    base = llama(tmp_path / "base")
    settings = [
        {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        {"r": 2, "alpha_pattern": {"o_proj": 3}, "target_modules": ["q_proj", "o_proj"]},
    ]
    made = []
    for number, own in enumerate(settings):
        adapter_of(base, tmp_path / f"adapter{number}", **own)
        (tmp_path / f"{number}").mkdir()
        made.append(import_run(tmp_path / f"{number}", write, tmp_path / f"adapter{number}"))
    return made


def updates(run):
    """The update of each layer by its name."""
    model = load_adapted(run).model
    return {
        name: layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def join(runs, tmp_path, **options):
    others = [str(run.directory) for run in runs[1:]]
    result = operations.merge_adapters(
        str(runs[0].directory), str(tmp_path / "joined"), others, **options
    )
    return Run(result["run"])


@pytest.mark.slow
def test_linear_adds_the_weighted_updates_exactly_and_is_exported(runs, tmp_path):
    joined = join(runs, tmp_path, weights=[1.0, -0.5])
    first, second, both = updates(runs[0]), updates(runs[1]), updates(joined)
    assert both.keys() == first.keys() | second.keys()
    for name, update in both.items():
        none = torch.zeros_like(update)
        expected = first.get(name, none) - 0.5 * second.get(name, none)
        assert torch.allclose(update, expected, atol=1e-6), name
    options = {"target": "merged", "dtype": "float32"}
    assert operations.export(str(joined.directory), str(tmp_path / "x"), options)["proof"]["passed"]


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties"])
@pytest.mark.sample(1)
def test_methods_that_drop_parts_keep_all_layers(method, runs, tmp_path):
    joined = join(runs, tmp_path, method=method, density=0.7)
    both = updates(joined)
    assert both.keys() == updates(runs[0]).keys() | updates(runs[1]).keys()
    assert all(float(update.norm()) > 0 for update in both.values())


@pytest.mark.slow
def test_with_a_density_of_1_nothing_is_dropped(runs, tmp_path):
    joined = join(runs, tmp_path, method="dare", density=1.0, weights=[1.0, 1.0])
    first, second = updates(runs[0]), updates(runs[1])
    for name, update in updates(joined).items():
        none = torch.zeros_like(update)
        expected = first.get(name, none) + second.get(name, none)
        assert torch.allclose(update, expected, atol=1e-4), name


@pytest.mark.slow
def test_a_joined_adapter_is_scored_and_trained_further(runs, tmp_path):
    joined = join(runs, tmp_path)
    before = operations.evaluate(str(joined.directory))["adapter"]["loss"]
    assert operations.train(str(joined.directory))["event"] == "Finished"
    assert operations.evaluate(str(joined.directory))["adapter"]["loss"] < before


@pytest.mark.slow
def test_adapters_that_cannot_be_joined_are_reported_and_make_no_run(runs, tmp_path, write):
    base = runs[0].recipe.base_model
    (tmp_path / "2").mkdir()
    adapter_of(base, tmp_path / "dora", use_dora=True)
    dora = import_run(tmp_path / "2", write, tmp_path / "dora")
    other_base = llama(tmp_path / "other", hidden_size=32)
    (tmp_path / "3").mkdir()
    adapter_of(other_base, tmp_path / "foreign")
    foreign = import_run(tmp_path / "3", write, tmp_path / "foreign")
    for others, options, code in (
        ([dora], {}, "training.adapters_not_joined"),
        ([], {}, "training.adapters_not_joined"),
        ([runs[1]], {"weights": [1.0]}, "training.adapters_not_joined"),
        ([foreign], {}, "models.adapter_mismatch"),
    ):
        with pytest.raises(UserError) as error:
            join([runs[0], *others], tmp_path, **options)
        assert error.value.code == code
        assert not (tmp_path / "joined").exists()
