// The list of passes, the differences between states, and facts of a node.

const passes = { graph: 0, pass: 0, state: 0, all: false, unchanged: false, hits: [], text: "" };
passes.opened = new Set();
const graphs = new Map();

async function graphOf(number) {
  if (!graphs.has(number)) graphs.set(number, new Graph(await unpack("graph-" + number)));
  return graphs.get(number);
}

/** What the list on the left shows: graphs, and below each the passes that changed it. */
function passEntries() {
  const found = [];
  page.graphs.forEach((graph, number) => {
    found.push({ graph: number, head: true, pass: 0 });
    graph.passes.forEach((pass, place) => {
      const notable = place === 0 || pass.text >= 0 || !["", "unchanged"].includes(pass.status);
      if (passes.unchanged || notable) found.push({ graph: number, pass: place });
    });
  });
  return found;
}

const passList = new List(byId("pass-list"), {
  height: 24,
  render(number) {
    const entry = passes.entries[number];
    const graph = page.graphs[entry.graph];
    if (entry.head) {
      const row = make("div", "head");
      row.append(make("span", "name", `${graph.name} · ${graph.nodes} nodes`));
      return row;
    }
    const pass = graph.passes[entry.pass];
    const row = make("div", "pass");
    row.title = [pass.facts.pass || pass.name, pass.status, pass.reason].filter(Boolean).join("\n");
    const status = pass.status || "?";
    const more = Object.values(pass.delta).filter((n) => n > 0).reduce((a, b) => a + b, 0);
    const fewer = -Object.values(pass.delta).filter((n) => n < 0).reduce((a, b) => a + b, 0);
    const badge = status === "changed" && more + fewer ? `+${more} −${fewer}` : status;
    row.append(
      make("span", "name", `${String(pass.index).padStart(3, "0")} ${pass.name}`),
      make("span", "badge " + (["changed", "input", "failed"].includes(status) ? status : ""), badge),
      make("span", "soft", pass.ms ? pass.ms.toFixed(1) + " ms" : ""));
    return row;
  },
  select(number) {
    const entry = passes.entries[number];
    showPass(entry.graph, entry.pass);
  },
  open: () => byId("diff").focus(),
});

function listPasses() {
  passes.entries = passEntries();
  const active = passes.entries.findIndex(
    (e) => !e.head && e.graph === passes.graph && e.pass === passes.pass);
  passList.show(passes.entries.length, Math.max(active, passes.entries.length ? 0 : -1));
}

const diffList = new List(byId("diff"), {
  height: 20,
  render(number) {
    const entry = passes.shown[number];
    if (entry < 0) {
      const [from, to] = passes.gaps[-1 - entry];
      return make("div", "gap", `… ${to - from} lines without change (Enter shows them)`);
    }
    const row = make("div");
    const { left, right, kind, first, moved } = passes.table;
    const after = passes.lines[right[entry]];
    if (passes.hit !== undefined && passes.hits[passes.hit] === entry) row.classList.add("hit");
    if (first) {
      row.append(half("whole", after, right[entry]));
      return row;
    }
    const before = passes.before[left[entry]];
    const names = { [EDITED]: ["edit", "edit"], [REMOVED]: ["del", "none"],
      [ADDED]: ["none", "add"], [REPLACED]: ["del", "add"] }[kind[entry]] || ["", ""];
    const isMoved = (line) => moved.has(NAME.exec(line || "")?.[1]);
    row.append(
      half(names[0] === "del" && isMoved(before) ? "moved" : names[0], before, left[entry]),
      half(names[1] === "add" && isMoved(after) ? "moved" : names[1], after, right[entry]));
    return row;
  },
  select(number) {
    const entry = passes.shown[number];
    if (entry >= 0) showNode(entry);
  },
  open(number) {
    const entry = passes.shown[number];
    if (entry >= 0) return showNode(entry);
    const [from, to] = passes.gaps[-1 - entry];
    for (let n = from; n < to; n++) passes.opened.add(n);
    drawDiff(from);
  },
});

/** Show what a pass made of a graph; of one that changed nothing the state before it. */
async function showPass(graph, pass, node = "") {
  const record = page.graphs[graph];
  const known = record.passes[pass];
  let state = -1;
  for (let n = 0; n <= pass && n < record.passes.length; n++)
    if (record.passes[n].text >= 0) state = record.passes[n].text;
  Object.assign(passes, { graph, pass });
  const content = await graphOf(graph);
  if (passes.graph !== graph || passes.pass !== pass) return; // another was chosen meanwhile
  passes.opened.clear();
  passes.content = content;
  passes.state = Math.max(state, 0);
  passes.lines = state < 0 ? [] : content.lines(passes.state);
  passes.before = passes.state > 0 ? content.lines(passes.state - 1) : [];
  passes.table = state < 0 ? { kind: [], left: [], right: [], first: true }
    : content.table(passes.state);
  const unchanged = known && known.text < 0;
  const status = unchanged ? ` changed nothing; the state before it` : "";
  byId("pass-title").textContent = known
    ? `${record.name}: ${String(known.index).padStart(3, "0")} ${known.name}${status}` : record.name;
  byId("pass-delta").textContent = known ? Object.entries(known.delta)
    .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).map(([op, n]) => `${n > 0 ? "+" : "−"}${Math.abs(n)} ${op}`).join("   ") : "";
  byId("pass-reason").textContent = known ? known.reason : "";
  searchDiff(passes.text);
  const place = node ? rowOf(node) : passes.table.kind.findIndex((kind) => kind !== SAME);
  drawDiff(place);
  showPictures(graph);
  remember(`passes/${graph}/${pass}${node ? "/" + node : ""}`);
  if (known && !node) showPassFacts(known);
}

function rowOf(name) {
  const line = passes.content.index(passes.state).places.get(name);
  return line === undefined ? -1 : passes.table.right.indexOf(line);
}

/** Draw the rows, with row `place` in the middle. */
function drawDiff(place = -1) {
  const keep = place >= 0 && passes.table.kind[place] === SAME ? [place] : [];
  keep.forEach((n) => passes.opened.add(n));
  Object.assign(passes, entriesOf(passes.table, passes.all, passes.opened));
  diffList.show(passes.shown.length);
  const active = place < 0 ? -1 : passes.shown.indexOf(place);
  if (active >= 0 && !passes.table.first) diffList.activate(active, true);
  else if (active > 0) diffList.activate(active, true);
}

/** Move to the next (1) or the last (-1) block of changed rows. */
function nextChange(step) {
  const changed = (n) => passes.shown[n] >= 0 && passes.table.kind[passes.shown[n]] !== SAME;
  let n = Math.max(diffList.active, 0);
  while (n >= 0 && n < passes.shown.length && changed(n)) n += step;
  while (n >= 0 && n < passes.shown.length && !changed(n)) n += step;
  if (n < 0 || n >= passes.shown.length) return;
  diffList.activate(n, true);
}

function showPassFacts(pass) {
  const delta = Object.entries(pass.delta).map(([op, n]) => `${op} ${n > 0 ? "+" : ""}${n}`);
  const facts = [...(delta.length ? [["ops", delta.join(", ")]] : []), ...Object.entries(pass.facts)].map(([name, value]) =>
    [name, typeof value === "object" ? JSON.stringify(value) : String(value)]);
  showDetails(`pass ${pass.name}`, [["status", pass.status], ...facts]);
}

/** Facts of the node in a row: what it takes, who takes it, the user's line, kernels. */
async function showNode(row) {
  const { left, right } = passes.table;
  const isGone = right[row] < 0;
  const line = isGone ? passes.before[left[row]] : passes.lines[right[row]];
  const state = isGone ? passes.state - 1 : passes.state;
  const { graph, pass } = passes;
  const name = NAME.exec(line)?.[1];
  const { places, users } = passes.content.index(state);
  const lines = passes.content.lines(state);
  const goTo = (other) => link("%" + other, () => {
    if (isGone) return;
    const place = rowOf(other);
    if (place >= 0) drawDiff(place);
  });
  const call = line.slice(line.indexOf(" = ") + 1);
  const takes = [...new Set([...call.matchAll(USED)].map((found) => found[1]))]
    .filter((other) => places.has(other));
  const takers = (users.get(name) || []).map((n) => NAME.exec(lines[n])?.[1]).filter(Boolean);
  const origin = /  # (\S.*)$/.exec(line)?.[1];
  const facts = [["line", line.trim()]];
  if (takes.length) facts.push(["takes", takes.slice(0, 100).map(goTo)]);
  if (takers.length) facts.push([`taken by ${takers.length}`, takers.slice(0, 100).map(goTo)]);
  if (origin) facts.push(["user line", [link(origin, () => goLine(origin))]]);
  const rows = await kernelsOf(graph, name, line, origin);
  if (rows.length) facts.push(["runs in", rows.slice(0, 20).map(kernelLink)]);
  showDetails(isGone ? `%${name || ""} before this pass` : `%${name || "line"}`, facts);
  if (name) remember(`passes/${graph}/${pass}/${name}`);
}

/** Places of rows whose text has `text`. */
function searchDiff(text) {
  passes.text = text;
  passes.hits = [];
  passes.hit = undefined;
  if (!text || !passes.table) return;
  const wanted = text.toLowerCase();
  const { left, right, kind } = passes.table;
  for (let n = 0; n < kind.length; n++) {
    const after = right[n] >= 0 && passes.lines[right[n]].toLowerCase().includes(wanted);
    if (after || (kind[n] !== SAME && left[n] >= 0 &&
        passes.before[left[n]].toLowerCase().includes(wanted))) passes.hits.push(n);
  }
}

function nextHit(step) {
  if (!passes.hits.length) return;
  const count = passes.hits.length;
  passes.hit = passes.hit === undefined ? (step > 0 ? 0 : count - 1)
    : (passes.hit + step + count) % count;
  drawDiff(passes.hits[passes.hit]);
}

/** Look through the states behind this one, then those before it, for the text searched for. */
async function searchEverywhere() {
  const wanted = passes.text.toLowerCase();
  if (!wanted) return false;
  const all = page.graphs.flatMap((graph, number) =>
    graph.passes.map((pass, place) => ({ number, place, text: pass.text })))
    .filter((entry) => entry.text >= 0);
  const here = all.findIndex((e) => e.number === passes.graph && e.text === passes.state);
  for (const entry of [...all.slice(here + 1), ...all.slice(0, here)]) {
    const content = await graphOf(entry.number);
    if (!content.lines(entry.text).some((line) => line.toLowerCase().includes(wanted))) continue;
    await showPass(entry.number, entry.place);
    listPassesQuietly();
    nextHit(1);
    return true;
  }
  return false;
}

/** The list follows what was chosen elsewhere. */
function listPassesQuietly() {
  const active = passes.entries.findIndex(
    (e) => !e.head && e.graph === passes.graph && e.pass === passes.pass);
  if (active < 0) return;
  passList.active = active;
  passList.box.scrollTop = active * passList.height - passList.box.clientHeight / 2;
  passList.draw();
}
