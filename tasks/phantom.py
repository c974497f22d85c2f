"""Draw the embedded phantom data set, in NIH ChestX-ray14's own layout.

python -m tasks.phantom
"""

from pathlib import Path

from ral.config.base import load
from ral.config.data import PhantomParams
from tasks import step


def run(params: PhantomParams, out: Path) -> None:
    """Write label table, official lists and the archive of films into `out`."""
    from ral.data.phantom.archive import write_phantom
    from ral.files import new_folder
    from ral.progress import Progress

    with (
        new_folder(out) as draft,
        Progress("drawing phantom films", params.phantom.films, "films") as progress,
    ):
        write_phantom(draft, params.phantom, progress.add)


if __name__ == "__main__":
    options = step.parse(__doc__, {"out": ("data/phantom", "folder to write")})
    step.main("phantom", lambda: run(load(options.params, PhantomParams), options.out))
