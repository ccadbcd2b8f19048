"""What every training run shares: its configuration from YAML and flags, its record on disk, its dry run."""

import dataclasses
import difflib
import importlib.metadata
import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from humanomni.modeling import PARTS, HumanOmniForConditionalGeneration

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments", bound=TrainingArguments)

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed", "decord", "av")


class ConfigurationError(ValueError):
    """A configuration that cannot run; the message names the key, its value and the mend."""


def parse_arguments(arguments_class: type[Arguments], command_line: Sequence[str] | None = None) -> Arguments:
    """Reads ``--config FILE.yaml`` and flags, which win, into a stage's dataclass.

    Raises:
        ConfigurationError: for a file that cannot be read, a key or flag that is unknown, a value of the wrong type or
            outside its choices, and a package that an option needs.
    """
    flags = list(sys.argv[1:] if command_line is None else command_line)
    parser = TrlParser([arguments_class])  # type: ignore[list-item] # its protocol wants dict fields
    if "--config" in flags[:-1]:
        place = flags.index("--config")
        parser.set_defaults_with_config(**read_config(Path(flags[place + 1]), arguments_class))
        del flags[place : place + 2]
    try:
        (arguments,) = parser.parse_args_and_config(flags)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigurationError(
            f"{str(error.name).strip()} Install it with pip install -e '.[deepspeed]', or go without: --deepspeed ''"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
    return arguments


def read_config(path: Path, arguments_class: type) -> dict[str, Any]:
    """Reads a YAML file and checks its keys and the types of their values, which TRL takes as they come.

    A file may begin with ``extends: OTHER.yaml``, a path from its own folder: it then says only what differs.

    Raises:
        ConfigurationError: for the first fault; names the file, the key and the value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold keys and values, as in seed: 0")
    base = content.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigurationError(f"{path}: extends must be a file's name, not {base!r}")
    types = get_type_hints(arguments_class)
    for key, value in content.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), types, n=1)
            raise ConfigurationError(f"{path}: unknown key {key}" + (f"; did you mean {close[0]}?" if close else ""))
        try:
            TypeAdapter(types[key]).validate_python(value)
        except ValidationError as error:
            raise ConfigurationError(f"{path}: {key}: {value!r} does not fit. {error.errors()[0]['msg']}") from error
    try:
        return (read_config(path.parent / base, arguments_class) if base else {}) | content
    except RecursionError:
        raise ConfigurationError(f"{path}: extends goes round in a circle") from None


def require_known(key: str, values: Sequence[str], known: Iterable[str]) -> None:
    """Checks names against the ones that there are.

    Raises:
        ConfigurationError: when one of them is unknown.
    """
    known = list(known)
    if unknown := [value for value in values if value not in known]:
        raise ConfigurationError(f"{key}: {', '.join(unknown)} is unknown; known are {', '.join(known)}")


def set_up_logging(arguments: TrainingArguments) -> None:
    """Logs to standard error; rank 0 speaks, the other ranks only warn."""
    level = logging.INFO if arguments.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def save_manifest(arguments: TrainingArguments, **more: Any) -> None:
    """Writes what the run was into its folder: ``config.yaml``, resolved, and ``manifest.json`` with the versions."""
    folder = output_folder(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments) if field.init}
    plain = json.loads(json.dumps(resolved, default=str))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=True), encoding="utf-8")
    manifest = {
        "command": sys.argv,
        "seed": arguments.seed,
        "world_size": arguments.world_size,
        "python": sys.version.split()[0],
        "packages": _versions(),
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def git_commit() -> str | None:
    """The commit of the code that runs, with "+changes" when the work tree differs; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, check=True, capture_output=True, text=True
        ).stdout.strip()
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, check=False).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def last_checkpoint(arguments: TrainingArguments) -> str | None:
    """The newest checkpoint in the run's folder, from which an interrupted run goes on."""
    folder = output_folder(arguments)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Trained and frozen parameters of each part of the model."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))
        counts[part][not parameter.requires_grad] += parameter.numel()
    return {part: (trained, frozen) for part, (trained, frozen) in counts.items()}


def describe_run(
    arguments: TrainingArguments, model: HumanOmniForConditionalGeneration, samples: int, samples_per_step: int
) -> str:
    """What would happen: records, steps, parameters. Needs no GPU."""
    steps_an_epoch = max(1, samples // samples_per_step)
    steps = arguments.max_steps if arguments.max_steps > 0 else round(steps_an_epoch * arguments.num_train_epochs)
    rows = [
        f"{part:<16} {trained / 1e6:>10.2f} M trained {frozen / 1e6:>10.2f} M frozen"
        for part, (trained, frozen) in count_parameters(model).items()
    ]
    return "\n".join(
        [
            f"records            {samples}",
            f"records a step     {samples_per_step} over {arguments.world_size} processes",
            f"optimizer steps    {steps}",
            f"output             {arguments.output_dir}",
            *rows,
        ]
    )


def output_folder(arguments: TrainingArguments) -> Path:
    """Where the run writes.

    Raises:
        ConfigurationError: when output_dir is not set.
    """
    if not arguments.output_dir:
        raise ConfigurationError("output_dir is not set; give it in the YAML file or as --output_dir")
    return Path(arguments.output_dir)


def require_path(key: str, value: str | None) -> Path:
    """The path that a key names.

    Raises:
        ConfigurationError: when it is not set or does not exist.
    """
    if not value:
        raise ConfigurationError(f"{key} is not set; give it in the YAML file or as --{key}")
    if not Path(value).exists():
        raise ConfigurationError(f"{key}: {value} does not exist")
    return Path(value)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
