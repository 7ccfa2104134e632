// The register of claims: search, choose a verdict, sort by a column. Plain script, nothing loaded.
(function () {
  const tables = [...document.querySelectorAll("article table")].filter(
    (table) => table.rows[0] && table.rows[0].cells[0].innerText.trim() === "claim"
  );
  const form = document.querySelector(".nl-find");
  if (!form || tables.length === 0) return;

  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const verdictOf = (row) => {
    const bold = [...row.querySelectorAll("strong")].pop();
    return bold ? bold.textContent.trim() : "";
  };
  for (const table of tables) table.classList.add("nl-register");

  // a phone shows each row as a block, so every cell says which column it is
  for (const table of tables) {
    const names = [...table.rows[0].cells].map((cell) => cell.textContent.trim());
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, column) => (cell.dataset.column = names[column]));
    }
  }

  const choice = form.elements.verdict;
  for (const verdict of [...new Set(rows.map(verdictOf))].sort()) {
    choice.add(new Option(verdict, verdict));
  }

  function show() {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = words.every((word) => text.get(row).includes(word)) && (!choice.value || verdictOf(row) === choice.value);
      row.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} claims`;
  }
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());

  // numbers inside a text sort as numbers: tk-3 before tk-12
  const order = new Intl.Collator("en", { numeric: true }).compare;
  for (const table of tables) {
    [...table.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].textContent.trim();
        const sorted = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)) * (down ? -1 : 1));
        table.tBodies[0].append(...sorted);
      });
    });
  }
  form.hidden = false;
  show();
})();
