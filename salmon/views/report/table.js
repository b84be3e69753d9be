"use strict";
// Without scripts the page shows everything. With them tables are sorted by a click on a heading and
// filtered by a text; which one, how, and by what stands in the address, so that a view can be sent
// and "back" works. Images open in large.
const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));
const plain = (text) => ` ${text.toLowerCase().replace(/\s+/g, " ").trim()} `;

/** A table with its search field, if it has one. */
class View {
  constructor(table) {
    this.table = table;
    this.headings = [...table.tHead.rows[0].cells];
    this.rows = [...table.tBodies[0].rows];
    // What links ask for, to the letter; and all words, for what is typed.
    this.facts = this.rows.map((row) => [
      ...JSON.parse(row.dataset.facts ?? "[]"),
      ...[...row.querySelectorAll("a")].map((link) => link.textContent),
    ]);
    this.texts = this.rows.map((row, i) => plain(
      [...this.facts[i], ...[...row.cells].map((cell) => cell.textContent)].join(" "),
    ));
    this.input = document.querySelector(`input[data-table="${CSS.escape(table.id)}"]`);
    this.state = { q: "", is: "", sort: "" };
    this.headings.forEach((heading, column) => this.addButton(heading, column));
    if (this.input) {
      this.input.closest(".controls").hidden = false;
      this.input.addEventListener("input", () => {
        this.show({ ...this.state, q: this.input.value, is: "" });
        this.keep();
      });
    }
  }

  addButton(heading, column) {
    if (heading.classList.contains("fixed")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      this.show({ ...this.state, sort: this.state.sort === `${column}` ? `-${column}` : `${column}` });
      this.keep();
    });
  }

  /** Show the rows that a state asks for, in its order. */
  show(state) {
    this.state = state;
    this.sort(state.sort);
    if (!this.input) return;
    const asked = state.is || state.q;
    if (this.input.value !== asked) this.input.value = asked;
    const chosen = state.is ? this.facts.map((facts) => facts.includes(state.is)) : this.having(state.q);
    this.rows.forEach((row, i) => { row.hidden = !chosen[i]; });
    const shown = chosen.filter(Boolean).length, all = Number(this.table.dataset.all ?? 0);
    const rest = all > this.rows.length ? ` in this table, of ${all}` : "";
    const output = this.input.closest(".controls").querySelector("output");
    output.textContent = asked ? `${shown} of ${this.rows.length}${rest}` : "";
  }

  /** Which rows hold a text as whole words or, where none does, all of its words. */
  having(query) {
    const text = plain(query), words = text.split(" ").filter(Boolean);
    const whole = this.texts.map((row) => words.length > 0 && row.includes(text));
    if (whole.includes(true)) return whole;
    return this.texts.map((row) => words.every((word) => row.includes(word)));
  }

  /** Order the rows by a column, "-3" downwards by the fourth; "" as they came. */
  sort(order) {
    const column = Math.abs(Number(order || NaN)), down = order.startsWith("-");
    for (const heading of this.headings) heading.removeAttribute("aria-sort");
    const rows = [...this.rows];
    if (this.headings[column]) {
      this.headings[column].setAttribute("aria-sort", down ? "descending" : "ascending");
      const keys = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
      const compare = (a, b) => {
        const [x, y] = [number(keys.get(a)), number(keys.get(b))];
        if (x !== null && y !== null) return x - y;
        if (x !== null || y !== null) return x !== null ? -1 : 1;
        return keys.get(a).localeCompare(keys.get(b), "en", { numeric: true });
      };
      rows.sort((a, b) => (down ? compare(b, a) : compare(a, b)));
    }
    this.table.tBodies[0].append(...rows);
  }

  /** Keep in the address what the reader did, once it rests. */
  keep() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      const asked = Object.entries(this.state).filter(([, text]) => text);
      history.replaceState(null, "", `#${this.table.id}?${new URLSearchParams(asked)}`);
    }, 200);
  }
}

// Thousands of links, which the page does not have to spell out.
for (const link of document.querySelectorAll("td.filters a")) {
  link.className = "find";
  link.href = `#${link.closest("table").id}?is=${encodeURIComponent(link.textContent)}`;
}

const views = new Map();
for (const table of document.querySelectorAll("table.sortable")) views.set(table.id, new View(table));

/** Show what the address asks for: one table in some state, and the others as they came. */
function follow() {
  const [id, ...rest] = location.hash.slice(1).split("?");
  const view = rest.length ? views.get(id) : undefined;
  if (id && !view) return; // a heading
  const asked = new URLSearchParams(rest.join("?"));
  for (const each of views.values()) {
    const value = (name) => (each === view && asked.get(name)) || "";
    const state = { q: value("q"), is: value("is"), sort: value("sort") };
    if (each === view || Object.values(each.state).some(Boolean)) each.show(state);
  }
  if (!view) return;
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
