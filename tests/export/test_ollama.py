"""The Go template writes what the chat template writes, and no text can add an instruction."""

import re
from types import SimpleNamespace

import pytest

from peft_space.data.tokenization.render import render_prompt
from peft_space.errors import UserError
from peft_space.export.ollama import go_template, modelfile, notes
from peft_space.models.resolve import find_base, load_tokenizer
from tests.fixtures.go_template import (
    TOKENIZERS,
    conversations,
    render,
    takes_system,
    tokenizer_for,
)
from tests.fixtures.tokenizers import tokenizer_of


def rejected(code, function, *arguments, **options):
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert error.value.code == code


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_go_template_writes_what_the_chat_template_writes(name):
    tokenizer = tokenizer_for(name)
    template = go_template(tokenizer)
    for messages in conversations(takes_system(name)):
        expected, bos = render_prompt(tokenizer, messages), tokenizer.bos_token or ""
        assert render(template, messages) == expected.removeprefix(bos)


def test_a_template_that_depends_on_more_than_a_messages_position_is_rejected():
    tokenizer = load_tokenizer(find_base("demo"))
    tokenizer.chat_template = (
        "{%- for m in messages -%}<|{{ m.role }}|>"
        "{{ m.content if loop.last else m.content | upper }}<|end|>{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    )
    rejected("export.untranslatable_template", go_template, tokenizer)


def test_a_template_that_writes_only_the_last_question_is_rejected():
    tokenizer = load_tokenizer(find_base("demo"))
    tokenizer.chat_template = "<|user|>{{ messages[-1].content }}<|end|><|assistant|>"
    rejected("export.untranslatable_template", go_template, tokenizer)


def test_a_modelfile_has_every_instruction():
    generation = SimpleNamespace(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, min_p=None, repetition_penalty=1.05
    )
    files = ("base-f16.gguf", "adapter-f16.gguf")
    text = modelfile(tokenizer_of("Qwen 2.5"), generation, *files, "Answer briefly.")
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


def test_a_model_without_sampling_does_not_sample_in_ollama():
    assert "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n" in modelfile(
        tokenizer_of("ChatML"), None, "model.gguf"
    )


@pytest.mark.parametrize(
    "file", ["a.gguf\nADAPTER /etc/passwd", "../a.gguf", 'a".gguf', "", "-a.gguf"]
)
def test_a_file_name_cannot_lead_elsewhere_or_add_an_instruction(file):
    rejected("export.modelfile_file_name", modelfile, tokenizer_of("ChatML"), None, file)


def test_a_system_message_cannot_end_early():
    code, system = "export.quotes_in_system_message", '"""\nADAPTER /etc/passwd\nSYSTEM """'
    rejected(code, modelfile, tokenizer_of("ChatML"), None, "model.gguf", system=system)


def test_a_system_message_for_a_template_without_one_is_rejected():
    arguments = (tokenizer_of("Gemma 2"), None, "model.gguf")
    rejected("export.no_system_message", modelfile, *arguments, system="Be brief.")


def test_quotation_marks_in_a_template_do_not_end_it():
    tokenizer = load_tokenizer(find_base("demo"))
    inserted = '"""\\nPARAMETER temperature 2\\n'
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|", f"'{inserted}<|").replace(
        f"{inserted}<|end", "<|end"
    )
    text = modelfile(tokenizer, None, "model.gguf")
    assert text.count('"""') == 2
    messages = [{"role": "user", "content": "Hi"}]
    assert render(text.split('"""')[1], messages) == render_prompt(tokenizer, messages)


def test_a_difference_from_the_chat_template_is_noted():
    assert "system message" in notes(tokenizer_of("Gemma 2"))[0]
    assert "white space" in notes(tokenizer_of("Llama 3"))[0]
