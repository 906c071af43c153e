"""The marks that templates and makers of data put around turns: where a turn begins, and what ends it.

Two kinds are told apart. Control tokens (``<|im_start|>``, ``[INST]``) are in no prose. Words (``Human:``, ``Q:``,
``### Response:``) may be: they count where a text begins with them, or where questions and answers alternate.
"""

from __future__ import annotations

import re

from poise.data.turn_parsing import ROLES

__all__ = [
    "BEGIN_MARKS",
    "CONTROL_STYLES",
    "CONTROL_TOKEN",
    "HASH_MARK",
    "TURN_TOKEN",
    "WORD_STYLES",
    "may_have_tokens",
    "role_of_mark",
    "strip_begin_marks",
    "strip_end_marks",
]

_ABROAD = {  # the names of Alpaca's headings in the languages that it was translated into
    "user": (
        "指示", "質問", "問題", "問", "指令", "질문", "지시", "지시사항", "명령", "명령어", "инструкция", "вопрос",
        "instrucción", "pregunta", "consigne", "anweisung", "frage", "instrução", "pergunta", "istruzione", "domanda",
    ),
    "assistant": (
        "応答", "出力", "返答", "回复", "回應", "响应", "输出", "輸出", "答案", "답변", "응답", "출력", "ответ",
        "respuesta", "réponse", "antwort", "resposta", "risposta",
    ),
    "context": ("入力", "文脈", "输入", "輸入", "입력", "ввод", "контекст", "entrada", "entrée", "eingabe"),
}  # fmt: skip
_ABROAD_NAMES = "|".join(sorted((name for names in _ABROAD.values() for name in names), key=len, reverse=True))

_ROLES = {
    **ROLES,
    **dict.fromkeys(("prompt", "question", "instruction", "instruct", "q", "user message"), "user"),
    **dict.fromkeys(("answer", "response", "completion", "output", "a", "chatbot"), "assistant"),
    **dict.fromkeys(("system prompt", "system message"), "system"),
    **dict.fromkeys(("问", "问题", "用户", *_ABROAD["user"]), "user"),
    **dict.fromkeys(("答", "回答", "助手", *_ABROAD["assistant"]), "assistant"),
    **dict.fromkeys(("input", "context", *_ABROAD["context"]), "context"),
}
_NAMES = r"human|user|prompter|assistant|system|bot|gpt|chatgpt|ai"
_END_MARK = re.compile(
    r"""(?:
    <\|im_end\|> | <\|eot_id\|> | <\|eom_id\|> | <\|eot\|> | <\|EOT\|> | <\|end_of_text\|> | <end_of_turn> | <eos>
    | </s> | </s>\s?<s> | <turn\|> | <\|endoftext\|> | <\|end\|> | <\|END_OF_TURN_TOKEN\|> | <\|end_of_turn\|>
    | <\|\w+_end\|> | <\|eos\|> | <[|｜]end▁of▁sentence[|｜]> | <\|return\|> | <\|eom\|> | <\|bom\|> | \[\|endofturn\|\]
    | <seed:eos> | </\|\w+\|> | <\|/\w+\|> | \[e~\[ | <\|separator\|> | <SPECIAL_12> | <\|end_of_sentence\|>
    )\Z""",
    re.X,
)
_END_LENGTH = 40  # no mark at the end is longer

_TOKEN_SIGNS = (
    "<|", "|>", "<｜", "[INST", "INST]", "<<SYS", "<<sys", "_of_turn>", "extra_id_", "SPECIAL_", "seed:bos", "]~b]",
    "[|", "|]", "GPT4 ", "<role>", "SYSTEM_PROMPT]", "<reserved_", "<_", "<C_", "<s>", "[TOOL_", "[AVAILABLE_TOOLS]",
)  # fmt: skip
_TOKEN_SIGN = re.compile("|".join(map(re.escape, _TOKEN_SIGNS)))
BEGIN_MARKS = re.compile(
    r"""\A\s*(?:(?:
    <s> | <bos> | <\|begin_of_text\|> | <\|startoftext\|> | <\|endoftext\|> | <BOS_TOKEN> | <\|bom\|>
    | <[|｜]begin▁of▁sentence[|｜]> | \[gMASK\] | <sop> | \]~!b\[ | <extra_id_0>(?=\s*<) | <SPECIAL_10>(?=\s*<)
    )\s*)+""",
    re.X,
)
"""Marks at the beginning of a text that say nothing."""

TURN_TOKEN = re.compile(
    r"<\|im_start\|>|<\|start\|>|<\|start_header_id\|>|<\|header_start\|>|</?start_of_turn>|<\|turn>"
    r"|<\|(?:user|assistant|system|prompter|human|bot|chatbot|model|observation|answer)\|>"
    r"|<[|｜](?:hy_)?(?:User|Assistant|System)[|｜]>|<\|START_OF_TURN_TOKEN\|>|<\|\w+_TOKEN\|>|<\|start_of_role\|>"
    r"|<\|im_(?:user|assistant|system)\|>|<extra_id_1>(?:User|Assistant|System)|<SPECIAL_11>|<seed:bos>|\]~b\]"
    r"|\[\|(?:system|user|assistant|human|ai)\|\]|<\|(?:user|assistant|system|developer)_start\|>"
    r"|\[/INST\]|\[INST\]|<<SYS>>|\[/?SYSTEM_PROMPT\]|\[TOOL_RESULTS\]|\[AVAILABLE_TOOLS\]"
    r"|<reserved_\d+>|<_(?:user|bot)>|<C_[QA]>|<s>(?:Human|User|Assistant|Bot)\b"
    r"|GPT4 (?:Correct )?(?:User|Assistant):|<role>\s*(?:HUMAN|ASSISTANT|SYSTEM)\s*</role>",
    re.I,
)
"""A control token that begins a turn."""

CONTROL_TOKEN = re.compile(
    r"<[|｜][A-Za-z_▁][^\s<>|｜]{0,40}[|｜]>|</\|\w{1,40}\|>|<\|/\w{1,40}\|>|<end_of_turn>|<turn\|>|\[TOOL_CALLS\]|<extra_id_\d+>"
)
"""Any control token: a text that is one turn has none."""

CONTROL_STYLES: tuple[re.Pattern[str], ...] = (
    re.compile(r"<\|im_start\|>\s*(\w+)(?![ \t]*name=)[ \t]*(?:<\|im_sep\|>|\r?\n)?"),  # ChatML, Phi 4
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"),  # Llama 3
    re.compile(r"<\|header_start\|>\s*(\w+)\s*<\|header_end\|>\s*"),  # Llama 4
    re.compile(r"(?:<start_of_turn>|<\|turn>)\s*(\w+)[ \t]*\n?"),  # Gemma
    re.compile(r"<\|(user|assistant|system|prompter|human|bot|model|observation|tool|prompt|answer)\|>\s*", re.I),
    re.compile(r"<[|｜](?:hy_)?(User|Assistant|System)[|｜]>\s*"),  # DeepSeek, Hunyuan
    re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(USER|CHATBOT|SYSTEM)_TOKEN\|>\s*"),  # Cohere
    re.compile(r"<\|start_of_role\|>\s*(\w+)\s*<\|end_of_role\|>\s*"),  # Granite
    re.compile(r"<\|im_(user|assistant|system)\|>[^<]*<\|im_middle\|>\s*"),  # Kimi
    re.compile(r"(?:<extra_id_[01]>|<SPECIAL_1[01]>)\s*(User|Assistant|System)[ \t]*\n?"),  # Nemotron
    re.compile(r"(?:GPT4|Code|Math) (?:Correct )?(User|Assistant):[ \t]*"),  # OpenChat
    re.compile(r"<role>\s*(\w+)\s*</role>\s*"),  # Ling
    re.compile(r"<seed:bos>\s*(\w+)[ \t]*\n?"),  # Seed
    re.compile(r"\[\|(system|user|assistant|human|ai)\|\]\s*", re.I),  # EXAONE, Baize
    re.compile(r"<\|(user|assistant|system|developer)_start\|>\s*"),  # Apertus
    re.compile(r"\]~b\](\w+)[ \t]*\n?"),  # MiniMax
)
WORD_STYLES: tuple[tuple[re.Pattern[str], bool], ...] = (
    # (where a turn begins, whether words may stand before the first)
    (re.compile(rf"^[ \t]*(?:\*\*)?({_NAMES})(?:\*\*)?[ \t]*:(?:\*\*)?[ \t]*", re.I | re.M), True),
    (re.compile(rf"^[ \t]*<({_NAMES})>[ \t]*:[ \t]*", re.I | re.M), True),
    (re.compile(r"(?:^|(?<=\s)|(?<=</s>))(USER|ASSISTANT|SYSTEM)[ \t]*:[ \t]*", re.M), True),  # Vicuna
    (re.compile(r"^[ \t]*(?:\*\*)?(Q|A|Question|Answer)(?:\*\*)?[ \t]*:(?:\*\*)?[ \t]*", re.I | re.M), False),
    (
        re.compile(
            r"^[ \t]*(Instruction|Response|Prompt|Completion|问|答|问题|回答|用户|助手)[ \t]*[:：][ \t]*", re.I | re.M
        ),
        False,
    ),
    (re.compile(rf"^[ \t]*\[({_NAMES})\](?:[ \t]*:[ \t]*|[ \t]*(?=\n))", re.I | re.M), False),
    (re.compile(r"^(system|user|assistant|model)[ \t]*\n", re.M), False),  # ChatML and Gemma without their tokens
    (
        re.compile(
            r"^[ \t]*(Instruct|Instruction|Question|Prompt|Context|Input|Output|Response|Answer|Completion)"
            r"[ \t]*:[ \t]*",
            re.M,
        ),
        False,
    ),
)
HASH_MARK = re.compile(
    rf"(?:^|(?<=\S)(?=#{{2,3}}[ \t]*(?:{_NAMES})[ \t]*:))#{{2,3}}[ \t]*"
    rf"({_NAMES}|user message|system prompt|instruction|input|context|response|output|answer|question|prompt"
    rf"|completion|问题|回答|{_ABROAD_NAMES})"
    r"[ \t]*(?:[:：][ \t]*|(?=\n)|\Z)",
    re.I | re.M,
)
"""``### Instruction:`` and its kin."""


def role_of_mark(name: str) -> str | None:
    """Whose turn a mark begins; ``context`` for what belongs to the question before it."""
    return _ROLES.get(" ".join(name.lower().split()))


def strip_end_marks(text: str) -> str:
    """A turn's text without the marks, and the blanks around them, that a template puts behind it."""
    if text.rstrip()[-1:] not in (">", "]", "["):
        return text
    rest = text.rstrip()
    while mark := _END_MARK.search(rest, max(0, len(rest) - _END_LENGTH)):
        text = rest = rest[: mark.start()].rstrip()
    return text


def strip_begin_marks(text: str) -> str:
    """A text without the marks of its beginning; ``<s>`` may also strike out words, which ``</s>`` then ends inside."""
    mark = BEGIN_MARKS.match(text)
    if mark is None or ("<s>" in mark[0] and "</s>" in text.rstrip()[:-4]):
        return text
    return text[mark.end() :]


def may_have_tokens(text: str) -> bool:
    """Whether a text has a sign that every control token has; looked for before the tokens are, since few have one."""
    return _TOKEN_SIGN.search(text) is not None
