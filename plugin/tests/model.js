/*
 * A model of the parts of Sketch that the scripts use: what it does, also where that is
 * inconvenient. It knows nothing of the scripts. As in Sketch, what an object does not have is
 * undefined and can be assigned without effect; but the model keeps it in `missing`, because a
 * script that asks for it has a wrong name in it.
 *
 * In this order: layers, as Sketch holds them; a running Sketch, in which `run` chooses a command
 * from the menu; what require('sketch') gives; the Cocoa classes; the console.
 */

// --- Layers ---------------------------------------------------------------------------------
// A frame is relative to the parent and not rotated, y points down, and a layer turns clockwise
// around the middle of its frame. A line has no frame of its own, but two ends.

let layersMade = 0;

class Layer {
  constructor(type, name, frame = [0, 0, 0, 0], more = {}) {
    const [x, y, width, height] = frame;
    Object.assign(this, { type, name, namedByHand: true, rotation: 0, parent: null }, more);
    Object.assign(this, { rect: { x, y, width, height }, id: `id-${++layersMade}` });
    for (const child of this.children || []) child.parent = this;
  }

  get frame() {
    if (!this.ends) return { ...this.rect };
    const [xs, ys] = [this.ends.map((end) => end.x), this.ends.map((end) => end.y)];
    return boundsOf(xs, ys);
  }

  set frame(to) {
    const from = this.frame;
    const along = (position, start, length, newStart, newLength) =>
      newStart + (length ? ((position - start) / length) * newLength : newLength / 2);
    if (!Object.values(to).every(Number.isFinite)) throw new Error("A frame of numbers, please.");
    if (this.parent.isStack && !this.ignoresStack) Object.assign(to, { x: from.x, y: from.y });
    this.rect = { ...to };
    this.ends =
      this.ends &&
      this.ends.map(({ x, y }) => ({
        x: along(x, from.x, from.width, to.x, to.width),
        y: along(y, from.y, from.height, to.y, to.height),
      }));
  }

  get degrees() {
    if (!this.ends) return this.rotation;
    const [from, to] = this.ends;
    return within360((Math.atan2(to.y - from.y, to.x - from.x) * 180) / Math.PI);
  }

  set degrees(to) {
    if (!Number.isFinite(to)) throw new Error("A rotation in numbers, please.");
    const by = to - this.degrees;
    const center = middleOf(this.frame);
    this.ends = this.ends && this.ends.map((end) => turned(end, center, by));
    this.rotation = within360(to);
  }

  /** A point in this layer's coordinates, in those of its parent: a page has none. */
  outwards(point) {
    if (!this.parent) return point;
    const { x, y } = this.rect;
    return turned({ x: point.x + x, y: point.y + y }, middleOf(this.rect), this.rotation);
  }

  inwards(point) {
    if (!this.parent) return point;
    const { x, y } = turned(point, middleOf(this.rect), -this.rotation);
    return { x: x - this.rect.x, y: y - this.rect.y };
  }

  toPage(point) {
    return this.parent ? this.parent.toPage(this.outwards(point)) : point;
  }

  fromPage(point) {
    return this.parent ? this.inwards(this.parent.fromPage(point)) : point;
  }

  /** Where this layer's middle is on the page, and how it is turned there. */
  get onPage() {
    let degrees = 0;
    for (let layer = this; layer; layer = layer.parent) degrees += layer.degrees;
    return { ...this.parent.toPage(middleOf(this.frame)), degrees: within360(degrees) };
  }

  corners() {
    if (this.ends) return this.ends;
    const { x, y, width, height } = this.rect;
    return [
      [x, y],
      [x + width, y],
      [x, y + height],
      [x + width, y + height],
    ].map(([x, y]) => turned({ x, y }, middleOf(this.rect), this.rotation));
  }

  copy() {
    const { children, parent, ...rest } = this;
    if (children) rest.children = children.map((child) => child.copy());
    return new Layer(this.type, this.name, Object.values(this.rect), rest);
  }

  /** Take the size of what is in it, and leave that where it is on the page. */
  fit() {
    if (!this.parent) return;
    const corners = this.children.flatMap((child) => child.corners());
    const bounds = boundsOf(
      corners.map(({ x }) => x),
      corners.map(({ y }) => y),
    );
    const { x, y } = this.outwards(middleOf(bounds));
    const { width, height } = bounds;
    for (const child of this.children) child.shift(-bounds.x, -bounds.y);
    this.rect = { x: x - width / 2, y: y - height / 2, width, height };
  }

  shift(dx, dy) {
    const moved = ({ x, y, ...size }) => ({ x: x + dx, y: y + dy, ...size });
    this.rect = moved(this.rect);
    this.ends = this.ends && this.ends.map(moved);
  }

  /** All that can change, as text. */
  toString() {
    return JSON.stringify(this, (key, value) => (key === "parent" ? undefined : value));
  }
}

function turned({ x, y }, center, degrees) {
  const angle = (degrees * Math.PI) / 180;
  const [dx, dy] = [x - center.x, y - center.y];
  return {
    x: center.x + dx * Math.cos(angle) - dy * Math.sin(angle),
    y: center.y + dx * Math.sin(angle) + dy * Math.cos(angle),
  };
}

function middleOf({ x, y, width, height }) {
  return { x: x + width / 2, y: y + height / 2 };
}

function boundsOf(xs, ys) {
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, width: Math.max(...xs) - x, height: Math.max(...ys) - y };
}

function within360(degrees) {
  return ((degrees % 360) + 360) % 360;
}

// --- A running Sketch -----------------------------------------------------------------------

class Model {
  /** `read(path)` gives a file's text; `folder` is the real bundle that lies at `bundle`. */
  constructor(read, folder) {
    Object.assign(this, { read, folder, missing: [] });
    this.isOlder = false; // BOOLs are numbers, and a toast without a document throws
    this.page = new Layer("Page", "Page 1", undefined, { children: [] });
    this.selection = [];
    this.hasDocument = true;
    this.signedRotation = false; // a Sketch that tells 330° as -30°
    this.undoSpellings = ["actionForID"]; // those that this version has
    this.undoFound = "actionForID"; // the one of them that finds MSUndoAction, if any
    this.undoValidates = true; // whether that action can say that it has nothing to do
    this.canUndo = true;
    this.responds = true; // whether somebody takes the action undo:
    this.undone = [];
    this.bundle = "/Users/ann/Plugins/pebble.sketchplugin";
    this.app = "/Applications/Sketch.app";
    this.files = new Map(); // the text of others by their paths
    this.gone = new Set(); // paths of files that are not there
    this.fileExists = (path) => !this.gone.has(path) && this.text(path) !== undefined;
    this.isExecutable = this.fileExists;
    this.opens = () => true; // whether macOS opens a path, or an exception
    this.opened = [];
    this.clipboard = "what was copied before";
    this.panels = [];
    this.dictionary = this.mutableDictionary();
    this.lines = [];
    this.toasts = [];
    this.alerts = [];
  }

  add(...layers) {
    for (const layer of layers) layer.parent = this.page;
    this.page.children.push(...layers);
    return layers[0];
  }

  /** Type into the page of the panel that was opened last: this is its title then. */
  set title(text) {
    this.panels[this.panels.length - 1].page.title = text;
  }

  /** The text of a file, or undefined if there is none. */
  text(path) {
    if (this.files.has(path)) return this.files.get(path);
    if (!path.startsWith(`${this.bundle}/`)) return undefined;
    // It is in installed plugins only, and jsc complains of each file that it cannot read.
    if (path.endsWith("/pebble_ws.py")) return undefined;
    try {
      return this.read(this.folder + path.slice(this.bundle.length));
    } catch (error) {
      return undefined;
    }
  }

  print(text) {
    this.lines.push(...String(text).split("\n"));
  }

  /** Choose a command: its script gets a context of its own, which ends with it. */
  run(identifier, bundle = this.bundle) {
    const folder = `${bundle}/Contents/Sketch`;
    const text = this.text(`${folder}/manifest.json`);
    const manifest = JSON.parse(text.replace(/,(?=\s*[\]}])/g, "")); // Sketch takes a last comma
    const command = manifest.commands.find((command) => command.identifier === identifier);
    if (!command) throw new Error(`${bundle} has no command ${identifier}`);
    const path = `${folder}/${command.script}`;
    const name = command.handlers ? command.handlers.run : command.handler || "onRun";
    if (!name) {
      this.print(`Error in command ${command.name} ${path} does not declare a run handler.`);
      return;
    }
    try {
      const { handler } = this.load(path, {}, name);
      if (handler) {
        handler(this.context(bundle, manifest, path));
      } else {
        const what = `Script at path ${path} does not contain a handler function named: ${name}.`;
        this.print(`Error in command ${command.name} ${what}`);
      }
    } catch (error) {
      const place = /(\/[^\s@()]*\/Contents\/Sketch\/[^\s@()]*:\d+:\d+)/.exec(Object(error).stack);
      this.print(`${error}${place ? `\n    at ${place[1]}` : ""}`);
    }
  }

  context(bundle, manifest, path) {
    return this.strict("context", {
      document: this.hasDocument ? this.nativeDocument() : null,
      plugin: this.native("MSPluginBundle", {
        name: () => this.nativeString(manifest.name),
        identifier: () => this.nativeString(manifest.identifier),
        urlForResourceNamed: (name) => {
          const resource = `${bundle}/Contents/Resources/${name}`;
          return this.isOlder || this.fileExists(resource) ? this.url(resource) : null;
        },
      }),
      scriptURL: this.url(path),
    });
  }

  /** Run a file where nothing is in scope but JavaScript and what is in `globals`. */
  load(path, modules, handler) {
    const module = { exports: {} };
    const globals = {
      ...this.cocoa(),
      module,
      exports: module.exports,
      require: (name) => {
        if (name === "sketch") return this.sketch();
        if (!/^\.\/[\w-]+$/.test(name)) throw this.missed(`a module ${name}`);
        const file = `${path.replace(/[^/]*$/, "")}${name.slice(2)}.js`;
        modules[file] = modules[file] || this.load(file, modules).module;
        return modules[file].exports;
      },
    };
    const scope = new Proxy(globals, {
      has: (target, key) => typeof key === "string",
      get: (target, key) => {
        if (typeof key === "symbol") return undefined;
        if (Object.hasOwn(target, key)) return target[key];
        if (LANGUAGE.includes(key)) return globalThis[key];
        this.missed(`a global ${key}`);
        throw new ReferenceError(`Can't find variable: ${key}`);
      },
      set: (target, key) => {
        throw this.missed(`a global ${key} to be set`);
      },
    });
    const source = this.text(path);
    if (source === undefined) throw new Error(`Cannot find module ${path}`);
    // Sketch looks for a function of this name in the global scope: a const is not in it.
    const isFound = new RegExp(`^(async )?function ${handler}\\(|^var ${handler}\\b`, "m");
    const found = isFound.test(source) ? handler : "undefined";
    // All on the first line, so that lines have the numbers that they have in the file.
    const before = "(function (scope) { with (scope) return (function () { ";
    const after = `\nreturn ${found} })() })\n//# sourceURL=${encodeURI(path)}`;
    return { handler: (0, eval)(before + source + after)(scope), module };
  }

  /** An object with these members and no others. */
  strict(name, members) {
    return new Proxy(members, {
      get: (target, key) => {
        if (typeof key === "symbol") return undefined;
        if (!Object.hasOwn(target, key)) this.missed(`${name}.${key}`);
        return target[key];
      },
      set: (target, key, value) => {
        const { set } = Object.getOwnPropertyDescriptor(target, key) || {};
        if (!set) this.missed(`${name}.${String(key)} to be set`);
        else target[key] = value;
        return true;
      },
    });
  }

  /** A native object: moreover its methods take exactly as many arguments as they name. */
  native(name, members) {
    for (const [key, value] of Object.entries(members)) {
      if (typeof value === "function") members[key] = this.exact(`${name}.${key}`, value);
    }
    const own = { isKindOfClass: () => this.bool(true), toString: () => `<${name}: 0x6000>` };
    return this.strict(name, { ...own, ...members });
  }

  exact(name, method) {
    return (...values) => {
      if (values.length !== method.length) {
        this.missed(`${name} of ${values.length} arguments`);
        throw this.exception(`${name} takes ${method.length} arguments`);
      }
      return method(...values);
    };
  }

  missed(what) {
    this.missing.push(what);
    return new Error(`The model of Sketch does not have ${what}`);
  }

  /** What a script catches when native code throws. */
  exception(reason) {
    const members = { reason: () => this.nativeString(reason) };
    const nativeException = this.native("NSException", members);
    return Object.assign(new Error("An Obj-C exception occurred."), { nativeException });
  }

  bool(value) {
    return this.isOlder ? Number(value) : Boolean(value);
  }

  /** A string of Cocoa's: an object, without JavaScript's methods. */
  nativeString(text) {
    return text == null ? null : this.native("NSString", { toString: () => text });
  }

  /** A dictionary of Cocoa's: null is what it does not have. */
  mutableDictionary() {
    return new Proxy(new Map(), {
      get: (map, key) => (map.has(key) ? map.get(key) : null),
      set: (map, key, value) => Boolean(map.set(key, value)),
    });
  }

  // --- require('sketch') --------------------------------------------------------------------

  sketch() {
    const model = this;
    return this.strict("sketch", {
      getSelectedDocument: () => (this.hasDocument ? this.document() : undefined),
      Rectangle: function (...values) {
        return model.rectangle(...values);
      },
      UI: this.strict("UI", {
        message: (text) => {
          if (this.hasDocument) this.toasts.push(text);
          else if (this.isOlder) throw new TypeError("null is not an object");
        },
        alert: (title, text) => {
          this.alerts.push({ title, text });
        },
      }),
    });
  }

  document() {
    const model = this;
    return this.strict("Document", {
      get selectedLayers() {
        const layers = model.selection.map((layer) => model.wrapped(layer));
        return model.strict("Selection", {
          layers,
          length: layers.length,
          isEmpty: !layers.length,
        });
      },
    });
  }

  /** The layer as scripts see it, wrapped anew at each access. */
  wrapped(layer) {
    const model = this;
    const isGroup = Boolean(layer.children);
    const members = {
      get id() {
        return layer.id;
      },
      get type() {
        return layer.type;
      },
      get parent() {
        return layer === model.page ? model.document() : model.wrapped(layer.parent);
      },
      get name() {
        return layer.name;
      },
      set name(name) {
        Object.assign(layer, { name, namedByHand: true });
      },
      get frame() {
        return model.rectangle(...Object.values(layer.frame), layer);
      },
      set frame({ x, y, width, height }) {
        layer.frame = { x, y, width, height };
      },
      get transform() {
        return model.strict("transform", {
          get rotation() {
            const degrees = layer.degrees;
            return model.signedRotation && degrees > 180 ? degrees - 360 : degrees;
          },
          set rotation(degrees) {
            layer.degrees = degrees;
          },
        });
      },
      get layers() {
        return isGroup ? layer.children.map((child) => model.wrapped(child)) : undefined;
      },
      get points() {
        return layer.type === "ShapePath"
          ? layer.corners().map(() => model.strict("CurvePoint", {}))
          : undefined;
      },
      get isFrame() {
        return isGroup ? Boolean(layer.isFrame) : undefined;
      },
      get stackLayout() {
        if (layer.isStack) return model.strict("StackLayout", {});
        if (model.isOlder) throw new TypeError("groupLayout.isKindOfClass is not a function");
        return null;
      },
      get ignoresStackLayout() {
        return Boolean(layer.ignoresStack);
      },
      duplicate() {
        const copy = layer.copy();
        copy.parent = layer.parent;
        layer.parent.children.splice(layer.parent.children.indexOf(layer) + 1, 0, copy);
        return model.wrapped(copy);
      },
    };
    if (isGroup) members.adjustToFit = () => layer.fit();
    if (layer.type === "Text") {
      Object.defineProperty(members, "text", {
        get: () => layer.text,
        set: (text) => {
          if (typeof text !== "string") throw new Error("A text, please.");
          layer.text = text;
          layer.rect.width = 9 * text.length;
          if (!layer.namedByHand) layer.name = text;
        },
      });
    }
    const wrapper = this.strict(layer.type, members);
    LAYERS.set(wrapper, layer);
    return wrapper;
  }

  /** A rectangle; that of a layer writes all four values back when one of them is set. */
  rectangle(x, y, width, height, layer) {
    const values = { x, y, width, height };
    const members = {
      changeBasis: ({ from, to }) => {
        if (!from && !to) throw new Error("Expected a coordinate space");
        const page = from ? LAYERS.get(from).toPage({ x, y }) : { x, y };
        // Only the corner is converted: the size stays, however the layers are turned.
        const point = to ? LAYERS.get(to).fromPage(page) : page;
        return this.rectangle(point.x, point.y, width, height);
      },
    };
    for (const key of Object.keys(values)) {
      Object.defineProperty(members, key, {
        get: () => values[key],
        set: (value) => {
          values[key] = value;
          if (layer) layer.frame = { ...values };
        },
      });
    }
    return this.strict("Rectangle", members);
  }

  // --- Cocoa --------------------------------------------------------------------------------

  cocoa() {
    return {
      log: (text) => this.print(text),
      console: this.console(),
      NSThread: this.native("NSThread", {
        mainThread: () => this.native("NSThread", { threadDictionary: () => this.dictionary }),
      }),
      NSMakeRect: this.exact("NSMakeRect", (x, y, width, height) => ({ x, y, width, height })),
      NSPanel: this.native("NSPanel", {
        alloc: () =>
          this.native("NSPanel", {
            initWithContentRect_styleMask_backing_defer: (rect, styleMask, backing, defer) =>
              this.panel({ rect, styleMask }),
          }),
      }),
      NSWindowStyleMaskTitled: 1,
      NSWindowStyleMaskClosable: 2,
      NSWindowStyleMaskResizable: 8,
      NSBackingStoreBuffered: 2,
      NSViewWidthSizable: 2,
      NSViewHeightSizable: 16,
      WKWebView: this.native("WKWebView", {
        alloc: () =>
          this.native("WKWebView", {
            initWithFrame_configuration: (frame, configuration) => this.webView({ frame }),
          }),
      }),
      WKWebViewConfiguration: this.native("WKWebViewConfiguration", {
        alloc: () => this.native("WKWebViewConfiguration", { init: () => ({}) }),
      }),
      NSPasteboard: this.native("NSPasteboard", { generalPasteboard: () => this.pasteboard() }),
      NSPasteboardTypeString: "public.utf8-plain-text",
      NSFileManager: this.native("NSFileManager", {
        defaultManager: () =>
          this.native("NSFileManager", {
            fileExistsAtPath: (path) => this.bool(this.fileExists(String(path))),
            isExecutableFileAtPath: (path) => this.bool(this.isExecutable(String(path))),
          }),
      }),
      NSURL: this.native("NSURL", { fileURLWithPath: (path) => this.url(String(path)) }),
      NSWorkspace: this.native("NSWorkspace", {
        sharedWorkspace: () =>
          this.native("NSWorkspace", {
            openURL: (url) => {
              const path = String(url.path());
              if (!this.opens(path)) return this.bool(false);
              this.opened.push(path);
              return this.bool(true);
            },
          }),
      }),
      NSBundle: this.native("NSBundle", {
        mainBundle: () =>
          this.native("NSBundle", { bundlePath: () => this.nativeString(this.app) }),
      }),
      NSApp: this.native("NSApplication", {
        sendAction_to_from: (action, target, sender) => {
          if (this.responds) this.undone.push(action);
          return this.bool(this.responds);
        },
      }),
    };
  }

  panel(state) {
    Object.assign(state, { hidesOnDeactivate: true, visible: false });
    this.panels.push(state);
    const alive = () => {
      if (state.released) throw this.missed("a panel that was released");
      return state;
    };
    return this.native("NSPanel", {
      setTitle: (title) => {
        alive().title = title;
      },
      setHidesOnDeactivate: (hides) => {
        alive().hidesOnDeactivate = hides;
      },
      setFloatingPanel: (floats) => {
        alive().floats = floats;
      },
      setReleasedWhenClosed: (released) => {
        alive().releasedWhenClosed = released;
      },
      center: () => {
        alive().centered = true;
      },
      setContentView: (view) => {
        alive().contentView = view;
        state.page = PAGES.get(view);
      },
      contentView: () => alive().contentView,
      isVisible: () => this.bool(alive().visible),
      makeKeyAndOrderFront: (sender) => {
        alive().visible = true;
      },
    });
  }

  /** What the close button does. */
  closePanel() {
    for (const panel of this.panels) {
      panel.visible = false;
      panel.released = panel.releasedWhenClosed !== false;
    }
  }

  webView(page) {
    Object.assign(page, { title: "", file: null });
    const view = this.native("WKWebView", {
      setAutoresizingMask: (mask) => {
        page.autoresizingMask = mask;
      },
      loadFileURL_allowingReadAccessToURL: (file, folder) => {
        Object.assign(page, { file: String(file.path()), folder: String(folder.path()) });
      },
      title: () => this.nativeString(page.title.slice(0, 1000)),
      URL: () => (page.file === null ? null : this.url(page.file)),
    });
    PAGES.set(view, page);
    return view;
  }

  pasteboard() {
    let cleared = false;
    return this.native("NSPasteboard", {
      clearContents: () => {
        cleared = true;
        this.clipboard = null;
      },
      setString_forType: (text, type) => {
        if (cleared) this.clipboard = text;
        return this.bool(cleared);
      },
    });
  }

  url(path) {
    return this.native("NSURL", {
      path: () => this.nativeString(path),
      URLByDeletingLastPathComponent: () => this.url(path.replace(/\/[^/]*$/, "")),
      toString: () => `file://${encodeURI(path)}`,
    });
  }

  nativeDocument() {
    // What other versions have is known, and undefined in this one.
    const finders = ["actionForID", "actionWithID", "actionWithName"];
    const controller = Object.fromEntries(finders.map((finder) => [finder, undefined]));
    for (const spelling of this.undoSpellings) {
      controller[spelling] = (name) =>
        name === "MSUndoAction" && spelling === this.undoFound
          ? this.native(name, {
              validate: this.undoValidates ? () => this.bool(this.canUndo) : undefined,
              doPerformAction: (sender) => {
                this.undone.push(spelling);
              },
            })
          : null;
    }
    return this.native("MSDocument", {
      actionsController: () => this.native("MSActionController", controller),
    });
  }

  console() {
    const log = (...values) => this.print(format(...values));
    return this.strict("console", { log, info: log, warn: log, error: log, debug: log });
  }
}

const LAYERS = new WeakMap(); // the layer in each wrapper
const PAGES = new WeakMap(); // the page in each web view

const LANGUAGE = (
  "Object Array String Number Boolean Symbol Math JSON Map Set Date RegExp Promise Proxy " +
  "Error TypeError RangeError parseInt parseFloat isNaN isFinite undefined NaN Infinity " +
  "encodeURI encodeURIComponent decodeURI decodeURIComponent"
).split(" ");

// --- The console ----------------------------------------------------------------------------
// Sketch's is @skpm/console 0.2.8 over @skpm/util 0.1.28: one string comes in quotes. With
// NODE_PATH to these two, console.js compares this with them.

const LINE = 60; // characters of an array or object on one line
const DEEPEST = 2; // levels of objects in objects
const MOST_ITEMS = 100;
// Sketch's asks every object for these, to find out what it is.
const ASKED_FOR = ["isKindOfClass", "inspect", "copy", "_isWrappedObject"];
const CONVERSIONS = {
  "%s": String,
  "%d": Number,
  "%i": Number,
  "%f": Number,
  "%j": JSON.stringify,
  "%O": (value) => inspect(value),
};

/** What the console prints for these values. */
function format(first, ...values) {
  if (values.length === 0) return inspect(first);
  if (typeof first !== "string") return [first, ...values].map((value) => inspect(value)).join(" ");

  const text = first.replace(/%[sdifjO%]/g, (sign) => {
    if (sign === "%%") return "%";
    return values.length > 0 ? CONVERSIONS[sign](values.shift()) : sign;
  });
  const isObject = (value) => typeof value === "object" && value !== null;
  const rest = values.map((value) => (isObject(value) ? inspect(value) : String(value)));
  return [text, ...rest].join(" ");
}

function inspect(value, around = [], indent = 0, isProperty = false) {
  if (typeof value === "string") return quoted(value);
  if (Object.is(value, -0)) return "-0";
  if (Object(value) !== value) return String(value);
  for (const name of ASKED_FOR) value[name];

  const keys = Object.keys(value);
  if (Array.isArray(value) && value.length === 0) return "[]";
  const type = value.constructor ? value.constructor.name : "";
  const base = baseOf(value, type, indent);
  if (base && keys.every((key) => ["line", "column", "sourceURL"].includes(key))) return base;
  if (type === "Object" && keys.length === 0) return "{}";
  if (around.includes(value)) return "[Circular]";
  if (around.length > DEEPEST) return `[${type || "Object"}]`;

  const inside = [...around, value];
  const parts = Array.isArray(value)
    ? items(value, inside, indent)
    : keys.map((key) => {
        const name = /^[a-zA-Z_]\w*$/.test(key) ? key : quoted(key);
        return `${name}: ${inspect(value[key], inside, indent + 3, true)}`;
      });
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const before = base && ` ${base}`;
  const length = parts.reduce((sum, part) => sum + part.length + 1, 0);
  if (parts.length * 2 <= LINE && length <= LINE) {
    return `${open}${before} ${parts.join(", ")} ${close}`;
  }
  const margin = `\n${" ".repeat(indent)}`;
  const start = base ? `${before}${margin}  ` : " ";
  return `${isProperty ? margin : ""}${open}${start}${parts.join(`,${margin}  `)} ${close}`;
}

function baseOf(value, type, indent) {
  if (typeof value === "function") return `[${type}${value.name ? `: ${value.name}` : ""}]`;
  if (value instanceof RegExp) return String(value);
  if (value instanceof Date) return value.toISOString();
  return value instanceof Error ? withStack(value, indent) : "";
}

function items(array, inside, indent) {
  const shown = Array.from(array).slice(0, MOST_ITEMS);
  const parts = shown.map((item) => inspect(item, inside, indent + 2));
  const more = array.length - MOST_ITEMS;
  if (more > 0) parts.push(`... ${more} more item${more > 1 ? "s" : ""}`);
  return parts;
}

/** The error and its stack: "name@/path:line:column" a line, as JavaScriptCore has it. */
function withStack(error, indent) {
  const frames = error.stack ? error.stack.split("\n").slice(0, 10) : [];
  const lines = frames.map((frame) => {
    const [start, ...path] = frame.split("/");
    const name = start.replace(/@$/, "");
    const place = `/${path.join("/")}`;
    return `\n${" ".repeat(indent)}    at ${name ? `${name} (${place})` : place}`;
  });
  return String(error) + lines.join("");
}

function quoted(text) {
  const named = { "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r" };
  const escaped = text.replace(/[\x00-\x1f'\\]/g, (letter) => {
    if (letter === "'" || letter === "\\") return `\\${letter}`;
    return named[letter] || `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
  return `'${escaped}'`;
}

module.exports = { Model, Layer, format };
