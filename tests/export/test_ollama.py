"""The template in a Modelfile writes what the tokenizer's own writes, and nothing that is put into a Modelfile can say more than its line."""

import re
from types import SimpleNamespace

import pytest

from peft_space.data.tokenization.chat_template import TEMPLATES
from peft_space.data.tokenization.render import render_prompt
from peft_space.errors import UserError
from peft_space.export.go_template import go_template
from peft_space.export.ollama import modelfile
from peft_space.models.resolve import find_base, load_tokenizer
from tests.fixtures.go_template import render
from tests.fixtures.tokenizers import FAMILIES, tokenizer_of

TURNS = [
    "What is your name?",
    "Mira {{ .System }} \"quoted\" '''",
    'And 2 < 3?\n\nReally \\n """ é 猫',
    "Yes.",
    "Thank you",
]
TOKENIZERS = [*FAMILIES, *(f"demo, {name}" for name in ["own", *TEMPLATES])]


def tokenizer_for(name):
    kind, _, template = name.partition(", ")
    return load_tokenizer(find_base("demo"), template) if template else tokenizer_of(kind)


def conversations(system):
    """Of one, two and three questions, without and with a system message."""
    for length in (1, 3, 5):
        turns = [
            {"role": "assistant" if number % 2 else "user", "content": turn}
            for number, turn in enumerate(TURNS[:length])
        ]
        yield turns
        if system:
            yield [{"role": "system", "content": 'Be "short".\n{{ .Prompt }}'}, *turns]


def takes_system(name):
    return name not in FAMILIES or FAMILIES[name].system


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_go_template_writes_what_the_tokenizer_writes(name):
    tokenizer = tokenizer_for(name)
    template = go_template(tokenizer)
    for messages in conversations(takes_system(name)):
        ours = render_prompt(tokenizer, messages)
        bos = (
            tokenizer.bos_token
            if tokenizer.bos_token and ours.startswith(tokenizer.bos_token)
            else ""
        )
        assert bos + render(template, messages) == ours


def test_a_template_that_looks_at_more_than_a_messages_place_is_refused():
    tokenizer = load_tokenizer(find_base("demo"))
    tokenizer.chat_template = (
        "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content if loop.last else m.content | upper }}<|end|>{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    )
    with pytest.raises(UserError, match="cannot be written for Ollama"):
        go_template(tokenizer)


def test_a_template_of_the_last_question_alone_is_refused():
    tokenizer = load_tokenizer(find_base("demo"))
    tokenizer.chat_template = "<|user|>{{ messages[-1].content }}<|end|><|assistant|>"
    with pytest.raises(UserError, match="cannot be written for Ollama"):
        go_template(tokenizer)


def test_a_modelfile_is_written_whole():
    generation = SimpleNamespace(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, min_p=None, repetition_penalty=1.05
    )
    text = modelfile(
        tokenizer_of("Qwen 2.5"), generation, "base-f16.gguf", "adapter-f16.gguf", "Answer briefly."
    )
    lines = re.sub(r'TEMPLATE """.*?"""', "TEMPLATE …", text, flags=re.DOTALL).splitlines()
    assert lines == [
        "FROM ./base-f16.gguf",
        "ADAPTER ./adapter-f16.gguf",
        "TEMPLATE …",
        'SYSTEM """Answer briefly."""',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.8",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1.05",
    ]


def test_a_model_that_draws_nothing_draws_nothing_in_ollama():
    assert "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n" in modelfile(
        tokenizer_of("ChatML"), None, "model.gguf"
    )


@pytest.mark.parametrize(
    "file", ["a.gguf\nADAPTER /etc/passwd", "../a.gguf", 'a".gguf', "", "-a.gguf"]
)
def test_no_file_elsewhere_and_no_other_line_comes_with_a_files_name(file):
    with pytest.raises(UserError, match="cannot name the file"):
        modelfile(tokenizer_of("ChatML"), None, file)


def test_a_system_message_cannot_end_early():
    with pytest.raises(UserError, match="three quotation marks"):
        modelfile(
            tokenizer_of("ChatML"),
            None,
            "model.gguf",
            system='"""\nADAPTER /etc/passwd\nSYSTEM """',
        )


def test_a_system_message_for_a_template_without_one_is_refused():
    with pytest.raises(UserError, match="takes no system message"):
        modelfile(tokenizer_of("Gemma 2"), None, "model.gguf", system="Be brief.")


def test_quotation_marks_of_a_template_do_not_end_it():
    tokenizer = load_tokenizer(find_base("demo"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "'<|' +", '\'"""\\nPARAMETER temperature 2\\n<|\' +'
    )
    text = modelfile(tokenizer, None, "model.gguf")
    assert text.count('"""') == 2
    assert render(text.split('"""')[1], [{"role": "user", "content": "Hi"}]) == render_prompt(
        tokenizer, [{"role": "user", "content": "Hi"}]
    )


def test_what_is_otherwise_is_noted():
    assert "takes no system message" in modelfile(tokenizer_of("Gemma 2"), None, "model.gguf")
    assert "strips white space" in modelfile(tokenizer_of("Llama 3"), None, "model.gguf")
