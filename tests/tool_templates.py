"""Chat templates with tools in the styles that models have, cut down to what is tested."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import AddedToken

import tiny

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
HERMES = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    '{% for c in m.tool_calls or [] %}{{ \'\n\' }}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}<|im_start|>assistant\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|im_end|>\n"
    "{% else %}<|im_start|>{{ 'ipython' if m.role == 'tool' else m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "[AVAILABLE_TOOLS]"
    "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]["
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('Tool call IDs should be 9 long') }}"
    '{% endif %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% elif m.role == \'tool\' %}'
    '[TOOL_RESULTS]{"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% elif m.role == 'system' %}{{ m.content }}\n\n{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
HEAD = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
)
FOOT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
RESULT = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
)
CALLS = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
TURN_END = "<|im_end|>\n{% endif %}{% endfor %}"
CODER = (  # Qwen3-Coder's: a tag for each parameter, lists and objects as JSON, all else as Python has it
    f"{HEAD}{RESULT}{CALLS}"
    "{{ '\n' if m.content or not loop.first }}<tool_call>\n<function={{ f.name }}>\n"
    "{% for key, value in f.arguments | items %}<parameter={{ key }}>\n"
    "{{ value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}\n"
    "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
    f"{TURN_END}{FOOT}"
)
GLM = (  # keys and values in tags, which are tokens of their own
    f"{HEAD}{RESULT}{CALLS}"
    "\n<tool_call>{{ f.name }}\n{% for key, value in f.arguments | items %}<arg_key>{{ key }}</arg_key>\n"
    "<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    f"{TURN_END}{FOOT}"
)
PYTHONIC = (  # a list of calls in Python
    f"{HEAD}{RESULT}"
    "{% if m.tool_calls %}[{% for c in m.tool_calls %}{% set f = c.function %}{{ f.name }}("
    "{% for key, value in f.arguments | items %}{{ key }}="
    "{{ 'True' if value is true else 'False' if value is false else 'None' if value is none else value | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last }}{% endfor %}]{% endif %}"
    f"{TURN_END}{FOOT}"
)
MARKED = PYTHONIC.replace("%}[{%", "%}<|python_tag|>[{%")
DEEPSEEK = (  # arguments are joined to other text, so that they have to be text
    f"{HEAD}{RESULT}"
    "{% if m.tool_calls %}<|calls|>{% for c in m.tool_calls %}{% set f = c.function %}"
    "{{ '<|call|>function<|sep|>' + f.name + '\n```json\n' + f.arguments + '\n```<|end|>' }}"
    "{{ '\n' if not loop.last }}{% endfor %}<|calls_end|>{% endif %}"
    f"{TURN_END}{FOOT}"
)
MAGISTRAL = MISTRAL.replace("[TOOL_CALLS][{% for", "{% for").replace(
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]",
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}",
)
WITH_IDS = MAGISTRAL.replace("[ARGS]", "[CALL_ID]{{ c.id }}[ARGS]")
HARMONY = (  # gpt-oss': whom a call is for stands in the header of the answer
    "{% for m in messages %}{% if tools and loop.first %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>"
    "{% endif %}{% if m.role == 'assistant' %}{% for c in m.tool_calls or [] %}<|start|>assistant to=functions."
    "{{ c.function.name }}<|channel|>commentary json<|message|>{{ c.function.arguments | tojson }}<|call|>{% endfor %}"
    "{% if m.content %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
NEW_STYLES = {
    "coder": CODER,
    "glm": GLM,
    "pythonic": PYTHONIC,
    "marked": MARKED,
    "deepseek": DEEPSEEK,
    "magistral": MAGISTRAL,
    "ids": WITH_IDS,
}
STYLES = {"hermes": HERMES, "qwen": HERMES, "llama": LLAMA, "mistral": MISTRAL}
MARKS = [
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
]


OWN_TOKENS = {
    "glm": ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    "marked": ["<|python_tag|>"],
    "deepseek": ["<|calls|>", "<|call|>", "<|sep|>", "<|end|>", "<|calls_end|>"],
    "magistral": ["[ARGS]"],
    "ids": ["[ARGS]", "[CALL_ID]"],
    "harmony": ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"],
}


def tokenizer(style: str) -> Any:
    """A tiny tokenizer with a template of that style; marks are tokens of their own as they are there."""
    made = copy.deepcopy(tiny.chatml())
    made.chat_template = (STYLES | NEW_STYLES | {"harmony": HARMONY})[style]
    if style == "qwen":  # not special, and yet llguidance takes them for such
        made.add_tokens(["<tool_call>", "</tool_call>"])
    if tokens := OWN_TOKENS.get(style):
        made.add_tokens([AddedToken(token, special=style != "glm", normalized=False) for token in tokens])
    if style in ("mistral", "magistral", "ids"):
        made.add_special_tokens({"additional_special_tokens": [*MARKS, "[/TOOL_RESULTS]"]})
        made.eos_token = "</s>"
    return made


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "tell_time",
        "parameters": {
            "type": "object",
            "properties": {"utc": {"type": "boolean"}},
            "required": ["utc"],
            "additionalProperties": False,
        },
    },
}
