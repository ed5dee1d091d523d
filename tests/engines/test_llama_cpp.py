"""In real llama.cpp, GGUF files give the same tokens, chat template, logits and answers."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_space.data.tokenization.render import render_prompt, stop_token_ids
from peft_space.export.export import Gguf, export_gguf
from peft_space.export.gguf import NUMBERS
from peft_space.export.gguf.tokenizer import PRE_TOKENIZERS
from peft_space.export.gguf.writer import write_gguf, write_gguf_adapter
from peft_space.export.merge import merge, merge_into
from tests.engines.engines import ask_llama_cpp
from tests.engines.trained import (
    FAMILIES,
    NUM_TOKENS,
    agreement,
    answers_of,
    answers_of_family,
    folder,
    run_of,
    run_of_family,
)
from tests.fixtures.gguf_models import MODELS, model, splitting
from tests.fixtures.tokenizers import CORPUS

pytestmark = pytest.mark.slow

CONVERSATION = [
    {"role": "user", "content": "Hi. The red lamp is broken.\nWhat is your name? 123 “x” 猫"},
    {"role": "assistant", "content": "I am sorry to hear that."},
    {"role": "user", "content": "Thank you, Mira.  def add(a, b):"},
]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_each_family_is_read_as_it_was_written(name, tmp_path, record):
    model(tmp_path, name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    texts = [render_prompt(tokenizer, CONVERSATION), *CORPUS[:4]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    adapted = _with_random_adapter(plain, tmp_path / "adapter")
    with torch.inference_mode(), adapted.disable_adapter():
        expected = adapted(torch.tensor(ids[:1])).logits[0, -1].numpy()
    with torch.inference_mode():
        tuned = adapted(torch.tensor(ids[:1])).logits[0, -1].numpy()
    assert np.abs(tuned - expected).max() > 0.1, "the adapter changes something"
    write_gguf(tmp_path, tmp_path / "f32.gguf", "f32")
    write_gguf_adapter(tmp_path / "adapter", plain.config, tmp_path / "adapter.gguf", "f32")
    stops = stop_token_ids(tokenizer)
    options = {"num_tokens": 1, "logits": True, "context": 256}
    result = ask_llama_cpp(tmp_path / "f32.gguf", ids[:1], stops, texts=texts, **options)
    assert result["tokens"] == ids
    assert all(result["ends"])
    assert result["metadata"]["tokenizer.chat_template"] == tokenizer.get_chat_template()
    separate = ask_llama_cpp(
        tmp_path / "f32.gguf", ids[:1], stops, adapter=tmp_path / "adapter.gguf", **options
    )
    pairs = ((result, expected), (separate, tuned))
    off = [np.abs(np.array(asked["logits"][0]) - logits).max() for asked, logits in pairs]
    activation = getattr(plain.config, "hidden_activation", None) or plain.config.hidden_act
    bound = 1e-2 if "gelu" in str(activation) else 1e-4  # llama.cpp has a 16-bit table of gelu
    assert max(off) < bound * np.abs(expected).max()
    for numbers, bound in (("f16", 0.01), ("q8_0", 0.2)):  # rounding affects random weights more
        file = write_gguf(tmp_path, tmp_path / f"{numbers}.gguf", numbers)
        coarse = ask_llama_cpp(file, ids[:1], stops, **options)
        differences = np.array(coarse["logits"][0]) - expected
        off.append(np.abs(differences).max())
        assert np.sqrt(np.mean(differences**2)) < bound * expected.std()
    title = f"llama.cpp (llama-cpp-python {result['version']}), small random models"
    figures = "f32 {:.0e}, with adapter {:.0e}, f16 {:.0e}, q8_0 {:.0e}".format(*off)
    record(
        title,
        name,
        "tokens, template and end tokens equal; largest difference of a logit "
        f"(of {np.abs(expected).max():.1f}): {figures}",
    )


PARTED = [
    (words, whole, name) for words, names in PRE_TOKENIZERS.items() for whole, name in names.items()
]
TEXTS = [
    *CORPUS[:4],
    "It's 12345 o'clock, I'LL say 3.14159 / 2!!  \n\n\n  Don't\t\tgo…",
    "Élan Österreich ТЕКСТ текст 日本語 한국어 ١٢٣ ½ 🙂👍🏽",
    "HTTPServer camelCase XMLhttp a1b2c3 foo_bar/baz//qux\r\n  trailing  ",
    "x" * 40 + " " * 20 + "y\n" * 5,
]


@pytest.mark.parametrize(("words", "whole", "name"), PARTED, ids=[name for *_, name in PARTED])
def test_words_are_split_as_the_tokenizer_splits_them(words, whole, name, tmp_path, record):
    tokenizer = splitting(words, whole)
    model(tmp_path, "Phi 2", tokenizer)
    write_gguf(tmp_path, tmp_path / "m.gguf", "q8_0")
    result = ask_llama_cpp(tmp_path / "m.gguf", texts=TEXTS)
    assert result["metadata"]["tokenizer.ggml.pre"] == name
    assert result["tokens"] == [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS
    ]
    record(
        f"llama.cpp (llama-cpp-python {result['version']}), pre-tokenizers",
        name,
        f"{len(TEXTS)} texts of many scripts: the same tokens",
    )


def _with_random_adapter(plain, saved):
    torch.manual_seed(1)
    targets = "all-linear"
    if hasattr(plain.config, "num_local_experts"):  # llama.cpp has no adapters of experts
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = {"target_modules": targets, "task_type": "CAUSAL_LM", "use_rslora": True}
    adapted = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(saved)
    return adapted.eval()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_demo_answers_in_llama_cpp_as_its_adapter_does(quantization, record):
    run, expected = run_of(quantization), answers_of(quantization)
    own = answers_of(quantization, "own")
    ways = [(numbers, apart, "full") for apart in (False, True) for numbers in NUMBERS]
    if quantization == "nf4":
        ways += [("f32", False, "dequantized"), ("q8_0", False, "dequantized")]
    for numbers, apart, into in ways:
        with folder() as out:
            options = Gguf(numbers, apart)
            proof = export_gguf(run, out, options, into)
            model_file, *adapter = [out / name for name in options.files]
            settings = {"num_tokens": NUM_TOKENS, "exact": numbers == "f32"}
            settings |= {"adapter": adapter[0]} if apart else {}
            result = ask_llama_cpp(model_file, expected.prompts, expected.stops, **settings)
        assert proof.passed or (into == "full" and quantization == "nf4"), proof.words()
        same, alike = agreement(expected.answers, result["answers"])
        own_same, own_alike = agreement(own.answers, result["answers"])
        if numbers == "f32" and into == "full":
            assert result["answers"] == expected.answers
        if numbers == "f32" and into == "dequantized":
            assert own_alike > 0.99
        assert max(alike, own_alike) > 0.9
        base = "NF4" if quantization == "nf4" else "unquantized"
        form = "separate adapter" if apart else f"merged into the {into} base"
        total = len(expected.answers)
        figures = f"{same} of {total} answers equal those in float32 ({alike:.1%} of tokens)"
        if quantization == "nf4":
            figures += f"; {own_same} of {total} equal those on the NF4 base ({own_alike:.1%})"
        title = f"llama.cpp (llama-cpp-python {result['version']}), held-out prompts of the demo"
        record(title, f"trained on the {base} base, {form}, {numbers}", figures)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_exports_of_a_family_answer_in_llama_cpp_as_in_transformers(name, record):
    run, expected = run_of_family(name), answers_of_family(name)
    for numbers in NUMBERS:
        with folder() as out:
            export_gguf(run, out, Gguf(numbers))
            texts = [
                render_prompt(expected.tokenizer, messages) for messages in expected.conversations
            ]
            result = ask_llama_cpp(
                out / f"model-{numbers}.gguf",
                expected.prompts,
                expected.stops,
                texts=texts,
                num_tokens=NUM_TOKENS,
                exact=numbers == "f32",
                context=256,
            )
        # the same tokens, BOS included, the same template and the same ends
        assert result["tokens"] == expected.prompts
        template = result["metadata"]["tokenizer.chat_template"]
        assert template == expected.tokenizer.get_chat_template()
        assert all(result["ends"])
        same, alike = agreement(expected.answers, result["answers"])
        if numbers == "f32":
            assert result["answers"] == expected.answers
        assert alike > (0.9 if numbers == "f16" else 0.5)
        record(
            f"llama.cpp (llama-cpp-python {result['version']}), a trained adapter of each family",
            f"{name}, merged, {numbers}",
            f"{same} of {len(expected.answers)} answers equal those in float32 "
            f"({alike:.1%} of tokens)",
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_model_of_a_family_answers_in_transformers_as_its_adapter(name, tmp_path):
    run, expected = run_of_family(name), answers_of_family(name)
    merge(run, tmp_path, "float32", merge_into(run, "full"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_chat_template() == expected.tokenizer.get_chat_template()
    ends = model.generation_config.eos_token_id
    assert set(ends if isinstance(ends, list) else [ends]) == set(expected.stops)
    for messages, prompt, answer in zip(
        expected.conversations, expected.prompts, expected.answers, strict=True
    ):
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        batch = tokenizer.apply_chat_template(messages, **options)
        assert batch["input_ids"][0].tolist() == prompt
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=NUM_TOKENS, do_sample=False)
        assert output[0, len(prompt) :].tolist() == answer


def test_the_chat_template_of_the_demo_is_in_the_file_byte_for_byte(tmp_path):
    run = run_of("none")
    export_gguf(run, tmp_path, Gguf("q8_0"))
    result = ask_llama_cpp(tmp_path / "model-q8_0.gguf", texts=["Hi"])
    assert (
        result["metadata"]["tokenizer.chat_template"].encode()
        == (run.adapter / "chat_template.jinja").read_bytes()
    )


def test_without_the_adapter_the_base_answers_differently(tmp_path):
    run, expected = run_of("none"), answers_of("none")
    export_gguf(run, tmp_path, Gguf("f32", apart=True))
    alone = ask_llama_cpp(
        tmp_path / "base-f32.gguf", expected.prompts[:4], expected.stops, num_tokens=NUM_TOKENS
    )
    assert alone["answers"] != expected.answers[:4]
