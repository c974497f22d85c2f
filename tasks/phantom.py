"""Draw the embedded phantom data set, in NIH ChestX-ray14's own layout.

    python -m tasks.phantom

If other data is used (location.json, written by the step manifest), nothing is drawn and the folder only has a note.
"""

import logging
from pathlib import Path

from ral import artifacts
from ral.config.data import PhantomParams
from tasks import step

logger = logging.getLogger("tasks.phantom")

NOT_DRAWN = "The data lies elsewhere: no phantom images are drawn.\n"


def run(params: PhantomParams, location: Path, out: Path) -> None:
    """Write label table, official lists and the archive of images into `out`, or only a note if other data is used."""
    from ral.files import atomic_directory, read_json
    from ral.phantom.archive import write_phantom
    from ral.progress import Progress

    if not read_json(location)["phantom"]:
        with atomic_directory(out) as draft:
            (draft / "not_drawn.txt").write_text(NOT_DRAWN, encoding="utf-8")
        logger.info("%s", NOT_DRAWN.strip())
        return
    with (
        atomic_directory(out) as draft,
        Progress("drawing phantom images", params.phantom.images, "images") as progress,
    ):
        write_phantom(draft, params.phantom, progress.add)


if __name__ == "__main__":
    step.command(
        "phantom", __doc__, run, PhantomParams,
        {
            "location": (artifacts.LOCATION, "whether this data set is used"),
            "out": (artifacts.PHANTOM, "folder to write"),
        },
    )  # fmt: skip
