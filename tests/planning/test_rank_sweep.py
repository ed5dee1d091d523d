"""A rank sweep finds the lowest good rank, and a reduced adapter is the closest of its rank."""

import json

import numpy as np
import pytest
import torch

from peft_space import operations
from peft_space.__main__ import main
from peft_space.errors import UserError
from peft_space.export.rank_reduction import read_spectrum, reduce_rank
from peft_space.models.loading import load_adapted
from peft_space.planning.rank_sweep import RankResult, lowest_good_rank, rank_sweep
from peft_space.recipe import Recipe

IDS = torch.arange(30, 60)[None]


@pytest.mark.slow
def test_a_rank_sweep_trains_each_rank_alike_and_leaves_no_files(tmp_path):
    sweep = rank_sweep("demo", Recipe(quantization="none", max_steps=4), ranks=(4, 1))
    assert [result.rank for result in sweep.results] == [1, 4]
    assert sweep.results[1].trainable_parameters == 4 * sweep.results[0].trainable_parameters
    assert sweep.enough in (1, 4)
    assert not (tmp_path / "home" / "runs").exists()


@pytest.mark.parametrize(
    ("losses", "enough"),
    [
        ((2.0, 1.0, 0.985), 4),
        ((0.0185, 0.0092, 0.0033), 4),
        ((2.0, 1.5, 1.0), 8),
        ((1.0, 1.0, 1.0), 2),
    ],
)
def test_the_lowest_rank_with_a_loss_close_to_the_best_is_enough(losses, enough):
    results = [RankResult(rank, 1, loss, 1.0) for rank, loss in zip((2, 4, 8), losses, strict=True)]
    assert lowest_good_rank(results) == enough


@pytest.mark.parametrize("ranks", [(0, 8), (8, 257), ()])
def test_ranks_out_of_range_are_rejected(ranks):
    with pytest.raises(UserError) as error:
        rank_sweep("demo", Recipe(), ranks=ranks)
    assert error.value.code == "planning.rank_out_of_range"


@pytest.mark.slow
def test_a_rank_sweep_without_held_out_rows_is_rejected(write):
    rows = write("rows.json", [{"prompt": f"Say {n}.", "completion": "Yes."} for n in range(4)])
    recipe = Recipe(quantization="none", max_steps=1, eval_split=0)
    with pytest.raises(UserError) as error:
        rank_sweep(str(rows), recipe, ranks=(1,))
    assert error.value.code == "training.no_held_out_rows"


def changes_of(run, name="q_proj"):
    """What the adapter adds to the layers of this name."""
    model = load_adapted(run).model
    return [
        module.get_delta_weight("default").numpy()
        for path, module in model.named_modules()
        if path.endswith(name) and hasattr(module, "lora_A")
    ]


def test_the_spectrum_is_that_of_what_the_adapter_adds(short_run):
    found = read_spectrum(short_run)
    values = {
        name: row
        for name, row in zip(found.layers, found.values, strict=True)
        if name.endswith("q_proj")
    }
    for added, row in zip(changes_of(short_run), values.values(), strict=True):
        assert np.linalg.svd(added, compute_uv=False)[: found.rank] == pytest.approx(row, abs=1e-4)


def test_a_smaller_adapter_is_the_nearest_of_its_rank(own_run, tmp_path):
    before = changes_of(own_run)
    reduce_rank(own_run, tmp_path / "small", 3)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (3, "peft_space/demo/model")
    smaller = load_adapted(own_run, tmp_path / "small").model
    after = [
        m.get_delta_weight("default").numpy()
        for path, m in smaller.named_modules()
        if path.endswith("q_proj") and hasattr(m, "lora_A")
    ]
    for whole, cut in zip(before, after, strict=True):
        lost = np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[3:])
        assert np.linalg.norm(whole - cut) == pytest.approx(lost, abs=1e-4)


@pytest.mark.slow
def test_a_smaller_adapter_comes_with_what_it_lost(own_run, tmp_path, capfd):
    assert (
        main(
            [
                "reduce-rank",
                str(own_run.directory),
                "--out",
                str(tmp_path / "small"),
                "--rank",
                "12",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capfd.readouterr().out)
    assert found["rank"] == 12
    assert found["loss_after"] == pytest.approx(found["loss_before"], rel=0.01)


@pytest.mark.parametrize(
    ("rank", "said"),
    [(16, "Choose a rank from 1 to 15"), (0, "from 1 to 15"), (99, "from 1 to 15")],
)
def test_a_rank_that_is_not_smaller_is_refused(short_run, tmp_path, rank, said):
    with pytest.raises(UserError, match=said):
        reduce_rank(short_run, tmp_path / "small", rank)
    assert not (tmp_path / "small").exists()


def test_the_spectrum_is_told_by_the_verb(short_run):
    found = operations.spectrum(str(short_run.directory))
    assert (found["rank"], found["curve"][0]) == (16, pytest.approx(1.0))
    assert max(found["layers"].values()) == found["used"]
