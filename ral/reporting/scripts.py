"""The scripts of the report: sort a table, open sections, fill in the run. The report works without them.

The page's Content-Security-Policy allows only these scripts, by their hashes.
"""

import base64
import hashlib

# Sorts a table by a clicked column header.
SORT = """
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

# Opens the section that a link leads to, and all of them by a button.
SECTIONS = """
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(reveal));
const toggle = document.createElement("button");
toggle.type = "button";
toggle.textContent = "Open all sections";
toggle.addEventListener("click", () => {
  const open = toggle.textContent.startsWith("Open");
  for (const section of document.querySelectorAll("details.section")) section.open = open;
  toggle.textContent = open ? "Close all sections" : "Open all sections";
});
document.querySelector("nav").append(toggle);
reveal();
"""

# Replaces what run.css shows by text that can be selected and searched.
RUN = """
const style = getComputedStyle(document.documentElement);
for (const place of document.querySelectorAll("[data-run]")) {
  const value = style.getPropertyValue("--run-" + place.dataset.run).trim();
  if (!value) continue;
  place.textContent = JSON.parse(value);
  place.removeAttribute("data-run");
}
"""

SCRIPTS = (SORT, SECTIONS, RUN)


def policy() -> str:
    """The script-src of the page's Content-Security-Policy that allows `SCRIPTS`."""
    digests = (hashlib.sha256(script.encode()).digest() for script in SCRIPTS)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
