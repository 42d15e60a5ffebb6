// In the order of the dialogue's life: the values that the scripts read, the connection to
// pebble_ws.py, a click and its answer, the clock, the pages and the rows.
"use strict";

const HOSTS = ["localhost", "127.0.0.1"]; // taken in turn: macOS may block either
const ATTEMPT_LIMIT = 5000; // ms; WebKit would wait for ever for a handshake's answer
const RETRY_SOON = 1000;
const RETRY_LATER = 5000; // after SOME_MINUTES: every attempt costs WebKit some memory
const SOME_MINUTES = 120000;
const TITLE_LIMIT = 1000; // WebKit hands no more characters of a title to Sketch
const DAY = 24 * 60 * 60;
const SIGNS = {
  "done": "✓",
  "failed": "✕ Failed:",
  "unknown": "✕ Unknown:",
  "busy": "✕ Busy:",
  "dry run": "Dry run:",
};
const ACTIONS = { showPage, addRow, removeRow, add, run, stop }; // the words in data-action

const find = (selector) => document.querySelector(selector);
const [runButton, stopButton] = [find("[data-action=run]"), find("[data-action=stop]")];

let socket = null; // the open connection, or null
let dryRun = false; // said by the last answer: there is no Sketch behind the server
let endPause = () => {};
const waiting = new Map(); // message → the button that sent it and has no answer yet
let running = false; // between Run and Stop
let nextTick = 0;
let tickTimer;

for (const minutes of [5, 10, 15, 20, 25, 30]) appendRow(`${minutes}min`, "30");
saveValues();
document.addEventListener("input", saveValues);
document.addEventListener("click", pressed);
document.addEventListener("submit", (event) => event.preventDefault()); // Return has clicked
document.addEventListener("keydown", moveBetweenTabs);
window.addEventListener("focus", () => endPause());
showState();
stayConnected();

// ---- The values --------------------------------------------------------------------------------

// They are kept in the title: the one thing in a page that a script in Sketch can read at once.
function saveValues() {
  const rows = [...find("#rows").rows].map((row) => {
    const [name, angle] = row.querySelectorAll("input");
    return { name: name.value, angle: angle.value };
  });
  const values = JSON.stringify({ angle: find("#angle").value, rows, time: find("#time").value });
  document.title = values.replace(/ (?= )/g, "\\u0020"); // of several spaces a title keeps one
  if (document.title.length > TITLE_LIMIT) {
    say("failed", "The table is too long for Sketch to read. Remove a row or shorten a name.");
  }
}

// ---- The connection ----------------------------------------------------------------------------

async function stayConnected() {
  let failingSince = Date.now();
  for (let attempt = 0; ; attempt++) {
    socket = await connect(HOSTS[attempt % HOSTS.length]);
    if (socket) {
      showState();
      await whenClosed(socket);
      connectionLost();
      failingSince = Date.now();
    }
    await pause(Date.now() - failingSince < SOME_MINUTES ? RETRY_SOON : RETRY_LATER);
  }
}

// An open WebSocket, or null if it cannot be had within the limit.
function connect(host) {
  return new Promise((resolve) => {
    const script = document.createElement("script");
    let candidate;
    const finish = (opened) => {
      clearTimeout(limit);
      script.onload = script.onerror = null;
      script.remove();
      if (!opened) candidate?.close();
      resolve(opened);
    };
    const limit = setTimeout(finish, ATTEMPT_LIMIT, null);
    script.onerror = () => finish(null); // no session.js, so no server
    script.onload = () => {
      const { port, token } = window.pebbleSession;
      candidate = new WebSocket(`ws://${host}:${port}/?token=${token}`);
      candidate.onopen = () => finish(candidate);
      candidate.onclose = () => finish(null);
    };
    delete window.pebbleSession;
    // The query never repeats: else WebKit may take an earlier server's script from its cache.
    script.src = `session.js?${Date.now()}-${Math.random()}`;
    document.head.append(script);
  });
}

function whenClosed(open) {
  open.onmessage = (event) => answered(event.data);
  return new Promise((resolve) => { open.onclose = resolve; });
}

function connectionLost() {
  socket = null;
  if (waiting.size) say("failed", "The connection was lost before the answer came.");
  waiting.clear();
  dryRun = false;
  stop();
}

function pause(milliseconds) {
  return new Promise((resolve) => {
    endPause = resolve;
    setTimeout(resolve, milliseconds);
  });
}

// ---- A click and its answer --------------------------------------------------------------------

function pressed(event) {
  const button = event.target.closest("button");
  if (!button || button.hidden) return; // Return in a field clicks its button even when hidden
  const act = ACTIONS[button.dataset.action] ?? ask;
  act(button);
}

function ask(button) {
  say("working", `${button.textContent} is working …`);
  send(button);
}

function send(button) {
  waiting.set(button.dataset.message, button);
  socket.send(button.dataset.message);
  showState();
}

function answered(text) {
  const { message, status, output } = parsed(text);
  const button = waiting.get(message);
  waiting.delete(message);
  if (status in SIGNS) say(status, output || status);
  else say("failed", `The server sent no answer but ${text}`);
  dryRun = status === "dry run";
  showState();
  // A button loses the focus when it is disabled: give it back, unless it went elsewhere.
  if (button && document.activeElement === document.body) button.focus();
  if (button === runButton && running) ticked(status);
}

function parsed(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}

function say(status, text) {
  find("#answer").dataset.status = status;
  find("#answer").textContent = status in SIGNS ? `${SIGNS[status]} ${text}` : text;
}

// Everything on the page that hangs on the connection, on what waits, and on Run.
function showState() {
  const focused = document.activeElement;
  find("#connected").hidden = !socket;
  find("#disconnected").hidden = Boolean(socket);
  find("#with-sketch").hidden = dryRun;
  find("#without-sketch").hidden = !dryRun;
  for (const button of document.querySelectorAll("button[data-message]")) {
    const { message } = button.dataset;
    button.hidden = !socket || (button === runButton && running);
    button.disabled = waiting.has(message) || (running && message === runButton.dataset.message);
    button.ariaBusy = String(waiting.get(message) === button);
  }
  stopButton.hidden = !running;
  find("#time").readOnly = running;
  if (focused.hidden) (running ? stopButton : runButton).focus(); // they take turns in one place
}

// ---- The clock ---------------------------------------------------------------------------------

function add(button) {
  if (addAmount()) ask(button);
}

function run() {
  running = true;
  nextTick = Date.now();
  tick();
}

function tick() {
  nextTick = Math.max(nextTick + 1000, Date.now());
  if (addAmount()) send(runButton);
  else stop();
}

// Only an answer starts the next tick, so that two are never on their way.
function ticked(status) {
  if (status !== "done" && status !== "dry run") stop();
  else tickTimer = setTimeout(tick, nextTick - Date.now());
}

function stop() {
  running = false;
  clearTimeout(tickTimer);
  showState();
}

// Add the amount to the time, in the field and in the title. If one of them is none, say so.
function addAmount() {
  const [time, amount] = [find("#time"), find("#amount")];
  const [start, more] = [secondsOfDay(time.value), seconds(amount.value)];
  if (Number.isNaN(start)) return refuse(time, "time of day. Type 10, 10:10 or 10:10:30.");
  if (Number.isNaN(more)) return refuse(amount, "amount of time. Type 5, 3:16 or 1:00:00.");
  time.value = clockTime((start + more) % DAY);
  saveValues();
  return true;
}

function refuse(field, expected) {
  say("failed", `"${field.value}" is no ${expected}`);
  return false;
}

// "10", "10:10" and "10:10:30" are times of day; anything else is NaN.
function secondsOfDay(text) {
  const missing = Math.max(0, 3 - text.split(":").length);
  const sum = seconds(text.trim() + ":00".repeat(missing));
  return sum < DAY ? sum : NaN;
}

// "5" is seconds, "3:16" minutes and seconds, "1:00:00" hours; anything else is NaN.
function seconds(text) {
  if (!/^\s*\d{1,6}(:[0-5]?\d){0,2}\s*$/.test(text)) return NaN;
  return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
}

function clockTime(sum) {
  return [sum / 3600, sum / 60 % 60, sum % 60]
    .map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");
}

// ---- The pages and the rows --------------------------------------------------------------------

function showPage(tab) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.ariaSelected = String(other === tab);
    document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
}

function moveBetweenTabs({ key, target }) {
  if (!target.matches("[role=tab]")) return;
  const { previousElementSibling: ArrowLeft, nextElementSibling: ArrowRight } = target;
  const tab = { ArrowLeft, ArrowRight }[key];
  tab?.click();
  tab?.focus();
}

function addRow() {
  appendRow("", "").focus();
  saveValues();
}

function removeRow(button) {
  const row = button.closest("tr");
  const neighbour = row.nextElementSibling ?? row.previousElementSibling;
  row.remove();
  (neighbour ?? document).querySelector("[data-action=removeRow], [data-action=addRow]").focus();
  saveValues();
}

// Append a row and return its first field.
function appendRow(...values) {
  const row = find("#row").content.cloneNode(true);
  const fields = row.querySelectorAll("input");
  fields.forEach((field, i) => { field.value = values[i]; });
  find("#rows").append(row);
  return fields[0];
}
