"""MERR: labels and captions, coarse and fine, for clips of MER2023's test3."""

import json
from collections.abc import Iterator
from pathlib import Path

from humanomni.datasets.mer import SIX
from humanomni.datasets.source import Dataset, DatasetError, Options, Sample, Source
from humanomni.datasets.tables import read_text


def _read(source: Source, options: Options) -> Iterator[Sample]:
    """Labels from the txt, captions from the JSON of the same grain."""
    lists = source.lists(r"MERR_(?P<grain>coarse|fine)_grained\.txt")
    if not lists:
        raise source.missing("MERR", "MERR_coarse_grained.txt", "MERR_fine_grained.txt")
    for match, path in lists:
        captions = _captions(path.with_suffix(".json"))
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            fields = line.split()
            if len(fields) < 3:
                raise DatasetError(f"{path}:{number}: {line.strip()!r} is not '<name> <frame> <label>'")
            name, _, label, *_ = fields
            yield Sample(name, label, match["grain"], None, captions.get(name), source.origin(path))


def _captions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        entries = json.loads(read_text(path))
        return {
            name: entry.get("smp_reason_caption") or entry["caption"]
            for name, entry in entries.items()
            if entry.get("smp_reason_caption") or entry.get("caption")
        }
    except (json.JSONDecodeError, AttributeError) as error:
        raise DatasetError(f'{path}: not JSON of the form {{"name": {{"caption": "..."}}}} ({error})') from error


MERR = Dataset("MERR", _read, classes=SIX | {"fear": "fear", "contempt": "contempt", "doubt": "doubt"})
