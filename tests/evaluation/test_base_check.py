"""The base column is the untouched base, however the adapter was made and the base is held; and a column that is not is caught."""

import dataclasses

import pytest
import torch

from peft_space import operations
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import prompt_ids, stop_token_ids
from peft_space.errors import UserError
from peft_space.evaluation import base_check, compare
from peft_space.evaluation.base_check import SIDES, check, use_side
from peft_space.evaluation.compare import Sampling, can_answer_together
from peft_space.models.loading import load_adapted, load_base_model, new_adapter
from peft_space.models.resolve import find_base, pin_revision
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from tests.fixtures import tiny_models

GREEDY = Sampling(max_new_tokens=16)
HARD = {"max_steps": 6, "learning_rate": 1e-2, "lora_rank": 4, "eval_split": 0.1}
"""Few steps, but such that the adapter changes what is answered."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two base models by name: the built-in one, and one with biases and without rows of zeros, which DoRA cannot have."""
    return {"demo": "demo", "qwen2": tiny_models.qwen2(tmp_path_factory.mktemp("qwen2"))}


@pytest.fixture(scope="module")
def adapted(short_run):
    return load_adapted(short_run)


@pytest.fixture(scope="module")
def conversations(short_run):
    return [row.messages[:-1] for row in load_run_data(short_run).held_out[:4]]


def padded(tokenizer, conversations):
    """Prompts as one batch, padded on the left: (ids, mask), (B, T) both."""
    prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
    longest = max(map(len, prompts))
    ids = torch.tensor(
        [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    )
    return ids, torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    )


def greedy(model, tokenizer, ids, mask):
    """What transformers itself generates, without anything of ours around it."""
    stops = stop_token_ids(tokenizer)
    with torch.inference_mode():
        rows = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )
    ends = {*stops, tokenizer.pad_token_id}
    texts = []
    for row in rows[:, ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        texts.append(tokenizer.decode(row[:end]).strip())
    return texts


def mismatches(adapted, recipe, conversations):
    """What of the base column is not as the base is without PEFT: its logits in one batch, and its answers."""
    untouched = load_base_model(find_base(recipe.base_model), recipe, "float32").eval()
    ids, mask = padded(adapted.tokenizer, conversations)
    with torch.inference_mode():
        wanted = untouched(input_ids=ids, attention_mask=mask).logits
        with use_side(adapted, "base"):
            found = adapted.model(input_ids=ids, attention_mask=mask).logits
    answers = [comparison.base for comparison in compare.compare(adapted, conversations, GREEDY)]
    same = {
        "logits": torch.equal(found, wanted),
        "answers": answers == greedy(untouched, adapted.tokenizer, ids, mask),
    }
    return [name for name, equal in same.items() if not equal]


KINDS = [("qwen2", "dora", "none", "none"), ("qwen2", "lora", "none", "all")]
MORE_KINDS = [
    ("demo", "lora", "nf4", "none"),
    ("demo", "lora", "none", "none"),
    ("demo", "lora", "int8", "none"),
    ("demo", "lora", "fp4", "none"),
    ("qwen2", "lora", "nf4", "lora_only"),
    ("qwen2", "dora", "nf4", "none"),
    ("demo", "rslora", "none", "none"),
    ("demo", "rslora", "nf4", "none"),
    ("demo", "pissa", "none", "none"),
    ("demo", "pissa", "nf4", "none"),
    ("demo", "loftq", "nf4", "none"),
]


@pytest.mark.parametrize(
    ("base", "method", "quantization", "bias"),
    [*KINDS, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in MORE_KINDS)],
)
def test_the_base_column_is_to_the_bit_the_base_without_peft(
    base, method, quantization, bias, bases, conversations, tmp_path
):
    recipe = Recipe(
        base_model=bases[base], method=method, quantization=quantization, lora_bias=bias, **HARD
    )
    run = operations.make_run(
        str(tmp_path / "run"), "demo", recipe.model_dump(exclude_defaults=True)
    )["run"]
    operations.train(run)
    adapted = load_adapted(Run(run))
    assert mismatches(adapted, recipe, conversations) == []
    found = check(adapted)
    assert found.fair
    assert found.adapter_off_by > 0.01
    assert bool(adapted.biases) == (bias != "none")
    assert check(dataclasses.replace(adapted, biases=[])).fair == (bias == "none"), (
        "PEFT leaves trained biases in the base"
    )
    one_by_one = {
        column: compare.answer(adapted, column, conversations, GREEDY) for column in SIDES
    }
    assert one_by_one["base"] != one_by_one["adapter"], (
        "an adapter that changes nothing proves nothing"
    )
    assert can_answer_together(adapted) == (method != "dora" and bias == "none"), (
        "PEFT refuses the others"
    )
    if can_answer_together(adapted):
        asked = dict.fromkeys(SIDES, conversations)
        assert compare._answer_together(adapted, asked, GREEDY, None, None) == one_by_one
        assert check(adapted, by_row=True).fair


def test_the_base_column_of_the_default_recipe_is_the_base_without_peft(
    adapted, short_run, conversations
):
    assert mismatches(adapted, short_run.recipe, conversations) == []


def swapped(adapted, column):
    return use_side(adapted, "adapter" if column == "base" else "base")


def test_swapped_columns_are_caught(adapted, short_run, conversations, monkeypatch):
    monkeypatch.setattr(base_check, "only", swapped)
    monkeypatch.setattr(compare, "only", swapped)
    assert not check(adapted).fair
    assert mismatches(adapted, short_run.recipe, conversations) == ["answers"], (
        "the other half of the comparison is done with the real switch"
    )
    monkeypatch.setattr("peft_space.operations.evaluation.loaded", lambda run: adapted)
    found = operations.compare("a run", ["Hello."], sampling={"max_new_tokens": 2})["fairness"]
    assert not found["fair"]
    assert found["words"].startswith("NOT FAIR: the base column is not the untouched base.")


def test_an_answer_that_is_broken_off_leaves_the_model_as_it_was(adapted, conversations):
    asked = dict.fromkeys(SIDES, conversations[:2])
    before = {
        column: compare.answer(adapted, column, conversations[:2], GREEDY) for column in SIDES
    }

    def leave(*_):
        raise InterruptedError

    with pytest.raises(
        InterruptedError
    ):  # PEFT would leave its hooks on the layers, and with them whose row is whose
        compare._answer_together(adapted, asked, GREEDY, leave, None)
    with pytest.raises(InterruptedError):
        compare.answer(adapted, "base", conversations[:2], GREEDY, on_token=leave)
    assert check(adapted).fair
    assert {
        column: compare.answer(adapted, column, conversations[:2], GREEDY) for column in SIDES
    } == before


def test_a_base_into_which_something_was_written_is_caught(short_run):
    adapted = load_adapted(short_run)
    weight = next(
        module
        for name, module in adapted.model.named_modules()
        if name.endswith("o_proj.base_layer")
    ).weight
    with torch.no_grad():
        weight[0, 0] += 1e-3
    assert 0 < check(adapted).base_off_by < 1


def test_columns_that_were_given_different_tokens_are_caught(adapted, conversations):
    seen = {"base": [], "adapter": []}
    compare.compare(adapted, conversations[:2], GREEDY, seen=seen)
    assert seen["base"] == [
        tuple(prompt_ids(adapted.tokenizer, messages)) for messages in conversations[:2]
    ]
    found = check(adapted, seen)
    assert (found.fair, found.num_prompts, found.num_tokens) == (
        True,
        2,
        sum(map(len, seen["base"])),
    )
    assert f"the same {found.num_tokens} token ids in 2 prompts" in found.in_words()
    compare.compare(adapted, conversations[:1], GREEDY, seen=seen, adapters=conversations[1:2])
    assert not check(adapted, seen).fair
    assert "different token ids" in check(adapted, seen).in_words()
    assert check(adapted, seen, own_histories=True).fair


def test_dora_is_refused_where_a_row_of_zeros_would_make_it_divide_by_nothing():
    base, recipe = pin_revision(find_base("demo")), Recipe(method="dora", quantization="none")
    with pytest.raises(UserError, match=r"DoRA divides .*q_proj has 44 rows of zeros. Choose lora"):
        new_adapter(load_base_model(base, recipe, "float32"), recipe, base)


def test_an_adapter_that_changes_nothing_is_told(adapted):
    silent = dataclasses.replace(check(adapted), adapter_off_by=0.0)
    assert silent.fair
    assert "it changes nothing there" in silent.in_words()
