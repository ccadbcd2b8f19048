"""JSON objects in small files, such as a checkpoint's configurations."""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        error: when the file is missing or holds no JSON object; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist; a checkpoint's folder holds one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise error(f"{path} is no JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise error(f"{path} holds no JSON object")
    return content
