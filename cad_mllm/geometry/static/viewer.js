// A part that turns under the mouse: fills a z-buffer and draws edges on a canvas. `DATA` holds the parts and the view.
"use strict";
async function load(part) {
  const packed = Uint8Array.from(atob(part.data), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = await new Response(stream).arrayBuffer();
  let at = 0;
  const planes = (kind, rows) => {
    // undo the differences; 16-bit sums wrap around, as they did when taken
    const d = new kind(raw, at, 3 * rows);
    const out = new kind(3 * rows);
    at += d.byteLength;
    for (let c = 0; c < 3; c++)
      for (let i = 0, sum = 0; i < rows; i++) out[3 * i + c] = sum = (sum + d[c * rows + i]) | 0;
    return out;
  };
  const place = u => Float32Array.from(new Uint16Array(u.buffer), (x, i) => x / 65535 - DATA.middle[i % 3]);
  const faces = planes(Int32Array, part.f);
  const points = place(planes(Int16Array, part.v));
  const lines = place(planes(Int16Array, part.l));
  return {
    ...part,
    faces,
    points,
    lines,
    normals: cornerNormals(points, faces),
    pairs: facePairs(faces),
    flat: faceNormals(points, faces),
  };
}

function faceNormals(p, f) {
  // one a face, as long as twice its area
  const n = new Float32Array(f.length);
  for (let i = 0; i < f.length; i += 3) {
    const a = 3 * f[i];
    const b = 3 * f[i + 1];
    const c = 3 * f[i + 2];
    const ux = p[b] - p[a];
    const uy = p[b + 1] - p[a + 1];
    const uz = p[b + 2] - p[a + 2];
    const vx = p[c] - p[a];
    const vy = p[c + 1] - p[a + 1];
    const vz = p[c + 2] - p[a + 2];
    n[i] = uy * vz - uz * vy;
    n[i + 1] = uz * vx - ux * vz;
    n[i + 2] = ux * vy - uy * vx;
  }
  return n;
}
function cornerNormals(p, f) {
  // one a corner of a face, of length 1
  const flat = faceNormals(p, f);
  const unit = new Float32Array(flat);
  const out = new Float32Array(3 * f.length);
  const around = Array.from({length: p.length / 3}, () => []);
  for (let i = 0; i < f.length; i += 3) {
    const s = Math.hypot(flat[i], flat[i + 1], flat[i + 2]) || 1;
    for (let k = 0; k < 3; k++) {
      unit[i + k] /= s;
      around[f[i + k]].push(i);
    }
  }
  for (let i = 0; i < f.length; i++) {
    const own = i - (i % 3);
    let x = 0;
    let y = 0;
    let z = 0;
    for (const j of around[f[i]])
      if (unit[own] * unit[j] + unit[own + 1] * unit[j + 1] + unit[own + 2] * unit[j + 2] > 0.866) {
        x += flat[j];
        y += flat[j + 1];
        z += flat[j + 2];
      }
    const s = Math.hypot(x, y, z) || 1;
    out[3 * i] = x / s;
    out[3 * i + 1] = y / s;
    out[3 * i + 2] = z / s;
  }
  return out;
}
function facePairs(f) {
  // [vertex, vertex, face, face] of each edge between two faces: where outlines may run
  const seen = new Map();
  const out = [];
  for (let i = 0; i < f.length; i++) {
    const a = f[i];
    const b = f[i % 3 === 2 ? i - 2 : i + 1];
    const key = Math.min(a, b) * 4194304 + Math.max(a, b);
    if (seen.has(key)) out.push(a, b, seen.get(key), i - (i % 3));
    else seen.set(key, i - (i % 3));
  }
  return out;
}

function project(view, points, w, h) {
  // columns, rows, depth
  const a = (view.azimuth * Math.PI) / 180;
  const e = (view.elevation * Math.PI) / 180;
  const ca = Math.cos(a);
  const sa = Math.sin(a);
  const ce = Math.cos(e);
  const se = Math.sin(e);
  const s = view.scale;
  const out = new Float32Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    const x = points[i];
    const y = points[i + 1];
    const z = points[i + 2];
    out[i] = w / 2 + view.x + s * (ca * y - sa * x);
    out[i + 1] = h / 2 + view.y + s * (se * (ca * x + sa * y) - ce * z);
    out[i + 2] = -s * (ce * (ca * x + sa * y) + se * z);
  }
  return out;
}
function light(view) {
  // over the left shoulder of whoever looks, in the world's axes
  const a = (view.azimuth * Math.PI) / 180;
  const e = (view.elevation * Math.PI) / 180;
  const ca = Math.cos(a);
  const sa = Math.sin(a);
  const ce = Math.cos(e);
  const se = Math.sin(e);
  const l = [-0.42, 0.62, 0.66].map(c => c / 0.999);
  return [
    -sa * l[0] - ca * se * l[1] + ca * ce * l[2],
    ca * l[0] - sa * se * l[1] + sa * ce * l[2],
    ce * l[1] + se * l[2],
    ca * ce,
    sa * ce,
    se,
  ];
}
function fill(part, q, view, w, h, depth, pixels) {
  const {faces: f, normals: n, closed} = part;
  const [lx, ly, lz, ex, ey, ez] = light(view);
  const shade = k => {
    let s = n[k] * lx + n[k + 1] * ly + n[k + 2] * lz;
    if (!closed && n[k] * ex + n[k + 1] * ey + n[k + 2] * ez < 0) s = -s;
    return s > 0 ? s : 0;
  };
  const marked = part.given != null;
  for (let i = 0; i < f.length; i += 3) {
    const tones = !marked ? STEEL : i < 3 * part.given ? STONE : FRESH;
    const a = 3 * f[i];
    const b = 3 * f[i + 1];
    const c = 3 * f[i + 2];
    const ax = q[a];
    const ay = q[a + 1];
    const az = q[a + 2];
    const bx = q[b] - ax;
    const by = q[b + 1] - ay;
    const cx = q[c] - ax;
    const cy = q[c + 1] - ay;
    const det = bx * cy - cx * by;
    if (closed ? det > -1e-6 : Math.abs(det) < 1e-6) continue;
    const top = Math.max(0, Math.ceil(ay + Math.min(0, by, cy) - 0.5));
    const end = Math.min(h, Math.ceil(ay + Math.max(0, by, cy) - 0.5));
    if (top >= end) continue;
    const bz = q[b + 2] - az;
    const cz = q[c + 2] - az;
    const zx = (bz * cy - cz * by) / det;
    const zy = (cz * bx - bz * cx) / det;
    const s = shade(3 * i);
    const bs = shade(3 * i + 3) - s;
    const cs = shade(3 * i + 6) - s;
    const sx = (bs * cy - cs * by) / det;
    const sy = (cs * bx - bs * cx) / det;
    for (let row = top; row < end; row++) {
      const y = row + 0.5 - ay;
      let lo = Infinity;
      let hi = -Infinity;
      let x;
      if (0 <= y !== by <= y) {
        x = (bx * y) / by;
        if (x < lo) lo = x;
        if (x > hi) hi = x;
      }
      if (0 <= y !== cy <= y) {
        x = (cx * y) / cy;
        if (x < lo) lo = x;
        if (x > hi) hi = x;
      }
      if (by <= y !== cy <= y) {
        x = bx + ((cx - bx) * (y - by)) / (cy - by);
        if (x < lo) lo = x;
        if (x > hi) hi = x;
      }
      const first = Math.max(0, Math.ceil(ax + lo - 0.5));
      const last = Math.min(w, Math.ceil(ax + hi - 0.5));
      const d = first + 0.5 - ax;
      let z = az + zx * d + zy * y;
      let t = s + sx * d + sy * y;
      for (let at = row * w + first, stop = row * w + last; at < stop; at++, z += zx, t += sx)
        if (z < depth[at]) {
          depth[at] = z;
          pixels[at] = tones[t < 0 ? 0 : t > 1 ? 255 : (t * 255) | 0];
        }
    }
  }
}

function* segments(part, q, lines) {
  for (let i = 0; i < lines.length; i += 6)
    yield [lines[i], lines[i + 1], lines[i + 2], lines[i + 3], lines[i + 4], lines[i + 5]];
  const {pairs, faces: f} = part;
  const front = i => {
    const a = 3 * f[i];
    const b = 3 * f[i + 1];
    const c = 3 * f[i + 2];
    return (q[b] - q[a]) * (q[c + 1] - q[a + 1]) - (q[c] - q[a]) * (q[b + 1] - q[a + 1]) < 0;
  };
  for (let i = 0; i < pairs.length; i += 4)
    if (front(pairs[i + 2]) !== front(pairs[i + 3])) {
      const a = 3 * pairs[i];
      const b = 3 * pairs[i + 1];
      yield [q[a], q[a + 1], q[a + 2], q[b], q[b + 1], q[b + 2]];
    }
}
function farthest(depth, w, h) {
  // of each pixel and its eight neighbours: an edge at an outline has surface on one side only
  const wide = new Float32Array(depth.length);
  const out = new Float32Array(depth.length);
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) {
      let m = depth[i];
      if (x > 0 && depth[i - 1] > m) m = depth[i - 1];
      if (x < w - 1 && depth[i + 1] > m) m = depth[i + 1];
      wide[i] = m;
    }
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) {
      let m = wide[i];
      if (y > 0 && wide[i - w] > m) m = wide[i - w];
      if (y < h - 1 && wide[i + w] > m) m = wide[i + w];
      out[i] = m;
    }
  return out;
}
function drawLines(ctx, part, q, lines, depth, w, h, slack) {
  const far = farthest(depth, w, h);
  ctx.beginPath();
  for (const [x0, y0, z0, x1, y1, z1] of segments(part, q, lines)) {
    const num = Math.min(4096, Math.max(1, Math.ceil(Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0)) / 1.5)));
    let from = -1; // where the visible piece began; a hidden edge peeps out by a pixel or two at an outline: left out
    for (let k = 0; k <= num + 1; k++) {
      const t = k / num;
      const c = Math.floor(x0 + t * (x1 - x0));
      const r = Math.floor(y0 + t * (y1 - y0));
      const shown = k <= num && c >= 0 && r >= 0 && c < w && r < h && z0 + t * (z1 - z0) <= far[r * w + c] + slack;
      if (shown && from < 0) from = k;
      if (shown || from < 0) continue;
      if (k - from > 3 || num < 6) {
        const s = from / num;
        const e = (k - 1) / num;
        ctx.moveTo(x0 + s * (x1 - x0), y0 + s * (y1 - y0));
        ctx.lineTo(x0 + e * (x1 - x0), y0 + e * (y1 - y0));
      }
      from = -1;
    }
  }
  ctx.stroke();
}

const $ = id => document.getElementById(id);
const canvas = $("part");
const ctx = canvas.getContext("2d");
const tonesOf = (...bgr) =>
  Uint32Array.from({length: 256}, (_, i) =>
    bgr.reduce((all, c) => all * 256 + Math.min(255, Math.round(c * (0.52 + (0.56 * i) / 255))), 255),
  ); // as a pixel lies in memory: ABGR
const STEEL = tonesOf(224, 199, 176);
const STONE = tonesOf(188, 190, 190);
const FRESH = tonesOf(246, 164, 84);
let parts = [];
let current = 0;
let view = {};
let edges = true;
let asked = 0;
let moving = false;
let calm = 0;
const home = () => ({azimuth: DATA.azimuth, elevation: DATA.elevation, zoom: 1, x: 0, y: 0});
function draw() {
  asked = 0;
  const dense = window.devicePixelRatio || 1;
  const ratio = moving && dense > 1 ? dense / 2 : dense;
  const w = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const h = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const scale = view.zoom * Math.min(w, h) * DATA.fit;
  const v = {...view, scale, x: view.x * ratio, y: view.y * ratio};
  const part = parts[current];
  const image = ctx.createImageData(w, h);
  const depth = new Float32Array(w * h).fill(Infinity);
  const q = project(v, part.points, w, h);
  fill(part, q, v, w, h, depth, new Uint32Array(image.data.buffer));
  ctx.putImageData(image, 0, 0);
  ctx.lineWidth = 1.15 * ratio;
  ctx.lineCap = "round";
  ctx.strokeStyle = "#2b3340";
  if (edges) drawLines(ctx, part, q, project(v, part.lines, w, h), depth, w, h, 0.6 + 0.0004 * scale);
  const axes = project(
    {...v, scale: 22 * ratio, x: 34 * ratio - w / 2, y: h / 2 - 34 * ratio},
    new Float32Array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]),
    w,
    h,
  );
  ctx.lineWidth = 2 * ratio;
  ctx.font = `${11 * ratio}px sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ["#d0443e", "#2f9a4d", "#3b78d8"].forEach((color, i) => {
    const x = axes[3 * i + 3];
    const y = axes[3 * i + 4];
    ctx.strokeStyle = ctx.fillStyle = color;
    ctx.beginPath();
    ctx.moveTo(axes[0], axes[1]);
    ctx.lineTo(x, y);
    ctx.stroke();
    ctx.fillText("xyz"[i], x + (x - axes[0]) * 0.35, y + (y - axes[1]) * 0.35);
  });
  canvas.dataset.frames = 1 + +(canvas.dataset.frames || 0);
}
function redraw(quick) {
  moving = !!quick;
  clearTimeout(calm);
  if (quick) calm = setTimeout(() => redraw(), 160);
  asked = asked || requestAnimationFrame(draw);
}
function show(i) {
  current = Math.max(0, Math.min(parts.length - 1, i));
  $("name").textContent = parts[current].name;
  $("size").textContent = parts[current].size;
  for (const [k, b] of document.querySelectorAll("#names button").entries())
    b.setAttribute("aria-pressed", k === current);
  if ($("slider")) $("slider").value = current;
  redraw();
}

const fingers = new Map();
function turn(dx, dy) {
  view.azimuth -= dx;
  view.elevation = Math.max(-90, Math.min(90, view.elevation + dy));
  redraw(true);
}
function move(dx, dy) {
  view.x += dx;
  view.y += dy;
  redraw(true);
}
function zoom(factor, x, y) {
  // x, y: what stays in place, from the middle of the picture
  factor = Math.max(0.2, Math.min(60, view.zoom * factor)) / view.zoom;
  view.zoom *= factor;
  view.x = x - (x - view.x) * factor;
  view.y = y - (y - view.y) * factor;
  redraw(true);
}
const middle = e => {
  const r = canvas.getBoundingClientRect();
  return [e.clientX - r.x - r.width / 2, e.clientY - r.y - r.height / 2];
};
canvas.addEventListener("pointerdown", e => {
  canvas.focus();
  canvas.setPointerCapture(e.pointerId);
  fingers.set(e.pointerId, e);
  e.preventDefault();
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, e => {
    fingers.delete(e.pointerId);
    redraw();
  });
canvas.addEventListener("pointermove", e => {
  const last = fingers.get(e.pointerId);
  if (!last) return;
  const dx = e.clientX - last.clientX;
  const dy = e.clientY - last.clientY;
  if (fingers.size === 2) {
    const other = [...fingers.values()].find(f => f.pointerId !== e.pointerId);
    const far = f => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY);
    move(dx / 2, dy / 2);
    zoom(
      far(e) / (far(last) || 1),
      ...middle({clientX: (e.clientX + other.clientX) / 2, clientY: (e.clientY + other.clientY) / 2}),
    );
  } else if (e.shiftKey || e.buttons & 6) move(dx, dy);
  else turn(dx * 0.5, dy * 0.5);
  fingers.set(e.pointerId, e);
});
canvas.addEventListener(
  "wheel",
  e => {
    if (!e.ctrlKey && document.activeElement !== canvas) return;
    e.preventDefault();
    zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016) * (e.ctrlKey ? 4 : 1)), ...middle(e));
  },
  {passive: false},
);
canvas.addEventListener("contextmenu", e => e.preventDefault());
canvas.addEventListener("dblclick", () => {
  view = home();
  redraw();
});
canvas.addEventListener("keydown", e => {
  const arrow = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[e.key];
  if (arrow) (e.shiftKey ? move : turn)(...arrow.map(c => c * (e.shiftKey ? 20 : 7.5)));
  else if ("+=".includes(e.key)) zoom(1.2, 0, 0);
  else if ("-_".includes(e.key)) zoom(1 / 1.2, 0, 0);
  else if (e.key >= "1" && e.key <= "8") {
    const [azimuth, elevation] = DATA.views[e.key - 1];
    view = {...home(), azimuth, elevation};
    redraw();
  } else if (e.key === "0" || e.key === "Home") {
    view = home();
    redraw();
  } else if (e.key === "e") {
    edges = !edges;
    redraw();
  } else if (e.key === "," || e.key === ".") show(current + (e.key === "." ? 1 : -1));
  else return;
  e.preventDefault();
});
$("home").onclick = () => {
  view = home();
  redraw();
};
$("edges").onclick = () => {
  edges = !edges;
  $("edges").setAttribute("aria-pressed", edges);
  redraw();
};

async function start() {
  parts = await Promise.all(DATA.parts.map(load));
  const names = $("names");
  if (parts.length > 1 && DATA.slider) {
    const slider = Object.assign(document.createElement("input"), {
      type: "range",
      id: "slider",
      min: 0,
      max: parts.length - 1,
      step: 1,
      ariaLabel: "operation",
    });
    slider.oninput = () => show(+slider.value);
    names.replaceWith(slider);
  } else if (parts.length > 1)
    parts.forEach((p, i) => {
      const button = Object.assign(document.createElement("button"), {textContent: p.name});
      button.onclick = () => show(i);
      names.append(button);
    });
  view = home();
  show(DATA.first);
  new ResizeObserver(() => redraw()).observe(canvas);
  document.body.dataset.ready = 1;
}
start().catch(e => {
  $("name").textContent = `This browser cannot show the part: ${e}`;
});
