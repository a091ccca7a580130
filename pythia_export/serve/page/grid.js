// A table of cells that arrow keys go through: one of them is in the order of Tab (a roving tabindex), as the pattern
// "grid" of the ARIA practices has it.

export function made(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const PAGE = 8; // rows or columns that a page key passes

export class Grid {
  // `choose(row, column)` is called when a person goes to a cell.
  constructor(table, choose) {
    this.table = table;
    this.cells = [];
    table.role = "grid";
    table.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-row]");
      if (cell) choose(Number(cell.dataset.row), Number(cell.dataset.column));
    });
    table.addEventListener("keydown", (event) => {
      const to = event.altKey || event.metaKey ? null : this.#reached(event);
      if (!to) return;
      event.preventDefault();
      choose(...to);
      this.cell(...to).focus({ preventScroll: true });
      this.#reveal(this.cell(...to));
    });
  }

  // `corner`, `across` and `down` are texts or elements of the heads; `cell(row, column)` makes a td.
  fill(caption, corner, across, down, cell) {
    this.cells = [];
    this.chosen = undefined;
    const top = made("tr");
    const head = (content, scope) => {
      const th = made("th");
      th.scope = scope;
      th.append(content);
      return th;
    };
    top.append(head(corner, "col"), ...across.map((content) => head(content, "col")));
    const thead = made("thead");
    thead.append(top);
    const tbody = made("tbody");
    down.forEach((content, row) => {
      const line = made("tr");
      const cells = across.map((_, column) => {
        const td = cell(row, column);
        td.role = "gridcell";
        td.tabIndex = -1;
        td.dataset.row = row;
        td.dataset.column = column;
        td.setAttribute("aria-selected", "false");
        return td;
      });
      this.cells.push(cells);
      line.append(head(content, "row"), ...cells);
      tbody.append(line);
    });
    this.table.setAttribute("aria-label", caption);
    this.table.replaceChildren(thead, tbody);
  }

  cell(row, column) {
    return this.cells[row]?.[column];
  }

  choose(row, column) {
    const set = (cell, is) => {
      if (!cell) return;
      cell.classList.toggle("chosen", is);
      cell.setAttribute("aria-selected", String(is));
      cell.tabIndex = is ? 0 : -1;
    };
    set(this.chosen, false);
    this.chosen = this.cell(row, column);
    set(this.chosen, true);
    if (this.chosen) this.#reveal(this.chosen);
  }

  #reached({ key, ctrlKey, target }) {
    const at = target.closest("[data-row]");
    if (!at) return null;
    const [row, column] = [Number(at.dataset.row), Number(at.dataset.column)];
    const [rows, columns] = [this.cells.length - 1, this.cells[0].length - 1];
    const moves = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      PageUp: [row - PAGE, column], PageDown: [row + PAGE, column],
      Home: [ctrlKey ? 0 : row, 0], End: [ctrlKey ? rows : row, columns],
    };
    if (!(key in moves) || (ctrlKey && key !== "Home" && key !== "End")) return null;
    const within = (i, last) => Math.max(0, Math.min(last, i));
    return [within(moves[key][0], rows), within(moves[key][1], columns)];
  }

  // Scroll the table, and not the page; its heads stay where they are and cover what is behind them.
  #reveal(cell) {
    const outer = this.table.parentElement;
    const [box, seen] = [cell, outer].map((element) => element.getBoundingClientRect());
    const corner = this.table.tHead.rows[0].cells[0].getBoundingClientRect();
    if (box.left < seen.left + corner.width) outer.scrollLeft -= seen.left + corner.width - box.left + 4;
    else if (box.right > seen.right) outer.scrollLeft += box.right - seen.right + 4;
    if (box.top < seen.top + corner.height) outer.scrollTop -= seen.top + corner.height - box.top + 4;
    else if (box.bottom > seen.bottom) outer.scrollTop += box.bottom - seen.bottom + 4;
  }
}

// A table to be read: heads and rows of texts or elements; the first cell of a row is its head.
export function readable(table, caption, heads, rows) {
  const line = (cells, tag) => {
    const tr = made("tr");
    cells.forEach((content, i) => {
      const cell = made(tag === "th" || i === 0 ? "th" : "td");
      if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
      cell.append(content);
      tr.append(cell);
    });
    return tr;
  };
  const [top, body] = [made("thead"), made("tbody")];
  top.append(line(heads, "th"));
  body.append(...rows.map((row) => line(row, "td")));
  const said = made("caption");
  said.append(caption);
  table.replaceChildren(said, top, body);
}
