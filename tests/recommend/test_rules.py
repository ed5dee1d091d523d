"""Recommendations for data, model and machine, and the limits that a recipe should not cross."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.recommend.rules import (
    MIN_STEPS,
    DataFacts,
    MachineFacts,
    ModelFacts,
    bits_to_learn,
    changed_recommendations,
    check_red_lines,
    learning_rate,
    needed_rank,
    recommend,
    recommended_recipe,
    red_lines,
)

GIGABYTE = 2**30
TINY = ModelFacts(3_000_000, 256, 23_680, 512, 2_048, 5)
LLAMA_1B = ModelFacts(1_236_000_000, 2_048, 704_512, 131_072, 128_256, 16)
LLAMA_8B = ModelFacts(8_030_000_000, 4_096, 2_621_440, 131_072, 128_256, 32)
GPTQ_1B = dataclasses.replace(LLAMA_1B, comes_quantized="gptq")
LAPTOP = MachineFacts("cpu", 8 * GIGABYTE)
GPU = MachineFacts("cuda", 24 * GIGABYTE)
REASON = "Legal codes of three countries, measured at 64."


def rows(num_rows=1_000, tokens=200, length=300, **others):
    others = {"task": "causal-lm", "trained_tokens": num_rows * tokens} | others
    return DataFacts(num_rows=num_rows, lengths=(length,) * 101, **others)


def values(data, model=LLAMA_1B, machine=LAPTOP):
    return {advice.field: advice.value for advice in recommend(data, model, machine)}


def why(field, data, model=LLAMA_1B, machine=LAPTOP):
    return next(advice.why for advice in recommend(data, model, machine) if advice.field == field)


def kinds(recipe, **facts):
    return {(line.field, line.kind) for line in red_lines(Recipe(**recipe), **facts)}


def words(recipe, **facts):
    return " ".join(line.words for line in red_lines(Recipe(**recipe), **facts))


TASKS = ("causal-lm", "seq2seq-lm", "sequence-classification", "token-classification", "dpo", "kto")
data_facts = st.builds(
    DataFacts,
    task=st.sampled_from(TASKS),
    num_rows=st.integers(1, 10_000_000),
    trained_tokens=st.integers(1, 10**11),
    lengths=st.lists(st.integers(1, 1_000_000), min_size=1, max_size=30).map(
        lambda lengths: tuple(sorted(lengths))
    ),
    num_labels=st.none() | st.integers(1, 5_000),
    repeated_share=st.floats(0, 1),
    tokens_per_word=st.none() | st.floats(0.5, 20),
    bits_per_token=st.none() | st.floats(0, 20),
)
model_facts = st.builds(
    ModelFacts,
    num_parameters=st.integers(10_000, 10**12),
    hidden_size=st.integers(16, 20_000),
    parameters_per_rank=st.integers(32, 10**8),
    context_length=st.none() | st.integers(8, 2_000_000),
    vocab_size=st.integers(10, 300_000),
    num_layers=st.integers(1, 200),
    comes_quantized=st.none() | st.sampled_from(("gptq", "awq")),
)
machine_facts = st.builds(
    MachineFacts, device=st.sampled_from(("cpu", "cuda")), memory=st.none() | st.integers(0, 10**12)
)


@settings(deadline=None)
@given(data_facts, model_facts, machine_facts)
def test_the_rank_is_never_recommended_over_64(data, model, machine):
    assert values(data, model, machine)["lora_rank"] in (8, 16, 32, 64)


@settings(deadline=None)
@given(data_facts, model_facts, machine_facts)
def test_the_recommended_recipe_is_valid_and_crosses_no_stop(data, model, machine):
    recipe = recommended_recipe(Recipe(), recommend(data, model, machine))
    check_red_lines(red_lines(recipe, model, data))
    assert not changed_recommendations(recipe, recommend(data, model, machine))


@settings(deadline=None)
@given(data_facts, model_facts, machine_facts)
def test_a_step_averages_at_most_32_rows_that_fit_the_context(data, model, machine):
    advised = values(data, model, machine)
    assert advised["batch_size"] * advised["gradient_accumulation_steps"] <= min(32, data.num_rows)
    assert advised["max_length"] <= (model.context_length or 131_072)


@settings(deadline=None)
@given(data_facts, model_facts, machine_facts)
def test_epochs_are_1_to_10_and_give_60_steps_if_possible(data, model, machine):
    advised = values(data, model, machine)
    epochs = advised["num_epochs"]
    steps = epochs * -(
        -data.num_rows // (advised["batch_size"] * advised["gradient_accumulation_steps"])
    )
    most = 3 if data.task in ("dpo", "kto") else 10
    assert 1 <= epochs <= most
    assert steps >= MIN_STEPS or epochs == most


@settings(deadline=None)
@given(data_facts, model_facts, machine_facts)
def test_every_recommendation_names_a_field_once_with_a_reason_and_a_source(data, model, machine):
    advices = recommend(data, model, machine)
    assert len({advice.field for advice in advices}) == len(advices)
    for advice in advices:
        assert advice.field in Recipe.model_fields
        assert advice.why.endswith(".")
        assert advice.why[0].isupper() or advice.why[0].isdigit()
        assert "\n" not in advice.why
        assert advice.source


@settings(deadline=None)
@given(data_facts, model_facts)
def test_more_memory_never_makes_the_batch_smaller(data, model):
    less = values(data, model, MachineFacts("cuda", 8 * GIGABYTE))
    more = values(data, model, MachineFacts("cuda", 80 * GIGABYTE))
    assert less["batch_size"] <= more["batch_size"]


def test_300_short_rows_on_a_model_of_three_million_parameters():
    advised = values(rows(300, 30, 60), TINY)
    assert (advised["lora_rank"], advised["method"], advised["num_epochs"]) == (8, "lora", 4)
    assert (
        advised["batch_size"],
        advised["gradient_accumulation_steps"],
        advised["max_length"],
    ) == (8, 1, 64)
    assert advised["quantization"] == "none"


def test_1000_rows_on_an_8b_model_need_the_lowest_rank_and_4_bits():
    advised = values(rows(1_000, 200), LLAMA_8B, GPU)
    assert (
        advised["lora_rank"],
        advised["method"],
        advised["quantization"],
        advised["learning_rate"],
    ) == (8, "lora", "nf4", 4e-4)
    assert (advised["num_epochs"], advised["max_length"]) == (3, 512)
    assert advised["batch_size"] * advised["gradient_accumulation_steps"] == 16


def test_50000_rows_on_a_1b_model_need_rank_8_and_get_twice_that():
    data = rows(50_000, 200)
    assert needed_rank(data, LLAMA_1B) == pytest.approx(7.1, abs=0.05)
    assert values(data)["lora_rank"] == 16
    assert values(data)["num_epochs"] == 2


def test_77_intents_of_10003_rows_need_no_more_than_rank_16():
    data = rows(10_003, 1, 40, task="sequence-classification", num_labels=77)
    assert bits_to_learn(data) == pytest.approx(62_700, rel=0.01)
    assert values(data)["lora_rank"] == 8
    assert values(data, TINY)["lora_rank"] == 8


def test_labels_stay_at_rank_16_until_they_need_more():
    data = rows(1_000_000, 1, 40, task="sequence-classification", num_labels=77)
    assert (
        values(data, dataclasses.replace(LLAMA_1B, parameters_per_rank=250_000))["lora_rank"] == 16
    )
    assert values(data, TINY)["lora_rank"] == 64


def test_above_rank_32_the_method_is_rslora_with_its_own_alpha():
    data = rows(200_000, 200)
    advised = recommended_recipe(Recipe(lora_alpha=128), recommend(data, LLAMA_1B, LAPTOP))
    assert (advised.lora_rank, advised.method, advised.lora_alpha, advised.alpha) == (
        64,
        "rslora",
        None,
        16,
    )


def test_alpha_is_unchanged_if_the_method_is():
    advices = recommend(rows(), LLAMA_1B, LAPTOP)
    assert recommended_recipe(Recipe(lora_alpha=40), advices).lora_alpha == 40
    assert recommended_recipe(Recipe(lora_alpha=40, method="dora"), advices).lora_alpha is None


def test_data_beyond_the_capacity_of_an_adapter_are_reported():
    data = rows(1_000_000, 200)
    assert values(data)["lora_rank"] == 64 < needed_rank(data, LLAMA_1B)
    assert "rank 64" in why("lora_rank", data)


def test_the_measured_loss_of_the_base_counts_for_the_rank():
    data = rows(50_000, 200)
    assert values(dataclasses.replace(data, bits_per_token=0.2))["lora_rank"] == 8
    assert values(dataclasses.replace(data, bits_per_token=2.0))["lora_rank"] == 32


def test_unfamiliar_texts_count_twice_as_much():
    data = rows(50_000, 200, tokens_per_word=3.1)
    assert values(data)["lora_rank"] == 32
    assert values(dataclasses.replace(data, tokens_per_word=1.4))["lora_rank"] == 16


def test_preferences_take_a_tenth_of_the_learning_rate_and_one_epoch():
    for task in ("dpo", "kto"):
        advised = values(rows(5_000, 200, task=task))
        answers = learning_rate(LLAMA_1B.hidden_size, rank=8).value
        assert advised["learning_rate"] == pytest.approx(answers / 10, rel=0.05)
        assert (advised["num_epochs"], advised["lora_rank"]) == (1, 8)
        assert "tenth" in why("learning_rate", rows(task=task))


def test_the_learning_rate_reads_as_a_clause_and_as_a_sentence():
    assert learning_rate(2_048).value == 4.9e-4
    assert learning_rate(2_048, num_steps=101).value == 4.9e-4
    assert learning_rate(2_048, num_steps=100).value == 1.2e-3
    assert learning_rate(2_048, "sequence-classification", 100).value == 7.4e-4
    assert "100 steps" in learning_rate(2_048, num_steps=100).why
    assert learning_rate(2_048, "dpo", 100) == learning_rate(2_048, "dpo", 1_000)
    assert learning_rate(2_048).why.startswith("which ")
    assert why("learning_rate", rows()).startswith("This ")
    assert "2048" in why("learning_rate", rows())


def test_the_learning_rate_falls_with_the_rank_because_alpha_rises_with_it():
    rates = [learning_rate(2_048, rank=rank).value for rank in (1, 8, 16, 64, 128)]
    assert rates == [6.9e-4, 6.9e-4, 4.9e-4, 2.5e-4, 2.5e-4]


def test_small_datasets_get_more_epochs_and_duplicates_fewer():
    assert [values(rows(number))["num_epochs"] for number in (20, 300, 5_000, 50_000, 500_000)] == [
        10,
        4,
        3,
        2,
        1,
    ]
    assert values(rows(5_000, repeated_share=0.5))["num_epochs"] == 2
    assert "50%" in why("num_epochs", rows(5_000, repeated_share=0.5))


def test_small_datasets_get_small_steps():
    sizes = [values(rows(number, length=30), TINY) for number in (50, 300, 5_000, 50_000)]
    assert [size["batch_size"] * size["gradient_accumulation_steps"] for size in sizes] == [
        4,
        8,
        16,
        32,
    ]


def test_a_batch_that_does_not_fit_is_accumulated_from_smaller_ones():
    short, long = (values(rows(5_000, length=length), LLAMA_8B, GPU) for length in (60, 3_000))
    assert (short["batch_size"], short["gradient_accumulation_steps"]) == (16, 1)
    assert (long["batch_size"], long["gradient_accumulation_steps"]) == (1, 16)
    small = MachineFacts("cuda", 4 * GIGABYTE)
    assert "max_length" in why("batch_size", rows(length=3_000), LLAMA_8B, small)


def test_the_length_limit_holds_99_of_100_rows():
    lengths = (*range(1, 100), 5_000)
    assert values(dataclasses.replace(rows(), lengths=lengths))["max_length"] == 128
    assert (
        values(dataclasses.replace(rows(), lengths=(*range(1, 99), 5_000, 5_000)))["max_length"]
        == 8_192
    )


def test_the_length_limit_stays_within_the_context():
    assert values(rows(length=900), TINY)["max_length"] == 512
    reason = why("max_length", rows(length=900), TINY)
    assert "512 tokens" in reason
    assert "0%" in reason


def test_a_base_model_that_fits_easily_is_not_quantized_on_a_cpu():
    assert values(rows(), LLAMA_1B, MachineFacts("cpu", 16 * GIGABYTE))["quantization"] == "none"
    assert values(rows(), LLAMA_1B, LAPTOP)["quantization"] == "nf4"
    assert values(rows(), TINY, MachineFacts("cpu", None))["quantization"] == "nf4"
    assert values(rows(), LLAMA_1B, GPU)["quantization"] == "nf4"


def test_a_base_model_that_comes_quantized_stays_that_way():
    assert "quantization" not in values(rows(), GPTQ_1B)
    assert "gptq" in why("method", rows(), GPTQ_1B)


def test_only_differences_are_changes():
    advices = recommend(rows(), LLAMA_1B, LAPTOP)
    assert {advice.field for advice in changed_recommendations(Recipe(), advices)} == {
        "lora_rank", "num_epochs", "batch_size", "gradient_accumulation_steps",
    }  # fmt: skip


def test_a_chosen_learning_rate_is_changed_and_an_empty_one_is_not():
    advices = recommend(rows(), LLAMA_1B, LAPTOP)
    assert "learning_rate" in {
        advice.field for advice in changed_recommendations(Recipe(learning_rate=1e-5), advices)
    }


def test_fields_without_a_recommendation_are_unchanged():
    recipe = Recipe(base_model="a/b", seed=7, lora_dropout=0.1, target_modules=["q_proj"])
    advised = recommended_recipe(recipe, recommend(rows(), LLAMA_1B, LAPTOP))
    assert (advised.base_model, advised.seed, advised.lora_dropout, advised.target_modules) == (
        "a/b",
        7,
        0.1,
        ["q_proj"],
    )


def test_the_default_recipe_crosses_no_red_line():
    assert red_lines(Recipe(), LLAMA_1B, rows()) == []
    assert red_lines(Recipe(), TINY, rows(300, 30)) == []


@pytest.mark.parametrize("reason", [None, "", "because", " " * 30])
def test_a_rank_over_64_without_a_reason_is_rejected(reason):
    recipe = {"lora_rank": 128, "high_rank_reason": reason}
    assert kinds(recipe) == {("lora_rank", "stop")}
    with pytest.raises(UserError) as error:
        check_red_lines(red_lines(Recipe(**recipe)))
    assert error.value.code == "recipe.red_line"
    assert "128" in str(error.value)
    assert "high_rank_reason" in str(error.value)


def test_a_rank_over_64_with_a_reason_is_allowed_and_the_reason_quoted():
    recipe = {"lora_rank": 128, "high_rank_reason": REASON}
    assert kinds(recipe) == {("lora_rank", "warning")}
    assert REASON in words(recipe)
    check_red_lines(red_lines(Recipe(**recipe)))


def test_a_rank_of_64_needs_no_reason():
    assert kinds({"lora_rank": 64}) == set()


def test_a_rank_far_above_the_needed_one_gets_a_warning():
    assert kinds({"lora_rank": 64}, model=LLAMA_8B, data=rows()) == {("lora_rank", "warning")}
    assert "Rank 8 is enough" in words({"lora_rank": 64}, model=LLAMA_8B, data=rows())
    assert "is enough" not in words({"lora_rank": 32}, model=LLAMA_8B, data=rows())


def test_a_rank_below_the_needed_one_gets_a_warning_with_a_remedy():
    low = words({"lora_rank": 4}, model=LLAMA_1B, data=rows(50_000, 200))
    assert "rank 4" in low
    assert "Use rank 16." in low
    large = words({"lora_rank": 64}, model=LLAMA_1B, data=rows(1_000_000, 200))
    assert "larger base model" in large


def test_training_over_one_percent_of_a_large_model_gets_a_warning():
    assert kinds({"lora_rank": 64}, model=LLAMA_1B) == {("lora_rank", "warning")}
    assert "3.6%" in words({"lora_rank": 64}, model=LLAMA_1B)
    assert kinds({"lora_rank": 64}, model=TINY) == set()
    assert kinds({"lora_rank": 16}, model=LLAMA_1B) == set()


@pytest.mark.parametrize("method", ["pissa", "loftq"])
@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_preferences_cannot_be_trained_with_methods_that_change_the_base(method, task):
    assert ("method", "stop") in kinds({"method": method, "task": task})
    assert ("method", "stop") in kinds({"method": method}, data=rows(task=task))
    assert ("method", "stop") not in kinds(
        {"method": method, "task": "causal-lm"}, data=rows(task=task)
    )


@pytest.mark.parametrize("method", ["pissa", "loftq"])
def test_pissa_and_loftq_need_full_precision_weights(method):
    assert ("method", "stop") in kinds({"method": method}, model=GPTQ_1B)
    assert "gptq" in words({"method": method}, model=GPTQ_1B)
    assert "LoRA of rank 32" in words({"method": method}, model=LLAMA_1B)
    assert kinds({"method": method}, model=LLAMA_1B) == {("method", "warning")}


def test_dora_gets_a_warning_about_vllm():
    assert kinds({"method": "dora"}) == {("method", "warning")}
    assert "vLLM" in words({"method": "dora"})


def test_trained_biases_get_a_warning():
    assert (
        kinds({"lora_bias": "all"})
        == kinds({"lora_bias": "lora_only"})
        == {("lora_bias", "warning")}
    )


def test_a_learning_rate_ten_times_too_high_gets_a_warning():
    assert kinds({"learning_rate": 6e-3}, model=LLAMA_1B) == {("learning_rate", "warning")}
    assert kinds({"learning_rate": 4e-3}, model=LLAMA_1B) == set()
    assert kinds({"learning_rate": 4e-3}, model=LLAMA_1B, data=rows(5_000, task="dpo")) == {
        ("learning_rate", "warning")
    }


def test_a_tokenizer_made_for_another_language_gets_a_warning():
    assert kinds({}, data=rows(tokens_per_word=3.1)) == {("base_model", "warning")}
    assert "3.1 tokens per word" in words({}, data=rows(tokens_per_word=3.1))


def test_an_error_names_every_stop_and_no_warning():
    recipe = Recipe(lora_rank=128, method="pissa", task="dpo", lora_bias="all")
    lines = red_lines(recipe, GPTQ_1B)
    with pytest.raises(UserError) as error:
        check_red_lines(lines)
    assert sum(line.kind == "stop" for line in lines) == 3
    assert all((line.words in str(error.value)) == (line.kind == "stop") for line in lines)
