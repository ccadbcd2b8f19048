"""Configuration of the evaluator: a YAML file, overridden by dotted key=value pairs. Unknown keys are
errors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgce.judges import JudgeConfig, LexiconConfig
from fgce.rubric import DEFAULT_RUBRIC


class ConfigError(ValueError):
    """A configuration is unusable; the message names the file or override, the key and the value."""


class FgceConfig(BaseModel):
    """Everything that `python -m fgce` can be told.

    `sentence_timeout` is in seconds and covers both steps of a sentence; above `max_missing_share` of missing
    sentences an explanation is missing.
    """

    model_config = ConfigDict(extra="forbid")
    judge: JudgeConfig = LexiconConfig()
    rubric: Path = DEFAULT_RUBRIC
    max_missing_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    sentence_timeout: Annotated[float, Field(gt=0)] = 60.0
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> FgceConfig:
    """Reads `path` (defaults without one) and applies overrides such as `judge.backend=lexicon`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    data: Any = {}
    source = "the overrides"
    if path is not None:
        source = str(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        if not isinstance(data, Mapping):
            raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    data = dict(data)
    for override in overrides:
        _apply(data, override)
    try:
        return FgceConfig.model_validate(data)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, p['loc']))}={p['input']!r}: {p['msg']}" for p in error.errors())
        raise ConfigError(f"{source}: {'; '.join(problems)}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"override '{override}': expected key=value, such as port=8001")
    *parents, leaf = key.split(".")
    for parent in parents:
        below = data.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a group of settings")
        data = below
    data[leaf] = yaml.safe_load(value)
