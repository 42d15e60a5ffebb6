/*
 * The tests of the plugin's scripts, in a model of Sketch (model.js). Nothing is needed but an
 * engine: jsc, the shell of the one that Sketch uses, or node.
 *
 *     jsc plugin/tests/run.js        node plugin/tests/run.js
 *
 * A line for each test, `ok NAME` or `not ok NAME: why`, last `N passed, M failed`; exit status 0
 * if none failed. Instead of that it can
 *
 *     … -- run BUNDLE COMMAND SELECTION TITLE   print what Sketch prints when it runs a command of
 *                                               a bundle: selected is "nothing", a "pair" of
 *                                               layers or a "watch"; the panel's page has this
 *                                               title, or is not open if that is empty. After it,
 *                                               another bundle, with its panel's title
 *     … -- starting-information BUNDLE APP      print the command that the script puts on the
 *                                               clipboard for these two
 */
const isNode = typeof process === "object";
const here = isNode
  ? `${__dirname}/`
  : /@(.*\/)?[^/]*$/.exec(new Error().stack.split("\n")[0])[1] || "";
const read = isNode ? (path) => require("fs").readFileSync(path, "utf8") : readFile;
const say = isNode ? console.log : print;
const words = isNode
  ? process.argv.slice(2)
  : typeof arguments === "undefined"
    ? []
    : arguments.map((word) => decodeURIComponent(escape(word)));

const plugin = `${here}../pebble.sketchplugin`;
const scripts = `${plugin}/Contents/Sketch`;
const { Model, Layer } = loaded(`${here}model.js`);
let isOlder = false; // the Sketch that a test runs in

// In a panel that has just been opened.
const VALUES = {
  angle: "30",
  rows: [5, 10, 15, 20, 25, 30].map((minutes) => ({ name: `${minutes}min`, angle: "30" })),
  time: "10:10:30",
  amount: "1",
};

const tests = [];

// --- The bundle -----------------------------------------------------------------------------

const manifest = JSON.parse(read(`${scripts}/manifest.json`));

// Commands that somebody adds have other names; in the menu they follow these.
const WEBSOCKET = ["webservice-starting-information", "start-webservice"];
const DIALOGUE = ["open-panel", "rotate", "rotate-duplicate", "set-time", "undo"];

test("each command in the manifest has a script with a function that Sketch finds", () => {
  for (const { script, handler = "onRun" } of manifest.commands) {
    const sketch = newSketch();
    const path = `${sketch.bundle}/Contents/Sketch/${script}`;
    equal(typeof sketch.load(path, {}, handler).handler, "function", script);
  }
});

test("the plugin's own commands are each named as their script", () => {
  const own = manifest.commands.filter((one) => [...WEBSOCKET, ...DIALOGUE].includes(one.name));
  equal(
    own.map((own) => [own.identifier, own.name, own.script, own.handler]),
    [...WEBSOCKET, ...DIALOGUE].map((name) => [name, name, `${name}.cocoascript`, "onRun"]),
  );
});

test("the menu has every one of them, under websocket and pebble-dialogue", () => {
  const [websocket, dialogue, ...others] = manifest.menu.items;
  equal(
    { ...manifest.menu, items: [websocket, { ...dialogue, items: dialogue.items.slice(0, 5) }] },
    {
      isRoot: true,
      items: [
        { title: "websocket", items: WEBSOCKET },
        { title: "pebble-dialogue", items: DIALOGUE },
      ],
    },
  );
  equal(others, []);
});

// --- rotate ---------------------------------------------------------------------------------

test("rotate turns a layer clockwise around the center, and itself by as much", () => {
  const sketch = withPair({ angle: "90" });
  succeed(sketch, "rotate", "Rotated minutes by 90°.");
  place(sketch.layer, { x: 150, y: 100, degrees: 90 });
  equal(sketch.layer.frame.width, 10);
  equal(sketch.layer.frame.height, 40);
});

for (const angle of ["30", "-45", "0.5", "360", "-360", "390", "-725", "1e3", "123456789.25"]) {
  test(`rotate by ${angle}° is exact`, () => {
    const sketch = withPair({ angle }, { rotation: 350 });
    rotates(sketch, () => succeed(sketch, "rotate"), Number(angle));
  });
}

test("rotate takes the angle as a number is typed", () => {
  for (const [angle, said] of [
    [" 30 ", 30],
    ["+15", 15],
    ["22.50", 22.5],
    [".5", 0.5],
    ["-0", 0],
  ]) {
    const sketch = withPair({ angle });
    rotates(sketch, () => succeed(sketch, "rotate", `Rotated minutes by ${said}°.`), said);
  }
});

test("rotate takes the two layers in either order", () => {
  const sketch = withPair();
  sketch.selection.reverse();
  rotates(sketch, () => succeed(sketch, "rotate"), 30);
});

test("rotate leaves the center where it is", () => {
  const sketch = withPair();
  const before = String(sketch.center);
  succeed(sketch, "rotate");
  equal(String(sketch.center), before);
});

test("rotating by a and then by b is rotating by a + b", () => {
  const [twice, once] = [withPair({ angle: "200" }), withPair({ angle: "77.5" })];
  succeed(twice, "rotate");
  twice.title = JSON.stringify({ ...VALUES, angle: "-122.5" });
  succeed(twice, "rotate");
  succeed(once, "rotate");
  place(twice.layer, once.layer.onPage);
});

test("rotate turns a line, whose frame depends on its rotation", () => {
  const sketch = withPair(
    { angle: "30" },
    {},
    {
      ends: [
        { x: 100, y: 100 },
        { x: 100, y: 20 },
      ],
    },
  );
  succeed(sketch, "rotate");
  near(sketch.layer.ends[0], { x: 100, y: 100 });
  near(sketch.layer.ends[1], { x: 140, y: 100 - 80 * Math.cos(Math.PI / 6) });
});

test("rotate turns a layer around a center in another group, both groups being rotated", () => {
  const sketch = open();
  sketch.layer = rect("minutes", [20, 30, 10, 40], { rotation: 15 });
  sketch.center = rect("[center]", [5, 6, 20, 20], { rotation: 45 });
  const inner = group("inner", [30, 40, 90, 90], [sketch.layer], { rotation: 200 });
  sketch.add(group("outer", [300, 100, 200, 300], [inner], { rotation: 20 }));
  sketch.add(group("other", [70, 400, 60, 60], [sketch.center], { rotation: 300 }));
  sketch.selection = [sketch.layer, sketch.center];
  rotates(sketch, () => succeed(sketch, "rotate"), 30);
});

test("rotate is the same where Sketch tells 330° as -30°", () => {
  const sketch = withPair({ angle: "-45" }, { rotation: 330 });
  sketch.signedRotation = true;
  rotates(sketch, () => succeed(sketch, "rotate"), -45);
});

test("rotate makes the groups around the layer fit, and moves nothing else", () => {
  const sketch = open({ angle: "90" });
  sketch.layer = rect("minutes", [45, 0, 10, 40]);
  sketch.center = rect("[center]", [45, 95, 10, 10]);
  const inner = group("inner", [10, 10, 10, 105], [sketch.layer, sketch.center], { rotation: 30 });
  const neighbor = rect("neighbor", [0, 0, 5, 5]);
  const outer = sketch.add(group("outer", [100, 100, 50, 200], [inner, neighbor]));
  sketch.selection = [sketch.layer, sketch.center];
  const [center, beside] = [sketch.center.onPage, neighbor.onPage];
  rotates(sketch, () => succeed(sketch, "rotate"), 90);
  near({ width: inner.rect.width, height: inner.rect.height }, { width: 105, height: 10 });
  place(sketch.center, center);
  place(neighbor, beside);
  fits(outer);
});

for (const [what, type, more] of [
  ["a frame", "Group", { isFrame: true }],
  ["an artboard", "Artboard", {}],
]) {
  test(`rotate leaves ${what} around the layer as it is`, () => {
    const sketch = open();
    sketch.layer = rect("minutes", [45, 0, 10, 40]);
    sketch.center = rect("[center]", [45, 95, 10, 10]);
    const board = sketch.add(
      new Layer(type, "Watch", [100, 50, 144, 168], {
        children: [sketch.layer, sketch.center],
        ...more,
      }),
    );
    sketch.selection = [sketch.layer, sketch.center];
    rotates(sketch, () => succeed(sketch, "rotate"), 30);
    equal(board.rect, { x: 100, y: 50, width: 144, height: 168 });
  });
}

test("rotate turns a layer in a Stack that ignores its layout", () => {
  const sketch = open();
  sketch.layer = rect("minutes", [45, 0, 10, 40], { ignoresStack: true });
  sketch.center = sketch.add(rect("[center]", [45, 95, 10, 10]));
  const stack = sketch.add(group("Row", [0, 0, 100, 100], [sketch.layer], { isStack: true }));
  sketch.selection = [sketch.layer, sketch.center];
  rotates(sketch, () => succeed(sketch, "rotate"), 30);
  equal(stack.rect, { x: 0, y: 0, width: 100, height: 100 });
});

test("a name with a line break still makes one line", () => {
  const sketch = withPair();
  sketch.layer.name = "minute\n  hand";
  succeed(sketch, "rotate", "Rotated minute hand by 30°.");
});

// --- rotate-duplicate -----------------------------------------------------------------------

test("rotate-duplicate makes the six copies of the default rows, and leaves the original", () => {
  const sketch = withPair();
  const before = String(sketch.layer);
  succeed(
    sketch,
    "rotate-duplicate",
    "Duplicated minutes: 5min, 10min, 15min, 20min, 25min, 30min.",
  );
  equal(String(sketch.layer), before);
  const [original, ...copies] = sketch.page.children.slice(0, 7);
  equal(original.id, sketch.layer.id);
  equal(
    copies.map(({ name }) => name),
    VALUES.rows.map(({ name }) => name),
  );
  copies.forEach((copy, index) => {
    const degrees = 30 * (index + 1);
    const angle = (degrees * Math.PI) / 180;
    place(copy, { x: 100 + 50 * Math.sin(angle), y: 100 - 50 * Math.cos(angle), degrees });
  });
  equal(sketch.page.children.length, 8);
});

test("rotate-duplicate adds up the angles of the rows", () => {
  const rows = [
    { name: " a ", angle: " 10 " },
    { name: "b", angle: "-30.5" },
    { name: "c", angle: "720" },
  ];
  const sketch = withPair({ rows }, { rotation: 5 });
  succeed(sketch, "rotate-duplicate", "Duplicated minutes: a, b, c.");
  equal(
    sketch.page.children.map(({ name }) => name),
    ["minutes", "a", "b", "c", "the [center]"],
  );
  near(
    sketch.page.children.slice(1, 4).map(({ onPage }) => onPage.degrees),
    [15, 344.5, 344.5],
  );
});

test("rotate-duplicate leaves out a row with an empty field", () => {
  const rows = [
    { name: "", angle: "x" },
    { name: "b", angle: " " },
    { name: "c", angle: "9" },
    { name: " ", angle: "" },
  ];
  const sketch = withPair({ rows });
  succeed(sketch, "rotate-duplicate", "Duplicated minutes: c.");
  equal(
    sketch.page.children.map(({ name }) => name),
    ["minutes", "c", "the [center]"],
  );
});

test("rotate-duplicate makes the group fit after the last copy", () => {
  const sketch = open({
    rows: [-30, -30, -30].map((angle, index) => ({ name: `${index}`, angle: `${angle}` })),
  });
  sketch.layer = rect("minutes", [0, 0, 10, 40]);
  sketch.center = rect("[center]", [0, 65, 10, 10]);
  const hours = sketch.add(
    group("hours", [200, 200, 10, 75], [sketch.layer, sketch.center], { rotation: 10 }),
  );
  sketch.selection = [sketch.layer, sketch.center];
  const { x, y, degrees } = sketch.center.onPage;
  succeed(sketch, "rotate-duplicate");
  hours.children.slice(1, 4).forEach((copy, index) => {
    const angle = ((10 - 30 * (index + 1)) * Math.PI) / 180;
    place(copy, {
      x: x + 50 * Math.sin(angle),
      y: y - 50 * Math.cos(angle),
      degrees: 340 - 30 * index,
    });
  });
  place(sketch.center, { x, y, degrees });
  fits(hours);
});

test("rotate-duplicate refuses an angle that is no number, and duplicates nothing", () => {
  const rows = [
    { name: "a", angle: "30" },
    { name: "b", angle: "3o" },
  ];
  fail(withPair({ rows }), "rotate-duplicate", /^"3o" is not an angle\. Type a number/);
});

test("rotate-duplicate asks for a row where none is complete", () => {
  for (const rows of [
    [],
    [
      { name: "a", angle: "" },
      { name: "", angle: "30" },
    ],
  ]) {
    fail(withPair({ rows }), "rotate-duplicate", /^No row has both a name and an angle\. Fill in/);
  }
});

// --- rotate and rotate-duplicate ------------------------------------------------------------

for (const command of ["rotate", "rotate-duplicate"]) {
  for (const angle of ["", " ", "abc", "30°", "30,5", "1e999", "NaN", "-Infinity", "1 2", "--3"]) {
    if (command === "rotate-duplicate" && !angle.trim()) continue;
    test(`${command} refuses the angle "${angle}"`, () => {
      const sketch = withPair({ angle, rows: [{ name: "a", angle }] });
      fail(
        sketch,
        command,
        `"${angle}" is not an angle. Type a number into the panel: 30, -45 or 22.5.`,
      );
    });
  }

  const pair = "two: the one to rotate, and one with [center] in its name.";
  const twoLayers = pair.replace("two:", "two layers:");
  for (const [names, text] of [
    [[], `Nothing is selected. Select ${twoLayers}`],
    [["a"], `Only one layer is selected. Select ${twoLayers}`],
    [["[center]"], `Only one layer is selected. Select ${twoLayers}`],
    [["a", "b", "[center]"], `3 layers are selected. Select ${twoLayers}`],
    [["a", "b"], `Neither selected layer has [center] in the name. Select ${pair}`],
    [["[center]", "my [center]"], `Both selected layers have [center] in the name. Select ${pair}`],
  ]) {
    test(`${command} with [${names}] selected says what to select`, () => {
      const sketch = open();
      sketch.selection = names.map((name) => sketch.add(rect(name, [0, 0, 10, 10])));
      fail(sketch, command, text);
    });
  }

  test(`${command} refuses a layer that a Stack places`, () => {
    const sketch = open();
    const layer = rect("minutes", [0, 0, 10, 10]);
    sketch.add(group("Row", [0, 0, 100, 10], [layer], { isStack: true }));
    sketch.selection = [layer, sketch.add(rect("[center]", [50, 50, 10, 10]))];
    fail(
      sketch,
      command,
      '"Row" is a Stack, which places its layers itself. ' +
        'Take "minutes" out of it, or let it ignore the layout.',
    );
  });
}

// --- set-time -------------------------------------------------------------------------------

for (const [time, digits, hour, minute, second] of [
  ["00:00:00", "00:00:00", 0, 0, 0],
  ["10:10:30", "10:10:30", 305, 60, 180],
  ["23:59:59", "23:59:59", 359.5, 354, 354],
  ["12:00", "12:00:00", 0, 0, 0],
  ["10", "10:00:00", 300, 0, 0],
  ["10:10", "10:10:00", 305, 60, 0],
  [" 9:5:7 ", "09:05:07", 272.5, 30, 42],
]) {
  test(`set-time sets the hands to ${time}`, () => {
    const sketch = withWatch({ time });
    succeed(sketch, "set-time", `Set the time to ${digits}.`);
    showsTime(sketch, { hour, minute, second });
    equal(sketch.time.text, digits);
  });
}

for (const time of [
  "24:00",
  "12:60",
  "10:10:60",
  "",
  " ",
  "noon",
  "10:",
  "10:10:",
  ":10",
  "1:2:3:4",
  "-1",
  "10.5",
  "100",
  "1:000",
  "10:10:30 pm",
  "١٠",
]) {
  test(`set-time refuses "${time}"`, () => {
    fail(
      withWatch({ time }),
      "set-time",
      `"${time}" is not a time of day. Type 10, 10:10 or 10:10:30 into the panel.`,
    );
  });
}

test("set-time sets the time again, from wherever the hands are", () => {
  const sketch = withWatch();
  for (const time of ["3:45:10", "23:59:59", "00:00", "10:10:30"]) {
    sketch.title = JSON.stringify({ ...VALUES, time });
    succeed(sketch, "set-time");
  }
  showsTime(sketch, { hour: 305, minute: 60, second: 180 });
});

test("set-time is the same where Sketch tells 330° as -30°", () => {
  const sketch = withWatch();
  sketch.signedRotation = true;
  for (const run of [1, 2]) succeed(sketch, "set-time");
  showsTime(sketch, { hour: 305, minute: 60, second: 180 });
});

test("set-time leaves the center where it is on the page, though the group changes its size", () => {
  const sketch = withWatch();
  const before = sketch.center.onPage;
  succeed(sketch, "set-time");
  place(sketch.center, before);
  fits(sketch.hands);
});

test("set-time finds [hands] deep inside the selected layer, or in it", () => {
  for (const chosen of ["hands", "face", "watch"]) {
    const sketch = withWatch();
    sketch.selection = [sketch[chosen]];
    succeed(sketch, "set-time");
    showsTime(sketch, { hour: 305, minute: 60, second: 180 });
  }
});

test("set-time takes a frame for the group, and leaves its size", () => {
  const sketch = withWatch();
  sketch.hands.isFrame = true;
  const before = { ...sketch.hands.rect };
  succeed(sketch, "set-time");
  showsTime(sketch, { hour: 305, minute: 60, second: 180 });
  equal(sketch.hands.rect, before);
});

test("set-time takes lines for hands, whichever of its ends is in the center", () => {
  for (const reversed of [false, true]) {
    const sketch = withWatch();
    const ends = [
      { x: 50, y: 50 },
      { x: 50, y: 30 },
    ];
    const line = new Layer("ShapePath", "line [hourhand]", undefined, {
      ends: reversed ? ends.reverse() : ends,
      parent: sketch.hands,
    });
    sketch.hands.children.push(line);
    remove(sketch.hour);
    for (const time of ["9:30", "3"]) {
      sketch.title = JSON.stringify({ ...VALUES, time });
      succeed(sketch, "set-time");
    }
    const [from, to] = reversed ? [...line.ends].reverse() : line.ends;
    const { x, y } = sketch.center.rect;
    near([from.x - x, from.y - y, to.x - from.x, to.y - from.y], [5, 5, 20, 0]);
  }
});

test("set-time turns every layer that is named a hand", () => {
  const sketch = withWatch();
  const shadow = rect("[minutehand] shadow", [47, 10, 6, 45], { parent: sketch.hands });
  sketch.hands.children.push(shadow);
  succeed(sketch, "set-time");
  near([sketch.minute.degrees, shadow.degrees], [60, 60]);
});

for (const absent of ["hour", "minute", "second", "time"]) {
  test(`set-time does without [${absent === "time" ? "time" : `${absent}hand`}]`, () => {
    const sketch = withWatch();
    remove(sketch[absent]);
    succeed(sketch, "set-time");
    const angles = { hour: 305, minute: 60, second: 180 };
    delete angles[absent];
    showsTime(sketch, angles);
  });
}

test("set-time needs no center where there is only the text", () => {
  const sketch = withWatch();
  for (const layer of [sketch.hour, sketch.minute, sketch.second, sketch.center]) remove(layer);
  succeed(sketch, "set-time");
  equal(sketch.time.text, "10:10:30");
});

test("set-time keeps the name of a text layer that was never named by hand", () => {
  const sketch = withWatch();
  Object.assign(sketch.time, { text: "[time]", namedByHand: false });
  for (const run of [1, 2]) succeed(sketch, "set-time");
  equal([sketch.time.text, sketch.time.name], ["10:10:30", "[time]"]);
});

test("set-time writes into text layers only", () => {
  const sketch = withWatch();
  sketch.hands.children.push(rect("[time] background", [0, 0, 9, 9], { parent: sketch.hands }));
  succeed(sketch, "set-time");
});

test("set-time needs a hand or a text in the group", () => {
  const sketch = withWatch();
  for (const layer of [sketch.hour, sketch.minute, sketch.second, sketch.time]) remove(layer);
  fail(sketch, "set-time", /^"\[hands\]" has no \[hourhand\], .* Give its layers these names\.$/);
});

test("set-time needs exactly one center for hands", () => {
  for (const [name, minute, found] of [
    ["middle", "[minutehand]", 'No layer in "[hands]" has [center] in its name.'],
    ["[center]", "[minutehand] [center]", '2 layers in "[hands]" have [center] in their names.'],
  ]) {
    const sketch = withWatch();
    sketch.center.name = name;
    sketch.minute.name = minute;
    fail(sketch, "set-time", `${found} Give exactly one this name: the hands turn around it.`);
  }
});

test("set-time asks for a group named [hands], and for one only", () => {
  const none = withWatch();
  none.hands.name = "hands";
  const group1 = "Group the hands of the watch, and name that group [hands].";
  fail(none, "set-time", `No group in "watch" has [hands] in its name. ${group1}`);

  const two = withWatch();
  two.face.children.push(group("[hands] too", [0, 0, 9, 9], [], { parent: two.face }));
  const select = "Select one of them.";
  fail(two, "set-time", `2 groups in "watch" have [hands] in their names. ${select}`);

  const shape = withWatch();
  shape.selection = [shape.add(rect("[hands]", [0, 0, 9, 9]))];
  fail(shape, "set-time", `No group in "[hands]" has [hands] in its name. ${group1}`);
});

test("set-time asks for one selected layer", () => {
  for (const [count, found] of [
    [0, "Nothing is selected."],
    [2, "2 layers are selected."],
    [3, "3 layers are selected."],
  ]) {
    const sketch = withWatch();
    sketch.selection = [sketch.watch, sketch.face, sketch.hands].slice(0, count);
    fail(sketch, "set-time", `${found} Select one layer: the group [hands], or one around it.`);
  }
});

test("set-time refuses hands that a Stack places", () => {
  const sketch = withWatch();
  sketch.hands.isStack = true;
  fail(sketch, "set-time", /^"\[hands\]" is a Stack, .* Take "\[hourhand\]" out of it, or let it/);
});

// --- The three that read the panel ----------------------------------------------------------

for (const command of ["rotate", "rotate-duplicate", "set-time"]) {
  const ready = command === "set-time" ? withWatch : withPair;
  const panelFirst = "Open the panel first: choose open-panel of Pebble WS in the Plugins menu.";

  test(`${command} with no document open says so, though no toast can`, () => {
    const sketch = ready();
    sketch.hasDocument = false;
    fail(sketch, command, "Open a document first, and select the layers in it.");
  });

  test(`${command} with no panel open says how to open it`, () => {
    const sketch = ready();
    sketch.dictionary = sketch.mutableDictionary();
    fail(sketch, command, panelFirst);
  });

  test(`${command} does not read a panel that was closed`, () => {
    const sketch = ready();
    sketch.closePanel();
    fail(sketch, command, panelFirst);
  });

  test(`${command} says that a page holds more than a title can`, () => {
    const sketch = ready({ rows: Array(40).fill({ name: "a minute", angle: "30" }) });
    fail(
      sketch,
      command,
      "The panel holds more than the 1,000 characters that Sketch can read. " +
        "Shorten a text or remove a row.",
    );
  });

  test(`${command} reads a title of 1,000 characters, and not one of 1,001`, () => {
    const length = JSON.stringify({ ...VALUES, amount: "" }).length;
    succeed(ready({ amount: "x".repeat(1000 - length) }), command);
    fail(ready({ amount: "x".repeat(1001 - length) }), command, /^The panel holds more than the/);
  });

  test(`${command} waits for no page that is still loading`, () => {
    const sketch = ready();
    sketch.title = "";
    fail(
      sketch,
      command,
      /^pebble-dialogue\.html is still loading, or loads no back-channel\.js\./,
    );
  });

  test(`${command} says that a page has no back-channel.js`, () => {
    for (const title of ["Pebble", "2026", "null", '"text"', "[]", "true", "x".repeat(2000)]) {
      const sketch = ready();
      sketch.title = title;
      fail(
        sketch,
        command,
        "pebble-dialogue.html loads no back-channel.js, so a script cannot read its fields. Add " +
          '<script src="back-channel.js" defer></script> to its head, and restart Sketch.',
      );
    }
  });

  test(`${command} names the field that the page does not have`, () => {
    const [name, values] = {
      "rotate": ["angle", { rows: [], time: "" }],
      "rotate-duplicate": ["angle", { rows: [{ name: "a", angel: "30" }] }],
      "set-time": ["time", { "angle": "", "the time": "" }],
    }[command];
    const sketch = ready();
    sketch.title = JSON.stringify(values);
    const has = {
      "rotate": '"rows", "time"',
      "rotate-duplicate": '"name", "angel"',
      "set-time": '"angle", "the time"',
    }[command];
    fail(
      sketch,
      command,
      `${command}.cocoascript asks for "${name}", but pebble-dialogue.html has no field of that ` +
        `name (it has ${has}). Change the name in one of the two files, and restart Sketch.`,
    );
  });
}

// --- undo -----------------------------------------------------------------------------------

for (const spelling of ["actionForID", "actionWithID", "actionWithName"]) {
  test(`undo finds Sketch's undo by ${spelling}`, () => {
    const sketch = newSketch();
    Object.assign(sketch, { undoSpellings: [spelling], undoFound: spelling });
    succeed(sketch, "undo", "Undid the last step.");
    equal(sketch.undone, [spelling]);
  });

  test(`undo asks the application where ${spelling} finds nothing`, () => {
    const sketch = newSketch();
    Object.assign(sketch, { undoSpellings: [spelling], undoFound: null });
    succeed(sketch, "undo", "Undid the last step.");
    equal(sketch.undone, ["undo:"]);
  });
}

test("undo tries them all", () => {
  const sketch = newSketch();
  const spellings = ["actionForID", "actionWithID", "actionWithName"];
  Object.assign(sketch, { undoSpellings: spellings, undoFound: "actionWithName" });
  succeed(sketch, "undo", "Undid the last step.");
  equal(sketch.undone, ["actionWithName"]);
});

test("undo does without a Sketch that can say whether there is something to undo", () => {
  const sketch = newSketch();
  sketch.undoValidates = false;
  succeed(sketch, "undo", "Undid the last step.");
  equal(sketch.undone, ["actionForID"]);
});

test("undo says that there is nothing to undo, and undoes nothing", () => {
  const sketch = newSketch();
  sketch.canUndo = false;
  fail(sketch, "undo", "There is nothing to undo.");
  equal(sketch.undone, []);
});

test("undo asks the application where Sketch has none of its names", () => {
  const sketch = newSketch();
  sketch.undoSpellings = [];
  succeed(sketch, "undo", "Undid the last step.");
  equal(sketch.undone, ["undo:"]);
});

test("undo says so where nothing can undo", () => {
  const sketch = newSketch();
  Object.assign(sketch, { undoSpellings: [], responds: false });
  fail(sketch, "undo", "This version of Sketch lets no script undo. Press ⌘Z in Sketch.");
  equal(sketch.undone, []);
});

test("undo with no document open says so", () => {
  const sketch = newSketch();
  sketch.hasDocument = false;
  fail(sketch, "undo", "Open a document first: there is nothing to undo.");
  equal(sketch.undone, []);
});

// --- open-panel -----------------------------------------------------------------------------

test("open-panel opens one panel, however often", () => {
  const sketch = open();
  for (const run of [1, 2, 3]) succeed(sketch, "open-panel", "The panel is open.");
  equal(sketch.panels.length, 1);
});

test("open-panel brings back a panel that was closed", () => {
  const sketch = withPair();
  sketch.closePanel();
  succeed(sketch, "open-panel");
  equal([sketch.panels.length, sketch.panels[0].visible], [1, true]);
  succeed(sketch, "rotate");
});

test("open-panel works with no document open", () => {
  const sketch = newSketch();
  sketch.hasDocument = false;
  succeed(sketch, "open-panel");
});

test("the panel stays visible and in front when Terminal is in front", () => {
  const [panel] = open().panels;
  equal([panel.visible, panel.floats, panel.hidesOnDeactivate], [true, true, false]);
});

test("the panel is 290 points wide, with a title bar, a close button and a resize corner", () => {
  const [panel] = open().panels;
  equal(
    [panel.rect.width, panel.styleMask, panel.title, panel.centered],
    [290, 1 | 2 | 8, "Pebble WS", true],
  );
});

test("the panel shows the page, which fills it and may read its own folder and no other", () => {
  const sketch = open();
  const [{ page, rect }] = sketch.panels;
  const folder = `${sketch.bundle}/Contents/Resources`;
  equal([page.file, page.folder], [`${folder}/pebble-dialogue.html`, folder]);
  equal([page.autoresizingMask, page.frame], [2 | 16, rect]);
});

test("open-panel without the page says so, and keeps no half panel", () => {
  const sketch = newSketch();
  sketch.gone.add(`${sketch.bundle}/Contents/Resources/pebble-dialogue.html`);
  fail(
    sketch,
    "open-panel",
    "pebble-dialogue.html is missing from Contents/Resources. " +
      "Put it there, or change PAGE in open-panel.cocoascript.",
  );
  sketch.gone.clear();
  succeed(sketch, "open-panel");
  equal(sketch.panels.length, 1);
});

// --- start-webservice -----------------------------------------------------------------------

const instead = "Choose webservice-starting-information in the same menu instead.";

test("start-webservice opens start.command", () => {
  const sketch = newSketch();
  succeed(sketch, "start-webservice", "Terminal starts the server: its window says how that went.");
  equal(sketch.opened, [`${sketch.bundle}/Contents/Sketch/start.command`]);
});

test("start-webservice works with no document open, and in any folder", () => {
  const sketch = newSketch();
  Object.assign(sketch, { hasDocument: false, bundle: "/Users/Ann's 50% ü/x.sketchplugin" });
  succeed(sketch, "start-webservice");
  equal(sketch.opened, [`${sketch.bundle}/Contents/Sketch/start.command`]);
});

test("start-webservice names the other way where macOS does not open it", () => {
  for (const opens of ["no", "an exception"]) {
    const sketch = newSketch();
    sketch.opens = () => {
      if (opens === "an exception") throw sketch.exception("No application knows how to open it.");
      return false;
    };
    fail(sketch, "start-webservice", `macOS did not open start.command in Terminal. ${instead}`);
  }
});

test("start-webservice names the other way where start.command is none", () => {
  for (const change of [
    (sketch) => sketch.gone.add(`${sketch.bundle}/Contents/Sketch/start.command`),
    (sketch) => (sketch.isExecutable = () => false),
  ]) {
    const sketch = newSketch();
    change(sketch);
    fail(
      sketch,
      "start-webservice",
      `start.command is not in Contents/Sketch, or not executable. ${instead}`,
    );
    equal(sketch.opened, []);
  }
});

// --- webservice-starting-information --------------------------------------------------------

test("the starting information names the server beside the scripts", () => {
  const sketch = installed();
  sketch.files.set("/Users/ann/pebble_ws.py", "");
  starts(
    sketch,
    "python3 '/Users/ann/Plugins/pebble.sketchplugin/Contents/Sketch/pebble_ws.py' --sketch '/Applications/Sketch.app'",
  );
});

test("the starting information names the server of a checkout", () => {
  const sketch = newSketch();
  sketch.bundle = "/Users/ann/pebble/plugin/pebble.sketchplugin";
  sketch.files.set("/Users/ann/pebble/pebble_ws.py", "");
  starts(sketch, "python3 '/Users/ann/pebble/pebble_ws.py' --sketch '/Applications/Sketch.app'");
});

test("the starting information prefers the server beside the scripts", () => {
  const sketch = installed("/Users/ann/pebble/plugin/pebble.sketchplugin");
  sketch.files.set("/Users/ann/pebble/pebble_ws.py", "");
  starts(
    sketch,
    `python3 '${sketch.bundle}/Contents/Sketch/pebble_ws.py' --sketch '/Applications/Sketch.app'`,
  );
});

test("the starting information names no server that serves another plugin", () => {
  const sketch = newSketch();
  sketch.bundle = "/Users/ann/pebble/plugin/spacing.sketchplugin";
  sketch.files.set("/Users/ann/pebble/pebble_ws.py", "");
  fail(sketch, "webservice-starting-information", /^pebble_ws\.py, the server, is missing\. Copy/);
});

for (const name of [
  "Ann's files",
  "a b  c",
  '$HOME `id` "x" \\n !!',
  "Übung ▸ 日本",
  "two\nlines",
  "-rf",
  "'",
  "a'b''c",
]) {
  test(`the starting information quotes ${JSON.stringify(name)} for the shell`, () => {
    const sketch = installed(`/Users/${name}/pebble.sketchplugin`);
    sketch.app = `/Applications/${name}/Sketch Beta.app`;
    starts(sketch);
    const quoted = (path) => `'${path.split("'").join("'\\''")}'`;
    equal(
      sketch.clipboard,
      `python3 ${quoted(`${sketch.bundle}/Contents/Sketch/pebble_ws.py`)} --sketch ${quoted(sketch.app)}`,
    );
  });
}

test("the starting information works with no document open", () => {
  const sketch = installed();
  sketch.hasDocument = false;
  starts(sketch);
});

test("the starting information without a server says what to copy where, and copies no command", () => {
  const sketch = newSketch();
  fail(
    sketch,
    "webservice-starting-information",
    "pebble_ws.py, the server, is missing. Copy it into " +
      "/Users/ann/Plugins/pebble.sketchplugin/Contents/Sketch, and choose this menu item again.",
  );
  equal(sketch.clipboard, "what was copied before");
});

test("the starting information shows a command that cannot be copied", () => {
  const sketch = installed();
  sketch.pasteboard = () =>
    sketch.native("NSPasteboard", {
      clearContents: () => 1,
      setString_forType: (text, type) => sketch.bool(false),
    });
  fail(
    sketch,
    "webservice-starting-information",
    /^Copy this command, paste it into Terminal, press Return: python3 '.*\.app'$/,
  );
});

test("the starting information names the plugin", () => {
  const sketch = installed();
  sketch.run("webservice-starting-information");
  equal(sketch.alerts[0].title, "Start the server of Pebble WS");
});

test("the starting information copies no command for what is not an app", () => {
  const sketch = installed();
  sketch.app = "/usr/local/bin";
  fail(
    sketch,
    "webservice-starting-information",
    /at \/usr\/local\/bin, which is not an app\. Start/,
  );
  equal(sketch.clipboard, "what was copied before");
});

// --- A plugin of one's own, and how a script goes -------------------------------------------

for (const [why, body, line] of [
  ["returns what was done", 'return "Spaced.";', "OK Spaced."],
  ["returns a text of Cocoa's", "return context.plugin.name();", "OK Spacing"],
  ["reads a field", "return values.gap;", "OK 8"],
  ["reads a row", "return values.list[1].text;", "OK b"],
  ["reads a box that is not ticked", "return String(values.box);", "OK false"],
  ["has a field of this name", "return values.then;", "OK fine"],
  ["copies the values", "return JSON.stringify({ ...values });", /^OK \{"gap":"8","list":\[\{"te/],
  [
    "gives the values to JSON",
    "return JSON.stringify(values.list);",
    'OK [{"text":"a"},{"text":"b"}]',
  ],
  ["asks what there is", 'return String("gap" in values && !("x" in values));', "OK true"],
  ["makes a text of the values", "return `${values} ${values.list[0]}`;", /^OK \[object Object\] /],
  ["throws a Problem", 'throw new Problem("Type a gap.");', "ERROR Type a gap."],
  [
    "says more than one line",
    'return "a\\n\\tb\\r\\nc\\u2028d\\u0085e\\u0000f";',
    "OK a b c d e f",
  ],
  ["fails in more than one line", 'throw new Problem("a\\nERROR b");', "ERROR a ERROR b"],
  [
    "asks for a field that is not there",
    "return values.gpa;",
    'ERROR spacing.cocoascript asks for "gpa", but page.html has no field of that name ' +
      '(it has "gap", "list", "box", "then"). Change the name in one of the two files, and restart Sketch.',
  ],
  [
    "asks for a field of a row that is not there",
    "return values.list.map(({ txt }) => txt).join();",
    'ERROR spacing.cocoascript asks for "txt", but page.html has no field of that name ' +
      '(it has "text"). Change the name in one of the two files, and restart Sketch.',
  ],
  [
    "gives a field that is not there a default",
    'const { x = "1" } = values;',
    /^ERROR .* asks for "x"/,
  ],
  [
    "returns nothing",
    "values.gap;",
    "ERROR spacing.cocoascript has run, but returned no text (undefined). " +
      "Let it return what was done, and leave out async.",
  ],
  ["returns no text", "return false;", /^ERROR .* returned no text \(boolean\)\./],
  [
    "returns a promise",
    'return Promise.resolve("done");',
    /^ERROR .* returned no text \(object\)\./,
  ],
  ["has a mistake in it", "undefined.x;", failure("spacing.cocoascript, line 7", "TypeError: .*")],
  [
    "has a name that is not there",
    "gap;",
    failure("spacing.cocoascript, line 7", "ReferenceError: Can't find variable: gap"),
  ],
  [
    "throws a text",
    'throw "no.";',
    "ERROR Failed unexpectedly: no. Look at your layers, and undo if they changed.",
  ],
  ["throws nothing", "throw undefined;", /^ERROR Failed unexpectedly: undefined\. Look/],
  ["throws null", "throw null;", /^ERROR Failed unexpectedly: null\. Look/],
  [
    "throws from deep inside Sketch, as JavaScriptCore tells it",
    'throw Object.assign(new Error("bad"), { stack: `deep@/S.app/Contents/Resources/x.js:9:9\n' +
      "work@/Users/ann/my.sketchplugin/Contents/Sketch/layers.js:12:34\n" +
      "run@/Users/ann/my.sketchplugin/Contents/Sketch/panel.js:1:2\n[native code]` });",
    /^ERROR Failed unexpectedly in layers\.js, line 12: Error: bad\. Look/,
  ],
]) {
  test(`a script of one's own that ${why}`, () => {
    const sketch = withOwn(script(body));
    const isMissing = why.startsWith("has a name");
    sketch.run("space", OWN);
    equal(sketch.missing.length, isMissing ? 1 : 0, sketch.missing);
    equal(sketch.lines.length, 1, sketch.lines.join("\n"));
    if (typeof line === "string") equal(sketch.lines[0], line);
    else if (!line.test(sketch.lines[0])) throw new Error(`${sketch.lines[0]} is not ${line}`);
    equal(sketch.toasts.length, 1);
  });
}

test("a native exception tells its reason, and the file and line that it came through", () => {
  const sketch = withPair();
  Object.defineProperty(sketch, "selection", {
    get: () => {
      throw sketch.exception("-[MSLayer x]: unrecognized selector\nsent to 0x6000");
    },
  });
  fail(
    sketch,
    "rotate",
    failure("layers.js, line \\d+", "-\\[MSLayer x\\]: unrecognized selector sent to 0x6000", ""),
  );
});

test("a toast that cannot be shown takes nothing from the last line", () => {
  const sketch = withOwn(script('return "Spaced.";'));
  sketch.toasts.push = () => {
    throw sketch.exception("no window");
  };
  sketch.run("space", OWN);
  equal(sketch.lines, ["Sketch did not show the next line: no window", "OK Spaced."]);
});

test("what a script prints itself comes before the last line, and the console has its quotes", () => {
  const sketch = withOwn(
    script(
      'log(`gap ${values.gap}`); console.log("it\'s", 1); console.log("it\'s"); return "Spaced.";',
    ),
  );
  sketch.run("space", OWN);
  equal(sketch.lines, ["gap 8", "it's 1", "'it\\'s'", "OK Spaced."]);
});

test("the console shows the values in the panel", () => {
  const sketch = withOwn(script('console.log(values); return "Spaced.";'));
  sketch.run("space", OWN);
  equal(
    sketch.lines.join("\n").replace(/\s+/g, " "),
    "{ gap: '8', list: [ { text: 'a' }, { text: 'b' } ], box: false, then: 'fine' } OK Spaced.",
  );
});

test("a script that takes no values needs no open panel", () => {
  const sketch = withOwn(script('return "Done.";', "()"));
  sketch.closePanel();
  sketch.run("space", OWN);
  equal(sketch.lines, ["OK Done."]);
});

test("a script that takes values changes nothing while the panel is not open", () => {
  const sketch = withOwn(script('log("changed"); return values.gap;'));
  sketch.closePanel();
  sketch.run("space", OWN);
  equal(sketch.lines, [
    "ERROR Open the panel first: choose open-panel of Spacing in the Plugins menu.",
  ]);
});

test("a plugin without an identifier is told to have one", () => {
  const sketch = newSketch();
  own(sketch, script('return "Done.";'), null);
  sketch.run("open-panel", OWN);
  equal(sketch.lines, [
    'ERROR manifest.json gives the plugin no "identifier". ' +
      "Add one that no other plugin has, and restart Sketch.",
  ]);
  equal(sketch.panels, []);
});

test("two plugins open at the same time see nothing of each other", () => {
  const sketch = withPair({ angle: "90" });
  own(sketch, script("return `${Object.keys(values)} ${values.gap}`;"));
  sketch.run("open-panel", OWN);
  sketch.title = JSON.stringify({ gap: "12" });
  equal(
    sketch.panels.map(({ title, page }) => [title, page.file]),
    [
      ["Pebble WS", `${sketch.bundle}/Contents/Resources/pebble-dialogue.html`],
      ["Spacing", `${OWN}/Contents/Resources/page.html`],
    ],
  );

  succeed(sketch, "rotate", "Rotated minutes by 90°.");
  sketch.lines = [];
  sketch.run("space", OWN);
  equal(sketch.lines, ["OK gap 12"]);

  // Closing, and opening again, is each one's own affair too.
  sketch.panels[0].visible = false;
  fail(sketch, "rotate", /^Open the panel first: .* of Pebble WS in .*\.$/);
  sketch.lines = [];
  sketch.run("space", OWN);
  equal(sketch.lines, ["OK gap 12"]);
  succeed(sketch, "open-panel");
  succeed(sketch, "rotate");
  equal(sketch.panels.length, 2);
});

// --- What Sketch itself prints --------------------------------------------------------------

for (const [why, text, pattern] of [
  ["throws", "function onRun(context) {\n  null.x;\n}", report("TypeError", 2)],
  ["throws as it is loaded", "\nnull.x;\nfunction onRun(context) {}", report("TypeError", 2)],
  ["is not JavaScript", "function onRun(context) {", /^SyntaxError: /],
  ["requires what is not there", 'require("./panle");', /^Error: Cannot find module .*panle/],
  [
    "has no handler",
    "function onrun(context) {}",
    /^Error in command space Script at path .*spacing\.cocoascript does not contain a handler function named: onRun\.$/,
  ],
  [
    "has a handler that Sketch does not find",
    "const onRun = (context) => {};",
    /^Error in command/,
  ],
]) {
  test(`Sketch reports a script that ${why}`, () => {
    const sketch = withOwn(text);
    sketch.run("space", OWN);
    const printed = sketch.lines.join("\n");
    if (!pattern.test(printed)) throw new Error(`${printed} is not ${pattern}`);
  });
}

test("Sketch takes a last comma in a manifest, and runs the handler that is named there", () => {
  for (const [how, line] of [
    ['"handler": "go",', "gone"],
    ['"handlers": { "run": "go", "actions": { "Startup": "onRun" }, },', "gone"],
    ['"handlers": { "actions": { "Startup": "go" } }', /^Error in command space .*declare a run/],
  ]) {
    const sketch = withOwn('function go(context) { log("gone"); }');
    const command = `{ "name": "space", "identifier": "space", "script": "x.cocoascript", ${how} }`;
    const manifest = `{ "name": "Spacing", "identifier": "s", "commands": [${command},], }`;
    sketch.files.set(`${OWN}/Contents/Sketch/manifest.json`, manifest.replace("x.", "spacing."));
    sketch.run("space", OWN);
    if (!new RegExp(line).test(sketch.lines.join("\n"))) throw new Error(sketch.lines.join("\n"));
  }
});

test("a name that Sketch does not have is undefined in Sketch, and noticed here", () => {
  for (const [code, missing] of [
    ["context.plugin.nmae", "MSPluginBundle.nmae"],
    ["context.dcoument", "context.dcoument"],
    ["(NSApp.title = 1)", "NSApplication.title to be set"],
    ['require("sketch").UI.mesage', "UI.mesage"],
  ]) {
    const sketch = withOwn(
      script(`const x = ${code}; return typeof x === "number" ? "undefined" : typeof x;`),
    );
    sketch.run("space", OWN);
    equal([sketch.lines, sketch.missing], [["OK undefined"], [missing]]);
  }
});

/** How an unexpected failure is told. jsc has no name for the file of code that it evaluates. */
function failure(place, what, outcome = "ERROR ") {
  const where = isNode ? ` in ${place.replace(/\./, "\\.")}` : "";
  const advice = "Look at your layers, and undo if they changed\\.";
  return new RegExp(`^${outcome}Failed unexpectedly${where}: ${what}\\. ${advice}$`);
}

function report(error, line) {
  const place = isNode ? `\n    at /.*spacing\\.cocoascript:${line}:\\d+` : "";
  return new RegExp(`^${error}: .*${place}$`);
}

// --- A Sketch to test in --------------------------------------------------------------------

function newSketch() {
  return Object.assign(new Model(read, plugin), { isOlder });
}

const OWN = "/Users/ann/Plugins/Spacing 1.0.sketchplugin";

/** Put a plugin of one's own beside the other, of the general files and one script. */
function own(sketch, text, identifier = "org.example.spacing") {
  const folder = `${OWN}/Contents/Sketch`;
  const openPanel = read(`${scripts}/open-panel.cocoascript`);
  const commands = [
    { name: "open-panel", identifier: "open-panel", script: "open-panel.cocoascript" },
    { name: "space", identifier: "space", script: "spacing.cocoascript" },
  ];
  for (const [path, content] of Object.entries({
    [`${folder}/manifest.json`]: JSON.stringify({ name: "Spacing", identifier, commands }),
    [`${folder}/panel.js`]: read(`${scripts}/panel.js`),
    [`${folder}/open-panel.cocoascript`]: openPanel.replace("pebble-dialogue.html", "page.html"),
    [`${folder}/spacing.cocoascript`]: text,
    [`${OWN}/Contents/Resources/page.html`]: "",
  })) {
    sketch.files.set(path, content);
  }
}

/** A script of one's own: `body` begins in line 7. */
function script(body, parameters = "(values)") {
  return `// Spaces the selected layers.
const { run, Problem } = require("./panel");

function onRun(context) {
  run(
    context, ${parameters} => {
      ${body}
    });
}
`;
}

/** A plugin of one's own whose panel is open. */
function withOwn(text) {
  const sketch = newSketch();
  own(sketch, text);
  sketch.run("open-panel", OWN);
  const list = [{ text: "a" }, { text: "b" }];
  sketch.title = JSON.stringify({ gap: "8", list, box: false, then: "fine" });
  return Object.assign(sketch, { lines: [], toasts: [] });
}

function open(values = {}) {
  const sketch = newSketch();
  sketch.run("open-panel");
  sketch.title = JSON.stringify({ ...VALUES, ...values });
  return sketch;
}

/** Selected: "minutes", or what `more` makes of it, straight above the center at 100, 100. */
function withPair(values, more, line) {
  return pair(open(values), more, line);
}

function pair(sketch, more, line) {
  sketch.layer = sketch.add(
    line
      ? new Layer("ShapePath", "minutes", undefined, line)
      : rect("minutes", [95, 30, 10, 40], more),
  );
  sketch.center = sketch.add(rect("the [center]", [90, 90, 20, 20], { rotation: 45 }));
  sketch.selection = [sketch.layer, sketch.center];
  return sketch;
}

/** Selected: a watch, with the group [hands] in its face, all of them somewhat rotated. */
function withWatch(values) {
  return watch(open(values));
}

function watch(sketch) {
  const parts = {
    hour: rect("[hourhand]", [48, 30, 4, 20]),
    minute: rect("[minutehand]", [48, 10, 4, 45]),
    second: rect("[secondhand]", [49, 5, 2, 40]),
    center: rect("[center]", [45, 45, 10, 10], { rotation: 3 }),
    time: new Layer("Text", "[time]", [20, 70, 72, 10], { text: "12:00:00" }),
  };
  sketch.hands = group("[hands]", [10, 10, 100, 100], Object.values(parts), { rotation: 5 });
  sketch.face = group("face", [20, 20, 144, 168], [rect("glass", [0, 0, 144, 168]), sketch.hands]);
  sketch.watch = sketch.add(group("watch", [300, 200, 200, 200], [sketch.face], { rotation: 350 }));
  sketch.selection = [sketch.watch];
  return Object.assign(sketch, parts);
}

function installed(bundle) {
  const sketch = newSketch();
  sketch.bundle = bundle || sketch.bundle;
  sketch.files.set(`${sketch.bundle}/Contents/Sketch/pebble_ws.py`, "");
  return sketch;
}

function rect(name, frame, more) {
  return new Layer("ShapePath", name, frame, more);
}

function group(name, frame, children, more) {
  return new Layer("Group", name, frame, { children, ...more });
}

function remove({ parent, id }) {
  parent.children = parent.children.filter((layer) => layer.id !== id);
}

// --- What must be so ------------------------------------------------------------------------

/** Run a command: it ends with one OK line and a toast that says the same. */
function succeed(sketch, command, text) {
  run(sketch, command);
  const [line] = sketch.lines;
  equal(line, `OK ${text || line.slice(3)}`);
}

/** Run a command: it ends with one ERROR line and a toast that says the same, and nothing changed. */
function fail(sketch, command, text) {
  const before = String(sketch.page);
  run(sketch, command);
  const [word, ...rest] = sketch.lines[0].split(" ");
  equal(word, "ERROR", sketch.lines[0]);
  if (typeof text === "string") equal(rest.join(" "), text.replace(/\s+/g, " "));
  else if (!text.test(rest.join(" "))) throw new Error(`${rest.join(" ")} is not ${text}`);
  equal(String(sketch.page), before);
}

function run(sketch, command) {
  Object.assign(sketch, { lines: [], toasts: [], alerts: [] });
  sketch.run(command);
  equal(sketch.missing, []);
  // Where a toast throws, a line before says so.
  if (isOlder && !sketch.hasDocument && sketch.lines.length === 2) sketch.lines.shift();
  equal(sketch.lines.length, 1, sketch.lines.join("\n"));
  const isInformation = command === "webservice-starting-information";
  equal(
    [sketch.alerts.length, sketch.toasts.length],
    isInformation ? [1, 0] : [0, sketch.hasDocument ? 1 : 0],
  );
  const shown = [...sketch.toasts, ...sketch.alerts.map(({ text }) => text)];
  for (const text of shown) equal(text.replace(/\s+/g, " "), sketch.lines[0].replace(/^\w+ /, ""));
}

/** The layer turns around the center, and itself, by so many degrees, as seen on the page. */
function rotates(sketch, change, degrees) {
  const [center, from] = [sketch.center.onPage, sketch.layer.onPage];
  change();
  const angle = ((degrees % 360) * Math.PI) / 180;
  const [dx, dy] = [from.x - center.x, from.y - center.y];
  place(sketch.layer, {
    x: center.x + dx * Math.cos(angle) - dy * Math.sin(angle),
    y: center.y + dx * Math.sin(angle) + dy * Math.cos(angle),
    degrees: from.degrees + degrees,
  });
}

/** The group has the size of what is in it. */
function fits(group) {
  const before = { ...group.rect };
  group.fit();
  near(before, group.rect);
}

/** Each hand has this rotation, and points there from the center. */
function showsTime(sketch, angles) {
  const lengths = { hour: 10, minute: 17.5, second: 25 };
  const { x, y, degrees } = sketch.center.onPage;
  const turned = degrees - sketch.center.rotation;
  for (const [name, angle] of Object.entries(angles)) {
    const radians = ((angle + turned) * Math.PI) / 180;
    place(sketch[name], {
      x: x + lengths[name] * Math.sin(radians),
      y: y - lengths[name] * Math.cos(radians),
      degrees: angle + turned,
    });
  }
}

function place({ onPage }, { x, y, degrees }) {
  near([onPage.x, onPage.y], [x, y]);
  near(Math.sin(((onPage.degrees - degrees) * Math.PI) / 360), 0);
}

/** Numbers, or objects of numbers, that are the same to 1e-6. */
function near(found, expected) {
  const rounded = (value) =>
    JSON.stringify(value, (key, number) =>
      typeof number === "number" ? Math.round(number * 1e6) / 1e6 + 0 : number,
    );
  equal(rounded(found), rounded(expected));
}

/** The starting information puts the very command on the clipboard that it shows. */
function starts(sketch, command) {
  succeed(sketch, "webservice-starting-information");
  equal(sketch.clipboard, command || sketch.clipboard);
  equal(
    sketch.alerts[0].text,
    `Open Terminal, paste this command from the clipboard, press Return:\n\n${sketch.clipboard}`,
  );
}

function equal(found, expected, why = "") {
  const [is, should] = [found, expected].map((value) => JSON.stringify(value));
  if (is !== should) throw new Error(`${is} is not ${should} ${why}`.trim());
}

// --- Running them ---------------------------------------------------------------------------

function test(name, body) {
  tests.push({ name: name.replace(/\s+/g, " "), body });
}

function runTests() {
  let [count, failed] = [0, 0];
  for (const { name, body } of tests) {
    for (isOlder of [false, true]) {
      const named = isOlder ? `${name}, in an older Sketch` : name;
      count += 1;
      try {
        body();
        say(`ok ${named}`);
      } catch (error) {
        failed += 1;
        say(`not ok ${named}: ${String(error).replace(/\s+/g, " ")}`);
      }
    }
  }
  end(`${count - failed} passed, ${failed} failed`, failed === 0);
}

/** A Sketch with a real bundle in it, and what else is on this disk. */
function withBundle(bundle) {
  const sketch = Object.assign(new Model(read, bundle), { bundle });
  sketch.text = (path) => {
    try {
      return read(path);
    } catch (error) {
      return undefined;
    }
  };
  return sketch;
}

/** What Sketch prints when it runs a command. */
function printRun(bundle, command, selection, title, otherBundle, otherTitle) {
  const sketch = withBundle(bundle);
  if (title) openPanel(sketch, bundle, title);
  if (otherBundle) openPanel(sketch, otherBundle, otherTitle);
  if (selection === "pair") pair(sketch);
  if (selection === "watch") watch(sketch);
  sketch.run(command);
  end(sketch.lines.join("\n"), true);
}

function openPanel(sketch, bundle, title) {
  sketch.run("open-panel", bundle);
  sketch.title = title;
  sketch.lines = [];
}

/** What the script puts on the clipboard for a real bundle, and a Sketch anywhere. */
function printStartingInformation(bundle, app) {
  const sketch = Object.assign(withBundle(bundle), { app });
  sketch.run("webservice-starting-information");
  const isCopied = sketch.lines[0].startsWith("OK ");
  end(isCopied ? sketch.clipboard : sketch.lines[0], isCopied);
}

/** Say a last line and end with the exit status 0 if all went well. */
function end(line, isWell) {
  if (isNode) {
    say(line);
    process.exitCode = isWell ? 0 : 1;
    return;
  }
  // Only an exception gives jsc another exit status, and it says so: the line comes after that.
  Promise.resolve().then(() => say(line));
  if (!isWell) throw "not ok";
}

function loaded(path) {
  const module = { exports: {} };
  new Function("module", read(path))(module);
  return module.exports;
}

const [what, ...paths] = words.filter((word) => word !== "--");
if (what === "starting-information") printStartingInformation(...paths);
else if (what === "run") printRun(...paths);
else runTests();
