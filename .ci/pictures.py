#!/usr/bin/env python3
"""Take pictures of the dialogue, with a stand-in for Sketch.

    python3 .ci/pictures.py            the three that the README shows, into plugin/
    python3 .ci/pictures.py FOLDER     every state in every size, light and dark, into FOLDER

It needs Chromium, for the second also WPE WebKit, as the tests do. The README's are set in Inter
(fonts-inter), which resembles the Mac's own font, where fontconfig finds it.
"""

import base64
import contextlib
import itertools
import os
import pathlib
import re
import shutil
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import test_pebble_ws as tests  # noqa: E402

WIDTHS, HEIGHTS, TEXT_SIZES, SCHEMES = (220, 290, 600), (300, 460), (100, 200), ("light", "dark")
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<include ignore_missing="yes">/etc/fonts/fonts.conf</include>
<match target="pattern"><edit name="family" mode="prepend" binding="strong">
<string>Inter</string></edit></match></fontconfig>"""
FAILURE = (
    "ERROR Nothing is selected. Select two layers: the one to rotate, and one with [center] in "
    "its name."
)


class Panel:
    """The dialogue in a browser, of any size, light or dark."""

    def __init__(self, engine, folder):
        self.engine = engine
        self.bundle = pathlib.Path(tests.installed(folder))
        self.resources = self.bundle / "Contents" / "Resources"
        self.browser = tests.Browser(engine)  # the last: from now on it has to be closed

    def open(self, scheme):
        """Open the page; in WebKit in a frame, since its window has one size and one scheme."""
        if self.engine == "Chromium":
            self.emulate(scheme)
            self.browser.open((self.resources / "pebble-dialogue.html").as_uri())
            return
        for name in ("html", "css"):
            source = (self.resources / f"pebble-dialogue.{name}").read_text(encoding="utf-8")
            if scheme == "dark":
                source = source.replace("(prefers-color-scheme: dark)", "all")
                source = source.replace("light dark", "dark")
            source = source.replace("dialogue.css", f"{scheme}.css")
            (self.resources / f"pebble-{scheme}.{name}").write_text(source, encoding="utf-8")
        frame = self.resources / f"frame-{scheme}.html"
        frame.write_text(f'<iframe src="pebble-{scheme}.html" width=290 height=460>')
        self.browser.call("POST", "/frame", {"id": None})
        self.browser.open(frame.as_uri())
        self.browser.call("POST", "/frame", {"id": 0})

    def emulate(self, scheme, forced="none"):
        features = {"prefers-color-scheme": scheme, "forced-colors": forced}
        self.browser.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def resize(self, width, height, text_size=100):
        self.browser.execute(
            "document.documentElement.style.fontSize = arguments[0]", f"{text_size}%"
        )
        if self.engine == "Chromium":
            self.browser.cdp(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=2,
                mobile=False,
            )
            return
        self.browser.call("POST", "/frame", {"id": None})
        frame = self.browser.find("//iframe")
        self.browser.execute(
            "[arguments[0].width, arguments[0].height] = [arguments[1], arguments[2]]",
            frame,
            width,
            height,
        )
        self.browser.call("POST", "/frame", {"id": 0})
        self.browser.frames()

    def take(self, path):
        if self.engine == "Chromium":
            self.browser.screenshot(path)
            return
        self.browser.call("POST", "/frame", {"id": None})
        frame = next(iter(self.browser.find("//iframe").values()))
        picture = self.browser.call("GET", f"/element/{frame}/screenshot")
        path.write_bytes(base64.b64decode(picture))
        self.browser.call("POST", "/frame", {"id": 0})

    def click(self, name):
        self.browser.click(self.browser.button(name))

    def wait_for(self, text):
        """Wait until the footer has a text, which is a regular expression."""
        footer = self.browser.find("//footer")
        tests.wait_until(lambda: re.search(text, self.browser.get(footer, "text")))


def states(panel, sketch, start_server):
    """Bring the dialogue from state to state; yield the name of each."""
    browser = panel.browser
    working = "return document.getAnimations().some((a) => a.currentTime > 600)"
    panel.wait_for("Not connected")
    yield "rotator-not-connected"
    panel.click("Time")
    yield "time-not-connected"
    panel.click("Rotator")
    running = start_server("--dry-run")
    panel.wait_for("dry run")
    panel.click("Rotate")
    panel.wait_for("Dry run:")
    yield "dry-run"
    running.stop()
    panel.wait_for("Not connected")
    running = start_server("--sketch", sketch.app)
    panel.wait_for("Connected to Sketch")
    yield "connected"
    sketch.hold()
    panel.click("Rotate")
    tests.wait_until(lambda: browser.execute(working))
    yield "working"
    panel.click("Duplicate")
    panel.wait_for(r" \d+ s")
    yield "waiting"
    sketch.answer("OK Rotated hand by 30°.")
    sketch.release()
    tests.wait_until(lambda: browser.get(browser.button("Duplicate"), "enabled"))
    panel.click("Rotate")
    tests.wait_until(lambda: browser.get(browser.button("Rotate"), "enabled"))
    yield "done"
    sketch.answer(FAILURE)
    panel.click("Duplicate")
    panel.wait_for("Failed")
    yield "failed"
    browser.press(tests.TAB)
    yield "focus"
    sketch.answer("TypeError: undefined is not an object (evaluating 'layer.frame')\n" * 8)
    sketch.mood(r'cat "$here/answer"; exit 1')
    panel.click("Undo")
    panel.wait_for("TypeError")
    yield "failed-long"
    panel.click("Remove")
    panel.wait_for("Put back")
    yield "removed"
    browser.enter(browser.field("Angle"), "thirty")
    sketch.answer('ERROR "thirty" is not an angle. Type a number: 30, -45 or 22.5.')
    panel.click("Rotate")
    panel.wait_for("thirty")
    yield "wrong-field"
    browser.enter(browser.field("Angle"), "30")
    for _ in range(24):
        panel.click("Add row")
    yield "30-rows"
    browser.enter(browser.field("Angle"), "3" * 500)
    panel.wait_for("Too long")
    yield "too-long"
    for _ in range(28):
        panel.click("Remove")
    browser.enter(browser.field("Angle"), "30")
    panel.click("Rotator")
    yield "1-row"
    sketch.answer("OK Set the time to 10:10:31.")
    panel.click("Time")
    yield "time"
    panel.click("Run")
    panel.wait_for("Set the")
    yield "running"
    panel.click("Stop")
    tests.wait_until(lambda: browser.get(browser.button("Run"), "enabled"))
    sketch.hold()
    panel.click("Set")
    running.process.kill()
    panel.wait_for("lost")
    yield "lost"
    running.kill()


@contextlib.contextmanager
def prepared(engine):
    """Yield a panel, a stand-in for Sketch, and a function that starts a server."""
    with contextlib.ExitStack() as ending:
        folder = tempfile.mkdtemp(prefix="pictures-")
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        panel = Panel(engine, folder)
        ending.callback(panel.browser.close)
        sketch = tests.PatientSketch(folder)
        ending.callback(sketch.close)
        ending.callback(sketch.release)

        def start_server(*arguments):
            server = tests.Server(str(panel.bundle), *arguments)
            ending.callback(lambda: server.process.poll() is None and server.kill())
            return server

        yield panel, sketch, start_server


def take_all(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for engine in tests.BROWSERS:
        for scheme in SCHEMES if engine != "Chromium" else ("light",):
            with prepared(engine) as (panel, *stand_ins):
                panel.open(scheme)
                for number, state in enumerate(states(panel, *stand_ins), 1):
                    take_sizes(panel, folder, f"{number:02}-{state}", scheme)
                print(f"{engine}, {scheme}: {number} states")


def take_sizes(panel, folder, name, scheme):
    engine = panel.engine.split()[0].lower()
    schemes = SCHEMES if panel.engine == "Chromium" else (scheme,)
    for width, height, text_size in itertools.product(WIDTHS, HEIGHTS, TEXT_SIZES):
        panel.resize(width, height, text_size)
        for scheme in schemes:
            if panel.engine == "Chromium":
                panel.emulate(scheme)
            panel.take(folder / f"{name}-{width}x{height}-{text_size}-{scheme}-{engine}.png")
    panel.resize(290, 460)
    if panel.engine == "Chromium":
        panel.emulate("light", "active")
        panel.take(folder / f"{name}-290x460-100-forced-{engine}.png")
        panel.emulate("light")


def take_those_of_the_readme():
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as fonts:
        fonts.write(FONTS)
        fonts.flush()
        os.environ["FONTCONFIG_FILE"] = fonts.name
        with prepared("Chromium") as (panel, sketch, start_server):
            start_server("--sketch", sketch.app)
            for scheme in SCHEMES:
                panel.open(scheme)
                panel.resize(290, 460)
                panel.wait_for("Connected")
                sketch.answer("OK Rotated hand by 30°.")
                panel.click("Rotate")
                panel.wait_for("Rotated")
                panel.browser.execute("document.activeElement.blur()")
                panel.take(ROOT / "plugin" / f"pebble-dialogue-{scheme}.png")
            panel.open("light")
            panel.click("Time")
            panel.wait_for("Connected")
            sketch.answer("OK Set the time to 10:10:31.")
            panel.click("Add")
            panel.wait_for("Set the time")
            panel.browser.execute("document.activeElement.blur()")
            panel.take(ROOT / "plugin" / "pebble-dialogue-time.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_all(pathlib.Path(sys.argv[1]))
    else:
        take_those_of_the_readme()
