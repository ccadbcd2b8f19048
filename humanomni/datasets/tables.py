"""Lists in the forms that data sets come in: CSV, TSV, xlsx, JSON and JSON lines, as rows of text."""

import csv
import gzip
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from humanomni.datasets.source import DatasetError
from humanomni.records import GZIP_DAMAGE, GZIP_MAGIC, Line, read_jsonl

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".json", ".jsonl", ".gz")


def read_text(path: Path, gb18030: bool = True) -> str:
    """A text file, UTF-8 with or without a byte order mark; may be gzipped.

    Args:
        path: the file.
        gb18030: whether what is not UTF-8 may be in Excel's Chinese encoding, in which nearly any bytes are text: true
            of the public data sets, whose authors write Chinese.

    Raises:
        DatasetError: it is none of these.
    """
    content = path.read_bytes()
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except GZIP_DAMAGE as error:
            raise DatasetError(f"{path}: the gzip stream is damaged: {error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not gb18030:
            raise DatasetError(
                f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8 (in Excel: Save As, CSV UTF-8)"
            ) from error
    try:
        return content.decode("gb18030")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: neither UTF-8 nor GB 18030 text; save it as UTF-8") from error


def read_rows(path: Path, gb18030: bool = True) -> list[list[str]]:
    """All rows of a CSV, TSV or xlsx file (its first sheet), the header among them, cells stripped.

    Raises:
        DatasetError: the file cannot be read.
    """
    if path.suffix.lower() == ".xlsx":
        return _xlsx_rows(path)
    text = read_text(path, gb18030)
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


def holds_json(path: Path) -> bool:
    """Whether a table is JSON, by its name; the others begin with a header."""
    return bool({".json", ".jsonl"} & set(path.suffixes))


def read_table(path: Path, columns: Sequence[str] = (), gb18030: bool = True) -> list[dict[str, str]]:
    """Rows by column name, of any of the forms; JSON values become text, null an absent key, a short row's rest "".

    Args:
        path: the file.
        columns: names that must be there.
        gb18030: see `read_text`.

    Raises:
        DatasetError: the file cannot be read or lacks a column.
        RecordError: a line of JSON is none.
    """
    if holds_json(path):
        values = [line.value for line in read_jsonl(path) if isinstance(line, Line)]
        rows = [{key: _cell(cell) for key, cell in value.items() if cell is not None} for value in values]
        there = list(dict.fromkeys(key for row in rows for key in row))
    else:
        there, *cells = read_rows(path, gb18030) or [[]]
        rows = [dict(zip(there, [*row, *[""] * (len(there) - len(row))], strict=False)) for row in cells]
    if lacking := [column for column in columns if column not in there]:
        raise DatasetError(f"{path}: no column {', '.join(lacking)}; its columns are {', '.join(there) or 'none'}")
    return rows


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
