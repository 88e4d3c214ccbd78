
// Liver and lesions from outside: rays through two fields of cells of 1.5 mm or more, from the front at the start.

const SOLID = makeSolid();

/** Share of liver and of tumour in each cell of a cubic grid, 0 to 255, smoothed. */
function makeSolid() {
  const { size } = labels, mm = data.spacing.map((s, a) => s * size[a]);
  if (!labels.flat.length) return null;
  const cell = Math.max(1.5, Math.max(...mm) / 110), n = mm.map((length) => Math.ceil(length / cell) + 6);
  const step = [n[1] * n[2], n[2], 1], fields = [new Float32Array(n[0] * step[0]), new Float32Array(n[0] * step[0])];
  const voxel = [0, 1, 2].map((a) => // two samples a cell and axis
    Array.from({ length: 2 * n[a] }, (_, i) => Math.floor(((i / 2 + 0.25 - 3) * cell) / data.spacing[a])));
  for (let i = 0; i < 2 * n[0]; i++) {
    const z = voxel[0][i];
    if (z < 0 || z >= size[0]) continue;
    for (let j = 0; j < 2 * n[1]; j++) {
      const y = voxel[1][j];
      if (y < 0 || y >= size[1]) continue;
      const row = (z * size[1] + y) * size[2], out = (i >> 1) * step[0] + (j >> 1) * step[1];
      for (let k = 0; k < 2 * n[2]; k++) {
        const x = voxel[2][k];
        if (x < 0 || x >= size[2]) continue;
        const label = labels.flat[row + x];
        if (label) fields[0][out + (k >> 1)] += 32;
        if (label === 2) fields[1][out + (k >> 1)] += 32;
      }
    }
  }
  smooth(fields[0], step, 2);
  smooth(fields[1], step, 1);
  return { n, step, cell, liver: fields[0], tumour: fields[1] };
}

/** Weights 1 2 1 along each axis; the margin of the grid is empty. */
function smooth(field, step, times) {
  for (let t = 0; t < times; t++) {
    for (const s of step) {
      const copy = field.slice();
      for (let i = s; i + s < field.length; i++) field[i] = (copy[i - s] + 2 * copy[i] + copy[i + s]) / 4;
    }
  }
}

function drawSolid({ yaw, pitch, at, turning }) {
  const canvas = find("#solid canvas"), context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!SOLID) return;
  const { n, cell } = SOLID;
  // directions [z, y, x]: right on the picture, away from the viewer, up
  const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  const right = [0, sy, cy], away = [-sp, cy * cp, -sy * cp], up = [cp, cy * sp, -sy * sp];
  const middle = n.map((m) => m / 2), radius = Math.hypot(...n) / 2.5;
  const view = [yaw, pitch, turning].join();
  if (view !== SOLID.view) Object.assign(SOLID, { view, picture: castRays(right, away, up, turning ? 130 : 300) });
  const fit = Math.min(canvas.width, canvas.height), left = (canvas.width - fit) / 2, top = (canvas.height - fit) / 2;
  context.drawImage(SOLID.picture, left, top, fit, fit);
  // where the planes cross, and what looks at the viewer
  const unit = canvas.width / canvas.clientWidth || 1;
  const away3 = at.map((p, k) => ((p + 0.5 - labels.first[k]) * data.spacing[k]) / cell + 3 - middle[k]);
  const dot = (d) => d.reduce((sum, value, k) => sum + value * away3[k], 0) / (2 * radius);
  context.strokeStyle = "#ffff78";
  context.lineWidth = 1.5 * unit;
  context.beginPath();
  context.arc(left + (0.5 + dot(right)) * fit, top + (0.5 - dot(up)) * fit, 7 * unit, 0, 7);
  context.stroke();
  context.font = `600 ${15 * unit}px system-ui, sans-serif`;
  const edge = 10 * unit, height = canvas.height, width = canvas.width;
  write(context, facing(right, -1), edge, height / 2, unit);
  write(context, facing(right, 1), width - edge, height / 2, unit);
  write(context, facing(up, 1), width / 2, edge, unit);
  write(context, facing(up, -1), width / 2, height - edge, unit);
}

/** Picture of `side` x `side` pixels of the liver, with its lesions shining through. */
function castRays(right, away, up, side) {
  const { n, step } = SOLID, middle = n.map((m) => m / 2), radius = Math.hypot(...n) / 2.5;
  const picture = makeCanvas(side, side), paint = picture.getContext("2d");
  const image = paint.createImageData(side, side), pixels = image.data, start = [0, 0, 0];
  for (let j = 0; j < side; j++) {
    for (let i = 0; i < side; i++) {
      const a = ((i + 0.5) / side - 0.5) * 2 * radius, b = (0.5 - (j + 0.5) / side) * 2 * radius;
      let near = -radius * 1.1, far = radius * 1.1;
      for (let k = 0; k < 3; k++) {
        start[k] = middle[k] + a * right[k] + b * up[k];
        if (Math.abs(away[k]) < 1e-6) {
          if (start[k] < 1 || start[k] > n[k] - 2) far = near - 1;
          continue;
        }
        const t0 = (1 - start[k]) / away[k], t1 = (n[k] - 2 - start[k]) / away[k];
        near = Math.max(near, Math.min(t0, t1));
        far = Math.min(far, Math.max(t0, t1));
      }
      const liver = castRay(SOLID.liver, 110, start, away, near, far, step);
      if (!liver) continue;
      const lesion = castRay(SOLID.tumour, 60, start, away, near, far, step);
      const share = lesion ? 0.75 : 0, to = 4 * (j * side + i);
      const lit = 0.25 + 0.75 * liver, hot = lesion ? 0.45 + 0.55 * lesion : 0;
      pixels[to] = (1 - share) * 150 * lit + share * 255 * hot;
      pixels[to + 1] = (1 - share) * 205 * lit + share * 70 * hot;
      pixels[to + 2] = (1 - share) * 195 * lit + share * 120 * hot;
      pixels[to + 3] = 255;
    }
  }
  paint.putImageData(image, 0, 0);
  return picture;
}

/** Brightness of a surface seen along a ray, 0 to 1; 0 if the ray meets none. */
function castRay(field, level, start, away, near, far, step) {
  let z = start[0] + near * away[0], y = start[1] + near * away[1], x = start[2] + near * away[2], before = 0;
  for (let t = near; t < far; t += 1) {
    const i = (z | 0) * step[0] + (y | 0) * step[1] + (x | 0), value = field[i];
    if (value > level && before <= level) {
      const dz = field[i + step[0]] - field[i - step[0]], dy = field[i + step[1]] - field[i - step[1]];
      const dx = field[i + 1] - field[i - 1], length = Math.hypot(dz, dy, dx) || 1;
      return Math.max(0.05, (dz * away[0] + dy * away[1] + dx * away[2]) / length);
    }
    before = value;
    z += away[0]; y += away[1]; x += away[2];
  }
  return 0;
}

/** The letter of the patient's side to which most of a direction points. */
function facing(direction, sign) {
  const sizes = direction.map(Math.abs), k = sizes.indexOf(Math.max(...sizes));
  return ["FH", "AP", "RL"][k][direction[k] * sign > 0 ? 1 : 0];
}
