"""Chat templates for tests, in the ways that real ones differ."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIRATE = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "    {%- if loop.first and message.role != 'system' %}\n"
    "        {{- 'Captain: be brief.\\n' }}\n"
    "    {%- endif %}\n"
    "    {{- message.role | upper + ' :: ' + message.content | trim + eos_token }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ 'ASSISTANT :: ' }}{% endif %}"
)
WITH_TOOLS = (
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{%- set ns = namespace(count=0) %}"
    "{%- for message in messages %}{% if message.role == 'skip' %}{% continue %}{% endif %}"
    "{%- set ns.count = ns.count + 1 %}{{ ns.count }}. {{ message.content }}\n{% endfor %}"
)
FOR_TRAINING = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}<{{ message.role }}>{{ message.content }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ message.content }}|{% endfor %}"
)
GOOD = (CHATML, PIRATE, WITH_TOOLS, FOR_TRAINING, NO_SYSTEM)
