"""Configuration of the evaluator: a YAML file, overridden by dotted key=value pairs. Unknown keys are
errors.
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fgce.judges import JudgeConfig, LexiconConfig
from fgce.rubric import DEFAULT_RUBRIC
from fgce.sentences import SplitterName

Settings = TypeVar("Settings", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration is unusable; the message names the file or override, the key and the value."""


class Limits(BaseModel):
    """What one client, or all of them, may ask for. Beyond `queue` explanations at once a request gets 429."""

    model_config = ConfigDict(extra="forbid")
    body_bytes: Annotated[int, Field(gt=0)] = 8 * 2**20
    items: Annotated[int, Field(gt=0)] = 1024
    sentences: Annotated[int, Field(gt=0)] = 256  # of an explanation
    sentence_chars: Annotated[int, Field(gt=0)] = 4000
    queue: Annotated[int, Field(gt=0)] = 4096


class FgceConfig(BaseModel):
    """Everything that `python -m fgce` can be told.

    `timeout` is in seconds and bounds a request: sentences without an answer by then are missing. Above
    `max_missing_share` of missing sentences an explanation is missing. A server scores its canaries when it starts and
    every `canary_every` seconds. `cache` and `audit` are files; without them nothing is kept. The bearer token comes
    from the environment, so that it is in no file and no process list.
    """

    model_config = ConfigDict(extra="forbid")
    judge: JudgeConfig = LexiconConfig()
    rubric: Path = DEFAULT_RUBRIC
    splitter: SplitterName = "sentencex"
    max_missing_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    timeout: Annotated[float, Field(gt=0)] = 100.0
    canary_every: Annotated[float, Field(gt=0)] = 60.0
    cache: Path | None = None
    audit: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    token_variable: str = "FGCE_TOKEN"
    allow_without_token: bool = False  # on an address that others can reach
    limits: Limits = Limits()

    @property
    def token(self) -> str | None:
        """The bearer token that clients must send, if any.

        Raises:
            ConfigError: the address is not loopback, no token is set, and that is not allowed by name.
        """
        token = os.environ.get(self.token_variable) or None
        if token is None and not self.allow_without_token and not _is_loopback(self.host):
            raise ConfigError(
                f"host={self.host!r} can be reached from elsewhere: set a token in ${self.token_variable}, bind "
                "127.0.0.1, or allow it by name with allow_without_token=true"
            )
        return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> FgceConfig:
    """Reads `path` (defaults without one) and applies overrides such as `judge.backend=lexicon`.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    return load_settings(FgceConfig, path, overrides)


def load_settings(model: type[Settings], path: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """`load_config` for settings of any model.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    data: Any = {}
    source = "the overrides"
    if path is not None:
        source = str(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        if not isinstance(data, Mapping):
            raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    data = dict(data)
    for override in overrides:
        _apply(data, override)
    try:
        return model.model_validate(data)
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
    try:
        data[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML: {error}") from error
