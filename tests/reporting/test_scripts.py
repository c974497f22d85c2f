"""The scripts of the report; the one that sorts a table is run by Node on a table that is just enough of one."""

import json
import shutil
import subprocess

import pytest

from ral.reporting.scripts import SCRIPTS, SORT, policy

TABLE = """
const element = text => ({
  textContent: text, attributes: {}, classList: { contains: name => name === "r" && text !== "Finding" },
  getAttribute(name) { return this.attributes[name] ?? null; },
  setAttribute(name, value) { this.attributes[name] = value; },
  removeAttribute(name) { delete this.attributes[name]; },
  replaceChildren(child) { this.child = child; },
  addEventListener(_, run) { this.click = run; },
});
const heads = ["Finding", "Positives"].map(element);
const body = {
  rows: [["b", "1,200"], ["c", "not estimable"], ["a", "90 (80–100)"], ["d", "0.5 %"]]
    .map(cells => ({ cells: cells.map(element) })),
  append(...rows) { this.rows = rows; },
};
const table = { tHead: { rows: [{ cells: heads }] }, tBodies: [body] };
globalThis.document = { querySelectorAll: () => [table], createElement: () => element("") };
"""


@pytest.mark.skipif(not shutil.which("node"), reason="no node to run the script")
@pytest.mark.parametrize(
    ("clicks", "order"),
    [
        ([], "bcad"),
        ([0], "abcd"),
        ([0, 0], "dcba"),
        ([1], "badc"),
        ([1, 1], "dabc"),  # what has no number stays last
        ([1, 0], "abcd"),
    ],
)
def test_order_after_clicks(clicks: list[int], order: str) -> None:
    after = f"""
for (const column of {json.dumps(clicks)}) heads[column].child.click();
console.log(body.rows.map(row => row.cells[0].textContent).join(""), heads.map(head => head.child.textContent).join());
"""
    done = subprocess.run(
        ["node", "-e", TABLE + SORT + after],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.split() == [order, "Finding,Positives"], done.stderr


def test_the_policy_is_a_hash_of_each_script() -> None:
    hashes = policy().split()
    assert len(hashes) == len(SCRIPTS) == len(set(hashes))
    for digest in hashes:
        assert digest.startswith("'sha256-")
        assert len(digest) == len("'sha256-'") + 44
    assert not any("</" in script for script in SCRIPTS)
