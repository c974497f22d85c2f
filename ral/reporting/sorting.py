"""The only script of the report: sorts a table by a clicked column header. The report works without it.

The page's Content-Security-Policy allows only this script, by its hash.
"""

import base64
import hashlib

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const numbers = head.classList.contains("r");
    const key = row => {
      const text = row.cells[column].textContent;
      return numbers ? parseFloat(text.replaceAll(",", "")) : text;
    };
    const sort = () => {
      const last = head.getAttribute("aria-sort");
      const down = last ? last === "ascending" : numbers;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => (numbers ? a - b : a.localeCompare(b)) * (down ? -1 : 1);
      const rows = [...table.tBodies[0].rows];
      const lacking = rows.filter(row => Number.isNaN(key(row)));
      const others = rows.filter(row => !Number.isNaN(key(row)));
      others.sort((a, b) => compare(key(a), key(b)));
      table.tBodies[0].append(...others, ...lacking);
    };
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", sort);
    head.replaceChildren(button);
  });
}
"""


def policy() -> str:
    """The script-src of the page's Content-Security-Policy that allows `SCRIPT`."""
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
