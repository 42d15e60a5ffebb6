/*
 * The layers of a watch: finding the selected ones, and turning them. Each Problem is thrown
 * before anything is changed.
 */
const sketch = require("sketch");
const { Problem } = require("./panel");

const ROTATED_AND_CENTER = "the one to rotate, and one with [center] in its name";

/** The angle that a text gives in degrees: "30", "-45", " 22.5 ". */
function toAngle(text) {
  if (text.trim() === "" || !Number.isFinite(Number(text))) {
    throw new Problem(`"${text}" is not an angle. Type a number into the panel: 30, -45 or 22.5.`);
  }
  return Number(text);
}

/** The selected layers. Throw a Problem if there are not as many as `expected` tells. */
function selectedLayers(count, expected) {
  const document = sketch.getSelectedDocument();
  if (!document) throw new Problem("Open a document first, and select the layers in it.");
  const { layers } = document.selectedLayers;
  if (layers.length !== count) {
    const found =
      { 0: "Nothing is", 1: "Only one layer is" }[layers.length] || `${layers.length} layers are`;
    throw new Problem(`${found} selected. Select ${expected}.`);
  }
  return layers;
}

/** Of the two selected layers, the one to turn, and the point to turn it around. */
function layerAndCenter() {
  const layers = selectedLayers(2, `two layers: ${ROTATED_AND_CENTER}`);
  const centers = layers.filter((layer) => layer.name.includes("[center]"));
  if (centers.length !== 1) {
    const found = centers.length === 0 ? "Neither selected layer has" : "Both selected layers have";
    throw new Problem(`${found} [center] in the name. Select two: ${ROTATED_AND_CENTER}.`);
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
  if (isStack(parent) && !layer.ignoresStackLayout) {
    throw new Problem(
      `"${parent.name}" is a Stack, which places its layers itself. ` +
        `Take "${layer.name}" out of it, or let it ignore the layout.`,
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
  if (parent.isFrame || isStack(parent)) return;
  parent.adjustToFit();
  fitGroups(parent);
}

function isStack(group) {
  try {
    return Boolean(group.stackLayout);
  } catch (error) {
    // Sketch's own code stumbles over a group that has no layout at all.
    return false;
  }
}

module.exports = {
  toAngle, selectedLayers, layerAndCenter, centerFor, middle, rotateAround, fitGroups,
};
