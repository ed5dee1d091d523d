"""Padding and stop tokens of model, tokenizer and template, which need not agree."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification, GenerationConfig

from peft_space import operations
from peft_space.data.arrow_store import MASKED
from peft_space.models.architecture import auto_class
from peft_space.models.resolve import find_base, load_tokenizer
from peft_space.models.special_tokens import (
    answer_tokens,
    choose_pad_token,
    decoder_inputs,
    forget_foreign_pad_token,
    set_special_tokens,
)
from peft_space.runs.events import Notice
from peft_space.runs.run import Run
from tests.fixtures import tiny_models
from tests.fixtures.architectures import ARCHITECTURES, VOCABULARY

PAD, EOS = 3, 31
"""Tokens of the tokenizer; the configs name others, or none."""


def decoder_classifiers():
    """The fixtures whose classifier reads its answer at the last token of a text."""
    mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    seen = {}
    for one in ARCHITECTURES:
        config = AutoConfig.for_model(one.model_type, **one.config)
        if type(config) in mapping and one.task in ("causal-lm", "sequence-classification"):
            seen.setdefault(one.model_type, one)
    return [pytest.param(one, id=one.name) for one in seen.values()]


@pytest.mark.parametrize("architecture", decoder_classifiers())
@pytest.mark.parametrize("wrong", [None, 7, 1])
@pytest.mark.sample(10)
def test_a_padded_row_is_classified_like_the_row_alone(architecture, wrong):
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    config.num_labels = 3
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    if wrong is None or hasattr(config, "pad_token_id"):
        config.pad_token_id = model.config.pad_token_id = wrong
    set_special_tokens(model, SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS))
    rows = [[11, 12, 13, 14, 15, 16, 17, EOS], [21, 22, EOS], [EOS]]
    ids = torch.tensor([row + [PAD] * (8 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (8 - len(row)) for row in rows])
    with torch.inference_mode():
        together = model(input_ids=ids, attention_mask=mask).logits
        alone = [model(input_ids=torch.tensor([row])).logits[0] for row in rows]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)


@pytest.mark.parametrize("part", ["pad", "eos"])
def test_a_padding_token_has_an_embedding(part, tmp_path):
    folder = tiny_models.llama(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    config = AutoConfig.from_pretrained(folder)
    assert tokenizer.pad_token_id == config.vocab_size, "one token more than embeddings"
    if part == "eos":
        config.pad_token_id = None
    known = config.pad_token_id if part == "pad" else tokenizer.eos_token_id
    what, why = choose_pad_token(tokenizer, config)
    assert tokenizer.pad_token_id == known
    assert str(tokenizer.pad_token) in what
    assert "[PAD]" in why
    assert choose_pad_token(tokenizer, config) is None, "it is the tokenizer's now"


def test_a_replaced_padding_token_is_told_by_the_check_and_the_run(tmp_path, write):
    base = tiny_models.llama(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    data = str(write("rows.json", [{"prompt": "Say red.", "completion": "red"}] * 8))
    recipe = {"base_model": base, "quantization": "none", "max_steps": 1, "eval_split": 0.0}
    [note] = operations.check(data, recipe)["base_notes"]
    assert "[PAD]" in note
    run = operations.make_run(str(tmp_path / "run"), data, recipe)["run"]
    operations.train(run)
    notices = [one for one in Run(run).history() if isinstance(one, Notice)]
    assert [f"{one.what} {one.why}" for one in notices].count(note) == 1


def test_a_config_with_a_padding_token_without_an_embedding_can_be_built(tmp_path):
    folder = tiny_models.gemma3(tmp_path)
    config = AutoConfig.from_pretrained(folder)
    config.text_config.pad_token_id = config.text_config.vocab_size
    forget_foreign_pad_token(config)
    assert config.text_config.pad_token_id is None
    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, pad_token_id=-1)
    forget_foreign_pad_token(config)
    assert config.pad_token_id is None


_BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip
_GEMMA = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 7,
}  # fmt: skip
_T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}


@pytest.mark.parametrize(
    ("kind", "values", "start"),
    [
        ("mbart", _BART, "end"),
        ("plbart", _BART, "end"),
        ("fsmt", _BART | {"src_vocab_size": 9000, "tgt_vocab_size": 9000}, "end"),
        ("t5gemma", {"encoder": _GEMMA, "decoder": _GEMMA}, 7),
        ("t5", _T5 | {"decoder_start_token_id": 5}, 5),
    ],
)
def test_a_decoder_begins_answers_with_what_it_begins_with_in_training(
    kind, values, start, tokenizer
):
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), pad_token_id=0, **values)
    model = auto_class("seq2seq-lm").from_config(config)
    found = answer_tokens(tokenizer, "seq2seq-lm", None, model).decoder_start
    labels = torch.tensor([[8, 9, tokenizer.eos_token_id, MASKED]])
    before = labels.clone()
    decoder_inputs(model, labels)
    assert torch.equal(labels, before), "labels that are not trained stay so"
    assert found == decoder_inputs(model, labels)[0, 0]
    assert found == (tokenizer.eos_token_id if start == "end" else start)


def test_a_text_that_bart_classifies_ends_with_the_end_token_once(tmp_path, tokenizer):
    config = AutoConfig.for_model("bart", vocab_size=len(tokenizer), **_BART)
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for _ in range(2):  # the second time, the tokenizer writes the token itself
        loaded = load_tokenizer(find_base(str(tmp_path)), task="sequence-classification")
        ids = loaded("hello")["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1
        loaded.save_pretrained(tmp_path)


@pytest.mark.parametrize("own", [None, 5, [5, 9], [True, "x", -1, 10**9, 5]])
def test_the_base_keeps_its_stop_tokens_and_gets_those_of_training(own, tokenizer):
    found = answer_tokens(tokenizer, "causal-lm", GenerationConfig(eos_token_id=own))
    expected = {tokenizer.eos_token_id, *answer_tokens(tokenizer, "causal-lm", None).stops}
    valid = {token for token in (own if isinstance(own, list) else [own]) if token in (5, 9)}
    assert set(found.stops) == expected | valid
