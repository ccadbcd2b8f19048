"""Recomputing rewards from the audit log: shows that a run's rewards are what its judge's answers amount to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fgce.aggregate import aggregate
from fgce.audit import AuditRecord, read_audit
from fgce.rubric import Rubric

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Difference:
    """A recorded figure that does not come out again."""

    line: int
    id: str
    field: str
    recorded: float | str | None
    recomputed: float | str | None


def replay(
    path: Path, rubric: Rubric, *, max_missing_share: float = 0.5
) -> Iterator[tuple[AuditRecord, list[Difference]]]:
    """Every record of an audit log with its differences, under the weights of `rubric`.

    Raises:
        AuditError: the log is unusable.
    """
    for number, record in read_audit(path):
        sentences = [sentence.model_copy() for sentence in record.result.sentences]
        if not sentences and record.result.status == "missing":  # refused whole, unjudged
            yield record, []
            continue
        for sentence in sentences:
            if sentence.score is not None and sentence.function and sentence.modality:
                sentence.weight = rubric.weight(sentence.function, sentence.modality)
        again = aggregate(record.item.id, sentences, mode=record.mode, max_missing_share=max_missing_share)
        pairs = {
            field: (getattr(record.result, field), getattr(again, field))
            for field in ("status", "score", "normalised", "unweighted_normalised", "expected_normalised")
        }
        yield (
            record,
            [
                Difference(number, record.item.id, field, recorded, recomputed)
                for field, (recorded, recomputed) in pairs.items()
                if not _same(recorded, recomputed)
            ],
        )


def _same(one: float | str | None, other: float | str | None) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _TOLERANCE
    return one == other
