"""The base side is the untouched base for every method and quantization. Changes are caught."""

import dataclasses

import pytest
import torch

from peft_space import operations
from peft_space.data.batches import pad_rows
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import prompt_ids, stop_token_ids
from peft_space.errors import UserError
from peft_space.evaluation import adapter_off_check, generate
from peft_space.evaluation.adapter_off_check import SIDES, check, use_side
from peft_space.evaluation.compare import answer_together, can_answer_together, compare
from peft_space.evaluation.generate import Sampling, answer, generate_greedy
from peft_space.models.loading import load_adapted, load_base_model, new_adapter
from peft_space.models.resolve import find_base, pin_revision
from peft_space.recipe import Recipe
from peft_space.runs.run import Run
from tests.fixtures import tiny_models

GREEDY = Sampling(max_new_tokens=16)
STRONG = {"max_steps": 6, "learning_rate": 1e-2, "lora_rank": 4, "eval_split": 0.1}
"""Few steps, after which the adapter answers differently all the same."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The built-in model, and one with biases and without the rows of zeros that DoRA rejects."""
    return {"demo": "demo", "qwen2": tiny_models.qwen2(tmp_path_factory.mktemp("qwen2"))}


@pytest.fixture(scope="module")
def adapted(short_run):
    return load_adapted(short_run)


@pytest.fixture(scope="module")
def conversations(short_run):
    return [row.messages[:-1] for row in load_run_data(short_run).held_out[:4]]


def left_padded(tokenizer, conversations):
    """Prompts as one batch: (ids, mask), (B, T) both."""
    prompts = [prompt_ids(tokenizer, messages)[::-1] for messages in conversations]
    masks = [[1] * len(prompt) for prompt in prompts]
    return pad_rows(prompts, tokenizer.pad_token_id).flip(1), pad_rows(masks, 0).flip(1)


def plain_answers(model, tokenizer, ids, mask):
    """What transformers generates without any of the app's code."""
    stops = stop_token_ids(tokenizer)
    pad = tokenizer.pad_token_id
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": stops, "pad_token_id": pad}
    with torch.inference_mode():
        rows = model.generate(input_ids=ids, attention_mask=mask, **options)
    texts = []
    for row in rows[:, ids.shape[1] :].tolist():
        ends = (place for place, token in enumerate(row) if token in {*stops, pad})
        texts.append(tokenizer.decode(row[: next(ends, len(row))]).strip())
    return texts


def mismatches(adapted, recipe, conversations):
    """What of the base side differs from the base without PEFT: its logits, or its answers."""
    untouched = load_base_model(find_base(recipe.base_model), recipe, "float32").eval()
    ids, mask = left_padded(adapted.tokenizer, conversations)
    with torch.inference_mode():
        expected = untouched(input_ids=ids, attention_mask=mask).logits
        with use_side(adapted, "base"):
            logits = adapted.model(input_ids=ids, attention_mask=mask).logits
    answers = [comparison.base for comparison in compare(adapted, conversations, GREEDY)]
    same = {
        "logits": torch.equal(logits, expected),
        "answers": answers == plain_answers(untouched, adapted.tokenizer, ids, mask),
    }
    return [name for name, equal in same.items() if not equal]


KINDS = [("qwen2", "dora", "none", "none"), ("qwen2", "lora", "none", "all")]
SLOW_KINDS = [
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
    [*KINDS, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in SLOW_KINDS)],
)
@pytest.mark.sample(1)
def test_base_side_is_bitwise_equal_to_the_base_without_peft(
    base, method, quantization, bias, bases, conversations, tmp_path
):
    kind = {"base_model": bases[base], "method": method, "quantization": quantization}
    recipe = Recipe(**kind, lora_bias=bias, **STRONG)
    values = recipe.model_dump(exclude_defaults=True)
    run = operations.make_run(str(tmp_path / "run"), "demo", values)["run"]
    operations.train(run)
    adapted = load_adapted(Run(run))
    assert mismatches(adapted, recipe, conversations) == []
    fairness = check(adapted)
    assert fairness.fair
    assert fairness.adapter_off_by > 0.01
    assert bool(adapted.biases) == (bias != "none")
    without_restoring = check(dataclasses.replace(adapted, biases=[]))
    assert without_restoring.fair == (bias == "none"), "PEFT leaves trained biases in the base"
    answers = {side: answer(adapted, side, conversations, GREEDY) for side in SIDES}
    assert answers["base"] != answers["adapter"], "an adapter without effect proves nothing"
    possible = method != "dora" and bias == "none" and quantization != "int8"
    assert can_answer_together(adapted) == possible, "PEFT's limits, and those of 8 bits"
    if can_answer_together(adapted):
        both = answer_together(adapted, dict.fromkeys(SIDES, conversations), GREEDY)
        assert both == answers
        assert check(adapted, by_row=True).fair


def test_base_side_of_the_default_recipe_is_the_base_without_peft(
    adapted, short_run, conversations
):
    assert mismatches(adapted, short_run.recipe, conversations) == []


def test_greedy_token_ids_are_those_of_the_answers(adapted, conversations):
    prompts = [prompt_ids(adapted.tokenizer, messages) for messages in conversations]
    rows = generate_greedy(adapted, prompts, 60)
    stops = stop_token_ids(adapted.tokenizer)
    assert any(row[-1] in stops for row in rows)
    assert all(token not in stops for row in rows for token in row[:-1])
    texts = [
        adapted.tokenizer.decode([token for token in row if token not in stops]) for row in rows
    ]
    answers = answer(adapted, "adapter", conversations, Sampling(max_new_tokens=60))
    assert [text.strip() for text in texts] == answers


def test_swapped_sides_are_caught(adapted, short_run, conversations, monkeypatch):
    def use_other_side(adapted, side):
        return use_side(adapted, "adapter" if side == "base" else "base")

    monkeypatch.setattr(adapter_off_check, "use_side", use_other_side)
    monkeypatch.setattr(generate, "use_side", use_other_side)
    assert not check(adapted).fair
    assert mismatches(adapted, short_run.recipe, conversations) == ["answers"], (
        "the logits are computed with the original function"
    )
    monkeypatch.setattr("peft_space.operations.evaluation.load_cached", lambda run: adapted)
    compared = operations.compare("a run", ["Hello."], sampling={"max_new_tokens": 2})
    assert not compared["fairness"]["fair"]
    assert "NOT FAIR" in compared["fairness"]["words"]


def test_interrupted_answers_leave_the_model_unchanged(adapted, conversations):
    turns = conversations[:2]
    before = {side: answer(adapted, side, turns, GREEDY) for side in SIDES}

    def interrupt(*_):
        raise InterruptedError

    # PEFT would leave its hooks on the layers, and with them the side of each row
    with pytest.raises(InterruptedError):
        answer_together(adapted, dict.fromkeys(SIDES, turns), GREEDY, interrupt)
    with pytest.raises(InterruptedError):
        answer(adapted, "base", turns, GREEDY, on_token=interrupt)
    assert check(adapted).fair
    assert {side: answer(adapted, side, turns, GREEDY) for side in SIDES} == before


def test_a_changed_base_weight_is_caught(short_run):
    adapted = load_adapted(short_run)
    layers = dict(adapted.model.named_modules())
    name = next(name for name in layers if name.endswith("o_proj.base_layer"))
    with torch.no_grad():
        layers[name].weight[0, 0] += 1e-3
    assert 0 < check(adapted).base_off_by < 1


def test_different_tokens_for_the_two_sides_are_caught(adapted, conversations):
    seen = {"base": [], "adapter": []}
    compare(adapted, conversations[:2], GREEDY, seen=seen)
    prompts = [tuple(prompt_ids(adapted.tokenizer, messages)) for messages in conversations[:2]]
    assert seen["base"] == prompts
    fairness = check(adapted, seen)
    num_tokens = sum(map(len, prompts))
    assert (fairness.fair, fairness.num_prompts, fairness.num_tokens) == (True, 2, num_tokens)
    assert f"{num_tokens} token ids in 2 prompts" in fairness.in_words()
    compare(adapted, conversations[:1], GREEDY, seen=seen, adapters=conversations[1:2])
    assert not check(adapted, seen).fair
    assert "NOT FAIR" in check(adapted, seen).in_words()
    assert check(adapted, seen, own_histories=True).fair


def test_the_first_answers_of_a_model_count_the_tokens_of_their_prompts(short_run, conversations):
    adapted = load_adapted(short_run)  # it tries its cache when it first answers
    seen = {"base": [], "adapter": []}
    compare(adapted, conversations[:2], GREEDY, seen=seen)
    prompts = [tuple(prompt_ids(adapted.tokenizer, messages)) for messages in conversations[:2]]
    assert seen == {"base": prompts, "adapter": prompts}


def test_dora_is_rejected_on_layers_with_rows_of_zeros():
    base, recipe = pin_revision(find_base("demo")), Recipe(method="dora", quantization="none")
    with pytest.raises(UserError, match=r"q_proj.* 44 ") as error:
        new_adapter(load_base_model(base, recipe, "float32"), recipe, base)
    assert error.value.code == "models.dora_impossible"


def test_an_adapter_without_effect_is_reported(adapted):
    without_effect = dataclasses.replace(check(adapted), adapter_off_by=0.0)
    assert without_effect.fair
    assert "changes nothing" in without_effect.in_words()
