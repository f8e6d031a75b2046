// Tables: a click on a head sorts by it, the buttons copy all digits as csv or LaTeX.
(() => {
  const number = (cell) => (cell.dataset.exact === undefined ? NaN : Number(cell.dataset.exact));

  function order(a, b, at, sign) {
    const [x, y] = [a.cells[at], b.cells[at]], [p, q] = [number(x), number(y)];
    if (Number.isNaN(p) !== Number.isNaN(q)) return Number.isNaN(p) ? 1 : -1; // what is no number comes last
    const words = () => x.textContent.localeCompare(y.textContent, undefined, { numeric: true });
    return sign * (Number.isNaN(p) ? words() : p - q);
  }

  function sort(table, head) {
    const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => order(a, b, head.cellIndex, up ? 1 : -1));
    body.append(...rows);
  }

  const cells = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
    const under = cell.querySelector(".under"), main = cell.querySelector(".main");
    const text = main ? main.textContent : cell.querySelector("button")?.textContent ?? cell.textContent;
    return { text: text.trim(), under: under ? under.textContent.trim().slice(1, -1) : "", exact: cell.dataset.exact,
      best: cell.classList.contains("best") };
  }));

  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const csv = (table) => cells(table).map((row) => row.map((cell) =>
    quoted((cell.exact ?? cell.text) + (cell.under ? `; ${cell.under}` : ""))).join(",")).join("\n") + "\n";

  const signs = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "²": "$^2$" };
  const plain = (text) => text.replace(/[\\~^±²&%$#_{}]/g, (sign) => signs[sign] ?? `\\${sign}`);
  function latex(table) {
    const rows = cells(table).map((row) => row.map((cell) => {
      const text = plain(cell.text) + (cell.under ? ` (${plain(cell.under)})` : "");
      return cell.best ? `\\textbf{${text}}` : text;
    }).join(" & ") + " \\\\");
    const columns = "l" + "r".repeat(table.rows[0].cells.length - 1);
    return [`\\begin{tabular}{${columns}}`, "\\toprule", rows[0], "\\midrule", ...rows.slice(1), "\\bottomrule",
      "\\end{tabular}", ""].join("\n");
  }

  async function copy(button, text) {
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      // A page that was opened as a file has no clipboard of that kind in some browsers.
      const box = document.createElement("textarea");
      box.value = text;
      document.body.append(box);
      box.select();
      done = document.execCommand("copy");
      box.remove();
    }
    const before = button.textContent;
    button.textContent = done ? "copied" : "cannot copy";
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  for (const table of document.querySelectorAll("table")) {
    for (const head of table.tHead.rows[0].cells) {
      head.querySelector("button").addEventListener("click", () => sort(table, head));
    }
    for (const button of table.closest(".table").querySelectorAll("[data-copy]")) {
      const form = button.dataset.copy === "csv" ? csv : latex;
      button.addEventListener("click", () => copy(button, form(table)));
    }
  }
})();
