"""Lists in the forms that data sets come in: CSV, TSV, xlsx, JSON and JSON lines, as rows of text."""

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from humanomni.datasets.source import DatasetError
from humanomni.records import Line, read_jsonl

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".json", ".jsonl", ".gz")
_ENCODINGS = ("utf-8-sig", "gb18030")  # the second: lists with Chinese text that Excel saved


def read_text(path: Path) -> str:
    """A text file, UTF-8 with or without a byte order mark, else in Excel's Chinese encoding.

    Raises:
        DatasetError: it is neither.
    """
    content = path.read_bytes()
    for encoding in _ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DatasetError(f"{path}: neither UTF-8 nor GB 18030 text; save it as UTF-8")


def read_rows(path: Path) -> list[list[str]]:
    """All rows of a CSV, TSV or xlsx file (its first sheet), the header among them, cells stripped.

    Raises:
        DatasetError: the file cannot be read.
    """
    if path.suffix.lower() == ".xlsx":
        return _xlsx_rows(path)
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # Excel writes ";" where "," is the decimal mark
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DatasetError(f"{path}: {error}") from error
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def _xlsx_rows(path: Path) -> list[list[str]]:
    try:
        import openpyxl
    except ImportError as error:
        raise DatasetError(
            f"{path}: reading xlsx needs openpyxl: pip install -e '.[xlsx]'; or save the sheet as {path.stem}.csv"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, ValueError, KeyError) as error:  # the others: an archive without a workbook
        raise DatasetError(f"{path}: not an xlsx file ({error})") from error
    rows = book.worksheets[0].iter_rows(values_only=True)
    texts = [["" if cell is None else str(cell).strip() for cell in row] for row in rows]
    book.close()
    return [row for row in texts if any(row)]


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows by column name, of any of the forms; JSON values become text, null an absent key.

    Args:
        columns: names that must be there.

    Raises:
        DatasetError: the file cannot be read or lacks a column.
        RecordError: a line of JSON is none.
    """
    if {".json", ".jsonl"} & set(path.suffixes):
        values = [line.value for line in read_jsonl(path) if isinstance(line, Line)]
        rows = [{key: _cell(cell) for key, cell in value.items() if cell is not None} for value in values]
        there = list(dict.fromkeys(key for row in rows for key in row))
    else:
        there, *cells = read_rows(path) or [[]]
        rows = [dict(zip(there, row, strict=False)) for row in cells]
    if lacking := [column for column in columns if column not in there]:
        raise DatasetError(f"{path}: no column {', '.join(lacking)}; its columns are {', '.join(there) or 'none'}")
    return rows


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
