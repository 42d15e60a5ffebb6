/*
 * What the scripts share: saying how it went, reading the panel, finding layers, turning them.
 *
 * In order to add a button of your own:
 *   1. pebble-dialogue.html: <button type="button" data-message="my-message" hidden>My button</button>
 *   2. A script, my-script.cocoascript: copy rotate.cocoascript and change what its `run` does.
 *      Name it in manifest.json, as a command; to have it in the menu, also there.
 *   3. pebble_ws.py: "my-message": "my-script.cocoascript" in SCRIPTS.
 */
const sketch = require("sketch");

// Where the open panel is kept between two scripts: its key in the main thread's dictionary.
const KEY = "org.pebble-ws.pebble.panel";

/** What a person can put right. Its message says what is wrong and what to do now. */
class Problem extends Error {}

/**
 * Do a script's work and say how it went, in a toast and in one last line, OK … or ERROR …,
 * which the server passes on to the panel. `work` returns what it did; it checks everything
 * first, throws a Problem while nothing is changed yet, and only then changes layers.
 */
function run(work, show = toast) {
  let outcome, text;
  try {
    text = work();
    outcome = "OK";
  } catch (error) {
    text =
      error instanceof Problem
        ? error.message
        : `Failed unexpectedly: ${error}. Look at your layers, and undo if they changed.`;
    outcome = "ERROR";
  }
  console.log(`${outcome} ${text.replace(/\s+/g, " ")}`);
  show(text);
}

function toast(text) {
  sketch.UI.message(text);
}

/** The values in the panel, as they were typed: { angle, rows: [{ name, angle }, …], time }. */
function panelValues() {
  const panel = NSThread.mainThread().threadDictionary()[KEY];
  // Closed by its button it is only hidden.
  if (!panel || (optional(panel, "isVisible") && !panel.isVisible())) {
    throw new Problem("Open the panel first: Plugins ▸ pebble-dialogue ▸ open-panel.");
  }
  // The page keeps its values in its title, because a title can be read without waiting.
  const title = String(panel.contentView().title());
  if (title === "") {
    throw new Problem("The panel is still loading. Try again; if it stays so, restart Sketch.");
  }
  try {
    return JSON.parse(title);
  } catch (error) {
    // WebKit cuts a long title.
    throw new Problem(
      "The table in the panel is too long to read. Remove a row or shorten a name.",
    );
  }
}

/** The angle that a text gives in degrees: "30", "-45", " 22.5 ". */
function toAngle(text) {
  if (text.trim() === "" || !Number.isFinite(Number(text))) {
    throw new Problem(`"${text}" is no angle. Type a number into the panel: 30, -45 or 22.5.`);
  }
  return Number(text);
}

function selectedLayers() {
  const document = sketch.getSelectedDocument();
  if (!document) throw new Problem("Open a document first, and select the layers in it.");
  return document.selectedLayers.layers;
}

/** Of the two selected layers, the one to turn, and the point to turn it around. */
function layerAndCenter() {
  const layers = selectedLayers();
  const centers = layers.filter((layer) => layer.name.includes("[center]"));
  if (layers.length !== 2 || centers.length !== 1) {
    throw new Problem(
      `Selected: ${layers.length}, with [center] in the name: ${centers.length}. ` +
        "Select two layers, the one to rotate and one with [center] in its name.",
    );
  }
  // Sketch wraps a layer anew at each access: only layers that came together can be compared.
  const layer = layers.find((layer) => layer !== centers[0]);
  return { layer, center: centerFor(layer, centers[0]) };
}

/**
 * The middle of the layer `center`, in the coordinates in which `layer` has its frame.
 * Throw a Problem if `layer` cannot be moved.
 */
function centerFor(layer, center) {
  const { parent } = layer;
  if (optional(parent, "stackLayout") && !optional(layer, "ignoresStackLayout")) {
    throw new Problem(
      `"${parent.name}" is a Stack, which places its layers: take "${layer.name}" out of it.`,
    );
  }
  const { x, y } = middle(center.frame);
  return new sketch.Rectangle(x, y, 0, 0).changeBasis({ from: center.parent, to: parent });
}

/** Turn a layer clockwise around a point, and itself by as much. */
function rotateAround(layer, point, degrees) {
  const { x, y } = middle(layer.frame);
  const angle = ((degrees % 360) * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  layer.transform.rotation = (layer.transform.rotation + (degrees % 360) + 720) % 360;
  // Read only now: the frame of a line depends on its rotation.
  const { width, height } = layer.frame;
  layer.frame = new sketch.Rectangle(
    point.x + cos * (x - point.x) - sin * (y - point.y) - width / 2,
    point.y + sin * (x - point.x) + cos * (y - point.y) - height / 2,
    width,
    height,
  );
}

function middle({ x, y, width, height }) {
  return { x: x + width / 2, y: y + height / 2 };
}

/**
 * Make the groups around a moved layer fit again, the inner ones first. This changes the frames
 * in them, so it comes last. Frames, artboards and pages keep the size that they were given.
 */
function fitGroups({ parent }) {
  if (parent.type !== "Group") return;
  if (optional(parent, "isFrame") || optional(parent, "stackLayout")) return;
  parent.adjustToFit();
  fitGroups(parent);
}

/** A property that not every version of Sketch and not every kind of layer has. */
function optional(object, name) {
  try {
    return object[name];
  } catch (error) {
    return undefined;
  }
}

module.exports = {
  KEY, Problem, run, panelValues, toAngle, selectedLayers, layerAndCenter, centerFor, middle,
  rotateAround, fitGroups, optional,
};
