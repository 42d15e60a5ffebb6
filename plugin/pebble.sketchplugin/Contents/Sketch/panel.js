/*
 * Between a plugin's scripts, its panel and the person: what the fields in the panel hold, how a
 * script went, and the panel itself. It knows nothing of what the plugin is for: a plugin of your
 * own takes this file as it is.
 *
 *     const { run, Problem } = require("./panel");
 *
 *     function onRun(context) {
 *       run(context, (values) => {
 *         if (values.name === "") throw new Problem("Type a name into the panel.");
 *         // … here the layers are changed …
 *         return "What was done.";
 *       });
 *     }
 */
const sketch = require("sketch");

// What JavaScript and Sketch's console ask any object for. It is no field that somebody forgot.
const ASKED_OF_ANY_OBJECT = ["toJSON", "copy", "inspect", "isKindOfClass", "_isWrappedObject"];

/** What a person can put right. Its message says what is wrong and what to do now. */
class Problem extends Error {}

// --- A script, and how it went --------------------------------------------------------------

/**
 * Do a script's work and say how it went: in a toast, and in one last line, OK … or ERROR …,
 * which the server passes on to the panel.
 *
 * `work` gets the values in the panel; one that takes none needs no open panel. It returns what
 * it did. It checks everything first, throws a Problem while nothing is changed yet, and only
 * then changes layers.
 */
function run(context, work, show = toast) {
  let outcome;
  let text;
  try {
    const returned = work.length === 0 ? work() : work(panelValues(context));
    text = sentence(context, returned);
    outcome = "OK";
  } catch (error) {
    text = error instanceof Problem ? error.message : unexpected(error);
    outcome = "ERROR";
  }

  // The line comes last, and it comes whatever Sketch makes of the toast.
  try {
    show(text);
  } catch (error) {
    log(oneLine(`Sketch did not show the next line: ${reason(error)}`));
  }
  log(oneLine(`${outcome} ${text}`));
}

function toast(text) {
  sketch.UI.message(text);
}

/** What `work` returned, if it is a text. A text of Cocoa's is an object. */
function sentence(context, returned) {
  const isNative = returned && returned.isKindOfClass;
  const isText = typeof returned === "string" || isNative;
  if (!isText || String(returned).trim() === "") {
    const kind = isText ? "an empty one" : typeof returned;
    throw new Problem(
      `${fileName(context.scriptURL)} has run, but returned no text (${kind}). ` +
        "Let it return what was done, and leave out async.",
    );
  }
  return String(returned);
}

function unexpected(error) {
  // The first of the plugin's own files: an error may come from deep inside Sketch.
  const own = /\/Contents\/Sketch\/([^/\n]+?):(\d+)/.exec(Object(error).stack);
  const place = own ? ` in ${own[1]}, line ${own[2]}` : "";
  return (
    `Failed unexpectedly${place}: ${reason(error).replace(/\.$/, "")}. ` +
    "Look at your layers, and undo if they changed."
  );
}

/** What went wrong. The text of a native exception's error is always the same. */
function reason(error) {
  const { nativeException } = Object(error);
  return String(nativeException ? nativeException.reason() : error);
}

function oneLine(text) {
  return text.replace(/[\s\u0000-\u001f\u007f-\u009f]+/g, " ").trim();
}

function pluginName(context) {
  const { plugin } = context;
  return String((plugin.name && plugin.name()) || "this plugin");
}

/** The folder of the plugin's scripts. */
function scriptsFolder(context) {
  return String(context.scriptURL.path()).replace(/\/[^/]*$/, "");
}

function fileName(url) {
  return String(url.path()).replace(/^.*\//s, "");
}

// --- The values in the panel ----------------------------------------------------------------

/** The values of the page's fields, and its lists. To ask for what is not there is a Problem. */
function panelValues(context) {
  const panel = panels()[panelKey(context)];
  // Closed by its button it is only hidden.
  if (!panel || !panel.isVisible()) {
    throw new Problem(
      `Open the panel first: choose open-panel of ${pluginName(context)} in the Plugins menu.`,
    );
  }
  const webView = panel.contentView();
  return complete(valuesIn(webView), context, webView);
}

/** The page keeps its values in its title, because a title can be read without waiting. */
function valuesIn(webView) {
  const title = String(webView.title() || "");
  if (title === "") {
    throw new Problem(
      `${pageName(webView)} is still loading, or loads no back-channel.js. Try again; ` +
        'if it stays so, see that it has <script src="back-channel.js" defer></script>.',
    );
  }
  let values;
  try {
    values = JSON.parse(title);
  } catch (error) {
    // WebKit hands over no more than the first 1,000 characters of a title.
    if (title.startsWith("{")) {
      throw new Problem(
        "The panel holds more than the 1,000 characters that Sketch can read. " +
          "Shorten a text or remove a row.",
      );
    }
  }
  if (!isObject(values)) {
    throw new Problem(
      `${pageName(webView)} loads no back-channel.js, so a script cannot read its fields. ` +
        'Add <script src="back-channel.js" defer></script> to its head, and restart Sketch.',
    );
  }
  return values;
}

/** The same values, which throw a Problem where a script asks for one that they do not have. */
function complete(values, context, webView) {
  if (Array.isArray(values)) return values.map((row) => complete(row, context, webView));
  if (!isObject(values)) return values;
  for (const name of Object.keys(values)) values[name] = complete(values[name], context, webView);
  return new Proxy(values, {
    get(target, name) {
      if (typeof name === "symbol" || name in target || ASKED_OF_ANY_OBJECT.includes(name)) {
        return target[name];
      }
      const script = fileName(context.scriptURL);
      const names = Object.keys(target).map((key) => `"${key}"`);
      throw new Problem(
        `${script} asks for "${name}", but ${pageName(webView)} has no field of that name ` +
          `(it has ${names.join(", ") || "none"}). Change the name in one of the two files, ` +
          "and restart Sketch.",
      );
    },
  });
}

function pageName(webView) {
  const url = webView.URL();
  return url ? fileName(url) : "The page";
}

function isObject(value) {
  return Object(value) === value && !Array.isArray(value);
}

// --- The panel ------------------------------------------------------------------------------

/** Open the panel with a page of Contents/Resources, or bring the open one back. */
function openPanel(context, page, size) {
  const key = panelKey(context);
  const panel = panels()[key] || newPanel(context, page, size);
  panels()[key] = panel;
  panel.makeKeyAndOrderFront(null);
}

function newPanel(context, page, { width, height }) {
  const file = context.plugin.urlForResourceNamed(page);
  if (!file || !NSFileManager.defaultManager().fileExistsAtPath(file.path())) {
    throw new Problem(
      `${page} is missing from Contents/Resources. ` +
        "Put it there, or change PAGE in open-panel.cocoascript.",
    );
  }

  const frame = NSMakeRect(0, 0, width, height);
  const panel = NSPanel.alloc().initWithContentRect_styleMask_backing_defer(
    frame,
    NSWindowStyleMaskTitled | NSWindowStyleMaskClosable | NSWindowStyleMaskResizable,
    NSBackingStoreBuffered,
    false,
  );
  panel.setTitle(pluginName(context));
  panel.setFloatingPanel(true);
  // It must stay in sight while Terminal is in front, and outlive a click on its close button.
  panel.setHidesOnDeactivate(false);
  panel.setReleasedWhenClosed(false);
  panel.center();

  const webView = WKWebView.alloc().initWithFrame_configuration(
    frame,
    WKWebViewConfiguration.alloc().init(),
  );
  webView.setAutoresizingMask(NSViewWidthSizable | NSViewHeightSizable);
  // The page may read its own folder, and no other.
  webView.loadFileURL_allowingReadAccessToURL(file, file.URLByDeletingLastPathComponent());
  panel.setContentView(webView);
  return panel;
}

/** What outlives a script: here the open panels of all plugins are kept. */
function panels() {
  return NSThread.mainThread().threadDictionary();
}

/** Where this plugin keeps its panel: no other plugin has its identifier, or lies in its place. */
function panelKey(context) {
  const { plugin } = context;
  const identifier = String(plugin.identifier ? plugin.identifier() : scriptsFolder(context));
  if (["", "null", "undefined"].includes(identifier)) {
    throw new Problem(
      'manifest.json gives the plugin no "identifier". ' +
        "Add one that no other plugin has, and restart Sketch.",
    );
  }
  return `${identifier}.panel`;
}

module.exports = { Problem, run, openPanel, pluginName, scriptsFolder };
