/*
 * A model of the parts of Sketch that the scripts use, as they are documented. It knows nothing of
 * the scripts. What a script asks for and the model does not have is an error, never undefined,
 * and is kept in `missing`: a script may have caught the error.
 *
 * Three parts: layers, as Sketch holds them; what require('sketch') makes of them; and the
 * Cocoa classes. A Model is one running Sketch, and `run` chooses one command from its menu.
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
  /** `read(path)` gives a file's text; `scripts` is the folder with the real scripts. */
  constructor(read, scripts) {
    Object.assign(this, { read, scripts, missing: [] });
    this.page = new Layer("Page", "Page 1", undefined, { children: [] });
    this.selection = [];
    this.hasDocument = true;
    this.signedRotation = false; // a Sketch that tells 330° as -30°
    this.undoSpellings = ["actionForID"]; // those that this version has
    this.undoFound = "actionForID"; // the one of them that finds MSUndoAction, if any
    this.responds = true; // whether somebody takes the action undo:
    this.undone = [];
    this.bundle = "/Users/ann/Plugins/pebble.sketchplugin";
    this.app = "/Applications/Sketch.app";
    this.files = new Set([`${this.bundle}/Contents/Resources/pebble-dialogue.html`]);
    this.fileExists = (path) => this.files.has(path);
    this.clipboard = "what was copied before";
    this.title = ""; // of the page in the panel
    this.panels = [];
    this.dictionary = {};
    this.lines = [];
    this.toasts = [];
    this.alerts = [];
  }

  add(...layers) {
    for (const layer of layers) layer.parent = this.page;
    this.page.children.push(...layers);
    return layers[0];
  }

  /** Choose a command: its script gets a context of its own, which ends with it. */
  run(command) {
    const file = `${command}.cocoascript`;
    const { onRun } = this.load(file, {});
    onRun(
      this.strict("context", {
        document: this.hasDocument ? this.nativeDocument() : null,
        plugin: this.native("MSPluginBundle", {
          urlForResourceNamed: (name) => {
            const path = `${this.bundle}/Contents/Resources/${name}`;
            return this.fileExists(path) ? this.url(path) : null;
          },
        }),
        scriptURL: this.url(`${this.bundle}/Contents/Sketch/${file}`),
      }),
    );
  }

  /** Run a file where nothing is in scope but JavaScript and what is in `globals`. */
  load(file, modules) {
    const module = { exports: {} };
    const globals = {
      ...this.cocoa(),
      module,
      exports: module.exports,
      require: (name) => {
        if (name === "sketch") return this.sketch();
        if (!/^\.\/[\w-]+$/.test(name)) throw this.missed(`a module ${name}`);
        modules[name] = modules[name] || this.load(`${name}.js`, modules).module;
        return modules[name].exports;
      },
    };
    const scope = new Proxy(globals, {
      has: (target, key) => typeof key === "string",
      get: (target, key) => {
        if (typeof key === "symbol") return undefined;
        if (Object.hasOwn(target, key)) return target[key];
        if (LANGUAGE.includes(key)) return globalThis[key];
        throw this.missed(`a global ${key}`);
      },
      set: (target, key) => {
        throw this.missed(`a global ${key} to be set`);
      },
    });
    const source = this.read(`${this.scripts}/${file}`);
    // Sketch looks for a function of this name in the global scope: a const is not in it.
    const handler = /^function onRun\(/m.test(source) ? "onRun" : "undefined";
    const body = `with (scope) return (function () { ${source}\nreturn ${handler} })()`;
    return { onRun: new Function("scope", body)(scope), module };
  }

  /** An object with these members and no others. */
  strict(name, members) {
    const own = (target, key) => {
      if (!Object.hasOwn(target, key)) throw this.missed(`${name}.${String(key)}`);
      return Object.getOwnPropertyDescriptor(target, key);
    };
    return new Proxy(members, {
      get: (target, key) => {
        if (typeof key === "symbol") return undefined;
        const { get, set } = own(target, key);
        if (set && !get) throw this.missed(`${name}.${key} to be read`);
        return target[key];
      },
      set: (target, key, value) => {
        if (!own(target, key).set) throw this.missed(`${name}.${String(key)} to be set`);
        target[key] = value;
        return true;
      },
    });
  }

  /** A native object: moreover its methods take exactly as many arguments as they name. */
  native(name, members) {
    for (const [key, { value }] of Object.entries(Object.getOwnPropertyDescriptors(members))) {
      if (typeof value === "function") members[key] = this.exact(`${name}.${key}`, value);
    }
    return this.strict(name, members);
  }

  exact(name, method) {
    return (...values) => {
      if (values.length !== method.length)
        throw this.missed(`${name} of ${values.length} arguments`);
      return method(...values);
    };
  }

  missed(what) {
    this.missing.push(what);
    return new Error(`The model of Sketch does not have ${what}`);
  }

  /** A string of Cocoa's: an object, without JavaScript's methods. */
  nativeString(text) {
    return this.strict("NSString", { toString: () => text });
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
        if (layer === model.page) throw model.missed("Page.parent");
        return model.wrapped(layer.parent);
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
        return isGroup && layer.isStack ? model.strict("StackLayout", {}) : null;
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
      console: this.strict("console", {
        log: (text) => {
          this.lines.push(...text.split("\n"));
        },
      }),
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
            initWithFrame_configuration: (frame, configuration) => this.webView(frame),
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
            fileExistsAtPath: (path) => this.fileExists(path),
          }),
      }),
      NSBundle: this.native("NSBundle", {
        mainBundle: () =>
          this.native("NSBundle", { bundlePath: () => this.nativeString(this.app) }),
      }),
      NSApp: this.native("NSApplication", {
        sendAction_to_from: (action, target, sender) => {
          if (this.responds) this.undone.push(action);
          return this.responds;
        },
      }),
    };
  }

  panel(state) {
    Object.assign(state, { hidesOnDeactivate: true, visible: false });
    this.panels.push(state);
    const alive = () => {
      if (state.released) throw this.missed("a panel that was released");
    };
    return this.native("NSPanel", {
      setTitle: (title) => {
        state.title = title;
      },
      setHidesOnDeactivate: (hides) => {
        state.hidesOnDeactivate = hides;
      },
      set floatingPanel(floats) {
        state.floats = floats;
      },
      set releasedWhenClosed(released) {
        state.releasedWhenClosed = released;
      },
      center: () => {
        state.centered = true;
      },
      set contentView(view) {
        state.contentView = view;
      },
      get contentView() {
        return () => {
          alive();
          return state.contentView;
        };
      },
      isVisible: () => {
        alive();
        return state.visible;
      },
      makeKeyAndOrderFront: (sender) => {
        alive();
        state.visible = true;
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

  webView(frame) {
    return this.native("WKWebView", {
      setAutoresizingMask: (mask) => {
        this.autoresizingMask = mask;
      },
      loadFileURL_allowingReadAccessToURL: (file, folder) => {
        this.loaded = { file: String(file.path()), folder: String(folder.path()) };
      },
      title: () => this.nativeString(this.title.slice(0, 1000)),
    });
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
        return cleared;
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
    const controller = {
      actionForID: undefined,
      actionWithID: undefined,
      actionWithName: undefined,
    };
    for (const spelling of this.undoSpellings) {
      controller[spelling] = (name) =>
        name === "MSUndoAction" && spelling === this.undoFound
          ? this.native(name, {
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
}

const LAYERS = new WeakMap(); // the layer in each wrapper

const LANGUAGE = (
  "Object Array String Number Boolean Symbol Math JSON Map Set Date RegExp Promise " +
  "Error TypeError RangeError parseInt parseFloat isNaN isFinite undefined NaN Infinity " +
  "encodeURI encodeURIComponent decodeURI decodeURIComponent"
).split(" ");

module.exports = { Model, Layer };
