"""The tests of pebble_ws.py, its plugin and its dialogue.

    python3 -m unittest                                all of them; the standard library is enough
    python3 -m unittest test_pebble_ws.Configuration   only whether your own changes fit together
    PEBBLE_SEED=7 python3 -m unittest                  with what the random peer did in another run

A class stands for a section of the program, in the same order. A test says what it is about with
its name, a table's row with its first cell. Nothing sleeps for a fixed time: tests wait for a line
of the log, an answer, or a state, all with an end. What needs a JavaScript engine or a browser is
skipped, with the reason, where there is none, and required where CI is set.
"""

import ast
import base64
import concurrent.futures
import contextlib
import glob
import html.parser
import http.server
import importlib.util
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
import statistics
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import unittest
import urllib.error
import urllib.parse
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


def load_tests(loader, suites, pattern):
    """Return the classes in the order of this file, so that Configuration is the first to fail."""
    order = {name: place for place, name in enumerate(globals())}

    def place(suite):
        return min((order[type(test).__name__] for test in suite), default=0)

    return unittest.TestSuite(sorted(suites, key=place))


def setUpModule():
    """Let the programs that are started here have the signals of a shell.

    nohup, and & in a script, start these tests with some signals ignored, and what they start
    inherits that. A handler is not inherited.
    """
    by_python = {signal.SIGPIPE, signal.SIGXFSZ}  # which subprocess gives back
    for number in signal.valid_signals() - by_python:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


# ---- A client, which can send anything ----------------------------------------------------------

# Seconds to wait for what must come. Once that was in vain it is less, until the test has ended: a
# table of a hundred rows shall not take long to fail.
patience = PATIENCE = 10


def lose_patience():
    global patience
    patience = 0.3


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
        self.socket = socket.create_connection((host, port), timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.send(*data)

    def send(self, *data):
        self.socket.sendall(b"".join(data))

    def read(self, size=-1):
        """Return so many bytes, or all that come until the server drops TCP."""
        return self._wait(self.file.read, size)

    def _wait(self, method, *arguments):
        try:
            return method(*arguments)
        except socket.timeout:
            lose_patience()
            raise AssertionError("nothing comes, and TCP is not dropped") from None

    def response(self):
        """Return the lines of an HTTP response's head."""
        lines = []
        while (line := self._wait(self.file.readline)) not in (b"", b"\r\n"):
            lines.append(line.decode().rstrip("\r\n"))
        return lines

    def refusal(self):
        """Return status, headers and text of an HTTP response after which TCP is dropped."""
        status, *lines = self.response() or ["no response"]
        return status, dict(line.split(": ", 1) for line in lines), self.read().decode()

    def receive(self):
        """Return a str, bytes, (PONG, payload) or (CLOSE, its code or None); None at the end."""
        start = self.read(2)
        if not start:
            return None
        first, size = start
        if size > 125:
            width, shortest = (2, 126) if size == 126 else (8, 1 << 16)
            size = int.from_bytes(self.read(width), "big")
            if not shortest <= size < 1 << 63:
                raise ValueError(f"not a length in {width} bytes, or a mask: {size}")
        payload = self.read(size)
        if first not in (0x81, 0x82, 0x88, 0x8A) or len(payload) < size:
            raise ValueError(f"no whole frame of a server: {first:#x} {payload[:100]}")
        if first == 0x88:
            self.reason = payload[2:].decode()
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


def wait_until(condition):
    """Return the first true value of condition(). Raise AssertionError if there is none in time."""
    start = time.monotonic()
    while not (value := condition()):
        if time.monotonic() - start > patience + 2:
            lose_patience()
            raise AssertionError(f"not within {time.monotonic() - start:.0f} s")
        time.sleep(0.005)
    return value


def in_a_shell(preparation):
    """Return the start of a command line: a shell that prepares the process for what follows."""
    return ["sh", "-c", f'{preparation}; exec "$@"', "sh"]


@contextlib.contextmanager
def running(handler):
    """Run a WebSocketServer in this process; yield as much of a Server as a client needs."""
    threads = threading.active_count()
    with pebble_ws.WebSocketServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            port = server.server_address[1]
            yield types.SimpleNamespace(port=port, target="/", server=server)
        finally:
            server.shutdown()
            thread.join(10)
    wait_until(lambda: threading.active_count() <= threads)


def session_of(bundle):
    """Return as much of a Server as a client needs, once there is a session file."""
    path = f"{bundle}/Contents/Resources/session.js"
    wait_until(lambda: os.path.exists(path))
    session = json.loads(read(path).partition(" = ")[2].rstrip(";\n"))
    target = f"/?token={session['token']}"
    return types.SimpleNamespace(port=session["port"], target=target, session_file=path)


def counts(process_id):
    """Return how many threads and descriptors it has; 0 where the system does not say."""
    folder = f"/proc/{process_id}"
    if not os.path.isdir("/proc/self/task"):
        return 0, 0
    return len(os.listdir(f"{folder}/task")), len(os.listdir(f"{folder}/fd"))


def memory(process_id):
    """Return the resident memory in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError), open(f"/proc/{process_id}/status") as file:
        return int(re.search(r"VmRSS:\s*(\d+) kB", file.read())[1]) * 1024
    return 0


class Server:
    """pebble_ws.py as a process; `lines` has what it printed since the last `mark`.

    `constants` of the module have other values, `before` is Python that runs before main, `wrapper`
    begins the command line, and `command` takes its place. `port` None leaves the choice to it.
    """

    def __init__(
        self,
        bundle,
        *arguments,
        port=0,
        constants=None,
        before="",
        wrapper=(),
        command=None,
        **options,
    ):
        self.session_file = f"{bundle}/Contents/Resources/session.js"
        start = self.command_line(bundle, constants, before)
        at_port = [] if port is None else ["--port", str(port)]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command or [*wrapper, *start, *at_port, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
            **options,
        )
        self.log, self.came, self.start, self.printed = [], [], 0, threading.Condition()
        self.told = False  # to stop
        self.clients = []
        self.reader = threading.Thread(target=self._read, daemon=True)
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

    @staticmethod
    def command_line(bundle, constants=None, before=""):
        """Return how an installed server is started, with some of its constants changed."""
        folder = f"{bundle}/Contents/Sketch"
        if not constants and not before:
            return [*PYTHON, f"{folder}/pebble_ws.py"]
        lines = [f"import sys; sys.path[0] = {folder!r}; import pebble_ws", before]
        for name, value in (constants or {}).items():
            lines.append(f"pebble_ws.{name}  # there must be one")
            lines.append(f"pebble_ws.{name} = {value!r}")
        return [*PYTHON, "-c", "\n".join([*lines, "sys.exit(pebble_ws.main())"])]

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

    def wait_for(self, pattern, count=1):
        """Return the lines that have the pattern, once there are so many."""
        found, at, deadline = [], self.start, time.monotonic() + patience + 2
        with self.printed:
            while True:
                new, at = self.log[at:], len(self.log)
                found += [line for line in new if line and re.search(pattern, line)]
                if len(found) >= count:
                    return found
                if None in new or not self.printed.wait(deadline - time.monotonic()):
                    lose_patience()
                    last = self.log[self.start :][-30:]
                    raise AssertionError(f"no {pattern} in {last}; {self.stderr()}")

    def counts(self):
        return counts(self.process.pid)

    def memory(self):
        return memory(self.process.pid)

    def open_connections(self):
        """Return the numbers of those whose end is not in the log yet."""
        lines = "\n".join(filter(None, self.log))
        opened, ended = (
            set(re.findall(rf" (#\d+) {end} ", lines)) for end in ("= open", "[=!] closed")
        )
        return opened - ended

    def wake_ups(self):
        """Return how often its threads were woken up, or put aside."""
        total = 0
        for path in glob.glob(f"/proc/{self.process.pid}/task/*/status"):
            total += sum(map(int, re.findall(r"voluntary_ctxt_switches:\s*(\d+)", read(path))))
        return total

    def processor_time(self):
        """Return how many seconds it has used of a processor; 0 where the system does not say."""
        with contextlib.suppress(OSError):
            fields = read(f"/proc/{self.process.pid}/stat").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
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
            wait_until(lambda: not self.open_connections())  # a line may come late
        for line in filter(None, self.log):
            if not re.match(r"\d\d:\d\d:\d\d (#\d+ [=<>|!]|[=!]) ", line) or not line.isprintable():
                raise AssertionError(f"not a line of a log: {line!r}")
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
        for client in self.clients:
            client.close()
        self.terminate()
        try:
            status = self.process.wait(20)
        finally:
            self.kill()
        if status or self.said:
            raise AssertionError(f"exit status {status}; {self.said}")
        self.check()
        if not re.fullmatch(r"\S+ = stopped", self.log[-2]):
            raise AssertionError(f"the last line of the log is {self.log[-2]!r}")
        with contextlib.suppress(OSError, ValueError):  # somebody else's may be there
            if read(self.session_file) == self.session:
                raise AssertionError("it left its session file behind")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.stderr()
        self.errors.close()
        self.reader.join(10)
        if self.reader.is_alive():  # then its output cannot be closed either
            raise AssertionError("something that it started still holds its output")
        self.process.stdout.close()


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
        self.gate = None
        if version:
            with open(f"{self.app}/Contents/Info.plist", "wb") as file:
                plistlib.dump({"CFBundleVersion": version}, file)
        self.reset()

    def reset(self):
        """Forget all calls, let all scripts end that are held, and each that follows be done."""
        self.answer("OK Done.")
        write(f"{self.home}/calls", "")
        self.close()
        os.mkfifo(f"{self.home}/gate")
        self.gate = os.open(f"{self.home}/gate", os.O_RDWR)

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
        if self.gate is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(f"{self.home}/gate")
            os.close(self.gate)
            self.gate = None


class TestCase(unittest.TestCase):
    """Clients of `server`, and servers that end with their test."""

    server = None

    def run(self, result=None):
        global patience
        patience = PATIENCE
        return super().run(result)

    def request(self, *data, server=None, host="127.0.0.1"):
        """Return a client that has sent something."""
        server = server or self.server
        client = Client(server.port, *data, host=host)
        self.addCleanup(client.close)
        getattr(server, "clients", []).append(client)
        return client

    def connect(self, *data, server=None, host="127.0.0.1", **headers):
        """Return a client whose handshake was accepted, and that sent data in the same segment."""
        server = server or self.server
        client = self.request(head(server.target, **headers), *data, server=server, host=host)
        self.assertEqual(["HTTP/1.1 101 Switching Protocols"], client.response()[:1])
        return client

    def assert_fails(self, client, code, *before):
        """Check that these messages, a Close with this code, and the end of TCP are what comes."""
        start = time.monotonic()
        self.assertEqual([*before, (CLOSE, code)], client.rest())
        if time.monotonic() - start > 2.5:  # CLOSE_TIMEOUT is more
            lose_patience()
            self.fail("TCP is dropped late")

    @classmethod
    def started(cls, add_cleanup, *arguments, **options):
        """Return a server that is told to stop after a test or class, and must have at the end."""
        server = Server(*arguments, **options)
        add_cleanup(server.terminate)
        unittest.addModuleCleanup(server.stop)
        return server

    def process(self, command, **options):
        """Start a program that is ended with this test."""
        process = subprocess.Popen(command, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            self.addCleanup(pipe.close)
        return process


def temporary_folder(add_cleanup):
    folder = os.path.realpath(tempfile.mkdtemp(prefix="Skizzen für Zoë "))
    add_cleanup(shutil.rmtree, folder, ignore_errors=True)
    return folder


def installed(folder):
    """Install the plugin into a folder; return the bundle."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = pebble_ws.main(["--install", folder])
    if status or "pebble.sketchplugin" not in printed.getvalue():
        raise AssertionError(printed.getvalue())
    return f"{folder}/pebble.sketchplugin"


class BridgeTestCase(TestCase):
    """An installed plugin, a stand-in Sketch, and a server for all tests, idle after each."""

    constants = {}

    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls.addClassCleanup)
        cls.bundle = installed(cls.folder)
        cls.sketch = StandInSketch(cls.folder)
        cls.addClassCleanup(cls.sketch.close)
        arguments = (cls.bundle, "--sketch", cls.sketch.app)
        cls.server = cls.started(cls.addClassCleanup, *arguments, constants=cls.constants)

    def setUp(self):
        self.sketch.reset()
        self.server.mark()
        self.addCleanup(self.server.check)  # after those of the clients
        self.addCleanup(self.sketch.reset)

    def other_server(self, *arguments, **options):
        """Return a server of another copy of the plugin, with this Sketch."""
        bundle = installed(temporary_folder(self.addCleanup))
        arguments = arguments or ("--sketch", self.sketch.app)
        return self.started(self.addCleanup, bundle, *arguments, **options)

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


def manifest(bundle=PLUGIN):
    """Return the manifest, in which a trailing comma is allowed, as in Sketch."""
    text = read(f"{bundle}/Contents/Sketch/manifest.json")
    return json.loads(re.sub(r'("(?:[^"\\]|\\.)*")|,(?=\s*[]}])', r"\1", text))


class Page(html.parser.HTMLParser):
    """What a page of the panel sends, and the scripts that it loads."""

    def __init__(self, path):
        super().__init__()
        self.messages, self.scripts = [], []
        self.feed(read(path))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "button" and "data-message" in attributes:
            self.messages.append(attributes["data-message"])
        if tag == "script":
            self.scripts.append(attributes.get("src"))


def page_mistakes(bundle, scripts):
    """Yield what is wrong with the buttons of a plugin's pages, a sentence each."""
    for path in sorted(glob.glob(f"{glob.escape(bundle)}/Contents/Resources/*.html")):
        name, page = os.path.basename(path), Page(path)
        for message in page.messages:
            if message not in scripts:
                yield f'A button in {name} sends "{message}". Add it to SCRIPTS in pebble_ws.py.'
        if page.messages and "back-channel.js" not in page.scripts:
            load = '<script src="back-channel.js" defer></script>'
            yield f"The buttons in {name} do nothing without back-channel.js. Add {load}."


def handler_mistakes(bundle):
    """Yield which function, that the manifest names, is not in its script, a sentence each."""
    for command in manifest(bundle).get("commands", []):
        handlers = command.get("handlers", {})
        default = None if "actions" in handlers else "onRun"
        named = {command.get("handler", handlers.get("run", default))}
        named.update(handlers.get("actions", {}).values())
        path = f"{bundle}/Contents/Sketch/{command.get('script')}"
        script = read(path) if os.path.isfile(path) else ""
        for handler in filter(None, named):
            function = rf"(?m)^\s*(function\s+{handler}\s*\(|(var\s+)?{handler}\s*=\s*function\b)"
            if script and not re.search(function, script):
                yield f"{command['script']} has no function {handler}, which manifest.json names."


class Configuration(unittest.TestCase):
    """What a plugin of one's own must pass, too. It starts nothing, and takes a second."""

    def setUp(self):
        try:
            self.manifest = manifest()
        except (OSError, ValueError):
            self.manifest = None
            if self._testMethodName != "test_the_parts_of_the_plugin_fit_together":
                self.skipTest("manifest.json cannot be read")

    def test_the_parts_of_the_plugin_fit_together(self):
        mistakes = [*pebble_ws.find_mistakes(), *page_mistakes(PLUGIN, pebble_ws.SCRIPTS)]
        if self.manifest:
            mistakes += handler_mistakes(PLUGIN)
        if mistakes:
            self.fail("\n\n" + "\n".join(mistakes))

    def test_each_script_is_that_of_a_command(self):
        names = os.listdir(f"{PLUGIN}/Contents/Sketch")
        scripts = {name for name in names if name.endswith(".cocoascript")}
        commands = {command.get("script") for command in self.manifest["commands"]}
        self.assertLessEqual(scripts, commands, "a file in Contents/Sketch, none in manifest.json")

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
        self.assertIn(self.manifest.get("scope", "document"), ("application", "document"))
        self.assertEqual(1, self.manifest.get("bundleVersion", 1))
        for command in self.manifest["commands"]:
            check(
                "a command",
                command,
                ("identifier", "script"),
                handlers=dict,
                **dict.fromkeys((*texts, "shortcut", "script", "handler"), str),
            )
        identifiers = [command["identifier"] for command in self.manifest["commands"]]
        check("menu", self.manifest["menu"], ("items",), title=str, isRoot=bool, items=list)
        check_items(self.manifest["menu"]["items"])

    def test_the_icon_is_a_png_of_128_by_128(self):
        with open(f"{PLUGIN}/Contents/Resources/{self.manifest['icon']}", "rb") as file:
            start = file.read(24)
        self.assertEqual(b"\x89PNG\r\n\x1a\n", start[:8])
        self.assertEqual((128, 128), struct.unpack(">II", start[16:]))

    def test_the_versions_are_equal(self):
        self.assertEqual(pebble_ws.__version__, self.manifest["version"])


class MistakesOfADesigner(TestCase):
    """Each is found by Configuration; what a click needs also at the start, and at the click."""

    def setUp(self):
        self.folder = temporary_folder(self.addCleanup)
        self.sketch = StandInSketch(self.folder)
        self.addCleanup(self.sketch.close)

    def change(self, name, *changes):
        """Replace something that is in a file of the plugin."""
        path = f"{self.bundle}/Contents/{name}"
        text = read(path)
        for old, new in changes:
            self.assertIn(old, text)
            text = text.replace(old, new, 1)
        write(path, text)

    def change_command(self, **changes):
        """Change the command for undo.cocoascript; leave out what is None, and all for None."""
        content = manifest(self.bundle)
        for command in content["commands"]:
            if command["script"] == "undo.cocoascript":
                changed = {**command, **changes}
                command.clear()
                command.update({key: changed[key] for key in changed if changed[key] is not None})
        content["commands"] = [each for each in content["commands"] if "script" in each]
        write(f"{self.bundle}/Contents/Sketch/manifest.json", json.dumps(content, indent=2))

    def add_page(self, text):
        write(f"{self.bundle}/Contents/Resources/own.html", text)

    def rows(self):
        """Yield what is wrong, how it becomes so, the words that tell it, and the click."""
        page = '<!DOCTYPE html><script src="back-channel.js" defer></script>{}'
        script, in_scripts = "Sketch/undo.cocoascript", "Sketch/pebble_ws.py"
        handler = read(f"{PLUGIN}/Contents/Sketch/undo.cocoascript")
        self.assertIn("function onRun(", handler)
        entry = '"undo": "undo.cocoascript"'

        def line_of(text):
            before = read(f"{PLUGIN}/Contents/Sketch/manifest.json").partition(text)[0]
            return before.count("\n") + 1

        yield (
            "a script that is not there",
            lambda: os.remove(f"{self.bundle}/Contents/{script}"),
            ["undo.cocoascript", "Contents/Sketch"],
            "undo",
        )
        yield (
            "a script whose name is mistyped in SCRIPTS",
            lambda: self.change(in_scripts, (entry, '"undo": "undoo.cocoascript"')),
            ["undoo.cocoascript"],
            "undo",
        )
        yield (
            "a script of no plugin",
            lambda: self.change(in_scripts, (entry, f'"undo": "{PROGRAM}"')),
            [os.path.basename(PROGRAM), ".sketchplugin"],
            "undo",
        )
        yield (
            "a script without a command",
            lambda: self.change_command(script=None),
            ["undo.cocoascript", "manifest.json"],
            "undo",
        )
        yield (
            "a command for a script that is mistyped",
            lambda: self.change_command(script="Undoo.cocoascript"),
            ["undo.cocoascript", "manifest.json"],
            "undo",
        )
        yield (
            "a command without an identifier",
            lambda: self.change_command(identifier=None),
            ["undo.cocoascript", "manifest.json", "identifier"],
            "undo",
        )
        yield (
            "a command that kept the identifier of the one that it was copied from",
            lambda: self.change_command(identifier="rotate"),
            ["manifest.json", '"rotate"', "Two"],
            "undo",
        )
        yield (
            "a command that only listens to actions",
            lambda: self.change_command(handler=None, handlers={"actions": {"Startup": "onRun"}}),
            ["undo.cocoascript", "manifest.json"],
            "undo",
        )
        yield (
            "a handler whose name is mistyped",
            lambda: self.change_command(handler="onRnu"),
            ["undo.cocoascript", "onRnu"],
            None,
        )
        yield (
            "a handler whose name is mistyped in the script",
            lambda: self.change(script, ("function onRun(", "function onRnu(")),
            ["undo.cocoascript", "onRun"],
            None,
        )
        yield (
            "a comma too few",
            lambda: self.change(
                "Sketch/manifest.json", ('"identifier": "undo",', '"identifier": "undo"')
            ),
            ["manifest.json", f"line {line_of(chr(34) + 'undo.cocoascript')}"],
            "undo",
        )
        yield (
            "typographic quotes",
            lambda: self.change(
                "Sketch/manifest.json", ('"undo.cocoascript"', "“undo.cocoascript”")
            ),
            ["manifest.json", f"line {line_of(chr(34) + 'undo.cocoascript')}"],
            "undo",
        )
        yield (
            "a manifest that is not there",
            lambda: os.remove(f"{self.bundle}/Contents/Sketch/manifest.json"),
            ["manifest.json"],
            "undo",
        )
        yield (
            "a button whose message is mistyped",
            lambda: self.add_page(page.format('<button data-message="undoo">Undo</button>')),
            ["undoo", "own.html", "SCRIPTS"],
            None,
        )
        yield (
            "a button of a message that is no entry, in single quotes and upper case",
            lambda: self.add_page(
                page.format("<BUTTON\n type=button\n DATA-MESSAGE='fl&amp;ip'>x")
            ),
            ["fl&ip", "own.html", "SCRIPTS"],
            None,
        )
        yield (
            "a page that loads no back-channel.js",
            lambda: self.add_page('<!DOCTYPE html><button data-message="undo">Undo</button>'),
            ["own.html", "back-channel.js"],
            None,
        )
        yield (
            "a page whose back-channel.js is mistyped",
            lambda: self.add_page(
                '<script src="back_channel.js"></script><button data-message="undo">Undo</button>'
            ),
            ["own.html", "back-channel.js"],
            None,
        )

    def test_each_is_one_sentence_that_names_the_file_and_none_ends_in_done(self):
        self.bundle = installed(self.folder)
        good = f"{self.folder}/good"
        shutil.copytree(self.bundle, good)
        for why, spoil, words, click in self.rows():
            with self.subTest(why):
                shutil.rmtree(self.bundle)
                shutil.copytree(good, self.bundle)
                spoil()
                server = Server(self.bundle, "--sketch", self.sketch.app)
                try:
                    self.check_told(server, words, click)
                finally:
                    server.stop()

    def check_told(self, server, words, click):
        # This is what Configuration finds, in the copy that is tested:
        path = f"{self.bundle}/Contents/Sketch/pebble_ws.py"
        spec = importlib.util.spec_from_file_location("pebble_ws_copy", path)
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        mistakes = copy.find_mistakes()
        by_configuration = [*mistakes, *page_mistakes(self.bundle, copy.SCRIPTS)]
        with contextlib.suppress(OSError, ValueError):  # there is no manifest
            by_configuration += handler_mistakes(self.bundle)
        (found,) = [each for each in by_configuration if all(word in each for word in words)]
        self.assertNotIn(self.folder, found, "a file is named by its name")
        self.assertRegex(found, r"\A[^\n]+\.\Z")

        logged = [line.partition(" ! ")[2] for line in server.first_lines if " ! " in line]
        self.assertEqual(mistakes, logged)
        if click:
            self.sketch.reset()
            client = self.connect(server=server)
            answer = client.click(click)
            client.close()
            self.assertEqual(("failed", found), (answer["status"], answer["output"]))
            self.assertEqual([], self.sketch.calls())

    def test_a_message_without_an_entry_is_answered_with_its_name_and_that_of_the_file(self):
        server = self.started(self.addCleanup, installed(self.folder), "--sketch", self.sketch.app)
        answer = self.connect(server=server).click("flipp")
        self.assertEqual("unknown", answer["status"])
        for word in ("flipp", "pebble_ws.py", "SCRIPTS"):
            self.assertIn(word, answer["output"])

    def test_a_plugin_without_mistakes_is_told_none(self):
        bundle = installed(self.folder)
        self.bundle = bundle
        self.add_page('<p data-list="x">no button</p><!-- <button data-message="y"> -->')
        server = self.started(self.addCleanup, bundle, "--sketch", self.sketch.app)
        self.assertEqual([], [line for line in server.first_lines if " ! " in line])


# ---- Opening handshake (4) ----------------------------------------------------------------------


class OpeningHandshake(BridgeTestCase):
    def refusals(self):
        """Yield why, the status, what the log says, and the head."""
        target, token = self.server.target, self.server.token

        def row(why, status, log, *lines, target=target, **changes):
            return why, status, log, head(target, *lines, **changes)

        yield "only empty lines", 400, "", b"\r\n\r\n\r\n\r\n"
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
        yield row("65 KiB of head", 431, "65536", f"X: {'x' * 66_560}")
        yield "a head without end", 431, "65536", head(target)[:-2] + b"X: x\r\n" * 11_000
        yield "a line without end", 431, "65536", b"GET /" + b"x" * 66_000
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
                status_line, headers, text = self.request(data).refusal()
                self.assertRegex(status_line, rf"^HTTP/1\.1 {status} [A-Z]")
                self.assertRegex(text, r"\A[^\n]*WebSocket[^\n]*\n\Z")
                expected = {
                    "Connection: close",
                    "Content-Type: text/plain; charset=utf-8",
                    f"Content-Length: {len(text.encode())}",
                    *more.get(status, ()),
                }
                self.assertLessEqual(expected, {": ".join(each) for each in headers.items()})
                self.server.wait_for(f"! refused {status}: .*{re.escape(log)}")
                self.assertEqual(1, len(self.server.lines()))

    def test_the_log_tells_what_is_malformed(self):
        reasons = set()
        for data in (
            head(self.server.target, request="GET {} HTTP/1.0"),
            head(self.server.target, "X : x"),
            head(self.server.target, Host=None),
            head(self.server.target, request="GET http://localhost{} HTTP/1.1"),
        ):
            self.server.mark()
            self.request(data).refusal()
            reasons.add(self.server.wait_for("! refused 400: ")[0].partition("400: ")[2])
        self.assertEqual(4, len(reasons), reasons)

    def test_who_opens_the_port_in_a_browser_is_told_what_this_is(self):
        data = "GET / HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: Mozilla/5.0\r\n\r\n"
        _, _, text = self.request(data.format(self.server.port).encode()).refusal()
        self.assertIn("Sketch", text)

    def test_what_cannot_become_a_request_is_refused_at_once(self):
        client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32))
        for why, data in (
            ("TLS", client_hello),
            ("its first byte", client_hello[:1]),
            ("HTTP/2", b"\0\0\x12\x04\0\0\0\0\0"),
        ):
            with self.subTest(why):
                start = time.monotonic()
                self.assertIn(" 400 ", self.request(data).refusal()[0])
                self.assertLess(time.monotonic() - start, 2)

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
            {"Cookie": "x" * 8700},
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

    def test_a_head_of_64_kib_is_read_and_not_a_byte_more(self):
        room = 65_536 - len(head(self.server.target, "X: "))
        for size, status in ((room, 101), (room + 1, 431)):
            client = self.request(head(self.server.target, f"X: {'x' * size}"))
            self.assertIn(f" {status} ", client.response()[0])

    def test_an_empty_line_before_the_request_is_skipped(self):  # (RFC 9112, 2.2)
        opening = head(self.server.target)
        for pieces in ([b"\r\n" + opening], [b"\r\n", opening], [b"\r", b"\n" + opening]):
            with self.subTest(pieces):
                client = self.request()
                for piece in pieces:
                    client.send(piece)
                self.assertEqual(["HTTP/1.1 101 Switching Protocols"], client.response()[:1])

    def test_a_head_takes_little_time_whatever_is_in_it(self):
        for line in ("X: x" + " " * 60_000 + "x", "X:" + ",\t" * 30_000, "X:\r\n" * 13_000 + "X:"):
            with self.subTest(line[:9]):
                self.assertLess(self.time_of(self.server, head("/", line)), 0.2)

    def test_a_head_that_comes_in_small_pieces_takes_little_time(self):
        data = head("/", "X: " + "x" * 60_000)
        pieces = [data[at : at + 20] for at in range(0, len(data), 20)]
        self.assertLess(self.time_of(self.server, *pieces), 1)

    def time_of(self, server, *pieces):
        """Return how long the server worked on a head that it refuses, in seconds."""
        before = server.processor_time()
        client = self.request()
        for piece in pieces:
            client.send(piece)
        client.refusal()
        return server.processor_time() - before

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


class Pieces(io.RawIOBase):
    """Bytes that arrive in these pieces, and then no more."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.pieces:
            raise EOFError
        piece = self.pieces.pop(0)
        if len(piece) > len(buffer):
            self.pieces.insert(0, piece[len(buffer) :])
            piece = piece[: len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)


def messages(*pieces):
    """Return what arrives in these pieces: (opcode, payload), fragments joined."""
    reader, result = io.BufferedReader(Pieces(pieces), 1 << 20), []
    with contextlib.suppress(EOFError):
        result.extend(pebble_ws.read_messages(reader, 1 << 20))
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


# ---- Connections (5.4, 5.5, 7) ------------------------------------------------------------------


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


class Connections(TestCase):
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

    def test_a_close_may_arrive_in_two_pieces(self):
        whole = close_of(1001, b"going away")
        for at in range(1, len(whole)):
            client = self.connect(client_frame(TEXT, "x"), whole[:at])
            self.assertEqual("x", client.receive())  # so that the first piece has been received
            client.send(whole[at:])
            self.assert_fails(client, 1001)

    def test_nothing_follows_our_close_but_the_end(self):
        class Closing(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                self.close(3000)

        with running(Closing) as server:
            both = client_frame(TEXT, "x") + client_frame(PING, b"together")
            client = self.connect(both, server=server)
            self.assertEqual((CLOSE, 3000), client.receive())
            client.send(client_frame(PING, b"later"), client_frame(TEXT, "y"), close_of(3000))
            self.assertIsNone(client.receive())
            client.close()

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

    def test_answers_come_in_order_whatever_their_size(self):
        texts = [str(n) * (5000 if n % 7 == 3 else 3) for n in range(100)]
        texts += ["x" * size for size in (900, 1000, 1100, 70_000, 1, 200_000, 2)]
        client = self.connect(*(client_frame(TEXT, text) for text in texts), GOODBYE)
        self.assert_fails(client, 1000, *texts)

    def test_two_small_messages_in_a_row_leave_without_delay(self):
        client = self.connect(client_frame(TEXT, "x"))
        client.receive()
        own = client.socket.getsockname()
        (connection,) = [
            each for each in self.server.server.connections if each.client_address == own
        ]
        option = socket.IPPROTO_TCP, socket.TCP_NODELAY
        self.assertTrue(connection.request.getsockopt(*option))

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
                    list(pool.map(self.send, messages))

        messages = [f"{n} " * (50_000 if n % 4 else 5) for n in range(100)]
        with running(Threads) as server:
            client = self.connect(client_frame(TEXT, "go"), server=server)
            received = [client.receive() for _ in messages]
            client.close()
        self.assertTrue(sorted(messages) == sorted(received))

    def test_send_never_waits_for_another_threads_message_received(self):
        entered, finish = threading.Event(), threading.Event()

        class Slow(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                self.send(message)
                if message == "slow":
                    entered.set()
                    finish.wait(10)

        with running(Slow) as server:
            self.addCleanup(finish.set)
            texts = "before", "slow", "after"
            client = self.connect(*(client_frame(TEXT, text) for text in texts), server=server)
            self.assertTrue(entered.wait(10))
            (connection,) = server.server.connections
            connection.send("from elsewhere")
            received = []
            while "from elsewhere" not in received:
                received.append(client.receive())
            finish.set()
            received += [client.receive() for _ in range(4 - len(received))]
            received.remove("from elsewhere")
            self.assertEqual([*texts], received)
            client.close()

    def test_send_before_the_connection_is_open_is_a_connection_error(self):
        handlers = queue.Queue()

        class Newcomer(Echo):
            def setup(self):
                super().setup()
                handlers.put(self)

        with running(Newcomer) as server:
            client = self.request(head()[:30], server=server)
            newcomer = handlers.get(timeout=10)
            for message in ("x", b"x"):
                with self.assertRaises(ConnectionError):
                    newcomer.send(message)
            client.send(head()[30:])
            self.assertEqual(["HTTP/1.1 101 Switching Protocols"], client.response()[:1])
            client.send(client_frame(TEXT, "first"))
            self.assertEqual("first", client.receive())
            client.close()
            wait_until(lambda: not server.server.connections)
            with self.assertRaises(ConnectionError):
                newcomer.send("gone")

    def test_a_broadcast_reaches_all_while_others_come_and_go(self):
        with running(Echo) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
            stays = self.connect(client_frame(TEXT, "here"), server=server)
            self.assertEqual("here", stays.receive())

            def come_and_go(number):
                client = Client(server.port, head())
                try:
                    client.response()
                finally:
                    client.close(reset=number % 2)

            visits = [pool.submit(come_and_go, number) for number in range(200)]
            rounds = 0
            while rounds < 100 or not all(visit.done() for visit in visits):
                for connection in server.server.connections:
                    with contextlib.suppress(ConnectionError):
                        connection.send("news")
                self.assertEqual("news", stays.receive())
                rounds += 1
            for visit in visits:
                visit.result()
            stays.close()

    def test_the_connections_of_two_servers_are_separate(self):
        with running(Echo) as one, running(Echo) as two:
            clients = [
                self.connect(client_frame(TEXT, "x"), server=server) for server in (one, two, two)
            ]
            for client in clients:
                self.assertEqual("x", client.receive())
            self.assertEqual([1, 2], [len(list(each.server.connections)) for each in (one, two)])
            for connection in one.server.connections:
                connection.send("for one")
            self.assertEqual("for one", clients[0].receive())
            for client in clients:
                client.send(GOODBYE)
                self.assert_fails(client, 1000)
                client.close()

    def test_leaving_the_with_block_closes_every_connection_with_1001(self):
        with mock.patch.object(pebble_ws, "CLOSE_TIMEOUT", 0.3), running(Echo) as server:
            clients = [self.connect(client_frame(TEXT, "x"), server=server) for _ in range(3)]
            for client in clients:
                self.assertEqual("x", client.receive())
            half_open = self.request(head()[:30], server=server)
            wait_until(lambda: len(server.server.connections) == 4)
            server.server.shutdown()
            closing = threading.Thread(target=server.server.server_close, daemon=True)
            closing.start()
            for number, client in enumerate(clients):
                self.assertEqual((CLOSE, 1001), client.receive())
                if number:  # the first one never answers
                    client.send(close_of(1001))
                self.assertIsNone(client.receive())
            closing.join(10)
            self.assertFalse(closing.is_alive())
            self.assertIn(half_open.read()[:5], (b"", b"HTTP/"))  # and never a frame
            with self.assertRaises(ConnectionRefusedError):
                self.request(server=server)
            for client in clients:
                client.close()

    def test_a_peer_that_does_not_read_is_dropped_after_a_time(self):
        class Impatient(Echo):
            send_timeout = 0.2

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

    def test_an_error_that_a_subclass_raises_ends_the_connection_in_good_order(self):
        class Raising(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                self.send(message)
                if message != "first":
                    raise errors[message]

        errors = {
            "1008": pebble_ws.ProtocolError(1008, "too " * 50),
            "letters": pebble_ws.ProtocolError(3001, "é" * 100),
            "4000": pebble_ws.ProtocolError(4000, ""),
            "403": pebble_ws.ProtocolError(403, "a status, after the opening"),
            "999": pebble_ws.ProtocolError(999, "neither"),
            "1005": pebble_ws.ProtocolError(1005, "not to be sent"),
            "1006": pebble_ws.ProtocolError(1006, "not to be sent"),
            "5000": pebble_ws.ProtocolError(5000, "of nobody"),
            "gone": ConnectionError("another one has gone"),
            "gone, too": ConnectionResetError("another one has gone"),
        }
        with contextlib.redirect_stderr(io.StringIO()) as shown, running(Raising) as server:
            for name, code, reason in (
                ("1008", 1008, "too too "),
                ("letters", 3001, "éé"),
                ("4000", 4000, ""),
                ("403", None, ""),
                ("999", None, ""),
                ("1005", None, ""),
                ("1006", None, ""),
                ("5000", None, ""),
            ):
                with self.subTest(name):
                    data = [client_frame(TEXT, text) for text in ("first", name, "later")]
                    client = self.connect(*data, server=server)
                    self.assertEqual(["first", name], [client.receive() for _ in range(2)])
                    ((closed, received),) = client.rest()
                    self.assertEqual(CLOSE, closed)
                    self.assertIn(received, {code} if code else {1002, 1008, 1011})
                    self.assertTrue(client.reason.startswith(reason))
                    client.close()
            for name in ("gone", "gone, too"):
                with self.subTest(name):
                    data = [client_frame(TEXT, text) for text in ("first", name, "later")]
                    client = self.connect(*data, server=server)
                    self.assertEqual(["first", name], client.rest()[:2])
                    client.close()
        self.assertEqual("", shown.getvalue())

    def test_an_error_before_the_opening_is_answered_in_http(self):
        class Raising(pebble_ws.WebSocketHandler):
            def check_handshake(self):
                raise errors[self.target]

        errors = {
            "/403": pebble_ws.ProtocolError(403, "no"),
            "/1008": pebble_ws.ProtocolError(1008, "no"),
        }
        with running(Raising) as server:
            for target, status in (("/403", "403"), ("/1008", r"[45]\d\d")):
                with self.subTest(target):
                    client = self.request(head(target), server=server)
                    self.assertRegex(client.refusal()[0], rf"^HTTP/1\.1 {status} ")
                    client.close()


# ---- Scripts ------------------------------------------------------------------------------------


def command_line(bundle, message):
    """Return the arguments that sketchtool must be called with."""
    scripts = {command["script"]: command["identifier"] for command in manifest()["commands"]}
    return ["run", bundle, scripts[pebble_ws.SCRIPTS[message]], "--without-activating"]


ZEROS = "head -c {} /dev/zero | tr '\\0' x"
NO_HANDLER = (
    "Error in command rotate Script at path /x/rotate.cocoascript does not contain a handler "
    "function named: onRun."
)
STACK = "TypeError: undefined is not an object\n    at run (/x/rotate.cocoascript:4:3)"

# why, what sketchtool prints to the byte, its exit status; status and output of the answer
OUTCOMES = (
    # As a script's log(…) prints it:
    ("OK", "OK Rotated.\n", 0, "done", "Rotated."),
    ("OK, and no line break", "OK Rotated.", 0, "done", "Rotated."),
    ("OK alone", "OK\n", 0, "done", ""),
    ("OK and a colon", "OK: Rotated.\n", 0, "done", "Rotated."),
    ("ERROR", "ERROR Select two.\n", 0, "failed", "Select two."),
    ("ERROR and a colon", "ERROR: broken\n", 0, "failed", "broken"),
    ("ERROR alone", "ERROR\n", 0, "failed", ""),
    ("ERROR and a tab", "ERROR\tbroken\n", 0, "failed", "broken"),
    ("ERROR, and no line break", "ERROR broken", 0, "failed", "broken"),
    ("CRLF", "OK yes\r\n", 0, "done", "yes"),
    ("ERROR and CRLF", "debug\r\nERROR no\r\n", 0, "failed", "no"),
    ("HTML", "OK <b>&amp;</b>\n", 0, "done", "<b>&amp;</b>"),
    ("not UTF-8", b"OK \xff\xfe.\n", 0, "done", "\ufffd\ufffd."),
    ("a NUL", b"OK a\0b\n", 0, "done", "a\0b"),
    # As console.log(…) prints it:
    ("quoted OK", "'OK Rotated.'\n", 0, "done", "Rotated."),
    ("quoted ERROR", "'ERROR Select a layer.'\n", 0, "failed", "Select a layer."),
    ("quoted, and no line break", "'ERROR Select a layer.'", 0, "failed", "Select a layer."),
    ("quoted, and CRLF", "'ERROR Select a layer.'\r\n", 0, "failed", "Select a layer."),
    ("quoted ERROR alone", "'ERROR'\n", 0, "failed", ""),
    ("quoted ERROR and a colon", "'ERROR: broken'\n", 0, "failed", "broken"),
    ("an apostrophe", r"'OK It\'s done.'" "\n", 0, "done", "It's done."),
    ("a backslash", r"'OK C:\\x\\'" "\n", 0, "done", "C:\\x\\"),
    ("a backslash before an n", r"'OK \\n'" "\n", 0, "done", r"\n"),
    ("double quotes", "'ERROR No \"center\".'\n", 0, "failed", 'No "center".'),
    ("a tab", r"'OK a\tb'" "\n", 0, "done", "a\tb"),
    ("a line break", r"'OK one\ntwo'" "\n", 0, "done", "one"),
    ("ERROR after a line break", r"'debug\nERROR no'" "\n", 0, "failed", "no"),
    ("an escape", r"'OK \u001b[2J\u00e9'" "\n", 0, "done", "\x1b[2Jé"),
    ("an emoji", "'OK 🎉'\n", 0, "done", "🎉"),
    ("an emoji in two escapes", r"'OK \ud83c\udf89'" "\n", 0, "done", "🎉"),
    ("a raw tab", "'ERROR a\tb'\n", 0, "failed", "a\tb"),
    ("another escape", r"'ERROR \x41'" "\n", 0, "failed", None),
    ("quoted, within a line", "log: 'ERROR no'\nOK yes\n", 0, "done", "yes"),
    ("quoted, of no such word", r"'It\'s fine.'" "\n", 0, "done", "It's fine."),
    # The last such line, wherever it stands:
    ("a warning after it", "ERROR Select a layer.\nwarning: old\n", 0, "failed", "Select a layer."),
    ("debug after it", "OK Rotated.\ndebug after\n", 0, "done", "Rotated."),
    ("debug before it", "debug: 3 layers\nOK Rotated.\n", 0, "done", "Rotated."),
    ("ERROR, then OK", "ERROR no\nOK yes\n\n  \n", 0, "done", "yes"),
    ("OK, then ERROR", "OK yes\nERROR no\n", 0, "failed", "no"),
    ("OK, then quoted ERROR", "OK yes\n'ERROR no'\ndebug\n", 0, "failed", "no"),
    ("quoted OK, then ERROR", "'OK yes'\nERROR no\n", 0, "failed", "no"),
    ("OK decides, not 1", "OK yes\n", 1, "done", "yes"),
    ("ERROR decides, not 0", "ERROR no\n", 0, "failed", "no"),
    ("a caught error, then OK", f"{STACK}\nOK yes\n", 0, "done", "yes"),
    ("lines after it without end", "ERROR no\n" + "debug\n" * 100_000, 0, "failed", "no"),
    ("quoted, and lines without end", "'ERROR no'\n" + "debug\n" * 100_000, 0, "failed", "no"),
    ("OK, and lines without end", "OK yes\n" + "debug\n" * 100_000, 0, "done", "yes"),
    # No such word:
    ("other words", "OKAY\nokay\nERRORS: 0\nNOT OK\n", 0, "done", "OKAY\nokay\nERRORS: 0\nNOT OK"),
    ("1, with a text", "no Sketch\n", 1, "failed", "no Sketch"),
    ("an error is mentioned", "caught TypeError: fine\n", 0, "done", "caught TypeError: fine"),
    # What Sketch prints of an error:
    ("a script that throws", f"{STACK}\n", 0, "failed", STACK),
    ("it is the last line", "debug\nReferenceError: x", 0, "failed", "debug\nReferenceError: x"),
    ("no handler", f"{NO_HANDLER}\n", 0, "failed", NO_HANDLER),
    *(
        (name, f"debug\n{name}: broken\n    at x.js:1\n", 0, "failed", None)
        for name in (
            "Error",
            "EvalError",
            "RangeError",
            "ReferenceError",
            "SyntaxError",
            "TypeError",
            "URIError",
        )
    ),
    ("a quoted error", "'TypeError: broken'\n", 0, "failed", None),
    ("console.error(error)", "{ TypeError: broken\n    at x.js:1 }\n", 1, "failed", None),
    # Nothing, or too much:
    ("nothing", "", 0, "done", None),
    ("blank lines", "\n \r\n\t\n", 0, "done", None),
    ("nothing, 1", "", 1, "failed", None),
    ("nothing, 255", "", 255, "failed", None),
)

# why, the shell that prints it; the status, and the beginning of the output
LONG_OUTCOMES = tuple(
    (f"{size} bytes, {word}, {kind}", shell, status, start)
    for size in (100_000, 10_000_000)
    for word, status in (("ERROR", "failed"), ("OK", "done"))
    for kind, shell, start in (
        ("bare", f"printf '{word} '; {ZEROS.format(size)}; echo", "xxx"),
        ("bare, no line break", f"printf '{word} '; {ZEROS.format(size)}", "xxx"),
        ("quoted", f'printf "\'{word} "; {ZEROS.format(size)}; echo "\'"', "xxx"),
        (
            "quoted, debug after it",
            f'printf "\'{word} "; {ZEROS.format(size)}; echo "\'"; echo x',
            "xxx",
        ),
        ("a long line before it", f"{ZEROS.format(size)}; echo; echo {word} short", "short"),
        ("a long line after it", f"echo {word} short; {ZEROS.format(size)}", "short"),
    )
)


class Scripts(BridgeTestCase):
    def test_each_message_runs_its_command_with_exactly_these_arguments(self):
        client = self.connect()
        for message in pebble_ws.SCRIPTS:
            self.assertEqual("done", client.click(message)["status"])
        expected = [command_line(self.bundle, message) for message in pebble_ws.SCRIPTS]
        self.assertEqual(expected, self.sketch.calls())

    def test_how_it_went(self):
        client = self.connect()
        for why, printed, exit_status, status, output in OUTCOMES:
            with self.subTest(why):
                write(f"{self.sketch.home}/printed", printed)
                self.sketch.mood(f'cat "$here/printed"; exit {exit_status}')
                answer = client.click("undo")
                self.assertEqual({"message", "status", "output"}, set(answer))
                self.assertEqual(("undo", status), (answer["message"], answer["status"]))
                if output is not None:
                    self.assertEqual(output, answer["output"])
                elif printed.strip():
                    self.assertRegex(answer["output"], "roken|41|A")
                else:
                    self.assertRegex(answer["output"], r"\A\w[^\n]+\.\Z")

    def test_a_failure_of_100_kb_or_10_mb_is_none_the_less_one(self):
        client = self.connect()
        for why, shell, status, start in LONG_OUTCOMES:
            with self.subTest(why):
                self.sketch.mood(shell)
                answer = client.click("undo")
                self.assertEqual(status, answer["status"])
                self.assertTrue(answer["output"].startswith(start), answer["output"][:50])
                self.assertLessEqual(len(answer["output"]), 4000)
                self.assertGreater(len(answer["output"]), 3900 if start == "xxx" else 4)

    def test_of_output_without_end_its_end_is_kept(self):
        client = self.connect()
        for why, mood, status in (
            ("done", "seq 30000; echo the end", "done"),
            ("failed", "seq 30000; echo the end; exit 1", "failed"),
            ("an error at first", "echo TypeError: x; seq 30000; echo the end", "failed"),
        ):
            with self.subTest(why):
                self.sketch.mood(mood)
                answer = client.click("undo")
                self.assertEqual(status, answer["status"])
                self.assertTrue(answer["output"].endswith("30000\nthe end"))
                self.assertLessEqual(len(answer["output"]), 4000)

    def test_what_no_text_can_hold_is_answered_all_the_same(self):
        client = self.connect()
        for why, printed, status in (
            ("half of a letter, in an escape", r"'OK \ud83c'", "done"),
            ("no escape", r"'OK \x \u12 \u{110000} \08'", "done"),
            ("half of a letter at the end", b"ERROR \xf0\x9f", "failed"),
        ):
            with self.subTest(why):
                write(f"{self.sketch.home}/printed", printed)
                self.sketch.mood('cat "$here/printed"')
                self.assertIn(status, client.click("undo")["status"])
                self.assertEqual("unknown", client.click("nonsense")["status"])

    def test_what_it_prints_on_either_output_counts(self):
        client = self.connect()
        for why, mood, status, output in (
            ("ERROR on stderr", "echo OK; echo ERROR no >&2", "failed", "no"),
            ("ERROR, a warning on stderr", "echo ERROR no; echo warning >&2", "failed", "no"),
            ("a thrown error on stderr", "echo 'TypeError: x' >&2", "failed", "TypeError: x"),
            ("a child stays", "sleep 4 & echo OK", "done", ""),
            ("a child holds only stderr", "sleep 4 >/dev/null & echo OK", "done", ""),
        ):
            with self.subTest(why):
                self.sketch.mood(mood)
                start = time.monotonic()
                answer = client.click("undo")
                self.assertEqual((status, output), (answer["status"], answer["output"]))
                self.assertLess(time.monotonic() - start, 3)

    def test_a_script_that_is_killed_has_failed(self):
        client = self.connect()
        for mood in ("kill -9 $$", "kill -TERM $$", "kill -HUP $$", "echo no more; kill -9 $$"):
            with self.subTest(mood):
                self.sketch.mood(mood)
                answer = client.click("undo")
                self.assertEqual("failed", answer["status"])
                self.assertTrue(answer["output"])

    def test_what_it_prints_besides_is_in_the_log_the_last_twenty_lines(self):
        client = self.connect()
        for why, mood, expected in (
            ("one", "echo debug: 3 layers; echo OK Rotated.", ["debug: 3 layers"]),
            ("before and after", "echo one; echo OK yes; echo two >&2", ["one", "two"]),
            ("blank lines are none", "echo; echo one; echo ' '; echo OK", ["one"]),
            ("quoted", r"""printf '%s\n' "'It\\'s one'" OK""", ["It's one"]),
            ("an earlier word", "echo ERROR no; echo OK yes", ["ERROR no"]),
            ("a failure", "echo one; echo ERROR no", ["one"]),
            ("nothing besides", "echo OK", []),
        ):
            with self.subTest(why):
                self.sketch.mood(mood)
                self.server.mark()
                client.click("undo")
                self.server.wait_for(r" #\d+ > (done|failed)")
                logged = [line.partition(" | ")[2] for line in self.server.lines(r" #\d+ \| ")]
                self.assertEqual(expected, logged)

    def test_of_a_thousand_lines_the_last_ones_are_in_the_log(self):
        self.sketch.mood("seq 1000; echo OK")
        self.connect().click("undo")
        self.server.wait_for(r" #\d+ > done")
        logged = [int(line.partition(" | ")[2]) for line in self.server.lines(r" #\d+ \| ")]
        self.assertEqual(list(range(1001 - len(logged), 1001)), logged)
        self.assertIn(len(logged), range(15, 21))

    def test_what_it_prints_is_one_line_of_the_log_each_whatever_it_is(self):
        self.sketch.mood(
            r"printf '\033[2J\r\302\205\342\200\256 20:14:05 #1 < x\n%s\nOK\n' " + "y" * 5000
        )
        self.connect().click("undo")
        self.server.wait_for(r" #\d+ > done")
        lines = self.server.lines(r" #\d+ \| ")
        self.assertEqual(2, len(lines))
        self.assertIn(r"\x1b[2J\r", lines[0])
        self.assertLess(len(lines[1]), 500)

    def test_a_script_that_closes_its_output_and_goes_on_costs_nothing(self):
        self.sketch.mood('echo OK; exec >&- 2>&-; read -r line <"$here/gate"')
        client = self.connect(client_frame(TEXT, "undo"))
        self.sketch.wait_for_calls(1)
        before, start = self.server.processor_time(), time.monotonic()
        wait_until(lambda: time.monotonic() - start > 1)
        self.assertLess(self.server.processor_time() - before, 0.1)
        self.sketch.say("")
        self.assertEqual("done", json.loads(client.receive())["status"])

    def test_it_inherits_nothing_and_leads_its_own_process_group(self):
        self.sketch.mood("cat; echo $(ls /dev/fd) $(kill -0 -$$ && echo leads)")
        self.assertEqual("0 1 2 3 leads", self.connect().click("undo")["output"])  # 3 is of ls

    @unittest.skipUnless(os.path.isdir("/proc/self"), "the system does not say what is blocked")
    def test_it_has_the_signals_of_a_shell(self):
        self.sketch.mood("grep -E 'Sig(Blk|Ign)' /proc/self/status")
        blocked, ignored = self.connect().click("undo")["output"].split()[1::2]
        self.assertEqual(0, int(blocked, 16))
        self.assertEqual(0, int(ignored, 16) & 0x7FFF_FFFF)  # above, the C library's own

    def test_a_parent_that_ignores_the_end_of_children_changes_nothing(self):
        ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        wrapper = [sys.executable, "-c", ignore + "os.execv(sys.argv[1], sys.argv[1:])"]
        server = self.other_server(wrapper=wrapper)
        client = self.connect(server=server)
        for exit_status, status in ((0, "done"), (1, "failed")):
            self.sketch.mood(f"echo text; exit {exit_status}")
            self.assertEqual(status, client.click("undo")["status"])

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
        self.assertIn("sketchtool", answer["output"])

    def test_a_path_with_every_character_that_a_shell_minds(self):
        folder = temporary_folder(self.addCleanup)
        folder += "/a 'b' \"c\" $HOME `d`;e&f|g>h<i*j?k(l)m#n!~[o]{p}\\q\nr\ts\x1b[2J"
        os.mkdir(folder)
        bundle, sketch = installed(folder), StandInSketch(folder)
        self.addCleanup(sketch.close)
        server = self.started(self.addCleanup, bundle, "--sketch", sketch.app)
        self.assertEqual("done", self.connect(server=server).click("rotate")["status"])
        self.assertEqual([command_line(bundle, "rotate")], sketch.calls())
        server.stop()  # which looks at each line of the log
        server = self.started(self.addCleanup, bundle, "--dry-run")
        self.assertEqual("dry run", self.connect(server=server).click("rotate")["status"])
        server.stop()

    def test_an_absolute_path_may_name_a_script_of_any_other_bundle(self):
        inner = f"{self.folder}/Outer.sketchplugin/x/Inner ä.sketchplugin"
        os.makedirs(f"{inner}/Contents/Sketch/sub")
        script = f"{inner}/Contents/Sketch/sub/flip.js"
        outside = f"{self.folder}/outside.js"
        write(script, "function onRun(context) {}")
        write(outside, "function onRun(context) {}")
        commands = [{"script": "x"}, {"script": "./sub/flip.js", "identifier": "flip"}]
        write(f"{inner}/Contents/Sketch/manifest.json", json.dumps({"commands": commands}))
        scripts = {"flip": script, "outside": outside, "up": "../../../outside.js"}
        server = self.other_server(constants={"SCRIPTS": scripts})
        client = self.connect(server=server)
        self.assertEqual("done", client.click("flip")["status"])
        self.assertEqual([["run", inner, "flip", "--without-activating"]], self.sketch.calls())
        for message in ("outside", "up"):
            answer = client.click(message)
            self.assertEqual("failed", answer["status"])
            self.assertIn("outside.js", answer["output"])
            self.assertIn("outside.js", "\n".join(server.first_lines))


class Manifests(TestCase):
    """Which command a click runs, whatever the manifest contains; it is read at each click."""

    @classmethod
    def setUpClass(cls):
        folder = temporary_folder(cls.addClassCleanup)
        cls.bundle = installed(folder)
        cls.sketch = StandInSketch(folder)
        cls.addClassCleanup(cls.sketch.close)
        cls.good = f"{folder}/good"
        shutil.copytree(f"{cls.bundle}/Contents/Sketch", cls.good)
        arguments = (cls.bundle, "--sketch", cls.sketch.app)
        cls.server = cls.started(cls.addClassCleanup, *arguments)

    def setUp(self):
        self.scripts = f"{self.bundle}/Contents/Sketch"
        self.broken = f"{self.scripts}/manifest.json"
        self.addCleanup(self.restore)
        self.sketch.reset()

    def restore(self):
        shutil.rmtree(self.scripts)
        shutil.copytree(self.good, self.scripts)

    def click(self, content):
        """Return the answer, with the manifest that has this content."""
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        write(self.broken, content)
        self.sketch.reset()
        return self.connect().click("undo")

    def assert_runs(self, identifier, content):
        answer = self.click(content)
        self.assertEqual("done", answer["status"], answer["output"])
        expected = ["run", self.bundle, identifier, "--without-activating"]
        self.assertEqual([expected], self.sketch.calls())

    def assert_failed(self, words, content):
        answer = self.click(content)
        self.assertEqual("failed", answer["status"])
        for word in words:
            self.assertIn(word, answer["output"])
        self.assertRegex(answer["output"], r"\A[^\n]+\.\Z")
        self.assertNotIn(self.scripts, answer["output"])
        self.assertEqual([], self.sketch.calls())

    def test_the_command_that_can_be_run_is_taken(self):
        undo = {"script": "undo.cocoascript"}
        listens = {"actions": {"SelectionChanged": "onChange"}}
        for why, identifier, commands in (
            ("one", "undo", [{**undo, "identifier": "undo"}]),
            ("of another name", "zurück", [{**undo, "identifier": "zurück"}]),
            (
                "the second, as the first has no identifier",
                "b",
                [{**undo, "handler": "onRun"}, {**undo, "identifier": "b"}],
            ),
            (
                "the second, as the first only listens to actions",
                "b",
                [{**undo, "identifier": "a", "handlers": listens}, {**undo, "identifier": "b"}],
            ),
            (
                "the first, if both can be run",
                "b",
                [{**undo, "identifier": "b"}, {**undo, "identifier": "a"}],
            ),
            (
                "the one whose identifier is the message",
                "undo",
                [{**undo, "identifier": "a"}, {**undo, "identifier": "undo"}],
            ),
            (
                "not if that one cannot be run",
                "a",
                [
                    {**undo, "identifier": "undo", "handlers": listens},
                    {**undo, "identifier": "a", "handler": "onRun"},
                ],
            ),
            (
                "handlers.run",
                "a",
                [{**undo, "identifier": "a", "handlers": {**listens, "run": "onRun"}}],
            ),
            (
                "a handler, and actions besides",
                "a",
                [{**undo, "identifier": "a", "handler": "onRun", "handlers": listens}],
            ),
            (
                "one of another script has its message for an identifier",
                "a",
                [
                    {"script": "rotate.cocoascript", "identifier": "undo"},
                    {**undo, "identifier": "a"},
                ],
            ),
            ("by a longer path", "a", [{"script": "./undo.cocoascript", "identifier": "a"}]),
            ("up and down", "a", [{"script": "../Sketch/undo.cocoascript", "identifier": "a"}]),
        ):
            with self.subTest(why):
                self.assert_runs(identifier, {"commands": commands})

    def test_a_script_is_the_same_file_whatever_its_name(self):
        script = f"{self.scripts}/undo.cocoascript"
        os.link(script, f"{self.scripts}/hard.js")
        os.symlink("undo.cocoascript", f"{self.scripts}/soft.js")
        os.mkdir(f"{self.scripts}/sub")
        os.symlink("../undo.cocoascript", f"{self.scripts}/sub/Ä.js")
        for name in ("hard.js", "soft.js", "sub/Ä.js"):
            with self.subTest(name):
                self.assert_runs("a", {"commands": [{"script": name, "identifier": "a"}]})
        for name in ("UNDO.CocoaScript", "undo\u0308.js", "undo\xf6.js"):
            if os.path.exists(f"{self.scripts}/{name}"):
                self.assert_runs("a", {"commands": [{"script": name, "identifier": "a"}]})

    def test_a_trailing_comma_is_taken_as_sketch_takes_it(self):
        one = '{{"commands": [{{"identifier": {}, "script": "undo.cocoascript"{}}}{}]{}}}'
        for why, commas in (
            ("after a key", [",", "", ""]),
            ("after a command", ["", ",", ""]),
            ("after the commands", ["", "", ","]),
            ("everywhere", [",", " ,\n", "\n,\n\t"]),
        ):
            with self.subTest(why):
                self.assert_runs("undo", one.format('"undo"', *commas))
        for identifier in (",]", "a,}", ", }", '\\",]', "\\\\", ",\\n]", "//,]"):
            with self.subTest(identifier):
                quoted = f'"{identifier}"'
                self.assert_runs(json.loads(quoted), one.format(quoted, ",", ",", ","))
        text = one.format('"a"', ",", ",", "," + '"x": [1,],' * 30_000)
        self.assert_runs("a", text)

    def test_a_byte_order_mark_is_no_mistake(self):
        text = '{"commands": [{"identifier": "zurück", "script": "undo.cocoascript"}]}'
        for encoding in ("utf-8", "utf-8-sig"):
            with self.subTest(encoding):
                self.assert_runs("zurück", text.encode(encoding))

    def test_what_is_wrong_is_told_in_one_sentence_and_can_be_fixed_without_a_restart(self):
        undo = {"script": "undo.cocoascript", "identifier": "undo", "handler": "onRun"}
        others = [each for each in manifest()["commands"] if each["script"] != undo["script"]]
        nameless = {"script": undo["script"], "handler": "onRun"}
        deaf = {**nameless, "identifier": "undo", "handlers": {"actions": {"Startup": "onRun"}}}
        del deaf["handler"]
        json_lines = json.dumps({"commands": [undo]}, indent=1)

        def command(**changes):
            return {"commands": [*others, {**undo, **changes}]}

        for why, words, content in (
            ("no command", ["undo.cocoascript"], {"commands": others}),
            ("no commands", ["undo.cocoascript"], {"commands": []}),
            ("no identifier", ["undo.cocoascript", "identifier"], {"commands": [nameless]}),
            ("an empty one", ["undo.cocoascript", "identifier"], command(identifier="")),
            ("it is no text", ["identifier"], command(identifier=7)),
            ("it is null", ["identifier"], command(identifier=None)),
            ("it is that of another", ["rotate", "Two"], command(identifier="rotate")),
            ("it is there twice", ["undo", "Two"], {"commands": [undo, undo]}),
            ("actions only", ["undo.cocoascript"], {"commands": [*others, deaf]}),
            ("a comma too few", ["line 5"], json_lines.replace('pt",\n', 'pt"\n')),
            ("typographic quotes", ["line 5"], json_lines.replace('"undo"', "“undo”")),
            ("a comma too many", ["line 3"], json_lines.replace("  {", "  ,{")),
            ("two commas", ["line "], json_lines.replace("\n ]", ",,\n ]")),
            ("not closed", ["line "], json_lines[:-1]),
            ("a comment", ["line 3"], json_lines.replace("  {", "  // mine\n  {")),
            ("more behind it", ["line "], json_lines + "}"),
            ("empty", [], b""),
            ("nonsense", ["line 1"], b"nonsense"),
            ("not UTF-8", [], b'{"commands": "\xff"}'),
            ("a NUL", [], b"\0\0\0"),
            ("deep", [], b"[" * 100_000),
            ("a number without end", [], b'{"commands": ' + b"7" * 10_000 + b"}"),
            *(
                (f"it is {content}", [], content)
                for content in (
                    [],
                    1,
                    None,
                    "text",
                    {},
                    {"commands": 1},
                    {"commands": None},
                    {"commands": {}},
                    {"commands": [1, None, "x", []]},
                    {"commands": [{}]},
                    {"commands": [{"script": 1, "identifier": "undo"}]},
                    {"commands": [{"script": None, "identifier": "undo"}]},
                    {"commands": [{"script": "a\0b", "identifier": "undo"}]},
                    {"commands": [{"script": ".", "identifier": "undo"}]},
                    {"commands": [{"script": "x" * 5000, "identifier": "undo"}]},
                )
            ),
        ):
            with self.subTest(why):
                named = words if "undo.cocoascript" in words else [*words, "manifest.json"]
                self.assert_failed(named, content)
                self.restore()
                self.assertEqual("done", self.connect().click("undo")["status"])

    def test_files_that_are_missing_or_no_files(self):
        script = f"{self.scripts}/undo.cocoascript"

        def folder(path):
            os.remove(path)
            os.mkdir(path)

        for why, words, spoil in (
            ("the script is gone", ["undo.cocoascript"], lambda: os.remove(script)),
            ("it is a folder", ["undo.cocoascript"], lambda: folder(script)),
            ("the manifest is gone", ["manifest.json"], lambda: os.remove(self.broken)),
            ("it is a folder", ["manifest.json"], lambda: folder(self.broken)),
        ):
            with self.subTest(why):
                self.sketch.reset()
                spoil()
                answer = self.connect().click("undo")
                self.assertEqual("failed", answer["status"])
                for word in words:
                    self.assertIn(word, answer["output"])
                self.assertEqual([], self.sketch.calls())
                self.restore()
                self.assertEqual("done", self.connect().click("undo")["status"])

    def test_a_manifest_that_cannot_be_read_is_told_once_at_the_start(self):
        bundle = installed(temporary_folder(self.addCleanup))
        write(f"{bundle}/Contents/Sketch/manifest.json", '{\n"commands":\n}')
        server = self.started(self.addCleanup, bundle, "--sketch", self.sketch.app)
        told = [line for line in server.first_lines if "manifest.json" in line]
        self.assertEqual(1, len(told), told)
        self.assertIn("line 3", told[0])

    def test_each_script_that_is_missing_is_told_at_the_start(self):
        bundle = installed(temporary_folder(self.addCleanup))
        for script in pebble_ws.SCRIPTS.values():
            os.remove(f"{bundle}/Contents/Sketch/{script}")
        server = self.started(self.addCleanup, bundle, "--sketch", self.sketch.app)
        for script in pebble_ws.SCRIPTS.values():
            told = [line for line in server.first_lines if f"{script} " in line]
            self.assertEqual(1, len(told), server.first_lines)


class ScriptsThatHang(BridgeTestCase):
    constants = {"SCRIPT_TIMEOUT": 0.5}

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
                self.assertEqual(b"x\n", self.all_of(f"{self.sketch.home}/alive"))
                self.assertLess(time.monotonic() - start, 10)
                answer = json.loads(witness.receive())
                self.assertEqual("failed", answer["status"])
                self.sketch.reset()
            self.assertEqual(1, len(self.server.lines("> failed: ")))

    def all_of(self, fifo):
        """Return what is written to a FIFO until all are gone that could write."""
        received = b""
        deadline = time.monotonic() + 10
        with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as file:
            while time.monotonic() < deadline:
                select.select([file], [], [], 0.1)
                piece = file.read(100)
                if piece == b"" and received:
                    return received
                received += piece or b""
        self.fail("somebody is still there")

    def test_it_is_answered_with_what_was_printed_and_the_truth(self):
        client = self.connect()
        wait = "Waiting for a document to open"
        for why, mood, printed in (
            ("a text", f"echo {wait}", wait),
            ("quoted", f"echo \"'{wait}'\"", wait),
            ("no line break", f"printf '{wait}'", wait),
            ("OK, which is no success", "echo OK Rotated.", "Rotated."),
            ("ERROR", "echo ERROR Select two.", "Select two."),
            ("nothing", ":", ""),
            ("10 MB", "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo the end", "the end"),
        ):
            with self.subTest(why):
                self.sketch.mood(f"{mood}; sleep 30")
                answer = client.click("undo")
                self.assertEqual("failed", answer["status"])
                self.assertIn(printed, answer["output"])
                self.assertIn("Sketch", answer["output"])
                self.assertRegex(answer["output"], "still|alert")
                self.assertLessEqual(len(answer["output"]), 4000)

    def test_the_clicks_behind_it_run_when_it_is_over(self):
        self.sketch.mood('[ -e "$here/second" ] && echo OK && exit; touch "$here/second"; sleep 30')
        client = self.connect(client_frame(TEXT, "undo"), client_frame(TEXT, "rotate"))
        self.assertEqual("failed", json.loads(client.receive())["status"])
        self.assertEqual("done", json.loads(client.receive())["status"])


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
        values = r'\{"port": (\d+), "token": "([\w-]{22,})", "dryRun": false\}'
        line = rf"window\.pebbleSession = {values};\n"
        self.assertRegex(session, rf"\A{line}\Z")
        self.assertEqual(self.server.port, int(re.match(line, session)[1]))
        self.assertEqual(0o600, os.stat(self.server.session_file).st_mode & 0o7777)
        self.assertNotIn(self.server.token, " ".join(self.server.process.args))

    def test_the_session_file_is_written_in_one_step_with_a_new_token_each_time(self):
        bundle = installed(temporary_folder(self.addCleanup))
        path = f"{bundle}/Contents/Resources/session.js"
        tokens = {self.server.token}
        for _ in range(2):
            with open(path, "w+") as old:
                os.chmod(path, 0o644)
                old.write("old")
                old.flush()
                server = self.started(self.addCleanup, bundle, "--dry-run")
                old.seek(0)
                self.assertEqual("old", old.read(), "who reads the old one reads all of it")
            self.assertEqual(0o600, os.stat(path).st_mode & 0o7777)
            names = os.listdir(os.path.dirname(path))
            self.assertEqual(["session.js"], [name for name in names if "session" in name])
            self.assertIn('"dryRun": true}', read(path))
            tokens.add(server.token)
            server.stop()
            names = os.listdir(os.path.dirname(path))
            self.assertEqual([], [name for name in names if "session" in name])
        self.assertEqual(3, len(tokens))

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
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            self.skipTest(f"this machine has no ::1: {error}")
        client = self.connect(host="::1", Host=f"[::1]:{self.server.port}")
        self.assertEqual("done", client.click("undo")["status"])

    def test_without_ipv6_it_listens_on_127_0_0_1_alone(self):
        patch = """
import errno, os, socket
class IPv4Only(socket.socket):
    def __init__(self, family=-1, *rest, **named):
        if family == socket.AF_INET6 and {at_once}:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *rest, **named)
    def bind(self, address):
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        super().bind(address)
socket.socket = IPv4Only
"""
        for why, at_once in (("no such family", True), ("no such address", False)):
            for port in (0, None):
                with self.subTest(why, port=port):
                    before = patch.format(at_once=at_once)
                    server = self.other_server(port=port, before=before)
                    self.assertEqual("done", self.connect(server=server).click("undo")["status"])
                    with self.assertRaises(OSError):
                        socket.create_connection(("::1", server.port), timeout=5).close()

    def test_the_log_has_a_line_for_all_traffic(self):
        client = self.connect(Origin="file://")
        self.sketch.mood("echo debug: 3 layers; echo OK Done.")
        client.click("rotate")
        client.click("nonsense")
        client.send(close_of(1001))
        self.assert_fails(client, 1001)
        self.request(head(self.server.target, Origin="http://example.com")).read()
        self.server.wait_for("refused")
        start = int(re.search(r"#(\d+)", self.server.lines()[0])[1])
        expected = (
            f"#{start} = open from file://",
            f"#{start} < rotate",
            f"#{start} \\| debug: 3 layers",
            rf"#{start} > done: Done\. \(\d+ ms\)",
            f"#{start} < nonsense",
            f"#{start} > unknown: .*",
            f"#{start} = closed 1001",
            rf"#{start + 1} ! refused 403: Origin http://example\.com",
        )
        for line, pattern in itertools.zip_longest(self.server.lines(), expected, fillvalue="none"):
            self.assertRegex(line, rf"^\d\d:\d\d:\d\d {pattern}$")

    @unittest.skipUnless(glob.glob("/proc/self/task/*/status"), "nobody counts wake-ups here")
    def test_at_rest_nothing_wakes_up(self):
        client = self.connect()
        self.assertEqual("done", client.click("undo")["status"])
        self.server.wait_for("> done")
        before, start = None, time.monotonic()
        while time.monotonic() - start < 3.5:
            time.sleep(0.1)
            if before is None and time.monotonic() - start > 0.5:  # the click is over
                before = self.server.wake_ups()
        self.assertLessEqual(self.server.wake_ups() - before, 1)
        self.assertEqual("done", client.click("undo")["status"])

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

    def test_a_script_goes_on_when_its_dialogue_has_gone_and_clicks_that_wait_are_dropped(self):
        self.sketch.mood(HOLD)
        for reset in (False, True):
            with self.subTest(reset=reset):
                write(f"{self.sketch.home}/calls", "")
                self.server.mark()
                gone = self.connect(client_frame(TEXT, "undo"), client_frame(TEXT, "rotate"))
                self.sketch.wait_for_calls(1)
                stays = self.connect(client_frame(TEXT, "set-time"))
                self.server.wait_for("< set-time")
                gone.close(reset)
                self.server.wait_for("= closed")
                self.sketch.say("OK Nobody hears it.")
                self.sketch.wait_for_calls(2)
                self.sketch.say("OK")
                self.assertEqual("done", json.loads(stays.receive())["status"])
                self.server.wait_for("> done: Nobody hears it")
                ran = [command_line(self.bundle, message) for message in ("undo", "set-time")]
                self.assertEqual(ran, self.sketch.calls())
                self.assertEqual(1, len(self.server.lines("rotate.*drop|drop.*rotate")))
                stays.send(GOODBYE)
                self.assert_fails(stays, 1000)
        self.assertEqual("unknown", self.connect().click("nonsense")["status"])

    def test_clicks_that_were_dropped_leave_room_for_others(self):
        self.sketch.mood(HOLD)
        gone = self.connect(*[client_frame(TEXT, "rotate")] * 17)
        self.server.wait_for(" < rotate", 17)
        self.sketch.wait_for_calls(1)
        gone.close()
        self.server.wait_for("= closed")
        self.sketch.say("OK")
        client = self.connect()
        self.server.wait_for("dropped", 16)
        self.sketch.reset()
        for _ in range(3):
            self.assertEqual("done", client.click("undo")["status"])

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
        for size in range(150, 200, 7):  # at whose end a message is cut in an answer
            self.assertNotIn(token[:8], client.click("x" * size + token)["message"])
        for size in range(3930, 4000, 9):  # and where an output is
            self.sketch.mood(f"printf 'OK %s\n' {'x' * size}{token}{'y' * 30}")
            output = client.click("undo")["output"]
            self.assertNotIn(token[:8], output)
            self.assertNotIn(token[-8:], output)
        self.request(head(f"/?token=x{token}")).read()
        for header in ("Host", "Origin"):
            self.request(head(self.server.target, **{header: token})).read()
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
    def own_server(self, stop_timeout=1, **options):
        constants = {"STOP_TIMEOUT": stop_timeout, "CLOSE_TIMEOUT": 0.3}
        return self.other_server(constants=constants, **options)

    def test_each_signal_closes_every_dialogue_with_1001_and_ends_with_0(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(number):
                server = self.own_server()
                clients = [self.connect(server=server) for _ in range(3)]
                server.wait_for("= open", 3)
                self.assertTrue(os.path.exists(server.session_file))
                server.terminate(number)
                for client in clients:
                    self.assertEqual((CLOSE, 1001), client.receive())
                    self.assertFalse(os.path.exists(server.session_file))
                    client.send(close_of(1001))
                    self.assertIsNone(client.receive())
                server.stop()
                self.assertEqual(3, len(server.lines("= closed 1001")))
                self.assertEqual(1, len(server.lines("= stopping")))
                with self.assertRaises(OSError):
                    self.request(server=server)

    def test_a_signal_that_was_ignored_at_the_start_stays_so(self):
        for name in ("HUP", "INT", "TERM"):
            with self.subTest(name):
                server = self.own_server(wrapper=in_a_shell(f"trap '' {name}"))
                client = self.connect(server=server)
                for _ in range(2):
                    server.process.send_signal(getattr(signal, f"SIG{name}"))
                    self.assertEqual("done", client.click("undo")["status"])
                other = signal.SIGINT if name == "TERM" else signal.SIGTERM
                server.terminate(other)
                self.assertEqual((CLOSE, 1001), client.receive())
                client.send(close_of(1001))
                server.stop()

    def test_it_says_which_script_it_waits_for_and_a_second_signal_ends_it_at_once(self):
        for first, second in (
            (signal.SIGINT, signal.SIGINT),
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGHUP, signal.SIGHUP),
            (signal.SIGTERM, signal.SIGINT),
        ):
            with self.subTest(first=first, second=second):
                self.sketch.reset()
                self.sketch.mood(HOLD)
                bundle = installed(temporary_folder(self.addCleanup))
                server = Server(bundle, "--sketch", self.sketch.app)
                self.addCleanup(server.kill)
                self.connect(client_frame(TEXT, "undo"), server=server)
                self.sketch.wait_for_calls(1)
                server.process.send_signal(first)
                stopping = server.wait_for("= stopping")
                self.assertRegex(stopping[0], "undo.*Ctrl-C")
                self.assertFalse(os.path.exists(server.session_file))
                start = time.monotonic()
                server.process.send_signal(second)
                self.assertEqual(-second, server.process.wait(10))
                self.assertLess(time.monotonic() - start, 2)
                self.assertEqual(("", 1), (server.stderr(), len(stopping)))

    def test_the_script_that_runs_may_end_and_the_clicks_that_wait_are_dropped(self):
        self.sketch.mood(HOLD)
        server = self.other_server()
        clicks = client_frame(TEXT, "undo") + client_frame(TEXT, "rotate")
        client = self.connect(clicks, server=server)
        self.sketch.wait_for_calls(1)
        server.wait_for("< rotate")
        server.terminate(signal.SIGINT)
        self.assertEqual((CLOSE, 1001), client.receive())  # while the script runs
        self.sketch.say("OK Late.")
        server.wait_for("> done: Late")
        server.wait_for("dropped rotate")
        server.stop()
        self.assertEqual(1, len(server.lines("> done: Late.")))
        bundle = server.session_file.partition("/Contents/")[0]
        self.assertEqual([command_line(bundle, "undo")], self.sketch.calls())

    def test_a_script_that_does_not_end_is_killed(self):
        server = self.own_server(stop_timeout=0.3)
        self.sketch.mood("echo begun; sleep 30")
        self.connect(client_frame(TEXT, "undo"), server=server)
        self.sketch.wait_for_calls(1)
        start = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - start, 5)
        self.assertEqual(1, len(server.lines("> failed: .*begun")))

    def test_a_session_file_of_others_is_left_alone_whatever_it_is(self):
        for content in (b"\xff\xfe", b'window.pebbleSession = {"port": 1, "token": "x"};\n', None):
            with self.subTest(content):
                server = self.own_server()
                os.remove(server.session_file)
                if content is None:
                    os.mkdir(server.session_file)
                else:
                    write(server.session_file, content)
                server.stop()
                self.assertTrue(os.path.exists(server.session_file))

    def test_a_session_file_or_a_plugin_that_has_gone_is_no_trouble(self):
        server = self.own_server()
        os.remove(server.session_file)
        server.stop()
        server = self.own_server()
        shutil.rmtree(os.path.dirname(os.path.dirname(server.session_file)))
        server.stop()

    def test_dialogues_may_close_at_the_same_moment(self):
        server = self.own_server()
        clients = [self.connect(server=server) for _ in range(100)]
        server.terminate()
        for client in clients:
            client.close()
        server.stop()

    def test_nobody_can_hold_it_up(self):
        server = self.own_server()
        never_open, mute, floods = (
            self.request(server=server),
            *(self.connect(server=server) for _ in range(2)),
        )
        for client in (never_open, mute):
            client.send(b"\x81")  # and never anything again
        floods.send(client_frame(PING, b"x") * 1000)  # and reads nothing
        start = time.monotonic()
        server.terminate()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 3:  # it sends on, and never a Close
                floods.send(client_frame(TEXT, "nonsense"))
        server.process.wait(10)
        self.assertLess(time.monotonic() - start, 5)

    def test_who_connects_while_it_stops_is_told_so_at_once(self):
        self.sketch.mood(HOLD)
        server = self.own_server(stop_timeout=5)
        self.connect(client_frame(TEXT, "undo"), server=server)
        self.sketch.wait_for_calls(1)
        server.terminate()
        server.wait_for("= stopping")
        start = time.monotonic()

        def is_refused():
            try:
                client = Client(server.port, head(server.target))
            except ConnectionError:
                return True
            with contextlib.suppress(ConnectionError):
                client.read()
            client.close()

        wait_until(is_refused)
        self.assertLess(time.monotonic() - start, 2)
        self.sketch.say("OK")
        server.stop()

    def test_ctrl_c_at_any_moment_of_its_start_is_an_end_without_a_traceback(self):
        bundle = installed(temporary_folder(self.addCleanup))
        # What is raised in these lines themselves comes before main, or after it.
        code = f"""
import sys; sys.path[0] = {bundle + "/Contents/Sketch"!r}
import pebble_ws
try:
    print("main", flush=True)
    sys.exit(pebble_ws.main(["--port", "0", "--dry-run"]))
except KeyboardInterrupt as interrupt:
    if interrupt.__traceback__.tb_next:
        raise
"""
        rng = random.Random(6455)
        moments = [rng.random() ** 2 * 0.15 for _ in range(25)]
        for moment in moments:
            status, error = self.interrupted(code, moment)
            self.assertEqual("", error, f"after {moment * 1000:.0f} ms")
            self.assertIn(status, (0, 130, -signal.SIGINT))
        names = os.listdir(f"{bundle}/Contents/Resources")
        self.assertEqual([], [name for name in names if "session" in name])

    def interrupted(self, code, moment):
        """Return exit status and stderr of a program that gets SIGINT so long after its start."""
        process = subprocess.Popen(
            [*PYTHON, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self.assertEqual(b"main\n", process.stdout.readline())
            deadline = time.perf_counter() + moment
            while time.perf_counter() < deadline:  # more exact than sleep
                pass
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=20)[1].decode()
            return process.returncode, error
        finally:
            process.kill()
            process.communicate()


# ---- What peers may do, and nobody else notices -------------------------------------------------


class Faults(BridgeTestCase):
    constants = {"HEAD_TIMEOUT": 0.5, "CLOSE_TIMEOUT": 0.5}

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
            with self.subTest(why), self.noticed_only_as("= closed 1006: ") as witness:
                client = self.request(data)
                self.assertEqual("done", witness.click("undo")["status"])
                client.socket.shutdown(socket.SHUT_WR)
                self.assertEqual(data.startswith(opened), bool(client.read()))

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
        allow_descriptors(1000)
        with self.noticed_only_as(*["! refused 503: "] * 3) as witness:
            clients = [self.connect() for _ in range(199)]
            for _ in range(3):
                status, headers, text = self.request().refusal()  # which has sent nothing
                self.assertIn(" 503 ", status)
                self.assertRegex(text, r"\A[^\n]+\n\Z")
            self.assertEqual("done", witness.click("undo")["status"])
        accepted = head(self.server.target)
        wait_until(lambda: " 101 " in self.request(accepted).response()[0])  # the witness has gone
        for client in clients:
            client.close()
        self.server.wait_for("= closed 1006: ", 199)

    def test_a_click_is_answered_through_200_connections_that_say_nothing(self):
        server = self.other_server()  # in which a head may take its time
        allow_descriptors(1000)
        old = self.connect(server=server)
        silent = [self.request(server=server) for _ in range(200)]
        for _ in range(3):
            self.assertEqual("done", self.connect(server=server).click("undo")["status"])
        self.assertEqual("done", old.click("undo")["status"])
        # Of the oldest some made room:
        closed = [place for place, client in enumerate(silent) if self.has_ended(client)]
        self.assertTrue(closed)
        self.assertLess(closed[-1], 50)
        silent[-1].send(head(server.target))
        self.assertIn(" 101 ", silent[-1].response()[0])

    def has_ended(self, client):
        return bool(select.select([client.socket], [], [], 0)[0])

    def test_a_low_limit_of_descriptors_costs_no_time_and_a_click_works_afterwards(self):
        server = self.other_server(wrapper=in_a_shell("ulimit -n 64"))
        for why, data in (("silent", b""), ("open", head(server.target))):
            with self.subTest(why):
                crowd = [Client(server.port, data) for _ in range(100)]
                for client in crowd:
                    self.addCleanup(client.close)
                start, before = time.monotonic(), None
                while time.monotonic() - start < 1.2:
                    time.sleep(0.1)
                    if before is None and time.monotonic() - start > 0.5:  # they all have come
                        before = server.processor_time()
                self.assertLess(server.processor_time() - before, 0.1)
                for client in crowd:
                    client.close()
                client = self.connect(server=server)
                self.assertEqual("done", client.click("undo")["status"])
                client.close()
        server.stop()

    def test_a_long_message_in_tiny_fragments_takes_a_small_multiple_of_its_size(self):
        client = self.connect()
        before = self.server.memory()
        size = 1 << 19
        client.send(client_frame(TEXT, "xx", fin=False))
        middle = client_frame(CONTINUATION, "xx", fin=False)
        client.send(middle * (size // 2 - 1), client_frame(PING, b"all"))
        self.assertEqual((PONG, b"all"), client.receive())
        self.assertLess(self.server.memory() - before, 10 * size)
        client.send(client_frame(CONTINUATION))
        self.assertEqual("x" * 200, json.loads(client.receive())["message"])

    def test_a_client_that_never_reads_holds_up_nobody_else(self):
        def flood(client, frame):
            with contextlib.suppress(ConnectionError):
                while True:
                    client.send(frame * 100)

        frames = (client_frame(TEXT, "\0" * 200), client_frame(PING, bytes(125)))
        with self.noticed_only_as(*["= closed 1006: (?!ended)"] * 2) as witness:
            self.sketch.mood(HOLD)
            clients = [self.connect(client_frame(TEXT, "undo")) for _ in frames]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pool.map(flood, clients, frames)
                self.server.wait_for("= closed 1006: ", 2)
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
            self.server.wait_for("> (done|busy)|= dropped", 50)

    def test_a_dialogue_that_does_not_answer_a_close_is_dropped(self):
        with self.noticed_only_as("! closed 1002: "):
            client = self.connect(b"\xff\xff")
            self.assert_fails(client, 1002)


def allow_descriptors(count):
    """Let this process, and those that it starts, have so many file descriptors."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # macOS gives a process 256

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


class AnUnreadLog(TestCase):
    """Servers whose standard output is not read, cannot be written, or is not there."""

    def setUp(self):
        self.folder = temporary_folder(self.addCleanup)
        self.bundle = installed(self.folder)
        self.sketch = StandInSketch(self.folder)
        self.addCleanup(self.sketch.close)

    def start(self, wrapper=(), constants=None, **streams):
        """Start a server; return its process, and what a client needs."""
        command = Server.command_line(self.bundle, constants)
        arguments = ["--port", "0", "--sketch", self.sketch.app]
        process = self.process([*wrapper, *command, *arguments], **streams)
        return process, session_of(self.bundle)

    def fill(self, client):
        """Let it log more than any pipe takes, and check that nobody waits for that."""
        start = time.monotonic()
        for _ in range(1000):
            client.send(client_frame(TEXT, "x" * 200), client_frame(PING, b"?"))
            self.assertEqual("unknown", json.loads(client.receive())["status"])
            self.assertEqual((PONG, b"?"), client.receive())
        self.assertLess(time.monotonic() - start, 5)
        self.sketch.mood("seq 100; echo OK")
        for _ in range(3):
            self.assertEqual("done", client.click("undo")["status"])

    def assert_ends(self, process, client, number=signal.SIGTERM, status=0):
        start = time.monotonic()
        process.send_signal(number)
        self.assertEqual((CLOSE, 1001), client.receive())
        client.send(close_of(1001))
        self.assertIsNone(client.receive())
        client.close()
        self.assertEqual(status, process.wait(10))
        self.assertLess(time.monotonic() - start, 4)
        self.assertFalse(os.path.exists(f"{self.bundle}/Contents/Resources/session.js"))

    def test_a_full_pipe_holds_up_neither_clicks_nor_pings_nor_the_end(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(number):
                process, server = self.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                client = self.connect(server=server)
                self.fill(client)
                self.assert_ends(process, client, number)
                self.assertEqual(b"", process.stderr.read())
                printed = process.stdout.read()
                self.assertIn(b"listening on", printed)
                for line in printed.splitlines()[:-1]:
                    self.assertRegex(line, rb"\A\d\d:\d\d:\d\d ")

    def test_a_second_signal_ends_it_with_a_full_pipe_too(self):
        process, server = self.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        client = self.connect(server=server)
        self.fill(client)
        self.sketch.reset()
        self.sketch.mood(HOLD)
        client.send(client_frame(TEXT, "undo"))
        self.sketch.wait_for_calls(1)
        process.send_signal(signal.SIGINT)
        self.assertEqual((CLOSE, 1001), client.receive())
        process.send_signal(signal.SIGINT)
        self.assertEqual(-signal.SIGINT, process.wait(5))

    def test_ctrl_c_while_it_waits_for_the_log_at_the_end_is_no_traceback(self):
        process, server = self.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        client = self.connect(server=server)
        self.fill(client)
        client.close()
        process.send_signal(signal.SIGINT)
        wait_until(lambda: process.poll() is not None or counts(process.pid)[0] <= 2)
        process.send_signal(signal.SIGINT)
        self.assertIn(process.wait(5), (0, -signal.SIGINT))
        self.assertEqual(b"", process.stderr.read())

    def test_a_log_that_is_read_again_goes_on(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        for blocking in (True, False):  # not blocking: each write may fail with EAGAIN
            with self.subTest(blocking=blocking):
                os.set_blocking(writer, blocking)
                process, server = self.start(stdout=writer, stderr=subprocess.PIPE)
                client = self.connect(server=server)
                self.fill(client)
                lines, number = "", 0
                deadline = time.monotonic() + 10
                while not re.search(r"< later\d+\n", lines):
                    self.assertLess(time.monotonic(), deadline)
                    if select.select([reader], [], [], 0.05)[0]:
                        lines += os.read(reader, 1 << 20).decode("utf-8", "replace")
                    else:  # it was all read: what comes now must be there
                        number += 1
                        client.click(f"later{number}")
                self.assert_ends(process, client)
                self.assertEqual(b"", process.stderr.read())
                while select.select([reader], [], [], 0)[0]:
                    lines += os.read(reader, 1 << 20).decode()
                    if lines.endswith("= stopped\n"):
                        break
                self.assertTrue(lines.endswith("= stopped\n"), lines[-200:])
        os.close(writer)

    def test_lines_for_which_there_is_no_room_are_dropped(self):
        process, server = self.start(stdout=subprocess.PIPE)
        client = self.connect(server=server)
        self.fill(client)
        before = memory(process.pid)
        for _ in range(100):  # times 100 clicks, of two lines each
            client.send(*[client_frame(TEXT, "x" * 200)] * 100)
            for _ in range(100):
                client.receive()
        self.assertLess(memory(process.pid) - before, 3 << 20)
        self.assert_ends(process, client)

    def test_a_reader_that_comes_late_has_missed_nothing(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        for blocking in (True, False):
            with self.subTest(blocking=blocking):
                os.set_blocking(writer, blocking)
                process, server = self.start(stdout=writer, stderr=subprocess.PIPE)
                client = self.connect(server=server)
                for number in range(300):  # twice what a pipe takes
                    client.click(f"{number} {'x' * 200}")
                lines = ""
                while "< 299 x" not in lines:
                    self.assertTrue(select.select([reader], [], [], 10)[0])
                    lines += os.read(reader, 1 << 20).decode()
                seen = [int(number) for number in re.findall(r" < (\d+) x", lines)]
                self.assertEqual(list(range(300)), seen)
                self.assert_ends(process, client)
                while select.select([reader], [], [], 0)[0]:
                    os.read(reader, 1 << 20)
        os.close(writer)

    def test_a_reader_that_has_gone_is_no_trouble(self):
        process, server = self.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        client = self.connect(server=server)
        process.stdout.close()
        self.fill(client)
        self.assert_ends(process, client)
        self.assertEqual(b"", process.stderr.read())

    def test_a_full_disk_is_no_trouble(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("there is no /dev/full")
        with open("/dev/full", "wb") as full:
            process, server = self.start(stdout=full, stderr=subprocess.PIPE)
        client = self.connect(server=server)
        self.fill(client)
        self.assert_ends(process, client)
        self.assertEqual(b"", process.stderr.read())

    def terminal(self):
        """Return both ends of a terminal: what a person sees, and what programs write to."""
        person, program = os.openpty()
        self.addCleanup(os.close, person)
        self.addCleanup(os.close, program)
        return person, program

    def test_ctrl_s_in_the_terminal_holds_up_nothing(self):
        person, program = self.terminal()
        os.write(person, b"\x13")
        process, server = self.start(stdout=program, stderr=subprocess.PIPE)
        client = self.connect(server=server)
        self.fill(client)
        self.assert_ends(process, client)
        self.assertEqual(b"", process.stderr.read())

    def test_in_a_terminal_what_needs_fixing_stands_out(self):
        os.remove(f"{self.bundle}/Contents/Sketch/undo.cocoascript")
        plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        for why, environment, has_colour in (
            ("a terminal", plain, True),
            ("NO_COLOR", {**plain, "NO_COLOR": "1"}, False),
        ):
            with self.subTest(why):
                person, program = self.terminal()
                process, server = self.start(stdout=program, env=environment)
                seen = b""
                while b"listening" not in seen:
                    self.assertTrue(select.select([person], [], [], 10)[0])
                    seen += os.read(person, 9999)
                for line in seen.splitlines():
                    self.assertEqual(has_colour and b" ! " in line, b"\x1b[" in line, line)
                self.assert_ends(process, self.connect(server=server))

    def test_closed_standard_streams_are_no_trouble(self):
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"):
            with self.subTest(closed):
                nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                process, server = self.start(in_a_shell(f"exec {closed}"), **nowhere)
                client = self.connect(server=server)
                for number in range(3):
                    with contextlib.suppress(FileNotFoundError):  # there is no /proc
                        led_to = os.readlink(f"/proc/{process.pid}/fd/{number}")
                        self.assertNotRegex(led_to, "^socket:")
                self.sketch.mood("cat; echo $(ls /dev/fd); echo OK Done.")
                answer = client.click("undo")
                self.assertEqual(("done", "Done."), (answer["status"], answer["output"]))
                self.assert_ends(process, client)

    def test_a_log_that_goes_to_a_file_has_it_all(self):
        for unbuffered in ("", "1"):
            path = f"{self.folder}/log{unbuffered}"
            environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
            with open(path, "wb") as file:
                process, server = self.start(stdout=file, env=environment)
            client = self.connect(server=server)
            wait_until(lambda path=path: "= open" in read(path))
            client.click("nonsense")
            self.assert_ends(process, client)
            for text in ("listening on", "< nonsense", "> unknown", "= stopping"):
                self.assertEqual(1, read(path).count(text), text)
            self.assertTrue(read(path).endswith("= stopped\n"))

    def test_with_200_dialogues_a_script_that_hangs_and_30_slow_heads_a_click_is_as_fast(self):
        allow_descriptors(1000)
        constants = {"MAX_CONNECTIONS": 300}
        process, server = self.start(constants=constants, stdout=subprocess.PIPE)
        clicker = self.connect(server=server)
        self.fill(clicker)
        before, size = counts(process.pid), memory(process.pid)
        alone = self.milliseconds(clicker)

        dialogues = [self.connect(server=server) for _ in range(200)]
        self.sketch.reset()
        self.sketch.mood(HOLD)
        dialogues[0].send(client_frame(TEXT, "undo"))
        self.sketch.wait_for_calls(1)
        slow = [self.request(head(server.target)[:40], server=server) for _ in range(30)]
        crowded = self.milliseconds(clicker)
        self.assertLess(crowded, 3 * alone + 0.2, f"{crowded / alone:.1f} times as long as alone")

        self.sketch.say("OK")
        self.assertEqual("done", json.loads(dialogues[0].receive())["status"])
        for client in (*dialogues, *slow):
            client.close()
        wait_until(lambda: all(now <= then for now, then in zip(counts(process.pid), before)))
        self.assertLess(memory(process.pid) - size, 16 << 20)
        self.assert_ends(process, clicker)

    def milliseconds(self, client):
        """Return how long the answer to a click takes, the median of many."""
        taken = []
        for _ in range(500):
            start = time.perf_counter()
            self.assertEqual("unknown", client.click("nonsense")["status"])
            taken.append((time.perf_counter() - start) * 1000)
        return statistics.median(taken)


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
            self.assertRegex(client.read(), b"^[^\n]+\n$")
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


def python_3_8():
    """Return the path of a Python that is too old, None if there is none."""
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/3.8.*/bin/python3.8"))
    return found[0] if found else shutil.which("python3.8")


class CommandLineTestCase(TestCase):
    """Each test has its own bundle and its own Sketch; nothing of this machine's is touched."""

    def setUp(self):
        self.folder = temporary_folder(self.addCleanup)
        self.bundle = installed(self.folder)
        self.resources = f"{self.bundle}/Contents/Resources"
        self.elsewhere = f"{self.folder}/elsewhere"
        os.mkdir(self.elsewhere)
        self.sketch = StandInSketch(self.folder)
        self.addCleanup(self.sketch.close)

    def run_program(self, *arguments, program=None, python=PYTHON, wrapper=(), **options):
        """Return exit status, standard output and standard error."""
        program = program or f"{self.bundle}/Contents/Sketch/pebble_ws.py"
        command = [*wrapper, *python, *([program] if program != "-" else []), *arguments]
        options = {"cwd": self.elsewhere, **options}
        done = subprocess.run(command, capture_output=True, timeout=20, **options)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def assert_refused(self, *arguments, words=(), **options):
        """Check for one line on standard error, with these words, and exit status 1."""
        status, output, error = self.run_program(*arguments, **options)
        self.assertEqual((1, 1), (status, error.count("\n")), error)
        self.assertNotIn("listening", output)
        for word in words:
            self.assertIn(word, error)
        self.assertTrue(error[:-1].isprintable(), error)
        return error

    def unprivileged(self, *arguments, bundle=None):
        """Run the program as somebody to whom a folder can be read-only."""
        bundle = bundle or self.bundle
        if os.geteuid():
            return self.run_program(*arguments, program=f"{bundle}/Contents/Sketch/pebble_ws.py")
        os.chmod(self.folder, 0o755)
        for path, _, files in os.walk(self.folder):
            for each in (path, *(f"{path}/{name}" for name in files)):
                os.chown(each, 65_534, 65_534, follow_symlinks=False)
        code = f"""
import sys; sys.path[0] = {bundle + "/Contents/Sketch"!r}
import argparse, errno, fcntl, json, os, plistlib, queue, secrets, shutil, subprocess, tempfile
import encodings.idna, gettext, hashlib, html.parser, linecache, locale, stat, traceback
import pebble_ws
os.setgroups([]); os.setgid(65_534); os.setuid(65_534)
sys.exit(pebble_ws.main(sys.argv[1:]))
"""
        return self.run_program("-c", code, *arguments, program="-")

    @contextlib.contextmanager
    def small_disk(self, size):
        """Yield a folder on a disk of its own, where this machine allows that."""
        disk = f"{self.folder}/disk"
        os.mkdir(disk)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            self.skipTest("no disk can be mounted here")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


class CommandLine(CommandLineTestCase):
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
            ["--port", "80.5"],
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

    def test_what_is_not_a_sketch_is_refused(self):
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
                self.assert_refused("--port", "0", "--sketch", app, words=[app, "Sketch"])
                self.assertFalse(os.path.exists(f"{self.resources}/session.js"))

    def test_importing_it_starts_nothing(self):
        code = "import threading, pebble_ws; print(threading.active_count())"
        folder = f"{self.bundle}/Contents/Sketch"
        status, output, error = self.run_program("-c", code, program="-", cwd=folder)
        self.assertEqual((0, "1\n", ""), (status, output, error))
        self.assertFalse(os.path.exists(f"{self.resources}/session.js"))

    def test_a_second_server_of_a_plugin_is_refused_and_leaves_the_first_alone(self):
        server = self.started(self.addCleanup, self.bundle, "--dry-run")
        os.symlink(self.folder, f"{self.elsewhere}/link")
        by_link = f"{self.elsewhere}/link/pebble.sketchplugin/Contents/Sketch/pebble_ws.py"
        for why, arguments, program in (
            ("any port", ["--port", "0"], None),
            ("no port", [], None),
            ("the same port", ["--port", str(server.port)], None),
            ("by a link", ["--port", "0"], by_link),
        ):
            with self.subTest(why):
                words = [] if why == "the same port" else ["running"]
                self.assert_refused(*arguments, "--dry-run", words=words, program=program)
                self.assertEqual(server.session, read(server.session_file))
                names = os.listdir(self.resources)
                self.assertEqual(["session.js"], [name for name in names if "session" in name])
                self.assertEqual("dry run", self.connect(server=server).click("undo")["status"])
        server.stop()
        self.started(self.addCleanup, self.bundle, "--dry-run").stop()

    def test_a_server_that_was_killed_leaves_nothing_in_the_way(self):
        self.sketch.mood(HOLD)
        server = Server(self.bundle, "--sketch", self.sketch.app)
        self.addCleanup(server.kill)
        self.connect(client_frame(TEXT, "undo"), server=server)
        self.sketch.wait_for_calls(1)  # a script that lives on
        server.kill()
        self.assertTrue(os.path.exists(server.session_file))
        second = self.started(self.addCleanup, self.bundle, "--dry-run")
        self.assertNotEqual(server.token, second.token)
        second.stop()
        self.sketch.say("OK")

    def test_where_the_file_system_knows_no_locks_it_goes_on_without(self):
        for number in ("ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL"):
            with self.subTest(number):
                before = f"""
import errno, fcntl, os
def flock(file, operation):
    raise OSError(errno.{number}, os.strerror(errno.{number}))
fcntl.flock = flock
"""
                server = self.started(self.addCleanup, self.bundle, "--dry-run", before=before)
                self.assertEqual("dry run", self.connect(server=server).click("undo")["status"])
                server.stop()

    def test_servers_of_two_plugins_run_side_by_side(self):
        other = installed(self.elsewhere)
        servers = [
            self.started(self.addCleanup, bundle, "--sketch", self.sketch.app, port=None)
            for bundle in (self.bundle, other)
        ]
        self.assertNotEqual(servers[0].port, servers[1].port)
        for server, bundle in zip(servers, (self.bundle, other)):
            self.sketch.reset()
            self.assertEqual("done", self.connect(server=server).click("undo")["status"])
            self.assertEqual([command_line(bundle, "undo")], self.sketch.calls())
        with_the_others_token = self.request(head(servers[1].target), server=servers[0])
        self.assertIn(" 403 ", with_the_others_token.refusal()[0])
        servers[0].stop()
        self.assertEqual("done", self.connect(server=servers[1]).click("undo")["status"])

    def test_the_port_is_9912_or_where_that_is_taken_any_free_one(self):
        for host in ("127.0.0.1", "::1"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with self.subTest(f"taken: {host}"), contextlib.ExitStack() as taken:
                try:
                    taken.enter_context(socket.create_server((host, 9912), family=family))
                except OSError as error:
                    if host == "::1" and not socket.has_ipv6:
                        self.skipTest(f"this machine has no ::1: {error}")
                server = self.started(self.addCleanup, self.bundle, "--dry-run", port=None)
                self.assertNotEqual(9912, server.port)
                for each in ("127.0.0.1", "localhost"):
                    client = self.connect(server=server, host=each)
                    self.assertEqual("dry run", client.click("undo")["status"])
                server.stop()
        server = self.started(self.addCleanup, self.bundle, "--dry-run", port=None)
        if server.port != 9912:  # then somebody else has it
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 9912)):
                self.fail("9912 is free")

    def test_a_port_may_be_chosen_and_then_it_is_that_or_none(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
            words = [str(port), "--port"]
            self.assert_refused("--port", str(port), "--dry-run", words=words)
        with (
            contextlib.suppress(OSError),
            socket.create_server(("::1", port), family=socket.AF_INET6),
        ):
            self.assert_refused("--port", str(port), "--dry-run", words=words)
        self.assertFalse(os.path.exists(f"{self.resources}/session.js"))
        server = self.started(self.addCleanup, self.bundle, "--dry-run", port=port)
        self.assertEqual(port, server.port)

    def test_a_port_that_its_user_may_not_have_is_told(self):
        if os.geteuid() == 0 or sys.platform == "darwin":
            self.skipTest("this user may have any port")
        self.assert_refused("--port", "1", "--dry-run", words=["1"])

    def test_main_leaves_the_process_as_it_was(self):
        code = f"""
import json, os, signal, sys, threading, time
sys.path[0] = {self.bundle + "/Contents/Sketch"!r}
import pebble_ws
numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
def handler(*_): pass
signal.signal(signal.SIGTERM, handler)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1])
def state():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()), [signal.getsignal(n) for n in numbers]
before = state()
def stop():
    while not os.path.exists({self.resources + "/session.js"!r}):
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
for arguments in sys.argv[1:]:
    threads = threading.active_count()
    if "--dry-run" in arguments:
        threading.Thread(target=stop).start()
    try:
        status = pebble_ws.main(json.loads(arguments))
    except SystemExit as exit:
        status = exit.code
    print("status", status)
    if state() != before:
        print("changed by", arguments, state(), before)
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    print("threads", threading.active_count() - threads)
"""
        runs = [["--port", "0", "--dry-run"], ["--sketch", "none"], ["--version"], ["--nonsense"]]
        runs += [["--install", f"{self.elsewhere}/none"], ["--port", "0", "--dry-run"]]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            runs.append(["--port", str(taken.getsockname()[1])])
            arguments = map(json.dumps, runs)
            status, output, error = self.run_program("-c", code, *arguments, program="-")
        statuses = re.findall(r"(?m)^status (\d+)$", output)
        self.assertEqual(["0", "1", "0", "2", "1", "0", "1"], statuses, error)
        self.assertNotIn("changed by", output)
        self.assertNotRegex(output, "threads [^0]")
        self.assertNotIn("Traceback", error)

    def test_python_3_8_is_told_in_one_line_which_python_it_needs(self):
        old = python_3_8()
        if not old:
            self.skipTest("there is no Python 3.8")
        for arguments in ([], ["--dry-run"], ["--install", self.elsewhere], ["--help"]):
            with self.subTest(arguments):
                self.assert_refused(*arguments, python=[old], words=["3.9"])

    def test_without_docstrings_it_is_the_same(self):
        python = [*PYTHON, "-OO"]
        status, output, error = self.run_program("--help", python=python)
        self.assertEqual((0, ""), (status, error))
        self.assertEqual(output, self.run_program("--help")[1])
        path = f"{self.bundle}/Contents/Sketch/pebble_ws.py"
        command = [*python, path, "--port", "0", "--dry-run"]
        server = self.started(self.addCleanup, self.bundle, command=command)
        self.assertEqual("dry run", self.connect(server=server).click("undo")["status"])

    def test_the_environment_does_not_matter(self):
        bare = {"PATH": os.environ["PATH"]}
        for why, environment in (
            ("no HOME", bare),
            ("ASCII", {**bare, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
            ("another encoding", {**bare, "PYTHONIOENCODING": "ascii"}),
            ("unbuffered", {**bare, "PYTHONUNBUFFERED": "1"}),
        ):
            with self.subTest(why):
                server = self.started(
                    self.addCleanup, self.bundle, "--sketch", self.sketch.app, env=environment
                )
                self.sketch.mood("echo 'OK 30°'")
                client = self.connect(server=server)
                self.assertEqual("30°", client.click("rotate")["output"])
                self.assertEqual("unknown", client.click("é𐍈\ud7ff")["status"])
                server.stop()

    def test_a_session_file_that_cannot_be_written_is_told_with_the_reason(self):
        os.mkdir(f"{self.resources}/session.js")
        self.assert_refused("--port", "0", "--dry-run", words=["session.js"])
        self.assertEqual([], self.left_behind(besides="session.js"))
        os.rename(self.resources, f"{self.resources} away")
        error = self.assert_refused("--port", "0", "--dry-run", words=["Resources"])
        self.assertNotIn("writable", error)
        self.assertFalse(os.path.exists(self.resources))
        write(self.resources, "a file")
        self.assert_refused("--port", "0", "--dry-run", words=["Resources"])

    def left_behind(self, besides=None):
        names = os.listdir(self.resources)
        return [name for name in names if "session" in name and name != besides]

    def test_a_full_disk_is_told_as_what_it_is_and_nothing_is_left(self):
        with self.small_disk(300 << 10) as disk:
            bundle = installed(disk)
            fill_disk(disk)
            program = f"{bundle}/Contents/Sketch/pebble_ws.py"
            error = self.assert_refused("--port", "0", "--dry-run", program=program)
            self.assertRegex(error, "(?i)full|no space")
            self.assertNotIn("writable", error)
            self.resources = f"{bundle}/Contents/Resources"
            self.assertEqual([], self.left_behind())

    def test_a_file_size_limit_is_told_and_nothing_is_left(self):
        limit = in_a_shell("ulimit -f 0")
        self.assert_refused("--port", "0", "--dry-run", wrapper=limit, words=["session.js"])
        self.assertEqual([], self.left_behind())

    def test_a_plugin_that_cannot_be_found_is_told(self):
        alone = shutil.copy(PROGRAM, self.folder)
        arguments = ("--port", "0", "--dry-run")
        self.assert_refused(*arguments, program=alone, words=["plugin"])

    def test_an_installed_copy_without_a_manifest_is_still_that(self):
        os.remove(f"{self.bundle}/Contents/Sketch/manifest.json")
        server = self.started(self.addCleanup, self.bundle, "--sketch", self.sketch.app)
        answer = self.connect(server=server).click("undo")
        self.assertEqual("failed", answer["status"])
        self.assertIn("manifest.json", answer["output"])

    def test_a_bundle_may_have_any_name(self):
        own = f"{self.folder}/Mein Plugin ü.sketchplugin"
        os.rename(self.bundle, own)
        server = self.started(self.addCleanup, own, "--sketch", self.sketch.app)
        self.assertEqual("done", self.connect(server=server).click("undo")["status"])
        self.assertEqual([command_line(own, "undo")], self.sketch.calls())

    def test_a_read_only_folder_is_told_where_something_must_be_written(self):
        os.chmod(self.resources, 0o555)
        self.addCleanup(os.chmod, self.resources, 0o755)
        status, output, error = self.unprivileged("--port", "0", "--dry-run")
        self.assertEqual((1, 1), (status, error.count("\n")), error)
        self.assertNotIn("listening", output)
        self.assertIn("session.js", error)
        self.assertIn("--install", error)
        self.assertEqual(0, self.unprivileged("--version")[0])

    def test_a_dry_run_runs_nothing_and_says_so(self):
        for why, arguments, before in (
            ("asked for", ["--dry-run", "--sketch", self.sketch.app], ""),
            ("not on macOS", [], "sys.platform = 'linux'"),
        ):
            with self.subTest(why):
                server = self.started(self.addCleanup, self.bundle, *arguments, before=before)
                self.assertIn("dry run", server.first_lines[0].lower())
                page = re.search(
                    r"file://(\S+pebble-dialogue\.html)", "\n".join(server.first_lines)
                )
                self.assertTrue(os.path.isfile(urllib.parse.unquote(page[1])))
                self.assertIn('"dryRun": true', server.session)
                answer = self.connect(server=server).click("rotate")
                self.assertEqual("dry run", answer["status"])
                self.assertIn("rotate", answer["output"])
                server.stop()
        self.assertEqual([], self.sketch.calls())

    def test_a_checkout_is_told_that_sketch_shows_the_installed_copy(self):
        checkout, home = f"{self.folder}/checkout", f"{self.folder}/home"
        shutil.copytree(PLUGIN, f"{checkout}/plugin/pebble.sketchplugin")
        program = shutil.copy(PROGRAM, checkout)
        plugins = f"{home}/Library/Application Support/com.bohemiancoding.sketch3/Plugins"
        os.makedirs(plugins)
        environment = {**os.environ, "HOME": home}
        command = [*PYTHON, program, "--port", "0", "--sketch", self.sketch.app]
        for is_installed in (False, True):
            with self.subTest(is_installed=is_installed):
                if is_installed:
                    installed(plugins)
                server = self.started(
                    self.addCleanup,
                    f"{checkout}/plugin/pebble.sketchplugin",
                    command=command,
                    env=environment,
                )
                told = [line for line in server.first_lines if " ! " in line]
                self.assertEqual(is_installed, "installed copy" in "".join(told), told)
                server.stop()

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
            before="sys.platform = 'darwin'",
            env={**os.environ, "PATH": path},
        )

    @unittest.skipIf(os.path.exists("/Applications/Sketch.app"), "this Mac has Sketch")
    def test_on_a_mac_without_sketch_it_warns_and_fails_each_click_with_the_remedy(self):
        server = self.macos()
        self.assertIn("--sketch", next(line for line in server.first_lines if " ! " in line))
        self.assertIn('"dryRun": false', server.session)
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

    def test_a_relative_path_of_sketch_is_that_from_where_it_was_started(self):
        server = self.started(
            self.addCleanup, self.bundle, "--sketch", "../Sketch.app/", cwd=self.elsewhere
        )
        self.assertEqual("done", self.connect(server=server).click("rotate")["status"])


def fill_disk(folder):
    """Leave no byte on it."""
    with open(f"{folder}/filler", "wb", 0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


class Install(CommandLineTestCase):
    def test_it_copies_the_plugin_with_the_server(self):
        folder = f"{self.folder}/in ä 'folder'"
        copy = f"{folder}/pebble.sketchplugin"
        os.mkdir(folder)
        write(f"{self.resources}/session.js", "another's secret")
        start = f"{self.bundle}/Contents/Sketch/run.command"
        write(start, "#!/bin/sh\n")
        os.chmod(start, 0o755)
        status, output, error = self.run_program("--install", folder)
        self.assertEqual((0, ""), (status, error))
        self.assertIn(folder, output)
        self.assertEqual(["pebble.sketchplugin"], os.listdir(folder))
        self.assertEqual(read(PROGRAM), read(f"{copy}/Contents/Sketch/pebble_ws.py"))
        files = [
            sorted(
                os.path.relpath(f"{path}/{name}", bundle)
                for path, _, names in os.walk(bundle)
                for name in names
                if name not in ("pebble_ws.py", "session.js")
            )
            for bundle in (self.bundle, copy)
        ]
        self.assertEqual(*files)
        self.assertFalse(os.path.exists(f"{copy}/Contents/Resources/session.js"))
        for name in files[0]:
            executable = os.stat(f"{self.bundle}/{name}").st_mode & 0o111
            self.assertEqual(executable, os.stat(f"{copy}/{name}").st_mode & 0o111, name)
        self.assertTrue(os.access(f"{copy}/Contents/Sketch/run.command", os.X_OK))

    def earlier(self, folder):
        """Install a copy into a new folder, and make it somebody's own; return its path."""
        os.mkdir(folder)
        self.assertEqual(0, self.run_program("--install", folder)[0])
        copy = f"{folder}/pebble.sketchplugin"
        write(f"{copy}/Contents/Sketch/mine.cocoascript", "precious")
        return copy

    def test_an_earlier_copy_is_moved_aside_and_one_generation_is_kept(self):
        folder = f"{self.folder}/earlier"
        copy = self.earlier(folder)
        for generation in ("precious", "second", "third"):
            write(f"{copy}/Contents/Sketch/mine.cocoascript", generation)
            status, output, error = self.run_program("--install", folder)
            self.assertEqual((0, ""), (status, error))
            self.assertIn("pebble.before", output)
            self.assertEqual(["pebble.before", "pebble.sketchplugin"], sorted(os.listdir(folder)))
            kept = f"{folder}/pebble.before/Contents/Sketch/mine.cocoascript"
            self.assertEqual(generation, read(kept))
            self.assertFalse(os.path.exists(f"{copy}/Contents/Sketch/mine.cocoascript"))
            self.assertEqual(read(PROGRAM), read(f"{copy}/Contents/Sketch/pebble_ws.py"))

    def test_a_name_that_the_output_cannot_show_is_escaped(self):
        environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii"}
        folder = f"{self.elsewhere}/Plug-ins für Zoë\x1b[2J"
        os.mkdir(folder)
        status, output, error = self.run_program("--install", folder, env=environment)
        self.assertEqual((0, ""), (status, error))
        self.assertTrue(output.replace("\n", "").isprintable())
        self.assertIn("Plug-ins", output)
        self.assert_refused("--install", f"{folder}/ü", env=environment)

    def test_a_read_only_folder_in_the_earlier_copy_is_moved_aside_too(self):
        folder = f"{self.folder}/earlier"
        copy = self.earlier(folder)

        def unprotect():
            for path, folders, _ in os.walk(self.folder):
                for name in folders:
                    os.chmod(f"{path}/{name}", 0o755)

        self.addCleanup(unprotect)
        for generation in range(3):
            write(f"{copy}/Contents/Sketch/mine.cocoascript", str(generation))
            before = self.contents(copy)
            for name in ("Contents/Sketch", "Contents/Resources", "Contents", ""):
                os.chmod(f"{copy}/{name}", 0o555)
            status, output, error = self.unprivileged("--install", folder)
            if status == 0:
                self.assertEqual(before, self.contents(f"{folder}/pebble.before"))
                self.assertTrue(os.path.isfile(f"{copy}/Contents/Sketch/manifest.json"))
            else:  # an older one cannot be removed: nothing is done, and its user is told
                self.assertGreater(generation, 0)
                self.assertEqual(before, self.contents(copy))
                self.assertIn("pebble.before", error)
                self.assertEqual(1, error.count("\n"))
            self.assertEqual(["pebble.before", "pebble.sketchplugin"], sorted(os.listdir(folder)))
            for name in ("", "Contents", "Contents/Sketch", "Contents/Resources"):
                os.chmod(f"{copy}/{name}", 0o755)

    def test_a_folder_that_is_read_only_is_told_and_the_earlier_copy_stays_whole(self):
        folder = f"{self.folder}/earlier"
        copy = self.earlier(folder)
        before = self.contents(folder)
        os.chmod(folder, 0o555)
        self.addCleanup(os.chmod, folder, 0o755)
        status, output, error = self.unprivileged("--install", folder)
        self.assertEqual((1, "", 1), (status, output, error.count("\n")), error)
        self.assertIn(os.path.basename(folder), error)
        self.assertEqual(before, self.contents(folder))
        self.assertTrue(os.path.isdir(copy))

    def contents(self, folder):
        """Return all files with what is in them."""
        found = {}
        for path, _, names in os.walk(folder):
            for name in names:
                with open(f"{path}/{name}", "rb") as file:
                    found[os.path.relpath(f"{path}/{name}", folder)] = file.read()
        return found

    def test_an_earlier_copy_stays_whole_when_another_cannot_be_made(self):
        folder = f"{self.folder}/earlier"
        self.earlier(folder)
        before = self.contents(folder)
        os.symlink("nowhere", f"{self.resources}/missing.png")
        self.assert_refused("--install", folder, words=["missing.png"])
        self.assertEqual(before, self.contents(folder))
        os.remove(f"{self.resources}/missing.png")
        limit = in_a_shell("ulimit -f 8")
        self.assert_refused("--install", folder, wrapper=limit)
        self.assertEqual(before, self.contents(folder))

    def test_an_earlier_copy_comes_back_when_another_cannot_take_its_place(self):
        folder = f"{self.folder}/earlier"
        copy = self.earlier(folder)
        before = self.contents(copy)
        break_the_disk = f"""
import os
def broken(plain):
    def move(source, target):
        if target == {copy!r} and "before" not in source:
            raise OSError(5, "Input/output error")
        plain(source, target)
    return move
os.rename, os.replace = broken(os.rename), broken(os.replace)
"""
        command = Server.command_line(self.bundle, before=break_the_disk)
        done = subprocess.run([*command, "--install", folder], capture_output=True, timeout=20)
        self.assertEqual(1, done.returncode, done.stderr)
        self.assertIn(b"Input/output error", done.stderr)
        self.assertEqual(["pebble.sketchplugin"], os.listdir(folder))
        self.assertEqual(before, self.contents(copy))

    def test_a_full_disk_leaves_the_earlier_copy_whole(self):
        with self.small_disk(400 << 10) as disk:
            self.assertEqual(0, self.run_program("--install", disk)[0])
            with open(f"{disk}/filler", "wb") as file:
                file.write(bytes(max(0, shutil.disk_usage(disk).free - 40_000)))
            before = self.contents(disk)
            error = self.assert_refused("--install", disk)
            self.assertRegex(error, "(?i)full|no space")
            self.assertEqual(before, self.contents(disk))

    def test_over_a_copy_whose_server_is_running_is_refused(self):
        folder = f"{self.folder}/earlier"
        copy = self.earlier(folder)
        server = self.started(self.addCleanup, copy, "--dry-run")
        before = self.contents(folder)
        self.assert_refused("--install", folder, words=["running"])
        self.assertEqual(before, self.contents(folder))
        self.assertEqual("dry run", self.connect(server=server).click("undo")["status"])
        server.stop()
        self.assertEqual(0, self.run_program("--install", folder)[0])

    def test_from_a_copy_whose_server_is_running_it_works(self):
        server = self.started(self.addCleanup, self.bundle, "--dry-run")
        self.assertEqual(0, self.run_program("--install", self.elsewhere)[0])
        copy = f"{self.elsewhere}/pebble.sketchplugin"
        self.assertFalse(os.path.exists(f"{copy}/Contents/Resources/session.js"))
        self.started(self.addCleanup, copy, "--dry-run").stop()
        self.assertEqual("dry run", self.connect(server=server).click("undo")["status"])

    def test_it_leaves_alone_what_a_link_leads_to(self):
        precious = f"{self.folder}/precious"
        os.makedirs(f"{precious}/content")
        os.chmod(f"{precious}/content", 0o700)
        for target in (precious, f"{self.folder}/nowhere"):
            folder = f"{target} linked"
            os.makedirs(folder)
            os.symlink(target, f"{folder}/pebble.sketchplugin")
            status, _, error = self.run_program("--install", folder)
            self.assertIn((status, error.count("\n")), ((0, 0), (1, 1)))
            kept = "before" if status == 0 else "sketchplugin"
            self.assertEqual(target, os.readlink(f"{folder}/pebble.{kept}"))
            if status == 0:  # and again
                status, _, error = self.run_program("--install", folder)
                self.assertTrue(status == 0 or "pebble.before" in error, error)
        self.assertEqual(["content"], os.listdir(precious))
        self.assertEqual(0o700, os.stat(f"{precious}/content").st_mode & 0o777)

    def test_the_name_of_the_folder_does_not_matter(self):
        folder = f"{self.elsewhere}/my.sketchplugin copies"
        self.earlier(folder)
        status, output, error = self.run_program("--install", folder)
        self.assertEqual((0, ""), (status, error))
        self.assertEqual(["pebble.before", "pebble.sketchplugin"], sorted(os.listdir(folder)))

    def test_it_keeps_what_it_must_not_replace(self):
        checkout = f"{self.folder}/holds/pebble.sketchplugin"
        shutil.copytree(PLUGIN, f"{checkout}/plugin/pebble.sketchplugin")
        program = shutil.copy(PROGRAM, checkout)
        self.assert_refused("--install", f"{self.folder}/holds", program=program, words=["holds"])
        self.assertTrue(os.path.isfile(program))

    def test_it_refuses_what_would_not_work(self):
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

    def test_it_goes_to_sketchs_folder_by_default(self):
        plugins = f"{self.folder}/Library/Application Support/com.bohemiancoding.sketch3/Plugins"
        environment = {**os.environ, "HOME": self.folder}
        error = self.assert_refused("--install", env=environment)
        self.assertIn(plugins, error)
        os.makedirs(plugins)
        status, output, error = self.run_program("--install", env=environment)
        self.assertEqual((0, ""), (status, error))
        self.assertIn(plugins, output)
        self.assertTrue(os.path.isdir(f"{plugins}/pebble.sketchplugin/Contents"))

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
                self.assertTrue(os.stat(each).st_mode & 0o200, each)
        self.started(self.addCleanup, f"{target}/pebble.sketchplugin", "--dry-run")


# ---- README -------------------------------------------------------------------------------------

ROOT = os.path.dirname(PROGRAM)


def readme():
    return read(f"{ROOT}/README.md")


def section(title):
    """Return what stands under a title of the README, up to the next one of its level."""
    level = title.partition(" ")[0]
    end = rf"(?=^#{{2,{len(level)}}} |\Z)"
    (found,) = re.findall(rf"^{re.escape(title)}\n(.*?){end}", readme(), re.S | re.M)
    return found


class Readme(TestCase):
    def test_two_commands_stand_in_its_first_lines(self):
        beginning = readme().splitlines()[:15]
        for command in ("python3 pebble_ws.py", "python3 -m unittest"):
            self.assertIn(command, beginning)

    def test_a_mac_can_take_its_commands_as_they_are_pasted(self):
        # zsh, as it is on a Mac, takes a comment for arguments.
        for block in re.findall(r"```sh\n(.*?)```", readme(), re.S):
            self.assertNotIn("#", block)

    def test_all_that_it_points_to_is_there(self):
        text = readme()
        for path in re.findall(r'<img src="([^"]+)"', text):
            self.assertTrue(os.path.isfile(f"{ROOT}/{path}"), path)
        titles = re.findall(r"^#+ (.*)", text, re.M)
        for anchor in re.findall(r"\]\(#([^)]+)\)", text):
            self.assertIn(anchor, [title.lower().replace(" ", "-") for title in titles])

    def test_its_numbers_and_menu_items_are_those_of_the_program(self):
        text = " ".join(readme().split())
        channel = read(f"{PLUGIN}/Contents/Resources/back-channel.js")
        for sentence in (
            f"The port is {pebble_ws.DEFAULT_PORT}, or any free one",
            f"`busy` ({pebble_ws.MAX_WAITING} clicks are waiting)",
            f"After {pebble_ws.SCRIPT_TIMEOUT} seconds the server gives up",
            f"at most {pebble_ws.MAX_OUTPUT:,} characters",
            f"a message {pebble_ws.WebSocketHandler.max_message_size / (1 << 20):.0f} MiB",
            f"Up to {pebble_ws.MAX_CONNECTIONS} connections",
            f"{int(re.search(r'TITLE_LIMIT = ([0-9]+)', channel)[1]):,} characters in all",
        ):
            self.assertIn(sentence, text)
        menu = {item["title"]: item["items"] for item in manifest()["menu"]["items"]}
        for title, item in re.findall(r"\*\*Plugins ▸ ([\w-]+) ▸ ([\w-]+)\*\*", text):
            if title != "Spacing":  # a plugin of one's own
                self.assertIn(item, menu[title])

    def test_its_transcript_is_what_the_server_prints(self):
        bundle = installed(temporary_folder(self.addCleanup))
        server = self.started(self.addCleanup, bundle, "--dry-run")
        client = self.connect(server=server, Origin="null")
        client.click("rotate")
        client.send(close_of(1001))
        self.assert_fails(client, 1001)
        server.wait_for("closed")
        shown = re.search(r"```\n(\S+ = dry run.*?)```", readme(), re.S)[1].strip()
        printed = "\n".join(filter(None, server.log))
        for real, example in (
            (pathlib.Path(bundle).as_uri(), "file:///…/plugin/pebble.sketchplugin"),
            (str(server.port), "9912"),
        ):
            printed = printed.replace(real, example)
        any_time = r"\d\d:\d\d:\d\d|\d+ ms"
        self.assertEqual(re.split(any_time, shown), re.split(any_time, printed))

    def test_its_servers_of_any_kind_run(self):
        echo, chat = re.findall(r"```python\n(.*?)```", section("## How it works"), re.S)
        for code, count in ((echo, 1), (chat, 2)):
            with self.subTest(code):
                server = self.run_example(code)
                self.request(server=server)  # one that is not open yet is left out
                sender, *others = [
                    self.connect(client_frame(PING), server=server) for _ in range(count)
                ]
                for client in (sender, *others):
                    self.assertEqual((PONG, b""), client.receive())
                sender.send(client_frame(TEXT, "Grüße"))
                for client in (sender, *others):
                    self.assertEqual("Grüße", client.receive())

    def run_example(self, code):
        """Run a program at any free port instead of its own; return as much of a Server."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.assertIn("9001", code)
        self.process([*PYTHON, "-c", code.replace("9001", str(port))], cwd=ROOT)

        def listens():
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True

        wait_until(listens)
        return types.SimpleNamespace(port=port, target="/")

    def test_its_table_of_troubles_has_each_line_that_is_said_and_no_other(self):
        rows = re.findall(r"^\| (`.*?) \|", section("## When something goes wrong"), re.M)
        spans = [span for row in rows for span in re.findall("`([^`]+)`", row)]
        self.assertEqual(len(spans), len(set(spans)), "a line stands there twice")
        patterns = [".*".join(map(re.escape, span.split("…"))) for span in spans]
        said = set(all_that_is_said())
        missing = [text for text in said if not any(re.fullmatch(each, text) for each in patterns)]
        self.assertEqual([], sorted(missing), "said, and not in the table")
        for span, pattern in zip(spans, patterns):
            self.assertGreater(len(re.findall("[A-Za-z]", span)), 3, span)
            self.assertTrue([text for text in said if re.fullmatch(pattern, text)], span)


def all_that_is_said():
    """Yield what the server, the general scripts and the page say; … stands for what differs."""
    contents = f"{PLUGIN}/Contents"
    yield from said_in_python(PROGRAM)
    yield from re.findall('fail "(.*?)"', read(f"{contents}/Sketch/start.command"))
    for path in (
        "Sketch/panel.js",
        "Sketch/open-panel.cocoascript",
        "Sketch/start-webservice.cocoascript",
        "Sketch/webservice-starting-information.cocoascript",
        "Resources/back-channel.js",
    ):
        yield from said_in_javascript(read(f"{contents}/{path}"))
    for text in said_in_javascript(read(f"{contents}/Resources/pebble-dialogue.js")):
        if re.search(r'^"|\.$', text):  # what else it has are labels
            yield text


# Functions, and which of their arguments is said.
SAYING = {"UserError": 0, "print": 0, "error": 0, "log": 1, "answer": 2}
FAILING = ("require", "ProtocolError", "_fail")  # the last is a reason, a code is before it


def said_in_python(path):
    tree = ast.parse(read(path))
    everywhere = texts_by_name(tree.body)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            names = {**everywhere, **texts_by_name(ast.walk(function))}
            for node in ast.walk(function):
                for text in said_by(node, names):
                    # What another program printed may come before it, in lines of its own.
                    text = text.rpartition("\n")[2]
                    is_resolved_elsewhere = re.match("(refused|closed) …|pebble_ws.py: …", text)
                    if re.search("[a-z]", text) and not is_resolved_elsewhere:
                        yield text


def texts_by_name(nodes):
    """Return the texts that are given a name, by that."""
    return {
        node.targets[0].id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, (ast.Constant, ast.JoinedStr))
    }


def said_by(node, names):
    """Yield what one call or statement says."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        arguments = node.args
        if len(arguments) > SAYING.get(name, len(arguments)):
            text = text_of(arguments[SAYING[name]], names)
            sign = getattr(arguments[0], "value", "")
            yield f"= {text}" if sign == "=" else text
        if name in FAILING and len(arguments) > 1:
            reason = text_of(arguments[-1], names)
            codes = [getattr(each, "value", None) for each in ast.walk(arguments[-2])]
            for code in (code for code in codes if isinstance(code, int)):
                yield f"! {'refused' if code < 1000 else 'closed'} {code}: {reason}"
    if isinstance(node, (ast.Assign, ast.Return)) and isinstance(node.value, ast.Tuple):
        status, output = node.value.elts[:2]
        if getattr(status, "value", None) in ("done", "failed", "dry run"):
            for either in getattr(output, "values", [output]):
                yield text_of(output if isinstance(output, ast.JoinedStr) else either, names)


def text_of(node, names):
    """Return a text, with … for what differs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(each, names) for each in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, names)
    if isinstance(node, ast.Name) and node.id in names:
        return text_of(names[node.id], {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return text_of(node.func.value, names)  # "…".strip()
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "printable":
        return text_of(node.args[0], names)
    return "…"


def said_in_javascript(code):
    """Yield what is a Problem in it, and what else begins and ends as a sentence does."""
    code = re.sub(r"/\*[\s\S]*?\*/|^\s*//.*|\s//\s.*", "", code, flags=re.M)
    literal = r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`"""
    for found in re.finditer(
        rf"(new Problem\(\s*)?((?:{literal})(?:\s*\+\s*(?:{literal}))*)", code
    ):
        parts = re.findall(literal, found[2])
        text = "".join(re.sub(r"\$\{[^}]*\}", "…", part[1:-1]) for part in parts)
        if found[1] or re.fullmatch(r'[A-Z"…✕].*[a-z].*[ :].*(\W|Sketch)', text):
            yield text.strip()


class Recipe:
    """What a section of the README tells to do, done step by step, and nothing else.

    A sentence before a block that is not understood is a mistake in the README: a person would have
    to guess, too.
    """

    BLOCK = re.compile(r"^( *)```\w+\n(.*?)^\1```$", re.S | re.M)
    PAIR = r"`([^`]+)` with `([^`]+)`"

    def __init__(self, title, bundle, folder=ROOT, environment=None):
        self.bundle, self.folder, self.environment = bundle, folder, environment
        # The steps are numbered; nothing else there is to be done.
        steps = re.findall(r"^\d\. .*?(?=^\S|\Z)", section(title), re.S | re.M)
        self.done = [self.follow(step) for step in steps]

    def follow(self, step):
        """Do a step; return how many things there were to do."""
        done = 0
        while block := self.BLOCK.search(step):
            prose = " ".join(step[: block.start()].split())
            done += self.replace(prose)
            self.use(block[2] if not block[1] else textwrap.dedent(block[2]), prose)
            done += 1
            step = step[block.end() :]
        return done + self.replace(" ".join(step.split()))

    def use(self, block, prose):
        """Do with a block what the last sentence before it says."""
        for pattern, method in (
            (r"In `([^`]+)`, (below|above) the line `([^`]+)`, add\b[^.:]*:", self.add),
            (r"In `([^`]+)`, replace the lines from `([^`]+)` to `([^`]+)` with:", self.exchange),
            (r"Save this as `([^`]+)`.*:", self.save),
            (r"Paste this into Terminal, in this folder\..*:", self.paste),
        ):
            if found := re.fullmatch(rf".*?{pattern}", prose):
                return method(block, *found.groups())
        raise AssertionError(f"What shall be done with what comes after this? {prose}")

    def path(self, name):
        return f"{self.bundle if name.startswith('Contents/') else self.folder}/{name}"

    def add(self, block, name, where, text):
        lines = read(self.path(name)).splitlines(keepends=True)
        (place,) = [i for i, line in enumerate(lines) if line.strip() == text]
        lines.insert(place + (where == "below"), block)
        write(self.path(name), "".join(lines))

    def exchange(self, block, name, first, last):
        lines = read(self.path(name)).splitlines(keepends=True)
        (start,) = [i for i, line in enumerate(lines) if line.startswith(first)]
        end = next(i for i in range(start, len(lines)) if lines[i].startswith(last))
        lines[start : end + 1] = [block]
        write(self.path(name), "".join(lines))

    def save(self, block, name):
        if os.path.exists(self.path(name)):
            raise AssertionError(f"{name} is there already")
        write(self.path(name), block)

    def paste(self, block):
        in_terminal(block, self.folder, self.environment)

    def replace(self, prose):
        """Replace what a sentence tells to replace in a line; return in how many places."""
        count = 0
        for found in re.finditer(
            rf"[Ii]n `([^`]+)`, replace ({self.PAIR}(,? and {self.PAIR})*)", prose
        ):
            path = self.path(found[1])
            for old, new in re.findall(self.PAIR, found[2]):
                text = read(path)
                if text.count(old) != 1:
                    raise AssertionError(f"{old} is not once in {found[1]}")
                write(path, text.replace(old, new))
                count += 1
        return count


def in_terminal(commands, folder, environment):
    """Do what is pasted into a terminal, up to the first command that fails."""
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)


class DesignersTestCase(TestCase):
    """A designer's home with Sketch's plugins folder, and a copy of this project."""

    def setUp(self):
        if not ENGINES and not CI:
            self.skipTest("the plugin's scripts need an engine, jsc or node")
        self.home = temporary_folder(self.addCleanup)
        self.plugins = f"{self.home}/Library/Application Support/com.bohemiancoding.sketch3/Plugins"
        os.makedirs(self.plugins)
        self.checkout = f"{self.home}/pebble"
        shutil.copytree(f"{ROOT}/plugin", f"{self.checkout}/plugin", ignore=NOT_COPIED)
        for name in ("pebble_ws.py", "test_pebble_ws.py", "README.md"):
            shutil.copy(f"{ROOT}/{name}", self.checkout)

        programs = f"{self.home}/bin"
        os.mkdir(programs)
        for name, shell in (
            ("python3", f'exec {shlex.join(PYTHON)} "$@"'),
            ("open", f'test -d "$1" && echo "$1" >>{shlex.quote(self.home)}/opened'),
        ):
            write(f"{programs}/{name}", f"#!/bin/sh\n{shell}\n")
            os.chmod(f"{programs}/{name}", 0o755)
        path = f"{programs}:{os.environ['PATH']}"
        self.environment = {**os.environ, "HOME": self.home, "PATH": path, "CI": ""}

    def installed(self):
        """Install what is in the checkout as the README says; return the bundle."""
        (commands,) = re.findall(
            r"```sh\n(.*?)```", section("## Add a button, a field, a page"), re.S
        )
        in_terminal(commands, self.checkout, self.environment)
        return f"{self.plugins}/pebble.sketchplugin"

    def own_plugin(self):
        """Make the plugin of one's own; return the bundle."""
        bundle = f"{self.plugins}/spacing.sketchplugin"
        recipe = Recipe("## A plugin of your own", bundle, self.checkout, self.environment)
        self.assertEqual([1, 1, 2, 1, 1], recipe.done)
        return bundle

    def serve(self, bundle):
        """Start a bundle's server as its menu does; return it and a Sketch of its own."""
        sketch = StandInSketch(temporary_folder(self.addCleanup))
        self.addCleanup(sketch.close)
        command = [f"{bundle}/Contents/Sketch/start.command", "--sketch", sketch.app]
        server = self.started(self.addCleanup, bundle, command=command, env=self.environment)
        return server, sketch

    def model(self, sketch, engine, selection, title, *other):
        """Let a Sketch run scripts in the model, with a panel open, and another one beside it."""
        words = [engine, "run.js", "--", "run"]
        panels = shlex.join([selection, title, *other])
        sketch.mood(f'cd {shlex.quote(TESTS)} && exec {shlex.join(words)} "$2" "$3" {panels}')


NOT_COPIED = shutil.ignore_patterns("session.js*", "__pycache__")


class AButtonAFieldAndAPage(DesignersTestCase):
    """The recipes for the dialogue, done word for word."""

    def setUp(self):
        super().setUp()
        self.bundle = f"{self.checkout}/plugin/pebble.sketchplugin"

    def follow(self, title, done):
        self.assertEqual(done, Recipe(title, self.bundle, self.checkout, self.environment).done)

    def test_each_alone_fits_together_with_the_rest(self):
        for title, done in (("### A button", [1, 1, 2, 1]), ("### A page", [1, 1])):
            with self.subTest(title):
                shutil.rmtree(self.bundle)
                shutil.copytree(PLUGIN, self.bundle, ignore=NOT_COPIED)
                shutil.copy(PROGRAM, self.checkout)
                self.follow(title, done)
                self.installed()

    def test_the_button_does_what_its_script_says_with_the_fields_value(self):
        self.follow("### A button", [1, 1, 2, 1])
        server, sketch = self.serve(self.installed())
        client = self.connect(server=server)
        for engine in ENGINES:
            for selection, status, output in (
                ("pair", "done", "Numbered 1, 2."),
                ("nothing", "failed", "Select some layers."),
            ):
                with self.subTest(output, engine=engine):
                    self.model(sketch, engine, selection, json.dumps(VALUES))
                    answer = client.click("number")
                    self.assertEqual((status, output), (answer["status"], answer["output"]))
        client.close()
        server.stop()

        self.follow("### A field", [1, 2])
        server, sketch = self.serve(self.installed())
        client = self.connect(server=server)
        for engine in ENGINES:
            with self.subTest("with the field", engine=engine):
                self.model(sketch, engine, "pair", json.dumps({**VALUES, "prefix": "Step-"}))
                self.assertEqual("Numbered Step-1, Step-2.", client.click("number")["output"])
                self.model(sketch, engine, "pair", json.dumps(VALUES))
                answer = client.click("number")
                self.assertEqual("failed", answer["status"])
                self.assertIn('number.cocoascript asks for "prefix"', answer["output"])

    def test_the_plugins_own_tests_still_pass(self):
        for title, done in (
            ("### A button", [1, 1, 2, 1]),
            ("### A field", [1, 2]),
            ("### A page", [1, 1]),
        ):
            self.follow(title, done)
        for engine in ENGINES:
            with self.subTest(engine):
                done = subprocess.run(
                    [engine, "run.js"],
                    cwd=f"{self.checkout}/plugin/tests",
                    capture_output=True,
                    encoding="utf-8",
                    timeout=60,
                )
                self.assertRegex(done.stdout, r"(?m)^[1-9]\d* passed, 0 failed$")


class APluginOfOnesOwn(DesignersTestCase):
    """The README's five steps, done word for word."""

    def test_it_is_made_of_the_general_files_and_three_of_its_own(self):
        bundle = self.own_plugin()
        names = [f"{folder}/{name}" for folder, _, files in os.walk(bundle) for name in files]
        self.assertEqual(
            {
                "Resources/back-channel.js",
                "Resources/icon.png",
                "Resources/spacing.html",
                "Sketch/manifest.json",
                "Sketch/open-panel.cocoascript",
                "Sketch/panel.js",
                "Sketch/pebble_ws.py",
                "Sketch/space.cocoascript",
                "Sketch/start-webservice.cocoascript",
                "Sketch/start.command",
                "Sketch/webservice-starting-information.cocoascript",
            },
            {name.replace(f"{bundle}/Contents/", "") for name in names},
        )
        self.assertEqual(f"{bundle}/Contents\n", read(f"{self.home}/opened"))
        self.assertEqual([], [*page_mistakes(bundle, ["space"]), *handler_mistakes(bundle)])

    def test_a_click_does_what_the_script_says(self):
        bundle = self.own_plugin()
        server, sketch = self.serve(bundle)
        self.assertEqual([], [line for line in server.first_lines if " ! " in line])
        client = self.connect(server=server)
        for engine in ENGINES:
            for gap, selection, status, output in (
                ("12", "pair", "done", "Spaced 2 layers."),
                ("-0.5", "pair", "done", "Spaced 2 layers."),
                ("", "pair", "failed", '"" is not a number. Type one into Gap.'),
                ("8 px", "pair", "failed", '"8 px" is not a number. Type one into Gap.'),
                ("8", "watch", "failed", "Select two layers or more."),
                ("8", "nothing", "failed", "Select two layers or more."),
            ):
                with self.subTest(gap, selection=selection, engine=engine):
                    self.model(sketch, engine, selection, json.dumps({"gap": gap}))
                    answer = client.click("space")
                    self.assertEqual((status, output), (answer["status"], answer["output"]))
            with self.subTest("no panel", engine=engine):
                self.model(sketch, engine, "pair", "")
                output = "Open the panel first: choose open-panel of Spacing in the Plugins menu."
                self.assertEqual(output, client.click("space")["output"])
        self.assertEqual([bundle, "space"], sketch.calls()[0][1:3])

    def test_it_and_this_plugin_see_nothing_of_each_other(self):
        own, other = self.own_plugin(), self.installed()
        own_panel = (own, json.dumps({"gap": "8"}))
        other_panel = (other, json.dumps(VALUES))
        servers = []
        for bundle, message, output, panels in (
            (own, "space", "Spaced 2 layers.", (own_panel[1], *other_panel)),
            (other, "rotate", "Rotated minutes by 30°.", (other_panel[1], *own_panel)),
        ):
            server, sketch = self.serve(bundle)
            servers.append((server, sketch, message))
            self.model(sketch, ENGINES[0], "pair", *panels)
            self.assertEqual(output, self.connect(server=server).click(message)["output"])
        (one, *_), (two, *_) = servers
        self.assertNotEqual(one.port, two.port)
        with self.subTest("the token of one is none of the other's"):
            client = self.request(head(one.target), server=two)
            self.assertEqual("HTTP/1.1 403 Refused", client.refusal()[0])
        for server, sketch, message in servers:
            self.assertEqual([message], [call[2] for call in sketch.calls()])
            self.assertEqual(1, len(server.wait_for(" > ")))


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


NODE = shutil.which("node")
CONSOLE = ("@skpm/console", "@skpm/util")  # .ci/run installs them and sets NODE_PATH


def has_console():
    code = f"{json.dumps(CONSOLE)}.forEach(require.resolve)"
    return bool(NODE) and subprocess.run([NODE, "-e", code], capture_output=True).returncode == 0


class TheModelsConsole(unittest.TestCase):
    @unittest.skipUnless(CI or has_console(), f"node finds no {' and '.join(CONSOLE)}")
    def test_it_prints_what_sketchs_own_prints(self):
        done = subprocess.run(
            [NODE, "console.js"], capture_output=True, timeout=60, encoding="utf-8", cwd=TESTS
        )
        self.assertEqual("", done.stderr)
        self.assertRegex(done.stdout, r"\A\d+ compared, 0 differ\n\Z")


VALUES = {
    "angle": "30",
    "rows": [{"name": "5min", "angle": "30"}, {"name": "10 min ü", "angle": "30"}],
    "time": "10:10:30",
    "amount": "1",
}
OTHERS_SCRIPTS = [  # why, the script, the status, and what the output must have in it
    ("console, ERROR", 'console.log("ERROR Select a layer.");', "failed", r"\ASelect a layer\.\Z"),
    ("console, OK", 'console.log("OK It\'s done.");', "done", r"\AIt's done\.\Z"),
    ("console, two", 'console.log("OK", "It\'s done.");', "done", r"\AIt's done\.\Z"),
    ("log, ERROR", 'log("ERROR Select a layer.");', "failed", r"\ASelect a layer\.\Z"),
    ("log, OK", 'log("OK It\'s done.");', "done", r"\AIt's done\.\Z"),
    (
        "a backslash, quotes and a letter of two words",
        r"""console.log("OK C:\\dir 'x' \"y\" \u{1f559}");""",
        "done",
        r"""\AC:\\dir 'x' "y" \U0001f559\Z""",
    ),
    (
        "something else besides",
        'console.log("3 layers"); log("OK Rotated."); console.log({ a: 1 });',
        "done",
        r"\ARotated\.\Z",
    ),
    ("an object", "console.log({ a: 1 });", "done", r"\A\{ a: 1 \}\Z"),
    ("OK in the middle", 'console.log("all OK");', "done", r"all OK"),
    ("nothing", "", "done", "."),
    ("it throws", "null.x;", "failed", r"\ATypeError: "),
    ("it throws after a success", 'log("started"); null.x;', "failed", r"TypeError: "),
    ("a name that is none", "flip();", "failed", "flip"),
]


@unittest.skipUnless(ENGINES or CI, "the plugin's scripts need an engine, jsc or node")
class ScriptsThroughTheServer(BridgeTestCase):
    """A click, the server, a sketchtool that runs the script in the model, and the answer."""

    def setUp(self):
        super().setUp()
        self.client = self.connect()
        self.undo = f"{self.bundle}/Contents/Sketch/undo.cocoascript"
        self.addCleanup(write, self.undo, read(self.undo))

    def click(self, engine, message, selection="nothing", title=None):
        title = json.dumps(VALUES) if title is None else title
        model = [engine, "run.js", "--", "run"]
        self.sketch.mood(
            f"cd {shlex.quote(TESTS)} && exec {shlex.join(model)} "
            f'"$2" "$3" {selection} {shlex.quote(title)}'
        )
        return self.client.click(message)

    def test_each_script_is_answered_with_what_it_did_or_what_was_wrong(self):
        two_layers = "Select two layers: the one to rotate, and one with [center] in its name."
        for message, selection, values, status, output in (
            ("rotate", "pair", {}, "done", "Rotated minutes by 30°."),
            ("duplicate", "pair", {}, "done", "Duplicated minutes: 5min, 10 min ü."),
            ("set-time", "watch", {}, "done", "Set the time to 10:10:30."),
            ("undo", "nothing", None, "done", "Undid the last step."),
            ("rotate", "nothing", {}, "failed", f"Nothing is selected. {two_layers}"),
            ("duplicate", "watch", {}, "failed", f"Only one layer is selected. {two_layers}"),
            (
                "set-time",
                "watch",
                {"time": "25:99"},
                "failed",
                '"25:99" is not a time of day. Type 10, 10:10 or 10:10:30 into the panel.',
            ),
            (
                "rotate",
                "pair",
                {"angle": "it's\n\\\"30\"' ü"},
                "failed",
                '"it\'s \\"30"\' ü" is not an angle. '
                "Type a number into the panel: 30, -45 or 22.5.",
            ),
            (
                "rotate",
                "pair",
                None,
                "failed",
                "Open the panel first: choose open-panel of Pebble WS in the Plugins menu.",
            ),
        ):
            title = "" if values is None else json.dumps({**VALUES, **values})
            for engine in ENGINES:
                with self.subTest(output, engine=engine):
                    expected = {"message": message, "status": status, "output": output}
                    self.assertEqual(expected, self.click(engine, message, selection, title))

    def test_what_other_scripts_print_is_taken_for_what_it_is(self):
        for why, code, status, output in OTHERS_SCRIPTS:
            for engine in ENGINES:
                with self.subTest(why, engine=engine):
                    write(self.undo, f"function onRun(context) {{ {code} }}\n")
                    answer = self.click(engine, "undo")
                    self.assertEqual(status, answer["status"], answer)
                    self.assertRegex(answer["output"], output)

    def test_a_script_that_cannot_start_has_failed(self):
        for why, script, output in (
            ("no handler", "function onrun(context) {}", "handler"),
            ("a handler that Sketch does not find", "const onRun = () => {};", "handler"),
            ("no JavaScript", "function onRun(context) {", "SyntaxError"),
            ("typographic quotes", "require(“./panel”);", "SyntaxError"),
            ("a file that is not there", 'require("./panle");', "panle"),
        ):
            for engine in ENGINES:
                with self.subTest(why, engine=engine):
                    write(self.undo, f"{script}\n")
                    answer = self.click(engine, "undo")
                    self.assertEqual("failed", answer["status"], answer)
                    self.assertIn(output, answer["output"])


class StartCommand(TestCase):
    """A double click on it: it is run by its path, in a folder that has nothing to do with it."""

    def setUp(self):
        folder = temporary_folder(self.addCleanup)
        self.folder = f"{folder}/a 'b' \"c\" $HOME `d` \\ \n-ü"
        self.programs = f"{folder}/bin"
        for name in (self.folder, self.programs):
            os.mkdir(name)

    def program(self, name, shell):
        write(f"{self.programs}/{name}", f"#!/bin/sh\n{shell}\n")
        os.chmod(f"{self.programs}/{name}", 0o755)

    def run_it(self, *command, path=None, cwd="/"):
        """Return the exit status, and what was printed there and on stderr."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=15,
            encoding="utf-8",
            cwd=cwd,
            env={"PATH": path or self.programs, "CDPATH": self.folder},
        )
        return done.returncode, done.stdout, done.stderr

    def installed(self):
        """Return the folder of an installed plugin's scripts; no server but its own is near."""
        write(f"{self.folder}/pebble_ws.py", "")
        os.mkdir(f"{self.folder}/Sketch")  # where CDPATH leads
        return f"{installed(self.folder)}/Contents/Sketch"

    def checkout(self, name="pebble"):
        """Return the folder of a plugin's scripts in plugin/, which lies beside a server."""
        bundle = f"{self.folder}/plugin/{name}.sketchplugin"
        shutil.copytree(PLUGIN, bundle, ignore=shutil.ignore_patterns("session.js*"))
        write(f"{self.folder}/pebble_ws.py", "")
        return f"{bundle}/Contents/Sketch"

    def test_it_starts_the_server_beside_it_from_any_folder(self):
        scripts = self.installed()
        self.program("python3", """printf '%s|' "$@\"""")
        for cwd, *command in (
            ("/", f"{scripts}/start.command"),
            (scripts, "./start.command"),
            (scripts, "/bin/sh", "start.command"),
            (os.path.dirname(scripts), "/bin/sh", "Sketch/start.command"),
        ):
            with self.subTest(cwd, command=command):
                self.assertEqual(
                    (0, f"{scripts}/pebble_ws.py|", ""), self.run_it(*command, cwd=cwd)
                )

    def test_it_starts_the_server_of_a_checkout(self):
        scripts, link = self.checkout(), f"{self.folder}/linked.sketchplugin"
        os.symlink(scripts.replace("/Contents/Sketch", ""), link)
        self.program("python3", """printf '%s|' "$@\"""")
        for file in (f"{scripts}/start.command", f"{link}/Contents/Sketch/start.command"):
            with self.subTest(file):
                self.assertEqual((0, f"{self.folder}/pebble_ws.py|", ""), self.run_it(file))
        with self.subTest("there is one beside it, too"):
            write(f"{scripts}/pebble_ws.py", "")
            expected = (0, f"{scripts}/pebble_ws.py|", "")
            self.assertEqual(expected, self.run_it(f"{scripts}/start.command"))

    def test_it_starts_no_server_that_serves_another_plugin(self):
        self.program("python3", "echo started")
        missing = "pebble_ws.py is missing from Contents/Sketch. "
        self.assertEqual(
            (1, "", f"{missing}Copy it there, and start this file again.\n"),
            self.run_it(f"{self.checkout('spacing')}/start.command"),
        )

    def test_without_python_it_says_how_to_get_it(self):
        scripts = self.installed()
        missing = "python3 is missing. Run xcode-select --install, and start this file again"
        expected = (1, "", f"{missing} after that.\n")
        self.assertEqual(expected, self.run_it(f"{scripts}/start.command"))
        if os.path.exists("/usr/bin/python3"):  # as on every Mac, where it may be none
            self.program("xcode-select", '[ "$*" = -p ] || echo wrong; exit 2')
            path = f"{self.programs}:/usr/bin"
            self.assertEqual(expected, self.run_it(f"{scripts}/start.command", path=path))

    def test_the_server_that_it_starts_answers(self):
        scripts, sketch = self.installed(), StandInSketch(self.folder)
        self.addCleanup(sketch.close)
        self.program("python3", f'exec {shlex.join(PYTHON)} "$@"')
        server = self.started(
            self.addCleanup,
            scripts.replace("/Contents/Sketch", ""),
            command=[f"{scripts}/start.command", "--port", "0", "--sketch", sketch.app],
            env={**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"},
        )
        self.assertEqual("done", self.connect(server=server).click("undo")["status"])


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
const box = (selector) => document.querySelector(selector).getBoundingClientRect();
root.scrollTop = 0;
if (box("footer").top < box(".tabs").bottom) faults.push("the footer covers the whole page");
root.scrollTop = root.scrollHeight;
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
        self.sketch.mood(HOLD)
        self.click("Rotate")
        self.click("Duplicate")
        self.click("Undo")
        self.assertEqual(
            "Running Rotate … Duplicate waits until Rotate is answered. "
            "Undo waits until Duplicate is answered.",
            self.text("answer"),
        )
        self.sketch.say("ERROR No.")
        self.wait_for_footer("✕ Failed: No. Running Duplicate … Undo waits until Duplicate is")
        self.sketch.say("OK Two.")
        self.wait_for_footer("✓ Two. Running Undo …")
        self.sketch.say("OK Three.")
        wait_until(lambda: self.text("answer") == "✓ Three.")

    def test_the_seconds_count_from_when_a_click_begins_to_run(self):
        self.open_connected()
        self.sketch.mood(HOLD)
        self.click("Rotate")
        self.click("Duplicate")
        self.browser.execute(FORWARD.format(60_000))
        wait_until(lambda: re.search("Running Rotate … 6[0-9] s", self.text("answer")))
        self.sketch.say("OK Rotated.")
        wait_until(lambda: self.text("answer") == "✓ Rotated. Running Duplicate …")
        self.browser.execute(FORWARD.format(15_000))
        wait_until(lambda: re.search("Running Duplicate … [12][0-9] s", self.text("answer")))
        self.sketch.say("OK Duplicated.")
        wait_until(lambda: self.text("answer") == "✓ Duplicated.")

    def test_nothing_ticks_in_a_page_that_nobody_touches(self):
        self.open_connected()
        self.browser.execute(
            "window.ticking = 0; const [begin, end] = [setInterval, clearInterval];"
            "setInterval = (...call) => { ticking++; return begin(...call); };"
            "clearInterval = (id) => { ticking--; end(id); }"
        )
        self.sketch.mood(HOLD)
        self.click("Rotate")
        self.assertEqual(1, self.browser.execute("return ticking"))
        self.click("Duplicate")
        self.sketch.say("OK Rotated.")
        self.sketch.say("OK Duplicated.")
        wait_until(lambda: self.text("answer") == "✓ Duplicated.")
        self.assertEqual(0, self.browser.execute("return ticking"))

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
        can_have_the_focus = "return document.querySelector('#answer').tabIndex"
        self.assertEqual(0, self.browser.execute(can_have_the_focus))  # for the arrow keys
        self.sketch.answer("OK Done.")
        self.click("Rotate")
        self.wait_for_footer("✓ Done.")
        self.assertEqual(-1, self.browser.execute(can_have_the_focus))

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
        replies = (
            "nonsense",
            "null",
            "[]",
            "<b>x</b>",
            '{"message": 1, "status": 2}',
            '{"message": "rotate", "status": "done"}',
            '{"message": "rotate", "status": "toString", "output": ""}',
        )
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

    def test_rows_that_were_removed_one_after_the_other_can_all_be_put_back(self):
        self.browser.open(self.page)
        for _ in range(2):  # the one below moves up: so does a double click
            self.browser.click(self.browser.find("//tbody//button[normalize-space()='Remove']"))
        self.assertEqual("Removed 2 rows. Put back", self.text("answer"))
        self.start_server()
        self.wait_for_buttons()
        self.click("Put back")  # also when the server has come meanwhile
        self.assert_title(rows=DEFAULT_ROWS)

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
        self.browser.execute("document.querySelector('form').reset()")
        wait_until(lambda: self.values()["spacing"] == "8")

    def test_a_field_without_a_name_is_told_by_its_label_or_its_id(self):
        answer = '<p id="answer"></p>'
        told = 'Give the field "{}" a name="…", or no script can read it.'
        for field, label in (
            ("<label>Spacing <input></label>", "Spacing"),
            ("<label>Unit <select><option>px</option></select></label>", "Unit"),
            ('<label for="a">Unit</label><select id="a"></select>', "Unit"),
            ('<textarea aria-label="Note"></textarea>', "Note"),
            ('<input id="gap">', "gap"),
            ('<ul data-list="more"><li><input name="at"><input id="gap"></li></ul>', "gap"),
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
            ('<ul data-list="spacing"><li><input name="at"></ul>', "spacing"),
            ('<ul data-list="stops"><li><input name="at"></ul>', "stops"),
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

    def test_a_failure_is_shown_even_by_a_page_that_has_no_place_for_it(self):
        self.open_own_page(OWN_PAGE + '<button data-message="flipp">Flip</button>')
        self.start_server()
        wait_until(lambda: self.shown("Flip"))
        self.click("Flip")
        wait_until(lambda: '✕ Unknown: This button sends "flipp"' in self.body_text())

    def test_a_tag_without_defer_is_told(self):
        self.open_own_page(OWN_PAGE.replace(" defer", ""))
        wait_until(lambda: "Add defer: <script" in self.body_text())

    def test_a_click_is_sent_once_also_where_the_script_is_loaded_twice(self):
        tag = '<script src="back-channel.js" defer></script>'
        self.open_own_page(OWN_PAGE + tag + '<p id="answer"></p>')
        self.start_server()
        wait_until(lambda: self.shown("Spread"))
        self.click("Spread")
        wait_until(lambda: "✓" in self.text("answer"))
        self.click("Spread")
        wait_until(lambda: len(self.sketch.calls()) >= 2 and self.enabled("Spread"))
        self.assertEqual(2, len(self.sketch.calls()))

    def test_a_button_that_is_drawn_anew_while_it_works_comes_back(self):
        self.open_own_page()
        self.start_server()
        wait_until(lambda: self.shown("Spread"))
        self.sketch.hold()
        self.click("Spread")
        wait_until(lambda: self.sketch.calls())
        self.browser.execute("const f = document.querySelector('form'); f.innerHTML = f.innerHTML")
        wait_until(lambda: self.shown("Spread") and not self.enabled("Spread"))
        self.sketch.release()
        wait_until(lambda: self.enabled("Spread"))

    def test_values_that_a_browser_keeps_for_itself_are_told_and_several_choices_are_a_list(self):
        several = (
            "<select name='kinds' multiple><option selected>a<option>b<option selected>c</select>"
        )
        self.open_own_page(OWN_PAGE + several + '<p id="answer"></p>')
        self.assert_title(kinds=["a", "c"])
        count = self.browser.find("//input[@name='count']")
        self.browser.execute("arguments[0].focus(); arguments[0].select()", count)
        self.browser.type(count, "1e")
        wait_until(lambda: self.text("answer") == 'What "Count" shows is not a number.')

    def body_text(self):
        return self.browser.get(self.browser.find("//body"), "text")

    def test_a_button_that_the_page_itself_disables_stays_so(self):
        self.open_own_page(OWN_PAGE + '<button data-message="rotate" disabled>Later</button>')
        server = self.start_server()
        wait_until(lambda: self.shown("Later"))
        self.click("Spread")
        wait_until(lambda: server.lines("> done") and self.enabled("Spread"))
        self.assertFalse(self.enabled("Later"))

    def test_a_button_that_the_page_disables_at_the_click_is_no_longer_busy_after_the_answer(self):
        self.open_own_page()
        server = self.start_server()
        wait_until(lambda: self.shown("Spread"))
        spread = self.browser.button("Spread")
        script = "arguments[0].addEventListener('click', (e) => { e.target.disabled = true; })"
        self.browser.execute(script, spread)
        self.click("Spread")
        wait_until(lambda: server.lines("> done"))
        wait_until(lambda: self.browser.get(spread, "attribute/aria-busy") in (None, "false"))
        self.assertFalse(self.enabled("Spread"))

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

    def test_add_that_fails_leaves_the_time_as_it_was(self):
        self.open_connected("Time")
        self.sketch.answer("ERROR Nothing is selected.")
        self.click("Add")
        self.wait_for_footer("✕ Failed: Nothing is selected.")
        self.assert_title(time="10:10:30")
        self.assertEqual("10:10:30", self.value("Time"))

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
        self.sketch.hold()
        wait_until(lambda: server.lines("[<>] ")[-1].endswith("< set-time"))
        self.browser.execute(FORWARD.format(3_000))  # a slow one is told all the same
        wait_until(lambda: re.search("✓ Done. Running Run … [3-9] s", self.text("answer")))
        self.sketch.release()
        wait_until(lambda: self.text("answer") == "✓ Done.")
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

    def test_on_the_other_page_a_refusal_is_news_and_a_success_is_not(self):
        asked = []

        class Fake(pebble_ws.WebSocketHandler):
            def message_received(self, message):
                asked.append(self)

        with running(Fake) as fake:
            self.write_session(fake.port)
            self.browser.open(self.page)
            self.wait_for_buttons()
            for status, told in (("busy", "✕ Busy: It says so. "), ("done", "")):
                with self.subTest(status):
                    self.click("Rotator")
                    self.click("Rotate")
                    wait_until(lambda: asked)
                    self.click("Time")
                    answer = {"message": "rotate", "status": status, "output": "It says so."}
                    asked.pop().send(json.dumps(answer))
                    wait_until(lambda: self.enabled("Rotate"))
                    self.assertEqual(f"{told}Connected to Sketch", self.footer())
            self.browser.open("about:blank")

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
        for angle, error in (
            ("30", '"30" has no layer [center].'),  # that is a layer
            ("thirty", "Nothing is selected."),  # which comes before the angle
        ):
            self.enter("Angle", angle)
            self.sketch.answer(f"ERROR {error}")
            self.click("Rotate")
            self.wait_for_footer(error)
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

    def test_the_boxes_stay_where_they_are_through_connected_working_done_and_failed(self):
        self.open_framed()
        boxes = (
            "return [...document.querySelectorAll(arguments[0] ?? '[role=tab], main *, #state')]"
            "  .filter((e) => e.offsetParent).map((e) => {"
            "    const { x, y, width, height } = e.getBoundingClientRect();"
            "    return [e.tagName, e.textContent.slice(0, 9), x, y, width, height].join(' '); })"
        )
        always = "[role=tab], label, input, th, #add-row"
        not_connected = self.browser.execute(boxes, always)
        self.start_server()
        self.wait_for_buttons()
        self.assertEqual(not_connected, self.browser.execute(boxes, always), "connected")
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
                self.assertAlmostEqual(label["y"], field["y"], delta=0.5)
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


# ---- The README's recipes, in browsers ----------------------------------------------------------


class RecipesTestCase(DesignersTestCase):
    """What the README tells a designer to make, as it is seen and clicked in two windows."""

    engine = None

    def window(self):
        """Return a browser of its own: WebKit has one window in each."""
        try:
            browser = Browser(self.engine)
        except NoBrowser as missing:
            if CI:
                raise
            self.skipTest(str(missing))
        self.addCleanup(browser.close)
        return browser

    def open(self, bundle, page):
        browser = self.window()
        browser.open(pathlib.Path(f"{bundle}/Contents/Resources/{page}").as_uri())
        return browser

    def text(self, browser, id_):
        return " ".join(browser.get(browser.find(f"//*[@id='{id_}']"), "text").split())

    def shows(self, browser, id_, text):
        """Wait until an element shows a text."""
        try:
            wait_until(lambda: self.text(browser, id_) == text)
        except AssertionError:
            self.assertEqual(text, self.text(browser, id_))

    def wait_for_button(self, browser, name, is_shown=True):
        wait_until(lambda: browser.get(browser.button(name), "displayed") == is_shown)

    def click(self, browser, name, sketch, selection="pair"):
        """Click a button; the script reads its values from the title that the page has then."""
        title = browser.execute("return document.title")
        self.model(sketch, ENGINES[0], selection, title)
        browser.click(browser.button(name))

    def test_a_plugin_of_ones_own_beside_this_one(self):
        own, other = self.own_plugin(), self.installed()
        page, dialogue = self.open(own, "spacing.html"), self.open(other, "pebble-dialogue.html")
        not_connected = self.text(page, "state")
        self.assertRegex(not_connected, r"^Not connected\. .* start-webservice\.$")
        self.wait_for_button(page, "Space", is_shown=False)
        own_server, own_sketch = self.serve(own)
        self.shows(page, "state", "Connected to Sketch")
        self.wait_for_button(page, "Space")
        self.wait_for_button(dialogue, "Rotate", is_shown=False)
        server, sketch = self.serve(other)
        self.shows(dialogue, "state", "Connected to Sketch")

        page.enter(page.find("//input[@name='gap']"), "12")
        self.assertEqual({"gap": "12"}, json.loads(page.execute("return document.title")))
        self.click(page, "Space", own_sketch)
        self.shows(page, "answer", "✓ Spaced 2 layers.")
        self.shows(dialogue, "answer", "")
        self.click(dialogue, "Rotate", sketch)
        self.shows(dialogue, "answer", "✓ Rotated minutes by 30°.")
        self.shows(page, "answer", "✓ Spaced 2 layers.")

        page.enter(page.find("//input[@name='gap']"), "wide")
        self.click(page, "Space", own_sketch)
        self.shows(page, "answer", '✕ Failed: "wide" is not a number. Type one into Gap.')
        self.assertEqual(["space", "space"], [call[2] for call in own_sketch.calls()])
        self.assertEqual(["rotate"], [call[2] for call in sketch.calls()])

        own_server.stop()
        self.shows(page, "state", not_connected)
        self.wait_for_button(page, "Space", is_shown=False)
        self.shows(dialogue, "state", "Connected to Sketch")
        self.assertNotIn("space", "".join(filter(None, server.log)))

    def test_a_button_a_field_and_a_page_in_the_dialogue(self):
        bundle = f"{self.checkout}/plugin/pebble.sketchplugin"
        for title in ("### A button", "### A field", "### A page"):
            Recipe(title, bundle, self.checkout, self.environment)
        bundle = self.installed()
        dialogue = self.open(bundle, "pebble-dialogue.html")
        _, sketch = self.serve(bundle)
        self.wait_for_button(dialogue, "Number")
        dialogue.enter(dialogue.field("Prefix"), "Step-")
        self.click(dialogue, "Number", sketch)
        self.shows(dialogue, "answer", "✓ Numbered Step-1, Step-2.")

        dialogue.click(dialogue.button("More"))
        self.wait_for_button(dialogue, "Number", is_shown=False)
        more = dialogue.find("//section[@id='more']//button[normalize-space()='Undo']")
        self.assertTrue(dialogue.get(more, "displayed"))
        self.model(sketch, ENGINES[0], "nothing", "")
        dialogue.click(more)
        self.shows(dialogue, "answer", "✓ Undid the last step.")
        dialogue.click(dialogue.button("Rotator"))
        self.wait_for_button(dialogue, "Number")


class RecipesInChromium(RecipesTestCase):
    engine = "Chromium"


class RecipesInWPEWebKit(RecipesTestCase):
    engine = "WPE WebKit"


del RecipesTestCase


if __name__ == "__main__":
    unittest.main()
