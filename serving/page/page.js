// Demo page: masks pictures and requests their reconstruction by TF Serving's REST API.
// It is served beside that API; ?model=NAME selects the model (default: "mae").

const DECODED_BY_SERVER = /^image\/(jpeg|png|webp|bmp)$/;

const name = new URLSearchParams(location.search).get("model") || "mae";
const address = `v1/models/${encodeURIComponent(name)}`;
const element = (id) => document.getElementById(id);

let model; // its sizes, see readSizes
let picture; // base64 is sent; preview is a canvas of the model's size
let loads = 0; // pictures loaded so far: of two at a time, the later one wins
let order = []; // patches, in the order in which the slider masks them
let mask = []; // a number per patch: 1 = masked, 0 = visible
let cursor = null; // the patch selected by keyboard
let [busy, wanted] = [false, false]; // a request is pending; it is outdated

const maskedPatches = () => mask.filter(Boolean).length;

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function call(path, body) {
  const headers = { "Content-Type": "application/json" };
  const token = sessionStorage.getItem("token"); // a proxy may want one
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(address + path, { headers, ...options }).catch(() => {
    throw new Error("The server does not answer.");
  });
  if (response.status === 401) element("login").hidden = false;
  const answer = await response.json().catch(() => ({ error: "invalid JSON" }));
  if (!response.ok || answer.error) {
    throw new Error(`The server says (${response.status}): ${answer.error}`);
  }
  return answer;
}

function readSizes(metadata) {
  const signatures = metadata.metadata.signature_def.signature_def;
  const signature = signatures.reconstruct_with_mask;
  if (!signature) {
    throw new Error(`"${name}" has no signature reconstruct_with_mask: no MAE.`);
  }
  const sizes = (tensor) => tensor.tensor_shape.dim.map((dim) => Number(dim.size));
  const [, height, width, channels] = sizes(signature.outputs.reconstruction);
  const [, patches] = sizes(signature.inputs.mask);
  // square patches, until a response has patch_size
  const side = Math.sqrt((height * width) / patches);
  return { height, width, channels, patches, ...patchGrid(height, width, [side, side]) };
}

function patchGrid(height, width, [tall, wide]) {
  return { tall, wide, rows: height / tall, columns: width / wide };
}

function makeCanvas(width, height, source) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  if (source) context.drawImage(source, 0, 0, width, height);
  return canvas;
}

function toPng(source) {
  const scale = Math.min(1, 1024 / Math.max(source.width, source.height));
  const sizes = [source.width, source.height].map((size) => Math.ceil(size * scale));
  return new Promise((done) => makeCanvas(...sizes, source).toBlob(done, "image/png"));
}

async function toBase64(blob) {
  const reader = new FileReader();
  const read = new Promise((done) => (reader.onloadend = done));
  reader.readAsDataURL(blob);
  await read;
  return reader.result.split(",")[1];
}

// Whether EXIF rotates or mirrors a picture: the server ignores EXIF.
async function hasOrientation(blob) {
  const head = await blob.slice(0, 65536).arrayBuffer();
  const tag = // either byte order; 1 is upright
    /\x01\x12\0\x03\0{3}\x01\0[\x02-\x08]|\x12\x01\x03\0\x01\0{3}[\x02-\x08]\0/;
  return tag.test(new TextDecoder("latin1").decode(head));
}

async function usePicture(blob) {
  const turn = ++loads;
  try {
    const bitmap = await createImageBitmap(blob);
    const known = DECODED_BY_SERVER.test(blob.type);
    const asIs = known && !(await hasOrientation(blob));
    const base64 = await toBase64(asIs ? blob : await toPng(bitmap));
    if (turn !== loads) return;
    picture = { base64, preview: makeCanvas(model.width, model.height, bitmap) };
  } catch {
    if (turn === loads) say("The browser can't read this file as a picture.", true);
    return;
  }
  if (model.channels === 1) toGray(picture.preview);
  drawMasked();
  refresh();
}

function toGray(canvas) {
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [red, green, blue] = pixels.data.subarray(i, i + 3);
    pixels.data.fill(0.299 * red + 0.587 * green + 0.114 * blue, i, i + 3);
  }
  context.putImageData(pixels, 0, 0);
}

// Sample picture: a gradient, curves, straight edges and repetition.
function drawSample() {
  const canvas = makeCanvas(448, 448);
  const context = canvas.getContext("2d");
  const fill = (colour, points) => {
    context.fillStyle = colour;
    context.beginPath();
    points.forEach((point) => context.lineTo(...point));
    context.fill();
  };
  const box = (x, y, w, h) => [[x, y], [x + w, y], [x + w, y + h], [x, y + h]];
  const oval = (x, y, w, h) =>
    [...Array(90).keys()].map((i) => [x + w * Math.cos(i / 14), y + h * Math.sin(i / 14)]);
  for (let y = 0; y < 448; y++) fill(`hsl(210 60% ${45 + y / 9}%)`, box(0, y, 448, 1));
  fill("#fff3c4", oval(340, 100, 42, 42));
  fill("#6d7fa3", oval(120, 350, 230, 150));
  fill("#4f7d4a", oval(330, 430, 330, 170));
  fill("#e9dcc9", box(190, 230, 130, 120));
  fill("#a8402f", [[175, 232], [255, 165], [335, 232]]);
  for (const x of [210, 272]) fill("#35506e", box(x, 255, 28, 32));
  for (let x = -6; x < 448; x += 36) fill("#f3efe6", box(x, 380, 12, 50));
  return toPng(canvas);
}

function newMask() {
  const draws = Array.from({ length: model.patches }, Math.random);
  order = [...draws.keys()].sort((one, other) => draws[one] - draws[other]);
  maskByRatio();
}

function maskByRatio() {
  const count = Math.round(element("ratio").value * model.patches);
  mask = Array(model.patches).fill(0);
  for (const patch of order.slice(0, count)) mask[patch] = 1;
  maskChanged();
}

function paint(patch, value) {
  if (mask[patch] === value) return;
  mask[patch] = value;
  element("ratio").value = maskedPatches() / model.patches;
  maskChanged();
}

function maskChanged() {
  element("removed").value = `${maskedPatches()} of ${model.patches} patches`;
  drawMasked();
  refresh();
}

function drawMasked() {
  if (!picture) return;
  const scale = Math.max(1, Math.round(448 / model.width));
  const canvas = element("masked");
  Object.assign(canvas, { width: model.width * scale, height: model.height * scale });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture.preview, 0, 0, canvas.width, canvas.height);
  const [tall, wide] = [model.tall * scale, model.wide * scale];
  mask.forEach((removed, patch) => {
    const x = (patch % model.columns) * wide;
    const y = Math.floor(patch / model.columns) * tall;
    context.fillStyle = "#808080";
    if (removed) context.fillRect(x, y, wide, tall);
    context.strokeStyle = "#ffffff50";
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, wide, tall);
    if (patch !== cursor) return;
    context.strokeStyle = "#ff9800";
    context.lineWidth = 4;
    context.strokeRect(x + 2, y + 2, wide - 4, tall - 4);
  });
}

// One request at a time; changes meanwhile are sent when it is done.
async function refresh() {
  wanted = true;
  if (busy || !picture) return;
  busy = true;
  while (wanted) {
    wanted = false;
    await ask();
  }
  busy = false;
}

async function ask() {
  element("pictures").classList.add("stale");
  if (mask.every((value) => value === mask[0])) {
    return say("Mask at least one patch, and leave at least one visible.", true);
  }
  say("Waiting for the model…");
  const { base64, preview } = picture; // it may be replaced during the request
  const instances = [{ image_bytes: { b64: base64 }, mask }];
  const body = { signature_name: "reconstruct_with_mask", instances };
  try {
    const answer = (await call(":predict", body)).predictions[0];
    if (wanted) return; // outdated by another picture or mask
    show(answer, preview);
    element("pictures").classList.remove("stale");
  } catch (error) {
    if (!wanted) say(error.message, true);
  }
}

function show(answer, preview) {
  const { width, height } = model;
  const [tall, wide] = answer.patch_size ?? [model.tall, model.wide];
  Object.assign(model, patchGrid(height, width, [tall, wide]));
  drawMasked(); // before the first response patches were drawn as squares
  const painted = new ImageData(width, height);
  const pasted = preview.getContext("2d").getImageData(0, 0, width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const levels = answer.reconstruction[y][x]; // one channel, or three
      const pixel = [levels[0], levels.at(-2) ?? levels[0], levels.at(-1), 255];
      const patch = Math.floor(y / tall) * model.columns + Math.floor(x / wide);
      painted.data.set(pixel, 4 * (y * width + x));
      if (answer.mask[patch]) pasted.data.set(pixel, 4 * (y * width + x));
    }
  }
  for (const [id, pixels] of Object.entries({ reconstruction: painted, pasted })) {
    Object.assign(element(id), { width, height });
    element(id).classList.toggle("small", width < 100);
    element(id).getContext("2d").putImageData(pixels, 0, 0);
  }
  say(`Loss on masked patches: ${answer.loss.toPrecision(3)}`);
}

function listenToPictures() {
  const useSample = async () => usePicture(await drawSample());
  const use = (files) => files.length && usePicture(files[0]);
  element("file").addEventListener("change", (event) => use(event.target.files));
  element("sample").addEventListener("click", useSample);
  const drag = (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", event.type === "dragover");
    if (event.type === "drop") use(event.dataTransfer.files);
  };
  for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, drag);
  useSample();
}

function listenToMasks() {
  const canvas = element("masked");
  let value = null; // 1: the stroke masks patches, 0: it unmasks them
  const stroke = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (share, count) =>
      Math.min(Math.max(Math.floor(share * count), 0), count - 1);
    const column = at((event.clientX - box.left) / box.width, model.columns);
    const row = at((event.clientY - box.top) / box.height, model.rows);
    const patch = row * model.columns + column;
    value ??= 1 - mask[patch];
    paint(patch, value);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId); // strokes may leave the canvas
    [value, cursor] = [null, null];
    stroke(event);
  });
  canvas.addEventListener("pointermove", (event) => value !== null && stroke(event));
  canvas.addEventListener("lostpointercapture", () => (value = null));
  canvas.addEventListener("keydown", moveOrFlip);
  element("ratio").addEventListener("input", maskByRatio);
  element("another").addEventListener("click", newMask);
}

function moveOrFlip(event) {
  const { columns, patches } = model;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (!(event.key in steps) && event.key !== " ") return;
  event.preventDefault();
  if (event.key === " " && cursor !== null) return paint(cursor, 1 - mask[cursor]);
  const next = cursor === null ? 0 : cursor + (steps[event.key] ?? 0);
  if (next >= 0 && next < patches) cursor = next;
  const place = `row ${Math.floor(cursor / columns) + 1}, column ${(cursor % columns) + 1}`;
  say(`Patch in ${place}: ${mask[cursor] ? "masked" : "visible"}`);
  drawMasked();
}

element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", element("token").value.trim());
  location.reload();
});
element("name").textContent = name;
const failed = (error) => say(error.message, true);
model = await call("/metadata").then(readSizes).catch(failed);
if (model) {
  listenToMasks();
  newMask();
  listenToPictures();
}
