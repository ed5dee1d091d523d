"""Well-known ways to write a conversation, for base models that come without a chat template.

The one that is chosen is saved with the adapter, so that serving writes what was trained.
"""

PLAIN = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ 'Answer:\\n' }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- elif message.role == 'user' %}{{ 'Question:\\n' + message.content + '\\n\\n' }}
{%- else %}{{ message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}"""
# a line break before the answer, not a space: a space would melt into the answer's first token

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ALPACA = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '### Response:\\n' }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\\n\\n' }}
{%- elif message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else %}{{ message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""

VICUNA = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ 'ASSISTANT:\\n' }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- elif message.role == 'user' %}{{ 'USER: ' + message.content + '\\n' }}
{%- else %}{{ message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:\\n' }}{% endif %}"""

TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "alpaca": ALPACA, "vicuna": VICUNA}
"""Name in a recipe -> template."""
