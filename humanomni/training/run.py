"""What every training run shares: its configuration from YAML and flags, and its record on disk."""

import argparse
import copy
import dataclasses
import difflib
import importlib.metadata
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import torch
import yaml
from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments
from trl import TrlParser

from humanomni.modeling import PARTS
from humanomni.prompts import MODALITIES

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments", bound=TrainingArguments)

_SECONDS_TO_REST = 0.5

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed", "decord", "av")


# The authors freeze both towers, and BERT in SFT; here BERT stays frozen in GRPO too.
DEFAULT_PARTS = ("projector", "audio_projector", "gate", "language_model")


class ConfigurationError(ValueError):
    """A configuration that cannot run; the message names the key, its value and the mend."""


@dataclass
class StageArguments:
    """Keys that SFT and GRPO share, besides those of transformers' TrainingArguments."""

    model_path: str = field(default="", metadata={"help": "native HumanOmni folder to start from"})
    train_data: list[str] | str = field(
        default="", metadata={"help": "JSONL of the stage's records, or several; PATH@random:20%% for a part"}
    )
    data_root: str | None = field(default=None, metadata={"help": "folder of relative clip paths; the JSONL's"})
    clip_cache: str | None = field(default=None, metadata={"help": "folder for decoded clips; none: decode every time"})
    modality: str = field(default="video_audio", metadata={"help": f"media in the prompt: {', '.join(MODALITIES)}"})
    trainable_parts: list[str] = field(
        default_factory=lambda: list(DEFAULT_PARTS), metadata={"help": f"parts to train, of {', '.join(PARTS)}"}
    )
    lora_rank: int = field(default=0, metadata={"help": "LoRA on the language model, the other parts in full; 0: none"})
    lora_alpha: int | None = field(default=None, metadata={"help": "scale of LoRA, over the rank; twice the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "share of LoRA's inputs dropped"})
    records_per_step: int | None = field(
        default=None, metadata={"help": "records (SFT) or prompts (GRPO) a step, on all GPUs; accumulation follows"}
    )
    dry_run: bool = field(default=False, metadata={"help": "say what would happen and stop"})
    processes: int | None = field(default=None, metadata={"help": "with dry_run: say it of a run on so many GPUs"})

    def __post_init__(self) -> None:
        # As given, and not as the classes below and this one fill in: what --config takes again, on any machine.
        fields = dataclasses.fields(self)
        self.given = {field.name: copy.deepcopy(getattr(self, field.name)) for field in fields if field.init}
        if self.processes is None:
            self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        elif not self.dry_run:
            raise ConfigurationError("processes goes with --dry_run alone; a real run counts its own")
        if self.records_per_step is not None:
            self.gradient_accumulation_steps = self._accumulation(self.records_per_step)
        super().__post_init__()  # type: ignore[misc] # transformers' or TRL's, which come after this class
        require_known("modality", [self.modality], MODALITIES)
        require_known("trainable_parts", self.trainable_parts, PARTS)
        self._check_lora()
        self.remove_unused_columns = False

    @property
    def rows_a_record(self) -> int:
        """Rows of a batch that a record makes."""
        return 1

    @property
    def records_an_optimizer_step(self) -> int:
        """Records, or prompts, that an optimizer step learns from, on all GPUs."""
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * (self.processes or 1)  # type: ignore[attr-defined]
        return rows // self.rows_a_record

    @property
    def world_size(self) -> int:
        """Processes; in a dry run those that it speaks of, by which TRL judges the batch."""
        if self.dry_run and self.processes:
            return self.processes
        return super().world_size  # type: ignore[misc] # transformers', which comes after this class

    def batches_an_epoch(self, records: int) -> int:
        """Batches that a process takes in an epoch of so many records."""
        rows = self.per_device_train_batch_size * (self.processes or 1)  # type: ignore[attr-defined]
        return records // rows if self.dataloader_drop_last else math.ceil(records / rows)  # type: ignore[attr-defined]

    @property
    def sharding_stage(self) -> int:
        """ZeRO's stage; 3 for FSDP, 0 without sharding."""
        if getattr(self, "fsdp", None):
            return 3
        plugin = getattr(self, "hf_deepspeed_config", None)
        return int(plugin.get_value("zero_optimization.stage", 0)) if plugin else 0

    def _check_lora(self) -> None:
        if not self.lora_rank and (self.lora_alpha is not None or self.lora_dropout):
            raise ConfigurationError("lora_alpha and lora_dropout go with lora_rank; set it, or leave them out")
        if self.lora_rank < 0 or not 0 <= self.lora_dropout < 1:
            raise ConfigurationError(
                f"lora_rank {self.lora_rank} and lora_dropout {self.lora_dropout}: give 0 or more, and a share below 1"
            )
        if self.lora_rank and "language_model" not in self.trainable_parts:
            raise ConfigurationError(
                f"lora_rank {self.lora_rank} adapts the language model, which is not among trainable_parts "
                f"({', '.join(self.trainable_parts)}); add language_model, or set lora_rank to 0"
            )

    def _accumulation(self, records: int) -> int:
        batch = self.per_device_train_batch_size * (self.processes or 1)  # type: ignore[attr-defined]
        if self.gradient_accumulation_steps != 1:
            raise ConfigurationError("give records_per_step or gradient_accumulation_steps, not both")
        steps, rest = divmod(records * self.rows_a_record, batch)
        if rest or not steps:
            raise ConfigurationError(
                f"records_per_step {records} makes {records * self.rows_a_record} rows, which do not divide into "
                f"batches of per_device_train_batch_size {self.per_device_train_batch_size} on {self.processes} "  # type: ignore[attr-defined]
                "processes; change one of them"
            )
        return steps


def parse_arguments(arguments_class: type[Arguments], command_line: Sequence[str] | None = None) -> Arguments:
    """Reads ``--config FILE.yaml`` and flags, which win, into a stage's dataclass; a run's config.yaml is such a file.

    Raises:
        ConfigurationError: for a file that cannot be read, a key or flag that is unknown, a value of the wrong type or
            outside its choices, and a package that an option needs.
    """
    parser = TrlParser([arguments_class])  # type: ignore[list-item] # its protocol wants dict fields
    # TRL's own reading of --config checks no types and knows no --config=FILE.
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    config.add_argument("--config", type=Path)
    try:
        chosen, flags = config.parse_known_args(command_line)
    except argparse.ArgumentError as error:
        raise ConfigurationError(f"{error}: a YAML file, as in --config configs/toy/sft.yaml") from error
    if chosen.config:
        parser.set_defaults_with_config(**read_config(chosen.config, arguments_class))
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
    defaults = {field.name: field.default for field in dataclasses.fields(arguments_class)}
    for key, value in content.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), types, n=1)
            raise ConfigurationError(f"{path}: unknown key {key}" + (f"; did you mean {close[0]}?" if close else ""))
        if value is None and defaults.get(key) in (None, ""):
            continue  # not set, which transformers' types do not always allow for
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


# Beginnings of the keys in which a run may differ from the one whose checkpoint it goes on from: how long it trains,
# where files and servers are, what is measured, logged and kept, and how the work is spread.
_MAY_DIFFER = (
    *("max_steps", "num_train_epochs", "output_dir", "data_root", "clip_cache", "tower_cache"),
    *("validation_data", "dry_run"),
    *("logging_", "log_", "save_", "eval_", "report_to", "run_name", "project", "trackio_", "disable_tqdm", "sample_"),
    *("fgce_", "judge_", "canary_", "allow_another_judge", "hub_", "push_to_hub", "ddp_", "deepspeed", "fsdp"),
    *("use_cpu", "gradient_checkpointing", "torch_compile", "per_device_eval_batch_size", "processes"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_pin_memory"),
    # Together they make records_per_step, which manifest.json has of every run.
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)


def require_same_run(arguments: TrainingArguments) -> None:
    """Checks that a run goes on as it began, in a folder that holds its checkpoints; rank 0 does, before it writes.

    Raises:
        ConfigurationError: names each key that shapes what is learnt and differs from the folder's ``config.yaml``.
    """
    folder = output_folder(arguments)
    config, manifest = folder / "config.yaml", folder / "manifest.json"
    if arguments.process_index != 0 or not config.is_file() or not manifest.is_file():
        return
    records = json.loads(manifest.read_text(encoding="utf-8")).get("records_per_step")
    if records is None:
        return  # of a version that wrote config.yaml in another form
    began = yaml.safe_load(config.read_text(encoding="utf-8")) | {"records_per_step": records}
    goes_on = _plain(arguments) | {"records_per_step": cast(StageArguments, arguments).records_an_optimizer_step}
    differing = [
        f"{key} was {began[key]} and is {value}"
        for key, value in sorted(goes_on.items())
        if key in began and began[key] != value and not key.startswith(_MAY_DIFFER)
    ]
    if differing:
        raise ConfigurationError(
            f"{folder} holds checkpoints of a run of another configuration: {'; '.join(differing)}. Give another "
            "--output_dir, or what was to go on with that run, or remove the folder"
        )


def save_manifest(arguments: TrainingArguments, **more: Any) -> None:
    """Writes what the run was into its folder: ``config.yaml``, all keys, and ``manifest.json`` with the versions."""
    folder = output_folder(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(_plain(arguments), sort_keys=True), encoding="utf-8")
    manifest = {
        "command": sys.argv,
        "seed": arguments.seed,
        "records_per_step": cast(StageArguments, arguments).records_an_optimizer_step,
        "world_size": arguments.world_size,
        "python": sys.version.split()[0],
        "packages": _versions(),
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _plain(arguments: TrainingArguments) -> dict[str, Any]:
    """The configuration as it was given, in YAML's types, without the hub's password."""
    plain: dict[str, Any] = json.loads(json.dumps(cast(StageArguments, arguments).given, default=str))
    plain.pop("hub_token", None)
    return plain


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


def require_finite(loss: torch.Tensor, step: int, batch: Sequence[str]) -> None:
    """Stops a run at a loss that is no number.

    Raises:
        FloatingPointError: names the step and the records of the batch.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} in step {step + 1}, on the records {', '.join(dict.fromkeys(batch))}; look at "
            "them, or lower the learning rate. The run is seeded: started again, it stops at the same batch"
        )


def end_processes(accelerator: Accelerator) -> None:
    """Ends the process group once every process is done and its threads are at rest.

    A thread of gloo's frees the tensors of the last reductions only after they have returned, and needs Python's lock
    for it: a process that is on its way out by then is aborted, and torchrun stops those that still write the result.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        time.sleep(_SECONDS_TO_REST)
    accelerator.end_training()


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
