// Data of the page, and lists that draw only the rows that are seen.

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page-data").textContent);
const unpacked = new Map();

/** The packed data of that name; unpacked when it is first asked for. */
function unpack(name) {
  if (!unpacked.has(name)) unpacked.set(name, inflate(byId("packed-" + name)));
  return unpacked.get(name);
}

async function inflate(element) {
  if (!element) return null;
  const text = atob(element.textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** An element with a class and text, which is never taken for markup. */
function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== "") element.textContent = text;
  return element;
}

function link(text, go) {
  const button = make("button", "link", text);
  button.type = "button";
  button.addEventListener("click", go);
  return button;
}

class List {
  /**
   * box: the element that scrolls; render(number) makes a row; select(number) is told which row is
   * the active one, open(number) that it was opened by Enter or a click.
   */
  constructor(box, { render, select = () => {}, open = () => {}, height = 22 }) {
    Object.assign(this, { box, render, select, open, height, count: 0, active: -1 });
    box.classList.add("list");
    box.tabIndex = 0;
    box.setAttribute("role", "listbox");
    this.space = box.appendChild(make("div", "space"));
    this.waiting = false;
    box.addEventListener("scroll", () => this.later());
    box.addEventListener("keydown", (event) => this.key(event));
    // Pressing counts, not the click: rows may be drawn anew before the button is released.
    this.space.addEventListener("mousedown", (event) => {
      if (event.button === 0) this.press(event);
    });
    this.space.addEventListener("click", (event) => {
      if (event.detail === 0) this.press(event); // not by a mouse
    });
    new ResizeObserver(() => this.later()).observe(box);
  }

  /** Show so many rows; the active one is in the middle where it can be. */
  show(count, active = -1) {
    this.count = count;
    this.space.style.height = count * this.height + "px";
    this.active = -1;
    if (active < 0) {
      this.box.scrollTop = 0;
      this.draw();
    } else this.activate(active, true);
  }

  press(event) {
    const row = event.target.closest(".row");
    if (!row || event.target.closest("button")) return;
    this.activate(Number(row.dataset.number));
    this.open(this.active);
  }

  activate(number, centred = false) {
    if (this.count === 0) return;
    this.active = Math.max(0, Math.min(this.count - 1, number));
    const top = this.active * this.height;
    const room = this.box.clientHeight;
    if (centred) this.box.scrollTop = top - room / 2;
    else if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + this.height > this.box.scrollTop + room)
      this.box.scrollTop = top + this.height - room;
    this.draw();
    this.select(this.active);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.box) return;
    const leaf = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: leaf, PageUp: -leaf };
    if (event.key in moves) this.activate(this.active + moves[event.key]);
    else if (event.key === "Home") this.activate(0);
    else if (event.key === "End") this.activate(this.count - 1);
    else if (event.key === "Enter" || event.key === " ") this.open(this.active);
    else return;
    event.preventDefault();
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - 8);
    const last = Math.min(
      this.count, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + 8);
    const rows = [];
    for (let number = first; number < last; number++) {
      const row = this.render(number);
      row.classList.add("row");
      row.id = `${this.box.id}-row-${number}`;
      row.dataset.number = number;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", number === this.active);
      row.setAttribute("aria-posinset", number + 1);
      row.setAttribute("aria-setsize", this.count);
      row.style.top = number * this.height + "px";
      row.style.height = this.height + "px";
      rows.push(row);
    }
    this.space.replaceChildren(...rows);
    if (this.active < 0) this.box.removeAttribute("aria-activedescendant");
    else this.box.setAttribute("aria-activedescendant", `${this.box.id}-row-${this.active}`);
  }
}

function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    unit++;
  }
  return `${unit ? value.toFixed(1) : value} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

function duration(seconds) {
  if (seconds >= 1) return seconds.toFixed(2) + " s";
  if (seconds >= 1e-3) return (seconds * 1e3).toFixed(2) + " ms";
  return (seconds * 1e6).toFixed(2) + " µs";
}

function amount(value) {
  const unit = Math.max(0, Math.min(4, Math.floor(Math.log10(value || 1) / 3)));
  return `${(value / 10 ** (3 * unit)).toFixed(unit ? 1 : 0)}${["", " k", " M", " G", " T"][unit]}`;
}
