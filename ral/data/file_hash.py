"""Size and content hash of a raw file, as the steps manifest and validate write them."""

from ral.records import Record


class FileHash(Record):
    """Size and content hash of a file."""

    bytes: int
    sha256: str
