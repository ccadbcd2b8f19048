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


def read_rows(path: Path, gb18030: bool = True) -> list[tuple[int, list[str]]]:
    """Rows of a CSV, TSV or xlsx file (its first sheet), the header among them, cells stripped; blank rows left out.

    Each has the number that a spreadsheet shows beside it.

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
    return _numbered([[cell.strip() for cell in row] for row in rows])


def _numbered(rows: list[list[str]]) -> list[tuple[int, list[str]]]:
    return [(number, row) for number, row in enumerate(rows, start=1) if any(row)]


def _xlsx_rows(path: Path) -> list[tuple[int, list[str]]]:
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
    return _numbered(texts)


def read_table(path: Path, columns: Sequence[str] = (), gb18030: bool = True) -> list[dict[str, str]]:
    """The rows of :func:`numbered_table`."""
    return [row for _, row in numbered_table(path, columns, gb18030)]


def numbered_table(path: Path, columns: Sequence[str] = (), gb18030: bool = True) -> list[tuple[int, dict[str, str]]]:
    """Rows by column name, of any of the forms; JSON values become text, null an absent key, a short row's rest "".

    Each has its number: of a spreadsheet's row, whose header is the first, or of a line of JSON.

    Args:
        path: the file.
        columns: names that must be there.
        gb18030: see `read_text`.

    Raises:
        DatasetError: the file cannot be read or lacks a column.
        RecordError: a line of JSON is none.
    """
    if {".json", ".jsonl"} & set(path.suffixes):
        lines = [line for line in read_jsonl(path) if isinstance(line, Line)]
        rows = [
            (line.number, {key: _cell(cell) for key, cell in line.value.items() if cell is not None}) for line in lines
        ]
        there = list(dict.fromkeys(key for _, row in rows for key in row))
    else:
        (_, there), *cells = read_rows(path, gb18030) or [(1, [])]
        rows = [(n, dict(zip(there, [*row, *[""] * (len(there) - len(row))], strict=False))) for n, row in cells]
    if lacking := [column for column in columns if column not in there]:
        raise DatasetError(f"{path}: no column {', '.join(lacking)}; its columns are {', '.join(there) or 'none'}")
    return rows


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
