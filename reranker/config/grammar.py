"""Values in the grammar of Hydra's command line."""

from __future__ import annotations

import re


def quoted(text: str) -> str:
    """`text` as a value, in whose quotes a backslash is itself, but before a quote."""
    if "/" in text and re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return text  # a path, which is no number and no null
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', '\\"'), text)
    return f'"{escaped}"'
