"""GGUF files contain the same model, adapter and tokenizer; unsupported models are rejected.

`tests/engines` shows that llama.cpp reads them so.
"""

import functools
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from peft_space import operations
from peft_space.data.dataset import load_run_data
from peft_space.data.tokenization.render import render
from peft_space.errors import UserError
from peft_space.evaluation.generate import tokenize_prompt
from peft_space.export.gguf.architectures import architecture_of
from peft_space.export.gguf.tokenizer import (
    PRE_TOKENIZERS,
    add_vocabulary,
    gguf_model_name,
    pre_tokenizer_of,
)
from peft_space.export.gguf.writer import read_back, write_gguf, write_gguf_adapter
from peft_space.models.loading import load_adapted
from peft_space.runs.run import Run
from tests.engines.engines import python_of
from tests.fixtures.gguf_models import MODELS, model, splitting
from tests.fixtures.tokenizers import tokenizer_of


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """Returns the folder of a model by its name. Do not change its files."""

    @functools.cache
    def folder_of(name):
        return model(tmp_path_factory.mktemp("model") / "m", name)

    return folder_of


def rejected(code, function, *arguments):
    """The message of the error that a call raises."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert error.value.code == code
    return str(error.value)


def fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sample(1)
def test_a_file_contains_the_whole_model_and_its_tokenizer(name, model_folder, tmp_path):
    folder = model_folder(name)
    file = write_gguf(folder, tmp_path / "f32.gguf", "f32", name)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in copy.glob("*.safetensors"):  # so that no weight can come from the copy
        zeros = {key: np.zeros_like(value) for key, value in load_file(path).items()}
        save_file(zeros, path, metadata={"format": "pt"})
    read_back(copy, file)
    for key, value in weights_of(folder).items():
        np.testing.assert_allclose(weights_of(copy)[key], value, atol=2e-7, err_msg=key)
    tokenizer, metadata = AutoTokenizer.from_pretrained(folder), fields(file)
    assert metadata["tokenizer.chat_template"].encode() == tokenizer.get_chat_template().encode()
    num_tokens = len(metadata["tokenizer.ggml.tokens"])
    assert num_tokens == AutoConfig.from_pretrained(folder).vocab_size
    assert metadata["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN)
    for token in tokenizer.added_tokens_decoder.values():
        number = tokenizer.convert_tokens_to_ids(token.content)
        assert metadata["tokenizer.ggml.token_type"][number] in kinds


def test_of_a_model_that_sees_pictures_the_part_that_writes_is_written(model_folder, tmp_path):
    text = model_folder("Gemma 3")
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=AutoConfig.from_pretrained(text), vision_config=tower, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    seeing = Gemma3ForConditionalGeneration(config)
    plain = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    seeing.model.language_model.load_state_dict(plain.model.state_dict())
    seeing.save_pretrained(folder := tmp_path / "seeing")
    AutoTokenizer.from_pretrained(text).save_pretrained(folder)
    alone = write_gguf(text, tmp_path / "text.gguf", "f32", "m")
    file = write_gguf(folder, tmp_path / "seeing.gguf", "f32", "m")
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(alone).tensors}
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in written)
    before = weights_of(folder)
    read_back(folder, file)
    for key, value in weights_of(folder).items():
        np.testing.assert_allclose(value, before[key], atol=2e-7, err_msg=key)


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3", "Phi 3"])
@pytest.mark.sample(1)
def test_a_separate_adapter_adds_the_same_as_in_peft(name, model_folder, tmp_path):
    folder = model_folder(name)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layer = "qkv_proj" if name == "Phi 3" else "k_proj"
    patterns = {"rank_pattern": {layer: 2}, "alpha_pattern": {layer: 5}}
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_rslora": True}
    adapted = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, **settings, **patterns))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    base = write_gguf(folder, tmp_path / "base.gguf", "f32")
    separate, config = tmp_path / "adapter.gguf", AutoConfig.from_pretrained(folder)
    write_gguf_adapter(tmp_path / "adapter", config, separate, "f32")
    copy = shutil.copytree(folder, tmp_path / "copy")
    read_back(copy, base, separate)
    for key, value in adapted.merge_and_unload().state_dict().items():
        if key in weights_of(copy):
            np.testing.assert_allclose(weights_of(copy)[key], value.numpy(), atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("numbers", "kind"), [("f16", "F16"), ("q8_0", "Q8_0")])
def test_norms_stay_in_32_bits_in_every_format(numbers, kind, model_folder, tmp_path):
    file = write_gguf(model_folder("Qwen 3"), tmp_path / "m.gguf", numbers)
    tensors = gguf.GGUFReader(file).tensors
    assert {tensor.tensor_type.name for tensor in tensors if "norm" in tensor.name} == {"F32"}
    assert {tensor.tensor_type.name for tensor in tensors if "norm" not in tensor.name} == {kind}


@pytest.fixture
def few_rows(monkeypatch):
    """Verification on six rows takes seconds, on sixty much longer."""
    monkeypatch.setattr("peft_space.export.verify.MAX_ROWS", 6)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("target", ["gguf", "ollama"])
@pytest.mark.slow
def test_a_run_is_exported_with_its_verification(target, short_run, tmp_path):
    options = {"target": target, "gguf_type": "q8_0", "separate_adapter": target == "ollama"}
    out = tmp_path / "out"
    result = operations.export(str(short_run.directory), str(out), options)
    files = {
        "gguf": {"model-q8_0.gguf"},
        "ollama": {"base-q8_0.gguf", "adapter-q8_0.gguf", "Modelfile"},
    }[target]
    names = {path.name for path in out.iterdir()}
    assert names == files | {"README.md", "loss.svg", "proof.json"}
    assert result["proof"]["passed"]
    assert "q8_0" in json.loads((out / "proof.json").read_text())["compared"]
    assert list(result["commands"]) == ["llama.cpp"] + ["Ollama"] * (target == "ollama")


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("name", ["Llama 3", "Llama 2", "Qwen 2.5"])
@pytest.mark.sample(1)
def test_a_file_of_plain_texts_begins_a_text_as_training_did(name, tmp_path, write):
    """llama.cpp puts BOS before a text if the file says so, and uses no chat template."""
    base = model(tmp_path / "base", name)
    (base / "chat_template.jinja").unlink()
    texts = ["The lamp is red.", "The kettle is not.", "I see a red lamp.", "A kettle sings."] * 5
    rows = write("rows.json", [{"text": f"{text} {row}"} for row, text in enumerate(texts)])
    recipe = {"base_model": str(base), "quantization": "none", "max_steps": 1}
    run = operations.make_run(str(tmp_path / "run"), str(rows), recipe)["run"]
    operations.train(run)
    adapted = load_adapted(Run(run))
    operations.export(run, str(tmp_path / "out"), {"target": "gguf", "gguf_type": "f16"})
    [file] = (tmp_path / "out").glob("*.gguf")
    written = fields(file)
    begins = written["tokenizer.ggml.add_bos_token"]
    assert begins == (adapted.tokenizer.bos_token is not None)
    first = [written["tokenizer.ggml.bos_token_id"]] if begins else []
    [ids] = adapted.tokenizer(["The lamp"], add_special_tokens=False)["input_ids"]
    assert tokenize_prompt(adapted, [{"role": "user", "content": "The lamp"}]) == first + ids
    [row] = render(adapted.tokenizer, load_run_data(Run(run)).train[:1], 64)
    assert row.input_ids[: len(first)] == first
    assert row.trained[0][0] == len(first), "the text itself is trained from its beginning"


@pytest.mark.usefixtures("few_rows")
@pytest.mark.slow
def test_verification_reads_the_numbers_in_the_file(short_run, tmp_path, monkeypatch):
    from peft_space.export.gguf import architectures, writer

    monkeypatch.setattr(architectures, "_interleave", lambda weight, num_heads: weight[::-1].copy())
    monkeypatch.setattr(writer, "tensor_undo", lambda name, config: None)
    arguments = (str(short_run.directory), str(tmp_path / "out"))
    with pytest.raises(UserError) as error:
        operations.export(*arguments, {"target": "gguf", "gguf_type": "f32"})
    assert error.value.code == "export.mismatch"
    assert not (tmp_path / "out").exists()


UNSUPPORTED = {
    "another family": ("gpt2", {}, "'gpt2'"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "gelu"),
    "another RoPE scaling": (
        "qwen2",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "dynamic",
    ),
    "normalized queries": ("phi", {"qk_layernorm": True}, "queries"),
    "another attention scale": ("gemma2", {"query_pre_attn_scalar": 100}, "100"),
    "other windows": ("gemma3_text", {"layer_types": ["full_attention"] * 26}, "6th layer"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_that_llama_cpp_computes_differently_is_rejected(case):
    kind, settings, value = UNSUPPORTED[case]
    config = AutoConfig.for_model(kind, **settings)
    assert value in rejected("export.gguf_model", architecture_of, config)


def test_the_context_ends_at_a_window_that_llama_cpp_does_not_know(tmp_path, model_folder):
    folder = shutil.copytree(model_folder("Mistral"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
    assert fields(write_gguf(folder, tmp_path / "m.gguf"))["llama.context_length"] == 64


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_an_adapter_that_llama_cpp_cannot_use_is_rejected(settings, value, model_folder, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(model_folder("Llama 3"), dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    get_peft_model(plain, config).save_pretrained(tmp_path / "adapter")
    arguments = (tmp_path / "adapter", plain.config, tmp_path / "a.gguf")
    assert value in rejected("export.gguf_adapter", write_gguf_adapter, *arguments)
    assert not (tmp_path / "a.gguf").exists()


def test_a_number_too_large_for_16_bits_leaves_no_file(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("Llama 2"), tmp_path / "m")
    weights = weights_of(folder)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rejected("export.weight_too_large", write_gguf, folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()


def test_an_existing_file_is_not_overwritten(model_folder, tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    rejected("export.file_exists", write_gguf, model_folder("Llama 2"), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


SPLITTERS = [
    (pattern, whole, name)
    for pattern, names in PRE_TOKENIZERS.items()
    for whole, name in names.items()
]


@pytest.mark.parametrize(
    ("pattern", "whole", "name"), SPLITTERS, ids=[name for *_, name in SPLITTERS]
)
def test_a_pre_tokenizer_has_llama_cpps_name(pattern, whole, name):
    assert pre_tokenizer_of(splitting(pattern, whole)) == name
    if not whole and True not in PRE_TOKENIZERS[pattern]:  # llama.cpp has no name for the other way
        rejected("export.gguf_tokenizer", pre_tokenizer_of, splitting(pattern, whole=True))


def test_the_demo_tokenizer_has_a_name(tokenizer):
    assert pre_tokenizer_of(tokenizer) == "smollm"


def test_a_tokenizer_that_splits_words_differently_is_rejected():
    backend = Tokenizer.from_str(tokenizer_of("ChatML").backend_tokenizer.to_str())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), bytes_only])
    other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    rejected("export.gguf_tokenizer", pre_tokenizer_of, other)


def test_a_tokenizer_that_merges_differently_is_rejected():
    """As trained by this library, Mistral's pieces do not always merge when llama.cpp would."""
    writer = gguf.GGUFWriter(None, "llama")
    rejected("export.gguf_tokenizer", add_vocabulary, writer, tokenizer_of("Mistral"), 1000)


def test_a_tokenizer_of_another_type_is_rejected():
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    writer = gguf.GGUFWriter(None, "llama")
    assert "WordLevel" in rejected("export.gguf_tokenizer", add_vocabulary, writer, other, 10)


def test_no_name_makes_llama_cpp_mistake_a_model_for_a_phi_3(tokenizer):
    assert gguf_model_name("My phi-3 tickets, PHI3", tokenizer) == "My Phi 3 tickets, Phi 3"


@pytest.mark.slow
@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("numbers", "kinds"), [("q4_k_m", {"Q4_K", "Q6_K"}), ("q5_k_m", {"Q5_K"})])
def test_llama_cpp_s_formats_are_written_and_their_cost_is_measured(
    numbers, kinds, apart, short_run, tmp_path
):
    python_of("llama_cpp")  # skips the test without it
    options = {"target": "gguf", "gguf_type": numbers, "separate_adapter": apart}
    result = operations.export(str(short_run.directory), str(tmp_path / "out"), options)
    name = f"{'base' if apart else 'model'}-{numbers}.gguf"
    tensors = gguf.GGUFReader(tmp_path / "out" / name).tensors
    assert kinds <= {tensor.tensor_type.name for tensor in tensors}
    proof = result["proof"]
    assert proof["passed"]
    assert proof["mean_kl"] > 0
    assert proof["export_loss"] == pytest.approx(proof["adapter_loss"], abs=0.2)
    assert proof["export_loss"] != proof["adapter_loss"]


def test_without_llama_cpp_its_formats_are_refused(short_run, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_LLAMA_CPP", str(tmp_path / "nothing"))
    monkeypatch.setattr("peft_space.export.quantize._ROOT", tmp_path)
    options = {"target": "gguf", "gguf_type": "q4_k_m"}
    out = tmp_path / "out"
    message = rejected(
        "export.llama_cpp_missing", operations.export, str(short_run.directory), str(out), options
    )
    assert "llama-cpp-python" in message
    assert not out.exists()
