"""Keeps a number and its per cent sign on one line; a hook of mkdocs."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """The page with a space that does not break between the two; in code `%` is no unit."""
    parts = re.split(r"(<code.*?</code>)", html, flags=re.DOTALL)
    parts[::2] = [re.sub(r"(?<=\d) %", "\u00a0%", part) for part in parts[::2]]
    return "".join(parts)
