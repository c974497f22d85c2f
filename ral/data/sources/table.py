"""Your own data: any CSV or Parquet table, with its columns configured in `data.table`."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ral.config.data import DataConfig
from ral.data.sources.base import SEXES, VIEWS, ColumnLabels, DelimitedLabels, Layout, Source
from ral.data.sources.parquet import is_parquet, parquet_files, read_parquet_chunks
from ral.data.sources.text import read_chunks
from ral.errors import UserError
from ral.labels import NO_FINDING


class Reader(Source):
    """Images are at the paths in the table, or in images/ or archives images* with the image id as file name."""

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
            photometric=self.table.photometric,
            labels=self._labels(),
            one_spelling=False,
            patients_known=self.table.patient_id != self.table.image_id,
        )

    def _labels(self) -> DelimitedLabels | ColumnLabels:
        table = self.table
        if table.labels is None:
            return ColumnLabels(table.findings, table.no_finding)
        none = table.no_finding or NO_FINDING
        words = {word: (finding,) for finding, word in table.findings.items()}
        return DelimitedLabels(
            table.labels,
            lambda text: text.split(table.label_separator),
            {**words, none: words.get(none, ()), "": ()},
            unknown=frozenset({""}),
            none=frozenset({none}),
            between=table.label_separator,
        )

    @property
    def columns(self) -> list[str]:
        """The columns of the table that are used."""
        layout, labels = self.layout, self.layout.labels
        roles = ("image", "patient", "study", "follow_up", "path", "view", "sex", "age", "split")
        named = [getattr(layout, role) for role in (*roles, "photometric")]
        if isinstance(labels, DelimitedLabels):
            named.append(labels.column)
        else:
            named += [*labels.columns.values(), labels.no_finding]
        return list(dict.fromkeys(name for name in named if name))

    def tables(self) -> list[Path]:
        path = self.root / self.table.file
        if not path.exists():
            raise UserError(
                f"{path} does not exist. Put your table there, or correct data.root or data.table.file."
            )
        return parquet_files(path) if is_parquet(path) else [path]

    def named(self) -> str:
        return str(self.root / self.table.file)  # rows are numbered over all parts

    def read(self) -> pd.DataFrame:
        return pd.concat(self.iter_chunks(), ignore_index=True)

    def iter_chunks(self) -> Iterator[pd.DataFrame]:
        self.tables()
        path = self.root / self.table.file
        if is_parquet(path):
            return read_parquet_chunks(path, self.columns)
        return read_chunks(path, self.columns, self.table.separator)
