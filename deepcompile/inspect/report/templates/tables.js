// Kernels, lines of the user's program and events: lists that are sorted and searched.

const tables = {};

/** A list over rows of packed data, which a search narrows. */
class Table {
  constructor(name, { render, text, details, order = {} }) {
    Object.assign(this, { name, text, details, order, rows: null, shown: [], wanted: "" });
    this.list = new List(byId(name + "-list"), {
      height: 22,
      render: (number) => render(this.rows[this.shown[number]]),
      select: (number) => this.details(this.rows[this.shown[number]]),
      open: (number) => this.details(this.rows[this.shown[number]]),
    });
    this.sorted = Object.keys(order)[0];
    tables[name] = this;
  }

  async load() {
    if (this.rows) return;
    this.rows = (await unpack(this.name)) || [];
    this.texts = this.rows.map((row) => this.text(row).toLowerCase());
    this.draw();
  }

  draw() {
    this.shown = this.rows.map((_, number) => number)
      .filter((number) => this.texts[number].includes(this.wanted));
    const by = this.order[this.sorted];
    if (by) this.shown.sort((a, b) => by(this.rows[b]) - by(this.rows[a]) || a - b);
    this.list.show(this.shown.length);
  }

  async search(text) {
    await this.load();
    this.wanted = text.toLowerCase();
    this.draw();
    return text ? `${this.shown.length} of ${this.rows.length}` : "";
  }

  async go(place) {
    await this.load();
    if (this.wanted && !this.shown.includes(place)) {
      this.wanted = "";
      byId("search").value = "";
      this.draw();
    }
    this.list.activate(this.shown.indexOf(place), true);
  }
}

function columns(...cells) {
  const row = make("div", "columns");
  for (const [text, name] of cells) {
    const cell = text instanceof Node ? text : make("span", "", text);
    cell.className = ("cell " + (name || "") + " " + cell.className).trim();
    if (!(text instanceof Node)) cell.title = text;
    row.append(cell);
  }
  const outer = make("div");
  outer.append(row);
  return outer;
}

let longest = 0;

/** Two bars: what moving the bytes takes, and what the arithmetic takes; the longer one decides. */
function roof(row) {
  const box = make("div", "roof");
  for (const name of ["moving", "computing"]) {
    const bar = box.appendChild(make("i", name));
    bar.style.width = (longest ? (100 * row[name]) / longest : 0) + "%";
  }
  const bound = row.moving >= row.computing ? "memory" : "arithmetic";
  box.title = `${bound} bound: bytes ${duration(row.moving)}, arithmetic ${duration(row.computing)}`;
  return box;
}

const kernels = new Table("kernels", {
  render: (row) => columns(
    [row.name], [row.ops.join(", ")], [roof(row)],
    [row.seconds ? duration(row.seconds) : "", "number"],
    [bytes(row.read + row.written), "number"], [amount(row.operations), "number"],
    [row.lines.map((line) => line.replace(/^.*[\\/]/, "")).join(", ")]),
  text: (row) => [row.graph, row.name, row.kind, ...row.ops, ...row.lines].join(" "),
  details: showKernel,
  order: {
    time: (row) => row.seconds,
    bytes: (row) => row.read + row.written,
    arithmetic: (row) => row.operations,
    program: () => 0,
  },
});

function kernelLink(place) {
  const row = kernels.rows[place];
  return link(row.name, () => goKernel(place));
}

async function goKernel(place) {
  await showTab("kernels");
  await kernels.go(place);
}

async function goLine(line) {
  await showTab("lines");
  await lines.load();
  const place = lines.rows.findIndex((row) => row.line === line);
  if (place >= 0) await lines.go(place);
}

/** Kernels that a node is, or was fused into: by the name it calls, else by its user line. */
async function kernelsOf(graph, name, line, origin) {
  await kernels.load();
  const called = / = (?:kernel|batch) @([^\s(]+)/.exec(line)?.[1];
  const family = page.graphs[graph].name;
  const op = / = ([\w.]+)\(/.exec(line)?.[1]?.replace(/^aten\./, "");
  const found = [];
  const near = [];
  kernels.rows.forEach((row, place) => {
    const same = row.graph === family;
    if (same && called && (row.node === called || row.node.startsWith(called + "_")))
      found.push(place);
    else if (same && row.kind === "extern" && row.node === name) found.push(place);
    else if (origin && !called && row.lines.includes(origin) &&
        row.ops.some((each) => each.replace(/^aten\./, "") === op)) near.push([same, place]);
  });
  if (found.length) return found;
  return near.sort((a, b) => b[0] - a[0]).map((entry) => entry[1]);
}

/** Where a graph calls a kernel: its last state. */
async function goCall(row) {
  const graph = page.graphs.findIndex((each) => each.name === row.graph);
  if (graph < 0) return;
  const record = page.graphs[graph];
  let last = record.passes.length - 1;
  while (last > 0 && record.passes[last].text < 0) last--;
  const content = await graphOf(graph);
  const pattern = row.kind === "kernel" ? `@${row.node}(` : null;
  const line = content.lines(Math.max(record.passes[last].text, 0)).find((text) =>
    NAME.test(text) && (pattern ? text.includes(pattern) : NAME.exec(text)[1] === row.node));
  await showTab("passes");
  await showPass(graph, last, line ? NAME.exec(line)?.[1] : "");
  listPassesQuietly();
}

async function showKernel(row) {
  const facts = [
    ["graph", [link(`${row.graph}, step ${row.step}`, () => goCall(row))]],
    ["ops", row.ops.join(", ")],
    ["modelled", `${duration(row.seconds)}: bytes ${duration(row.moving)}, arithmetic ` +
      duration(row.computing)],
    ["bytes", `${bytes(row.read)} read, ${bytes(row.written)} written`],
  ];
  if (row.lines.length)
    facts.push(["user lines", row.lines.map((line) => link(line, () => goLine(line)))]);
  if (row.kind === "kernel") facts.push(["alone", `deepcompile kernels bench ${row.name}`]);
  const sources = [];
  if (row.source) {
    const chunk = await unpack("sources-" + row.source[0]);
    for (const [file, text] of Object.entries(chunk[row.source[1]])) {
      const block = make("details");
      block.append(make("summary", "", file), make("pre", "source code", text));
      sources.push(block);
    }
  }
  showDetails(row.name, facts, sources);
}

const lines = new Table("lines", {
  render: (row) => columns(
    [row.line], [`${row.count} nodes`], [`${row.kernels.length} kernels and calls`],
    [row.seconds ? duration(row.seconds) : "", "number"]),
  text: (row) => row.line,
  async details(row) {
    await kernels.load();
    const nodes = row.nodes.map(([graph, name]) => link(`${page.graphs[graph].name} %${name}`,
      async () => {
        await showTab("passes");
        await showPass(graph, 0, name);
        listPassesQuietly();
      }));
    const facts = [];
    if (row.count > nodes.length) facts.push(["nodes in all", String(row.count)]);
    if (nodes.length) facts.push(["nodes", nodes]);
    if (row.kernels.length) facts.push(["runs in", row.kernels.slice(0, 200).map(kernelLink)]);
    showDetails(row.line, facts);
  },
});

const isBad = (row) => /fallback|failed|break|refused|unusable|damaged/.test(row.kind);

const events = new Table("events", {
  order: { weight: (row) => Number(isBad(row)) }, // in each part the earlier ones first
  render: (row) => {
    const bad = isBad(row);
    return columns([row.kind, bad ? "bad" : ""], [row.text], [row.graph], [row.at, "number"]);
  },
  text: (row) => [row.kind, row.text, row.graph, JSON.stringify(row.fields)].join(" "),
  details(row) {
    const facts = Object.entries(row.fields).map(([name, value]) => [name,
      name === "origin" && typeof value === "string" ? [link(value, () => goLine(value))]
        : typeof value === "object" ? JSON.stringify(value) : String(value)]);
    showDetails(row.kind, facts);
  },
});
