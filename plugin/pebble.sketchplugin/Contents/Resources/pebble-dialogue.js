// The watch's dialogue, on top of back-channel.js: its rows, its clock, its pages, and the fields
// that are wrong.
"use strict";

const { saveValues, say, send } = window.backChannel;
const find = (id) => document.getElementById(id);
const [rows, addRowButton] = [find("rows"), find("add-row")];
const [time, amount] = [find("time"), find("amount")];
const [setButton, addButton] = [find("set"), find("add")];
const [runButton, stopButton] = [find("run"), find("stop")];
const tabs = [...document.querySelectorAll("[role=tab]")];
const footer = document.querySelector("footer");

const DAY = 24 * 60 * 60;
const SUCCESSES = ["done", "dry run"];
const CHECKS = { // a field's name: whether a script will take its text
  angle: (text) => text.trim() !== "" && Number.isFinite(Number(text)),
  time: (text) => !Number.isNaN(secondsOfDay(text)),
  amount: (text) => !Number.isNaN(secondsOf(text)),
};

let running = false; // between Run and Stop
let nextTick = 0;
let tickTimer;
let timeBefore = ""; // Add

const removed = []; // rows that Put back puts back, each with the one below it
const putBack = document.createElement("button");
putBack.type = "button";
putBack.textContent = "Put back";

for (const minutes of [5, 10, 15, 20, 25, 30]) appendRow(`${minutes}min`, "30");
nameRows();
addRowButton.addEventListener("click", addRow);
rows.addEventListener("click", removeRow);
rows.addEventListener("input", nameRows);
rows.addEventListener("keydown", goToNextField);
document.addEventListener("keydown", step);
putBack.addEventListener("click", putRowsBack);
addButton.addEventListener("click", add);
addButton.addEventListener("answer", added);
runButton.addEventListener("click", run);
runButton.addEventListener("answer", ticked);
stopButton.addEventListener("click", ({ detail }) => detail > 1 || stop()); // 2: Run's, twice
document.addEventListener("lost", stop);
for (const tab of tabs) tab.addEventListener("click", () => showPage(tab));
for (const tab of tabs) tab.addEventListener("keydown", moveBetweenTabs);
document.addEventListener("answer", showWrongFields);
const resized = new ResizeObserver(fitWindow);
for (const element of [document.documentElement, footer]) resized.observe(element);
document.addEventListener("input", ({ target }) => target.removeAttribute("aria-invalid"));

// ---- The rows ----------------------------------------------------------------------------------

function appendRow(name, angle) {
  const row = find("row").content.cloneNode(true).firstElementChild;
  const fields = row.querySelectorAll("input");
  [fields[0].value, fields[1].value] = [name, angle];
  rows.append(row);
  return row;
}

function addRow() {
  const row = appendRow("", "");
  nameRows();
  row.querySelector("input").focus();
}

function removeRow(event) {
  if (!event.target.closest(".remove")) return;
  const row = event.target.closest("tr");
  const next = row.nextElementSibling;
  const neighbour = next ?? row.previousElementSibling;
  row.remove();
  nameRows();
  saveValues();
  (neighbour?.querySelector(".remove") ?? addRowButton).focus();
  offerToPutBack(row, next);
}

// Nothing is lost by a slip: until something else is said, the rows can come back.
function offerToPutBack(row, next) {
  if (!putBack.isConnected) removed.length = 0;
  removed.push([row, next]);
  const name = row.querySelector("input").value;
  const what = removed.length > 1 ? `${removed.length} rows` : name ? `"${name}"` : "a row";
  say("", `Removed ${what}. `, putBack);
}

function putRowsBack() {
  const [first] = removed[0];
  for (const [row, next] of removed.splice(0).reverse()) {
    rows.insertBefore(row, next?.isConnected ? next : null);
  }
  nameRows();
  first.querySelector("input").focus();
  say("", "");
}

// Who listens to the page hears which row a field or a button belongs to.
function nameRows() {
  [...rows.rows].forEach((row, i) => {
    const [name, angle] = row.querySelectorAll("input");
    const label = name.value.trim() || `row ${i + 1}`;
    name.ariaLabel = `Name of row ${i + 1}`;
    angle.ariaLabel = `Angle of ${label}`;
    row.querySelector("button").ariaLabel = row.querySelector("button").title = `Remove ${label}`;
  });
}

function goToNextField(event) {
  // 229: Return has only ended a word that an input method composed.
  if (event.key !== "Enter" || event.keyCode === 229 || !event.target.matches("input")) return;
  event.preventDefault();
  const fields = [...rows.querySelectorAll("input")];
  const next = fields[fields.indexOf(event.target) + 1];
  (next ?? addRowButton).focus();
  next?.select();
}

// ---- Numbers -----------------------------------------------------------------------------------

// The arrow keys change a number by one, with Shift by ten.
function step(event) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  const field = event.target;
  if (event.metaKey || event.altKey || event.ctrlKey) return;
  if (!direction || !field.inputMode || field.readOnly || !/^-?\d+(\.\d+)?$/.test(field.value)) {
    return;
  }
  event.preventDefault();
  const decimals = field.value.split(".")[1]?.length ?? 0;
  const sum = Number(field.value) + direction * (event.shiftKey ? 10 : 1);
  const least = field === amount ? 0 : -Infinity;
  field.value = Math.max(least, sum).toFixed(decimals);
  field.dispatchEvent(new Event("input", { bubbles: true })); // as if it was typed
}

// ---- The clock ---------------------------------------------------------------------------------

function add(event) {
  timeBefore = time.value;
  if (!addAmount()) event.preventDefault();
}

// The watch did not move, so the time does not, either.
function added({ detail }) {
  if (SUCCESSES.includes(detail.status)) return;
  time.value = timeBefore;
  saveValues();
}

function run(event) {
  if (!addAmount()) return event.preventDefault();
  running = true;
  nextTick = performance.now() + 1000;
  showClock();
}

// Only an answer starts the next tick, so that two are never on their way.
function ticked({ detail }) {
  if (!running) {
    showClock();
    // Run was disabled when Stop gave it the focus.
    if (document.activeElement === document.body) runButton.focus();
    return;
  }
  if (!SUCCESSES.includes(detail.status)) return stop();
  tickTimer = setTimeout(tick, nextTick - performance.now());
}

function tick() {
  nextTick = Math.max(nextTick + 1000, performance.now());
  if (!addAmount() || !send(runButton)) stop();
}

function stop() {
  running = false;
  clearTimeout(tickTimer);
  showClock();
}

function showClock() {
  const focused = document.activeElement;
  find("run-place").hidden = running; // Run and Stop take turns in one place
  stopButton.hidden = !running;
  time.readOnly = amount.readOnly = running;
  setButton.disabled = addButton.disabled = running || runButton.disabled;
  find("answer").ariaLive = running ? "off" : "polite"; // not each second
  if (focused === runButton && running) stopButton.focus();
  if (focused === stopButton && !running) runButton.focus();
}

// Add the amount to the time, in the field and in the title. If one of them is wrong, say so.
function addAmount() {
  const [start, more] = [secondsOfDay(time.value), secondsOf(amount.value)];
  if (Number.isNaN(start)) return refuse(time, "a time of day. Type 10, 10:10 or 10:10:30.");
  if (Number.isNaN(more)) return refuse(amount, "an amount of time. Type 5, 3:16 or 1:00:00.");
  time.value = clockTime((start + more) % DAY);
  saveValues();
  return true;
}

function refuse(field, expected) {
  say("failed", `"${field.value}" is not ${expected}`);
  mark([field]);
  return false;
}

// "10", "10:10" and "10:10:30" are times of day; anything else is NaN.
function secondsOfDay(text) {
  const missing = Math.max(0, 3 - text.split(":").length);
  const sum = secondsOf(text.trim() + ":00".repeat(missing));
  return sum < DAY ? sum : NaN;
}

// "5" is seconds, "3:16" minutes and seconds, "1:00:00" hours; anything else is NaN.
function secondsOf(text) {
  if (!/^\s*\d{1,6}(:[0-5]?\d){0,2}\s*$/.test(text)) return NaN;
  return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
}

function clockTime(sum) {
  return [sum / 3600, sum / 60 % 60, sum % 60]
    .map((part) => String(Math.floor(part)).padStart(2, "0")).join(":");
}

// ---- The pages ---------------------------------------------------------------------------------

function showPage(tab) {
  for (const other of tabs) {
    const selected = other === tab;
    other.ariaSelected = String(selected);
    other.tabIndex = selected ? 0 : -1; // Tab goes to the selected one, the arrow keys go on
    find(other.getAttribute("aria-controls")).hidden = !selected;
  }
  say("", ""); // the answer belongs to the other page
}

function moveBetweenTabs(event) {
  const at = tabs.indexOf(event.target);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (!tabs[to]) return;
  event.preventDefault();
  tabs[to].click();
  tabs[to].focus();
}

// ---- Wrong fields ------------------------------------------------------------------------------

// The scripts judge. A field that an error quotes and that looks wrong here, too, is marked.
function showWrongFields(event) {
  const { status, output } = event.detail;
  const button = event.target;
  if (status === "failed") {
    const looksWrong = ({ name, value }) => CHECKS[name]?.(value) === false;
    const fields = [...(button.form ?? rows).querySelectorAll("input")].filter(looksWrong);
    mark(fields.filter(({ value }) => output.includes(`"${value}"`)));
  } else if (SUCCESSES.includes(status) && button.closest("section")?.hidden) {
    event.preventDefault(); // a success of the other page is no news on this one
  }
}

function mark(fields) {
  for (const field of fields) field.ariaInvalid = "true";
  fields[0]?.focus();
  fields[0]?.select();
}

// ---- A small window ----------------------------------------------------------------------------

// See the end of pebble-dialogue.css.
function fitWindow() {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const { classList } = document.body;
  classList.toggle("low", window.innerHeight < 23 * rem);
  classList.toggle("narrow", window.innerWidth < 16 * rem);
  classList.toggle("slim", window.innerWidth < 11 * rem);
  if (footer.classList.toggle("tall", footer.offsetHeight > 0.7 * window.innerHeight)) {
    footer.scrollIntoView({ block: "end" });
  }
}
