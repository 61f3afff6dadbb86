"use strict";

// All texts are set as textContent: a path or a label is never taken for HTML.
const byId = (id) => document.getElementById(id);
const message = byId("message");
let asked = 0;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function picture(source, name, className) {
  const image = element("img", className);
  image.alt = name;
  image.loading = "lazy";
  // Pixels of small images stay sharp and square.
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 100));
  image.src = source;
  return image;
}

function say(text, isError = false) {
  message.textContent = text;
  message.classList.toggle("error", isError);
}

function firstLabel(item) {
  return Object.values(item.labels)[0] ?? "";
}

function showQuery(query) {
  const facts = element("dl");
  const entries = query.row === null ? [["query", "your image"]] : [["row", query.row], ["path", query.path]];
  for (const [name, value] of [...entries, ...Object.entries(query.labels)]) {
    facts.append(element("dt", "", name), element("dd", "", value));
  }
  byId("query").replaceChildren(picture(query.image, "query"), facts);
  byId("query").hidden = false;
}

function neighbour(item, rank) {
  const kind = item.is_right === null ? "" : item.is_right ? "right" : "wrong";
  const button = element("button", kind);
  button.type = "button";
  button.dataset.row = item.row;
  const verdict = { right: ", same class", wrong: ", other class" }[kind] ?? "";
  button.setAttribute("aria-label", `${rank}: ${item.path}, score ${item.score.toFixed(3)}${verdict}`);
  button.title = [item.path, ...Object.entries(item.labels).map(([name, value]) => `${name}: ${value}`)].join("\n");
  const score = element("div", "score");
  score.append(element("b", "", item.score.toFixed(3)), element("span", "", `#${rank}`));
  button.append(picture(`images/${item.row}`, ""), score, element("div", "label", firstLabel(item)));
  button.append(element("span", "path", item.path));
  button.addEventListener("click", () => goTo(item.row));
  return button;
}

function show(result) {
  showQuery(result.query);
  byId("neighbours").replaceChildren(...result.neighbours.map((item, place) => neighbour(item, place + 1)));
  const judged = result.neighbours.filter((item) => item.is_right !== null);
  const right = judged.length ? `, ${judged.filter((item) => item.is_right).length} of the same class` : "";
  say(`${result.neighbours.length} nearest${right}, in ${result.milliseconds.toFixed(1)} ms. Click one to search by it.`);
  for (const button of document.querySelectorAll("#queries button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.row) === result.query.row));
  }
}

async function ask(address, options) {
  const turn = ++asked;
  say("searching …");
  let text = "";
  try {
    const answer = await fetch(address, options);
    const result = await answer.json();
    if (turn !== asked) return; // another search was started meanwhile
    if (answer.ok) return show(result);
    text = result.error;
  } catch {
    text = "no answer: is dml browse still running, and the file not too large?";
  }
  if (turn === asked) say(text, true);
}

function goTo(row) {
  if (location.hash === `#${row}`) searchByHash();
  else location.hash = row;
}

function searchByHash() {
  const row = location.hash.slice(1);
  if (/^\d+$/.test(row)) ask(`neighbours/${row}`);
}

function searchByFile(file) {
  if (!file) return;
  if (file.size > Number(document.body.dataset.limit)) {
    const limit = Number(document.body.dataset.limit) / 2 ** 20;
    return say(`${file.name} is larger than ${limit} MiB, the most that is taken`, true);
  }
  history.replaceState(null, "", location.pathname);
  ask("search", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
}

function worstQuery(query) {
  const button = element("button");
  button.type = "button";
  button.dataset.row = query.row;
  const text = element("span");
  const ap = query.AP === null ? "AP ?" : `AP ${query.AP.toFixed(3)}`;
  text.append(element("b", "", ap), element("span", "path", query.path));
  button.append(picture(`images/${query.row}`, "query"));
  button.append(query.wrong ? picture(`images/${query.wrong.row}`, "first wrong one", "wrong") : element("span"), text);
  const score = query.wrong_score === null ? "" : `, at ${query.wrong_score.toFixed(3)}`;
  button.title = query.wrong ? `${query.path}\nfirst wrong one: ${query.wrong.path}${score}` : query.path;
  button.addEventListener("click", () => goTo(query.row));
  const entry = element("li");
  entry.append(button);
  return entry;
}

async function listWorst() {
  const list = byId("queries");
  if (!list) return;
  const answer = await fetch("worst");
  list.replaceChildren(...(await answer.json()).map(worstQuery));
}

function acceptDrops() {
  const depth = (event, dragging) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", dragging);
  };
  document.addEventListener("dragover", (event) => depth(event, true));
  document.addEventListener("dragleave", (event) => depth(event, false));
  document.addEventListener("drop", (event) => {
    depth(event, false);
    if (document.body.dataset.embeds === "yes") searchByFile(event.dataTransfer.files[0]);
  });
}

byId("file")?.addEventListener("change", (event) => {
  searchByFile(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
byId("random").addEventListener("click", () => goTo(Math.floor(Math.random() * Number(document.body.dataset.images))));
window.addEventListener("hashchange", searchByHash);
acceptDrops();
listWorst();
searchByHash();
