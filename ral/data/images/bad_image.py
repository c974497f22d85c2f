"""An image whose pixels cannot be had or are worth nothing, and the check of its size that comes before memory is taken."""

from ral.data.images.limits import MOST_PIXELS
from ral.errors import UserError

# Pixels of an image for each byte of its file. PNG of 8 or 16 bits cannot reach 1,033 and JPEG not 513, even if blank: more
# is a claim, and some decoders fill in what is missing.
MOST_PIXELS_PER_BYTE = 2048

_REMEDY = (
    "Replace the image, take its row out of the label table, or set preprocess.on_bad_image to quarantine to go on "
    "without it."
)


class BadImage(UserError):
    """An image whose pixels cannot be had or are worth nothing; its label must not be trained on.

    Args:
        name: which image, and where it is.
        reason: what is wrong, the same words for every image with that fault; quarantine.parquet counts by it.
        detail: what was found in this one.
    """

    def __init__(self, name: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{name} {reason}{f' ({detail})' if detail else ''}. {_REMEDY}")
        self.name, self.reason, self.detail = name, reason, detail

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str, str, str]]:
        return type(self), (self.name, self.reason, self.detail)  # it travels between processes


def check_extent(width: int, height: int, name: str, packed: int | None = None) -> None:
    """Refuse an image that claims more pixels than any image has, before memory is taken for them.

    Args:
        width: in pixels.
        height: in pixels.
        name: where the image comes from, for the error.
        packed: bytes of the compressed pixels; None where they are not compressed.

    Raises:
        BadImage: it does, or claims more than its bytes can hold.
    """
    if width * height > MOST_PIXELS:
        raise BadImage(name, "is too large to be an image", f"{width} x {height} pixels")
    if packed is not None and width * height > MOST_PIXELS_PER_BYTE * packed:
        raise BadImage(name, "has too few bytes for its size", f"{width} x {height} pixels in {packed} bytes")
