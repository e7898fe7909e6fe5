// States of a graph from its first lines and edits, and two of them side by side.

const NAME = /^\s*%(\S+)/;
const USED = /%([\w.]+)/g;
const SAME = 0, EDITED = 1, REMOVED = 2, ADDED = 3, REPLACED = 4;
const AROUND = 3;

/** A graph's content with the lines and rows of its states, made when they are asked for. */
class Graph {
  constructor(content) {
    this.states = [content.first];
    this.edits = content.later;
    this.rows = [null];
    this.known = new Map();
  }

  lines(state) {
    if (state >= this.states.length) this.apply(state);
    return this.states[state];
  }

  /** Rows of a state beside the one before: numbers of lines left and right, -1 for none. */
  table(state) {
    if (state > 0) {
      this.lines(state);
      return this.rows[state];
    }
    const count = this.states[0].length;
    const right = Int32Array.from({ length: count }, (_, number) => number);
    return { left: right, right, kind: new Uint8Array(count), first: true };
  }

  apply(state) {
    const before = this.lines(state - 1);
    const after = [], left = [], right = [], kind = [];
    let at = 0, removed = 0; // rows at the end that have no right side yet
    const row = (a, b, what) => {
      left.push(a);
      right.push(b);
      kind.push(what);
    };
    for (const edit of this.edits[state - 1]) {
      if (typeof edit === "string") {
        after.push(edit);
        if (removed > 0) {
          const place = right.length - removed--;
          right[place] = after.length - 1;
          kind[place] = REPLACED;
        } else row(-1, after.length - 1, ADDED);
        continue;
      }
      if (edit < 0) {
        for (let n = 0; n < -edit; n++) row(at++, -1, REMOVED);
        removed = -edit;
        continue;
      }
      removed = 0;
      if (Array.isArray(edit)) {
        after.push(edit[0]);
        row(at++, after.length - 1, EDITED);
      } else for (let n = 0; n < edit; n++) {
        after.push(before[at]);
        row(at++, after.length - 1, SAME);
      }
    }
    this.states[state] = after;
    this.rows[state] = {
      left: Int32Array.from(left), right: Int32Array.from(right), kind: Uint8Array.from(kind),
      moved: this.moved(before, after, left, right, kind),
    };
  }

  moved(before, after, left, right, kind) {
    const gone = new Set(), found = new Set();
    const changed = (each) => each === REMOVED || each === REPLACED || each === ADDED;
    kind.forEach((each, n) => {
      if (changed(each) && left[n] >= 0) gone.add(NAME.exec(before[left[n]])?.[1]);
    });
    kind.forEach((each, n) => {
      if (!changed(each) || right[n] < 0) return;
      const name = NAME.exec(after[right[n]])?.[1];
      if (name && gone.has(name)) found.add(name);
    });
    return found;
  }

  /** Names of a state: the line of each, and the lines that use it. */
  index(state) {
    if (!this.known.has(state)) {
      const places = new Map(), users = new Map();
      this.lines(state).forEach((line, number) => {
        const name = NAME.exec(line)?.[1];
        if (name && !places.has(name)) places.set(name, number);
        const call = line.slice(line.indexOf(" = ") + 1);
        for (const [, used] of call.matchAll(USED)) {
          if (!users.has(used)) users.set(used, []);
          const list = users.get(used);
          if (list[list.length - 1] !== number) list.push(number);
        }
      });
      this.known.set(state, { places, users });
    }
    return this.known.get(state);
  }
}

/** Numbers of rows to show; a gap is -1 - its place in `gaps`. */
function entriesOf(table, all, opened) {
  const count = table.kind.length;
  const shown = [], gaps = [];
  if (all || table.first) {
    for (let n = 0; n < count; n++) shown.push(n);
    return { shown, gaps };
  }
  const near = new Uint8Array(count);
  for (let n = 0; n < count; n++) {
    if (table.kind[n] === SAME && !opened.has(n)) continue;
    const reach = table.kind[n] === SAME ? 0 : AROUND;
    near.fill(1, Math.max(0, n - reach), Math.min(count, n + reach + 1));
  }
  for (let n = 0; n < count; n++) {
    if (near[n]) {
      shown.push(n);
      continue;
    }
    const from = n;
    while (n + 1 < count && !near[n + 1]) n++;
    shown.push(-1 - gaps.length);
    gaps.push([from, n + 1]);
  }
  return { shown, gaps };
}

const PARTS = /^(\s*)(%\S+)( : .*?)?( = )(.*?)(  # .*)?$/;

/** A line of a graph with its parts in colours. */
function codeOf(line) {
  const code = make("span", "code");
  code.title = line.trim();
  const parts = PARTS.exec(line);
  if (!parts) {
    code.textContent = line;
    return code;
  }
  const classes = ["", "v", "t", "", "", "o"];
  parts.slice(1).forEach((text, number) => {
    if (text) code.append(classes[number] ? make("span", classes[number], text) : text);
  });
  return code;
}

function half(kind, line, number) {
  const side = make("div", "half " + kind);
  side.append(make("span", "no", number < 0 ? "" : String(number + 1)));
  if (number >= 0) side.append(codeOf(line));
  return side;
}
