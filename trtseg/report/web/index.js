
"use strict";
const find = (selector) => document.querySelector(selector);
const body = find(".cases tbody"), last = find(".cases thead tr").cells.length - 1, rows = [...body.rows], inputs = [...document.querySelectorAll("input[data-column]")];
const values = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.dataset.value)]));

for (const heading of document.querySelectorAll(".cases thead th")) {
  const column = heading.cellIndex, isText = column === 0 || column === last;
  heading.querySelector("button").addEventListener("click", () => {
    const up = heading.getAttribute("aria-sort") ? heading.getAttribute("aria-sort") !== "ascending" : isText;
    document.querySelectorAll(".cases thead th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const compare = (a, b) => (isText ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    rows.sort((a, b) => (up ? 1 : -1) * compare(values.get(a)[column], values.get(b)[column]));
    body.append(...rows);
  });
}

function filter() {
  const name = find("#name").value.toLowerCase(), warning = find("#warning").value;
  let shown = 0;
  for (const row of rows) {
    const texts = values.get(row), codes = texts[last] ? texts[last].split(" ") : [];
    const warned = { "": true, none: !codes.length, any: codes.length > 0 }[warning] ?? codes.includes(warning);
    const inside = inputs.every((input) => !input.value ||
      ("least" in input.dataset ? +texts[input.dataset.column] >= +input.value : +texts[input.dataset.column] <= +input.value));
    row.hidden = !(warned && inside && texts[0].toLowerCase().includes(name));
    shown += !row.hidden;
  }
  find("#count").textContent = shown === rows.length ? `${shown} case${shown === 1 ? "" : "s"}` : `${shown} of ${rows.length} cases`;
}
find("form").addEventListener("input", filter);
find("form").addEventListener("reset", () => setTimeout(filter));
find("form").addEventListener("submit", (event) => event.preventDefault());
addEventListener("pageshow", filter); // a browser that comes back fills the form as it was
