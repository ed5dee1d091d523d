"""GGUF files hold the model, the adapter and the tokenizer that they were written from, and what llama.cpp would compute otherwise is refused.

That llama.cpp reads them so is shown by `tests/engines`.
"""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from peft_space import operations
from peft_space.errors import UserError
from peft_space.export.gguf.architectures import architecture_of
from peft_space.export.gguf.reader import read_back
from peft_space.export.gguf.tokenizer import (
    PRE_TOKENIZERS,
    add_vocabulary,
    gguf_model_name,
    pre_tokenizer_of,
)
from peft_space.export.gguf.writer import write_gguf, write_gguf_adapter
from tests.fixtures.gguf_models import MODELS, model, parting
from tests.fixtures.tokenizers import tokenizer_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a model by its name; not to be changed."""
    folders = {}

    def of(name):
        if name not in folders:
            folders[name] = model(tmp_path_factory.mktemp("model") / "m", name)
        return folders[name]

    return of


def fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_in_the_file_whole_with_its_tokenizer(name, made, tmp_path):
    folder = made(name)
    file = write_gguf(folder, tmp_path / "f32.gguf", "f32", name)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in copy.glob("*.safetensors"):  # nothing can come from there
        save_file(
            {key: np.zeros_like(value) for key, value in load_file(path).items()},
            path,
            metadata={"format": "pt"},
        )
    read_back(copy, file)
    for key, value in weights_of(folder).items():
        np.testing.assert_allclose(weights_of(copy)[key], value, atol=2e-7, err_msg=key)
    tokenizer, config, written = (
        AutoTokenizer.from_pretrained(folder),
        AutoConfig.from_pretrained(folder),
        fields(file),
    )
    assert written["tokenizer.chat_template"].encode() == tokenizer.get_chat_template().encode()
    assert len(written["tokenizer.ggml.tokens"]) == config.vocab_size
    assert written["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    for token in tokenizer.added_tokens_decoder.values():
        at = tokenizer.convert_tokens_to_ids(token.content)
        assert written["tokenizer.ggml.token_type"][at] in (
            gguf.TokenType.CONTROL,
            gguf.TokenType.USER_DEFINED,
            gguf.TokenType.UNKNOWN,
        )


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3", "Phi 3"])
def test_an_adapter_alone_adds_what_it_adds_in_peft(name, made, tmp_path):
    folder = made(name)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    some = "qkv_proj" if name == "Phi 3" else "k_proj"
    settings = {"rank_pattern": {some: 2}, "alpha_pattern": {some: 5}, "use_rslora": True}
    adapted = get_peft_model(
        plain,
        LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings
        ),
    )
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    base = write_gguf(folder, tmp_path / "base.gguf", "f32")
    alone = write_gguf_adapter(
        tmp_path / "adapter", AutoConfig.from_pretrained(folder), tmp_path / "adapter.gguf", "f32"
    )
    copy = shutil.copytree(folder, tmp_path / "copy")
    read_back(copy, base, alone)
    for key, value in adapted.merge_and_unload().state_dict().items():
        if key in weights_of(copy):
            np.testing.assert_allclose(weights_of(copy)[key], value.numpy(), atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("numbers", "kind"), [("f16", "F16"), ("q8_0", "Q8_0")])
def test_norms_stay_in_32_bits_and_the_rest_is_written_as_asked(numbers, kind, made, tmp_path):
    tensors = gguf.GGUFReader(write_gguf(made("Qwen 3"), tmp_path / "m.gguf", numbers)).tensors
    assert {tensor.tensor_type.name for tensor in tensors if "norm" in tensor.name} == {"F32"}
    assert {tensor.tensor_type.name for tensor in tensors if "norm" not in tensor.name} == {kind}


@pytest.fixture
def few_rows(monkeypatch):
    """A proof on six rows takes seconds, on sixty a while."""
    monkeypatch.setattr("peft_space.export.verify._MOST_ROWS", 6)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("target", ["gguf", "ollama"])
def test_a_run_is_exported_with_its_proof(target, short_run, tmp_path):
    found = operations.export(
        str(short_run.directory),
        str(tmp_path / "out"),
        {"target": target, "gguf_type": "q8_0", "separate_adapter": target == "ollama"},
    )
    files = {
        "gguf": {"model-q8_0.gguf"},
        "ollama": {"base-q8_0.gguf", "adapter-q8_0.gguf", "Modelfile"},
    }[target]
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {
        "README.md",
        "loss.svg",
        "proof.json",
    }
    assert found["proof"]["passed"]
    assert (
        "written as GGUF in q8_0"
        in json.loads((tmp_path / "out" / "proof.json").read_text())["words"]
    )
    assert list(found["commands"]) == ["llama.cpp"] + ["Ollama"] * (target == "ollama")


@pytest.mark.usefixtures("few_rows")
def test_the_proof_is_of_the_numbers_in_the_file(short_run, tmp_path, monkeypatch):
    from peft_space.export.gguf import architectures

    monkeypatch.setattr(architectures, "_by_pairs", lambda weight, num_heads: weight[::-1].copy())
    monkeypatch.setattr(architectures, "undo_of", lambda name, config: None)
    monkeypatch.setattr("peft_space.export.gguf.reader.undo_of", lambda name, config: None)
    with pytest.raises(
        UserError, match="Not exported, because it does not answer as the adapter does"
    ):
        operations.export(
            str(short_run.directory),
            str(tmp_path / "out"),
            {"target": "gguf", "gguf_type": "f32"},
        )
    assert not (tmp_path / "out").exists()


REFUSED = {
    "another family": ("gpt2", {}, "'gpt2' cannot be written"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
    "another scaling": (
        "qwen2",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "scaled by dynamic",
    ),
    "normalised queries": ("phi", {"qk_layernorm": True}, "normalises queries"),
    "another scale": ("gemma2", {"query_pre_attn_scalar": 100}, "scaled by 100"),
    "other windows": (
        "gemma3_text",
        {"layer_types": ["full_attention"] * 26},
        "sees the whole text",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(what):
    kind, more, said = REFUSED[what]
    with pytest.raises(UserError, match=said):
        architecture_of(AutoConfig.for_model(kind, **more))


def test_a_window_that_llama_cpp_does_not_know_is_where_the_context_ends(tmp_path, made):
    folder = shutil.copytree(made("Mistral"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
    assert fields(write_gguf(folder, tmp_path / "m.gguf"))["llama.context_length"] == 64


@pytest.mark.parametrize(
    ("more", "said"),
    [({"use_dora": True}, "it is a DoRA"), ({"modules_to_save": ["lm_head"]}, "it has trained .*lm_head"), ({"bias": "all"}, "it has trained .*bias")],
)  # fmt: skip
def test_an_adapter_that_llama_cpp_cannot_use_alone_is_refused(more, said, made, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(made("Llama 3"), dtype=torch.float32)
    get_peft_model(
        plain, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **more)
    ).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=said):
        write_gguf_adapter(tmp_path / "adapter", plain.config, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_number_too_large_for_16_bits_is_refused_and_nothing_is_left(made, tmp_path):
    folder = shutil.copytree(made("Llama 2"), tmp_path / "m")
    weights = weights_of(folder)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="too large for 16 bits"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()


def test_no_file_is_written_over(made, tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        write_gguf(made("Llama 2"), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


PARTED = [
    (words, whole, name) for words, names in PRE_TOKENIZERS.items() for whole, name in names.items()
]


@pytest.mark.parametrize(("words", "whole", "name"), PARTED, ids=[name for *_, name in PARTED])
def test_how_words_are_parted_has_llama_cpps_name(words, whole, name):
    assert pre_tokenizer_of(parting(words, whole)) == name
    if (not whole) not in PRE_TOKENIZERS[words] and not whole:  # there is no name for the other way
        with pytest.raises(UserError, match="does not part words"):
            pre_tokenizer_of(parting(words, whole=True))


def test_the_demos_tokenizer_has_a_name(tokenizer):
    assert pre_tokenizer_of(tokenizer) == "smollm"


def test_a_tokenizer_that_parts_words_otherwise_is_refused():
    backend = Tokenizer.from_str(tokenizer_of("ChatML").backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match="does not part words"):
        pre_tokenizer_of(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>"))


def test_a_tokenizer_that_merges_otherwise_is_refused():
    """Mistral's pieces as this library trains them: two that make a third are not always merged, as llama.cpp would."""
    with pytest.raises(UserError, match="does not merge"):
        add_vocabulary(gguf.GGUFWriter(None, "llama"), tokenizer_of("Mistral"), 1000)


def test_a_tokenizer_of_another_kind_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    with pytest.raises(UserError, match="WordLevel"):
        add_vocabulary(
            gguf.GGUFWriter(None, "llama"),
            PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"),
            10,
        )


def test_no_name_makes_llama_cpp_take_a_model_for_a_phi_3(tokenizer):
    assert gguf_model_name("My phi-3 tickets, PHI3", tokenizer) == "My Phi 3 tickets, Phi 3"
