"""Read the text column of .parquet files, on disk or on the Hugging Face hub (`hf://…`).

pyarrow can abort the interpreter on a damaged file, so everything here runs in a worker process: `read_groups` for the
file's footer, and `Rows.texts` for its rows. The process that hands out the work imports no pyarrow.
"""

import functools
from dataclasses import dataclass

from system.boundary import foreign, require_regular_file
from system.errors import UserError
from text.hub import RangeReader, is_remote

BUFFER_BYTES = 1 << 20  # read ahead of the decoder, where a row group is read in batches


@dataclass(frozen=True)
class Rows:
    """Rows `start` … `stop` - 1 of one row group. With `batch_rows`, the group is large and decoded in such batches."""

    path: str
    group: int
    start: int
    stop: int
    column: str
    batch_rows: int | None = None
    continues = False

    def __str__(self):
        return self.path

    def texts(self):
        with reading(self.path):
            if self.batch_rows is None:
                table = open_parquet(self.path, self.column).read_row_group(self.group, columns=[self.column])
                found = table[self.column].slice(self.start, self.stop - self.start).to_pylist()
            else:
                found = GroupReader.get(self.path, self.group, self.column, self.batch_rows).read(self.start, self.stop)
            return [text for text in found if text]


class GroupReader:
    """Decodes a large row group front to back, in batches, so that no process holds all of it.

    A file cannot be read from the middle of a row group. One reader serves all pieces of a group that a worker gets:
    they come in order, so the group is decoded once.
    """

    def __init__(self, path, group, column, batch_rows):
        self.file, self.batch_rows = open_parquet(path, column), batch_rows
        self.group, self.column = group, column
        self.restart()

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def get(path, group, column, batch_rows):
        return GroupReader(path, group, column, batch_rows)

    def restart(self):
        self.batches = self.file.iter_batches(self.batch_rows, row_groups=[self.group], columns=[self.column])
        self.batch, self.first = [], 0  # the current batch, and the number of its first row

    def read(self, start, stop):
        """The values of rows `start` … `stop` - 1; None for null."""
        if start < self.first:
            self.restart()
        found = []
        while True:
            a, b = max(start - self.first, 0), min(stop - self.first, len(self.batch))
            if a < b:
                found += self.batch.column(0).slice(a, b - a).to_pylist()
            if stop <= self.first + len(self.batch):
                return found
            self.first += len(self.batch)
            self.batch = next(self.batches, None)
            if self.batch is None:
                self.restart()
                raise ValueError(f"row group {self.group} has fewer rows than the file's footer says")


def read_groups(path, column):
    """The (rows, uncompressed bytes of text) of each row group. Raises `UserError` without such a text column."""
    with reading(path):
        metadata = open_parquet(path, column).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return tuple((max(group.num_rows, 0), text_bytes(group, column)) for group in groups)


def text_bytes(group, column):
    """Uncompressed size of the text column in a row group, as its metadata declares it."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(max(c.total_uncompressed_size, 0) for c in columns if c.path_in_schema == column)


@functools.lru_cache(maxsize=2)  # read the file's footer once, not once per row group
def open_parquet(path, column):
    """Open a .parquet file, after checking that `column` holds text."""
    import pyarrow.parquet

    if is_remote(path):
        file = pyarrow.parquet.ParquetFile(RangeReader(path), pre_buffer=True)
    else:
        require_regular_file(path, "a parquet file")
        file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
    check_column(path, file.schema_arrow, column)
    return file


def check_column(path, schema, column):
    """Raise `UserError` unless exactly one column is called `column`, and it holds text."""
    from pyarrow import types

    if column not in schema.names:
        raise UserError(f"{path} has no column {column!r}; it has {', '.join(schema.names)}; see --text_field")
    if schema.names.count(column) > 1:
        raise UserError(f"{path} has {schema.names.count(column)} columns called {column!r}, expected one")
    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"{path}: column {column!r} holds {kind}, expected text; see --text_field")


def reading(path):
    return foreign(path, "a whole parquet file with UTF-8 text", "download it again")
