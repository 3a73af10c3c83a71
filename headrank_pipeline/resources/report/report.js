"use strict";
// Headings are buttons, so that Tab, Enter and Space work as a click does. Cells without a value stay at the end.
function value(row, column, numeric) {
  const cell = row.cells[column];
  if (!numeric) return cell.textContent;
  return cell.dataset.order === undefined ? NaN : Number(cell.dataset.order);
}
function compare(a, b, numeric) {
  if (!numeric) return a.localeCompare(b, undefined, { numeric: true });
  if (Number.isNaN(a) || Number.isNaN(b)) return 0;
  return a < b ? -1 : a > b ? 1 : 0;
}
function sortBy(table, heading) {
  const column = heading.cellIndex;
  const numeric = heading.classList.contains("number");
  const now = heading.getAttribute("aria-sort");
  const descending = now === null ? numeric : now === "ascending";  // numbers: the largest first
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = Array.from(table.tBodies[0].rows, row => ({ row, key: value(row, column, numeric) }));
  const missing = item => Number.isNaN(item.key);
  rows.sort((a, b) => missing(a) - missing(b) || (descending ? -1 : 1) * compare(a.key, b.key, numeric));
  table.tBodies[0].append(...rows.map(item => item.row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
  }
}
