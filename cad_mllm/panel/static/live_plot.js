"use strict";
// The plot of the panel. It lives in an iframe, draws on a canvas, loads nothing, and reads its data from hidden nodes
// of the page around it: ".plot-base" holds the runs, ".plot-tail" the rows that came since, the picked checkpoint and
// the number of the last click that Python has heard.
const $ = id => document.getElementById(id);
const frame = reach(() => window.frameElement);
const root = frame?.closest(".live-plot");
const around = frame?.ownerDocument.defaultView;
const AXES = [
  ["step", "steps"],
  ["samples", "samples"],
  ["tokens", "tokens"],
  ["seconds", "time"],
];
const WEIGHTS = [
  [0, "none"],
  [0.3, "light"],
  [0.6, "medium"],
  [0.9, "strong"],
  [0.97, "very strong"],
];
const state = Object.assign(
  {tab: "loss", axis: "step", weight: 0.6, log: false, hidden: [], x: null, y: null},
  restore(),
);
let base = {id: null, runs: [], tabs: []};
let tail = {};
let raw = {base: "", tail: ""};
let cache = new Map();
let box = null;
let drag = null;
let cursor = null;
let lifted = null;
let sent = null;

function reach(look) {
  try {
    return look() || null;
  } catch (_e) {
    return null;
  }
}
function restore() {
  return JSON.parse(frame?.dataset.state || "{}");
}
function keep() {
  if (frame) frame.dataset.state = JSON.stringify(state);
}
function make(tag, text, name) {
  const e = document.createElement(tag);
  if (text != null) e.textContent = text;
  if (name) e.className = name;
  return e;
}
function isNumber(v) {
  return typeof v === "number" && Number.isFinite(v);
}

// ---------------------------------------------------------------- data
function read() {
  const text = name => {
    const node = root?.querySelector(`.plot-${name} .plot-json`);
    return node ? node.textContent : "";
  };
  const now = root ? {base: text("base"), tail: text("tail")} : raw;
  if (now.base === raw.base && now.tail === raw.tail) return;
  if (now.base !== raw.base && now.base) base = JSON.parse(now.base);
  if (now.tail) tail = JSON.parse(now.tail);
  raw = now;
  if (tail.base === base.id) for (const run of base.runs) append(run, tail.rows?.[run.id]);
  heard();
  cache = new Map();
  refresh();
}
function append(run, more) {
  if (!more) return;
  for (const [key, values] of Object.entries(more.columns)) {
    run.columns[key] ??= Array(more.from).fill(null);
    const column = run.columns[key];
    column.length = more.from;
    for (const v of values) column.push(v);
  }
}
function cached(name, func) {
  if (!cache.has(name)) cache.set(name, func());
  return cache.get(name);
}
function pairs(table, key) {
  const xs = table[state.axis] || [];
  const ys = table[key] || [];
  const out = {x: [], y: [], i: []};
  let sorted = true;
  for (let i = 0; i < ys.length; i++) {
    if (!isNumber(xs[i]) || !isNumber(ys[i])) continue;
    if (out.x.length && xs[i] < out.x[out.x.length - 1]) sorted = false;
    out.x.push(xs[i]);
    out.y.push(ys[i]);
    out.i.push(i);
  }
  if (!sorted) {
    const order = out.x.map((_, k) => k).sort((a, b) => out.x[a] - out.x[b]);
    for (const k of ["x", "y", "i"]) out[k] = order.map(o => out[k][o]);
  }
  return out;
}
const table = run => run.sparse[state.tab] || run.columns;
const series = run => cached(`${run.id} ${state.tab} ${state.axis}`, () => pairs(table(run), state.tab));
const lost = run => cached(`${run.id} ${state.tab} ${state.axis} lost`, () => run.lost.map(t => pairs(t, state.tab)));
const isSmooth = () => state.weight > 0 && ["loss", "grad_norm", "tokens_per_second"].includes(state.tab);
const smoothed = run =>
  cached(`${run.id} ${state.tab} ${state.axis} ${state.weight}`, () => {
    const w = state.weight;
    const s = series(run);
    const y = [];
    let mean = 0;
    let past = 1;
    for (const v of s.y) {
      mean = w * mean + (1 - w) * v;
      past *= w;
      y.push(mean / (1 - past));
    }
    return {x: s.x, y, i: s.i};
  });
const rowsByStep = run => cached(`${run.id} rows`, () => new Map((run.columns.step || []).map((s, i) => [s, i])));
const pointsByStep = run =>
  cached(
    `${run.id} ${state.tab} points`,
    () => new Map((table(run).step || []).map((s, i) => [s, (table(run)[state.tab] || [])[i]])),
  );
const marks = run =>
  cached(`${run.id} ${state.tab} ${state.axis} marks`, () =>
    run.marks
      .map(m => {
        const row = rowsByStep(run).get(m.step);
        const at = row == null ? m[state.axis] : (run.columns[state.axis] || [])[row];
        const on = pointsByStep(run).get(m.step);
        const y = isNumber(on) ? on : m[state.tab];
        return {mark: m, run, x: isNumber(at) ? at : m[state.axis], y: isNumber(y) ? y : null, row};
      })
      .filter(m => isNumber(m.x)),
  );
const shown = () => base.runs.filter(r => !state.hidden.includes(r.id));

// ---------------------------------------------------------------- scales
function at(xs, x) {
  let a = 0;
  let b = xs.length;
  while (a < b) {
    const m = (a + b) >> 1;
    if (xs[m] < x) a = m + 1;
    else b = m;
  }
  return a;
}
function nearest(xs, x) {
  const i = at(xs, x);
  return i > 0 && (i === xs.length || x - xs[i - 1] <= xs[i] - x) ? i - 1 : i;
}
function bounds() {
  const drawn = shown();
  let [x0, x1] = state.x || [Infinity, -Infinity];
  let y0 = Infinity;
  let y1 = -Infinity;
  if (!state.x)
    for (const run of drawn) {
      const s = series(run);
      for (const x of [s.x[0], s.x[s.x.length - 1], ...marks(run).map(m => m.x)])
        if (isNumber(x)) {
          x0 = Math.min(x0, x);
          x1 = Math.max(x1, x);
        }
    }
  const take = y => {
    if (isNumber(y) && (!state.log || y > 0)) {
      y0 = Math.min(y0, y);
      y1 = Math.max(y1, y);
    }
  };
  for (const run of drawn) {
    for (const s of [series(run), ...lost(run)])
      for (let i = at(s.x, x0); i < s.x.length && s.x[i] <= x1; i++) take(s.y[i]);
    for (const m of marks(run)) if (m.x >= x0 && m.x <= x1) take(m.y);
  }
  if (state.y) [y0, y1] = state.y;
  if (!(x0 <= x1) || !(y0 <= y1)) return null;
  if (x0 === x1) {
    x0 -= 0.5;
    x1 += 0.5;
  }
  if (!state.y) {
    const up = state.log ? Math.log(y1 / y0) * 0.06 || 0.1 : (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
    [y0, y1] = state.log ? [y0 * Math.exp(-up), y1 * Math.exp(up)] : [y0 - up, y1 + up];
  }
  if (!state.x) {
    const by = (x1 - x0) * 0.012;
    x0 -= by;
    x1 += by;
  }
  return {x0, x1, y0, y1};
}
function steps(a, b, num) {
  const rough = (b - a) / Math.max(1, num);
  const p = 10 ** Math.floor(Math.log10(rough));
  const m = rough / p;
  const by = (m < 1.5 ? 1 : m < 3 ? 2 : m < 7 ? 5 : 10) * p;
  const out = [];
  for (let k = Math.ceil(a / by); k * by <= b && out.length < 50; k++) out.push(k * by);
  return {by, at: out};
}
function logSteps(a, b, num) {
  if (b / a < 8) return steps(a, b, num);
  const out = [];
  const few = Math.log10(b / a) > num;
  for (let d = Math.floor(Math.log10(a)); d <= Math.log10(b); d++)
    for (const m of few ? [1] : [1, 2, 5]) if (m * 10 ** d >= a && m * 10 ** d <= b) out.push(m * 10 ** d);
  return {by: 0, at: out};
}
function short(v, by) {
  const size = Math.abs(v);
  const [unit, sign] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : size >= 1e4 ? [1e3, "k"] : [1, ""];
  if ((v && size < 1e-3) || (by && by < 1e-6))
    return v.toExponential(
      by ? Math.max(0, Math.min(6, Math.floor(Math.log10(size)) - Math.floor(Math.log10(by) + 1e-9))) : 0,
    );
  if (!by) return String(+(v / unit).toPrecision(3)) + sign;
  return (v / unit).toFixed(Math.max(0, Math.min(8, -Math.floor(Math.log10(by / unit) + 1e-9)))) + sign;
}
function timeUnit(span) {
  return span < 180 ? [1, "s"] : span < 10800 ? [60, "min"] : span < 400000 ? [3600, "h"] : [86400, "days"];
}

// ---------------------------------------------------------------- drawing
function color(name) {
  return getComputedStyle(document.body).getPropertyValue(`--${name}`).trim();
}
function sized(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const w = $("stage").clientWidth;
  const h = $("stage").clientHeight;
  const c = canvas.getContext("2d");
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, w, h);
  return c;
}
function layout(c, w, h) {
  const b = bounds();
  if (!b) return null;
  c.font = "12px system-ui, sans-serif";
  const [per, unit] = state.axis === "seconds" ? timeUnit(b.x1 - b.x0) : [1, ""];
  const ys = (state.log ? logSteps : steps)(b.y0, b.y1, Math.max(3, h / 55));
  const xs = steps(b.x0 / per, b.x1 / per, Math.max(2, w / 95));
  const names = ys.at.map(v => short(v, ys.by));
  const left = Math.ceil(Math.max(...names.map(n => c.measureText(n).width), 10)) + 12;
  const area = {left, right: w - 10, top: 10, bottom: h - 36};
  const map = state.log ? Math.log : v => v;
  const low = map(b.y0);
  const high = map(b.y1);
  return {
    ...b,
    ...area,
    xs,
    ys,
    names,
    per,
    unit,
    w,
    h,
    X: x => area.left + ((x - b.x0) / (b.x1 - b.x0)) * (area.right - area.left),
    Y: y => area.bottom - ((map(y) - low) / (high - low)) * (area.bottom - area.top),
    inX: p => b.x0 + ((p - area.left) / (area.right - area.left)) * (b.x1 - b.x0),
    inY: p => {
      const v = low + ((area.bottom - p) / (area.bottom - area.top)) * (high - low);
      return state.log ? Math.exp(v) : v;
    },
  };
}
function grid(c) {
  c.strokeStyle = color("line");
  c.fillStyle = color("soft");
  c.lineWidth = 1;
  c.textBaseline = "middle";
  box.ys.at.forEach((v, i) => {
    const y = Math.round(box.Y(v)) + 0.5;
    c.beginPath();
    c.moveTo(box.left, y);
    c.lineTo(box.right, y);
    c.stroke();
    c.textAlign = "right";
    c.fillText(box.names[i], box.left - 6, y);
  });
  c.textBaseline = "alphabetic";
  let free = 0;
  for (const v of box.xs.at) {
    const x = Math.round(box.X(v * box.per)) + 0.5;
    const text = short(v, box.xs.by);
    const half = c.measureText(text).width / 2;
    const from = Math.max(0, Math.min(x - half, box.w - 2 * half - 1));
    c.beginPath();
    c.moveTo(x, box.top);
    c.lineTo(x, box.bottom + 4);
    c.stroke();
    if (from < free) continue;
    c.textAlign = "left";
    c.fillText(text, from, box.bottom + 17);
    free = from + 2 * half + 8;
  }
  const title = {
    step: "steps",
    samples: "samples",
    tokens: "tokens trained on",
    seconds: `time of training, ${box.unit}`,
  }[state.axis];
  c.textAlign = "right";
  c.fillText(title, box.right, box.bottom + 31);
}
function thin(s, from, to, columns) {
  // What a line of that many columns of pixels can show: the first, lowest, highest and last point of each; few points
  // all.
  const a = Math.max(0, at(s.x, from) - 1);
  const b = Math.min(s.x.length, at(s.x, to) + 1);
  if (b - a <= 4 * columns) {
    const all = [];
    for (let i = a; i < b; i++) all.push(i);
    return all;
  }
  const out = [];
  const wide = (to - from) / columns;
  for (let i = a; i < b; ) {
    const column = Math.floor((s.x[i] - from) / wide);
    const first = i;
    let low = i;
    let high = i;
    for (; i < b && Math.floor((s.x[i] - from) / wide) === column; i++) {
      if (s.y[i] < s.y[low]) low = i;
      if (s.y[i] > s.y[high]) high = i;
    }
    out.push(...new Set([first, Math.min(low, high), Math.max(low, high), i - 1]));
  }
  return out;
}
function line(c, s, style, width, alpha, dash) {
  c.beginPath();
  let begun = false;
  for (const i of thin(s, box.x0, box.x1, Math.max(50, Math.round(box.right - box.left)))) {
    if (state.log && s.y[i] <= 0) continue;
    c[begun ? "lineTo" : "moveTo"](box.X(s.x[i]), box.Y(s.y[i]));
    begun = true;
  }
  Object.assign(c, {strokeStyle: style, lineWidth: width, globalAlpha: alpha, lineJoin: "round"});
  c.setLineDash(dash);
  c.stroke();
  c.setLineDash([]);
  c.globalAlpha = 1;
}
function star(c, x, y, r) {
  c.beginPath();
  for (let k = 0; k < 10; k++) {
    const a = Math.PI * (k / 5 - 0.5);
    const d = k % 2 ? r * 0.45 : r;
    c.lineTo(x + d * Math.cos(a), y + d * Math.sin(a));
  }
  c.closePath();
}
function place(m) {
  return [box.X(m.x), m.y == null || (state.log && m.y <= 0) ? box.bottom - 5 : box.Y(m.y)];
}
function drawMark(c, m, size) {
  const [x, y] = place(m);
  c.lineWidth = 1;
  c.fillStyle = m.run.color;
  c.strokeStyle = color("ground");
  if (m.mark.kind === "damaged") {
    c.strokeStyle = "#d93025";
    c.lineWidth = 2;
    c.beginPath();
    for (const s of [-1, 1]) {
      c.moveTo(x - 4, y - 4 * s);
      c.lineTo(x + 4, y + 4 * s);
    }
    c.stroke();
    return;
  }
  if (m.mark.kind === "best") star(c, x, y, size + 3);
  else {
    c.beginPath();
    c.arc(x, y, size, 0, 7);
  }
  c.fill();
  c.stroke();
}
function stagesOf(c, run, named) {
  const rows = rowsByStep(run);
  const xs = run.columns[state.axis] || [];
  run.stages.forEach(([step, name], k) => {
    const x = xs[rows.get(step)];
    if (!isNumber(x) || x < box.x0 || x > box.x1) return;
    const next = run.stages[k + 1];
    const end = next && isNumber(xs[rows.get(next[0])]) ? box.X(xs[rows.get(next[0])]) : box.right;
    const p = box.X(x);
    if (k) {
      c.strokeStyle = run.color;
      c.globalAlpha = 0.45;
      c.setLineDash([6, 4]);
      c.beginPath();
      c.moveTo(p, box.top);
      c.lineTo(p, box.bottom);
      c.stroke();
      c.setLineDash([]);
      c.globalAlpha = 1;
    }
    const wide = c.measureText(name).width;
    if (wide + 6 > Math.min(end, box.right) - p || named.some(([a, b]) => p < b && p + wide + 6 > a)) return;
    named.push([p, p + wide + 10]);
    c.textAlign = "left";
    c.fillStyle = color("soft");
    c.fillText(name, p + 4, box.top + 10);
  });
  c.setLineDash([2, 3]);
  c.strokeStyle = run.color;
  c.globalAlpha = 0.7;
  for (const step of run.resumes) {
    const x = xs[rows.get(step)];
    if (isNumber(x)) {
      c.beginPath();
      c.moveTo(box.X(x), box.top);
      c.lineTo(box.X(x), box.bottom);
      c.stroke();
    }
  }
  c.setLineDash([]);
  c.globalAlpha = 1;
}
function curve(c, run) {
  const s = series(run);
  const faint = lifted && lifted !== run.id ? 0.25 : 1;
  const sparse = run.sparse[state.tab];
  for (const branch of lost(run)) line(c, branch, run.color, 1, 0.55 * faint, [1, 3]);
  if (isSmooth()) {
    line(c, s, run.color, 1, 0.3 * faint, []);
    line(c, smoothed(run), run.color, 2, faint, run.dash);
  } else line(c, s, run.color, 1.6, faint, run.dash);
  if (sparse || s.x.length === 1)
    for (let i = 0; i < s.x.length; i++) {
      c.fillStyle = run.color;
      if (!state.log || s.y[i] > 0) c.fillRect(box.X(s.x[i]) - 2.5, box.Y(s.y[i]) - 2.5, 5, 5);
    }
  if (run.crashed && s.x.length && (!state.log || s.y[s.y.length - 1] > 0)) {
    const x = box.X(s.x[s.x.length - 1]);
    const y = box.Y(s.y[s.y.length - 1]);
    c.strokeStyle = "#d93025";
    c.lineWidth = 3;
    c.beginPath();
    for (const k of [-1, 1]) {
      c.moveTo(x - 5, y - 5 * k);
      c.lineTo(x + 5, y + 5 * k);
    }
    c.stroke();
  }
}
function draw() {
  const c = sized($("curves"));
  const w = $("stage").clientWidth;
  const h = $("stage").clientHeight;
  box = w && h ? layout(c, w, h) : null;
  $("empty").hidden = !!box || !w;
  if (!box) {
    $("empty").textContent =
      base.runs.length && !shown().length
        ? "Every run is hidden: press one below to show it."
        : "Nothing to draw here yet.";
    sized($("over"));
    return;
  }
  grid(c);
  c.save();
  c.beginPath();
  c.rect(box.left - 1, 0, box.right - box.left + 9, box.bottom + 6);
  c.clip();
  const named = [];
  const runs = shown();
  for (const run of runs) stagesOf(c, run, named);
  for (const run of runs) curve(c, run);
  for (const run of runs) {
    const all = marks(run);
    const size = all.length > 300 ? 3 : 4.5;
    for (const m of all) if (m.x >= box.x0 && m.x <= box.x1) drawMark(c, m, size);
  }
  c.restore();
  document.body.dataset.drawn = Number(document.body.dataset.drawn || 0) + 1;
  hover();
}
let asked = 0;
function redraw() {
  if (!asked)
    asked = requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
}

// ---------------------------------------------------------------- what the pointer is on
function under(px, py, reachOf) {
  let best = null;
  let far = reachOf;
  for (const run of shown())
    for (const m of marks(run)) {
      if (m.x < box.x0 || m.x > box.x1) continue;
      const [x, y] = place(m);
      const d = Math.hypot(x - px, y - py);
      if (d < far) {
        far = d;
        best = m;
      }
    }
  return best;
}
function beside(px, py) {
  // The logged point of each run that is nearest in x, the nearest of all first.
  const found = [];
  for (const run of shown()) {
    const s = series(run);
    if (!s.x.length) continue;
    const k = nearest(s.x, box.inX(px));
    const x = box.X(s.x[k]);
    const y = box.Y(s.y[k]);
    if (Math.abs(x - px) < Math.max(30, (box.right - box.left) * 0.08) && s.x[k] >= box.x0 && s.x[k] <= box.x1)
      found.push({run, k, x, y, far: Math.hypot(x - px, y - py)});
  }
  return found.sort((a, b) => a.far - b.far);
}
const exact = v => (v == null ? "–" : String(v));
function line3(run, name, value, more) {
  const row = make("div");
  const swatch = make("span", null, "swatch");
  swatch.style.borderColor = run.color;
  const label = make("span", name);
  const number = make("span");
  label.title = name;
  number.append(make("b", exact(value)));
  if (more) number.append(" ", make("small", more));
  row.append(swatch, label, number);
  return row;
}
function pointLines(found) {
  const lines = found.slice(0, 9).map(({run, k}) => {
    const s = series(run);
    const step = (table(run).step || [])[s.i[k]];
    const row = line3(
      run,
      run.name,
      s.y[k],
      `step ${step}${isSmooth() ? `, smoothed ${+smoothed(run).y[k].toPrecision(5)}` : ""}`,
    );
    Object.assign(row.dataset, {run: run.name, step, value: s.y[k]});
    return row;
  });
  if (found.length > 9) lines.push(make("small", `and ${found.length - 9} more`));
  return lines;
}
function markLines(m) {
  const k = m.mark;
  const loss = m.row == null ? null : (m.run.columns.loss || [])[m.row];
  const title = make("b", m.run.name);
  const lines = [title, make("div", [`step ${k.step}`, k.stage, k.name, ...k.badges].filter(Boolean).join(", "))];
  const fact = (name, value) => {
    if (isNumber(value)) {
      lines.push(line3(m.run, name, value));
      lines[lines.length - 1].classList.add("fact");
      lines[lines.length - 1].firstChild.remove();
    }
  };
  if (!["loss", "val_loss"].includes(state.tab))
    fact(base.tabs.find(t => t.key === state.tab).title.toLowerCase(), m.y);
  fact("loss of this step", loss);
  fact("mean since the last save", k.loss);
  fact("validation loss", k.val_loss);
  lines.push(make("small", k.problem || (k.key === tail.picked ? "selected" : "click to select it")));
  return lines;
}
function tip(lines, px, py) {
  const t = $("tip");
  const stage = $("stage");
  t.replaceChildren(...lines);
  t.hidden = false;
  const w = t.offsetWidth;
  const h = t.offsetHeight;
  const wide = stage.clientWidth;
  const right = px + 16 + w <= wide;
  const left = px - 16 - w >= 0;
  t.style.left = `${right ? px + 16 : Math.max(0, left ? px - 16 - w : wide - w)}px`;
  const beside = right || left;
  const top = beside ? py - h / 2 : py > stage.clientHeight / 2 ? py - h - 18 : py + 18;
  t.style.top = `${Math.max(0, Math.min(stage.clientHeight - h, top))}px`;
}
function hover() {
  const c = sized($("over"));
  $("tip").hidden = true;
  $("curves").classList.toggle("mark", false);
  if (!box) return;
  for (const run of shown())
    for (const m of marks(run))
      if (m.mark.key === tail.picked || (sent && m.mark.key === sent.key)) {
        const [x, y] = place(m);
        if (m.x < box.x0 || m.x > box.x1) continue;
        c.strokeStyle = color("ink");
        c.lineWidth = 2;
        c.setLineDash(m.mark.key === tail.picked ? [] : [3, 3]);
        c.beginPath();
        c.arc(x, y, 10, 0, 7);
        c.stroke();
        c.setLineDash([]);
      }
  if (drag && drag.kind === "zoom" && drag.to) {
    const [x, y, w, h] = drag.box();
    c.fillStyle = color("accent");
    c.globalAlpha = 0.18;
    c.fillRect(x, y, w, h);
    c.globalAlpha = 1;
    c.strokeStyle = color("accent");
    c.strokeRect(x, y, w, h);
    return;
  }
  if (!cursor) return;
  const m = cursor.mark || (!cursor.run && under(cursor.x, cursor.y, cursor.touch ? 24 : 13));
  if (m) {
    const [x, y] = place(m);
    $("curves").classList.add("mark");
    tip(markLines(m), x, y);
    return;
  }
  const found = beside(cursor.x, cursor.y);
  if (!found.length || cursor.y < box.top || cursor.y > box.bottom + 4 || cursor.x < box.left - 4) return;
  c.strokeStyle = color("soft");
  c.lineWidth = 1;
  c.setLineDash([3, 3]);
  c.beginPath();
  c.moveTo(found[0].x, box.top);
  c.lineTo(found[0].x, box.bottom);
  c.stroke();
  c.setLineDash([]);
  for (const f of found) {
    c.beginPath();
    c.arc(f.x, f.y, 4, 0, 7);
    c.fillStyle = f.run.color;
    c.fill();
    c.strokeStyle = color("ground");
    c.stroke();
  }
  tip(pointLines(found), found[0].x, found[0].y);
}

// ---------------------------------------------------------------- hands
function inside(e) {
  const r = $("stage").getBoundingClientRect();
  return {x: e.clientX - r.x, y: e.clientY - r.y, touch: e.pointerType === "touch"};
}
function look(x, y) {
  state.x = x;
  state.y = y;
  keep();
  $("reset").disabled = !x && !y;
  redraw();
}
function zoom(by, px) {
  if (!box) return;
  const all = state.x;
  const x = box.inX(px);
  state.x = null;
  const whole = bounds();
  state.x = all;
  const from = x - (x - box.x0) * by;
  const to = x + (box.x1 - x) * by;
  if (!whole || to - from < (whole.x1 - whole.x0) * 1e-6) return;
  if (from <= whole.x0 && to >= whole.x1) look(null, null);
  else look([Math.max(from, whole.x0), Math.min(to, whole.x1)], state.y);
}
function press(e) {
  if (e.button || !box) return;
  const from = inside(e);
  const seen = {...box};
  drag = {kind: e.shiftKey ? "move" : "zoom", from, to: null, seen};
  drag.box = () => {
    const x0 = Math.max(seen.left, Math.min(from.x, drag.to.x));
    const x1 = Math.min(seen.right, Math.max(from.x, drag.to.x));
    const tall = Math.abs(drag.to.y - from.y) > 24 && !from.touch;
    return tall
      ? [
          x0,
          Math.max(seen.top, Math.min(from.y, drag.to.y)),
          x1 - x0,
          Math.min(seen.bottom, Math.max(from.y, drag.to.y)) - Math.max(seen.top, Math.min(from.y, drag.to.y)),
        ]
      : [x0, seen.top, x1 - x0, seen.bottom - seen.top];
  };
  $("curves").setPointerCapture(e.pointerId);
}
function slide(e) {
  cursor = inside(e);
  if (drag && (drag.to || Math.abs(cursor.x - drag.from.x) > 4)) {
    drag.to = cursor;
    if (drag.kind === "move") {
      const by = ((drag.from.x - cursor.x) / (drag.seen.right - drag.seen.left)) * (drag.seen.x1 - drag.seen.x0);
      $("curves").classList.add("move");
      return look([drag.seen.x0 + by, drag.seen.x1 + by], state.y);
    }
  }
  hover();
}
function release(_e) {
  const d = drag;
  drag = null;
  $("curves").classList.remove("move");
  if (!d || !box) return;
  if (!d.to) {
    const m = under(d.from.x, d.from.y, d.from.touch ? 24 : 13);
    if (m) select(m.mark);
    return hover();
  }
  if (d.kind === "move") return;
  drag = d;
  const [x, y, w, h] = d.box();
  drag = null;
  if (w > 4) look([box.inX(x), box.inX(x + w)], h < box.bottom - box.top ? [box.inY(y + h), box.inY(y)] : state.y);
  else hover();
}
function keys(e) {
  const go = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, ",": -1, ".": 1}[e.key];
  const runs = shown();
  if (e.key === "+" || e.key === "=") zoom(0.7, (box.left + box.right) / 2);
  else if (e.key === "-") zoom(1 / 0.7, (box.left + box.right) / 2);
  else if (e.key === "0" || e.key === "Home" || e.key === "Escape") look(null, null);
  else if (e.key === "Enter") {
    const m = cursor && box && (cursor.mark || under(cursor.x, cursor.y, 24));
    if (m) select(m.mark);
  } else if (go && box && runs.length) walk(e.key, go, runs);
  else return;
  e.preventDefault();
}
function walk(key, go, runs) {
  let run = cursor?.run || (cursor && beside(cursor.x, cursor.y)[0]?.run) || runs[0];
  if (key === "ArrowUp" || key === "ArrowDown") run = runs[(runs.indexOf(run) + go + runs.length) % runs.length];
  const seen = v => v.x >= box.x0 && v.x <= box.x1;
  const s = series(run);
  const all = [",", "."].includes(key)
    ? marks(run)
        .filter(seen)
        .sort((a, b) => a.x - b.x)
    : null;
  if (all?.length) {
    const here = cursor?.mark ? all.findIndex(m => m.mark.key === cursor.mark.mark.key) : go > 0 ? -1 : 0;
    const m = all[(here + go + all.length) % all.length];
    const [x, y] = place(m);
    cursor = {x, y, run, mark: m};
  } else if (s.x.length) {
    const middle = cursor ? box.inX(cursor.x) : box.x0;
    const moves = key === "ArrowLeft" || key === "ArrowRight";
    const k = Math.max(0, Math.min(s.x.length - 1, nearest(s.x, middle) + (moves && cursor ? go : 0)));
    cursor = {x: box.X(s.x[k]), y: box.Y(s.y[k]), run};
  }
  hover();
  if (!$("tip").hidden) say($("tip").innerText.replace(/\s+/g, " "));
}

// ---------------------------------------------------------------- telling Python
function say(text, bad) {
  $("said").textContent = text || "";
  $("said").className = bad ? "bad" : "";
}
function select(mark) {
  sent = {key: mark.key, n: Date.now(), late: setTimeout(waiting, 2500)};
  if (!deliver(JSON.stringify({pick: mark.key, n: sent.n}))) lostTouch();
  else say(`Selecting the checkpoint of step ${mark.step} ...`);
  hover();
}
function deliver(text) {
  const input = root?.querySelector(".plot-heard input");
  const colab = reach(() => around.google.colab.kernel);
  if (input) {
    input.value = text;
    for (const kind of ["input", "change"]) input.dispatchEvent(new around.Event(kind, {bubbles: true}));
    return true;
  }
  if (!colab || !colab.accessAllowed || !base.callback) return false;
  colab.invokeFunction(base.callback, [text], {}).catch(lostTouch);
  return true;
}
function waiting() {
  if (sent)
    say(
      "Queued: the kernel answers when the cell that runs has ended, and only the last click counts. " +
        "If no cell runs, it is not connected: run the panel's cell again.",
      true,
    );
}
function lostTouch() {
  if (sent) clearTimeout(sent.late);
  sent = null;
  say("Not connected to the kernel: run the panel's cell again to select checkpoints here.", true);
  hover();
}
function heard() {
  if (sent && tail.ack >= sent.n) {
    clearTimeout(sent.late);
    sent = null;
    say("");
  }
}

// ---------------------------------------------------------------- what stands around the curves
function options(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, name]) => Object.assign(make("option", name), {value})));
  select.value = chosen;
}
function hasTab(t) {
  return base.runs.some(r => {
    const found = (r.sparse[t.key] || r.columns)[t.key];
    return found?.some(isNumber);
  });
}
function refresh() {
  const tabs = base.tabs.filter(t => t.key === "loss" || hasTab(t));
  if (!tabs.some(t => t.key === state.tab)) state.tab = "loss";
  if (tabs.map(t => t.key).join() !== $("tabs").dataset.keys) {
    $("tabs").dataset.keys = tabs.map(t => t.key).join();
    $("tabs").replaceChildren(
      ...tabs.map(t => {
        const b = make("button", t.title);
        b.type = "button";
        b.role = "tab";
        b.setAttribute("role", "tab");
        b.dataset.key = t.key;
        b.onclick = () => open(t.key);
        return b;
      }),
    );
  }
  for (const b of $("tabs").children) {
    const on = b.dataset.key === state.tab;
    b.setAttribute("aria-selected", on);
    b.tabIndex = on ? 0 : -1;
  }
  $("smoothing").hidden = !["loss", "grad_norm", "tokens_per_second"].includes(state.tab);
  $("reset").disabled = !state.x && !state.y;
  legend();
  const kinds = new Set(base.runs.flatMap(r => r.marks.map(m => m.kind)));
  const has = f => base.runs.some(f);
  $("marks").textContent = [
    [kinds.has("whole"), "● checkpoint"],
    [kinds.has("best"), "★ best of its stage"],
    [kinds.has("damaged"), "× damaged"],
    [has(r => r.lost.length), "dotted: work that a crash lost"],
    [has(r => r.resumes.length), "dotted upright: went on from here"],
    [has(r => r.crashed), "red cross at the end: ended without saving"],
  ]
    .filter(k => k[0])
    .map(k => k[1])
    .join(" · ");
  const told = run => {
    const s = series(run);
    const n = s.x.length;
    if (!n) return `${run.name}: no value`;
    const step = (table(run).step || [])[s.i[n - 1]];
    return `${run.name} ${+s.y[0].toPrecision(3)} to ${+s.y[n - 1].toPrecision(3)} at step ${step}`;
  };
  $("curves").setAttribute(
    "aria-label",
    `${(tabs.find(t => t.key === state.tab) || {title: ""}).title}: ${shown().map(told).join("; ")}`,
  );
  redraw();
}
function open(key) {
  state.tab = key;
  state.y = null;
  keep();
  refresh();
  for (const b of $("tabs").children) if (b.dataset.key === key && document.activeElement.role === "tab") b.focus();
}
function legend() {
  const made = base.runs.map(run => {
    const b = make("button");
    const swatch = make("span", null, "swatch");
    b.type = "button";
    b.title = "Hide or show; Alt and click: this one alone";
    b.dataset.run = run.name;
    swatch.style.borderColor = run.color;
    swatch.style.borderTopStyle = run.dash.length ? (run.dash[0] > 4 ? "dashed" : "dotted") : "solid";
    b.append(swatch, run.name);
    b.setAttribute("aria-pressed", !state.hidden.includes(run.id));
    b.onclick = e => {
      if (e.altKey) state.hidden = base.runs.map(r => r.id).filter(id => id !== run.id);
      else
        state.hidden = state.hidden.includes(run.id)
          ? state.hidden.filter(id => id !== run.id)
          : [...state.hidden, run.id];
      keep();
      refresh();
    };
    b.onpointerenter = () => {
      lifted = run.id;
      redraw();
    };
    b.onpointerleave = () => {
      lifted = null;
      redraw();
    };
    return b;
  });
  const focused = document.activeElement?.dataset.run;
  $("legend").replaceChildren(...made);
  for (const b of made) if (focused != null && b.dataset.run === focused) b.focus();
}
function theme() {
  let dark = null;
  let ground = "";
  for (let e = frame?.parentElement; e; e = e.parentElement) {
    const c = (around.getComputedStyle(e).backgroundColor.match(/[\d.]+/g) || []).map(Number);
    if (c.length === 3 || c[3] > 0.9) {
      dark = 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2] < 128;
      ground = `rgb(${c.slice(0, 3).join()})`;
      break;
    }
  }
  if (dark == null && frame) {
    const c = around
      .getComputedStyle(frame.parentElement)
      .color.match(/[\d.]+/g)
      .map(Number);
    dark = 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2] > 140;
  }
  if (dark == null) dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark", dark);
  if (ground) document.body.style.setProperty("--ground", ground);
  redraw();
}
function fit() {
  if (frame && $("plot").offsetHeight > 60) frame.style.height = `${$("plot").offsetHeight + 2}px`;
  redraw();
}

function start() {
  $("silent").hidden = true;
  $("plot").hidden = false;
  options($("axis"), AXES, state.axis);
  options($("weight"), WEIGHTS, state.weight);
  $("log").checked = state.log;
  $("axis").onchange = () => {
    state.axis = $("axis").value;
    state.x = null;
    keep();
    refresh();
  };
  $("weight").onchange = () => {
    state.weight = +$("weight").value;
    keep();
    redraw();
  };
  $("log").onchange = () => {
    state.log = $("log").checked;
    state.y = null;
    keep();
    redraw();
  };
  $("reset").onclick = () => look(null, null);
  $("tabs").onkeydown = e => {
    const go = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    const all = [...$("tabs").children];
    if (go) all[(all.indexOf(document.activeElement) + go + all.length) % all.length].click();
  };
  const c = $("curves");
  c.onpointerdown = press;
  c.onpointermove = slide;
  c.onpointerup = release;
  c.onpointercancel = () => {
    drag = null;
    hover();
  };
  c.onpointerleave = () => {
    if (!drag) {
      cursor = null;
      hover();
    }
  };
  c.ondblclick = () => look(null, null);
  c.onkeydown = keys;
  c.onblur = () => {
    if (cursor?.run) {
      cursor = null;
      hover();
    }
  };
  c.addEventListener(
    "wheel",
    e => {
      if (e.ctrlKey || e.metaKey || document.activeElement === c) {
        e.preventDefault();
        zoom(Math.exp(e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), inside(e).x);
      }
    },
    {passive: false},
  );
  new ResizeObserver(fit).observe($("plot"));
  const embedded = $("data");
  if (embedded) {
    base = JSON.parse(embedded.textContent);
    refresh();
  }
  if (root) {
    new MutationObserver(read).observe(root, {subtree: true, childList: true, characterData: true});
    read();
  }
  if (frame)
    for (const e of [frame.ownerDocument.documentElement, frame.ownerDocument.body])
      new MutationObserver(theme).observe(e, {attributes: true});
  matchMedia("(prefers-color-scheme: dark)").onchange = theme;
  theme();
  document.body.dataset.ready = 1;
}
start();
