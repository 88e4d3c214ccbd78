
"use strict";
// The viewer of one case. Places are [z, y, x] in voxels of what is shown: feet to head, front to back, right to left.

const find = (selector) => document.querySelector(selector);
const data = JSON.parse(find("#viewer").textContent);
const [NZ, NY, NX] = data.shape;
const STRIDE = [NY * NX, NX, 1];
const LIVER = "#3ce6c8", TUMOUR = "#ff4678";
// columns, rows and depth of each plane as axes of a place; heads are up
const PLANES = {
  axial: { u: 2, v: 1, w: 0, up: false, letters: "RLAP" },
  coronal: { u: 2, v: 0, w: 1, up: true, letters: "RLHF" },
  sagittal: { u: 1, v: 0, w: 2, up: true, letters: "APHF" },
};
const greys = new Uint8Array(NZ * NY * NX);
const labels = unpackLabels();
const levels = new Uint8ClampedArray(256); // what is shown for each grey by the window
const state = { at: data.start.slice(), width: 400, level: 40, outlines: true, near: false, yaw: 0.4, pitch: 0.25 };
let waiting = false;

function makeCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function unpackLabels() {
  const [z0, y0, x0, z1, y1, x1] = data.box;
  const size = [z1 - z0, y1 - y0, x1 - x0];
  const flat = new Uint8Array(size[0] * size[1] * size[2]);
  let at = 0, value = 0, scale = 1;
  for (const byte of bytes(data.labels)) {
    value += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) {
      const length = Math.floor(value / 3);
      flat.fill(value % 3, at, at + length);
      at += length;
      value = 0;
      scale = 1;
    }
  }
  return { flat, size, first: [z0, y0, x0] };
}

function labelAt(z, y, x) {
  const { flat, size, first } = labels;
  z -= first[0]; y -= first[1]; x -= first[2];
  if (z < 0 || y < 0 || x < 0 || z >= size[0] || y >= size[1] || x >= size[2]) return 0;
  return flat[(z * size[1] + y) * size[2] + x];
}

function toHU(grey) {
  const [hu, at] = data.curve;
  let n = 1;
  while (n < at.length - 1 && grey > at[n]) n++;
  return hu[n - 1] + ((grey - at[n - 1]) * (hu[n] - hu[n - 1])) / (at[n] - at[n - 1]);
}

// --- the CT

async function loadSlices() {
  const texts = find("#slices").textContent.split("\n");
  const order = texts.map((_, z) => z).sort((a, b) => Math.abs(a - data.start[0]) - Math.abs(b - data.start[0]));
  const canvas = makeCanvas(NX, NY);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let done = 0; done < NZ; ) {
    const next = order.slice(done, done + 8).map(async (z) => {
      const image = new Image();
      image.src = "data:image/jpeg;base64," + texts[z];
      await image.decode();
      return [z, image];
    });
    for (const [z, image] of await Promise.all(next)) {
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, NX, NY).data, start = z * STRIDE[0];
      for (let i = 0; i < STRIDE[0]; i++) greys[start + i] = pixels[4 * i];
      done++;
    }
    find("#progress").textContent = done < NZ ? `loading ${Math.round((100 * done) / NZ)} %` : "";
    if (done % 32 === 8 || done === NZ) show();
  }
  find("#slices").remove();
  document.body.dataset.ready = "true";
}

// --- planes

/** What is shown of a plane: first and last voxels, and where they come to lie on the canvas. */
function layout(plane, canvas) {
  const { u, v } = plane;
  const low = [0, 0, 0], high = data.shape.slice();
  if (state.near && labels.flat.length) {
    for (let a = 0; a < 3; a++) {
      const margin = Math.round(12 / data.spacing[a]);
      low[a] = Math.max(0, labels.first[a] - margin);
      high[a] = Math.min(high[a], labels.first[a] + labels.size[a] + margin);
    }
  }
  const columns = high[u] - low[u], rows = high[v] - low[v];
  const scale = Math.min(canvas.width / (columns * data.spacing[u]), canvas.height / (rows * data.spacing[v]));
  const su = data.spacing[u] * scale, sv = data.spacing[v] * scale;
  const left = (canvas.width - columns * su) / 2, top = (canvas.height - rows * sv) / 2;
  return {
    low, high, columns, rows, left, top, su, sv,
    x: (edge) => left + (edge - low[u]) * su, // of the edge before a voxel; + 0.5 is its centre
    y: (edge) => top + (plane.up ? high[v] - edge : edge - low[v]) * sv,
  };
}

function drawPlane(figure) {
  const plane = PLANES[figure.dataset.plane], canvas = figure.querySelector("canvas");
  const { u, v, w } = plane, place = layout(plane, canvas), context = canvas.getContext("2d");
  const { columns, rows, low } = place;
  const picture = makeCanvas(columns, rows), paint = picture.getContext("2d");
  const image = paint.createImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const depth = state.at[w] * STRIDE[w];
  for (let r = 0; r < rows; r++) {
    let from = depth + (low[v] + r) * STRIDE[v] + low[u] * STRIDE[u];
    let to = (plane.up ? rows - 1 - r : r) * columns;
    for (let c = 0; c < columns; c++, from += STRIDE[u], to++) pixels[to] = 0xff000000 | (levels[greys[from]] * 0x010101);
  }
  paint.putImageData(image, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, place.left, place.top, columns * place.su, rows * place.sv);
  const unit = canvas.width / canvas.clientWidth || 1;
  if (state.outlines) {
    drawOutline(context, plane, place, 1, LIVER, 1.4 * unit, 0);
    drawOutline(context, plane, place, 2, TUMOUR + "80", unit, 0); // faint, so that no small part lies in a gap
    drawOutline(context, plane, place, 2, TUMOUR, 2.6 * unit, 5 * unit);
    if (w === 0) drawAxes(context, place, unit);
  }
  drawMarks(context, plane, place, unit);
  const input = figure.querySelector("input"), number = shownSlices(w);
  input.value = state.at[w];
  const name = figure.dataset.plane[0].toUpperCase() + figure.dataset.plane.slice(1);
  figure.querySelector("span").textContent = `${name} ${number}`;
  canvas.setAttribute("aria-label", `${name} ${number} of the CT; ${said()}`);
}

/** The slices of the CT that are shown as one, in words. */
function shownSlices(axis) {
  const first = state.at[axis] * data.step[axis], last = Math.min(first + data.step[axis], data.size[axis]) - 1;
  return first === last ? `slice ${first}` : `slices ${first} to ${last}`;
}

/** Outline the voxels of at least `least` along their edges; dashes of `dash` pixels, 0 for a solid line. */
function drawOutline(context, plane, place, least, colour, width, dash) {
  const { u, v, w } = plane, { first, size } = labels, at = state.at.slice(), { flat } = labels;
  if (at[w] < first[w] || at[w] >= first[w] + size[w]) return;
  const stride = [size[1] * size[2], size[2], 1], depth = (at[w] - first[w]) * stride[w];
  const inside = (r, c) =>
    r >= 0 && c >= 0 && r < size[v] && c < size[u] && flat[depth + r * stride[v] + c * stride[u]] >= least;
  const drawn = (c, r) => !dash || !(Math.floor((c * place.su + r * place.sv) / dash) & 1);
  context.beginPath();
  for (let r = 0; r <= size[v]; r++) {
    for (let c = 0; c <= size[u]; c++) {
      const here = inside(r, c), x = place.x(c + first[u]), y = place.y(r + first[v]);
      if (here !== inside(r - 1, c) && drawn(c, r)) {
        context.moveTo(x, y);
        context.lineTo(place.x(c + 1 + first[u]), y);
      }
      if (here !== inside(r, c - 1) && drawn(c, r)) {
        context.moveTo(x, y);
        context.lineTo(x, place.y(r + 1 + first[v]));
      }
    }
  }
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineCap = dash ? "butt" : "round";
  context.stroke();
}

function drawAxes(context, place, unit) {
  context.strokeStyle = "#fff";
  context.lineWidth = 1.2 * unit;
  for (const lesion of data.lesions) {
    if (lesion.focus[0] !== state.at[0]) continue;
    for (const line of lesion.lines) {
      context.beginPath();
      for (const [y, x] of line) context.lineTo(place.x(x + 0.5), place.y(y + 0.5));
      context.stroke();
    }
  }
}

function drawMarks(context, plane, place, unit) {
  const { width, height } = context.canvas, x = place.x(state.at[plane.u] + 0.5), y = place.y(state.at[plane.v] + 0.5);
  const gap = 14 * unit;
  context.strokeStyle = "rgba(255, 255, 120, .55)";
  context.lineWidth = unit;
  context.beginPath();
  for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
    context.moveTo(a, b);
    context.lineTo(c, d);
  }
  context.stroke();
  context.font = `600 ${15 * unit}px system-ui, sans-serif`;
  const [left, right, top, bottom] = plane.letters, edge = 10 * unit;
  for (const [letter, a, b] of [[left, edge, height / 2], [right, width - edge, height / 2],
    [top, width / 2, edge], [bottom, width / 2, height - edge]]) write(context, letter, a, b, unit);
  const mm = (place.su / data.spacing[plane.u]) * 50; // a scale of 5 cm
  context.fillStyle = "#fff";
  context.fillRect(width - mm - edge, height - edge, mm, 2 * unit);
  context.font = `${12 * unit}px system-ui, sans-serif`;
  write(context, "5 cm", width - mm / 2 - edge, height - 2.1 * edge, unit);
}

function write(context, text, x, y, unit) {
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3 * unit;
  context.strokeStyle = "#000";
  context.strokeText(text, x, y);
  context.fillStyle = "#fff";
  context.fillText(text, x, y);
}

/** The place in words: the CT's coordinates, HU and label. */
function said() {
  const [z, y, x] = state.at;
  const mm = [0, 1, 2].map((i) => data.affine[i].reduce((sum, a, n) => sum + a * [x, y, z, 1][n], 0));
  const hu = Math.round(toHU(greys[z * STRIDE[0] + y * STRIDE[1] + x]));
  return `RAS ${mm.map((value) => value.toFixed(1)).join(", ")} mm, about ${hu} HU, ${["no label", "liver", "tumour"][labelAt(z, y, x)]}`;
}

function show() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (let grey = 0; grey < 256; grey++) levels[grey] = ((toHU(grey) - state.level) / state.width + 0.5) * 255;
    document.querySelectorAll("figure[data-plane]").forEach(drawPlane);
    if (window.drawSolid) drawSolid(state);
    find("#place").textContent = said();
    for (const name of ["width", "level"]) {
      const input = find(`#${name}`);
      if (input !== document.activeElement) input.value = state[name]; // nothing is changed while it is typed
    }
    find("#outlines").checked = state.outlines;
    find("#near").checked = state.near;
    for (const button of document.querySelectorAll("button[data-width]"))
      button.setAttribute("aria-pressed", +button.dataset.width === state.width && +button.dataset.level === state.level);
    document.body.dataset.at = state.at.join();
  });
}

function go(place) {
  state.at = place.map((n, a) => Math.min(Math.max(Math.round(n), 0), data.shape[a] - 1));
  show();
}

function step(axis, by) {
  go(state.at.map((n, a) => (a === axis ? n + by : n)));
}
