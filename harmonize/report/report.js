"use strict";
// Filters and pages the scans of a report; pictures are parsed chunk by chunk, when one of their scans is shown.

const PAGE_SIZE = 60;
const KEPT_CHUNKS = 24;
const FIELDS = ["id", "source", "modality", "subject", "person", "rawSpacing", "rawShape", "shape", "flags", "why",
  "decisions", "file"];

const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
const flagNames = parsed("flag-names");
const scans = parsed("scan-rows").map((row, place) =>
  Object.assign({ place }, Object.fromEntries(FIELDS.map((name, column) => [name, row[column]]))));
const chunks = new Map();
const state = { source: "", modality: "", flag: "", text: "", page: 0 };

function picture(place) {
  const number = Math.floor(place / PICTURES_PER_CHUNK);
  if (!chunks.has(number)) {
    const holder = document.getElementById(`pictures-${number}`);
    if (chunks.size >= KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
    chunks.set(number, holder ? JSON.parse(holder.textContent) : []);
  }
  return chunks.get(number)[place % PICTURES_PER_CHUNK] || "";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function card(scan) {
  const box = element("div", "card");
  const webp = picture(scan.place);
  if (webp) {
    const image = element("img", "picture");
    image.src = `data:image/webp;base64,${webp}`;
    image.alt = `three planes of ${scan.id}`;
    box.append(image);
  } else {
    box.append(element("div", "picture none", "no picture"));
  }
  const words = element("div", "words");
  words.append(element("div", "name", scan.id));
  words.append(element("div", "facts", [scan.source, scan.modality, scan.subject === scan.id ? "" : scan.subject, scan.person]
    .filter(Boolean).join(" · ")));
  words.append(element("div", "facts", `${scan.rawShape} at ${scan.rawSpacing} mm → ${scan.shape}`));
  for (const line of scan.why) words.append(element("div", "why", line));
  for (const flag of scan.flags) {
    const name = flagNames[flag];
    words.append(element("span", name.startsWith("odd ") ? "flag odd" : "flag", name));
  }
  const more = element("details");
  more.append(element("summary", "", `decisions (${scan.decisions.length})`));
  const list = element("ul");
  for (const line of scan.decisions) list.append(element("li", "", line));
  more.append(list, element("div", "facts", scan.file));
  words.append(more);
  box.append(words);
  return box;
}

function chosen() {
  const text = state.text.toLowerCase();
  return scans.filter((scan) =>
    (!state.source || scan.source === state.source) &&
    (!state.modality || scan.modality === state.modality) &&
    (!state.flag || (state.flag === "any" ? scan.flags.length : scan.flags.includes(Number(state.flag)))) &&
    (!text || `${scan.id} ${scan.subject} ${scan.decisions.join(" ")}`.toLowerCase().includes(text)));
}

function pager(count) {
  const pages = Math.max(1, Math.ceil(count / PAGE_SIZE));
  state.page = Math.min(state.page, pages - 1);
  const bar = element("div", "pager");
  for (const [label, page] of [["previous", state.page - 1], ["next", state.page + 1]]) {
    const button = element("button", "", label);
    button.disabled = page < 0 || page >= pages;
    button.onclick = () => { state.page = page; show(); document.getElementById("scans").scrollIntoView(); };
    bar.append(button);
  }
  const first = count ? state.page * PAGE_SIZE + 1 : 0;
  const last = Math.min(count, (state.page + 1) * PAGE_SIZE);
  bar.append(element("span", "", `${first} to ${last} of ${count} scans, page ${state.page + 1} of ${pages}`));
  return bar;
}

function show() {
  const found = chosen();
  const top = pager(found.length);
  const cards = element("div", "cards");
  cards.append(...found.slice(state.page * PAGE_SIZE, (state.page + 1) * PAGE_SIZE).map(card));
  document.getElementById("cards").replaceChildren(top, cards, ...(found.length > PAGE_SIZE ? [pager(found.length)] : []));
}

function select(name, all, values) {
  const box = element("select");
  box.name = name;
  box.append(new Option(all, ""), ...values.map(([value, label]) => new Option(label, value)));
  box.onchange = () => { state[name] = box.value; state.page = 0; show(); };
  return box;
}

function counted(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function build() {
  const filters = element("div", "filters");
  const labelled = (values) => counted(values).map(([value, count]) => [value, `${value} (${count})`]);
  filters.append(
    select("source", "every source", labelled(scans.map((scan) => scan.source))),
    select("modality", "every modality", labelled(scans.map((scan) => scan.modality))),
    select("flag", "every flag and none", [["any", "any flag"],
      ...counted(scans.flatMap((scan) => scan.flags)).map(([flag, count]) => [flag, `${flagNames[flag]} (${count})`])]));
  const text = element("input");
  text.type = "search";
  text.placeholder = "id, subject or decision";
  text.oninput = () => { state.text = text.value; state.page = 0; show(); };
  filters.append(text);
  document.getElementById("scans").append(filters, Object.assign(element("div"), { id: "cards" }));
  show();
}

build();
