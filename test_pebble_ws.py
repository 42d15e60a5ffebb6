"""The tests of pebble_ws.py, its plugin and its dialogue.

    python3 -m unittest                   all of them; they need the standard library only
    PEBBLE_SEED=7 python3 -m unittest     the same, with what the random peer did in another run

A class stands for a section of the program, in the same order. A test says what it is about with
its name, a table's row with its first cell. Nothing sleeps for a fixed time: tests wait for a line
of the log, an answer, or a state, all with an end. What needs a JavaScript engine or a browser is
skipped, with the reason, where there is none, and required where CI is set.
"""

import base64
import concurrent.futures
import contextlib
import html.parser
import http.server
import io
import itertools
import json
import os
import pathlib
import plistlib
import queue
import random
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import urllib.error
import urllib.request
from unittest import mock

import pebble_ws

CI = bool(os.environ.get("CI"))
PROGRAM = os.path.abspath(pebble_ws.__file__)
PLUGIN = os.path.join(os.path.dirname(PROGRAM), "plugin", "pebble.sketchplugin")
TESTS = os.path.join(os.path.dirname(PROGRAM), "plugin", "tests")
PYTHON = [sys.executable, "-W", "error", *["-O"] * sys.flags.optimize]
os.environ.pop("PYTHONUNBUFFERED", None)  # which would hide that something is not flushed

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # (1.3)
MASKING_KEY = bytes.fromhex("37fa213d")  # (5.7)


# ---- A client, which can send anything ----------------------------------------------------------


def head(target="/", *lines, request="GET {} HTTP/1.1", **changes):
    """Return an opening handshake (1.3) with some headers changed, or left out if None."""
    headers = {"Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade"}
    headers.update(Sec_WebSocket_Key=KEY, Sec_WebSocket_Version="13")
    headers.update(changes)
    named = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    return "\r\n".join([request.format(target), *named, *lines, "\r\n"]).encode("latin-1")


def client_frame(opcode, payload=b"", fin=True, key=MASKING_KEY):
    """Return a frame as a client sends it (5.2). The opcode may have RSV bits."""
    payload = payload.encode() if isinstance(payload, str) else payload
    size = len(payload)
    head = bytes([fin << 7 | opcode])
    for code, limit, width in ((size, 126, 0), (126, 1 << 16, 2), (127, 1 << 63, 8)):
        if size < limit:
            head += bytes([0x80 | code]) + (size.to_bytes(width, "big") if width else b"") + key
            break
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return head + (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")


def close_of(code, reason=b""):
    return client_frame(CLOSE, code.to_bytes(2, "big") + reason)


GOODBYE = close_of(1000)


class Client:
    """A connection to a server, and what comes from there."""

    def __init__(self, port, *data, host="127.0.0.1"):
        self.socket = socket.create_connection((host, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.send(*data)

    def send(self, *data):
        self.socket.sendall(b"".join(data))

    def response(self):
        """Return the lines of an HTTP response's head."""
        lines = []
        while (line := self.file.readline()) not in (b"", b"\r\n"):
            lines.append(line.decode().rstrip("\r\n"))
        return lines

    def receive(self):
        """Return a str, bytes, (PONG, payload) or (CLOSE, its code or None); None at the end."""
        start = self.file.read(2)
        if not start:
            return None
        first, size = start
        if size > 125:
            width, shortest = (2, 126) if size == 126 else (8, 1 << 16)
            size = int.from_bytes(self.file.read(width), "big")
            if not shortest <= size < 1 << 63:
                raise ValueError(f"not a length in {width} bytes, or a mask: {size}")
        payload = self.file.read(size)
        if first not in (0x81, 0x82, 0x88, 0x8A) or len(payload) < size:
            raise ValueError(f"no whole frame of a server: {first:#x} {payload[:100]}")
        if first == 0x88:
            payload[2:].decode()
            return CLOSE, int.from_bytes(payload[:2], "big") if payload else None
        return {0x81: payload.decode, 0x82: lambda: payload}.get(first, lambda: (PONG, payload))()

    def rest(self):
        """Return all that comes until the server drops TCP."""
        return list(iter(self.receive, None))

    def click(self, message):
        """Send a message; return the answer."""
        self.send(client_frame(TEXT, message))
        return json.loads(self.receive())

    def close(self, reset=False):
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.socket.close()


# ---- Servers and a Sketch to test with ----------------------------------------------------------


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def wait_until(condition, seconds=15):
    """Return the first true value of condition(). Raise AssertionError if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def running(handler):
    """Run a WebSocketServer in this process; yield as much of a Server as a client needs."""
    threads = threading.active_count()
    with pebble_ws.WebSocketServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield types.SimpleNamespace(port=server.server_address[1], target="/")
        finally:
            server.shutdown()
            thread.join()
    wait_until(lambda: threading.active_count() <= threads)


class Server:
    """pebble_ws.py as a process; `lines` has what it printed since the last `mark`.

    `setup` is Python that runs in the module before main: it can change a constant. `command`
    starts it in another way.
    """

    def __init__(self, bundle, *arguments, setup="", command=None, **options):
        self.session_file = f"{bundle}/Contents/Resources/session.js"
        folder = f"{bundle}/Contents/Sketch"
        code = f"import sys; sys.path[0] = {folder!r}; import pebble_ws\n"
        code += f"exec({setup!r}, vars(pebble_ws)); sys.exit(pebble_ws.main())"
        start = [*PYTHON, "-c", code] if setup else [*PYTHON, f"{folder}/pebble_ws.py"]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command or [*start, "--port", "0", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
            **options,
        )
        self.log, self.came, self.start, self.printed = [], [], 0, threading.Condition()
        self.told = False  # to stop
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        try:
            ready = self.wait_for("listening on ws://localhost:")[0]
            self.port = int(re.search(r"localhost:(\d+)", ready)[1])
            self.first_lines = list(self.log)
            self.session = read(self.session_file)
            self.token = re.search('"token": "([^"]*)"', self.session)[1]
            self.target = f"/?token={self.token}"
            self.idle = self.counts()
        except BaseException:
            self.kill()
            raise

    def _read(self):
        for line in self.process.stdout:
            with self.printed:
                self.log.append(line.rstrip("\n"))
                self.came.append(time.monotonic())
                self.printed.notify()
        with self.printed:
            self.log.append(None)
            self.printed.notify()

    def mark(self):
        self.start = len(self.log)

    def lines(self, pattern=""):
        return [line for line in self.log[self.start :] if line and re.search(pattern, line)]

    def times(self, pattern):
        """Return when the lines came that have the pattern, in seconds."""
        return [at for at, line in zip(self.came, self.log) if line and re.search(pattern, line)]

    def wait_for(self, pattern, count=1, seconds=15):
        """Return the lines that have the pattern, once there are so many."""
        found, at, deadline = [], self.start, time.monotonic() + seconds
        with self.printed:
            while True:
                new, at = self.log[at:], len(self.log)
                found += [line for line in new if line and re.search(pattern, line)]
                if len(found) >= count:
                    return found
                if None in new or not self.printed.wait(deadline - time.monotonic()):
                    last = self.log[self.start :][-30:]
                    raise AssertionError(f"no {pattern} in {last}; {self.stderr()}")

    def counts(self):
        """Return how many threads and descriptors it has; 0 where the system does not say."""
        folder = f"/proc/{self.process.pid}"
        if not os.path.isdir("/proc/self/task"):
            return 0, 0
        return len(os.listdir(f"{folder}/task")), len(os.listdir(f"{folder}/fd"))

    def memory(self):
        """Return the resident memory in bytes; 0 where the system does not say."""
        with contextlib.suppress(OSError), open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s*(\d+) kB", file.read())[1]) * 1024
        return 0

    def stderr(self):
        if not self.errors.closed:
            self.errors.seek(0)
            self.said = self.errors.read().decode()
        return self.said

    def check(self):
        """Raise AssertionError unless it is idle, said nothing odd, and keeps its secret."""
        if self.process.poll() is None:
            wait_until(lambda: all(now <= idle for now, idle in zip(self.counts(), self.idle)))
        for line in filter(None, self.log[len(self.first_lines) :]):
            if not re.match(r"\d\d:\d\d:\d\d #\d+ [=<>!] ", line) or not line.isprintable():
                raise AssertionError(f"no line of a log: {line!r}")
            if self.token in line:
                raise AssertionError("the token is in the log")
        if self.stderr():
            raise AssertionError(self.stderr())

    def terminate(self, number=signal.SIGTERM):
        """Tell it to stop, as a person does, unless it was told."""
        if not self.told:
            self.told = True
            self.process.send_signal(number)

    def stop(self):
        """Stop it, and check that it ends well."""
        self.terminate()
        try:
            status = self.process.wait(20)
        finally:
            self.kill()
        if status or self.said:
            raise AssertionError(f"exit status {status}; {self.said}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()
        self.stderr()
        self.errors.close()


SKETCHTOOL = """#!/bin/sh
here=${0%/*}
printf '%s\\0' "$@" '' >>"$here/calls"
. "$here/mood"
"""
HOLD = 'read -r line <"$here/gate"; echo "$line"'  # until say(line)


class StandInSketch:
    """A Sketch.app whose sketchtool records how it was called, and does what its `mood` says."""

    def __init__(self, folder, tool="MacOS/sketchtool", version=None):
        self.app = f"{folder}/Sketch.app"
        self.tool = f"{self.app}/Contents/{tool}"
        self.home = os.path.dirname(self.tool)
        os.makedirs(self.home)
        write(self.tool, SKETCHTOOL)
        os.chmod(self.tool, 0o755)
        os.mkfifo(f"{self.home}/gate")
        self.gate = os.open(f"{self.home}/gate", os.O_RDWR)
        if version:
            with open(f"{self.app}/Contents/Info.plist", "wb") as file:
                plistlib.dump({"CFBundleVersion": version}, file)
        self.reset()

    def reset(self):
        self.answer("OK Done.")
        write(f"{self.home}/calls", "")

    def mood(self, shell):
        write(f"{self.home}/mood", f"{shell}\n")

    def answer(self, text):
        self.mood(f"printf '%s\\n' {shlex.quote(text)}")

    def say(self, line):
        """Let one script that is held print a line and end."""
        os.write(self.gate, f"{line}\n".encode())

    def calls(self):
        """Return the arguments of each call."""
        return [call.split("\0") for call in read(f"{self.home}/calls").split("\0\0")[:-1]]

    def wait_for_calls(self, count):
        wait_until(lambda: len(self.calls()) >= count)

    def close(self):
        os.close(self.gate)


class TestCase(unittest.TestCase):
    """Clients of `server`, and servers that end with their test."""

    server = None

    def request(self, *data, server=None, host="127.0.0.1"):
        """Return a client that has sent something."""
        client = Client((server or self.server).port, *data, host=host)
        self.addCleanup(client.close)
        return client

    def connect(self, *data, server=None, host="127.0.0.1", **headers):
        """Return a client whose handshake was accepted, and that sent data in the same segment."""
        server = server or self.server
        client = self.request(head(server.target, **headers), *data, server=server, host=host)
        self.assertEqual("HTTP/1.1 101 Switching Protocols", client.response()[0])
        return client

    def assert_fails(self, client, code, *before):
        """Check that these messages, a Close with this code, and the end of TCP are what comes."""
        self.assertEqual([*before, (CLOSE, code)], client.rest())

    @classmethod
    def started(cls, add_cleanup, *arguments, **options):
        """Return a server that is told to stop after a test or class, and must have at the end."""
        server = Server(*arguments, **options)
        add_cleanup(server.terminate)
        unittest.addModuleCleanup(server.stop)
        return server


def temporary_folder(add_cleanup):
    folder = os.path.realpath(tempfile.mkdtemp(prefix="Skizzen für Zoë "))
    add_cleanup(shutil.rmtree, folder, ignore_errors=True)
    return folder


def installed(folder):
    """Install the plugin into a folder; return the bundle."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = pebble_ws.main(["--install", folder])
    if status or folder not in printed.getvalue():
        raise AssertionError(printed.getvalue())
    return f"{folder}/pebble.sketchplugin"


class BridgeTestCase(TestCase):
    """An installed plugin, a stand-in Sketch, and a server for all tests, idle after each."""

    setup = ""

    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls.addClassCleanup)
        cls.bundle = installed(cls.folder)
        cls.sketch = StandInSketch(cls.folder)
        cls.addClassCleanup(cls.sketch.close)
        arguments = (cls.bundle, "--sketch", cls.sketch.app)
        cls.server = cls.started(cls.addClassCleanup, *arguments, setup=cls.setup)

    def setUp(self):
        self.sketch.reset()
        self.server.mark()
        self.addCleanup(self.server.check)  # after those of the clients

    @contextlib.contextmanager
    def noticed_only_as(self, *ends):
        """Check that what happens meanwhile hinders no other's click, and what the log tells of it.

        There is a line for each connection that ends: a pattern each.
        """
        self.server.mark()
        witness = self.connect()
        number = re.search(r"#\d+", self.server.wait_for("= open")[0])[0]
        self.server.mark()
        yield witness
        self.assertEqual("done", witness.click("undo")["status"])
        end = r" #\d+ (! |= closed )"
        lines = self.server.wait_for(end, len(ends))
        self.assertEqual(len(ends), len(lines), lines)
        for pattern, line in zip(ends, lines):
            self.assertRegex(line, pattern)
        witness.send(GOODBYE)
        self.assert_fails(witness, 1000)
        witness.close()
        self.server.wait_for(f"{number} = closed 1000")


# ---- Configuration ------------------------------------------------------------------------------


def manifest():
    return json.loads(read(f"{PLUGIN}/Contents/Sketch/manifest.json"))


class Configuration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.manifest = manifest()
        cls.messages = []

        class Buttons(html.parser.HTMLParser):
            def handle_starttag(self, tag, attributes):
                if tag == "button" and "data-message" in dict(attributes):
                    cls.messages.append(dict(attributes)["data-message"])

        Buttons().feed(read(f"{PLUGIN}/Contents/Resources/pebble-dialogue.html"))

    def test_each_message_has_a_script_a_command_and_a_button(self):
        commands = [command["script"] for command in self.manifest["commands"]]
        for message, script in pebble_ws.SCRIPTS.items():
            with self.subTest(message):
                path = os.path.join(PLUGIN, "Contents", "Sketch", script)
                self.assertTrue(os.path.isfile(path), f"SCRIPTS names {path}: write it there")
                self.assertIn(script, commands, f"add a command for {script} to manifest.json")
                self.assertIn(
                    message,
                    self.messages,
                    f'give a button in pebble-dialogue.html this data-message="{message}"',
                )

    def test_each_button_and_each_command_has_a_script(self):
        for message in self.messages:
            self.assertIn(message, pebble_ws.SCRIPTS, "add this data-message to SCRIPTS")
        scripts = {
            name
            for name in os.listdir(f"{PLUGIN}/Contents/Sketch")
            if name.endswith(".cocoascript")
        }
        commands = {command["script"] for command in self.manifest["commands"]}
        self.assertEqual(scripts, commands, "the files in Contents/Sketch, those in manifest.json")

    def test_the_manifest_keeps_the_rules_of_sketchs_schema(self):
        def check(where, value, required=(), **types_):
            self.assertLessEqual(set(value), set(types_), f"not allowed in {where}")
            self.assertLessEqual(set(required), set(value), f"missing in {where}")
            for key in value:
                self.assertIsInstance(value[key], types_[key], f"{key} in {where}")

        def check_items(items):
            self.assertTrue(items)
            for item in items:
                if isinstance(item, dict):
                    check("a submenu", item, ("title", "items"), title=str, items=list)
                    check_items(item["items"])
                else:
                    self.assertIn(item, [*identifiers, "-"], "menu names a command that is not")

        texts = ("name", "identifier", "description", "icon", "darkIcon")
        check(
            "the manifest",
            self.manifest,
            ("commands", "icon"),
            commands=list,
            menu=dict,
            suppliesData=bool,
            disableCocoaScriptPreprocessor=bool,
            bundleVersion=int,
            **dict.fromkeys(
                (
                    *texts,
                    "author",
                    "authorEmail",
                    "homepage",
                    "version",
                    "appcast",
                    "compatibleVersion",
                    "maxCompatibleVersion",
                    "scope",
                ),
                str,
            ),
        )
        self.assertIn(self.manifest["scope"], ("application", "document"))
        self.assertEqual(1, self.manifest["bundleVersion"])
        for command in self.manifest["commands"]:
            check(
                "a command",
                command,
                ("identifier", "script"),
                handlers=dict,
                **dict.fromkeys((*texts, "shortcut", "script", "handler"), str),
            )
        identifiers = [command["identifier"] for command in self.manifest["commands"]]
        self.assertEqual(len(identifiers), len(set(identifiers)), "two commands of one name")
        check("menu", self.manifest["menu"], ("items",), title=str, isRoot=bool, items=list)
        check_items(self.manifest["menu"]["items"])

    def test_the_icon_is_a_png_of_128_by_128(self):
        with open(f"{PLUGIN}/Contents/Resources/{self.manifest['icon']}", "rb") as file:
            start = file.read(24)
        self.assertEqual(b"\x89PNG\r\n\x1a\n", start[:8])
        self.assertEqual((128, 128), struct.unpack(">II", start[16:]))

    def test_the_versions_are_equal(self):
        self.assertEqual(pebble_ws.__version__, self.manifest["version"])


# ---- Opening handshake (4) ----------------------------------------------------------------------


class OpeningHandshake(BridgeTestCase):
    def refusals(self):
        """Yield why, the status, what the log says, and the head."""
        target, token = self.server.target, self.server.token

        def row(why, status, log, *lines, target=target, **changes):
            return why, status, log, head(target, *lines, **changes)

        yield "an empty line", 400, "", b"\r\n\r\n"
        yield "binary", 400, "", bytes(range(256)) + b"\r\n\r\n"
        for why, request in (
            ("no version", "GET {}"),
            ("HTTP/1.0", "GET {} HTTP/1.0"),
            ("HTTP/0", "GET {} HTTP/0"),
            ("HTTP/2", "GET {} HTTP/2.0"),
            ("two blanks", "GET  {} HTTP/1.1"),
            ("an absolute URL", "GET http://localhost{} HTTP/1.1"),
            ("no path", "GET * HTTP/1.1"),
            ("a NUL in the path", "GET {}\0 HTTP/1.1"),
            ("not ASCII", "GET {}ä HTTP/1.1"),
        ):
            yield row(why, 400, "", request=request)
        for why, line in (
            ("a folded line", " folded"),
            ("a NUL byte", "X: \0"),
            ("no colon", "X"),
            ("no name", ": x"),
            ("a blank before the colon", "X : x"),
            ("a lone CR", "X: \rY: y"),
            ("a lone LF", "X: \nY: y"),
            ("two keys", f"Sec-WebSocket-Key: {KEY}"),
            ("two Hosts", "Host: localhost"),
        ):
            yield row(why, 400, "", line)
        yield row("two versions", 426, "Sec-WebSocket-Version 13, 13", "sec-websocket-version: 13")
        yield row("two Origins", 403, "Origin null, null", "Origin: null\r\nOrigin: null")
        yield row("two Hosts in one", 400, "Host", Host="localhost, localhost")
        yield row("no Host", 400, "Host", Host=None)
        for key in (
            None,
            "nonsense",
            KEY[:-1],
            KEY[4:],
            "AAAA" + KEY,
            KEY[:-2] + "=A",
            f"{KEY} x",
            "dGhlIHNhbXBsZSBub25jZ_==",
        ):
            yield row(f"the key {key}", 400, "Sec-WebSocket-Key", Sec_WebSocket_Key=key)
        for method in ("POST", "HEAD", "OPTIONS", "CONNECT", "get"):
            yield row(method, 405, "method", request=method + " {} HTTP/1.1")
        for host in (
            "example.com",
            "localhost.example.com",
            "notlocalhost",
            "127.0.0.1.nip.io",
            "127.0.0.2",
            "0.0.0.0",
            "::1",
            "[::]",
            "localhost:80:80",
            "localhost:http",
            "localhost@example.com",
            "[::1",
            "localhost.",
        ):
            yield row(f"Host {host}", 403, f"Host {host}", Host=host)
        for origin in (
            "http://example.com",
            "http://localhost",
            "https://127.0.0.1:9912",
            "http://[::1]",
            "file:///",
            "file://x",
            "File://",
            "NULL",
            "null null",
            "null, null",
            "undefined",
        ):
            yield row(f"Origin {origin}", 403, f"Origin {origin}", Origin=origin)
        yield row("an empty Origin", 403, "Origin", "Origin:")
        for why, changes in (
            ("no Upgrade", {"Upgrade": None}),
            ("no Connection", {"Connection": None}),
            ("Upgrade: h2c", {"Upgrade": "h2c"}),
            ("keep-alive", {"Connection": "keep-alive"}),
            ("Upgrade: websockets", {"Upgrade": "websockets"}),
            *(
                (f"version {version}", {"Sec_WebSocket_Version": version})
                for version in (None, "0", "8", "12", "14", "013", "13, 8", "x")
            ),
        ):
            yield row(why, 426, next(iter(changes)).replace("_", "-"), **changes)
        for why, wrong in (
            ("none", "/"),
            ("empty", "/?token="),
            ("a wrong one", "/?token=" + "A" * len(token)),
            ("cut", target[:-1]),
            ("longer", target + "A"),
            ("in other case", target.swapcase()),
            ("another name", f"/?Token={token}"),
            ("another path", f"/x?token={token}"),
            ("two", f"{target}&token={token}"),
            ("one more parameter", f"{target}&x=y"),
            ("a fragment", f"{target}#"),
            ("escaped", f"/?token=%{ord(token[0]):x}{token[1:]}"),
        ):
            yield row(f"the token: {why}", 403, "token", target=wrong)
        yield row("9 KiB of head", 431, "8192", f"X: {'x' * 9216}")
        yield "a head without end", 431, "8192", head(target)[:-2] + b"X: x\r\n" * 1400
        # The order of the checks:
        yield row("the form, then Host", 400, "", "X", Host="example.com", Origin="http://x")
        yield row("the method, then Host", 405, "", request="PUT {} HTTP/1.1", Host="example.com")
        yield row("Host, then Origin", 403, "Host", Host="example.com", Origin="http://x")
        yield row("Origin, then version", 403, "Origin", Origin="http://x", Upgrade=None)
        yield row("version, then token", 426, "", target="/", Sec_WebSocket_Version="12")
        yield "a plain GET, then token", 426, "", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def test_what_is_refused_and_with_which_status(self):
        more = {405: {"Allow: GET"}, 426: {"Upgrade: websocket", "Sec-WebSocket-Version: 13"}}
        for why, status, log, data in self.refusals():
            with self.subTest(why):
                self.server.mark()
                client = self.request(data)
                status_line, *headers = client.response()
                self.assertRegex(status_line, rf"^HTTP/1\.1 {status} [A-Z]")
                self.assertLessEqual({"Connection: close", *more.get(status, ())}, set(headers))
                self.assertRegex(client.file.read(), rb"^[^\n]*WebSocket[^\n]*\n$")
                self.server.wait_for(f"! refused {status}: .*{re.escape(log)}")
                self.assertEqual(1, len(self.server.lines()))

    def test_what_is_accepted(self):
        port = self.server.port
        for changes in (
            *(
                {"Host": host}
                for host in (
                    f"localhost:{port}",
                    f"127.0.0.1:{port}",
                    f"[::1]:{port}",
                    "LocalHost",
                    "localhost:1",
                )
            ),
            {"Origin": "null"},
            {"Origin": "file://"},
            {"Origin": None},
            {"Origin": " \tnull\t "},
            {"Upgrade": "h2c, WebSocket"},
            {"Connection": "keep-alive,\tUPGRADE"},
            {"Connection": "keep-alive\r\nConnection: Upgrade"},
            {"X": "\x80\xff\t~"},
            {"X-": "\t"},
        ):
            with self.subTest(**changes):
                self.assertEqual("unknown", self.connect(**changes).click("no")["status"])

    def test_the_accept_key_of_the_rfc(self):  # (1.3)
        client = self.request(head(self.server.target))
        status, *headers = client.response()
        self.assertEqual("HTTP/1.1 101 Switching Protocols", status)
        expected = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}"]
        self.assertEqual(sorted(expected), sorted(headers))

    def test_no_extension_and_no_subprotocol_is_accepted(self):
        client = self.request(
            head(
                self.server.target,
                Sec_WebSocket_Protocol="chat",
                Sec_WebSocket_Extensions="permessage-deflate",
            )
        )
        self.assertEqual(4, len(client.response()))

    def test_a_head_of_8_kib_is_read_and_not_a_byte_more(self):
        room = 8192 - len(head(self.server.target, "X: "))
        for size, status in ((room, 101), (room + 1, 431)):
            client = self.request(head(self.server.target, f"X: {'x' * size}"))
            self.assertIn(f" {status} ", client.response()[0])

    def test_a_head_takes_little_time_whatever_is_in_it(self):
        for line in ("X: x" + " " * 7900 + "x", "X:" + ",\t" * 3900, "X:\r\n" * 1900 + "X:"):
            with self.subTest(line[:9]):
                data = head("/", line)
                start = time.process_time()
                pebble_ws.read_head(lambda data=data: data)
                self.assertLess(time.process_time() - start, 0.05)

    def test_the_handshake_may_come_a_byte_at_a_time_and_with_what_follows_it(self):
        client = self.request()
        for byte in head(self.server.target):
            client.send(bytes([byte]))
        self.assertIn(" 101 ", client.response()[0])
        self.assertEqual("done", client.click("undo")["status"])
        client = self.connect(client_frame(TEXT, "first"), client_frame(PING, b"second"), GOODBYE)
        self.assertEqual("first", json.loads(client.receive())["message"])
        self.assert_fails(client, 1000, (PONG, b"second"))

    def test_the_layer_alone_accepts_any_host_origin_and_path(self):
        class Silent(pebble_ws.WebSocketHandler):
            pass

        with running(Silent) as server, mock.patch.object(server, "target", "/any?path"):
            self.connect(server=server, Host="example.com", Origin="http://example.com").close()


# ---- Frames (5) ---------------------------------------------------------------------------------


def messages(*pieces):
    """Return what arrives in these pieces: (opcode, payload), fragments joined."""
    rest, result = iter(pieces), []
    with contextlib.suppress(RuntimeError):  # of a generator in which there is no next piece
        for opcode, payload, _ in pebble_ws.read_messages(rest.__next__, 1 << 20):
            result.append((opcode, payload))
    return result


class Frames(unittest.TestCase):
    def test_the_examples_of_the_rfc(self):  # (5.7)
        masked = bytes.fromhex("818537fa213d7f9f4d5158")
        self.assertEqual(masked, client_frame(TEXT, "Hello"))
        for why, opcode, payload, data in (
            ("a text", TEXT, b"Hello", "810548656c6c6f"),
            ("a Ping", PING, b"Hello", "890548656c6c6f"),
            ("256 bytes", BINARY, b"x" * 256, "827e0100" + "78" * 256),
            ("64 KiB", BINARY, b"x" * 65536, "827f0000000000010000" + "78" * 65536),
        ):
            with self.subTest(why):
                self.assertEqual(bytes.fromhex(data), pebble_ws.frame(opcode, payload))
        pong = bytes.fromhex("8a8537fa213d7f9f4d5158")
        self.assertEqual([(TEXT, "Hello"), (PONG, b"Hello")], messages(masked + pong))
        fragments = client_frame(TEXT, "Hel", fin=False) + client_frame(CONTINUATION, "lo")
        self.assertEqual([(TEXT, "Hello")], messages(fragments))

    def test_a_length_takes_the_fewest_bytes(self):
        for size, start in ((0, "8200"), (125, "827d"), (126, "827e007e"), (65_535, "827effff")):
            with self.subTest(size):
                payload = bytes(size)
                data = bytes.fromhex(start) + payload
                self.assertEqual(data, pebble_ws.frame(BINARY, payload))
                self.assertEqual([(BINARY, payload)], messages(client_frame(BINARY, payload)))

    def test_unmasking_is_its_own_inverse_whatever_the_size(self):
        rng = random.Random(6455)
        for size in [*range(20), 1023, 4096, 65_535, 65_536]:
            with self.subTest(size):
                payload, key = rng.randbytes(size), rng.randbytes(4)
                expected = bytes(a ^ b for a, b in zip(payload, itertools.cycle(key)))
                self.assertEqual(expected, pebble_ws.unmask(payload, key))

    def test_frames_may_be_cut_anywhere(self):
        sent = [
            (TEXT, "één"),
            (PING, b"?"),
            (BINARY, bytes(range(130))),
            (PONG, b""),
            (TEXT, ""),
            (BINARY, bytes(65_536)),
            (PING, b"!"),
        ]
        data = b"".join(client_frame(*frame) for frame in sent)
        data += client_frame(TEXT, "a", fin=False) + client_frame(PING, b"between")
        data += client_frame(CONTINUATION, b"", fin=False) + client_frame(CONTINUATION, "b" * 126)
        expected = [*sent, (PING, b"between"), (TEXT, "a" + "b" * 126)]
        self.assertEqual(expected, messages(data))
        self.assertEqual(expected, messages(*(data[at : at + 1] for at in range(len(data)))))
        for at in [*range(1, 200), *range(len(data) - 200, len(data))]:
            self.assertEqual(expected, messages(data[:at], data[at:]), f"cut at {at}")


# ---- Messages and close (5.4, 5.5, 7) -----------------------------------------------------------


class Echo(pebble_ws.WebSocketHandler):
    max_message_size = 16 << 20

    def message_received(self, message):
        self.send(message)


PROTOCOL_ERRORS = [  # why, the close code, and what must not be sent (5.1 to 5.5)
    *((f"RSV {bit:#x}", 1002, client_frame(bit | TEXT, "x")) for bit in (0x40, 0x20, 0x10)),
    *((f"opcode {code}", 1002, client_frame(code)) for code in (*range(3, 8), *range(11, 16))),
    ("no mask", 1002, b"\x81\x05Hello"),
    ("a Ping without a mask", 1002, b"\x89\x00"),
    ("a Close without a mask", 1002, b"\x88\x02\x03\xe8"),
    ("a Ping of 126 bytes", 1002, client_frame(PING, bytes(126))),
    ("a Close of 126 bytes", 1002, close_of(1000, b"x" * 124)),
    ("a Pong of 64 KiB", 1002, client_frame(PONG, bytes(65_536))[:2]),
    ("a fragmented Ping", 1002, client_frame(PING, fin=False)),
    ("a fragmented Close", 1002, client_frame(CLOSE, fin=False)),
    ("a continuation of nothing", 1002, client_frame(CONTINUATION, "x")),
    ("one that is not final", 1002, client_frame(CONTINUATION, "x", fin=False)),
    ("a text inside a message", 1002, client_frame(TEXT, "x", fin=False) + client_frame(TEXT)),
    ("a binary inside a text", 1002, client_frame(TEXT, fin=False) + client_frame(BINARY)),
    ("a continuation too many", 1002, client_frame(PONG) + client_frame(CONTINUATION)),
    ("125 bytes, in 16 bits", 1002, b"\x81\xfe\x00\x7d" + MASKING_KEY),
    ("65,535 bytes, in 64 bits", 1002, b"\x81\xff\0\0\0\0\0\0\xff\xff" + MASKING_KEY),
    ("a length of 64 bits", 1002, b"\x81\xff\x80\0\0\0\0\0\0\0" + MASKING_KEY),
    ("a Close of 1 byte", 1002, client_frame(CLOSE, b"\x03")),
    *(
        (f"a Close with {code}", 1002, close_of(code))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    ),
    ("a reason that is not UTF-8", 1007, close_of(1000, b"\xff")),
    ("a reason cut in a letter", 1007, close_of(1000, "é".encode()[:1])),
    ("too long by 63 bits", 1009, b"\x81\xff\x7f" + b"\xff" * 7 + MASKING_KEY),
]
NOT_UTF8 = (  # up to the first byte that cannot be right (RFC 3629)
    "80",
    "bf",
    "c0",
    "c1",
    "f5",
    "ff",
    "fe",
    "c328",
    "c3c3",
    "e228",
    "e28228",
    "f09f9828",
    "e080",
    "e09f",
    "eda0",
    "edbf",
    "f080",
    "f08f",
    "f490",
    "f4bf",
    "ceba80",
    "cebae1bdb9cf83f490",
)


class MessagesAndClose(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.entered = contextlib.ExitStack()
        cls.addClassCleanup(cls.entered.close)
        cls.server = cls.entered.enter_context(running(Echo))

    def test_a_message_comes_back_as_it_was_sent(self):
        for message in ("", "x", "κόσμε 𐍈\0", "x" * 125, "x" * 126, b"", bytes(range(256)) * 300):
            opcode = TEXT if isinstance(message, str) else BINARY
            self.assertEqual(message, self.connect(client_frame(opcode, message)).receive())

    def test_a_byte_at_a_time(self):
        client = self.connect()
        data = (
            client_frame(TEXT, "é", fin=False)
            + client_frame(PING, b"?")
            + client_frame(CONTINUATION, "x" * 130)
            + GOODBYE
        )
        for byte in data:
            client.send(bytes([byte]))
        self.assert_fails(client, 1000, (PONG, b"?"), "é" + "x" * 130)

    def test_fragments_with_pings_between_them(self):
        text = "κόσμε €𐍈"
        data = text.encode()
        fragments = [client_frame(TEXT, data[:1], fin=False)]
        for byte in data[1:]:
            fragments += (
                client_frame(PING, bytes([byte])),
                client_frame(CONTINUATION, bytes([byte]), fin=False),
            )
        client = self.connect(*fragments, client_frame(CONTINUATION), GOODBYE)
        self.assert_fails(client, 1000, *((PONG, bytes([byte])) for byte in data[1:]), text)

    def test_a_ping_between_fragments_is_answered_at_once(self):
        client = self.connect(client_frame(BINARY, b"a", fin=False), client_frame(PING, b"now"))
        self.assertEqual((PONG, b"now"), client.receive())
        client.send(client_frame(CONTINUATION, b"b"))
        self.assertEqual(b"ab", client.receive())

    def test_a_ping_comes_back_to_the_byte_and_pongs_are_ignored(self):
        payloads = [b"", b"\xff\x00\n", bytes(range(125)), *(b"%d" % n for n in range(10))]
        pings = [client_frame(PONG, payload) + client_frame(PING, payload) for payload in payloads]
        client = self.connect(*pings, GOODBYE)
        self.assert_fails(client, 1000, *((PONG, payload) for payload in payloads))

    def test_a_protocol_error_fails_the_connection_after_what_came_before(self):
        for why, code, data in PROTOCOL_ERRORS:
            with self.subTest(why):
                before, after = client_frame(TEXT, "before"), client_frame(TEXT, "after")
                client = self.connect(before, data, after)
                self.assert_fails(client, code, "before")

    def test_text_fails_at_the_first_byte_that_cannot_be_right(self):
        good = "κόσμε".encode()
        for bad in map(bytes.fromhex, NOT_UTF8):
            half = client_frame(TEXT, good + bad[:1], fin=False)
            for why, data in (
                ("a frame, in part", client_frame(TEXT, good + bad + bytes(1000))[:-1000]),
                ("a fragment", client_frame(TEXT, good + bad, fin=False)),
                ("two, in part", half + client_frame(CONTINUATION, bad[1:] + b"x", fin=False)[:-1]),
                ("a message", client_frame(TEXT, good + bad)),
            ):
                with self.subTest(why, bad=bad.hex()):
                    self.assert_fails(self.connect(data), 1007)

    def test_text_that_ends_in_a_letter_fails(self):
        for data in (
            client_frame(TEXT, "€".encode()[:2]),
            client_frame(TEXT, "€".encode()[:2], fin=False) + client_frame(CONTINUATION),
        ):
            self.assert_fails(self.connect(data), 1007)

    def test_letters_may_be_split_over_fragments_and_segments(self):
        text = "é€𐍈\U0010ffff\ud7ff\ue000"
        data = text.encode()
        client = self.connect()
        for at in range(len(data)):
            client.send(client_frame(TEXT, data[:at], fin=False))
            client.send(client_frame(CONTINUATION, data[at:]))
            whole = client_frame(TEXT, data)
            client.send(whole[: 6 + at])
            client.send(whole[6 + at :])
            self.assertEqual([text, text], [client.receive(), client.receive()])

    def test_a_close_is_answered_with_its_code_and_tcp_is_dropped(self):
        for why, payload, code in (
            ("no body", b"", None),
            ("a code", b"\x03\xe8", 1000),
            ("a reason of 123 bytes", b"\x03\xe9" + "é".encode() * 61 + b"x", 1001),
            *(
                (f"{code}", code.to_bytes(2, "big"), code)
                for code in (1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999)
            ),
        ):
            with self.subTest(why):
                client = self.connect(client_frame(TEXT, "x"), client_frame(CLOSE, payload))
                self.assert_fails(client, code, "x")

    def test_nothing_after_a_close_is_read(self):
        client = self.connect(GOODBYE, client_frame(TEXT, "x"), client_frame(PING), b"\xff" * 100)
        self.assert_fails(client, 1000)

    def test_a_message_that_is_too_long_is_closed_with_1009(self):
        class Small(Echo):
            max_message_size = 1000

        with running(Small) as server:
            for why, data in (
                ("a frame, at its head", client_frame(BINARY, bytes(1001))[:8]),
                ("64 bits of length", client_frame(BINARY, bytes(65_536))[:14]),
                ("fragments", client_frame(TEXT, "x" * 1000, fin=False) + client_frame(0, "x")),
            ):
                with self.subTest(why):
                    whole = client_frame(TEXT, "x" * 1000)
                    client = self.connect(whole, data, server=server)
                    self.assert_fails(client, 1009, "x" * 1000)
                    client.close()
        self.assertEqual(1 << 20, pebble_ws.WebSocketHandler.max_message_size)

    def test_16_mib_in_one_frame_and_in_frames_of_64_bytes_take_time_in_proportion(self):
        def seconds(opcode, size, piece):
            middle = client_frame(CONTINUATION, b"x" * piece, fin=False)
            data = client_frame(opcode, b"x" * piece, fin=piece == size)
            if piece < size:
                data += middle * (size // piece - 2) + client_frame(CONTINUATION, b"x" * piece)
            client = self.connect()
            start = time.process_time()  # of client and server, whatever else runs here
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            message = client.receive()
            sender.join()
            self.assertTrue(message == (b"x" if opcode == BINARY else "x") * size)
            client.close()
            return time.process_time() - start

        for opcode, piece in ((TEXT, 0), (BINARY, 0), (TEXT, 64), (BINARY, 64)):
            with self.subTest(opcode=opcode, piece=piece or "whole"):
                small, large = (seconds(opcode, mib << 20, piece or mib << 20) for mib in (2, 16))
                self.assertLess(large, 24 * small, "8 is in proportion, 64 is the square")

    def test_answers_to_what_came_together_leave_together(self):
        sent = []

        def sendall(self, data, plain=socket.socket.sendall):
            sent.append(data)
            plain(self, data)

        client = self.connect()
        data = b"".join(client_frame(TEXT, str(n)) for n in range(100))
        with mock.patch.object(socket.socket, "sendall", sendall):
            client.send(data)
            self.assertEqual([str(n) for n in range(100)], [client.receive() for _ in range(100)])
        self.assertLess(len(sent), 20)

    def test_an_answer_does_not_wait_for_the_rest_of_another_message(self):
        client = self.connect()
        whole = client_frame(TEXT, "x" * 200)
        for at in (1, 3, 7, 8, 100):
            client.send(client_frame(TEXT, "first"), client_frame(PING, b"second"), whole[:at])
            self.assertEqual(["first", (PONG, b"second")], [client.receive(), client.receive()])
            client.send(whole[at:])
            self.assertEqual("x" * 200, client.receive())

    def test_send_may_be_called_from_any_thread(self):
        class Threads(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                with concurrent.futures.ThreadPoolExecutor(8) as pool:
                    list(pool.map(self.send, [str(n) * 1000 for n in range(200)]))

        with running(Threads) as server:
            client = self.connect(client_frame(TEXT, "go"), server=server)
            received = [client.receive() for _ in range(200)]
            client.close()
        self.assertEqual(sorted(str(n) * 1000 for n in range(200)), sorted(received))

    def test_a_peer_that_does_not_read_is_dropped_after_a_time(self):
        class Impatient(Echo):
            send_timeout = struct.pack("ll", 0, 200_000)

        with running(Impatient) as server:
            client = self.connect(server=server)
            with self.assertRaises(ConnectionError):
                while True:
                    client.send(client_frame(BINARY, bytes(1 << 20)))
            client.close()

    def test_close_starts_the_closing_handshake(self):
        outcomes = queue.Queue()

        class Closing(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                for code in (1006, 999, 5000, -1, 70_000, 1000):
                    try:
                        self.close(code, "x" * 124 if code == 1000 else "")
                    except ValueError as error:
                        outcomes.put(error)
                self.close(3000, "é" * 61 + "x")
                try:
                    self.send("x")
                except ConnectionError as error:
                    outcomes.put(error)

        with running(Closing) as server:
            client = self.connect(client_frame(TEXT, "x"), server=server)
            self.assertEqual((CLOSE, 3000), client.receive())
            client.send(client_frame(TEXT, "nobody receives it"), client_frame(PING), GOODBYE)
            self.assertIsNone(client.receive())
            client.close()
            with mock.patch.object(pebble_ws, "CLOSE_TIMEOUT", 0.1):
                client = self.connect(client_frame(TEXT, "x"), server=server)
                self.assert_fails(client, 3000)  # without an answer, it ends all the same
                client.close()
        kinds = [ValueError] * 6 + [ConnectionError]
        self.assertEqual(2 * kinds, [type(outcome) for outcome in outcomes.queue])

    def test_an_error_in_a_subclass_is_closed_with_1011_or_500_and_shown(self):
        class Wrong(pebble_ws.WebSocketHandler):
            def check_handshake(self):
                if self.target == "/wrong":
                    raise ZeroDivisionError("at first")

            def message_received(self, message):
                raise ZeroDivisionError("later")

        with contextlib.redirect_stderr(io.StringIO()) as errors, running(Wrong) as server:
            client = self.connect(client_frame(TEXT, "x"), server=server)
            self.assert_fails(client, 1011)
            client.close()
            client = self.request(head("/wrong"), server=server)
            self.assertIn(" 500 ", client.response()[0])
            client.close()
            for shown in ("ZeroDivisionError: at first", "ZeroDivisionError: later"):
                wait_until(lambda text=shown: text in errors.getvalue())


# ---- Scripts ------------------------------------------------------------------------------------


def command_line(bundle, message):
    """Return the arguments that sketchtool must be called with."""
    scripts = {command["script"]: command["identifier"] for command in manifest()["commands"]}
    return ["run", bundle, scripts[pebble_ws.SCRIPTS[message]], "--without-activating"]


class Scripts(BridgeTestCase):
    def test_each_message_runs_its_command_with_exactly_these_arguments(self):
        client = self.connect()
        for message in pebble_ws.SCRIPTS:
            self.assertEqual("done", client.click(message)["status"])
        expected = [command_line(self.bundle, message) for message in pebble_ws.SCRIPTS]
        self.assertEqual(expected, self.sketch.calls())

    def test_the_last_line_or_else_the_exit_status_tells_how_it_went(self):
        client = self.connect()
        for why, mood, status, output in (
            ("OK", "echo OK Rotated.", "done", "Rotated."),
            ("OK alone", "echo OK", "done", ""),
            ("ERROR", "echo ERROR Select two.", "failed", "Select two."),
            ("the last line", "echo ERROR no; echo OK yes; echo; echo '  '", "done", "yes"),
            ("OK decides, not 1", "echo OK; exit 1", "done", ""),
            ("ERROR decides, not 0", "echo OK; echo ERROR no", "failed", "no"),
            ("of stderr too", "echo OK; echo ERROR no >&2", "failed", "no"),
            ("the end of a line is CRLF", "printf 'OK yes\\r\\n'", "done", "yes"),
            ("no such word", "echo OKAY; echo okay", "done", "OKAY\nokay"),
            ("silent", "", "done", ""),
            ("1, with a text", "echo no Sketch; exit 1", "failed", "no Sketch"),
            ("HTML", "echo 'OK <b>&amp;</b>'", "done", "<b>&amp;</b>"),
            ("not UTF-8", "printf 'OK \\377\\376.'", "done", "\ufffd\ufffd."),
            ("10 MB, OK", "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo OK", "done", ""),
            ("10 MB", "head -c 10000000 /dev/zero | tr '\\0' x", "done", "x" * 4000),
            ("a long line", f"echo OK {'x' * 5000}", "done", "x" * 4000),
            ("a child stays", "sleep 4 & echo OK", "done", ""),
            ("a child holds only stderr", "sleep 4 >/dev/null & echo OK", "done", ""),
        ):
            with self.subTest(why):
                self.sketch.mood(mood)
                expected = {"message": "undo", "status": status, "output": output}
                self.assertEqual(expected, client.click("undo"))
        for mood in ("exit 1", "kill -9 $$", "kill -TERM $$"):
            with self.subTest(mood):
                self.sketch.mood(mood)
                answer = client.click("undo")
                self.assertEqual("failed", answer["status"])
                self.assertTrue(answer["output"])

    def test_it_inherits_nothing_and_leads_its_own_process_group(self):
        self.sketch.mood("cat; echo $(ls /dev/fd) $(kill -0 -$$ && echo leads)")
        self.assertEqual("0 1 2 3 leads", self.connect().click("undo")["output"])  # 3 is of ls

    @unittest.skipUnless(os.path.isdir("/proc/self"), "the system does not say what is blocked")
    def test_it_has_the_signals_of_a_shell(self):
        self.sketch.mood("grep -E 'Sig(Blk|Ign)' /proc/self/status")
        blocked, ignored = self.connect().click("undo")["output"].split()[1::2]
        self.assertEqual(0, int(blocked, 16))
        self.assertEqual(0, int(ignored, 16) & 0x7FFF_FFFF)  # above, the C library's own

    def test_a_server_that_may_have_no_children_answers_all_the_same(self):
        ignoring = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
        server = self.started(
            self.addCleanup, self.bundle, "--sketch", self.sketch.app, setup=ignoring
        )
        client = self.connect(server=server)
        for _ in range(2):
            self.assertEqual("failed", client.click("undo")["status"])

    def test_a_sketch_that_goes_and_comes_back(self):
        client = self.connect()
        for why, go, come in (
            (
                "moved",
                lambda: os.rename(self.sketch.tool, self.sketch.tool + "x"),
                lambda: os.rename(self.sketch.tool + "x", self.sketch.tool),
            ),
            (
                "not executable",
                lambda: os.chmod(self.sketch.tool, 0o644),
                lambda: os.chmod(self.sketch.tool, 0o755),
            ),
        ):
            with self.subTest(why):
                go()
                answer = client.click("undo")
                come()
                self.assertEqual("failed", answer["status"])
                self.assertIn("Sketch", answer["output"])
                self.assertEqual("done", client.click("undo")["status"])

    def test_a_program_that_the_system_cannot_run_is_a_failure_that_names_it(self):
        with open(self.sketch.tool, "r+b") as file:
            original = file.read()
            file.seek(0)
            file.write(b"\0\0\0")
        answer = self.connect().click("undo")
        with open(self.sketch.tool, "wb") as file:
            file.write(original)
        self.assertEqual("failed", answer["status"])
        self.assertIn(self.sketch.tool, answer["output"])

    def test_what_is_missing_fails_the_click_and_can_be_mended_without_a_restart(self):
        folder = temporary_folder(self.addCleanup)
        bundle = installed(folder)
        scripts, good = f"{bundle}/Contents/Sketch", f"{folder}/good"
        shutil.copytree(scripts, good)
        script, broken = f"{scripts}/undo.cocoascript", f"{scripts}/manifest.json"
        others = manifest()["commands"]
        undo = others.pop([each["script"] for each in others].index("undo.cocoascript"))
        nameless = {key: value for key, value in undo.items() if key != "identifier"}
        server = self.started(self.addCleanup, bundle, "--sketch", self.sketch.app)
        client = self.connect(server=server)
        for why, named, content in (
            ("no command", script, {"commands": others}),
            ("no identifier", broken, {"commands": [*others, nameless]}),
            *(
                (f"the manifest is {content}", broken, content)
                for content in ([], 1, {}, {"commands": 1}, {"commands": [1]}, {"commands": [{}]})
            ),
            *(
                (f"the manifest is {content[:9]}", broken, content)
                for content in (b"", b"nonsense", b"\xff", b"[" * 100_000)
            ),
            ("the script is gone", script, script),
            ("the manifest is gone", broken, broken),
        ):
            with self.subTest(why):
                if isinstance(content, str):
                    os.remove(content)
                else:
                    write(broken, content if isinstance(content, bytes) else json.dumps(content))
                answer = client.click("undo")
                self.assertEqual("failed", answer["status"])
                self.assertIn(named, answer["output"])
                shutil.copytree(good, scripts, dirs_exist_ok=True)
                self.assertEqual("done", client.click("undo")["status"])

    def test_what_is_missing_is_told_at_the_start(self):
        bundle = installed(temporary_folder(self.addCleanup))
        os.remove(f"{bundle}/Contents/Sketch/undo.cocoascript")
        others = {"commands": manifest()["commands"][:3]}
        write(f"{bundle}/Contents/Sketch/manifest.json", json.dumps(others))
        server = self.started(self.addCleanup, bundle, "--sketch", self.sketch.app)
        missing = [
            (message, script)
            for message, script in pebble_ws.SCRIPTS.items()
            if script not in (command["script"] for command in others["commands"])
        ]
        self.assertGreaterEqual(len(missing), 3)
        self.assertEqual(len(missing), len(server.first_lines) - 1)
        for line, (message, script) in zip(server.first_lines, missing):
            self.assertRegex(line, rf" ! {message}: .*/{re.escape(script)}\b")

    def test_a_path_with_every_character_that_a_shell_minds(self):
        folder = temporary_folder(self.addCleanup)
        folder += "/a 'b' \"c\" $HOME `d`;e&f|g>h<i*j?k(l)m#n!~[o]{p}\\q\nr\ts"
        os.mkdir(folder)
        bundle, sketch = installed(folder), StandInSketch(folder)
        self.addCleanup(sketch.close)
        server = self.started(self.addCleanup, bundle, "--sketch", sketch.app)
        self.assertEqual("done", self.connect(server=server).click("rotate")["status"])
        self.assertEqual([command_line(bundle, "rotate")], sketch.calls())

    def test_an_absolute_path_may_name_a_script_of_any_other_bundle(self):
        inner = f"{self.folder}/Outer.sketchplugin/x/Inner ä.sketchplugin"
        os.makedirs(f"{inner}/Contents/Sketch/sub")
        script = f"{inner}/Contents/Sketch/sub/flip.js"
        outside = f"{self.folder}/outside.js"
        write(script, "")
        write(outside, "")
        commands = [{"script": "x"}, {"script": "./sub/flip.js", "identifier": "flip"}]
        write(f"{inner}/Contents/Sketch/manifest.json", json.dumps({"commands": commands}))
        scripts = {"flip": script, "outside": outside, "up": "../../../outside.js"}
        server = self.started(
            self.addCleanup, self.bundle, "--sketch", self.sketch.app, setup=f"SCRIPTS = {scripts}"
        )
        client = self.connect(server=server)
        self.assertEqual("done", client.click("flip")["status"])
        self.assertEqual([["run", inner, "flip", "--without-activating"]], self.sketch.calls())
        for message in ("outside", "up"):
            answer = client.click(message)
            self.assertEqual("failed", answer["status"])
            self.assertIn(outside, answer["output"])
            self.assertIn(f"! {message}: ", "\n".join(server.first_lines))


class ScriptsThatHang(BridgeTestCase):
    setup = "SCRIPT_TIMEOUT = 0.5"

    def test_past_the_time_limit_the_whole_process_group_is_killed(self):
        os.mkfifo(f"{self.sketch.home}/alive")
        hanging = "echo x >&9; exec 9>&-; sleep 30"
        for why, mood in (
            ("a hanging child", f"{{ {hanging}; }} & sleep 30"),
            ("silent, minds no signal", f"exec >&- 2>&-; trap '' TERM INT HUP; {hanging}"),
            ("prints without end", "echo x >&9; exec 9>&-; yes"),
            (
                "in another process group",
                f"exec {sys.executable} -c 'import os, time; os.write(9, "
                'b"x\\n"); os.close(9); os.close(8); os.setpgid(0, os.getpgid(os.getppid())); '
                "time.sleep(30)'",
            ),
        ):
            with self.subTest(why), self.noticed_only_as() as witness:
                self.sketch.mood(f'exec 8>"$here/alive" 9>&8; {mood}')
                start = time.monotonic()
                witness.send(client_frame(TEXT, "rotate"))
                with open(f"{self.sketch.home}/alive") as alive:
                    self.assertEqual("x\n", alive.read())  # ends when all are gone that could write
                self.assertLess(time.monotonic() - start, 10)
                answer = json.loads(witness.receive())
                self.assertEqual("failed", answer["status"])
                self.assertIn("killed", answer["output"])
                self.sketch.reset()
            self.assertEqual(1, len(self.server.lines("> failed: .*killed")))


# ---- The bridge ---------------------------------------------------------------------------------


ATTACKS = (
    "",
    "Rotate",
    "rotate ",
    " rotate",
    "rotate\0",
    "rotate\n",
    "rotate.cocoascript",
    "rotate.undo",
    "../rotate.cocoascript",
    "/bin/sh",
    "file:///bin/sh",
    "C:\\x",
    "; touch x",
    "$(touch x)",
    "`id`",
    "| tee x",
    "--port 1",
    "{}",
    '{"message": "rotate"}',
    "__class__",
    "SCRIPTS",
    "%s%n",
    "\x1b[2J\x1b]0;x\x07",
    "\x9b2J",
    "\u2028\u2029\x85\v\f",
    "\u202egnitsil",
    "\ufeff\u200b",
    "20:14:05 #1 < rotate",
    "x\r\n20:14:05 #1 > done: Rotated.",
    "\r20:14:05 #1 = open",
    "\x7f",
    "\ud7ff\U0010ffff",
    "x" * 100_000,
    "\n" * 5000,
    "<script>alert(1)</script>",
    "''\"\"",
    "{0}",
)


class TheBridge(BridgeTestCase):
    def test_the_session_file_is_one_line_for_its_user_alone(self):
        session = read(self.server.session_file)
        line = r'window\.pebbleSession = \{"port": (\d+), "token": "([\w-]{22,})", "dryRun": false\};\n'
        self.assertRegex(session, rf"\A{line}\Z")
        self.assertEqual(self.server.port, int(re.match(line, session)[1]))
        self.assertEqual(0o600, stat.S_IMODE(os.stat(self.server.session_file).st_mode))

    def test_the_session_file_is_written_in_one_step_with_a_new_token_each_time(self):
        bundle = installed(temporary_folder(self.addCleanup))
        path = f"{bundle}/Contents/Resources/session.js"
        with open(path, "w+") as old:
            old.write("old")
            old.flush()
            first = self.started(self.addCleanup, bundle, "--dry-run")
            old.seek(0)
            self.assertEqual("old", old.read(), "who reads the old one reads all of it")
        self.assertEqual(
            [],
            [
                name
                for name in os.listdir(os.path.dirname(path))
                if "session" in name and name != "session.js"
            ],
        )
        self.assertEqual(0o600, stat.S_IMODE(os.stat(path).st_mode))
        second = self.started(self.addCleanup, bundle, "--dry-run")
        self.assertEqual(3, len({first.token, second.token, self.server.token}))
        first.stop()
        self.assertEqual(second.session, read(path), "it is another server's now")
        second.stop()
        self.assertFalse(os.path.exists(path))

    def test_it_listens_on_both_loopback_addresses_and_on_no_other(self):
        self.assertEqual("done", self.connect().click("undo")["status"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            with contextlib.suppress(OSError):
                probe.connect(("192.0.2.1", 9))  # sends nothing
            own = probe.getsockname()[0]
        for host in {"127.0.0.2", own} - {"127.0.0.1", "0.0.0.0"}:
            with self.assertRaises(OSError, msg=host):
                socket.create_connection((host, self.server.port), timeout=1).close()
        try:
            client = self.connect(host="::1", Host=f"[::1]:{self.server.port}")
        except OSError as error:
            self.skipTest(f"this machine has no ::1: {error}")
        self.assertEqual("done", client.click("undo")["status"])

    def test_the_log_has_a_line_for_all_traffic(self):
        client = self.connect(Origin="file://")
        client.click("rotate")
        client.click("nonsense")
        client.send(close_of(1001))
        self.assert_fails(client, 1001)
        self.request(head(self.server.target, Origin="http://example.com")).file.read()
        self.server.wait_for("refused")
        start = int(re.search(r"#(\d+)", self.server.lines()[0])[1])
        for line, expected in zip(
            self.server.lines(),
            (
                f"#{start} = open from file://",
                f"#{start} < rotate",
                rf"#{start} > done: Done\. \(\d+ ms\)",
                f"#{start} < nonsense",
                f"#{start} > unknown: .*",
                f"#{start} = closed 1001",
                rf"#{start + 1} ! refused 403: Origin http://example\.com",
            ),
        ):
            self.assertRegex(line, rf"^\d\d:\d\d:\d\d {expected}$")
        self.assertEqual(7, len(self.server.lines()))

    def test_an_answer_goes_to_the_dialogue_that_asked_and_to_no_other(self):
        self.sketch.mood(HOLD)
        dialogues = [self.connect() for _ in range(3)]
        clicks = [(0, "rotate"), (1, "undo"), (0, "set-time"), (2, "duplicate"), (1, "rotate")]
        for dialogue, message in clicks:
            dialogues[dialogue].send(client_frame(TEXT, message), client_frame(PING))
            self.assertEqual((PONG, b""), dialogues[dialogue].receive())  # it stands in line
        for number, (dialogue, message) in enumerate(clicks):
            self.sketch.say(f"OK {number}")
            expected = {"message": message, "status": "done", "output": str(number)}
            self.assertEqual(expected, json.loads(dialogues[dialogue].receive()))
        called = [command_line(self.bundle, message) for _, message in clicks]
        self.assertEqual(called, self.sketch.calls(), "in the order of the clicks")
        for client in dialogues:
            client.send(GOODBYE)
            self.assert_fails(client, 1000)  # and nothing else had come

    def test_one_runs_16_wait_and_the_next_is_answered_busy_at_once(self):
        self.sketch.mood(HOLD)
        client, other = self.connect(), self.connect()
        client.send(*(client_frame(TEXT, "undo") for _ in range(17)))
        self.server.wait_for(" < ", 17)
        self.assertEqual("busy", other.click("rotate")["status"])
        self.assertEqual("busy", other.click("rotate")["status"])
        self.assertEqual("unknown", other.click("nonsense")["status"])
        self.assertLessEqual(len(self.sketch.calls()), 1)
        for number in range(17):
            self.sketch.say(f"OK {number}")
            self.assertEqual(str(number), json.loads(client.receive())["output"])
        self.sketch.reset()
        self.assertEqual("done", other.click("rotate")["status"])

    def test_pings_and_closes_are_answered_while_a_script_runs(self):
        self.sketch.mood(HOLD)
        client, other = self.connect(), self.connect()
        client.send(client_frame(TEXT, "undo"), client_frame(PING, b"now"))
        other.send(client_frame(PING, b"too"), GOODBYE)
        self.assertEqual((PONG, b"now"), client.receive())
        self.assert_fails(other, 1000, (PONG, b"too"))
        self.sketch.say("OK")
        self.assertEqual("done", json.loads(client.receive())["status"])

    def test_a_script_whose_dialogue_has_gone_still_runs(self):
        self.sketch.mood(HOLD)
        self.connect(client_frame(TEXT, "undo"), client_frame(TEXT, "rotate"), GOODBYE).rest()
        gone = self.connect(client_frame(TEXT, "set-time"))
        self.server.wait_for("< set-time")
        gone.close(reset=True)
        for number in range(1, 4):
            self.sketch.wait_for_calls(number)
            self.sketch.say("OK Nobody hears it.")
            self.server.wait_for("> done: Nobody hears it", number)

    def test_the_parts_of_an_answer_are_cut(self):
        answer = self.connect().click("x" * 1000)
        self.assertEqual({"message", "status", "output"}, set(answer))
        self.assertEqual("x" * 200, answer["message"])

    def test_messages_that_attack_run_nothing_and_are_one_line_of_the_log(self):
        client = self.connect()
        self.server.wait_for("= open")
        for attack in (*ATTACKS, self.server.token, f"x{self.server.token}x"):
            with self.subTest(attack[:50]):
                self.server.mark()
                client.send(client_frame(TEXT, attack))
                text = client.receive()
                answer = json.loads(text)
                self.assertEqual("unknown", answer["status"])
                self.assertNotIn(self.server.token, text)
                if self.server.token not in attack:
                    self.assertEqual(attack[:200], answer["message"])
                self.server.wait_for(" > unknown: ")
                self.assertEqual(["<", ">"], [line.split(" ")[2] for line in self.server.lines()])
                self.assertLess(max(map(len, self.server.lines())), 2500)
        self.assertEqual([], self.sketch.calls())

    def test_the_token_is_neither_logged_nor_answered(self):
        token = self.server.token
        self.sketch.mood(f"echo OK The token is {token}.")
        client = self.connect()
        self.assertNotIn(token, json.dumps(client.click("undo")))
        self.sketch.mood(f"head -c 5000 /dev/zero | tr '\\0' x; echo; echo {token}; exit 1")
        self.assertNotIn(token, json.dumps(client.click("undo")))
        self.request(head(f"/?token=x{token}")).file.read()
        for header in ("Host", "Origin"):
            self.request(head(self.server.target, **{header: token})).file.read()
        self.server.wait_for("refused", 3)  # that it is not there is checked after each test

    def test_what_a_script_prints_is_escaped_and_shortened_in_the_log(self):
        self.sketch.mood(r"printf 'OK \033[2J\033]0;x\007\r\302\205\342\200\256 20:14:05 #1 < x'")
        self.assertIn("\x1b[2J", self.connect().click("undo")["output"])
        self.server.wait_for(re.escape(r"> done: \x1b[2J"))
        self.sketch.mood(f"printf '%s\\n' {'x ' * 3000}; exit 1")
        self.connect().click("undo")
        self.assertLess(len(self.server.wait_for("> failed: ")[0]), 500)

    def test_only_text_is_taken(self):
        for why, data in (
            ("binary", client_frame(BINARY, "undo")),
            ("fragments", client_frame(BINARY, "un", fin=False) + client_frame(0, "do")),
        ):
            with self.subTest(why), self.noticed_only_as("! closed 1003: "):
                self.sketch.reset()
                client = self.connect(client_frame(TEXT, "nonsense"), data)
                self.assertIn("nonsense", client.receive())
                self.assert_fails(client, 1003)
                self.assertEqual([], self.sketch.calls())

    def test_a_message_of_more_than_1_mib_is_closed_with_1009(self):
        with self.noticed_only_as("! closed 1009: "):
            client = self.connect(client_frame(TEXT, "x" * (1 << 20)))
            self.assertEqual("x" * 200, json.loads(client.receive())["message"])
            client.send(client_frame(TEXT, "x" * ((1 << 20) + 1))[:14])
            self.assert_fails(client, 1009)


class Stopping(BridgeTestCase):
    def own_server(self, stop_timeout=1):
        return self.started(
            self.addCleanup,
            self.bundle,
            "--sketch",
            self.sketch.app,
            setup=f"STOP_TIMEOUT = {stop_timeout}; CLOSE_TIMEOUT = 0.3",
        )

    def test_a_signal_closes_every_dialogue_with_1001_and_ends_with_0(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                server = self.own_server()
                clients = [self.connect(server=server) for _ in range(3)]
                self.assertTrue(os.path.exists(server.session_file))
                server.process.send_signal(number)
                server.terminate(number)  # twice is no harm
                for client in clients:
                    self.assertEqual((CLOSE, 1001), client.receive())
                    client.send(close_of(1001))
                    self.assertIsNone(client.receive())
                server.stop()
                self.assertFalse(os.path.exists(server.session_file))
                self.assertEqual(3, len(server.lines("= closed 1001")))
                with self.assertRaises(OSError):
                    self.request(server=server)

    def test_the_script_that_runs_may_end_and_the_clicks_that_wait_are_dropped(self):
        self.sketch.mood(HOLD)
        server = self.own_server()
        clicks = client_frame(TEXT, "undo") + client_frame(TEXT, "rotate")
        client = self.connect(clicks, server=server)
        self.sketch.wait_for_calls(1)
        server.terminate(signal.SIGINT)
        self.assertEqual((CLOSE, 1001), client.receive())  # while the script runs
        self.sketch.say("OK Late.")
        server.stop()
        self.assertEqual(1, len(server.lines("> done: Late.")))
        self.assertEqual([command_line(self.bundle, "undo")], self.sketch.calls())

    def test_a_script_that_does_not_end_is_killed(self):
        server = self.own_server(stop_timeout=0.3)
        self.sketch.mood("sleep 30")
        self.connect(client_frame(TEXT, "undo"), server=server)
        self.sketch.wait_for_calls(1)
        start = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - start, 10)
        self.assertEqual(1, len(server.lines("> failed: .*killed")))

    def test_a_session_file_of_others_is_left_alone_whatever_it_is(self):
        server = self.own_server()
        write(server.session_file, b"\xff\xfe")
        self.addCleanup(os.remove, server.session_file)
        server.stop()
        self.assertTrue(os.path.exists(server.session_file))

    def test_dialogues_may_close_at_the_same_moment(self):
        server = self.own_server()
        clients = [self.connect(server=server) for _ in range(100)]
        server.terminate()
        for client in clients:
            client.close()
        server.stop()

    def test_nobody_can_hold_it_up(self):
        server = self.own_server()
        for client in (self.request(server=server), self.connect(server=server)):
            client.send(b"\x81")  # and never anything again
        start = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - start, 10)
        self.assertEqual(1, len(server.lines("= closed 1001: no answer")))
        self.assertEqual(1, len(server.lines("= closed 1001: it was never open")))


# ---- What peers may do, and nobody else notices -------------------------------------------------


class Faults(BridgeTestCase):
    setup = "HEAD_TIMEOUT = CLOSE_TIMEOUT = 0.5"

    def test_a_reset_at_every_stage(self):
        opened, click = head(self.server.target), client_frame(TEXT, "undo")
        for stage, data in (
            ("before the head", b""),
            ("in the head", opened[:40]),
            ("after the head", opened),
            ("in a frame's head", opened + click[:1]),
            ("in a masking-key", opened + click[:4]),
            ("in a payload", opened + click[:-1]),
            ("after a click", opened + click),
            ("between fragments", opened + client_frame(TEXT, "u", fin=False)),
            ("after a Ping", opened + client_frame(PING)),
            ("after its Close", opened + GOODBYE),
            ("after a refusal", head("/")),
            ("after an error", opened + b"\xff\xff"),
        ):
            for answered in {data.startswith(opened), False}:
                end = "(closed 1|refused 403)"
                with self.subTest(stage, answered=answered), self.noticed_only_as(end):
                    client = self.request(data)
                    if answered:
                        client.response()
                    client.close(reset=True)

    def test_half_of_something_then_silence_then_gone(self):
        opened = head(self.server.target)
        for why, data in (
            ("nothing", b""),
            ("a handshake", opened[:-1]),
            ("a head", opened + b"\x81"),
            ("a payload", opened + client_frame(TEXT, "undo")[:-1]),
            ("a long one", opened + client_frame(TEXT, "x" * 100_000)[:50_000]),
            ("a message", opened + client_frame(TEXT, "undo", fin=False)),
        ):
            with self.subTest(why), self.noticed_only_as("= closed 1006: ended") as witness:
                client = self.request(data)
                self.assertEqual("done", witness.click("undo")["status"])
                client.socket.shutdown(socket.SHUT_WR)
                self.assertEqual(data.startswith(opened), bool(client.file.read()))

    def test_heads_that_come_slowly_are_refused_and_hinder_no_click(self):
        with self.noticed_only_as(*["! refused 408: "] * 30) as witness:
            start = time.monotonic()
            waiting = {self.request().socket: iter(head(self.server.target)) for _ in range(30)}
            while waiting:
                self.assertLess(time.monotonic() - start, 10)
                for peer in select.select(waiting, [], [], 0.1)[0]:
                    self.assertRegex(peer.recv(9999), b"^HTTP/1.1 408 .*\r\nConnection: close\r\n")
                    del waiting[peer]
                for peer, rest in waiting.items():
                    peer.send(bytes([next(rest)]))
                clicked = time.monotonic()
                self.assertEqual("done", witness.click("undo")["status"])
                self.assertLess(time.monotonic() - clicked, 0.5)

    def test_one_connection_too_many_is_refused_at_once_until_another_ends(self):
        with contextlib.suppress(ImportError, ValueError, OSError):
            import resource  # macOS gives a process 256 descriptors, and so this one too

            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 4096), limit))
        with self.noticed_only_as(*["! refused 503: "] * 3) as witness:
            clients = [self.connect() for _ in range(199)]
            for _ in range(3):
                client = self.request()  # has sent nothing
                self.assertIn(" 503 ", client.response()[0])
                self.assertRegex(client.file.read(), b"^[^\n]+\n$")
            self.assertEqual("done", witness.click("undo")["status"])
        accepted = head(self.server.target)
        wait_until(lambda: " 101 " in self.request(accepted).response()[0])  # the witness has gone
        for client in clients:
            client.close()
        self.server.wait_for("= closed 1006: ended", 199)

    def test_a_client_that_never_reads_holds_up_nobody_else(self):
        def flood(client, frame):
            with contextlib.suppress(ConnectionError):
                while True:
                    client.send(frame * 100)

        frames = (client_frame(TEXT, "\0" * 200), client_frame(PING, bytes(125)))
        with self.noticed_only_as(*["= closed 1006: "] * 2) as witness:
            self.sketch.mood(HOLD)
            clients = [self.connect(client_frame(TEXT, "undo")) for _ in frames]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pool.map(flood, clients, frames)
                self.server.wait_for("= closed 1006: it takes no more", 2)
                start = time.monotonic()
                self.sketch.reset()
                self.sketch.say("OK")
                self.assertEqual("done", witness.click("undo")["status"])
                self.assertLess(time.monotonic() - start, 0.5)

    def test_dialogues_that_go_before_their_answers_come(self):
        with self.noticed_only_as(*["closed 1"] * 50):
            for number in range(50):
                client = self.connect(client_frame(TEXT, "undo"))
                client.close(reset=number % 2)
            self.server.wait_for("> (done|busy)", 50)

    def test_a_dialogue_that_does_not_answer_a_close_is_dropped(self):
        with self.noticed_only_as("! closed 1002: "):
            client = self.connect(b"\xff\xff")
            self.assert_fails(client, 1002)

    def test_nobody_reads_the_log(self):
        start = [*PYTHON, f"{self.bundle}/Contents/Sketch/pebble_ws.py", "--port", "0", "--dry-run"]
        with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while b"listening" not in (line := process.stdout.readline()):
                self.assertTrue(line)
            process.stdout.close()
            session = re.search(r'(\d+), "token": "([^"]*)', read(self.server.session_file))
            server = types.SimpleNamespace(port=int(session[1]), target=f"/?token={session[2]}")
            client = self.connect(server=server)
            self.assertEqual("dry run", client.click("undo")["status"])
            process.terminate()
            self.assertEqual((CLOSE, 1001), client.receive())
            client.close()
            self.assertEqual((b"", 0), (process.stderr.read(), process.wait()))


def seed():
    return os.environ.get("PEBBLE_SEED") or str(random.SystemRandom().randrange(10**9))


class ARandomPeer(BridgeTestCase):
    """Well-formed frames, whose answers are known, and then a fault of one kind or another."""

    CASES = 50_000 if CI else 1_000

    def test_whatever_it_sends_the_server_answers_by_the_rules_and_stays_clean(self):
        self.seed = seed()
        print(f"PEBBLE_SEED={self.seed}", file=sys.stderr)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(self.case, range(200)))
            memory = self.server.memory()
            list(pool.map(self.case, range(200, self.CASES)))
        self.assertEqual("done", self.connect().click("undo")["status"])
        self.assertLess(self.server.memory() - memory, 32 << 20)
        self.assertEqual(1, len(self.sketch.calls()))

    def case(self, number):
        rng = random.Random(f"{self.seed}/{number}")
        client = Client(self.server.port)
        try:
            (self.handshake if rng.random() < 0.3 else self.session)(rng, client)
        except Exception as error:
            raise AssertionError(f"case {number} of PEBBLE_SEED={self.seed}") from error
        finally:
            client.close(reset=rng.random() < 0.1)

    def send(self, rng, client, data):
        """Send it in pieces, cut anywhere."""
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
        for start, end in zip([0, *cuts], [*cuts, len(data)]):
            client.send(data[start:end])

    def mutated(self, rng, data):
        """Return it with some bytes changed, left out, repeated or put in."""
        for _ in range(rng.randint(1, 4)):
            at, size = rng.randrange(len(data) + 1), rng.randrange(12)
            piece = rng.choice((b"", b"", data[at : at + size] * 2, rng.randbytes(size)))
            data = data[:at] + piece + data[at + rng.randrange(size + 1) :]
        return data

    def handshake(self, rng, client):
        origin = rng.choice((None, "null", "file://", "http://example.com"))
        data = self.mutated(rng, head(self.server.target, Origin=origin))
        self.send(rng, client, data)
        client.socket.shutdown(socket.SHUT_WR)
        lines = client.response()
        if not lines:
            self.assertNotIn(b"\r\n\r\n", data)  # it waited for the end of the head
        elif " 101 " not in lines[0]:
            self.assertRegex(lines[0], r"^HTTP/1\.1 (400|403|405|426|431) ")
            self.assertRegex(client.file.read(), b"^[^\n]+\n$")
        else:
            data = data.partition(b"\r\n\r\n")[0]
            self.assertTrue(data.startswith(f"GET {self.server.target} HTTP/1.".encode()))
            self.assertLessEqual(
                set(re.findall(rb"(?im)^origin:\s*(.*?)\s*$", data)), {b"null", b"file://"}
            )
            self.assertEqual(1, len(re.findall(rb"(?im)^host:\s*(?:localhost|127\.0\.0\.1)", data)))

    def session(self, rng, client):
        self.send(rng, client, head(self.server.target))
        self.assertIn(" 101 ", client.response()[0])
        data, answers = self.conversation(rng)
        end = rng.choice((self.closed, self.failed, self.cut, self.noise, self.reset))
        more, *last = end(rng)
        self.send(rng, client, data + more)
        if end == self.reset:
            return
        if end in (self.cut, self.noise):
            client.socket.shutdown(socket.SHUT_WR)
        received = [
            json.loads(answer)["message"] if isinstance(answer, str) else answer
            for answer in client.rest()
        ]
        self.assertEqual(answers, received[: len(answers)])
        if end == self.noise:  # anything that a server may say, Close last
            for answer in received[len(answers) : -1]:
                self.assertTrue(isinstance(answer, str) or answer[0] == PONG, answer)
        else:
            self.assertEqual(last, received[len(answers) :])

    def conversation(self, rng):
        """Return frames and what they are answered with."""
        data, answers = [], []
        for _ in range(rng.randrange(6)):
            text = "".join(rng.choice("aé€𐍈\n\0 ") for _ in range(rng.randrange(150)))
            payload = text.encode()
            cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.randrange(3)))
            edges = [0, *cuts, len(payload)]
            for number in range(len(edges) - 1):
                if rng.random() < 0.3:
                    ping = rng.randbytes(rng.randrange(126))
                    data += client_frame(PING, ping, key=rng.randbytes(4)), client_frame(PONG, ping)
                    answers.append((PONG, ping))
                fragment = payload[edges[number] : edges[number + 1]]
                opcode = CONTINUATION if number else TEXT
                fin = number == len(edges) - 2
                data.append(client_frame(opcode, fragment, fin, rng.randbytes(4)))
            answers.append(text)
        return b"".join(data), answers

    def closed(self, rng):
        code = rng.choice((1000, 1001, 3000, 4999))
        return close_of(code) + rng.randbytes(rng.randrange(50)), (CLOSE, code)

    def failed(self, rng):
        errors = [*PROTOCOL_ERRORS, ("binary", 1003, client_frame(BINARY, "x"))]
        errors += [("", 1007, client_frame(TEXT, bytes.fromhex(bad))) for bad in NOT_UTF8]
        _, code, data = rng.choice(errors)
        return data, (CLOSE, code)

    def cut(self, rng):
        whole = client_frame(TEXT, "x" * rng.choice((1, 125, 126, 70_000)))
        return [whole[: rng.randrange(len(whole))]]

    def noise(self, rng):
        data = self.mutated(rng, self.conversation(rng)[0])
        return [rng.choice((data, rng.randbytes(rng.randrange(200))))]

    def reset(self, rng):
        return self.cut(rng)


# ---- Command line -------------------------------------------------------------------------------


class CommandLine(TestCase):
    """Each test has its own bundle and its own Sketch; nothing of this machine's is touched."""

    def setUp(self):
        self.folder = temporary_folder(self.addCleanup)
        self.bundle = installed(self.folder)
        self.elsewhere = f"{self.folder}/elsewhere"
        os.mkdir(self.elsewhere)
        self.sketch = StandInSketch(self.folder)
        self.addCleanup(self.sketch.close)

    def run_program(self, *arguments, program=None):
        """Return exit status, standard output and standard error."""
        program = program or f"{self.bundle}/Contents/Sketch/pebble_ws.py"
        done = subprocess.run(
            [*PYTHON, program, *arguments], capture_output=True, timeout=20, cwd=self.elsewhere
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def assert_refused(self, *arguments, words=(), **options):
        """Check for one line on standard error, with these words, and exit status 1."""
        status, output, error = self.run_program(*arguments, **options)
        self.assertEqual((1, "", 1), (status, output, error.count("\n")), error)
        for word in words:
            self.assertIn(word, error)

    def test_version_and_help(self):
        status, output, error = self.run_program("--version")
        version = f"pebble_ws.py {manifest()['version']}\n"
        self.assertEqual((0, version, ""), (status, output, error))
        status, output, error = self.run_program("--help")
        self.assertEqual((0, ""), (status, error))
        for option in ("--port", "--sketch", "--dry-run", "--install", "--version", "--help"):
            self.assertIn(option, output)

    def test_bad_arguments_are_told_with_the_usage(self):
        for arguments in (
            ["--port", "x"],
            ["--port", "65536"],
            ["--port", "-1"],
            ["--port"],
            ["--nonsense"],
            ["rotate"],
            ["--install", "a", "b"],
        ):
            with self.subTest(arguments), contextlib.redirect_stderr(io.StringIO()) as error:
                with self.assertRaises(SystemExit) as exit_:
                    pebble_ws.main(arguments)
                self.assertEqual(2, exit_.exception.code)
                self.assertTrue(error.getvalue().startswith("usage: pebble_ws.py"))

    def test_what_is_no_sketch_is_refused(self):
        os.makedirs(f"{self.folder}/Empty.app/Contents/MacOS")
        os.rename(self.sketch.app, f"{self.folder}/Sketch")
        for app in (
            "nonsense",
            f"{self.folder}/No.app",
            f"{self.folder}/Empty.app",
            f"{self.folder}/Sketch",
            "",
        ):
            with self.subTest(app):
                self.assert_refused("--port", "0", "--sketch", app, words=[app])

    def test_importing_it_starts_nothing(self):
        code = "import threading, pebble_ws; print(threading.active_count())"
        done = subprocess.run(
            [*PYTHON, "-c", code], cwd=f"{self.bundle}/Contents/Sketch", capture_output=True
        )
        self.assertEqual((b"1\n", b""), (done.stdout, done.stderr))
        self.assertFalse(os.path.exists(f"{self.bundle}/Contents/Resources/session.js"))

    def test_a_second_server_on_the_port_leaves_the_first_and_its_session_alone(self):
        server = self.started(self.addCleanup, self.bundle, "--dry-run")
        port = str(server.port)
        self.assert_refused("--port", port, "--dry-run", words=[port, "--port"])
        with contextlib.redirect_stderr(io.StringIO()) as error:
            self.assertEqual(1, pebble_ws.main(["--port", port]))
        self.assertIn(port, error.getvalue())
        self.assertEqual(set(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        self.assertEqual(server.session, read(server.session_file))
        self.assertEqual("dry run", self.connect(server=server).click("undo")["status"])

    def test_a_port_may_be_chosen(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = self.started(self.addCleanup, self.bundle, "--dry-run", "--port", str(port))
        self.assertEqual(port, server.port)

    def test_a_session_file_that_cannot_be_written_is_told(self):
        resources = f"{self.bundle}/Contents/Resources"
        os.mkdir(f"{resources}/session.js")
        self.assert_refused("--port", "0", "--dry-run", words=[f"{resources}/session.js"])
        shutil.rmtree(resources)
        self.assert_refused("--port", "0", "--dry-run", words=[f"{resources}/session.js"])

    def test_a_plugin_that_cannot_be_found_is_told(self):
        alone = shutil.copy(PROGRAM, self.folder)
        arguments = ("--port", "0", "--dry-run")
        self.assert_refused(*arguments, program=alone, words=["pebble.sketchplugin"])

    @unittest.skipIf(os.geteuid() == 0, "to root, no folder is read-only")
    def test_a_read_only_folder_is_told_where_something_must_be_written(self):
        for path, _, _ in os.walk(self.bundle):
            os.chmod(path, 0o555)
            self.addCleanup(os.chmod, path, 0o755)
        self.assert_refused("--port", "0", "--dry-run", words=["session.js"])
        self.assertEqual(0, self.run_program("--version")[0])
        os.chmod(self.folder, 0o555)
        self.addCleanup(os.chmod, self.folder, 0o755)
        self.assert_refused("--install", self.folder, program=PROGRAM, words=[self.folder])

    def test_a_dry_run_runs_nothing_and_says_so(self):
        for why, arguments, setup in (
            ("asked for", ["--dry-run", "--sketch", self.sketch.app], ""),
            ("not on macOS", [], "sys.platform = 'linux'"),
        ):
            with self.subTest(why):
                server = self.started(self.addCleanup, self.bundle, *arguments, setup=setup)
                self.assertIn("dry run", server.first_lines[0].lower())
                self.assertIn("pebble-dialogue.html", "\n".join(server.first_lines))
                answer = self.connect(server=server).click("rotate")
                self.assertEqual("dry run", answer["status"])
                self.assertIn("rotate", answer["output"])
        self.assertEqual([], self.sketch.calls())

    def macos(self, *apps):
        """Start a server on what it takes for macOS, where mdfind finds these applications."""
        mdfind = f"{self.folder}/bin/mdfind"
        os.makedirs(os.path.dirname(mdfind), exist_ok=True)
        found = " ".join(map(shlex.quote, apps))
        write(mdfind, f'#!/bin/sh\nfor app in {found}; do echo "$app"; done\n')
        os.chmod(mdfind, 0o755)
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return self.started(
            self.addCleanup,
            self.bundle,
            setup="sys.platform = 'darwin'",
            env={**os.environ, "PATH": path},
        )

    @unittest.skipIf(os.path.exists("/Applications/Sketch.app"), "this Mac has Sketch")
    def test_on_a_mac_without_sketch_it_warns_and_fails_each_click_with_the_remedy(self):
        server = self.macos()
        self.assertIn("--sketch", next(line for line in server.first_lines if " ! " in line))
        answer = self.connect(server=server).click("rotate")
        self.assertEqual("failed", answer["status"])
        self.assertIn("--sketch", answer["output"])

    def test_the_newest_sketch_that_macos_knows_is_used_wherever_its_tool_is(self):
        apps = []
        for name, version, tool in (
            ("with an old tool", "99", "MacOS/sketchtool"),
            ("ä newest", "100.1", "Resources/sketchtool/bin/sketchtool"),
            ("newer", "100", "MacOS/sketchtool"),
            ("of no version", None, "MacOS/sketchtool"),
        ):
            apps.append(StandInSketch(f"{self.folder}/{name}", tool, version))
            self.addCleanup(apps[-1].close)
        server = self.macos(f"{self.folder}/Gone.app", *(sketch.app for sketch in apps))
        self.assertEqual("done", self.connect(server=server).click("rotate")["status"])
        self.assertEqual([0, 1, 0, 0], [len(sketch.calls()) for sketch in apps])

    def test_install_copies_the_plugin_with_the_server_over_an_earlier_copy(self):
        folder = f"{self.folder}/in ä 'folder'"
        copy = f"{folder}/pebble.sketchplugin"
        os.makedirs(f"{copy}/Contents/Old")
        write(f"{self.bundle}/Contents/Resources/session.js", "another's secret")
        status, output, error = self.run_program("--install", folder)
        self.assertEqual((0, ""), (status, error))
        self.assertIn(copy, output)
        self.assertEqual(["pebble.sketchplugin"], os.listdir(folder))
        self.assertEqual(read(PROGRAM), read(f"{copy}/Contents/Sketch/pebble_ws.py"))
        files = [
            sorted(
                os.path.relpath(f"{path}/{name}", bundle)
                for path, _, names in os.walk(bundle)
                for name in names
                if name not in ("pebble_ws.py", "session.js")
            )
            for bundle in (PLUGIN, copy)
        ]
        self.assertEqual(*files)
        self.assertFalse(os.path.exists(f"{copy}/Contents/Resources/session.js"))

    def test_install_leaves_a_link_and_what_it_leads_to(self):
        precious = f"{self.folder}/precious"
        os.makedirs(f"{precious}/content")
        for target in (precious, f"{self.folder}/nowhere"):
            folder = f"{target} linked"
            os.makedirs(folder)
            os.symlink(target, f"{folder}/pebble.sketchplugin")
            self.assert_refused("--install", folder, words=[folder])
            self.assertEqual(target, os.readlink(f"{folder}/pebble.sketchplugin"))
        self.assertEqual(["content"], os.listdir(precious))

    def test_install_keeps_what_it_cannot_replace(self):
        checkout = f"{self.folder}/holds/pebble.sketchplugin"
        shutil.copytree(PLUGIN, f"{checkout}/plugin/pebble.sketchplugin")
        program = shutil.copy(PROGRAM, checkout)
        self.assert_refused("--install", f"{self.folder}/holds", program=program, words=["holds"])
        self.assertTrue(os.path.isfile(program))
        os.mkdir(f"{self.folder}/file")
        write(f"{self.folder}/file/pebble.sketchplugin", "precious")
        self.assert_refused("--install", f"{self.folder}/file", words=["cannot be written"])
        self.assertEqual("precious", read(f"{self.folder}/file/pebble.sketchplugin"))
        self.assertEqual(["pebble.sketchplugin"], os.listdir(f"{self.folder}/file"))

    def test_install_keeps_an_earlier_copy_when_it_cannot_make_another(self):
        folder = f"{self.folder}/earlier"
        os.mkdir(folder)
        self.assertEqual(0, self.run_program("--install", folder)[0])
        os.symlink("nowhere", f"{self.bundle}/Contents/Resources/missing.png")
        self.assert_refused("--install", folder, words=["missing.png"])
        self.assertEqual(["pebble.sketchplugin"], os.listdir(folder))
        self.assertEqual(
            read(PROGRAM), read(f"{folder}/pebble.sketchplugin/Contents/Sketch/pebble_ws.py")
        )

    def test_install_refuses_what_would_not_work(self):
        before = sorted(os.listdir(f"{self.bundle}/Contents/Sketch"))
        os.symlink(self.folder, f"{self.folder}/link")
        for why, folder in (
            ("missing", f"{self.folder}/missing"),
            ("empty", ""),
            ("over itself", self.folder),
            ("by a link", f"{self.folder}/link"),
            ("into itself", f"{self.bundle}/Contents"),
            ("a file", PROGRAM),
        ):
            with self.subTest(why):
                self.assert_refused("--install", folder, words=[folder])
        self.assertEqual(before, sorted(os.listdir(f"{self.bundle}/Contents/Sketch")))
        self.assertEqual([], os.listdir(self.elsewhere))

    def test_install_goes_to_sketchs_folder_by_default(self):
        plugins = f"{self.folder}/Library/Application Support/com.bohemiancoding.sketch3/Plugins"
        with (
            mock.patch.dict(os.environ, HOME=self.folder),
            contextlib.redirect_stderr(io.StringIO()) as error,
        ):
            self.assertEqual(1, pebble_ws.main(["--install"]))
        self.assertIn(plugins, error.getvalue())
        os.makedirs(plugins)
        with (
            mock.patch.dict(os.environ, HOME=self.folder),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            self.assertEqual(0, pebble_ws.main(["--install"]))
        self.assertIn(f"{plugins}/pebble.sketchplugin", printed.getvalue())

    def test_a_copy_of_what_is_read_only_can_be_written(self):
        source, target = f"{self.folder}/read-only", f"{self.folder}/target"
        shutil.copytree(PLUGIN, f"{source}/plugin/pebble.sketchplugin")
        shutil.copy(PROGRAM, source)
        os.mkdir(target)
        for path, _, files in os.walk(source):
            for name in files:
                os.chmod(f"{path}/{name}", 0o444)
            os.chmod(path, 0o555)
            self.addCleanup(os.chmod, path, 0o755)
        for _ in range(2):
            arguments = ("--install", target)
            status, _, error = self.run_program(*arguments, program=f"{source}/pebble_ws.py")
            self.assertEqual((0, ""), (status, error))
        for path, _, files in os.walk(target):
            for each in (path, *(f"{path}/{name}" for name in files)):
                self.assertTrue(os.stat(each).st_mode & stat.S_IWUSR, each)
        self.started(self.addCleanup, f"{target}/pebble.sketchplugin", "--dry-run")


# ---- README -------------------------------------------------------------------------------------


class Readme(TestCase):
    def setUp(self):
        self.text = read(os.path.join(os.path.dirname(PROGRAM), "README.md"))

    def test_two_commands_stand_in_its_first_lines(self):
        beginning = self.text.splitlines()[:15]
        for command in ("python3 pebble_ws.py", "python3 -m unittest"):
            self.assertTrue([line for line in beginning if line.startswith(command)], command)

    def test_its_transcript_is_what_the_server_prints(self):
        bundle = installed(temporary_folder(self.addCleanup))
        server = self.started(self.addCleanup, bundle, "--dry-run")
        client = self.connect(server=server, Origin="null")
        client.click("rotate")
        client.send(close_of(1001))
        self.assert_fails(client, 1001)
        server.wait_for("closed")
        shown = re.search(r"```\n(\S+ = dry run.*?)```", self.text, re.S)[1].splitlines()
        changes = ((bundle, "…/plugin/pebble.sketchplugin"), (str(server.port), "9912"))
        printed = "\n".join(filter(None, server.log))
        for real, example in changes:
            printed = printed.replace(real, example)
        any_time = r"\d\d:\d\d:\d\d|\d+ ms"
        self.assertEqual(re.split(any_time, "\n".join(shown)), re.split(any_time, printed))

    def test_its_server_of_any_kind_runs(self):
        code = re.search(r"```python\n(.*?)```", self.text, re.S)[1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        program = "\n".join(line[2:] for line in code.splitlines()).replace("9001", str(port))
        process = subprocess.Popen([*PYTHON, "-c", program], cwd=os.path.dirname(PROGRAM))
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        server = types.SimpleNamespace(port=port, target="/")

        def connected():
            with contextlib.suppress(ConnectionRefusedError):
                return self.connect(client_frame(TEXT, "Grüße"), server=server)

        self.assertEqual("Grüße", wait_until(connected).receive())


# ---- The plugin's scripts -----------------------------------------------------------------------


JSC = "/System/Library/Frameworks/JavaScriptCore.framework/Versions/Current/Helpers/jsc"
ENGINES = [path for path in map(shutil.which, ("node", "jsc", JSC)) if path]


@unittest.skipUnless(ENGINES or CI, "the plugin's scripts need an engine, jsc or node")
class PluginScripts(TestCase):
    def run_js(self, engine, *arguments):
        return subprocess.run(
            [engine, "run.js", *arguments],
            capture_output=True,
            timeout=60,
            encoding="utf-8",
            cwd=TESTS,
        )  # jsc takes no path with an umlaut

    def test_there_is_an_engine(self):
        self.assertTrue(ENGINES)

    def test_they_do_in_a_model_of_sketch_what_they_must(self):
        for engine in ENGINES:
            with self.subTest(engine):
                done = self.run_js(engine)
                *lines, last = done.stdout.splitlines()
                self.assertEqual([], [line for line in lines if not line.startswith("ok ")])
                self.assertEqual(
                    (f"{len(lines)} passed, 0 failed", 0, ""), (last, done.returncode, done.stderr)
                )

    def test_the_starting_information_works_as_it_stands_in_a_shell(self):
        for engine in ENGINES:
            folder = f"{temporary_folder(self.addCleanup)}/a 'b' \"c\" $HOME `d` ü"
            if "jsc" not in engine:  # which takes a path for a URL
                folder += "\\ \n"
            os.mkdir(folder)
            bundle, sketch = installed(folder), StandInSketch(folder)
            self.addCleanup(sketch.close)
            python3 = f"{folder}/python3"  # takes any free port, where the command says none
            write(python3, f'#!/bin/sh\nexec {shlex.join(PYTHON)} "$@" --port 0\n')
            os.chmod(python3, 0o755)
            with self.subTest(engine):
                done = self.run_js(engine, "--", "starting-information", bundle, sketch.app)
                self.assertEqual(0, done.returncode, done.stderr)
                server = self.started(
                    self.addCleanup,
                    bundle,
                    command=["sh", "-c", f"exec {done.stdout}"],
                    env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
                )
                self.assertEqual("done", self.connect(server=server).click("rotate")["status"])
                self.assertEqual([command_line(bundle, "rotate")], sketch.calls())


# ---- The dialogue, in browsers (https://www.w3.org/TR/webdriver/) -------------------------------

WPE = "/usr/lib/x86_64-linux-gnu/wpe-webkit-1.1/MiniBrowser"
BROWSERS = {  # engine: (driver, browser, capabilities for a profile folder)
    "Chromium": (
        "chromedriver",
        "/usr/bin/chromium",
        lambda profile: {
            "browserName": "chrome",
            "goog:chromeOptions": {
                "binary": "/usr/bin/chromium",
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--no-first-run",
                    f"--user-data-dir={profile}",
                ],
            },
        },
    ),
    "WPE WebKit": (
        "WPEWebDriver",
        WPE,
        lambda profile: {
            "browserName": "MiniBrowser",
            "wpe:browserOptions": {"binary": WPE, "args": ["--automation", "--headless"]},
        },
    ),
}
ENTER, TAB, SPACE, SHIFT, BACKSPACE = "\ue007", "\ue004", " ", "\ue008", "\ue003"
END, HOME, LEFT, UP, RIGHT, DOWN = "\ue010", "\ue011", "\ue012", "\ue013", "\ue014", "\ue015"
SELECT_ALL = "arguments[0].focus(); arguments[0].select()"


class NoBrowser(Exception):
    pass


class Browser:
    """One browser window, driven by WebDriver: JSON over HTTP."""

    def __init__(self, engine):
        driver, binary, capabilities = BROWSERS[engine]
        for program in (driver, binary):
            if not shutil.which(program):
                raise NoBrowser(f"{engine} needs {program}")
        self.engine = engine
        self.profile = tempfile.mkdtemp(prefix="pebble-browser-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(  # in a process group of its own, with all that it starts
            [driver, f"--port={port}"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "HOME": self.profile,
                "XDG_CACHE_HOME": self.profile,
                "XDG_DATA_HOME": self.profile,
                "XDG_CONFIG_HOME": self.profile,
            },
        )
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}/session"
        try:
            wait_until(self.driver_listens)
            wanted = {"alwaysMatch": capabilities(self.profile)}
            session = self.call("POST", "", {"capabilities": wanted})
            self.url += "/" + session["sessionId"]
        except BaseException:
            self.kill()
            raise

    def driver_listens(self):
        try:
            socket.create_connection(self.address).close()
            return True
        except ConnectionRefusedError:
            return False

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{self.engine}: {error.read().decode()}") from None

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.kill()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def open(self, url):
        self.call("POST", "/url", {"url": url})
        found = self.execute("return location.href")
        if found != url:  # WebKit does not tell
            raise AssertionError(f"{self.engine} opened {found} instead of {url}")

    def execute(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def execute_async(self, script, *arguments):
        """Run a script; return what it hands to the function that is its last argument."""
        return self.call("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def frames(self):
        """Wait until the page is laid out and painted anew."""
        self.execute_async(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def elements(self, xpath):
        return self.call("POST", "/elements", {"using": "xpath", "value": xpath})

    def find(self, xpath):
        return self.call("POST", "/element", {"using": "xpath", "value": xpath})

    def button(self, name):
        return self.find(f"//button[normalize-space()='{name}']")

    def field(self, label):
        return self.find(f"//input[@id = //label[normalize-space()='{label}']/@for]")

    def get(self, element, what):
        """What a WebDriver says of an element: text, displayed, enabled, property/value, …"""
        return self.call("GET", f"/element/{next(iter(element.values()))}/{what}")

    def click(self, element):
        self.call("POST", f"/element/{next(iter(element.values()))}/click", {})

    def type(self, element, text):
        self.call("POST", f"/element/{next(iter(element.values()))}/value", {"text": text})

    def press(self, *keys):
        """Press keys one after the other, wherever the focus is; SHIFT holds for those after it."""
        strokes = []
        for key in keys:
            strokes.append({"type": "keyDown", "value": key})
            if key != SHIFT:
                strokes.append({"type": "keyUp", "value": key})
        strokes += [{"type": "keyUp", "value": key} for key in keys if key == SHIFT]
        keyboard = {"type": "key", "id": "keyboard", "actions": strokes}
        self.call("POST", "/actions", {"actions": [keyboard]})

    def enter(self, element, text):
        """Replace what a field contains by keys, as a person does."""
        self.execute(SELECT_ALL, element)
        self.press(BACKSPACE)  # some drivers type behind what is selected
        if text:
            self.type(element, text)

    def screenshot(self, path):
        self.frames()  # a first one may be old
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def cdp(self, command, **parameters):
        self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def emulate(self, feature="prefers-color-scheme", value=""):
        """Have pages see another value of a media feature; without one, as before."""
        features = [{"name": feature, "value": value}]
        self.cdp("Emulation.setEmulatedMedia", features=features if value else [])


def saying(text, asked=None):
    """Return an HTTP handler that answers with a text, and notes the paths it was asked for."""

    class Saying(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if asked is not None:
                asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    return Saying


def serve(test, handler):
    """Serve HTTP on 127.0.0.1 until the test ends; return the port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    test.addCleanup(lambda: (server.shutdown(), thread.join(), server.server_close()))
    return server.server_address[1]


NEEDS_SKETCH = {"Rotator": ("Rotate", "Duplicate", "Undo"), "Time": ("Set", "Add", "Run")}
DEFAULT_ROWS = [{"name": f"{5 * n}min", "angle": "30"} for n in range(1, 7)]
START = "Plugins ▸ websocket ▸ start-webservice"

# A page of one's own: its looks, a field of each kind, a list, a button.
OWN_STYLE = "button { display: block; background: gold } p { font: 20px serif }"
OWN_PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<link rel="stylesheet" href="own.css">
<script src="back-channel.js" defer></script>
<form>
  <label>Spacing <input name="spacing" value="8"></label>
  <label>Count <input name="count" type="number" value="3"></label>
  <label>Columns <input name="columns" type="checkbox" checked></label>
  <label>Left <input name="side" type="radio" value="left"></label>
  <label>Right <input name="side" type="radio" value="right"></label>
  <label>Unit <select name="unit"><option>px</option><option>mm</option></select></label>
  <label>Note <textarea name="note">two
lines</textarea></label>
  <ul data-list="stops"><li>heading</li><li><input name="at" value="1"></li></ul>
  <button data-message="rotate">Spread</button>
</form>
"""
OWN_VALUES = {
    "spacing": "8",
    "count": "3",
    "columns": True,
    "side": "",
    "unit": "px",
    "note": "two\nlines",
    "stops": [{"at": "1"}],
}
FORWARD = "const now = performance.now.bind(performance); performance.now = () => now() + {};"

HOSTILE_PAGE = """<!DOCTYPE html><meta charset="utf-8"><body><p id="outcome"></p><script>
function tell(outcome) { parent.postMessage(outcome, "*"); }
onmessage = (event) => { document.querySelector("#outcome").textContent += event.data + "; "; };
function attack(where) {
  const socket = new WebSocket("ws://localhost:PORT/?token=TOKEN");
  socket.onopen = () => { socket.send("rotate"); tell(where + " connected"); };
  socket.onclose = () => tell(where + " refused");
  const script = document.createElement("script");
  script.src = "SESSION";
  script.onload = () => tell(where + " loaded " + JSON.stringify(window.pebbleSession));
  script.onerror = () => tell(where + " could not read");
  document.body.append(script);
}
if (parent === window) {
  attack("page");
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  frame.src = "/frame";
  document.body.append(frame);
} else attack("frame");
</script>"""

# What is wrong with the page as it stands in its window: a list of sentences.
FAULTS = r"""
const root = document.scrollingElement;
const name = (e) => e.id || e.getAttribute("aria-label") || e.textContent.trim() || e.tagName;
const shown = [...document.querySelectorAll("body *")].filter((e) => e.offsetParent);
const scrollers = [root, ...shown].filter((e) => e.scrollHeight > e.clientHeight + 1
  && (e === root || /auto|scroll/.test(getComputedStyle(e).overflowY)));
const faults = [];
for (const outer of scrollers) for (const inner of scrollers) {
  if (inner !== outer && outer.contains(inner)) faults.push(`${name(inner)} scrolls in another`);
}
if (root.scrollWidth > root.clientWidth) faults.push("the page scrolls to the side");
for (const e of shown) {
  const { left, right } = e.getBoundingClientRect();
  if (left < 0 || right > innerWidth + 0.5) faults.push(`${name(e)} is wider than the window`);
}
for (const e of document.querySelectorAll("button, label, th, p, #state")) {
  if (!e.offsetParent || e.matches(".remove")) continue;
  if (e.scrollWidth > e.clientWidth + 1) faults.push(`${name(e)} is cut off at the side`);
  if (e.id === "answer") continue;
  if (e.scrollHeight > e.clientHeight + 1) faults.push(`${name(e)} is cut off below`);
}
root.scrollTop = root.scrollHeight;
const box = (selector) => document.querySelector(selector).getBoundingClientRect();
if (box("footer").bottom > innerHeight + 0.5) faults.push("the footer ends below the window");
if (box("#state").bottom > innerHeight + 0.5) faults.push("the footer loses its last line");
const page = document.querySelector("section:not([hidden])");
if (!scrollers.includes(page)) {
  const last = [...page.children].pop().getBoundingClientRect().bottom;
  if (last > box("footer").top + 0.5) faults.push("the footer covers the end of the page");
}
root.scrollTop = 0;
return faults;
"""
MIDDLES = """
const text = (element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  const { left, top, height } = range.getBoundingClientRect();
  return { left, y: top + height / 2 };
};
const box = (field) => {
  const { left, top, height } = field.getBoundingClientRect();
  const { borderLeftWidth, paddingLeft } = getComputedStyle(field);
  const inset = parseFloat(borderLeftWidth) + parseFloat(paddingLeft);
  return { left: left + inset, y: top + height / 2 };
};
"""
CUT_RINGS = """
const cut = [];
for (const e of document.querySelectorAll("button, input")) {
  if (!e.offsetParent) continue;
  e.focus();
  const { left, top, right, bottom } = e.getBoundingClientRect();
  for (let around = e.parentElement; around; around = around.parentElement) {
    if (getComputedStyle(around).overflowY === "visible") continue;
    const box = around.getBoundingClientRect();
    if (top - 3 < box.top || left - 3 < box.left || right + 3 > box.right
        || bottom + 3 > box.bottom) cut.push(e.getAttribute("aria-label") || e.textContent || e.id);
  }
}
return cut;
"""
# The names, ratios and least ratios of what must be seen (WCAG 1.4.3 and 1.4.11).
CONTRASTS = r"""
const parts = (colour) => {
  const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
  return { rgb: [r, g, b], a };
};
const over = (colour, below) => {
  const { rgb, a } = parts(colour);
  return rgb.map((part, i) => a * part + (1 - a) * below[i]);
};
const ground = (e) => e ? over(getComputedStyle(e).backgroundColor, ground(e.parentElement))
  : [255, 255, 255];
const light = (rgb) => {
  const [r, g, b] = rgb.map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (one, other) => {
  const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
};
const found = [];
for (const e of document.querySelectorAll("body *")) {
  if (!e.offsetParent || e.matches(".default")) continue; // that has the person's own colour
  const style = getComputedStyle(e);
  const hasText = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const name = `${e.tagName} ${e.textContent.trim().slice(0, 20)}`;
  if (hasText || e.matches("input")) {
    found.push([`text of ${name}`, ratio(over(style.color, ground(e)), ground(e)), 4.5]);
  }
  if (e.matches("input, [aria-selected=true], button:not([role=tab], .remove, :disabled)")) {
    const around = ground(e.parentElement);
    found.push([`edge of ${name}`, ratio(over(style.borderTopColor, around), around), 3]);
  }
}
const dot = getComputedStyle(document.querySelector("#state"), "::before");
const footer = ground(document.querySelector("footer"));
found.push(["the connection's dot", ratio(over(dot.borderTopColor, footer), footer), 3]);
return found;
"""


class PatientSketch(StandInSketch):
    """A stand-in whose scripts can take their time, or be held until release()."""

    def reset(self):
        super().reset()
        self.release()
        self.take(0)

    def answer(self, text):
        write(f"{self.home}/answer", f"{text}\n")
        self.mood(
            'sleep "$(cat "$here/seconds")"; while [ -e "$here/held" ]; do sleep 0.02; done\n'
            'cat "$here/answer"'
        )

    def take(self, seconds):
        write(f"{self.home}/seconds", str(seconds))

    def hold(self):
        write(f"{self.home}/held", "")

    def release(self):
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{self.home}/held")


class DialogueTestCase(TestCase):
    """A browser, an installed plugin, a stand-in Sketch."""

    engine = None

    @classmethod
    def setUpClass(cls):
        try:
            cls.browser = Browser(cls.engine)
        except NoBrowser as missing:
            if CI:
                raise
            raise unittest.SkipTest(str(missing)) from None
        cls.addClassCleanup(cls.browser.close)
        folder = temporary_folder(cls.addClassCleanup)
        cls.bundle = pathlib.Path(installed(folder))
        cls.resources = cls.bundle / "Contents" / "Resources"
        cls.page = (cls.resources / "pebble-dialogue.html").as_uri()
        cls.sketch = PatientSketch(folder)
        cls.addClassCleanup(cls.sketch.close)

    def setUp(self):
        self.sketch.reset()
        self.addCleanup(self.sketch.release)

    def start_server(self, *arguments):
        server = Server(str(self.bundle), *(arguments or ["--sketch", self.sketch.app]))
        self.addCleanup(lambda: server.stop() if server.process.poll() is None else server.kill())
        self.addCleanup(self.sketch.release)
        return server

    def write_session(self, port):
        """Send the page to a port where there is no pebble_ws.py."""
        session = self.resources / "session.js"
        session.write_text(f'window.pebbleSession = {{"port": {port}, "token": "T"}};')
        self.addCleanup(lambda: session.exists() and session.unlink())

    def open_connected(self, page="Rotator"):
        server = self.start_server()
        self.browser.open(self.page)
        self.wait_for_buttons(page="Rotator")
        if page != "Rotator":
            self.click(page)
        return server

    def open_own_page(self, page=OWN_PAGE):
        """Open a page that somebody else wrote; it uses nothing of ours but back-channel.js."""
        for name, text in (("own.html", page), ("own.css", OWN_STYLE)):
            (self.resources / name).write_text(text, encoding="utf-8")
            self.addCleanup((self.resources / name).unlink, missing_ok=True)
        self.browser.open((self.resources / "own.html").as_uri())

    def open_framed(self, page="pebble-dialogue.html"):
        """Open a page in a frame, which can have any size: a window of WebKit has but one."""
        frame = self.resources / "frame.html"
        frame.write_text(f'<!DOCTYPE html><iframe src="{page}"></iframe>', encoding="utf-8")
        self.addCleanup(frame.unlink)
        self.addCleanup(self.browser.call, "POST", "/frame", {"id": None})
        self.browser.open(frame.as_uri())
        self.resize(290, 460)

    def resize(self, width, height, text_size=100):
        self.browser.call("POST", "/frame", {"id": None})
        self.browser.execute(
            "const frame = document.querySelector('iframe');"
            "[frame.width, frame.height] = arguments",
            width,
            height,
        )
        self.browser.call("POST", "/frame", {"id": 0})
        size = f"{text_size}%"
        self.browser.execute("document.documentElement.style.fontSize = arguments[0]", size)
        self.browser.frames()

    # -- what a person sees and does

    def shown(self, name):
        return self.browser.get(self.browser.button(name), "displayed")

    def enabled(self, name):
        return self.browser.get(self.browser.button(name), "enabled")

    def click(self, name):
        self.browser.click(self.browser.button(name))

    def enter(self, label, text):
        self.browser.enter(self.browser.field(label), text)

    def value(self, label):
        return self.browser.get(self.browser.field(label), "property/value")

    def row_fields(self):
        return self.browser.elements("//tbody//input")

    def footer(self):
        return self.text_of("//footer")

    def text(self, id_):
        return self.text_of(f"//*[@id='{id_}']")

    def text_of(self, xpath):
        """The text of an element; where its lines end is told in each engine's own way."""
        return " ".join(self.browser.get(self.browser.find(xpath), "text").split())

    def values(self):
        return json.loads(self.browser.execute("return document.title"))

    def focused(self):
        """The label or name of the field or button that has the focus."""
        return self.browser.execute(
            "const e = document.activeElement;"
            "return e.labels?.[0]?.textContent ?? (e.getAttribute('aria-label') || e.textContent)"
        )

    def wait_for_buttons(self, shown=True, page="Rotator"):
        wait_until(lambda: [self.shown(name) for name in NEEDS_SKETCH[page]] == [shown] * 3)

    def wait_for_footer(self, text):
        try:
            wait_until(lambda: text in self.footer())
        except AssertionError:
            raise AssertionError(f"{text!r} is not in the footer: {self.footer()!r}") from None

    def assert_title(self, **expected):
        values = self.values()
        self.assertEqual(expected, {name: values[name] for name in expected})

    # -- the connection

    def test_buttons_come_and_go_with_the_server(self):
        self.browser.open(self.page)
        self.assertIn("Not connected", self.footer())
        self.assertIn(START, self.footer())
        for page, names in NEEDS_SKETCH.items():
            self.click(page)
            self.assertEqual([False] * 3, [self.shown(name) for name in names])
        self.click("Rotator")
        for round_ in (1, 2):  # the second server has another port and another token
            with self.subTest(server=round_):
                self.sketch.answer(f"OK Rotated by server {round_}.")
                server = self.start_server()
                self.wait_for_buttons()
                self.assertEqual("Connected to Sketch", self.footer())
                self.click("Rotate")
                self.wait_for_footer(f"Rotated by server {round_}.")
                server.stop()
                self.wait_for_buttons(shown=False)
                self.assertIn(START, self.footer())
        manifest = (self.bundle / "Contents" / "Sketch" / "manifest.json").read_text("utf-8")
        identifier = next(
            command["identifier"]
            for command in json.loads(manifest)["commands"]
            if command["script"] == "rotate.cocoascript"
        )
        call = ["run", str(self.bundle), identifier, "--without-activating"]
        self.assertEqual([call, call], self.sketch.calls())

    def test_a_connection_is_announced_once(self):
        self.browser.open(self.page)
        self.browser.execute(
            "window.states = [];"
            "const state = document.querySelector('#state');"
            "new MutationObserver(() => states.push(state.textContent))"
            "  .observe(state, {childList: true, characterData: true, subtree: true});"
        )
        self.assertEqual("status", self.browser.execute("return state.getAttribute('role')"))
        self.start_server()
        self.wait_for_buttons()
        self.click("Rotate")
        self.wait_for_footer("✓ Done.")
        self.assertEqual(["Connected to Sketch"], self.browser.execute("return states"))

    def test_attempts_take_localhost_and_127_0_0_1_in_turn(self):
        hosts = []

        class Refusing(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hosts.append((self.headers["Host"].split(":")[0], self.path))
                self.send_error(403)

            def log_message(self, *_):
                pass

        port = serve(self, Refusing)
        self.write_session(port)
        self.browser.open(self.page)
        wait_until(lambda: len(hosts) >= 3)
        first, second = ("localhost", "/?token=T"), ("127.0.0.1", "/?token=T")
        self.assertEqual([first, second, first], hosts[:3])

    def test_an_attempt_that_is_never_answered_is_given_up(self):
        accepted = []
        with socket.create_server(("127.0.0.1", 0)) as silent:
            threading.Thread(target=lambda: accepted.append(silent.accept()), daemon=True).start()
            self.write_session(silent.getsockname()[1])
            self.browser.open(self.page)
            wait_until(lambda: accepted)
            self.start_server()  # while the page still waits for the silent one
            self.wait_for_buttons()
            accepted[0][0].close()

    def test_the_window_that_gets_the_focus_tries_at_once(self):
        self.browser.open(self.page)
        self.browser.execute("setTimeout = () => 0")  # no pause ends by itself any more
        self.start_server()

        def appeared():
            self.browser.execute("window.dispatchEvent(new Event('focus'))")
            return self.shown("Rotate")

        wait_until(appeared)

    def test_it_tries_again_after_a_second_and_after_five_once_it_has_failed_for_minutes(self):
        self.browser.open(self.page)
        self.browser.execute(
            "window.delays = []; const original = setTimeout;"
            "setTimeout = (act, delay) => {"
            "  if (delay <= 5000) delays.push(delay);"  # the driver of WPE has longer ones
            "  return original(act, delay); }"
        )
        wait_until(lambda: 1000 in self.browser.execute("return delays"))
        self.browser.execute(FORWARD.format(180_000) + "delays = []")
        # An attempt's limit and the pause after it are 5 s each now.
        wait_until(lambda: self.browser.execute("return delays.slice(0, 2)") == [5000, 5000])

    def test_attempts_leave_no_script_elements_behind(self):
        self.open_connected()
        self.assertEqual([], self.browser.elements("//script[contains(@src, 'session.js')]"))

    # -- a click and its answer

    def test_each_button_sends_its_message_and_no_other(self):
        server = self.open_connected()
        for page, name, message in (
            ("Rotator", "Rotate", "rotate"),
            ("Rotator", "Duplicate", "duplicate"),
            ("Rotator", "Undo", "undo"),
            ("Time", "Set", "set-time"),
            ("Time", "Add", "set-time"),
        ):
            with self.subTest(button=name):
                self.sketch.answer(f"OK {name} done.")
                self.click(page)
                before = len(server.lines(" < "))
                self.click(name)
                self.wait_for_footer(f"✓ {name} done.")
                sent = server.lines(" < ")[before:]
                self.assertEqual([message], [line.split(" < ")[1] for line in sent])

    def test_a_button_says_that_it_is_working_until_its_answer_arrives(self):
        self.open_connected()
        rotate = self.browser.button("Rotate")
        self.sketch.hold()
        self.click("Rotate")
        wait_until(lambda: not self.enabled("Rotate"))
        self.assertEqual("true", self.browser.get(rotate, "attribute/aria-busy"))
        self.assertEqual("Running Rotate …", self.text("answer"))
        self.assertTrue(self.enabled("Undo"))
        self.sketch.release()
        self.wait_for_footer("✓ Done.")
        self.assertTrue(self.enabled("Rotate"))
        self.assertIsNone(self.browser.get(rotate, "attribute/aria-busy"))

    def test_from_the_third_second_on_it_says_how_long_it_has_been_working(self):
        self.open_connected()
        self.sketch.hold()
        self.click("Rotate")
        self.assertEqual("Running Rotate …", self.text("answer"))
        self.browser.execute(FORWARD.format(3_000))
        wait_until(lambda: re.fullmatch("Running Rotate … [3-9] s", self.text("answer")))
        seconds = self.browser.find("//*[@id='answer']//*[contains(text(), ' s')][last()]")
        self.assertEqual("true", self.browser.get(seconds, "attribute/aria-hidden"))

    def test_a_click_behind_another_says_that_it_waits(self):
        self.open_connected()
        self.sketch.hold()
        self.click("Rotate")
        self.click("Duplicate")
        self.click("Undo")
        self.assertEqual(
            "Running Rotate … Duplicate waits until Rotate is answered. "
            "Undo waits until Duplicate is answered.",
            self.text("answer"),
        )
        self.sketch.answer("ERROR No.")
        self.sketch.mood('read -r line <"$here/gate"; echo "$line"')
        self.sketch.release()
        self.wait_for_footer("✕ Failed: No. Running Duplicate … Undo waits until Duplicate is")
        self.sketch.say("OK Two.")
        self.wait_for_footer("✓ Two. Running Undo …")
        self.sketch.say("OK Three.")
        wait_until(lambda: self.text("answer") == "✓ Three.")

    def test_the_buttons_of_one_message_wait_together(self):
        self.open_connected("Time")
        self.sketch.hold()
        self.click("Set")
        self.assertEqual([False] * 3, [self.enabled(name) for name in NEEDS_SKETCH["Time"]])
        self.sketch.release()
        wait_until(lambda: all(self.enabled(name) for name in NEEDS_SKETCH["Time"]))

    def test_a_server_that_falls_silent_is_given_up_and_connected_anew(self):
        server = self.open_connected()
        server.mark()
        self.addCleanup(server.process.send_signal, signal.SIGCONT)
        server.process.send_signal(signal.SIGSTOP)
        self.click("Rotate")
        self.click("Undo")
        self.browser.execute(FORWARD.format(69_000))
        told = "✕ The server has not answered for 70 s. Check your layers before you try again."
        self.wait_for_footer(told)
        self.wait_for_buttons(shown=False)
        server.process.send_signal(signal.SIGCONT)
        server.wait_for("= open")
        self.wait_for_buttons()
        self.assertEqual(f"{told} Connected to Sketch", self.footer())
        self.click("Duplicate")
        wait_until(lambda: self.text("answer") == "✓ Done.")

    def test_a_lost_connection_ends_the_waiting_and_says_what_to_do(self):
        server = self.open_connected()
        self.sketch.hold()
        self.click("Rotate")
        wait_until(self.sketch.calls)
        server.process.kill()
        self.wait_for_buttons(shown=False)
        told = "✕ The connection was lost before the answer came. Check your layers before you try"
        self.assertIn(told, self.footer())
        self.sketch.release()
        self.start_server()
        self.wait_for_buttons()
        self.assertIn(told, self.footer())
        self.assertTrue(self.enabled("Rotate"))

    def test_an_old_answer_does_not_stay_under_a_new_connection_or_on_another_page(self):
        server = self.open_connected()
        self.sketch.answer("ERROR Select two layers.")
        self.click("Rotate")
        self.wait_for_footer("✕ Failed: Select two layers.")
        server.stop()
        self.wait_for_buttons(shown=False)
        self.start_server()
        self.wait_for_buttons()
        self.assertEqual("Connected to Sketch", self.footer())
        self.click("Rotate")
        self.wait_for_footer("✕ Failed: Select two layers.")
        self.click("Time")
        self.assertEqual("Connected to Sketch", self.footer())

    def test_a_failed_answer_differs_by_more_than_its_colour(self):
        self.open_connected()
        self.sketch.answer("ERROR Select two layers.")
        self.click("Rotate")
        self.wait_for_footer("✕ Failed: Select two layers.")
        failed = self.answer_colour()
        self.sketch.answer("OK Rotated.")
        self.click("Rotate")
        self.wait_for_footer("✓ Rotated.")
        self.assertNotIn("✕", self.footer())
        self.assertNotEqual(failed, self.answer_colour())

    def answer_colour(self):
        return self.browser.execute(
            "return getComputedStyle(document.querySelector('#answer > *')).color"
        )

    def test_of_a_long_failure_the_last_lines_are_shown(self):
        self.open_connected()
        self.sketch.answer("\n".join([*(f"line {n}" for n in range(90)), "TypeError: the cause"]))
        self.sketch.mood('cat "$here/answer"; exit 1')
        self.click("Rotate")
        self.wait_for_footer("the cause")
        below, above = self.browser.execute(
            "const answer = document.querySelector('#answer');"
            "return [answer.scrollHeight - answer.clientHeight - answer.scrollTop,"
            "  answer.scrollTop]"
        )
        self.assertLess(below, 2)
        self.assertGreater(above, 100)

    def test_an_answer_that_contains_html_is_shown_as_text(self):
        self.open_connected()
        html = "<b>bold</b><img src=x onerror=\"document.title='stolen'\">"
        self.sketch.answer(f"OK {html}")
        self.click("Rotate")
        self.wait_for_footer(html)
        self.assertEqual([], self.browser.elements("//footer//img"))
        self.assert_title(angle="30")

    def test_a_dry_run_is_said_from_the_first_moment(self):
        self.start_server("--dry-run")
        self.browser.open(self.page)
        self.wait_for_buttons()
        self.assertEqual("Connected (dry run, no Sketch)", self.footer())
        self.click("Rotate")
        self.wait_for_footer("Dry run: ")
        self.assertIn("Connected (dry run, no Sketch)", self.footer())

    def test_an_unexpected_reply_is_shown_and_breaks_nothing(self):
        replies = ("nonsense", "null", "[]", "{}", '{"message": 1, "status": 2}', "<b>x</b>")
        next_reply = iter(replies)

        class Fake(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                if message == "rotate":
                    self.send(next(next_reply))
                else:  # it ends the waiting for both
                    for sent in ("rotate", message):
                        self.send(json.dumps({"message": sent, "status": "done", "output": "OK."}))

        with running(Fake) as fake:
            self.write_session(fake.port)
            self.browser.open(self.page)
            self.wait_for_buttons()
            for reply in replies:
                with self.subTest(reply=reply):
                    self.click("Rotate")
                    self.wait_for_footer(f"✕ Unexpected reply: {reply} Running Rotate …")
                    self.click("Undo")
                    wait_until(lambda: self.text("answer") == "✓ OK.")
            self.browser.open("about:blank")

    # -- the values

    def test_the_title_has_all_values_from_the_first_moment(self):
        self.browser.open(self.page)
        self.assertEqual(
            {"angle": "30", "rows": DEFAULT_ROWS, "time": "10:10:30", "amount": "1"},
            self.values(),
        )

    def test_the_title_follows_every_key(self):
        self.browser.open(self.page)
        angle = self.browser.field("Angle")
        self.browser.execute(SELECT_ALL, angle)
        for typed, key in (("-", "-"), ("-7", "7"), ("-7.", "."), ("-7.x", "x")):
            self.browser.press(key)
            self.assert_title(angle=typed)
        for text in ('a "quoted" \\ name', "three   spaces ", "ä 時 🕐", "</title><b>"):
            with self.subTest(text=text):
                self.set_value(self.row_fields()[0], text)
                self.assertEqual(text, self.values()["rows"][0]["name"])
        self.click("Time")
        self.enter("Time", "7:5x")
        self.enter("Amount", "2")
        self.assert_title(time="7:5x", angle="-7.x", amount="2")

    def set_value(self, field, text):
        """Enter a text that WebDriver cannot type everywhere, such as an emoji, or a long one."""
        self.browser.execute(
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new InputEvent('input', {bubbles: true}))",
            field,
            text,
        )

    def test_rows_are_added_and_removed(self):
        self.browser.open(self.page)
        self.click("Add row")
        self.assert_title(rows=[*DEFAULT_ROWS, {"name": "", "angle": ""}])
        self.browser.press("o", "n", "e", TAB, "1", "5")
        one = {"name": "one", "angle": "15"}
        self.assert_title(rows=[*DEFAULT_ROWS, one])
        self.browser.click(self.browser.elements("//tbody//button[normalize-space()='Remove']")[1])
        self.assert_title(rows=[DEFAULT_ROWS[0], *DEFAULT_ROWS[2:], one])
        for _ in range(6):
            self.click("Remove")
        self.assert_title(rows=[])
        self.click("Add row")
        self.assert_title(rows=[{"name": "", "angle": ""}])

    def test_a_row_that_was_removed_can_be_put_back(self):
        self.browser.open(self.page)
        for which in (1, 0, -1):
            with self.subTest(row=which):
                name = DEFAULT_ROWS[which]["name"]
                buttons = self.browser.elements("//tbody//button[normalize-space()='Remove']")
                self.browser.click(buttons[which])
                self.assertNotIn(DEFAULT_ROWS[which], self.values()["rows"])
                self.assertEqual(f'Removed "{name}". Put back', self.text("answer"))
                self.click("Put back")
                self.assert_title(rows=DEFAULT_ROWS)
                self.assertEqual("", self.text("answer"))
                focused = "return document.activeElement.value"
                self.assertEqual(name, self.browser.execute(focused))

    def test_more_than_sketch_can_read_is_said_before_it_is_lost_and_no_longer_than_that(self):
        self.browser.open(self.page)
        field = self.row_fields()[0]
        room = 1000 - len(self.browser.execute("return document.title"))
        longest = "x" * (len("5min") + room)
        told = "Too long for Sketch to read, by {}. Shorten a value, or remove one."
        for excess, text in ((0, ""), (1, told.format("1 character")), (0, "")):
            with self.subTest(excess=excess):
                self.set_value(field, longest + "x" * excess)
                self.assertEqual(text, self.text("answer"))
        self.set_value(field, longest + "x" * 20)
        self.assertEqual(told.format("20 characters"), self.text("answer"))
        self.click("Time")
        self.assertEqual(told.format("20 characters"), self.text("answer"))
        self.click("Rotator")
        self.browser.click(self.browser.elements("//tbody//button")[1])  # another row: it fits
        self.assertNotIn("Too long", self.text("answer"))

    def test_the_state_of_the_page_survives_the_loss_of_the_connection(self):
        server = self.open_connected()
        self.enter("Angle", "42")
        self.browser.enter(self.row_fields()[0], "first")
        self.click("Time")
        self.enter("Amount", "3:16")
        self.enter("Time", "12:34")
        self.click("Set")
        self.wait_for_footer("✓ Done.")
        before = self.values()
        server.stop()
        self.wait_for_buttons(shown=False, page="Time")
        self.start_server()
        self.wait_for_buttons(page="Time")
        self.assertEqual(before, self.values())
        self.assertEqual(("12:34", "3:16"), (self.value("Time"), self.value("Amount")))

    # -- a page of one's own

    def test_a_page_of_ones_own_needs_nothing_but_back_channel_js(self):
        self.open_own_page(OWN_PAGE + '<p id="answer"></p><p id="state"></p>')
        self.assertFalse(self.shown("Spread"))
        self.assertEqual(
            "Not connected. In Sketch's Plugins menu, choose this plugin's start-webservice.",
            self.text("state"),
        )
        server = self.start_server()
        wait_until(lambda: self.shown("Spread"))
        self.assertEqual("Connected to Sketch", self.text("state"))
        self.sketch.hold()
        self.click("Spread")
        self.assertEqual("Running Spread …", self.text("answer"))
        self.assertFalse(self.enabled("Spread"))
        self.sketch.answer("OK Spread three.")
        self.sketch.release()
        wait_until(lambda: self.text("answer") == "✓ Spread three.")
        self.assertEqual(1, len(server.lines("< rotate")))
        server.stop()
        wait_until(lambda: not self.shown("Spread"))
        self.assertIn("Not connected.", self.text("state"))

    def test_every_field_of_ones_own_with_a_name_is_a_value(self):
        self.open_own_page()
        self.assertEqual(OWN_VALUES, self.values())
        for label, changed in (
            ("Columns", {"columns": False}),
            ("Right", {"side": "right"}),
            ("Left", {"side": "left"}),
        ):
            with self.subTest(label):
                self.browser.click(self.own_field(label))
                self.assert_title(**changed)
        self.browser.enter(self.own_field("Spacing"), " 12 ")
        self.browser.enter(self.own_field("Count"), "7")
        self.browser.enter(self.own_field("Note"), "one  line")
        self.browser.execute(
            "const select = document.querySelector('select'); select.value = 'mm';"
            "select.dispatchEvent(new Event('change', {bubbles: true}))"
        )
        self.assert_title(spacing=" 12 ", count="7", note="one  line", unit="mm")

    def own_field(self, label):
        return self.browser.find(f"//label[normalize-space(text())='{label}']/*")

    def test_what_a_pages_own_script_changes_is_a_value_too(self):
        self.open_own_page()
        self.browser.execute(
            "const item = document.querySelector('ul').lastElementChild.cloneNode(true);"
            "item.firstElementChild.value = '2'; document.querySelector('ul').append(item)"
        )
        self.assert_title(stops=[{"at": "1"}, {"at": "2"}])
        self.browser.execute("document.querySelector('ul').children[1].remove()")
        self.assert_title(stops=[{"at": "2"}])
        self.browser.execute(
            "document.querySelector('[name=spacing]').value = '99'; backChannel.saveValues()"
        )
        self.assert_title(spacing="99")

    def test_a_field_without_a_name_is_told_by_its_label_or_its_id(self):
        answer = '<p id="answer"></p>'
        told = 'Give the field "{}" a name="…", or no script can read it.'
        for field, label in (
            ("<label>Spacing <input></label>", "Spacing"),
            ("<label>Unit <select><option>px</option></select></label>", "Unit"),
            ('<label for="a">Unit</label><select id="a"></select>', "Unit"),
            ('<textarea aria-label="Note"></textarea>', "Note"),
            ('<input id="gap">', "gap"),
            ('<ul data-list="stops"><li><input name="at"><input id="gap"></li></ul>', "gap"),
        ):
            with self.subTest(field):
                self.open_own_page(OWN_PAGE + field + answer)
                self.assertEqual(told.format(label), self.text("answer"))
        self.open_own_page(OWN_PAGE + '<input type="button" value="Close">' + answer)
        self.assertEqual("", self.text("answer"))
        self.browser.execute("document.body.append(document.createElement('input'))")
        self.assertEqual(told.format("text"), self.text("answer"))
        self.browser.execute("document.body.lastElementChild.remove()")
        self.assertEqual("", self.text("answer"))

    def test_a_name_that_two_fields_have_is_told(self):
        told = 'Two fields have the name "{}". Give one of them another.'
        for field, name in (
            ('<input name="spacing">', "spacing"),
            ('<input name="stops">', "stops"),
            ('<ul data-list="gaps"><li><input name="at"><input name="at"></ul>', "at"),
            ('<ul data-list="gaps"><li><input name="at"><li><input name="at"></ul>', None),
            ('<input name="toString">', None),
        ):
            with self.subTest(field):
                self.open_own_page(OWN_PAGE + field + '<p id="answer"></p>')
                self.assertEqual(told.format(name) if name else "", self.text("answer"))

    def test_a_page_that_shows_neither_answer_nor_state_works_and_meets_no_error(self):
        watch = "<script>window.errors = []; onerror = (text) => { errors.push(text); };</script>"
        self.open_own_page(OWN_PAGE.replace("<form>", f"{watch}<form>"))
        server = self.start_server()
        wait_until(lambda: self.shown("Spread"))
        self.click("Spread")
        wait_until(lambda: server.lines("> done") and self.enabled("Spread"))
        server.stop()
        wait_until(lambda: not self.shown("Spread"))
        self.browser.press(ENTER)
        self.browser.type(self.own_field("Spacing"), ENTER)
        self.assertEqual([], self.browser.execute("return errors"))

    def test_return_in_a_form_of_ones_own_says_that_there_is_no_connection(self):
        self.open_own_page(OWN_PAGE + '<p id="answer"></p>')
        self.browser.execute("window.sameAsBefore = true")
        self.browser.type(self.own_field("Spacing"), ENTER)
        self.assertEqual("✕ Not sent: There is no connection.", self.text("answer"))
        self.start_server()
        wait_until(lambda: self.shown("Spread"))
        self.assertEqual("", self.text("answer"))
        self.browser.type(self.own_field("Spacing"), ENTER)
        wait_until(lambda: self.text("answer") == "✓ Done.")
        self.assertTrue(self.browser.execute("return window.sameAsBefore"), "the page was reloaded")

    def test_the_pages_words_about_no_connection_are_kept(self):
        self.open_own_page(
            '<script src="back-channel.js" defer></script><p id="state">Ask <b>me</b>.'
        )
        self.assertEqual("Ask me.", self.text("state"))
        server = self.start_server()
        wait_until(lambda: self.text("state") == "Connected to Sketch")
        server.stop()
        wait_until(lambda: self.text("state") == "Ask me.")
        self.assertEqual(1, len(self.browser.elements("//p/b")))

    # -- the time

    def test_add_adds_the_amount_to_the_time_and_sets_it(self):
        self.open_connected("Time")
        for time_, amount, expected in (
            ("10:10:57", "5", "10:11:02"),
            ("23:59:59", "1", "00:00:00"),
            ("23:30", "1:00:00", "00:30:00"),
            ("10", "3:16", "10:03:16"),
            ("9:5", "90", "09:06:30"),
            (" 0 ", "25:00:01", "01:00:01"),
        ):
            with self.subTest(time=time_, amount=amount):
                self.sketch.answer(f"OK It is {expected}.")
                self.enter("Time", time_)
                self.enter("Amount", amount)
                self.click("Add")
                self.assert_title(time=expected)
                self.assertEqual(expected, self.value("Time"))
                self.wait_for_footer(f"✓ It is {expected}.")
        self.assertEqual(6, len(self.sketch.calls()))

    def test_a_bad_time_or_amount_is_quoted_and_marked_and_nothing_is_sent(self):
        server = self.open_connected("Time")
        a_time, an_amount = "not a time of day", "not an amount of time"
        for time_, amount, wrong, told in (
            ("24:00", "1", "Time", f'"24:00" is {a_time}'),
            ("12:60", "1", "Time", f'"12:60" is {a_time}'),
            ("", "1", "Time", f'"" is {a_time}'),
            ("1:2:3:4", "1", "Time", f'"1:2:3:4" is {a_time}'),
            ("10", "", "Amount", f'"" is {an_amount}'),
            ("10", "-1", "Amount", f'"-1" is {an_amount}'),
            ("10", "1:60", "Amount", f'"1:60" is {an_amount}'),
        ):
            with self.subTest(time=time_, amount=amount):
                self.enter("Time", time_)
                self.enter("Amount", amount)
                self.click("Add")
                self.assertIn(told, self.footer())
                self.assertEqual(wrong, self.focused())
                self.assertEqual([wrong], self.marked())
                self.assert_title(time=time_)
        self.click("Run")
        self.assertTrue(self.enabled("Run") and not self.shown("Stop"))
        self.assertEqual([], server.lines(" < "))

    def test_set_leaves_the_judgement_of_the_time_to_the_script(self):
        server = self.open_connected("Time")
        self.enter("Time", "noon")
        self.sketch.answer('ERROR "noon" is not a time of day.')
        self.click("Set")
        self.wait_for_footer('✕ Failed: "noon" is not a time of day.')
        self.assertEqual(1, len(server.lines("< set-time")))
        wait_until(lambda: self.marked() == ["Time"])

    def test_run_ticks_once_a_second_until_stop(self):
        server = self.open_connected("Time")
        self.assertFalse(self.shown("Stop"))
        self.click("Run")
        wait_until(lambda: self.shown("Stop"))
        self.assertFalse(self.shown("Run"))
        self.assertEqual([False, False], [self.enabled("Set"), self.enabled("Add")])
        wait_until(lambda: len(server.times("> done")) >= 4)
        self.click("Stop")
        self.assertFalse(self.shown("Stop"))
        wait_until(lambda: [self.enabled(name) for name in NEEDS_SKETCH["Time"]] == [True] * 3)
        ticks = server.times("< set-time")
        for gap in (after - before for before, after in zip(ticks, ticks[1:])):
            self.assertAlmostEqual(1, gap, delta=0.4)
        self.assertEqual(f"10:10:{30 + len(ticks)}", self.value("Time"))
        self.click("Add")  # had Run gone on, one more tick would come before or with this one
        wait_until(lambda: self.enabled("Add"))
        self.assert_title(time=f"10:10:{31 + len(ticks)}")

    def test_while_run_ticks_nothing_flickers_and_nothing_is_spoken_each_second(self):
        server = self.open_connected("Time")
        self.click("Run")
        self.wait_for_footer("✓ Done.")
        self.browser.execute(
            "window.texts = []; const answer = document.querySelector('#answer');"
            "new MutationObserver(() => texts.push(answer.textContent))"
            "  .observe(answer, {childList: true, characterData: true, subtree: true});"
        )
        self.assertEqual("off", self.browser.execute("return answer.getAttribute('aria-live')"))
        count = len(server.times("> done"))
        wait_until(lambda: len(server.times("> done")) >= count + 2)
        self.assertEqual([], self.browser.execute("return texts"))
        self.click("Stop")
        self.assertEqual("polite", self.browser.execute("return answer.getAttribute('aria-live')"))
        wait_until(lambda: self.enabled("Run"))

    def test_a_tick_is_no_news_on_the_other_page_but_its_failure_is(self):
        server = self.open_connected("Time")
        self.click("Run")
        self.wait_for_footer("✓ Done.")
        self.click("Rotator")
        count = len(server.times("> done"))
        wait_until(lambda: len(server.times("> done")) >= count + 2)
        self.assertEqual("Connected to Sketch", self.footer())
        self.sketch.answer("ERROR Select a clock.")
        self.wait_for_footer("✕ Failed: Select a clock.")
        self.click("Time")
        self.assertTrue(self.shown("Run") and not self.shown("Stop"))

    def test_run_waits_for_each_answer(self):
        server = self.open_connected("Time")
        self.sketch.take(1.2)
        self.click("Run")
        wait_until(lambda: len(server.lines("> done")) == 2)
        self.click("Stop")
        wait_until(lambda: self.enabled("Run"))
        directions = re.findall(" ([<>]) ", "\n".join(server.lines(" [<>] ")))
        self.assertEqual(["<", ">"] * (len(directions) // 2), directions)

    def test_run_stops_when_the_connection_is_lost(self):
        server = self.open_connected("Time")
        self.click("Run")
        wait_until(lambda: server.lines("> done"))
        server.stop()
        self.wait_for_buttons(shown=False, page="Time")
        self.assertFalse(self.shown("Stop"))
        stopped_at = self.value("Time")
        again = self.start_server()
        self.wait_for_buttons(page="Time")
        self.assertFalse(self.shown("Stop"))
        self.assertEqual(stopped_at, self.value("Time"))
        self.assertEqual([], again.lines("< "))

    def test_run_stops_when_an_answer_says_that_it_failed(self):
        self.open_connected("Time")
        self.sketch.answer("ERROR Select a clock.")
        self.click("Run")
        self.wait_for_footer("✕ Failed: Select a clock.")
        wait_until(lambda: not self.shown("Stop") and self.enabled("Run"))

    # -- wrong fields and numbers

    def marked(self):
        """The labels of the fields that are marked as wrong."""
        return self.browser.execute(
            "return [...document.querySelectorAll('[aria-invalid=true]')]"
            "  .map((e) => e.labels[0]?.textContent ?? e.getAttribute('aria-label'))"
        )

    def test_a_field_that_an_error_quotes_is_marked_until_it_is_changed(self):
        self.open_connected()
        for field, button, text, label in (
            (lambda: self.browser.field("Angle"), "Rotate", "thirty", "Angle"),
            (lambda: self.row_fields()[3], "Duplicate", "1,5", "Angle of 10min"),
        ):
            with self.subTest(label):
                edge = "return getComputedStyle(arguments[0]).borderTopWidth"
                before = self.browser.execute(edge, field())
                self.browser.enter(field(), text)
                self.sketch.answer(f'ERROR "{text}" is not an angle.')
                self.click(button)
                self.wait_for_footer("✕ Failed")
                self.assertEqual([label], self.marked())
                self.assertEqual(label, self.focused())
                self.assertNotEqual(before, self.browser.execute(edge, field()))
                self.browser.press("3", "0")  # in its place: it is selected
                self.assertEqual([], self.marked())
                self.assertEqual("30", self.browser.get(field(), "property/value"))
        self.sketch.answer('ERROR "30" has no layer [center].')
        self.click("Rotate")
        self.wait_for_footer('"30" has no layer')
        self.assertEqual([], self.marked())

    def test_the_arrow_keys_step_a_number_with_shift_by_ten(self):
        self.browser.open(self.page)
        for name, field, before, keys, after in (
            ("up", "Angle", "30", [UP], "31"),
            ("down below zero", "Angle", "0", [DOWN], "-1"),
            ("ten", "Angle", "-22.5", [SHIFT, UP], "-12.5"),
            ("what is no number", "Angle", "x", [UP], "x"),
            ("an amount", "Amount", "1", [SHIFT, UP], "11"),
            ("no amount below zero", "Amount", "3", [SHIFT, DOWN], "0"),
            ("an amount that is no plain number", "Amount", "3:16", [UP], "3:16"),
        ):
            with self.subTest(name):
                self.click("Rotator" if field == "Angle" else "Time")
                self.enter(field, before)
                self.browser.press(*keys)
                self.assertEqual(after, self.value(field))
                self.assert_title(**{field.lower(): after})
        self.click("Rotator")
        name, angle = self.row_fields()[:2]
        self.browser.enter(angle, "5")
        self.browser.press(UP)
        self.browser.enter(name, "5")
        self.browser.press(UP)
        self.assertEqual({"name": "5", "angle": "6"}, self.values()["rows"][0])

    # -- the keyboard, and those who listen

    def test_return_in_a_field_presses_its_button(self):
        server = self.open_connected()
        for page, label, message in (
            ("Rotator", "Angle", "rotate"),
            ("Time", "Time", "set-time"),
            ("Time", "Amount", "set-time"),
        ):
            with self.subTest(page=page, message=message):
                before = len(server.lines("> done"))
                self.click(page)
                self.browser.type(self.browser.field(label), ENTER)
                wait_until(lambda: len(server.lines("> done")) == before + 1)  # noqa: B023
                self.assertIn(f"< {message}", server.lines(" < ")[-1])
                wait_until(lambda: self.footer().startswith("✓"))
        self.assert_title(time="10:10:31", angle="30")

    def test_return_in_a_row_goes_to_the_next_field_and_duplicates_nothing(self):
        server = self.open_connected()
        self.browser.type(self.row_fields()[0], ENTER)
        for expected in ("Angle of 5min", "Name of row 2", "Angle of 10min"):
            self.assertEqual(expected, self.focused())
            self.browser.press(ENTER)
        self.browser.type(self.row_fields()[-1], ENTER)
        self.assertEqual("Add row", self.focused())
        self.assertEqual([], server.lines(" < "))
        self.assert_title(rows=DEFAULT_ROWS)

    def test_return_without_a_connection_says_why_nothing_happens(self):
        self.browser.open(self.page)
        self.browser.execute("window.sameAsBefore = true")
        for page, label in (("Rotator", "Angle"), ("Time", "Time"), ("Time", "Amount")):
            with self.subTest(label):
                self.click(page)
                self.browser.type(self.browser.field(label), ENTER)
                self.assertEqual("✕ Not sent: There is no connection.", self.text("answer"))
        self.assert_title(time="10:10:30", rows=DEFAULT_ROWS)
        self.start_server()
        self.wait_for_buttons(page="Time")
        self.assertEqual("Connected to Sketch", self.footer())
        self.assertTrue(self.browser.execute("return window.sameAsBefore"), "the page was reloaded")

    def test_return_does_nothing_while_it_works(self):
        server = self.open_connected("Time")
        self.sketch.hold()
        self.browser.type(self.browser.field("Amount"), ENTER + ENTER)
        self.browser.type(self.browser.field("Time"), ENTER)
        self.sketch.release()
        self.wait_for_footer("✓ Done.")
        self.assertEqual(1, len(server.lines("< set-time")))
        self.assert_title(time="10:10:31")

    def test_leaving_a_field_does_not_lose_its_value(self):
        self.browser.open(self.page)
        self.enter("Angle", "77")
        self.browser.press(TAB)
        self.assertNotEqual("Angle", self.focused())
        self.click("Time")
        self.enter("Time", "8:08")
        self.browser.press(SHIFT, TAB)
        self.click("Rotator")
        self.assertEqual("77", self.value("Angle"))
        self.assert_title(angle="77", time="8:08")

    def test_everything_can_be_done_with_the_keyboard_alone(self):
        server = self.open_connected()
        self.tab_to("Rotator")
        self.browser.press(RIGHT)
        self.assertEqual("Time", self.focused())
        self.tab_to("Amount")
        self.browser.press("5")
        self.tab_to("Add")
        self.browser.press(ENTER)
        wait_until(lambda: len(server.lines("> done")) == 1)
        wait_until(lambda: self.focused() == "Add")  # the focus is where it was
        self.tab_to("Run")
        self.browser.press(SPACE)
        wait_until(lambda: self.focused() == "Stop")
        self.browser.press(SPACE)
        wait_until(lambda: self.focused() == "Run")
        self.tab_to("Time")
        self.browser.press(LEFT)
        self.tab_to("Remove 5min")
        self.browser.press(SPACE)
        self.assertEqual("Remove 10min", self.focused())
        self.tab_to("Add row")
        self.browser.press(ENTER)
        self.browser.press("n", "e", "w")
        self.assertEqual({"name": "new", "angle": ""}, self.values()["rows"][-1])
        self.assertEqual(6, len(self.values()["rows"]))
        self.tab_to("Undo")
        self.browser.press(SPACE)
        wait_until(lambda: server.lines("< undo"))

    def tab_to(self, name):
        """Press Tab until this has the focus."""
        for _ in range(40):
            self.browser.press(TAB)
            if self.focused() == name:
                return
        self.fail(f"Tab does not reach {name}")

    def test_the_tabs_are_one_tab_stop_with_arrows_home_and_end(self):
        self.browser.open(self.page)
        self.tab_to("Rotator")
        for key, name in (
            (RIGHT, "Time"),
            (RIGHT, "Time"),
            (HOME, "Rotator"),
            (END, "Time"),
            (LEFT, "Rotator"),
        ):
            self.browser.press(key)
            self.assertEqual(name, self.focused())
            selected = self.browser.find("//*[@role='tab'][@aria-selected='true']")
            self.assertEqual(name, self.browser.get(selected, "text"))
        self.browser.press(TAB)
        self.assertEqual("Angle", self.focused())

    def test_fields_and_remove_are_named_after_their_row_and_the_table_has_a_name(self):
        self.browser.open(self.page)
        names = (
            "return [...arguments[0].querySelectorAll('input, button')]"
            "  .map((e) => e.getAttribute('aria-label'))"
        )
        rows = self.browser.elements("//tbody/tr")
        expected = ["Name of row 2", "Angle of 10min", "Remove 10min"]
        self.assertEqual(expected, self.browser.execute(names, rows[1]))
        self.browser.enter(self.row_fields()[2], "ten")
        expected = ["Name of row 2", "Angle of ten", "Remove ten"]
        self.assertEqual(expected, self.browser.execute(names, rows[1]))
        self.click("Remove")
        expected = ["Name of row 1", "Angle of ten", "Remove ten"]
        self.assertEqual(expected, self.browser.execute(names, rows[1]))
        self.browser.enter(self.row_fields()[0], "")
        expected = ["Name of row 1", "Angle of row 1", "Remove row 1"]
        self.assertEqual(expected, self.browser.execute(names, rows[1]))
        self.assertTrue(self.browser.get(self.browser.find("//table"), "attribute/aria-label"))

    # -- a hostile page

    def test_a_hostile_page_and_its_sandboxed_frame_are_kept_out(self):
        server = self.start_server()
        session = self.resources / "session.js"
        port = re.search(r'"port": (\d+)', session.read_text())[1]
        hostile = HOSTILE_PAGE.replace("PORT", port).replace("SESSION", session.as_uri())
        self.browser.open(f"http://evil.localhost:{serve(self, saying(hostile))}/")

        def outcome():
            text = self.browser.get(self.browser.find("//p"), "text")
            return text if text.count(";") == 4 else None

        self.assertEqual(
            {"page refused", "page could not read", "frame refused", "frame could not read"},
            set(wait_until(outcome).rstrip("; ").split("; ")),
        )
        self.assertEqual([], server.lines(" < "))
        self.assertEqual([], self.sketch.calls())

    def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_in_its_text(self):
        self.browser.open(self.page)
        asked = []
        port = serve(self, saying("window.intruder = true", asked))
        outcome = self.browser.execute_async(
            "const [url, done] = arguments;"
            "const script = document.createElement('script');"
            "script.onload = () => done('loaded'); script.onerror = () => done('blocked');"
            "script.src = url; document.head.append(script);"
            "const inline = document.createElement('script');"
            "inline.textContent = 'window.intruder = true'; document.body.append(inline);",
            f"http://127.0.0.1:{port}/",
        )
        self.assertEqual(
            ["blocked", None], [outcome, self.browser.execute("return window.intruder")]
        )
        self.assertEqual([], asked)

    # -- how it looks

    def test_nothing_is_cut_off_and_no_scroll_bar_stands_in_another(self):
        self.open_framed()
        long = "Nothing is selected. Select two layers: the one to rotate, and the centre. "
        for size in itertools.product((220, 290, 600), (300, 460), (100, 200)):
            self.resize(*size)
            for (tab, rows), answer in itertools.product(
                (("rotator-tab", 1), ("rotator-tab", 30), ("clock-tab", 1)), ("", long, long * 9)
            ):
                with self.subTest(size=size, tab=tab, rows=rows, answer=len(answer)):
                    faults = self.browser.execute_async(
                        "const [tab, count, answer, done] = arguments;"
                        "while (rows.children.length > count) rows.lastElementChild.remove();"
                        "while (rows.children.length < count) appendRow('', '');"
                        "document.getElementById(tab).click();"
                        "backChannel.say('failed', answer);"
                        "const faults = () => {" + FAULTS + "};"
                        "requestAnimationFrame(() => requestAnimationFrame(() => done(faults())));",
                        tab,
                        rows,
                        answer,
                    )
                    self.assertEqual([], faults)

    def test_with_many_rows_only_the_rows_scroll(self):
        self.open_framed()
        self.start_server()
        self.wait_for_buttons()
        before = self.boxes("Angle", "Rotate", "Name", "Connected to Sketch")
        self.browser.execute("for (let i = 0; i < 23; i++) addRowButton.click()")
        self.click("Add row")
        self.assertEqual(before, self.boxes("Angle", "Rotate", "Name", "Connected to Sketch"))
        bottom = self.browser.execute("return document.querySelector('#answer').offsetTop")
        for name in ("Add row", "Duplicate", "Undo"):
            box = self.browser.get(self.browser.button(name), "rect")
            self.assertLess(box["y"] + box["height"], 460 - 60, name)
            self.assertLessEqual(box["y"] + box["height"], bottom or 460, name)

    def boxes(self, *texts):
        path = "//*[normalize-space(text())='{}']"
        return [self.browser.get(self.browser.find(path.format(text)), "rect") for text in texts]

    def test_the_boxes_stay_where_they_are_through_working_done_and_failed(self):
        self.open_framed()
        self.start_server()
        boxes = (
            "return [...document.querySelectorAll('[role=tab], main *, #state')]"
            "  .filter((e) => e.offsetParent).map((e) => {"
            "    const { x, y, width, height } = e.getBoundingClientRect();"
            "    return [e.tagName, e.textContent.slice(0, 9), x, y, width, height].join(' '); })"
        )
        for page, name in (("Rotator", "Rotate"), ("Time", "Set")):
            with self.subTest(page):
                self.wait_for_buttons(page=page) if page == "Rotator" else self.click(page)
                connected = self.browser.execute(boxes)
                self.assertGreater(len(connected), 8)
                self.sketch.hold()
                self.click(name)
                self.wait_for_footer("Running")
                self.assertEqual(connected, self.browser.execute(boxes), "working")
                self.sketch.answer("OK Rotated minutes by 30°.")
                self.sketch.release()
                self.wait_for_footer("✓")
                self.assertEqual(connected, self.browser.execute(boxes), "done")
                self.sketch.answer("ERROR " + "Nothing is selected. Select two layers. " * 20)
                self.click(name)
                self.wait_for_footer("✕")
                self.assertEqual(connected, self.browser.execute(boxes), "failed")
        self.sketch.answer("OK Set.")
        self.click("Run")
        wait_until(lambda: self.shown("Stop"))
        running_ = [box for box in self.browser.execute(boxes) if "Stop" not in box]
        self.click("Stop")
        wait_until(lambda: self.enabled("Run"))
        stopped = [box for box in self.browser.execute(boxes) if "Run" not in box[:12]]
        self.assertEqual([box for box in running_ if "Run" not in box[:12]], stopped)

    def test_text_stands_on_one_line_and_column_heads_over_their_fields(self):
        self.open_framed()
        self.start_server()
        self.wait_for_buttons()
        for page in NEEDS_SKETCH:
            self.click(page)
            for label, field, button in self.browser.execute(
                MIDDLES + "return [...document.querySelectorAll('.line')]"
                "  .filter((line) => line.offsetParent).map((line) => ["
                "    text(line.querySelector('label')), box(line.querySelector('input')),"
                "    text(line.querySelector('button'))])"
            ):
                self.assertAlmostEqual(label["y"], button["y"], delta=0.5)
                self.assertAlmostEqual(label["y"], field["y"], delta=1)
        self.click("Rotator")
        for head_, field in self.browser.execute(
            MIDDLES + "return [...document.querySelectorAll('th')].map((th, i) => ["
            "  text(th), box(document.querySelectorAll('tbody input')[i])])"
        ):
            self.assertAlmostEqual(head_["left"], field["left"], delta=0.5)

    def test_a_focus_ring_is_nowhere_cut_off(self):
        self.open_framed()
        self.start_server()
        self.wait_for_buttons()
        for page in NEEDS_SKETCH:
            self.click(page)
            self.assertEqual([], self.browser.execute(CUT_RINGS))

    def test_a_page_has_one_default_button(self):
        self.open_connected()
        for page, default in (("Rotator", "Rotate"), ("Time", "Set")):
            self.click(page)
            fill = "return getComputedStyle(arguments[0]).backgroundColor"
            fills = [
                self.browser.execute(fill, self.browser.button(name)) for name in NEEDS_SKETCH[page]
            ]
            self.assertEqual(default, NEEDS_SKETCH[page][0])
            self.assertNotEqual(fills[0], fills[1])
            self.assertEqual(1, len(set(fills[1:])))

    def test_what_must_be_seen_has_the_contrast_that_wcag_asks_for(self):
        self.open_connected()
        for scheme in ("light", "dark") if self.engine == "Chromium" else ("light",):
            if self.engine == "Chromium":
                self.browser.emulate("prefers-color-scheme", scheme)
                self.addCleanup(self.browser.emulate)
            for page in NEEDS_SKETCH:
                self.click(page)
                for status in ("done", "failed", "working"):
                    self.browser.execute("backChannel.say(arguments[0], 'x')", status)
                    for name, ratio, least in self.browser.execute(CONTRASTS):
                        with self.subTest(name, scheme=scheme, page=page, status=status):
                            self.assertGreaterEqual(ratio, least)

    def test_forced_colours_keep_the_selected_page_and_the_connection(self):
        if self.engine != "Chromium":
            self.skipTest("only Chromium can be told to force colours")
        self.browser.emulate("forced-colors", "active")
        self.addCleanup(self.browser.emulate)
        self.browser.open(self.page)
        dot = (
            "const { backgroundColor, borderTopColor } ="
            "  getComputedStyle(document.querySelector('#state'), '::before');"
            "return [backgroundColor, borderTopColor]"
        )
        not_connected = self.browser.execute(dot)
        self.start_server()
        self.wait_for_buttons()
        self.assertNotEqual(not_connected, self.browser.execute(dot))
        fill = "return getComputedStyle(arguments[0]).backgroundColor"
        tabs = [self.browser.execute(fill, self.browser.button(name)) for name in NEEDS_SKETCH]
        self.assertNotEqual(*tabs)


class InChromium(DialogueTestCase):
    engine = "Chromium"


class InWPEWebKit(DialogueTestCase):
    engine = "WPE WebKit"


del DialogueTestCase


if __name__ == "__main__":
    unittest.main()
