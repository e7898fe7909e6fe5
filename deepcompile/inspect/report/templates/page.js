// Tabs, keys, the search, and what is below: details of what is active.

const TABS = ["passes", "graph", "kernels", "memory", "sharding", "lines", "events"];
let tab = "passes";

async function showTab(name) {
  if (tab !== name) byId("details").hidden = true;
  tab = name;
  for (const each of TABS) {
    byId("panel-" + each).hidden = each !== name;
    byId("tab-" + each).setAttribute("aria-selected", each === name);
    byId("tab-" + each).tabIndex = each === name ? 0 : -1;
  }
  if (tables[name]) {
    await tables[name].load();
    if (tables[name].list.space.childElementCount === 0) tables[name].draw();
  }
  if (name === "graph") showCentre();
  if (name !== "passes") remember(name);
  byId("found").textContent = "";
}

function showDetails(title, facts, more = []) {
  const list = make("dl");
  for (const [name, value] of facts) {
    const text = make("dd");
    if (Array.isArray(value)) text.append(...value);
    else text.textContent = value;
    list.append(make("dt", "", name), text);
  }
  byId("details").replaceChildren(make("h3", "code", title), list, ...more);
  byId("details").hidden = false;
}

function showPictures(graph) {
  for (const section of document.querySelectorAll("[data-pictures]"))
    section.hidden = Number(section.dataset.pictures) !== graph;
  byId("no-picture").hidden = !!document.querySelector(`[data-pictures="${graph}"]`);
}

/** The node in the middle of a neighbourhood is what one sees first. */
function showCentre() {
  const centre = document.querySelector("[data-pictures]:not([hidden]) .centre");
  if (!centre) return;
  const scroll = centre.closest(".scroll"), box = centre.getBoundingClientRect();
  const room = scroll.getBoundingClientRect();
  scroll.scrollLeft += box.x + box.width / 2 - room.x - room.width / 2;
  scroll.scrollTop += box.y + box.height / 2 - room.y - room.height / 2;
}

/** Where we are, in the address: it can be sent on, and found again after loading the page. */
function remember(place) {
  try {
    history.replaceState(null, "", "#" + encodeURI(place));
  } catch {
    return; // a page inside of another one has no address of its own
  }
}

async function restore() {
  const [name, graph, pass, ...node] = decodeURI(location.hash.slice(1)).split("/");
  const known = page.graphs[Number(graph)]?.passes[Number(pass)];
  if (name === "passes" && known) {
    Object.assign(passes, { graph: Number(graph), pass: Number(pass) });
    listPasses();
    if (node.length) await showPass(passes.graph, passes.pass, node.join("/"));
    return;
  }
  listPasses();
  if (TABS.includes(name)) await showTab(name);
}

// -- search ----------------------------------------------------------------------------------------

const search = byId("search");
const marked = { all: [], at: -1 };

/** Mark what has the text in a panel that is a document, not a list. */
function searchPanel(text) {
  const panel = byId("panel-" + tab);
  panel.querySelectorAll(".hit").forEach((element) => element.classList.remove("hit"));
  const wanted = text.toLowerCase();
  marked.at = -1;
  marked.all = !wanted ? [] : [...panel.querySelectorAll(".box, tbody tr")].filter((element) =>
    !element.closest("[hidden]") && element.textContent.toLowerCase().includes(wanted));
  marked.all.forEach((element) => element.classList.add("hit"));
  return wanted ? `${marked.all.length} found` : "";
}

async function find() {
  const text = search.value;
  let told;
  if (tab === "passes") {
    searchDiff(text);
    diffList.draw();
    told = !text ? "" : passes.hits.length ? `${passes.hits.length} lines` : "none: Ctrl+Enter";
  } else if (tables[tab]) told = await tables[tab].search(text);
  else told = searchPanel(text);
  byId("found").textContent = told;
}

let soon;
search.addEventListener("input", () => {
  clearTimeout(soon);
  soon = setTimeout(find, 60);
});
search.addEventListener("keydown", async (event) => {
  if (event.key === "Escape") {
    search.value = "";
    await find();
    return (tab === "passes" ? byId("diff") : byId("panel-" + tab)).focus();
  }
  if (event.key !== "Enter") return;
  event.preventDefault();
  clearTimeout(soon);
  if (tab === "passes" && (event.ctrlKey || event.metaKey)) {
    passes.text = search.value;
    const found = await searchEverywhere();
    byId("found").textContent = found ? `${passes.hits.length} lines` : "nowhere else";
    return;
  }
  const step = event.shiftKey ? -1 : 1;
  if (passes.text !== search.value || tab !== "passes") await find();
  if (tab === "passes") {
    nextHit(step);
    if (passes.hits.length)
      byId("found").textContent = `${passes.hit + 1} of ${passes.hits.length} lines`;
  } else if (tables[tab]) tables[tab].list.box.focus();
  else if (marked.all.length) {
    marked.at = (marked.at + step + marked.all.length) % marked.all.length;
    marked.all[marked.at].scrollIntoView({ block: "center", inline: "center" });
  }
});

// -- keys and buttons ------------------------------------------------------------------------------

const KEYS = {
  "/": () => search.focus(),
  "?": () => byId("help").showModal(),
  n: () => nextChange(1),
  p: () => nextChange(-1),
  j: () => passList.activate(passList.active + 1),
  k: () => passList.activate(passList.active - 1),
  f: () => toggle("all", drawDiff),
  u: () => toggle("unchanged", listPasses),
  t: turn,
  x: () => (byId("details").hidden = !byId("details").hidden),
};
TABS.forEach((name, number) => (KEYS[number + 1] = () => {
  showTab(name).then(() => byId("tab-" + name).focus());
}));

function toggle(name, draw) {
  passes[name] = !passes[name];
  byId("show-" + name).checked = passes[name];
  const at = name === "all" && diffList.active >= 0 ? passes.shown[diffList.active] : -1;
  draw(at);
}

/** The other one of light and dark. */
function turn() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
byId("show-all").addEventListener("change", () => toggle("all", drawDiff));
byId("show-unchanged").addEventListener("change", () => toggle("unchanged", listPasses));
byId("theme").addEventListener("click", turn);
byId("keys").addEventListener("click", () => byId("help").showModal());
byId("close-help").addEventListener("click", () => byId("help").close());
byId("sort").addEventListener("change", (event) => {
  kernels.sorted = event.target.value;
  kernels.draw();
});
for (const name of TABS) byId("tab-" + name).addEventListener("click", () => showTab(name));
byId("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const name = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
  showTab(name).then(() => byId("tab-" + name).focus());
});
byId("panel-graph").addEventListener("click", (event) => openBox(event.target.closest(".box")));
byId("panel-graph").addEventListener("keydown", (event) => {
  const box = event.target.closest(".box");
  if (!box) return;
  const boxes = [...box.parentNode.querySelectorAll(".box")];
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (event.key === "Enter") openBox(box);
  else if (step) boxes[(boxes.indexOf(box) + step + boxes.length) % boxes.length].focus();
  else return;
  event.preventDefault();
});

/** The node that a box stands for, in the list of lines. */
async function openBox(box) {
  if (!box) return;
  const graph = Number(box.closest("[data-pictures]").dataset.pictures);
  const record = page.graphs[graph];
  let pass = 0;
  if (box.closest("[data-last]")) record.passes.forEach((each, n) => {
    if (each.text >= 0) pass = n;
  });
  await showTab("passes");
  await showPass(graph, pass, box.dataset.node);
  listPassesQuietly();
}

longest = page.longest;
restore();
