// The back channel of a page in a Sketch plugin's panel. It needs no other file but the session.js
// that the server writes, and knows the page by these attributes:
//
//   <input name="angle">                  a field: its value is in the title, for the scripts
//   <tbody data-list="rows"> … </tbody>   a list: an object for each child that has fields
//   <button data-message="rotate">        a button: a click sends this text to pebble_ws.py
//   <p id="answer"></p>                   what came of the last click; where it is missing, only
//                                         a failure is shown, at the end of the page
//   <p id="state"></p>                    the connection; may be missing. What the page writes
//                                         into it is said as long as there is no connection
//
// A page can do without a script. If it has one, that
//
//   - keeps a click from being sent by preventDefault() in a click listener of the button;
//   - hears what came of it by the button's "answer" event, which bubbles and has status and
//     output in its detail; preventDefault() keeps an answer from being shown;
//   - hears of a lost connection by the document's "lost" event;
//   - calls backChannel.saveValues() when it has changed a field's value, backChannel.say(status,
//     text, ...nodes) to show a text of its own, and backChannel.send(button) to send without a
//     click, which is quiet for the first seconds and returns whether it could.
"use strict";

window.backChannel ??= (() => {
  const HOSTS = ["localhost", "127.0.0.1"]; // taken in turn: macOS may block either
  const ATTEMPT_LIMIT = 5000; // ms; WebKit would wait for ever for a handshake's answer
  const RETRY_SOON = 1000;
  const RETRY_LATER = 5000; // after SOME_MINUTES: every attempt costs WebKit some memory
  const SOME_MINUTES = 120000;
  const SILENCE_LIMIT = 70; // s; the server ends a script after 60
  const SECONDS_SHOWN_FROM = 3;
  const TITLE_LIMIT = 1000; // WebKit hands no more characters of a title to Sketch
  const NOT_CONNECTED =
    "Not connected. In Sketch's Plugins menu, choose this plugin's start-webservice.";
  const CHECK_LAYERS = "Check your layers before you try again.";
  const SIGNS = {
    __proto__: null,
    "done": "✓ ",
    "failed": "✕ Failed: ",
    "unknown": "✕ Unknown: ",
    "busy": "✕ Busy: ",
    "dry run": "Dry run: ",
    "not sent": "✕ Not sent: ",
    "no answer": "✕ ",
  };
  const FIELD =
    ":is(input:not([type=button], [type=submit], [type=reset], [type=image]), select, textarea)";

  if (document.readyState === "loading") {
    const word = 'Add defer: <script src="back-channel.js" defer></script>. Nothing works without.';
    document.addEventListener("DOMContentLoaded", () => document.body.prepend(word));
    return {};
  }

  // Where the page has no such element, one that is not in it takes its part. That for the answer
  // comes into the page when something goes wrong: a click must not fail without a word.
  const answer = document.getElementById("answer") ?? document.createElement("p");
  const state = document.getElementById("state") ?? document.createElement("p");
  const wordsOfPage = state.textContent.trim() ? [...state.childNodes] : [NOT_CONNECTED];

  let socket = null; // the open connection, or null
  let session = {}; // port, token and dryRun, from session.js
  let endPause = () => {};
  let endConnection = () => {};

  const waiting = new Map(); // message → the click that has no answer yet; the first one runs
  let runningSince = 0;
  let clock; // ticks while one runs

  let problem = ""; // with the page's fields
  let said = { status: "", text: "", nodes: [] };
  let shown = "";
  const seconds = document.createElement("span");
  seconds.ariaHidden = "true"; // or a screen reader would read the line each second

  answer.setAttribute("role", "status");
  state.setAttribute("role", "status");
  document.addEventListener("input", saveValues);
  document.addEventListener("change", saveValues);
  document.addEventListener("click", keepFromPage, true);
  document.addEventListener("click", clicked);
  document.addEventListener("keydown", returnPressed);
  document.addEventListener("submit", (event) => event.preventDefault()); // Return has clicked
  document.addEventListener("reset", () => setTimeout(saveValues)); // when it has happened
  window.addEventListener("pageshow", saveValues); // a browser may have filled the fields again
  window.addEventListener("focus", () => endPause());
  new MutationObserver(pageChanged).observe(document.body, { childList: true, subtree: true });
  showConnection();
  pageChanged();
  stayConnected();

  // Rows or buttons may have come or gone.
  function pageChanged() {
    saveValues();
    showButtons();
  }

  // ---- The values ------------------------------------------------------------------------------

  // They are kept in the title: the one thing in a page that a script in Sketch can read at once.
  function saveValues() {
    problem = "";
    // A title loses all but one of several spaces.
    const title = JSON.stringify(valuesOfPage()).replace(/ (?= )/g, "\\u0020");
    document.title = title;
    const excess = title.length - TITLE_LIMIT;
    if (excess > 0) {
      const characters = excess === 1 ? "1 character" : `${excess} characters`;
      problem = `Too long for Sketch to read, by ${characters}. Shorten a value, or remove one.`;
    }
    show();
  }

  function valuesOfPage() {
    const values = { __proto__: null };
    for (const element of document.body.querySelectorAll(`[data-list], ${FIELD}`)) {
      const list = element.closest("[data-list]");
      if (element === list && !list.dataset.list) problem = 'Give the list a name: data-list="…".';
      else if (element === list) put(values, list.dataset.list, rowsOf(list));
      else if (!list) addValue(values, element);
    }
    return values;
  }

  function rowsOf(list) {
    const rows = [...list.children].map((child) => {
      const row = { __proto__: null };
      for (const element of [child, ...child.querySelectorAll("*")]) {
        if (element.matches(FIELD)) addValue(row, element);
      }
      return row;
    });
    return rows.filter((row) => Object.keys(row).length > 0);
  }

  function addValue(values, field) {
    const { name, type, value, checked } = field;
    if (!name) {
      problem = `Give the field "${labelOf(field)}" a name="…", or no script can read it.`;
    } else if (type === "radio") {
      values[name] = checked ? value : values[name] ?? "";
    } else if (type === "select-multiple") {
      put(values, name, Array.from(field.selectedOptions, (option) => option.value));
    } else {
      put(values, name, type === "checkbox" ? checked : value);
    }
    // The browser gives no value then, whatever stands there.
    if (field.validity.badInput) problem = `What "${labelOf(field)}" shows is not a ${type}.`;
  }

  function put(values, name, value) {
    if (name in values) problem = `Two fields have the name "${name}". Give one of them another.`;
    else values[name] = value;
  }

  function labelOf(field) {
    const label = field.labels?.[0]?.textContent.replace(field.textContent, "").trim();
    return label || field.ariaLabel || field.id || field.type;
  }

  // ---- The connection --------------------------------------------------------------------------

  async function stayConnected() {
    let failingSince = performance.now();
    for (let attempt = 0; ; attempt++) {
      socket = await connect(HOSTS[attempt % HOSTS.length]);
      if (socket) {
        connected();
        lost(await endOf(socket));
        failingSince = performance.now();
      }
      await pause(performance.now() - failingSince < SOME_MINUTES ? RETRY_SOON : RETRY_LATER);
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
        session = window.pebbleSession;
        candidate = new WebSocket(`ws://${host}:${session.port}/?token=${session.token}`);
        candidate.onopen = () => finish(candidate);
        candidate.onclose = () => finish(null);
      };
      // The query never repeats: else WebKit may take an earlier server's script from its cache.
      script.src = `session.js?${Date.now()}-${Math.random()}`;
      document.head.append(script);
    });
  }

  function connected() {
    if (said.status && said.status !== "no answer") say("", ""); // of an earlier server
    showConnection();
  }

  // Why it ended, once it has.
  function endOf(open) {
    open.onmessage = (event) => answered(event.data);
    return new Promise((resolve) => {
      open.onclose = () => resolve("The connection was lost before the answer came.");
      endConnection = resolve;
    });
  }

  function lost(why) {
    socket.close(); // one that is only silent; what it still says is not heard any more
    socket = null;
    if (waiting.size) say("no answer", `${why} ${CHECK_LAYERS}`);
    for (const message of waiting.keys()) end(message);
    show();
    showConnection();
    document.dispatchEvent(new Event("lost"));
  }

  function pause(milliseconds) {
    return new Promise((resolve) => {
      endPause = resolve;
      setTimeout(resolve, milliseconds);
    });
  }

  function showConnection() {
    const dryRun = session.dryRun ? "Connected (dry run, no Sketch)" : "Connected to Sketch";
    state.dataset.status = !socket ? "not connected" : session.dryRun ? "dry run" : "connected";
    state.replaceChildren(...(socket ? [dryRun] : wordsOfPage));
    showButtons();
  }

  function showButtons() {
    for (const button of buttons()) {
      button.hidden = !socket;
      if (socket) button.style.removeProperty("display");
      else button.style.setProperty("display", "none", "important"); // whatever the page's CSS says

      const waits = waiting.has(button.dataset.message);
      if (waits && !button.disabled) {
        button.disabled = true;
        button.dataset.waits = ""; // else it is the page that has disabled it
      } else if (!waits && "waits" in button.dataset) {
        button.disabled = false;
        button.ariaBusy = null;
        delete button.dataset.waits;
      }
    }
  }

  function buttons() {
    return [...document.querySelectorAll("[data-message]")];
  }

  // ---- A click and its answer ------------------------------------------------------------------

  // Return clicks a form's button even when it is hidden: nobody shall hear of such a click.
  function keepFromPage(event) {
    if (socket || !event.target.closest("[data-message]")) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  function clicked(event) {
    const button = event.target.closest("[data-message]");
    if (!button || event.defaultPrevented || !send(button)) return;
    said = { status: "", text: "", nodes: [] };
    waiting.get(button.dataset.message).quiet = false;
    show();
  }

  // With its form's button hidden, Return would do nothing, without a word. While an input method
  // composes a word (WebKit: 229), Return only ends that.
  function returnPressed({ key, keyCode, target }) {
    if (key !== "Enter" || keyCode === 229 || socket || !target.matches("input")) return;
    if (target.form?.querySelector("[data-message]")) say("not sent", "There is no connection.");
  }

  function send(button) {
    const { message } = button.dataset;
    if (!socket || waiting.has(message)) return false;
    saveValues();
    socket.send(message);
    if (!waiting.size) {
      runningSince = performance.now();
      clock = setInterval(secondPassed, 1000);
    }
    const focused = document.activeElement === button;
    button.ariaBusy = "true";
    waiting.set(message, { button, focused, quiet: true });
    showButtons();
    return true;
  }

  function secondPassed() {
    const passed = Math.floor((performance.now() - runningSince) / 1000);
    if (passed >= SILENCE_LIMIT) endConnection(`The server has not answered for ${passed} s.`);
    if (passed < SECONDS_SHOWN_FROM) return;
    waiting.values().next().value.quiet = false;
    show();
    seconds.textContent = ` ${passed} s`;
  }

  function answered(text) {
    const { message, status, output } = parsed(text);
    if (!(status in SIGNS) || typeof output !== "string") {
      return say("no answer", `Unexpected reply: ${text}`);
    }
    const button = end(message);
    const detail = { status, output };
    const event = new CustomEvent("answer", { bubbles: true, cancelable: true, detail });
    if (!button || button.dispatchEvent(event)) say(status, output);
    else show();
  }

  function parsed(text) {
    try {
      return Object(JSON.parse(text));
    } catch {
      return {};
    }
  }

  // End the waiting of a click; return its button.
  function end(message) {
    if (!waiting.has(message)) return null;
    const { button, focused } = waiting.get(message);
    if (message === waiting.keys().next().value) {
      runningSince = performance.now(); // the one behind it
      seconds.textContent = "";
    }
    waiting.delete(message);
    if (!waiting.size) clearInterval(clock);
    button.ariaBusy = null; // also where the page itself has disabled it
    showButtons();
    // It lost the focus when it was disabled: give it back, unless it went elsewhere.
    if (focused && document.activeElement === document.body) button.focus();
    return button;
  }

  // ---- What the page says ----------------------------------------------------------------------

  function say(status, text, ...nodes) {
    said = { status, text: (SIGNS[status] ?? "") + text, nodes };
    show();
  }

  // Touch the page only when there is something new to say: a screen reader reads all of it.
  function show() {
    const lines = [said, ...linesOfWaiting(), { status: "failed", text: problem }];
    const news = JSON.stringify(lines);
    if (news === shown) return;
    shown = news;
    const spoken = lines.filter(({ text }) => text);
    answer.replaceChildren(...spoken.flatMap(elementOf));
    const isWell = ({ status }) => ["", "working", "done", "dry run"].includes(status);
    if (!answer.isConnected && !spoken.every(isWell)) document.body.append(answer);
    // Of a long failure the last lines say most; with the focus, the arrow keys scroll.
    answer.scrollTop = said.status === "done" && !problem ? 0 : answer.scrollHeight;
    answer.tabIndex = answer.scrollHeight > answer.clientHeight ? 0 : -1;
  }

  function linesOfWaiting() {
    const clicks = [...waiting.values()];
    const names = clicks.map(({ button }) => button.ariaLabel || button.textContent.trim());
    return clicks.map(({ quiet }, i) => {
      const text = i === 0 ? `Running ${names[i]} …`
        : `${names[i]} waits until ${names[i - 1]} is answered.`;
      return { status: "working", text: quiet ? "" : text, timed: i === 0 };
    });
  }

  function elementOf({ status, text, nodes = [], timed }) {
    const line = document.createElement("span");
    line.dataset.status = status;
    line.append(text, ...nodes);
    if (timed) line.append(seconds);
    return [line, " "];
  }

  return { saveValues, say, send };
})();
