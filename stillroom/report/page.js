"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, at) => {
    const text = row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
    return text === "" ? null : isNaN(text) ? text.toLowerCase() : Number(text);
  };
  heads.forEach((head, at) => head.querySelector("button")?.addEventListener("click", () => {
    const first = head.dataset.first ?? "ascending";
    const now = head.getAttribute("aria-sort");
    const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const rows = [...body.rows].map((row, place) => [value(row, at), place, row]);
    rows.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const less = typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), undefined, {numeric: true}) : a - b;
      return (order === "ascending" ? less : -less) || i - j;
    });
    body.append(...rows.map(([, , row]) => row));
  }));
}
for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", () => {
    const range = document.createRange(), chosen = getSelection();
    range.selectNodeContents(button.parentElement.querySelector("pre"));
    chosen.removeAllRanges();
    chosen.addRange(range);
    button.textContent = document.execCommand("copy") ? "copied" : "chosen";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const part of opened) part.open = true;
});
addEventListener("afterprint", () => { for (const part of opened) part.open = false; });
