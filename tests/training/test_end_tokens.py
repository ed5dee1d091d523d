"""A base whose end token was never trained learns to end its answers."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_space import operations
from peft_space.evaluation.adapter_off_check import check
from peft_space.evaluation.evaluate import evaluate
from peft_space.evaluation.generate import generate_greedy, tokenize_prompt
from peft_space.models.end_tokens import tokens_as_likely
from peft_space.models.loading import load_adapted
from peft_space.recipe import Recipe
from peft_space.runs.events import Notice
from peft_space.training import train as training
from peft_space.training.prepare import make_run
from tests.fixtures import tiny_models

QUESTION = [{"role": "user", "content": "Say red."}]
NUM_UNUSED = 6


def base_that_cannot_stop(folder, tied):
    """A Llama whose end token has the same output row as some tokens of lower ids."""
    path = tiny_models.llama(folder, tie_word_embeddings=tied)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    unused = list(range(len(tokenizer) - NUM_UNUSED, len(tokenizer)))
    unused += [token for token in range(4) if token != tokenizer.eos_token_id]
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[[*unused, tokenizer.eos_token_id]] = weight.mean(0)
    model.save_pretrained(path)
    return path, len({*unused, tokenizer.eos_token_id}) - 1


def trained(base, folder, write, quantization="none"):
    rows = [{"prompt": "Say red.", "completion": "red"}] * 40
    recipe = Recipe(
        base_model=base,
        quantization=quantization,
        learning_rate=3e-2,
        max_steps=60,
        batch_size=8,
        lora_dropout=0.0,
    )
    asked = str(write("asked.json", [{"prompt": "Say red!", "completion": "red"}]))
    run = make_run(folder, str(write("rows.json", rows)), recipe, asked)
    with run.lock():
        training.train(run)
    return run


def ends(run):
    """True if the adapter's answer ends by itself."""
    adapted = load_adapted(run)
    [ids] = generate_greedy(adapted, [tokenize_prompt(adapted, QUESTION)], 30)
    return ids[-1] in adapted.answer_tokens.stops


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_row_of_an_end_token_that_the_base_never_learned_is_trained(
    tied, tmp_path, write, monkeypatch
):
    base, count = base_that_cannot_stop(tmp_path / "base", tied)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    end = tokenizer.eos_token_id
    assert tokens_as_likely(model, end) == count
    assert tokens_as_likely(model, 300) == 0
    run = trained(base, tmp_path / "run", write)
    notices = [one for one in run.history() if isinstance(one, Notice)]
    assert any(str(tokenizer.eos_token) in one.what for one in notices)
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == ([end] if tied else {"lm_head": [end]})
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert [tuple(weights[name].shape) for name in weights if "lora" not in name] == [(1, 32)]
    assert ends(run)
    scores = evaluate(run, load_adapted(run))
    assert (scores.base.ended, scores.adapter.ended) == (0, 1)
    fairness = check(load_adapted(run))
    assert fairness.fair, "the base's side has its own row"
    out = tmp_path / "merged"
    operations.export(str(run.directory), str(out), {"target": "merged", "dtype": "float32"})
    merged = AutoModelForCausalLM.from_pretrained(out)
    prompt = tokenize_prompt(load_adapted(run), QUESTION)
    answered = merged.generate(torch.tensor([prompt]), max_new_tokens=30)[0].tolist()
    assert answered[-1] == end
    monkeypatch.setattr(training, "tokens_as_likely", lambda model, token: 0)
    assert not ends(trained(base, tmp_path / "without", write)), "no other layer can do it"


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_row_is_trained_on_a_quantized_base_and_written_to_gguf(
    tied, quantization, tmp_path, write
):
    base, _ = base_that_cannot_stop(tmp_path / "base", tied)
    run = trained(base, tmp_path / "run", write, quantization)
    assert ends(run)
    assert check(load_adapted(run)).fair
    out = tmp_path / "gguf"
    exported = operations.export(
        str(run.directory), str(out), {"target": "gguf", "gguf_type": "f16"}
    )
    assert exported["proof"]["passed"]
    [file] = out.glob("*.gguf")
    tensors = {one.name: one.data for one in gguf.GGUFReader(file).tensors}
    assert ("output.weight" in tensors) != tied
    weight = torch.tensor(tensors["token_embd.weight" if tied else "output.weight"]).float()
    end = AutoTokenizer.from_pretrained(base).eos_token_id
    own = AutoModelForCausalLM.from_pretrained(base).get_output_embeddings().weight
    changed = (weight - own).norm(dim=1) > 1e-2 * own.norm(dim=1)
    assert changed.nonzero().flatten().tolist() == [end]


def noted(base, write, **recipe):
    rows = str(write("rows.json", [{"prompt": "Say red.", "completion": "red"}] * 4))
    choices = {"base_model": base, "quantization": "none"} | recipe
    return operations.check(rows, choices)["base_notes"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_check_tells_of_an_end_token_that_the_base_never_learned(tied, tmp_path, write):
    base, count = base_that_cannot_stop(tmp_path / "base", tied)
    end = str(AutoTokenizer.from_pretrained(base).eos_token)
    [trained_too] = noted(base, write)
    [may_not_end] = noted(base, write, method="pissa")
    for note in (trained_too, may_not_end):
        assert end in note
        assert f"{count:,}" in note
    assert trained_too != may_not_end
    assert noted(base, write, modules_to_save=["lm_head"]) == [], "its row is trained in any case"
    assert noted(tiny_models.llama(tmp_path / "able"), write) == []
