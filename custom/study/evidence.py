"""The page of evidence, made from the studies' JSON files alone."""

import json
from typing import Any


def dumps(content: dict[str, Any]) -> str:
    """JSON with one line per entry of the larger lists, scores rounded, so that a change can be read in a diff."""
    return json.dumps(content, indent=1) + "\n"
