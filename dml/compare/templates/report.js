"use strict";

const value = (row, column) => {
  const text = row.cells[column].dataset.value;
  return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
};

// What is missing stays last, whichever way the others go.
const compare = (one, other, sign) => {
  if (one === null || other === null) return (one === null) - (other === null);
  return sign * (typeof one === "string" ? one.localeCompare(other) : one - other);
};

const sort = (table, header) => {
  const down = header.getAttribute("aria-sort") !== "descending";
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const column = header.cellIndex;
  rows.sort((one, other) => compare(value(one, column), value(other, column), down ? -1 : 1));
  table.tBodies[0].append(...rows);
};

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header));
    header.append(button);
  }
}
