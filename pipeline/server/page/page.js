// The page at `/`: sends pictures to `predict` one after the other and shows the answers.
// Names of files and classes, and what the server says, become text nodes, never HTML.

const ATTEMPTS = 8; // of one request, while the server is busy or away
const LONGEST_WAIT = 30; // seconds
const MOST_PICTURES = 200; // at once
const SHOWN_CLASSES = 5;
const LISTED_CLASSES = 12; // in one line below the title
const TALLEST = 19; // rem
const TINY = 64; // pixels; a smaller picture is enlarged without smoothing
const BUSY = [429, 502, 503, 504];

const find = (id) => document.getElementById(id);
const waiting = []; // cards whose picture is not answered
const batch = { count: 0, done: 0, faults: 0 }; // since the queue was last empty
const known = { asked: null, sha256: null, hasMaps: false, mostBytes: Infinity }; // of the server and its model
let round = 0; // what belongs to an earlier one was cleared
let running = false;

class Refusal extends Error {} // its text is a sentence for the user

// Requests

async function ask(path, { body, tell = announce } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const token = sessionStorage.getItem("token");
    const headers = { Accept: "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
    if (body) headers["Content-Type"] = "application/octet-stream";
    const answer = await fetch(path, { method: body ? "POST" : "GET", body, headers, cache: "no-store" }).catch(() => null);
    if (answer?.ok) return answer.json();
    if (answer?.status === 401) {
      attempt -= 1;
      await askForToken(token);
      continue;
    }
    if (answer && !BUSY.includes(answer.status)) throw new Refusal(await sentence(answer));
    const state = answer ? "The server is busy" : "The server does not answer";
    if (attempt === ATTEMPTS) throw new Refusal(`${state}. It was asked ${ATTEMPTS} times.`);
    const seconds = Math.min(Number(answer?.headers.get("Retry-After")) || 2 ** (attempt - 1), LONGEST_WAIT);
    tell(`${state}. It is asked again in ${seconds} s.`);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

async function sentence(answer) {
  const content = await answer.json().catch(() => null);
  const text = content?.error ?? content?.detail;
  if (typeof text !== "string" || !text) return `The server answers with an error, HTTP ${answer.status}.`;
  return `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;
}

let asking = null; // the dialog is open once, however many requests wait for it

function askForToken(refused) {
  const current = sessionStorage.getItem("token");
  if (current && current !== refused) return Promise.resolve(); // given meanwhile
  asking ??= new Promise((resolve, reject) => {
    const dialog = find("ask-token");
    find("token").value = "";
    find("token-fault").hidden = !refused;
    dialog.onclose = () => {
      asking = null;
      if (dialog.returnValue !== "given") return reject(new Refusal("The server asks for a token."));
      sessionStorage.setItem("token", find("token").value.trim());
      find("token").value = "";
      return resolve();
    };
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

// The model

function describe() {
  known.asked ??= askForFacts().catch((fault) => {
    known.asked = null; // the next picture asks again
    throw fault;
  });
  return known.asked;
}

async function askForFacts() {
  const { model, class_names: names, limits } = await ask("metadata");
  showModel(model);
  showClasses(names);
  const { activation_map: hasMaps } = await ask("explain");
  Object.assign(known, { sha256: model.sha256, hasMaps, mostBytes: limits.body_bytes });
  announce("");
}

function showModel(model) {
  find("model").textContent = nameOf(model);
}

function nameOf({ name, sha256, version }) {
  return [`Model ${name}`, version && `version ${version}`, `sha256\u00a0${sha256.slice(0, 12)}`].filter(Boolean).join(" · ");
}

function showClasses(names) {
  const place = find("classes");
  const list = names.length > LISTED_CLASSES ? element("ul", "", ...names.map((name) => element("li", "", name))) : null;
  if (!list) return place.replaceChildren(element("p", "", `The model knows ${names.length} classes: ${names.join(", ")}.`));
  list.tabIndex = 0; // it scrolls
  return place.replaceChildren(element("details", "", element("summary", "", `The model knows ${names.length} classes`), list));
}

// Pictures come in

function take(files) {
  const given = [...files];
  if (!given.length) return;
  const cards = given.slice(0, MOST_PICTURES).map(makeCard);
  find("answers").prepend(...cards.map((card) => card.item));
  for (const each of ["answers", "answers-title", "clear"]) find(each).hidden = false;
  document.body.classList.add("answered");
  batch.dropped = given.length - cards.length;
  enqueue(cards);
}

function enqueue(cards) {
  waiting.push(...cards);
  batch.count += cards.length;
  if (!running) work();
}

async function work() {
  running = true;
  const own = round;
  while (waiting.length && own === round) {
    const card = waiting.shift();
    if (batch.count > 1) announce(`Picture ${batch.done + 1} of ${batch.count} is sent.`);
    await answerOne(card, own);
    batch.done += 1;
  }
  if (own !== round) return; // cleared; whoever cleared has begun anew
  running = false;
  announce(summary());
  Object.assign(batch, { count: 0, done: 0, faults: 0, dropped: 0 });
}

function summary() {
  const answered = batch.done - batch.faults;
  const parts = [`${answered} of ${batch.done} ${batch.done === 1 ? "picture is" : "pictures are"} answered.`];
  if (batch.done === 1 && answered) parts[0] = batch.last;
  if (batch.dropped) parts.push(`${batch.dropped} more were left out: at most ${MOST_PICTURES} are taken at once.`);
  return parts.join(" ");
}

async function answerOne(card, own) {
  show(card, "wait");
  card.wait.textContent = "Waiting";
  const tell = (text) => own === round && announce((card.wait.textContent = text));
  try {
    await describe();
    const body = await read(card.file);
    const answer = await ask("predict", { body, tell });
    if (answer.model.sha256 !== known.sha256) known.asked = null; // another model took its place
    await describe();
    showAnswer(card, answer);
  } catch (fault) {
    if (own === round) batch.faults += 1;
    showFault(card, fault);
  }
}

async function read(file) {
  // Beyond its limit the server hangs up, which a browser reports like a server that is away.
  if (file.size > known.mostBytes) {
    throw new Refusal(`The file has ${megabytes(file.size)}; the server takes ${megabytes(known.mostBytes)} at most.`);
  }
  try {
    return new Blob([await file.arrayBuffer()]);
  } catch {
    throw new Refusal("This is a folder, or a file that cannot be read.");
  }
}

function clear() {
  round += 1;
  running = false;
  waiting.length = 0;
  Object.assign(batch, { count: 0, done: 0, faults: 0, dropped: 0 });
  for (const image of document.querySelectorAll(".picture")) URL.revokeObjectURL(image.src);
  find("answers").replaceChildren();
  for (const each of ["answers", "answers-title", "clear"]) find(each).hidden = true;
  document.body.classList.remove("answered");
  announce("All answers are removed.");
  find("choose").focus();
}

// A card: one picture and its answer

function makeCard(file) {
  const item = find("card").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  const names = ["view", "picture", "map", "wait", "answer", "fault", "toggle", "more", "bars", "legend"];
  const card = { file, item, part, ...Object.fromEntries(names.map((name) => [name, part(name)])) };
  part("name").textContent = file.name || "pasted picture";
  card.picture.alt = part("name").textContent;
  card.picture.onload = () => fit(card);
  card.picture.onerror = () => {
    card.view.hidden = true;
    part("unshown").hidden = false;
  };
  card.picture.src = URL.createObjectURL(file);
  card.toggle.onclick = () => toggleMap(card);
  part("again").onclick = () => enqueue([card]);
  return card;
}

function fit({ item, view, picture }) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  view.style.maxWidth = `${(TALLEST * width) / height}rem`;
  item.classList.toggle("tiny", Math.max(width, height) < TINY);
}

function show(card, state) {
  for (const name of ["wait", "answer", "fault"]) card[name].hidden = name !== state;
  card.item.dataset.state = state;
}

function showAnswer(card, { model, request_id: request, predictions: [prediction] }) {
  const ranked = Object.entries(prediction.probs).sort((a, b) => b[1] - a[1]);
  const [name, share] = ranked[0];
  card.name = name;
  card.part("class").textContent = name;
  card.part("share").textContent = percent(share);
  const familiarity = showFamiliarity(card, prediction.unfamiliarity);
  showBars(card, ranked);
  card.toggle.hidden = !known.hasMaps || card.view.hidden;
  card.part("origin").textContent = `${nameOf(model)} · request\u00a0${request.slice(0, 8)}`;
  showModel(model);
  batch.last = `${name}, ${percent(share)}. ${familiarity}`;
  show(card, "answer");
}

function showFamiliarity(card, value) {
  const place = card.part("familiarity");
  const isKnown = value !== null && value !== undefined;
  const unfamiliar = isKnown && value > 1;
  place.classList.toggle("no", unfamiliar);
  const [title, text] = unfamiliar
    ? ["Unfamiliar.", `It is unlike the pictures that the model learned from, so do not rely on the class.`]
    : ["Familiar.", `It is like the pictures that the model learned from.`];
  const figure = isKnown && element("span", "note", `Unfamiliarity ${value.toFixed(2)}; above 1 is unfamiliar.`);
  if (isKnown) place.replaceChildren(element("b", "", title), ` ${text} `, figure);
  else place.textContent = "This model does not say whether a picture is unfamiliar.";
  return isKnown ? title : "";
}

function showBars({ bars, more }, ranked) {
  const rows = ranked.map(([name, share]) => {
    const fill = element("span", "fill");
    fill.style.width = `${100 * share}%`; // a style that a script sets is no inline style to the Content-Security-Policy
    return element("li", "", element("span", "label", name), element("span", "value", percent(share)), element("span", "track", fill));
  });
  const expand = (all) => {
    bars.replaceChildren(...rows.slice(0, all ? rows.length : SHOWN_CLASSES));
    more.setAttribute("aria-expanded", String(all));
    more.textContent = all ? `Show ${SHOWN_CLASSES} classes` : `Show all ${rows.length} classes`;
  };
  expand(false);
  more.hidden = rows.length <= SHOWN_CLASSES;
  more.onclick = () => expand(more.getAttribute("aria-expanded") !== "true");
}

function showFault(card, fault) {
  card.part("fault").querySelector(".say").textContent = words(fault);
  card.part("again").hidden = !/^The server/.test(words(fault));
  show(card, "fault");
}

// The activation map

async function toggleMap(card) {
  const { toggle, map, legend, item } = card;
  const shown = toggle.getAttribute("aria-pressed") === "true";
  if (!shown && !map.src) {
    toggle.disabled = true;
    say(legend, "The map is drawn.");
    try {
      place(card, await ask("explain", { body: await read(card.file), tell: (text) => say(legend, text) }));
    } catch (fault) {
      return say(legend, words(fault));
    } finally {
      toggle.disabled = false;
      toggle.focus();
    }
    if (!map.src) return undefined;
  }
  toggle.setAttribute("aria-pressed", String(!shown));
  map.hidden = shown;
  item.classList.toggle("mapped", !shown);
  return say(legend, shown ? "" : card.legendText);
}

function place(card, { predicted: name, activation_map: map, reason }) {
  if (!map) {
    card.toggle.hidden = true;
    return say(card.legend, reason);
  }
  for (const side of ["left", "top", "width", "height"]) card.map.style[side] = `${100 * map[side]}%`;
  card.map.src = map.png;
  const isCut = map.width < 0.999 || map.height < 0.999;
  card.legendText = `Bright: evidence for ${name}. Dark: none.${isCut ? " The model does not see what is outside the coloured part." : ""}`;
  card.map.alt = `Activation map for ${name}`;
  return undefined;
}

// Words

function announce(text) {
  find("status").textContent = text;
}

function say(paragraph, text) {
  paragraph.textContent = text;
  paragraph.hidden = !text;
}

function words(fault) {
  return fault instanceof Refusal ? fault.message : `The page cannot go on: ${fault.message}`;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function percent(share) {
  if (share > 0.999 && share < 1) return "> 99.9 %";
  if (share < 0.001 && share > 0) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

function element(kind, className, ...content) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  made.append(...content); // texts become text nodes
  return made;
}

// What the user does

find("choose").onclick = () => find("files").click();
find("photograph").onclick = () => find("camera").click();
find("clear").onclick = clear;
for (const input of [find("files"), find("camera")]) {
  input.onchange = () => {
    take(input.files);
    input.value = ""; // the same file may be chosen again
  };
}

document.addEventListener("paste", (event) => {
  if (event.target.closest?.("dialog")) return;
  const { files } = event.clipboardData;
  if (files.length) take(files);
  else announce("The clipboard contains no picture.");
});

let depth = 0; // of elements below the dragged picture
const isOfFiles = (event) => event.dataTransfer.types.includes("Files");
function drag(change) {
  depth = Math.max(0, depth + change);
  document.body.classList.toggle("dragging", depth > 0);
}
document.addEventListener("dragenter", (event) => isOfFiles(event) && drag(1));
document.addEventListener("dragleave", (event) => isOfFiles(event) && drag(-1));
document.addEventListener("dragover", (event) => isOfFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!isOfFiles(event)) return;
  event.preventDefault();
  drag(-depth);
  take(event.dataTransfer.files);
});

find("ask-token").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  find("ask-token").close("given");
};
find("no-token").onclick = () => find("ask-token").close("");

describe().catch((fault) => announce(words(fault)));
