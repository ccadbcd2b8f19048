"""Training data from several files: `train_data` names them, each with how much of it a run sees.

    train_data: data/mafw/fold1/grpo_train.jsonl
    train_data: [data/mafw/fold1/grpo_train.jsonl, data/dfew/fold1/grpo_train.jsonl@random:20%]

`@first:N` or `@first:P%` takes the first records, `@random:N` or `@random:P%` a draw without repetition, `@weight:W`
each record W times an epoch (for 1.5, a random half a second time). Draws hang on the run's seed and the file's name
alone, so a resumed run and all ranks see the same records. Each stage has a configuration, and with it a mixture, of
its own.
"""

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from humanomni.records import Record, read_records, resolve_video
from humanomni.training.run import ConfigurationError, require_path

logger = logging.getLogger(__name__)

_RULES = "first:100, first:20%, random:100, random:20% and weight:1.5"
_SOURCE = re.compile(r"(?P<path>.+)@(?P<rule>[a-z]+):(?P<amount>[^@/]*)")


@dataclass(frozen=True)
class DataSource:
    """A file of records and how much of it is taken.

    Attributes:
        path: JSONL.
        rule: "first", "random" or "weight".
        amount: records; or times, for a weight.
        share: the amount is a share of the file, 0 to 1, in place of a number of records.
    """

    path: Path
    rule: str = "weight"
    amount: float = 1.0
    share: bool = False

    def take(self, records: Sequence[Record], seed: int) -> list[Record]:
        """The records that the rule leaves, in the file's order; whole copies of a weight one after another."""
        draw = random.Random(f"{seed} {self.path.name}")
        if self.rule == "weight":
            whole, part = divmod(self.amount, 1)
            return list(records) * int(whole) + _drawn(records, round(part * len(records)), draw)
        count = round(self.amount * len(records)) if self.share else int(self.amount)
        return _drawn(records, count, draw) if self.rule == "random" else list(records[:count])


def _drawn(records: Sequence[Record], count: int, draw: random.Random) -> list[Record]:
    chosen = draw.sample(range(len(records)), min(count, len(records)))
    return [records[index] for index in sorted(chosen)]


def parse_sources(key: str, value: str | Sequence[str]) -> list[DataSource]:
    """The files that a configuration key names.

    Raises:
        ConfigurationError: a file is missing, or a rule or its amount is none.
    """
    entries = [value] if isinstance(value, str) else value
    return [_parse(key, entry) for entry in entries or [""]]


def _parse(key: str, entry: str) -> DataSource:
    match = _SOURCE.fullmatch(entry)
    if match is None or Path(entry).exists():  # a file may be called so
        return DataSource(require_path(key, entry))
    rule, text = match["rule"], match["amount"]
    share = text.endswith("%")
    try:
        amount = float(text.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        amount = -1.0
    whole = share or rule == "weight" or amount == int(amount)
    if (
        rule not in {"first", "random", "weight"}
        or not 0 < amount < float("inf")
        or not whole
        or (share and amount > 1)
    ):
        raise ConfigurationError(f"{key}: {entry}: after @ stands one of {_RULES}, not {rule}:{text}")
    if share and rule == "weight":
        raise ConfigurationError(f"{key}: {entry}: a weight is a number of times, as in weight:0.5")
    return DataSource(require_path(key, match["path"]), rule, amount, share)


def read_mixture(sources: Sequence[DataSource], data_root: Path | None, seed: int) -> list[Record]:
    """The records of all files, one file after another; the trainers shuffle.

    Args:
        data_root: folder of relative clip paths; each file's own without it.
        seed: of the draws.

    Returns:
        Records whose `video` is resolved, because the files may lie in different folders.

    Raises:
        RecordError: a line cannot be used.
        ConfigurationError: a rule leaves no record.
    """
    mixture = []
    for source in sources:
        records = [record for record in read_records(source.path) if isinstance(record, Record)]
        taken = source.take(records, seed)
        if not taken:
            raise ConfigurationError(f"{source.path}: no record is left of {len(records)}")
        if len(sources) > 1 or len(taken) != len(records):
            logger.info("%s: %d records, the file holds %d", source.path, len(taken), len(records))
        mixture += [replace(record, video=str(resolve_video(record.video, source.path, data_root))) for record in taken]
    return mixture
