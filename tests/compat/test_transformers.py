"""The internals of transformers and tokenizers that the app uses exist and behave as assumed."""

from peft_space.compat.transformers import render_chat_template, special_tokens_as_text

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}{{ tools | length if tools else '' }}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_a_chat_template_is_rendered_without_a_tokenizer():
    variables = {"eos_token": "</s>"}
    text, spans = render_chat_template(TEMPLATE, MESSAGES, None, False, True, variables)
    assert (text, [text[start:end] for start, end in spans]) == ("Hi Hello</s>", ["Hello</s>"])
    tool = {"type": "function", "function": {"name": "f"}}
    prompt, spans = render_chat_template(TEMPLATE, MESSAGES[:1], [tool], True, False, variables)
    assert (prompt, spans) == ("Hi Answer:1", [])


def test_special_tokens_are_plain_text_only_inside_the_context(tokenizer):
    backend = tokenizer.backend_tokenizer
    special = tokenizer.eos_token
    assert tokenizer.eos_token_id in backend.encode(special, add_special_tokens=False).ids
    with special_tokens_as_text(tokenizer):
        assert tokenizer.eos_token_id not in backend.encode(special, add_special_tokens=False).ids
    assert tokenizer.eos_token_id in backend.encode(special, add_special_tokens=False).ids
