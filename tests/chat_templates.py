"""Chat templates as other people's folders have them, written for these tests from what such templates do."""

ALTERNATING = (
    "{%- for message in messages -%}{%- if loop.index0 % 2 != (0 if message.role == 'user' else 1) -%}"
    "{{ raise_exception('user and assistant have to take turns') }}{%- endif -%}{%- endfor -%}"
)

GOOGLE = {
    # Has no place for a system message.
    "gemma 2": (
        "{{ bos_token }}{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
        + ALTERNATING
        + """
{% for message in messages %}
{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) }}
{{ (message['content'] | trim) ~ '<end_of_turn>' }}
{% endfor %}
{%- if add_generation_prompt %}
<start_of_turn>model
{% endif %}"""
    ),
    # The system's text opens the first user's; content is a text or a list of parts.
    "gemma 3": """{{ bos_token }}
{%- set first = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set first = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
"""
    + ALTERNATING
    + """
{%- for message in messages -%}
  {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' -}}
  {{- first if loop.first -}}
  {%- if message.content is string -%}{{- message.content | trim -}}
  {%- else -%}{%- for part in message.content -%}{{- part.text | trim if part.type == 'text' -}}{%- endfor -%}
  {%- endif -%}
  {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt -}}
""",
}

OTHER = {
    "labels within a line": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ {'user': 'USER: ', 'assistant': ' ASSISTANT: ', 'system': ''}[m['role']] + m['content'] }}"
        "{{ '<eos>' if m.role == 'assistant' else '\n' if m.role == 'system' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    ),
    "blocks with other ends, without bos": (
        "{%- for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<unused1>\n{% endfor -%}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
    ),
    "date and a system text of its own": (
        "{{ bos_token }}{% if messages[0].role != 'system' %}<start_of_turn>system\nToday is "
        "{{ strftime_now('%d %B %Y') }}. Be kind.<end_of_turn>\n{% endif %}{% for m in messages %}<start_of_turn>"
        "{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% generation %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}{% endgeneration %}"
    ),
    "no place for a system": (
        "{{ bos_token }}{% if tools is not none or documents %}You have tools.{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "<start_of_turn>{{ m.role }}\n{{ m.content.strip() }}<end_of_turn>{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
    ),
}
