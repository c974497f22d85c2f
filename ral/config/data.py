"""Parameters of the data: phantom films, the source, the split, the pixels."""

import difflib
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ral.config.base import Section
from ral.labels import NIH_FINDINGS

View = Literal["PA", "AP", "LATERAL"]


class PhantomConfig(Section):
    """The phantom films drawn when no real data is given."""

    films: int = Field(ge=200)
    """How many films to draw; a patient has one to twelve of them."""
    size: int = Field(ge=48)
    """Height and width of a film in pixels."""
    floor: float = Field(gt=0, lt=0.2)
    """Least prevalence of a finding: rarer ones of NIH's table are raised to it so that each can be scored."""
    seed: int = Field(ge=0, lt=2**31)
    """Seed of everything drawn; the same seed gives the same bytes."""


class DataConfig(Section):
    """Which films and labels are used."""

    source: Literal["nih"]
    """Layout of the folder `root`: nih is NIH ChestX-ray14 as NIH ships it."""
    root: str = Field(min_length=1)
    """Folder with the table, the official lists and the films (archives, or an unpacked images/)."""
    missing_films: Literal["fail", "drop"]
    """A row of the table without a film is an error (fail), or is left out and counted (drop)."""
    views: list[View] = Field(min_length=1)
    """Views kept: PA and AP are frontal. Films of other views are left out and counted."""
    findings: list[str] | None = Field(default=None, min_length=1)
    """Findings to train on, in this order; null means all fourteen of the source."""

    @field_validator("findings")
    @classmethod
    def _known(cls, names: list[str] | None) -> list[str] | None:
        for name in names or []:
            if name not in NIH_FINDINGS:
                near = difflib.get_close_matches(name, NIH_FINDINGS, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                raise ValueError(f"unknown finding `{name}`.{hint} Allowed: {', '.join(NIH_FINDINGS)}")
        return names

    @field_validator("findings", "views")
    @classmethod
    def _once(cls, names: list[str] | None) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise ValueError("a name stands there twice: name each once")
        return names


class SplitConfig(Section):
    """How patients are shared out to train, val and test."""

    method: Literal["official", "hash"]
    """official: the lists that come with the data, validation cut from the training list by patient hash.
    hash: by a hash of the patient id, so that a new patient never moves an old one."""
    val: float = Field(gt=0, lt=0.5)
    """Share of patients for validation (official: of the patients on the training list)."""
    test: float = Field(gt=0, lt=0.5)
    """Share of patients for test (hash only; the official test list is fixed)."""
    seed: int = Field(ge=0, lt=2**31)
    """Another seed gives another assignment of patients."""

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> "SplitConfig":
        if self.val + self.test >= 0.9:
            raise ValueError("val + test must be below 0.9, so that at least a tenth of the patients train")
        return self


class PreprocessConfig(Section):
    """What becomes of a film's pixels."""

    size: int = Field(ge=16, le=2048)
    """Height and width of a prepared film in pixels, reached by area averaging."""
    shard_films: int = Field(ge=1)
    """Most films in one pixel shard; a shard of large films ends earlier, at 512 MiB."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How a film that is no square becomes one: stretched, its shorter side padded with black, or its longer side
    cut evenly."""
    on_bad_film: Literal["fail", "quarantine"] = "fail"
    """A film that cannot be decoded, or is blank, is an error (fail), or is left out, label and all, with its reason in
    quarantine.parquet."""
    max_bad_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Largest share of films that may be quarantined; more of them are an error, for then something else is wrong."""


class PhantomParams(Section):
    """Read by the step phantom."""

    phantom: PhantomConfig


class ValidateParams(Section):
    """Read by the step validate."""

    data: DataConfig


class PreprocessParams(Section):
    """Read by the step preprocess."""

    data: DataConfig
    split: SplitConfig
    preprocess: PreprocessConfig
