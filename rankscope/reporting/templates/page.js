"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, at) => row.cells[at].title || row.cells[at].textContent;
  const number = (text) => {
    const [, mantissa, times, power] = /^<?\s*([−-]?[\d.,]+(?:e[+-]?\d+)?)(·10)?([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?/.exec(text) || [];
    if (mantissa === undefined) return NaN;
    const value = Number(mantissa.replace("−", "-").replaceAll(",", ""));
    if (!power) return value;
    const digits = [...power].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c) - 1);
    const exponent = digits.reduce((sum, d) => (d < 0 ? sum : 10 * sum + d), 0);
    return (times ? value : 1) * 10 ** (digits[0] < 0 ? -exponent : exponent);
  };
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === (head.className === "n" ? "descending" : "ascending");
    const order = head.className === "n" ? (down ? 1 : -1) : (down ? -1 : 1);
    const rows = [...body.rows].map((row) => [row, head.className === "n" ? number(key(row, at)) : key(row, at)]);
    const missing = ([, k]) => Number.isNaN(k) || k === "–";
    rows.sort((a, b) => missing(a) - missing(b) || order * (typeof a[1] === "number" ? a[1] - b[1] || 0 : a[1].localeCompare(b[1], "en", { numeric: true })));
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
    body.append(...rows.map(([row]) => row));
  }));
  if (body.rows.length < 20) continue;
  const field = Object.assign(document.createElement("input"), { type: "search", placeholder: "Filter rows" });
  field.setAttribute("aria-label", "Filter the rows of: " + table.caption.textContent);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  table.parentElement.before(field);
}
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
