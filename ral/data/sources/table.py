"""Your own data: any CSV or Parquet table, with its columns configured in `data.table`.

`python -m ral.data.sources.table FILE.csv` reads a table and writes that section (`ral.data.wizard.command`).
"""

import sys

if __name__ == "__main__":  # before pandas is imported, so that --help is quick
    from ral.data.wizard.command import main

    main()
    sys.exit()

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
            hints=self._hints(),
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

    def _hints(self) -> dict[str, str]:
        """For the messages of validation: which key names a column, or gives its words a meaning."""
        table = self.table
        named = {
            role: f"data.table.{key} names the column."
            for role, key in {
                "image": "image_id", "patient": "patient_id", "follow_up": "follow_up", "path": "path",
                "age": "age_years", "split": "split", "photometric": "photometric",
            }.items()
        }  # fmt: skip
        if table.labels is None:
            labels = "data.table.findings names the columns of the findings, data.table.no_finding that of No Finding."
            no_finding = "data.table.no_finding names the column."
        else:
            labels = (
                "data.table.findings names the word of each finding in the column, data.table.no_finding the word for "
                f"No Finding, and data.table.label_separator, {table.label_separator!r} now, what stands between words."
            )
            no_finding = "data.table.no_finding names the word."
        return named | {
            "sex": "Or map the words of your table in data.table.sexes, such as {männlich: M, divers: null}.",
            "view": "Or map the words of your table in data.table.views, such as {liegend: AP, seitlich: LATERAL}.",
            "labels": labels,
            "no_finding": no_finding,
        }

    @property
    def columns(self) -> list[str]:
        """The columns of the table that are used."""
        return list(self.keys)

    @property
    def keys(self) -> dict[str, str]:
        """Column that is used -> key of params.yaml that names it."""
        table = self.table
        roles = (
            "image_id",
            "patient_id",
            "study_id",
            "follow_up",
            "path",
            "view",
            "sex",
            "age_years",
            "split",
        )
        named = [(getattr(table, key), f"data.table.{key}") for key in (*roles, "photometric")]
        if table.labels is not None:
            named.append((table.labels, "data.table.labels"))
        else:
            named += [(column, "data.table.findings") for column in table.findings.values()]
            named.append((table.no_finding, "data.table.no_finding"))
        keys: dict[str, str] = {}
        for column, key in named:
            if column:
                keys.setdefault(column, key)
        return keys

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
            return read_parquet_chunks(path, self.columns, self.keys)
        return read_chunks(path, self.columns, self.table.separator, self.keys)
