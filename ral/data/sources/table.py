"""Your own data: any CSV or Parquet table, with `data.table` saying which column holds what."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ral.config.data import DataConfig
from ral.data.sources.base import SEXES, VIEWS, Columns, Joined, Layout, Source
from ral.data.sources.text import PIECE, check_columns, read_pieces
from ral.errors import UserError
from ral.labels import NO_FINDING


class Reader(Source):
    """Films are at the paths the table names, or in images/ or images*.tar.gz with the image id as file name."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.table = config.table
        self.layout = Layout(
            image=self.table.image_id,
            patient=self.table.patient_id,
            study=self.table.study_id,
            follow_up=self.table.follow_up,
            path=self.table.path,
            view=self.table.view,
            views={**VIEWS, **self.table.views},
            sex=self.table.sex,
            sexes={**SEXES, "": None, **self.table.sexes},
            age=self.table.age_years,
            split=self.table.split,
            labels=self._labels(),
        )

    def _labels(self) -> Joined | Columns:
        table = self.table
        if table.labels is None:
            return Columns(table.findings, table.no_finding)
        none = table.no_finding or NO_FINDING
        words = {word: (finding,) for finding, word in table.findings.items()}
        return Joined(
            table.labels,
            lambda text: text.split(table.label_separator),
            {**words, none: words.get(none, ()), "": ()},
            unknown=frozenset({""}),
            none=frozenset({none}),
            between=table.label_separator,
        )

    @property
    def columns(self) -> list[str]:
        """The columns used."""
        layout, labels = self.layout, self.layout.labels
        roles = ("image", "patient", "study", "follow_up", "path", "view", "sex", "age", "split")
        named = [getattr(layout, role) for role in roles]
        if isinstance(labels, Joined):
            named.append(labels.column)
        else:
            named += [*labels.columns.values(), labels.no_finding]
        return list(dict.fromkeys(name for name in named if name))

    def tables(self) -> list[Path]:
        path = self.root / self.table.file
        if not path.is_file():
            raise UserError(
                f"{path} does not exist. Put your table there, or correct data.root or data.table.file."
            )
        return [path]

    def read(self) -> pd.DataFrame:
        return pd.concat(self.pieces(), ignore_index=True)

    def pieces(self) -> Iterator[pd.DataFrame]:
        (path,) = self.tables()
        if not _is_parquet(path):
            yield from read_pieces(path, self.columns, self.table.separator)
            return
        import pyarrow.parquet as pq

        self._check_parquet(path)
        first = 1
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PIECE, columns=self.columns):
                piece = as_text(batch.to_pandas()[self.columns])
                yield piece.assign(row=range(first, first + len(piece)))
                first += len(piece)

    def _check_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise UserError(f"{path} is no Parquet table ({error}). Get it again.") from None
        check_columns(path, self.columns, file.schema_arrow.names)
        if not file.metadata.num_rows:
            raise UserError(f"{path} has no rows.")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Every column as the text that a CSV of it would hold: whole numbers without a point, "" for what is missing."""

    def column(values: pd.Series) -> pd.Series:
        if pd.api.types.is_float_dtype(values.dtype):
            return values.map(
                lambda value: "" if value != value else f"{value:.0f}" if value % 1 == 0 else str(value)
            ).astype("str")
        return values.astype("str").fillna("")

    return table.apply(column) if len(table.columns) else table
