"""Opening a person's own table; CSV files, in whatever way they are written, and where in them something is wrong."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from plbench.api import DataError, ProgressReport

from .file import CELLS, MAX_COLUMNS, ROWS, ParquetTable, TableFile, nobody, num_sampled
from .header import find_header, read_fields
from .options import TableOptions
from .values import CodeOf, Codes

MAX_LINE_BYTES = 4 << 20  # bytes; also what Arrow parses at a time
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed with gzip",
    b"SQLite format": "a database",
}


def open_table(path: Path, options: TableOptions) -> TableFile:
    """Return the table in a file. At most 4 MB are read.

    Raises:
        DataError: if there is no table in the file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(MAX_LINE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise DataError(f"{path} is empty; expected a CSV or Parquet file with the names of its columns")
    if head.startswith(b"PAR1"):
        return ParquetTable(path)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}; save the table as CSV (UTF-8) or Parquet")
    if path.suffix.lower() in (".parquet", ".pq"):
        raise DataError(f"{path} is not a Parquet file: it starts with {head[:8]!r}, not 'PAR1'; write it again")
    return CsvTable(path, head, options)


class CsvTable(TableFile):
    """A CSV file: Arrow reads a few of its columns, Python's strict reader finds what is wrong and reads very many."""

    def __init__(self, path: Path, head: bytes, options: TableOptions) -> None:
        """Read the names of the columns from the file's first bytes."""
        marked = head.startswith(codecs.BOM_UTF8)
        is_utf8 = options.encoding in ("utf-8", "utf-8-sig")
        self.encoding = "utf-8-sig" if is_utf8 else options.encoding
        line = re.split(rb"[\r\n]", head.removeprefix(codecs.BOM_UTF8), maxsplit=1)[0]
        if is_utf8 and (head.startswith(_UTF16_MARKS) or b"\0" in line):
            raise DataError(
                f"{path} looks like UTF-16, not UTF-8; save it as UTF-8, or give `options.encoding='utf-16'`"
            )
        if len(line) == MAX_LINE_BYTES or max(line.count(mark.encode()) for mark in ",;\t|") > MAX_COLUMNS:
            raise DataError(
                f"{path} has a first line of more than {MAX_COLUMNS:,} columns or {MAX_LINE_BYTES >> 20} MB; expected "
                "the names of the columns"
            )
        self.path = path  # what finding a wrong byte needs
        try:
            text = codecs.getincrementaldecoder(self.encoding)().decode(head)
        except UnicodeError as error:
            raise self._undecodable(error) from error
        # the names as they are written; those of `columns` are trimmed
        self._header_line, self.delimiter, self._names, notes = find_header(path, text, options)
        mark = ("the file starts with a byte-order mark, which was skipped",) if marked and is_utf8 else ()
        super().__init__(path, self._names, (*mark, *notes))
        self._is_quoted: bool | None = None

    def texts(self, names: Sequence[str], report: ProgressReport = nobody) -> Iterator[list[pa.Array]]:
        """By Arrow, many times faster than line by line; it cannot take several blanks for one."""
        if self.delimiter == " ":
            wanted = [self.position[name] for name in names]
            records = (fields for _, fields in self.records(report))
            while rows := list(itertools.islice(records, ROWS)):
                yield [pa.array([row[at] for row in rows], pa.string()) for at in wanted]
            return
        if self._is_quoted is None:
            with self.path.open("rb") as file:
                self._is_quoted = any(b'"' in piece for piece in iter(lambda: file.read(MAX_LINE_BYTES), b""))
            if self._is_quoted:  # all is read strictly once: Arrow ends an open quote where the file ends
                sum(1 for _ in self.records())
        try:
            yield from self._texts_by_arrow(names, report)
        except (pa.ArrowException, UnicodeError, OSError) as error:
            if not sum(1 for _ in self.records()):  # names line and byte of what is wrong, which Arrow does not
                return
            raise DataError(f"{self.path}: {' '.join(str(error).split())[:300]}; write the table again") from error

    def _texts_by_arrow(self, names: Sequence[str], report: ProgressReport) -> Iterator[list[pa.Array]]:
        written = [self._names[self.position[name]] for name in names]
        size = self.path.stat().st_size
        with pa.OSFile(str(self.path)) as file:
            reader = pa_csv.open_csv(
                file,
                read_options=pa_csv.ReadOptions(
                    block_size=MAX_LINE_BYTES,
                    encoding="utf8" if self.encoding == "utf-8-sig" else self.encoding,
                    skip_rows=self._header_line - 1,
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char='"' if self._is_quoted else False,
                    newlines_in_values=self._is_quoted,  # slower: only where there may be one
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=written, column_types=dict.fromkeys(written, pa.string()), strings_can_be_null=False
                ),
            )
            for batch in reader:
                yield list(batch.columns)
                report(min(file.tell(), size), size)

    def records(self, report: ProgressReport = nobody) -> Iterator[tuple[int, list[str]]]:
        """Yield line and fields of each row below the names; blank lines are none.

        Raises:
            DataError: if a row has another number of fields than there are names, a quote is not closed, or a byte is
                not of the encoding: line, what was found.
        """
        size, line = self.path.stat().st_size, self._header_line
        with self.path.open("rb") as raw, io.TextIOWrapper(raw, self.encoding, newline="") as text:

            def lines() -> Iterator[str]:
                for number, found in enumerate(iter(lambda: text.readline(MAX_LINE_BYTES), ""), 1):
                    if len(found) == MAX_LINE_BYTES:
                        size_limit = f"{MAX_LINE_BYTES >> 20} MB"
                        raise DataError(f"{self.path}, line {number} is longer than {size_limit}; fix the row")
                    yield found

            reader = read_fields(itertools.islice(lines(), self._header_line - 1, None), self.delimiter, strict=True)
            try:
                for number, fields in enumerate(reader):
                    if number and fields:
                        if len(fields) != len(self.columns):
                            names = ", ".join(self.columns[:6]) + (", …" if len(self.columns) > 6 else "")
                            first = "first line" if self._header_line == 1 else f"line {self._header_line}"
                            fewer_or_more = f"{len(fields):,} field{'' if len(fields) == 1 else 's'}"
                            raise DataError(
                                f"{self.path}, line {line} has {fewer_or_more}; its {first} has "
                                f"{len(self.columns):,} ({names}); a text with {self.delimiter!r} in it needs quotes "
                                "around it"
                            )
                        yield line, fields
                    line = self._header_line + reader.line_num
                    if number % ROWS == 0:
                        report(min(raw.tell(), size), size)
            except csv.Error as error:
                reason = "a quote is not closed" if "unexpected end" in str(error) else str(error)
                raise DataError(f"{self.path}, line {line}: {reason}; fix the row") from error
            except UnicodeError as error:
                raise self._undecodable(error) from error

    def sample(self) -> dict[str, list[str]]:
        """By line."""
        rows = [fields for _, fields in itertools.islice(self.records(), num_sampled(len(self.columns)))]
        return {name: [row[at] for row in rows] for at, name in enumerate(self.columns)}

    def cell(self, row: int, name: str) -> tuple[str, str]:
        """By the line in the file that a text editor shows."""
        line, fields = next(itertools.islice(self.records(), row, None))
        return f"line {line}", fields[self.position[name]]

    def codes(
        self, keys: Sequence[str], classes: Sequence[str], report: ProgressReport
    ) -> Iterator[tuple[list[pa.Array], Codes]]:
        """By line: Arrow takes 10 kB of memory for every column."""
        wanted = [self.position[name] for name in keys]
        chosen = [self.position[name] for name in classes]
        cells = itemgetter(*chosen) if len(chosen) > 1 else lambda fields: (fields[chosen[0]],)
        code_of = CodeOf().__getitem__
        records = (fields for _, fields in self.records(report))
        while rows := list(itertools.islice(records, max(1, CELLS // len(chosen)))):
            flat = itertools.chain.from_iterable(map(cells, rows))
            codes = np.fromiter(map(code_of, flat), np.int8, len(rows) * len(chosen))
            yield [pa.array([row[at] for row in rows], pa.string()) for at in wanted], codes.reshape(-1, len(chosen))

    def _undecodable(self, error: UnicodeError) -> DataError:
        """Name the first byte that the encoding does not have; the file is read again up to there."""
        decoder, line = codecs.getincrementaldecoder(self.encoding)(), 1
        with self.path.open("rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                try:
                    line += decoder.decode(piece).count("\n")
                except UnicodeDecodeError as found:
                    line += found.object[: found.start].count(b"\n")
                    name = self.encoding.removesuffix("-sig").upper()
                    return DataError(
                        f"{self.path}, line {line}: byte {found.object[found.start]:#04x} is not {name}; save the "
                        "table as UTF-8, or say how it is written, such as `options.encoding='cp1252'`"
                    )
        return DataError(f"{self.path} is not {self.encoding}: {error}; save the table as UTF-8")
