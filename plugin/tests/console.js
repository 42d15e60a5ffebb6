/*
 * Compares the console of the model with Sketch's own, which is on npm. It needs node.
 *
 *     npm install --prefix FOLDER @skpm/console@0.2.8 @skpm/util@0.1.28
 *     NODE_PATH=FOLDER/node_modules node plugin/tests/console.js
 *
 * A line for each difference, then how many values were compared; exit status 0 if none differs.
 */
const fs = require("fs");
const path = require("path");
const { format } = require("./model.js");

// What the two modules take for Cocoa's classes: nothing here is of one of them.
for (const name of ["NSArray", "NSString", "NSNumber", "NSDictionary", "MOStruct", "MOMethod"]) {
  globalThis[name] = function () {};
}
const util = require("@skpm/util");

/** What Sketch's console hands to log() for these values. */
function real(...values) {
  const printed = [];
  const console = {};
  load(require.resolve("@skpm/console"), {
    console,
    log: ({ stringValue }) => printed.push(stringValue),
    __command: null,
    require: (name) => (name === "util" ? util : load(nextTo(name))),
  });
  console.log(...values);
  return printed.join("\n");
}

function nextTo(name) {
  return path.join(path.dirname(require.resolve("@skpm/console")), `${name}.js`);
}

/** Run a module in which `util` is Sketch's, not node's. */
function load(file, globals = { require: () => util }) {
  const module = { exports: {} };
  const source = fs.readFileSync(file, "utf8");
  new Function("module", ...Object.keys(globals), source)(module, ...Object.values(globals));
  return module.exports;
}

// --- The table ------------------------------------------------------------------------------

const LETTERS = Array.from({ length: 0x180 }, (_, code) => String.fromCharCode(code)).join("");
const LONG = "x".repeat(70);
const circular = { a: 1 };
circular.self = circular;

class Layer {
  constructor() {
    this.name = "minutes";
  }
}

function withStack(error, stack, more) {
  return Object.assign(error, { stack }, more);
}

const TABLE = [
  ["OK Rotated."],
  ["ERROR Select two layers."],
  ["OK It's done."],
  ["'OK quoted'"],
  ['say "yes"'],
  ["a \\ b"],
  ["first\nsecond\r\nthird\ttab"],
  [""],
  [" "],
  [LETTERS],
  ["Uhr ▸ 日本 🕙\u2028\u2029\ud800"],
  [`it's ${LONG}${LONG}`],
  ["'".repeat(200)],
  ["\n".repeat(6000)],
  ["OK", "Rotated."],
  ["OK it's", "it's", 1, null, undefined, true],
  ["%s by %d°", "minutes", 30],
  ["%s %s", "one"],
  ["100 %", 5],
  ["%%"],
  ["%% %i %f %j %O", 1.5, "2", { a: [1] }, { b: 2 }],
  ["%d", "no number"],
  ["%s", { a: 1 }, { a: 1 }],
  [1],
  [-0],
  [0.1],
  [NaN],
  [-Infinity],
  [1e21],
  [true],
  [null],
  [undefined],
  [1, "a"],
  [null, "a"],
  [[]],
  [{}],
  [[1, "two", null, undefined, [3]]],
  [new Array(2)],
  [Array(31).fill(1)],
  [Array(101).fill(0)],
  [Array(120).fill("x")],
  [{ "a": 1, "b-c": "d'e", "$f": null, "_g": undefined, "1": 2 }],
  [{ a: { b: { c: { d: 1 } } } }],
  [[[[["deep"]]]]],
  [[LONG, [LONG], { a: LONG }]],
  [
    {
      rows: [
        { name: "5min", angle: "30" },
        { name: LONG, angle: "30" },
      ],
      time: "10:10:30",
    },
  ],
  [{ long: LONG, list: [LONG, LONG], object: { more: [LONG, { yes: LONG }] } }],
  [Object.create(null)],
  [Object.assign(Object.create(null), { a: 1 })],
  [new Layer()],
  [{ a: { b: { c: new Layer() } } }],
  ["layer", new Layer()],
  [circular],
  [function named() {}],
  [() => 1],
  [Layer],
  [Object.assign(function named() {}, { a: 1 })],
  ["function", isNaN],
  [/a+/g],
  [new Date(0)],
  [withStack(new Error("bad"), "run@/x/rotate.cocoascript:4:3\n/x/panel.js:12:5")],
  [withStack(new TypeError("no"), "")],
  [withStack(new Error("no"), "", { line: 1, column: 2, sourceURL: "/x" })],
  [withStack(new Error("no"), "", { more: LONG })],
  ["ERROR", withStack(new RangeError("far"), "/x/y.js:1:2")],
  [{ error: withStack(new Error("bad"), "run@/x/rotate.cocoascript:4:3") }],
];

let differences = 0;
for (const values of TABLE) {
  const [found, expected] = [format(...values), real(...values)];
  if (found === expected) continue;
  differences += 1;
  console.log(`${JSON.stringify(found)} is not ${JSON.stringify(expected)}`);
}

/** The names that it asks an object for, but for those that every object has. */
function askedFor(print) {
  const names = new Set();
  const get = (target, name) => {
    if (typeof name === "string" && !(name in target)) names.add(name);
    return target[name];
  };
  print(new Proxy({ a: 1 }, { get }));
  return [...names].sort().join(" ");
}

const [found, expected] = [askedFor(format), askedFor(real)];
if (found !== expected) {
  differences += 1;
  console.log(`asks for ${found}, not for ${expected}`);
}
console.log(`${TABLE.length} compared, ${differences} differ`);
process.exitCode = differences === 0 ? 0 : 1;
