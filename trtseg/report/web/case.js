
// What the reader does: wheel, keys, mouse, fingers, buttons.

for (const figure of document.querySelectorAll("figure[data-plane]")) {
  const plane = PLANES[figure.dataset.plane], canvas = figure.querySelector("canvas");
  const input = figure.querySelector("input");
  input.max = data.shape[plane.w] - 1;
  input.addEventListener("input", () => go(state.at.map((n, a) => (a === plane.w ? +input.value : n))));

  let wheeled = 0;
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return; // the browser's zoom
    event.preventDefault();
    wheeled += event.deltaMode ? event.deltaY * 30 : event.deltaY;
    const by = Math.trunc(wheeled / 30);
    wheeled -= by * 30;
    // a notch of a wheel is 100 or more: one slice; a touchpad sends many small ones
    if (by) step(plane.w, Math.abs(by) > 2 ? -Math.sign(by) : -by);
  }, { passive: false });

  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 }[event.key];
    if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    step(plane.w, by);
  });

  const point = (event) => {
    const place = layout(plane, canvas), box = canvas.getBoundingClientRect(), at = state.at.slice();
    const x = ((event.clientX - box.left) * canvas.width) / box.width;
    const y = ((event.clientY - box.top) * canvas.height) / box.height, row = (y - place.top) / place.sv;
    at[plane.u] = Math.floor(place.low[plane.u] + (x - place.left) / place.su);
    at[plane.v] = Math.floor(plane.up ? place.high[plane.v] - row : place.low[plane.v] + row);
    go(at);
  };
  let finger = null; // where it came down, and whether it has scrolled
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    finger = { y: event.clientY, scrolled: false };
    if (event.pointerType !== "touch") point(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!finger) return;
    if (event.pointerType !== "touch") return point(event);
    const by = Math.trunc((finger.y - event.clientY) / 8);
    if (!by) return;
    finger = { y: finger.y - by * 8, scrolled: true };
    step(plane.w, by);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (finger && event.pointerType === "touch" && !finger.scrolled) point(event);
    finger = null;
  });
  canvas.addEventListener("pointercancel", () => { finger = null; });
}

{
  const canvas = find("#solid canvas");
  const turn = (yaw, pitch, turning) => {
    state.yaw += yaw;
    state.pitch = Math.min(Math.max(state.pitch + pitch, -1.5), 1.5);
    state.turning = turning;
    show();
  };
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) turn(event.movementX / 120, event.movementY / 120, true);
  });
  canvas.addEventListener("lostpointercapture", () => turn(0, 0, false)); // up, or taken by the system
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
    if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    turn(...by, false);
  });
}

for (const button of document.querySelectorAll("button[data-width]")) {
  button.addEventListener("click", () => {
    for (const name of ["width", "level"]) find(`#${name}`).value = state[name] = +button.dataset[name];
    show();
  });
}
for (const name of ["width", "level"]) {
  find(`#${name}`).addEventListener("change", (event) => {
    const value = Number(event.target.value);
    if (event.target.value && (name === "level" || value >= 1)) state[name] = value;
    else event.target.value = state[name];
    show();
  });
}
for (const name of ["outlines", "near"]) {
  find(`#${name}`).addEventListener("change", (event) => { state[name] = event.target.checked; show(); });
}
document.addEventListener("keydown", (event) => {
  const name = { l: "outlines", z: "near" }[event.key.toLowerCase()];
  if (!name || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input[type=number]")) return;
  state[name] = !state[name];
  show();
});
for (const row of document.querySelectorAll(".lesions tbody tr")) {
  row.addEventListener("click", () => {
    document.querySelectorAll(".lesions tr[aria-current]").forEach((other) => other.removeAttribute("aria-current"));
    row.setAttribute("aria-current", "true");
    go(data.lesions[row.querySelector("button").dataset.lesion].focus);
  });
}

const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    target.width = Math.max(1, Math.round(target.clientWidth * devicePixelRatio));
    target.height = Math.max(1, Math.round(target.clientHeight * devicePixelRatio));
  }
  show();
});
document.querySelectorAll("figure canvas").forEach((canvas) => sized.observe(canvas));

const details = find("details");
let wasOpen = false;
addEventListener("beforeprint", () => { wasOpen = details.open; details.open = true; });
addEventListener("afterprint", () => { details.open = wasOpen; });

loadSlices().catch(() => { find("#progress").textContent = "a picture could not be read; the file may be damaged"; });
