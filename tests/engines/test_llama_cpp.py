"""Real llama.cpp reads our GGUF files: the same tokens, the same chat template, the same logits, the same greedy answers."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_space.data.tokenization.render import render_prompt, stop_token_ids
from peft_space.export.gguf.export_gguf import Gguf, export_gguf
from peft_space.export.gguf.tokenizer import PRE_TOKENIZERS
from peft_space.export.gguf.writer import NUMBERS, write_gguf, write_gguf_adapter
from tests.engines.engines import ask_llama_cpp
from tests.engines.trained import NUM_TOKENS, agreement, answers_of, folder, run_of
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
    found = ask_llama_cpp(
        tmp_path / "f32.gguf", ids[:1], stops, texts, num_tokens=1, logits=True, context=256
    )
    assert found["tokens"] == ids
    assert all(found["ends"])
    assert found["metadata"]["tokenizer.chat_template"] == tokenizer.get_chat_template()
    apart = ask_llama_cpp(
        tmp_path / "f32.gguf",
        ids[:1],
        stops,
        adapter=tmp_path / "adapter.gguf",
        num_tokens=1,
        logits=True,
        context=256,
    )
    off = [
        np.abs(np.array(asked["logits"][0]) - logits).max()
        for asked, logits in ((found, expected), (apart, tuned))
    ]
    # llama.cpp looks gelu up in a table of 16 bits
    bound = (
        1e-2
        if "gelu"
        in str(getattr(plain.config, "hidden_activation", None) or plain.config.hidden_act)
        else 1e-4
    )
    assert max(off) < bound * np.abs(expected).max()
    for numbers, bound in (
        ("f16", 0.01),
        ("q8_0", 0.2),
    ):  # random weights are not as forgiving as learnt ones
        write_gguf(tmp_path, tmp_path / f"{numbers}.gguf", numbers)
        coarse = ask_llama_cpp(
            tmp_path / f"{numbers}.gguf", ids[:1], stops, num_tokens=1, logits=True, context=256
        )
        off.append(np.abs(np.array(coarse["logits"][0]) - expected).max())
        assert (
            np.sqrt(np.mean((np.array(coarse["logits"][0]) - expected) ** 2))
            < bound * expected.std()
        )
    title = f"llama.cpp (llama-cpp-python {found['version']}), small random models"
    figures = "f32 {:.0e}, with adapter {:.0e}, f16 {:.0e}, q8_0 {:.0e}".format(*off)
    record(
        title,
        name,
        f"tokens, template and end tokens equal; largest difference of a logit (of {np.abs(expected).max():.1f}): {figures}",
    )


PARTED = [
    (words, whole, name) for words, names in PRE_TOKENIZERS.items() for whole, name in names.items()
]
TEXTS = [
    *CORPUS[:4], "It's 12345 o'clock, I'LL say 3.14159 / 2!!  \n\n\n  Don't\t\tgo…", "Élan Österreich ТЕКСТ текст 日本語 한국어 ١٢٣ ½ 🙂👍🏽",
    "HTTPServer camelCase XMLhttp a1b2c3 foo_bar/baz//qux\r\n  trailing  ", "x" * 40 + " " * 20 + "y\n" * 5,
]  # fmt: skip


@pytest.mark.parametrize(("words", "whole", "name"), PARTED, ids=[name for *_, name in PARTED])
def test_words_are_parted_as_the_tokenizer_parts_them(words, whole, name, tmp_path, record):
    tokenizer = splitting(words, whole)
    model(tmp_path, "Phi 2", tokenizer)
    write_gguf(tmp_path, tmp_path / "m.gguf", "q8_0")
    found = ask_llama_cpp(tmp_path / "m.gguf", texts=TEXTS)
    assert found["metadata"]["tokenizer.ggml.pre"] == name
    assert found["tokens"] == [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS
    ]
    record(
        f"llama.cpp (llama-cpp-python {found['version']}), how words are parted",
        name,
        f"{len(TEXTS)} texts of many scripts: the same tokens",
    )


def _with_random_adapter(plain, saved):
    torch.manual_seed(1)
    adapted = get_peft_model(
        plain,
        LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True
        ),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(saved)
    return adapted.eval()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_demo_answers_in_llama_cpp_as_its_adapter_does(quantization, record):
    run, expected = run_of(quantization), answers_of(quantization)
    own = answers_of(quantization, "own")
    ways = [(numbers, False, "full") for numbers in NUMBERS] + [
        (numbers, True, "full") for numbers in NUMBERS
    ]
    ways += (
        [("f32", False, "dequantized"), ("q8_0", False, "dequantized")]
        if quantization == "nf4"
        else []
    )
    for numbers, apart, into in ways:
        with folder() as out:
            wanted = Gguf(numbers, apart)
            proof = export_gguf(run, out, wanted, into)
            files = [out / name for name in wanted.files]
            found = ask_llama_cpp(
                files[0],
                expected.prompts,
                expected.stops,
                adapter=files[1] if apart else None,
                num_tokens=NUM_TOKENS,
                exact=numbers == "f32",
            )
        same, alike = agreement(expected.answers, found["answers"])
        assert proof.passed or (into == "full" and quantization == "nf4"), proof.words()
        own_same, own_alike = agreement(own.answers, found["answers"])
        of = len(expected.answers)
        if numbers == "f32" and into == "full":
            assert found["answers"] == expected.answers
        if numbers == "f32" and into == "dequantized":
            assert own_alike > 0.99
        assert max(alike, own_alike) > 0.9
        what = (
            f"trained on {'the base in NF4' if quantization == 'nf4' else 'the base as it is'}, "
            + (
                f"base and adapter apart, {numbers}"
                if apart
                else f"merged{' into the dequantized base' if into == 'dequantized' else ''}, {numbers}"
            )
        )
        result = (
            f"{same} of {of} answers as by the adapter on the float32 base ({alike:.1%} of tokens)"
        )
        if quantization == "nf4":
            result += f"; {own_same} of {of} as on the NF4 base ({own_alike:.1%})"
        record(
            f"llama.cpp (llama-cpp-python {found['version']}), the demo's held-out prompts, greedy",
            what,
            result,
        )


def test_the_chat_template_of_the_demo_is_in_the_file_byte_for_byte(tmp_path):
    run = run_of("none")
    export_gguf(run, tmp_path, Gguf("q8_0"))
    found = ask_llama_cpp(tmp_path / "model-q8_0.gguf", texts=["Hi"])
    assert (
        found["metadata"]["tokenizer.chat_template"].encode()
        == (run.adapter / "chat_template.jinja").read_bytes()
    )


def test_without_the_adapter_the_base_answers_otherwise(tmp_path):
    run, expected = run_of("none"), answers_of("none")
    export_gguf(run, tmp_path, Gguf("f32", apart=True))
    alone = ask_llama_cpp(
        tmp_path / "base-f32.gguf", expected.prompts[:4], expected.stops, num_tokens=NUM_TOKENS
    )
    assert alone["answers"] != expected.answers[:4]
