"""Draws docs/layers.svg: which package imports which, in layers, from the imports of ral/, tasks/ and flows/.

python docs/layers.py

Single modules of ral/ (errors, files, labels, …) are one box, "base". A package stands one row above the
highest of those that it imports. An arrow that follows from two others is left out.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("ral", "tasks", "flows")
BASE = "base"

Graph = Mapping[str, set[str]]

# Pixels of the picture.
BOX, HEIGHT, GAP, ROW, MARGIN = 116, 34, 28, 92, 20
# An arrow that passes a row takes this much of it.
LANE = 14


def package_of(module: str) -> str:
    """The box of a module by its full name: its package in ral/, or tasks, or flows."""
    parts = module.split(".")
    if parts[0] != "ral":
        return parts[0]
    return parts[1] if len(parts) > 1 and (ROOT / "ral" / parts[1]).is_dir() else BASE


def imports() -> Iterator[tuple[str, str]]:
    """Every import between the project's own modules, wherever it stands in the code: (importing, imported) module."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module in ROOMS:  # `from ral import runs`
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                yield from ((own, name) for name in names if name.split(".")[0] in ROOMS)


def graph() -> dict[str, set[str]]:
    """Package -> the other packages that it imports; packages in alphabetical order."""
    found: dict[str, set[str]] = {}
    for importing, imported in imports():
        own, other = package_of(importing), package_of(imported)
        found.setdefault(own, set())
        found.setdefault(other, set())
        if own != other:
            found[own].add(other)
    return dict(sorted(found.items()))


def levels(packages: Graph) -> dict[str, int]:
    """Row of each package: 0 for one that imports none, else one above the highest that it imports.

    Raises:
        ValueError: packages import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(packages):
        ready = [name for name in packages if name not in level and packages[name] <= level.keys()]
        if not ready:
            left = sorted(packages.keys() - level.keys())
            raise ValueError(f"these packages import each other in a circle: {', '.join(left)}")
        level |= {name: 1 + max((level[other] for other in packages[name]), default=-1) for name in ready}
    return level


def shortest(packages: Graph) -> list[tuple[str, str]]:
    """The imports that do not follow from others, as (importing, imported) packages."""

    def reach(name: str) -> set[str]:
        return packages[name].union(*(reach(other) for other in packages[name]))

    return [
        (name, other)
        for name in packages
        for other in sorted(packages[name])
        if not any(other in reach(between) for between in packages[name])
    ]


def arrange(
    level: Mapping[str, int], arrows: list[tuple[str, str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Rows from the lowest up, and the items that each arrow passes from its package down.

    An item of a row is a package or, named `a>b@row`, the lane of an arrow that passes the row. Items move
    towards the middle of those that they are joined with; ties keep their order, so the picture has the same
    bytes everywhere.
    """
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for name, number in level.items():
        rows[number].append(name)
    paths = []
    for name, other in arrows:
        lanes = {f"{name}>{other}@{number}": number for number in range(level[name] - 1, level[other], -1)}
        for lane, number in lanes.items():
            rows[number].append(lane)
        paths.append([name, *lanes, other])
    joined: dict[str, list[str]] = {item: [] for row in rows for item in row}
    for path in paths:
        for upper, lower in pairwise(path):
            joined[upper].append(lower)
            joined[lower].append(upper)
    for _ in range(20):
        for row in rows:
            x = centres(rows)
            near = {item: [x[other] for other in joined[item]] or [x[item]] for item in row}
            row.sort(key=lambda item: sum(near[item]) / len(near[item]))
    return rows, paths


def centres(rows: list[list[str]]) -> dict[str, float]:
    """Horizontal middle of every item, each row centred on 0."""
    x = {}
    for row in rows:
        widths = [LANE if ">" in item else BOX for item in row]
        left = -(sum(widths) + GAP * (len(row) - 1)) / 2
        for item, width in zip(row, widths, strict=True):
            x[item] = left + width / 2
            left += width + GAP
    return x


def draw(packages: Graph) -> str:
    """The picture as SVG text."""
    level = levels(packages)
    rows, paths = arrange(level, shortest(packages))
    x = centres(rows)
    half = max(abs(value) for value in x.values()) + BOX / 2 + MARGIN
    height = ROW * (len(rows) - 1) + HEIGHT + 2 * MARGIN
    top = {
        item: MARGIN + ROW * (len(rows) - 1 - number) for number, row in enumerate(rows) for item in row
    }  # of the item's box
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * half:.0f}" height="{height}" '
        f'viewBox="0 0 {2 * half:.0f} {height}" font-family="sans-serif" font-size="14" text-anchor="middle">',
        "<title>Packages in layers; an arrow means imports</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{2 * half:.0f}" height="{height}" fill="#fff"/>',
    ]
    for path in paths:
        points = [(half + x[path[0]], top[path[0]] + HEIGHT)]
        for item in path[1:-1]:
            points += [(half + x[item], top[item]), (half + x[item], top[item] + HEIGHT)]
        points.append((half + x[path[-1]], top[path[-1]]))
        text = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        lines.append(
            f'<polyline points="{text}" fill="none" stroke="#666" stroke-linejoin="round" marker-end="url(#head)"/>'
        )
    for name in packages:
        left, middle = half + x[name] - BOX / 2, half + x[name]
        lines += [
            f'<rect x="{left:.1f}" y="{top[name]}" width="{BOX}" height="{HEIGHT}" rx="5" '
            'fill="#e8eef7" stroke="#35618f"/>',
            f'<text x="{middle:.1f}" y="{top[name] + HEIGHT / 2 + 5:.1f}">{escape(name)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (Path(__file__).parent / "layers.svg").write_text(draw(graph()))
