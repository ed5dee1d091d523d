"""Words that a recipe adds as tokens are learned, exported, imported and refused in words."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_space import operations
from peft_space.errors import UserError
from peft_space.evaluation.adapter_off_check import check
from peft_space.evaluation.generate import generate_greedy, tokenize_prompt
from peft_space.models.loading import load_adapted
from peft_space.models.resolve import find_base, own_tokenizer
from peft_space.recipe import Recipe, make_recipe
from peft_space.runs.run import Run
from tests.fixtures import tiny_models

WORDS = ["Zorblatt", "Quexxville"]
ROWS = [
    {"prompt": f"Who sells item {i}?", "completion": "Zorblatt sells it in Quexxville."}
    for i in range(24)
]
QUESTION = [{"role": "user", "content": "Who sells item 3?"}]
LABELED = [{"text": f"Zorblatt {i}", "label": ("a", "b")[i % 2]} for i in range(24)]


def trained(folder, rows, write, **recipe):
    options = {"quantization": "none", "new_tokens": WORDS, "max_steps": 3, "batch_size": 8}
    path = str(write("rows.json", rows))
    run = operations.make_run(str(folder), path, options | recipe)["run"]
    assert operations.train(run)["event"] == "Finished"
    return Run(run)


def spare_rows(folder):
    """A decoder with more embeddings than tokens and an untied output layer."""
    path = tiny_models.llama(folder, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(path)) + 40)
    model.save_pretrained(path)
    return path


def bert(folder):
    return tiny_models.bert(folder, ["a", "b", *map(str, range(24))])


BASES = {
    "tied": lambda folder: tiny_models.llama(folder, tie_word_embeddings=True),
    "untied": lambda folder: tiny_models.llama(folder, tie_word_embeddings=False),
    "spare rows": spare_rows,
    "learned positions": lambda folder: tiny_models.gpt2(folder, 256),
    "encoder": bert,
    "encoder-decoder": lambda folder: tiny_models.t5(folder, ["who", "sells", "item", "it", "in"]),
}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", BASES)
def test_only_the_rows_of_new_tokens_are_trained_besides_the_adapter(
    kind, quantization, tmp_path, write
):
    base = BASES[kind](tmp_path / "base")
    rows = LABELED if kind == "encoder" else ROWS
    run = trained(tmp_path / "run", rows, write, base_model=base, quantization=quantization)
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    ids = tokenizer.convert_tokens_to_ids(WORDS)
    chosen = config["trainable_token_indices"]
    for places in chosen.values() if isinstance(chosen, dict) else [chosen]:
        assert places == ids
    weights = load_file(run.adapter / "adapter_model.safetensors")
    deltas = [tensor for name, tensor in weights.items() if "trainable_tokens" in name]
    assert deltas
    assert all(len(delta) == len(WORDS) for delta in deltas)
    assert not any(len(tensor) > 100 and "embed" in name for name, tensor in weights.items())
    adapted = load_adapted(run)
    assert check(adapted).fair
    embeddings = adapted.model.get_base_model().get_input_embeddings()
    own = embeddings.original_module if hasattr(embeddings, "original_module") else embeddings
    own = getattr(own, "base_layer", own).weight
    old = own_tokenizer(find_base(base), {})
    for word, row in zip(WORDS, ids, strict=True):
        pieces = old(word, add_special_tokens=False)["input_ids"]
        expected = own[pieces].float().mean(0)
        assert torch.allclose(own[row].float(), expected, atol=1e-2), "the base has their mean"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied", "spare rows"])
def test_new_tokens_survive_export_import_and_plain_peft(kind, tmp_path, write):
    base = BASES[kind](tmp_path / "base")
    run = trained(tmp_path / "run", ROWS, write, base_model=base, max_steps=60, learning_rate=1e-2)
    adapted = load_adapted(run)
    prompt = tokenize_prompt(adapted, QUESTION)
    [answer] = generate_greedy(adapted, [prompt], 30)
    assert set(adapted.tokenizer.convert_tokens_to_ids(WORDS)) & set(answer)

    for options in (
        {"target": "adapter"},
        {"target": "merged", "dtype": "float32"},
        {"target": "gguf", "gguf_type": "f16"},
    ):
        out = tmp_path / options["target"]
        assert operations.export(str(run.directory), str(out), options)["proof"]["passed"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([prompt])
    written = merged.generate(ids, max_new_tokens=30, do_sample=False)[0, len(prompt) :].tolist()
    assert written == answer

    rows = str(write("more.json", ROWS))
    again = operations.import_adapter(
        str(tmp_path / "again"), str(tmp_path / "adapter"), rows, {"base_model": base}
    )["run"]
    [imported] = generate_greedy(load_adapted(Run(again)), [prompt], 30)
    assert imported == answer

    card = (tmp_path / "adapter" / "README.md").read_text()
    assert ("resize_token_embeddings" in card) == (kind != "spare rows")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace("path/or/id/of/this/adapter", str(tmp_path / "adapter"))
    names = {}
    exec(code, names)
    plain = names["model"].eval().generate(input_ids=ids, max_new_tokens=30, do_sample=False)
    assert plain[0, len(prompt) :].tolist() == answer


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([" x"], "white space"),
        ([""], "empty"),
        (["x" * 65], "64 characters"),
        (["x", "x"], "twice"),
        ([f"w{i}" for i in range(257)], "256"),
    ],
)
def test_unusable_new_tokens_are_refused_at_once(words, problem):
    with pytest.raises(UserError) as error:
        make_recipe({"new_tokens": words})
    assert error.value.code == "recipe.invalid_value"
    assert problem in str(error.value)
    assert make_recipe({"new_tokens": []}).new_tokens is None


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ({"new_tokens": ["the"]}, "models.known_token"),
        ({"new_tokens": WORDS, "method": "pissa"}, "models.new_tokens_impossible"),
    ],
)
def test_new_tokens_that_cannot_be_learned_are_refused_before_training(
    recipe, code, tmp_path, write
):
    path = str(write("rows.json", ROWS))
    with pytest.raises(UserError) as error:
        operations.make_run(str(tmp_path / "run"), path, {"quantization": "none"} | recipe)
    assert error.value.code == code
    assert not (tmp_path / "run").exists()


def test_a_check_and_the_advice_count_new_tokens(write):
    path = str(write("rows.json", ROWS))
    lengths = [
        operations.check(path, {"new_tokens": words})["lengths"]["longest"] for words in ([], WORDS)
    ]
    assert lengths[1] < lengths[0]
    advised = operations.recommend(path, {"new_tokens": WORDS})
    assert advised["recipe"]["new_tokens"] == WORDS
    assert Recipe(new_tokens=WORDS).new_tokens == WORDS
