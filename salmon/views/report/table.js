"use strict";
// Without scripts the page shows everything. With them tables are sorted by a click on a heading and
// filtered by a text; which one, how, and by what stands in the address, so that a view can be sent
// and "back" works. Images open in large.
const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));
const plain = (text) => ` ${text.toLowerCase().replace(/[\s|]+/g, " ").trim()} `;

/** A table with its search field, if it has one. */
class View {
  constructor(table) {
    this.table = table;
    this.headings = [...table.tHead.rows[0].cells];
    this.rows = [...table.tBodies[0].rows];
    this.texts = this.rows.map((row) => plain(
      [row.dataset.find ?? "", ...[...row.cells].map((cell) => cell.textContent)].join(" "),
    ));
    this.input = document.querySelector(`input[data-table="${CSS.escape(table.id)}"]`);
    this.sorted = "";
    this.headings.forEach((heading, column) => this.addButton(heading, column));
    if (this.input) {
      this.input.closest(".controls").hidden = false;
      this.input.addEventListener("input", () => this.changed());
    }
  }

  addButton(heading, column) {
    if (heading.classList.contains("fixed")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      this.sort(this.sorted === `${column}` ? `-${column}` : `${column}`);
      this.changed();
    });
  }

  /** Order the rows by a column, "-3" downwards by the fourth; "" leaves them as they are. */
  sort(order) {
    const column = Math.abs(Number(order)), down = order.startsWith("-");
    if (order === "" || !this.headings[column]) return;
    this.sorted = order;
    for (const heading of this.headings) heading.removeAttribute("aria-sort");
    this.headings[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const keys = new Map(this.rows.map((row) => [row, row.cells[column].textContent.trim()]));
    const compare = (a, b) => {
      const [x, y] = [number(keys.get(a)), number(keys.get(b))];
      if (x !== null && y !== null) return x - y;
      if (x !== null || y !== null) return x !== null ? -1 : 1;
      return keys.get(a).localeCompare(keys.get(b), "en", { numeric: true });
    };
    const rows = [...this.rows].sort((a, b) => (down ? compare(b, a) : compare(a, b)));
    this.table.tBodies[0].append(...rows);
  }

  /** Show the rows that hold a text as whole words or, where none does, all of its words. */
  filter(query) {
    if (!this.input) return;
    if (this.input.value !== query) this.input.value = query;
    const text = plain(query), words = text.split(" ").filter(Boolean);
    const whole = this.texts.map((row) => row.includes(text));
    const some = whole.includes(true) ? whole
      : this.texts.map((row) => words.every((word) => row.includes(word)));
    this.rows.forEach((row, i) => { row.hidden = words.length > 0 && !some[i]; });
    const shown = this.rows.filter((row) => !row.hidden).length;
    const output = this.input.closest(".controls").querySelector("output");
    output.textContent = words.length ? `${shown} of ${this.rows.length}` : "";
  }

  /** Take up what the reader did, and keep it in the address. */
  changed() {
    const query = this.input ? this.input.value : "";
    this.filter(query);
    const state = new URLSearchParams();
    if (query) state.set("q", query);
    if (this.sorted) state.set("sort", this.sorted);
    history.replaceState(null, "", `#${this.table.id}?${state}`);
  }
}

// Thousands of links, which the page does not have to spell out.
for (const link of document.querySelectorAll("td.filters a")) {
  link.className = "find";
  link.href = `#${link.closest("table").id}?q=${encodeURIComponent(link.textContent)}`;
}

const views = new Map();
for (const table of document.querySelectorAll("table.sortable")) views.set(table.id, new View(table));

function follow() {
  const [id, query] = location.hash.slice(1).split("?");
  const view = views.get(id);
  if (!view || query === undefined) return;
  const state = new URLSearchParams(query);
  view.sort(state.get("sort") ?? "");
  view.filter(state.get("q") ?? "");
  const region = view.table.closest("[role=region]");
  (view.input?.closest(".controls") ?? region).scrollIntoView();
  region.focus({ preventScroll: true });
}
addEventListener("hashchange", follow);
// A second click on the same link is no change of the address.
document.addEventListener("click", (event) => {
  if (event.target.closest("a.find")?.hash === location.hash) follow();
});
follow();

const dialog = document.createElement("dialog");
const large = document.createElement("img"), close = document.createElement("button");
close.type = "button";
close.textContent = "Close";
dialog.append(large, close);
document.body.append(dialog);
dialog.addEventListener("click", () => dialog.close());
for (const image of document.querySelectorAll("main img")) {
  image.classList.add("opens");
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  if (!image.alt) image.setAttribute("aria-label", "Enlarge the image");
  const open = () => {
    [large.src, large.alt] = [image.src, image.alt];
    dialog.setAttribute("aria-label", image.alt || "Image");
    dialog.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault(); // else the same key presses "Close"
    open();
  });
}
