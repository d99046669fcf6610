// Sends strokes and photos to the worker, and shows its answers.

const element = (id) => document.getElementById(id);
const [pad, bars] = [element("pad"), element("bars")];
const context = pad.getContext("2d", { willReadFrequently: true });
const DATA = JSON.parse(element("data").textContent);
const source = [`const DATA = ${element("data").textContent};`, element("worker").textContent];
const worker = new Worker(URL.createObjectURL(new Blob(source, { type: "text/javascript" })));

let strokes = [];
let pen = null; // the pointer that draws
let turn = 0; // answers to an earlier turn are not shown
let [busy, waiting] = [false, null];

function ask(question) {
  if (busy) waiting = question;
  else worker.postMessage(question);
  busy = true;
}

worker.onerror = ({ message }) => show({ problem: `The page failed: ${message}` });
worker.onmessage = ({ data: answer }) => {
  busy = false;
  if (answer.turn === turn) show(answer);
  if (waiting) ask(waiting);
  waiting = null;
};

function show({ image, probabilities, problem, bitmap, quick }) {
  const text = element("answer");
  text.setAttribute("aria-busy", Boolean(quick)); // a screen reader waits for the end of the stroke
  text.classList.toggle("message", !probabilities);
  const share = (digit) => `${(100 * probabilities[digit]).toFixed(1)}%`;
  [...bars.children].forEach(({ lastChild }, digit) => {
    lastChild.textContent = probabilities ? share(digit) : "";
    lastChild.previousSibling.style.setProperty("--share", probabilities ? share(digit) : "0%");
  });
  const pixels = new ImageData(28, 28);
  pixels.data.forEach((_, i) => (pixels.data[i] = i % 4 === 3 ? 255 : (image?.[Math.floor(i / 4)] ?? 0)));
  element("image").getContext("2d").putImageData(pixels, 0, 0);
  if (bitmap) {
    const scale = pad.width / Math.max(bitmap.width, bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    context.drawImage(bitmap, (pad.width - width) / 2, (pad.height - height) / 2, width, height);
  }
  if (!probabilities) {
    text.textContent = problem ?? "Draw one digit, 0 to 9.";
    return;
  }
  const digit = probabilities.indexOf(Math.max(...probabilities));
  const sure = probabilities[digit] >= DATA.threshold;
  text.textContent = sure ? `${digit}\n${share(digit)} sure` : `unsure\nperhaps ${digit}, ${share(digit)}`;
}

function draw() {
  context.fillStyle = "white";
  context.fillRect(0, 0, pad.width, pad.height);
  context.lineWidth = pad.width / 13;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    for (const [x, y] of [stroke[0], ...stroke]) context.lineTo(x, y);
    context.stroke();
  }
}

function changed() {
  draw();
  if (strokes.length) ask({ pixels: context.getImageData(0, 0, pad.width, pad.height), quick: pen !== null, turn });
  else show({});
}

function start() {
  [strokes, pen, turn, waiting] = [[], null, turn + 1, null];
  changed();
}

function read(photo) {
  if (!photo) return;
  start();
  show({ problem: "Reading the photo …", quick: true });
  ask({ photo, turn });
}

function extend(event) {
  const { left, top, width } = pad.getBoundingClientRect();
  const scale = pad.width / width;
  const events = event.getCoalescedEvents?.() ?? [];
  const points = (events.length ? events : [event]).map(({ clientX, clientY }) => [clientX - left, clientY - top]);
  strokes.at(-1).push(...points.map(([x, y]) => [x * scale, y * scale]));
  changed();
}

pad.addEventListener("pointerdown", (event) => {
  if (pen !== null || event.button) return;
  if (!strokes.length) turn++; // removes a photo
  pad.setPointerCapture(event.pointerId);
  pen = event.pointerId;
  strokes.push([]);
  extend(event);
});
pad.addEventListener("pointermove", (event) => event.pointerId === pen && extend(event));
// This event comes after each `pointerup` and `pointercancel`, and also if the browser sends neither.
pad.addEventListener("lostpointercapture", ({ pointerId }) => {
  if (pointerId !== pen) return;
  pen = null;
  changed();
});

function undo() {
  if (strokes.length < 2) return start();
  strokes.pop();
  pen = null;
  changed();
}
element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", start);
element("photo").addEventListener("change", ({ target }) => {
  read(target.files[0]);
  target.value = ""; // the same photo can be chosen again
});
addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && undo());
addEventListener("paste", ({ clipboardData }) => read(clipboardData.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  read(event.dataTransfer.files[0]);
});

for (let digit = 0; digit < 10; digit++) {
  const line = bars.appendChild(document.createElement("li"));
  line.append(digit, document.createElement("i"), document.createElement("span"));
}
element("about").textContent = DATA.about;
start();
