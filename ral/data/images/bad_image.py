"""The error for images that cannot be used, and the size check before memory is allocated."""

from ral.data.images.limits import MAX_PIXELS
from ral.errors import UserError

# Pixels per byte of the file. Even blank PNGs of 8 or 16 bits stay below 1,033 and JPEGs below 513. A header
# that claims more is false, and some decoders would fill in the missing pixels.
MAX_PIXELS_PER_BYTE = 2048

_REMEDY = (
    "Replace the image, remove its row from the label table, or set preprocess.on_bad_image to quarantine "
    "to exclude it."
)


class BadImage(UserError):
    """An image that cannot be decoded or has no usable content; it must not be used for training.

    Args:
        name: the image and its location.
        reason: the fault, worded the same for all images with it; dataset.json counts by it.
        detail: specifics of this image.
    """

    def __init__(self, name: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{name} {reason}{f' ({detail})' if detail else ''}. {_REMEDY}")
        self.name, self.reason, self.detail = name, reason, detail

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str, str, str]]:
        return type(self), (self.name, self.reason, self.detail)  # pickled between processes


def check_extent(width: int, height: int, name: str, packed: int | None = None) -> None:
    """Reject an image with more pixels than any radiograph has, before memory is allocated.

    Args:
        width: in pixels.
        height: in pixels.
        name: the image and its location, for the error.
        packed: bytes of the compressed pixels; None if they are not compressed.

    Raises:
        BadImage: it has too many pixels, or more than its bytes can hold.
    """
    if width * height > MAX_PIXELS:
        raise BadImage(name, "is too large to be an image", f"{width} x {height} pixels")
    if packed is not None and width * height > MAX_PIXELS_PER_BYTE * packed:
        raise BadImage(name, "has too few bytes for its size", f"{width} x {height} pixels in {packed} bytes")
