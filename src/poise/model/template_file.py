"""A checkpoint's tokenizer with its chat template, also where that lies with the processor of images or sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["tokenizer_with_template"]

TEMPLATE_FILES = ("chat_template.json", "processor_config.json")  # what processors of transformers keep theirs in


def tokenizer_with_template(source: str, **options: Any) -> Any:
    """The tokenizer of a folder or hub id; ``options`` as transformers takes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if not tokenizer.chat_template and "gguf_file" not in options:
        tokenizer.chat_template = _processor_template(source, **options)
    return tokenizer


def _processor_template(source: str, **options: Any) -> Any:
    """The chat template that a processor holds; ``None`` where there is none."""
    from transformers.utils.hub import cached_file

    for name in TEMPLATE_FILES:
        path = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **options,
        )
        values = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        if isinstance(values, dict) and (template := values.get("chat_template")):
            return template
    return None
