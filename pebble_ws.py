#!/usr/bin/env python3
"""Run a Sketch plugin's CocoaScripts from the buttons of its HTML dialogue.

    python3 pebble_ws.py             start the server; Ctrl-C stops it
    python3 pebble_ws.py --install   copy the plugin and this file into Sketch's plugins folder

A click in the dialogue sends one text message by WebSocket; the server runs the script that SCRIPTS
names for it, as the plugin menu would, and answers how it went. Only this computer can connect, and
only with a token from a file that its user alone can read. A message is looked up whole: nothing
from the network is ever a path, an argument or code.

In the order of a connection's life and of RFC 6455, whose sections stand in brackets. A thread
accepts for each loopback address, one reads each connection, one runs the scripts. ProtocolError
becomes an HTTP status or close code, UserError its text; a traceback means a bug in this file.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import select
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from binascii import b2a_base64
from contextlib import ExitStack, suppress  # json, queue and secrets: see serve

__version__ = "1.0.0"

# ---- Configuration ------------------------------------------------------------------------------

# Message text: the CocoaScript that it runs, by its path from Contents/Sketch or, in any other
# bundle, an absolute one. In order to add one, write the script there, add it to the commands in
# manifest.json, give a button in pebble-dialogue.html this data-message, and restart the server.
SCRIPTS = {
    "rotate": "rotate.cocoascript",
    "duplicate": "rotate-duplicate.cocoascript",
    "undo": "undo.cocoascript",
    "set-time": "set-time.cocoascript",
}
SCRIPT_TIMEOUT = 60  # seconds; then a script is killed: one that hangs would hold all that follow
STOP_TIMEOUT = 10  # seconds for the running script to end when the server is stopped
MAX_WAITING = 16  # clicks behind the one that runs: nobody waits for more
MAX_OUTPUT = 4_000  # characters of a script's output in an answer, the last: nobody reads more
MAX_CONNECTIONS = 200  # macOS gives a process 256 file descriptors
MAX_HEAD = 8_192  # bytes of an opening handshake: a browser sends some 500
HEAD_TIMEOUT = 10  # seconds for all of it
CLOSE_TIMEOUT = 3  # seconds for a peer to answer our Close, and to drop TCP
RECEIVE_SIZE = 65_536  # bytes received at a time, and kept of a script's output
MAX_GATHERED = 1_000  # frames, of fewer bytes each, that wait to leave together

# ---- Opening handshake (4) ----------------------------------------------------------------------

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# No space before a colon, and no line that goes on in the next one (RFC 9112, 5):
HEAD = r"([!-~]+) ([!-~]+) HTTP/1\.[1-9]\r\n((?:[\w!#$%&'*+.^`|~-]+:[\t -~\x80-\xff]*\r\n)*)\r\n"
ABSENT = "‹missing›"  # in place of a header that is not there; none can be this, being Latin-1
REQUIRED = {  # a header: its value (4.2.1), and the status that refuses all others
    "Upgrade": (r"(?i)(.*,[ \t]*)?websocket([ \t]*,.*)?", 426),
    "Connection": (r"(?i)(.*,[ \t]*)?upgrade([ \t]*,.*)?", 426),
    "Sec-WebSocket-Version": ("13", 426),
    "Sec-WebSocket-Key": (r"[A-Za-z0-9+/]{22}==", 400),
}
RESPONSE = "HTTP/1.1 {}\r\nConnection: {}\r\n{}\r\n{}"
UPGRADE = "Upgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n"
HINTS = {405: "Allow: GET\r\n", 426: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"}
REFUSAL = "This is the WebSocket server of a Sketch plugin. Its log says why it refuses this.\n"

class ProtocolError(Exception):
    """What a peer does wrong: an HTTP status, or from 1000 on a close code, and a reason."""

def read_head(receive) -> tuple[str, dict[str, str], bytes]:
    """Return target and headers of a GET (4.2.1), and what came behind. Raise ProtocolError."""
    data = b""
    while (end := data.find(b"\r\n\r\n") + 4) < 4 and len(data) <= MAX_HEAD:
        data += receive()
    if not 4 <= end <= MAX_HEAD:
        raise ProtocolError(431, f"a head of more than {MAX_HEAD} bytes")
    match = re.fullmatch(HEAD, data[:end].decode("latin-1"), re.A)
    method, target, lines = match.groups() if match else ("GET", "", "")  # else 400
    if method != "GET":
        raise ProtocolError(405, "the method is not GET")
    headers = {}
    for name, value in re.findall(r"(.+?):(.*)\r\n", lines):
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if target[:1] != "/" or "," in headers.get("host", ","):  # a URL would name a second host
        raise ProtocolError(400, "no request of HTTP/1.1 with a path and one Host")
    return target, headers, data[end:]

# ---- Frames (5) ---------------------------------------------------------------------------------
#   FIN 1 bit, RSV 3, opcode 4 | MASK 1, length 7: 0 to 125, 126: in 2 bytes that follow, 127: in 8
#   | those | masking-key, 4 bytes, in each frame of a client and none of a server | payload   (5.2)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = OPCODES = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = MASK = 0x80
# No RSV bit, no reserved opcode (5.2), no control frame in fragments (5.5):
FIRST_BYTES = {CONTINUATION, TEXT, BINARY, *(FIN | opcode for opcode in OPCODES)}
CLOSE_CODES = {*range(1000, 1015), *range(3000, 5000)} - {1004, 1005, 1006}  # (7.4)

def read_messages(receive, max_message_size: int, data: bytes = b""):
    """Yield (opcode, payload, more is here) of messages and control frames. Raise ProtocolError."""
    at, kind = 0, None  # where in data the next frame begins; opcode of a message that goes on
    while True:
        while len(data) < at + 2 or not (head := frame_head(data, at, kind is not None)):
            data, at = data[at:] + receive(), 0
        opcode, fin, length, key, at = head
        if opcode >= CLOSE:
            at += length
            yield opcode, unmask(data[at - length : at], key), at < len(data)
            continue
        if opcode != CONTINUATION:
            kind, parts, room, rest = opcode, [], max_message_size, b""
        room -= length
        if room < 0:
            raise ProtocolError(1009, "a message that is too long")
        while True:  # what is here of a long frame is taken as a fragment of it
            part = unmask(data[at : at + length], key)
            size, at, length = len(part), at + len(part), length - len(part)
            if kind == TEXT:
                part, rest = decode(rest + part, fin and not length)
            parts += [part] if part else []  # else empty ones without end would take memory
            if not length:
                break
            key, data, at = (key * 2)[size % 4 :][:4], receive(), 0
        if fin:
            yield kind, ("" if kind == TEXT else b"").join(parts), at < len(data)
            kind = None

def frame_head(data: bytes, at: int, goes_on: bool) -> tuple[int, bool, int, bytes, int] | None:
    """Return opcode, FIN, length, masking-key and payload's place, None for more of data."""
    opcode, length, place = data[at] & 0x0F, data[at + 1] - MASK, at + 6
    if data[at] not in FIRST_BYTES or length < 0 or length > 125 and opcode >= CLOSE:
        raise ProtocolError(1002, "no mask, a reserved bit or opcode, or a wrong control frame")
    if opcode < CLOSE and (opcode == CONTINUATION) is not goes_on:
        raise ProtocolError(1002, "a fragment out of order")  # (5.4)
    if length > 125:
        place, shortest = (at + 8, 126) if length == 126 else (at + 14, 65_536)
        length = int.from_bytes(data[at + 2 : place - 4], "big")
        if len(data) >= place and not shortest <= length < 1 << 63:
            raise ProtocolError(1002, "a length in more bytes than it takes, or over 63 bits")
    if len(data) < place + length * (opcode >= CLOSE):  # all of a control frame
        return None
    return opcode, data[at] >= FIN, length, data[place - 4 : place], place

def unmask(payload: bytes, key: bytes) -> bytes:
    """Return the payload without its masking-key (5.3), by integers, which are quickest."""
    size = len(payload)
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")

def decode(payload: bytes, final: bool = True) -> tuple[str, bytes]:
    """Return the text, and the bytes of a letter that goes on. Raise ProtocolError 1007 (8.1)."""
    try:
        return str(payload, "utf-8"), b""
    except UnicodeDecodeError as error:
        if final or error.reason != "unexpected end of data":
            raise ProtocolError(1007, "text that is not UTF-8") from None
        return str(payload[: error.start], "utf-8"), payload[error.start :]

def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame as a server sends it: final, and without a mask (5.1)."""
    size = len(payload)
    if size < 126:
        return bytes((FIN | opcode, size)) + payload
    code, width = (126, 2) if size < 65_536 else (127, 8)
    return bytes((FIN | opcode, code)) + size.to_bytes(width, "big") + payload

# ---- Messages and close (5.4, 5.5, 7) -----------------------------------------------------------

class WebSocketHandler(socketserver.BaseRequestHandler):
    """One connection, in a thread of its own. A subclass says what a message does."""

    max_message_size = 1 << 20  # bytes; a longer one is closed with 1009
    # Seconds and microseconds for the kernel: Python's own timeouts would slow down each call.
    send_timeout = struct.pack("ll", 7, 0)  # what got half way may wait as long again
    required = REQUIRED

    def message_received(self, message: str | bytes) -> None:
        """Do something with a message, a str or bytes; in a thread if it takes long, as the answers
        to messages that came together leave together. A ConnectionError ends this connection."""
        raise NotImplementedError

    def log(self, direction: str, text: str) -> None:
        """Note what happened: "=" for the connection's life, "!" for what was refused."""

    def send(self, message: str | bytes) -> None:
        """Send a text or a binary message, from any thread. Raise ConnectionError if it cannot."""
        is_text = isinstance(message, str)
        self._write(frame(TEXT, message.encode()) if is_text else frame(BINARY, message))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake (7.1.2), from any thread. Raise as send, or ValueError."""
        if code != 1005 and code not in CLOSE_CODES or len(reason.encode()) > 123:
            raise ValueError(f"not to be sent in a Close: {code} {reason}")
        payload = b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()  # (7.1.5)
        self._write(frame(CLOSE, payload) if self.is_open else b"", closing=code)

    def setup(self) -> None:
        self.number, self.is_open = next(self.server.numbers), False
        self._writing, self._closing = threading.Lock(), None  # the status or code that was sent
        self._gathering, self._unsent = False, []  # frames that leave together, while more come
        self._deadline = time.monotonic() + HEAD_TIMEOUT
        with suppress(OSError):  # macOS: the peer has gone, as will be seen
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, self.send_timeout)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        self.server.connections.add(self)

    def handle(self) -> None:
        """Live the life of the connection; what ends it is decided here."""
        from hashlib import sha1  # this late, because it takes milliseconds
        try:
            if len(self.server.connections) > MAX_CONNECTIONS:
                raise ProtocolError(503, f"{MAX_CONNECTIONS} connections are open already")
            self.target, self.headers, received = read_head(self._receive)
            self._deadline = float("inf")
            self.check_handshake()
            accept = sha1(self.headers["sec-websocket-key"].encode() + GUID).digest()
            upgrade = UPGRADE.format(b2a_base64(accept, newline=False).decode())
            self._write(RESPONSE.format("101 Switching Protocols", "Upgrade", upgrade, "").encode())
            self.is_open = True
            self.log("=", f"open from {self.headers.get('origin', 'a program without Origin')}")
            self.log("=", f"closed {self._exchange_messages(received)}")
        except ProtocolError as error:
            self._end(*error.args)
        except ConnectionError as error:
            self.log("=", f"closed {self._closing or 1006}: {error}")
        except Exception:
            self._end(1011 if self.is_open else 500, "an error in the server")
            raise

    def _end(self, code: int, reason: str) -> None:
        """Refuse the opening handshake with an HTTP status, or fail the connection (7.1.7)."""
        self.log("!", f"{'refused' if code < 1000 else 'closed'} {self._closing or code}: {reason}")
        response = RESPONSE.format(f"{code} Refused", "close", HINTS.get(code, ""), REFUSAL)
        with suppress(ConnectionError):  # it has gone, or has a Close already
            self._write(response.encode(), code) if code < 1000 else self.close(code, reason)

    def check_handshake(self) -> None:
        """Raise ProtocolError if the headers are not as required."""
        for name, (pattern, status) in self.required.items():
            if not re.fullmatch(pattern, value := self.headers.get(name.lower(), ABSENT)):
                raise ProtocolError(status, f"{name} {value}")

    def _exchange_messages(self, received: bytes) -> int:
        """Receive messages until the closing handshake is complete; return its code."""
        for opcode, payload, more in read_messages(self._receive, self.max_message_size, received):
            self._gathering |= more
            if opcode == CLOSE:
                break  # what follows it is discarded (1.4)
            if opcode == PING and not self._closing:
                self._write(frame(PONG, payload))  # (5.5.2)
            elif opcode != PONG and not self._closing:  # then only the peer's Close counts
                self.message_received(payload)
        code = int.from_bytes(payload[:2], "big") if payload else 1005
        decode(payload[2:])
        if payload and code not in CLOSE_CODES:
            raise ProtocolError(1002, "a Close with a code that is not allowed")
        self._closing or self.close(code)
        return self._closing

    def _receive(self) -> bytes:
        """Return what comes. Raise ConnectionError when nothing will, ProtocolError 408."""
        if self._gathering:
            self._gathering = False
            self._write(b"")  # nothing stays unsent while the peer is waited for
        while time.monotonic() < self._deadline:
            try:
                if received := self.request.recv(RECEIVE_SIZE):
                    return received
            except BlockingIOError:
                continue  # for a second there was nothing: the deadline can have changed
            raise ConnectionError("ended without a Close")
        if self._closing:
            raise ConnectionError("no answer to our Close" if self.is_open else "it was never open")
        raise ProtocolError(408, f"no complete head within {HEAD_TIMEOUT} s")

    def _write(self, data: bytes, closing: int | None = None) -> None:
        """Send; or keep a short frame while others may join it, until a Close or nothing comes."""
        with self._writing:
            if self._closing and data:
                raise ConnectionError("nothing follows a Close")  # (5.5.1)
            if closing:
                self._closing, self._deadline = closing, time.monotonic() + CLOSE_TIMEOUT
            elif self._gathering and len(data) < MAX_GATHERED > len(self._unsent):
                return self._unsent.append(data)
            if self._unsent:
                data, self._unsent = b"".join(self._unsent) + data, []
            try:
                self.request.sendall(data)
            except OSError as error:
                with suppress(OSError):  # it has ended already
                    self.request.shutdown(socket.SHUT_RDWR)  # wakes whoever reads
                raise ConnectionError(f"it takes no more: {error.strerror}") from None

    def finish(self) -> None:
        """Drop TCP (7.1.1). Unread bytes would send a reset, which can overtake our Close."""
        self._deadline = min(self._deadline, time.monotonic() + CLOSE_TIMEOUT)
        self._gathering = False  # there is nobody to send to any more
        with suppress(OSError, ProtocolError):  # it has gone, or sends on when the time is over
            self.request.shutdown(socket.SHUT_WR)
            while self._closing != 503:  # one connection too many does not stay
                self._receive()
        self.server.connections.discard(self)

class WebSocketServer(socketserver.ThreadingTCPServer):
    """A server whose connections are handled by a WebSocketHandler each."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128
    connections, numbers = set(), itertools.count(1)  # of all servers in this process

class WebSocketServerIPv6(WebSocketServer):
    address_family = socket.AF_INET6

# ---- Scripts ------------------------------------------------------------------------------------

HERE = os.path.dirname(os.path.abspath(__file__))
IS_INSTALLED = os.path.isfile(f"{HERE}/manifest.json")
BUNDLE = os.path.abspath(f"{HERE}/../.." if IS_INSTALLED else f"{HERE}/plugin/pebble.sketchplugin")
SESSION = f"{BUNDLE}/Contents/Resources/session.js"
ENVIRONMENT = dict(os.environb)  # encoded once: os.environ is encoded at each use
PLUGINS = "~/Library/Application Support/com.bohemiancoding.sketch3/Plugins"
NO_SKETCH = "There is no Sketch. Install it, or name it with --sketch APP, and start again."

class UserError(Exception):
    """Something that a person can mend: the text says what happened, and what to do."""

def find_command(message: str) -> tuple[str, str]:
    """Return the bundle of a message's script, and the command's identifier. Raise UserError."""
    script = os.path.normpath(os.path.join(BUNDLE, "Contents/Sketch", SCRIPTS[message]))
    bundle = "".join(script.rpartition(".sketchplugin/")[:2])
    manifest = f"{bundle}Contents/Sketch/manifest.json"
    if not bundle or not os.path.isfile(script):
        raise UserError(f"There is no {script} in a .sketchplugin. Put it there, or mend SCRIPTS.")
    try:
        with open(manifest, "rb") as file:
            for command in json.load(file)["commands"]:
                if os.path.normpath(f"{manifest}/../{command['script']}") == script:
                    return bundle[:-1], str(command["identifier"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{manifest} cannot be read: {error!r}. Mend it.") from None
    raise UserError(f"{manifest} has no command with the script {script}. Add one.")

def find_sketch() -> str | None:
    """Return the newest Sketch application that macOS knows, None if there is none."""
    import plistlib
    import subprocess
    found, versions = "", {}
    command = ["mdfind", "kMDItemCFBundleIdentifier == 'com.bohemiancoding.sketch3'"]
    with suppress(OSError, subprocess.SubprocessError):
        found = os.fsdecode(subprocess.run(command, capture_output=True, timeout=10).stdout)
    for app in filter(sketchtool, [*found.splitlines(), "/Applications/Sketch.app"]):
        versions[app] = []
        with suppress(Exception), open(f"{app}/Contents/Info.plist", "rb") as file:
            versions[app] = list(map(int, plistlib.load(file)["CFBundleVersion"].split(".")))
    return max(versions, key=versions.get, default=None)

def sketchtool(app: str) -> str | None:
    """Return the path of a Sketch application's command line tool, None if it has none."""
    tools = (f"{app}/Contents/{at}/sketchtool" for at in ("MacOS", "Resources/sketchtool/bin"))
    return next((tool for tool in tools if os.access(tool, os.X_OK)), None)

# ---- The bridge ---------------------------------------------------------------------------------

class DialogueHandler(WebSocketHandler):
    """A dialogue's connection: each message is a click, and is answered. serve sets its bridge."""

    send_timeout = struct.pack("ll", 0, 1)  # nobody waits for a dialogue that does not read
    # Web pages have another Origin (but sandboxed frames: null), or another Host (DNS rebinding):
    local = r"(?i)(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?"
    required = {"Host": (local, 403), "Origin": (f"{ABSENT}|null|file://", 403), **REQUIRED}

    def log(self, direction: str, text: str, end: str = "") -> None:
        self.bridge.log(f"#{self.number} {direction}", text, end)

    def check_handshake(self) -> None:
        super().check_handshake()
        if not secrets.compare_digest(self.target, f"/?token={self.bridge.token}"):
            raise ProtocolError(403, "a wrong token, or none")

    def message_received(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise ProtocolError(1003, "a binary message")
        self.log("<", message)
        if message not in SCRIPTS:
            self.answer(message, "unknown", "SCRIPTS has no such message. Add it, and start again.")
        elif self.bridge.room.acquire(blocking=False):
            self.bridge.clicks.put((self, message))
        else:
            self.answer(message, "busy", f"{MAX_WAITING} clicks are waiting. Try again after them.")

    def answer(self, message: str, status: str, output: str, end: str = "") -> None:
        self.log(">", f"{status}: {output}", end)
        message, output = (text.replace(self.bridge.token, "[token]") for text in (message, output))
        answer = {"message": message[:200], "status": status, "output": output[-MAX_OUTPUT:]}
        with suppress(ConnectionError):  # it has gone
            self.send(json.dumps(answer))

class Bridge:
    """What all dialogues share: the token, the log, and Sketch, which runs one script at a time."""

    def __init__(self, port: int, app: str | None, dry_run: bool) -> None:
        """Let dialogues find us, and say what clicks will do. Raise UserError if they cannot."""
        self.app, self.dry_run, self.token = app, dry_run, secrets.token_urlsafe(32)
        self.clicks = queue.SimpleQueue()  # (dialogue, message), None at the end
        self.room = threading.Semaphore(1 + MAX_WAITING)
        self.stop_time = float("inf")  # when whatever runs is killed
        session = json.dumps({"port": port, "token": self.token, "dryRun": dry_run})
        new = f"{SESSION}.{os.getpid()}"
        self.session = f"window.pebbleSession = {session};\n"
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(self.session)
            os.replace(new, SESSION)
        except OSError as error:
            remedy = "Make its folder writable, or install the plugin with --install."
            raise UserError(f"{SESSION} cannot be written: {error.strerror}. {remedy}") from None
        if dry_run:
            self.log("=", "dry run: no script runs; a click is answered with what Sketch would run")
            self.log("=", "to try it, open", f" {BUNDLE}/Contents/Resources/pebble-dialogue.html")
        elif not app:
            self.log("!", NO_SKETCH)
        for message in SCRIPTS:
            try:
                find_command(message)
            except UserError as error:
                self.log("!", message, f": {error}")
        self.runner = threading.Thread(target=self.run_clicks, daemon=True)
        self.runner.start()

    def log(self, direction: str, text: str, end: str = "") -> None:
        """Print one line, whatever text is: escaped, shortened to 200 characters; end as it is."""
        text = text.replace(self.token, "[token]")
        text = text if len(text) <= 200 else f"{text[:199]}…"
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        try:  # in one piece, whatever other threads print
            print(f"{time.strftime('%H:%M:%S')} {direction} {text}{end}\n", end="", flush=True)
        except OSError:  # nobody reads it any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def run_clicks(self) -> None:
        """Run scripts in the order of the clicks: Sketch edits one document on one thread."""
        while (click := self.clicks.get()) and self.stop_time == float("inf"):
            (dialogue, message), start = click, time.monotonic()
            try:
                status, output = self.run(message, start + SCRIPT_TIMEOUT)
            except (UserError, OSError, ValueError) as error:  # the last two: it did not start
                status, output = "failed", str(error)
            self.room.release()
            took = (time.monotonic() - start) * 1000
            dialogue.answer(message, status, output, f" ({took:.0f} ms)")

    def run(self, message: str, end: float) -> tuple[str, str]:
        """Run the script of a message; return status and output. Raise what run_clicks catches."""
        bundle, identifier = find_command(message)
        if self.dry_run:
            return "dry run", f"Sketch would run {identifier} of {bundle}."
        if not (tool := self.app and sketchtool(self.app)):
            raise UserError(NO_SKETCH)
        reader, writer = os.pipe()
        files = [(os.POSIX_SPAWN_DUP2, writer, output) for output in (1, 2)]
        files.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        reset = {"setpgroup": 0, "setsigmask": (), "setsigdef": (signal.SIGPIPE, signal.SIGXFSZ)}
        arguments = [tool, "run", bundle, identifier, "--without-activating"]
        output, ended, pause = b"", 0, 0.00001
        with open(reader, "rb", 0) as pipe:
            with open(writer, "wb", 0):
                process = os.posix_spawn(tool, arguments, ENVIRONMENT, file_actions=files, **reset)
            while not ended and time.monotonic() < min(end, self.stop_time):
                ended, status = os.waitpid(process, os.WNOHANG)  # all that it printed is here now
                # Its output ends when it does, unless a child of it goes on: look now and then.
                if select.select([pipe], [], [], 0 if ended else 0.1)[0]:
                    received = pipe.read(RECEIVE_SIZE)
                    output = (output + received)[-RECEIVE_SIZE:]
                    if not received and not ended:  # it ends any moment, or closed its output
                        time.sleep(pause := min(2 * pause, 0.1))
        if not ended:
            os.kill(process, signal.SIGKILL)
            with suppress(OSError):  # it has left its process group, or ends at this moment
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise UserError("The script did not end in time and was killed. Does it show an alert?")
        text, status = output.decode("utf-8", "replace").strip(), os.waitstatus_to_exitcode(status)
        word, _, rest = text.rpartition("\n")[2].strip().partition(" ")
        if word in ("OK", "ERROR"):
            return "done" if word == "OK" else "failed", rest.strip()
        if status:
            return "failed", text or f"sketchtool ended with {status} and printed nothing."
        return "done", text

    def stop(self) -> None:
        """Close all connections; let the script that is running end, see STOP_TIMEOUT."""
        with suppress(OSError, ValueError), open(SESSION) as file:
            if file.read() == self.session:  # not another server's
                os.remove(SESSION)
        self.stop_time = time.monotonic() + STOP_TIMEOUT
        self.clicks.put(None)
        for dialogue in list(WebSocketServer.connections):
            with suppress(ConnectionError):  # it has gone
                dialogue.close(1001)
        while WebSocketServer.connections and time.monotonic() < self.stop_time:
            time.sleep(0.01)
        self.runner.join(STOP_TIMEOUT + 1)

# ---- Command line -------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status. Bad arguments exit with argparse's usage."""
    from argparse import ArgumentParser, HelpFormatter
    about = {"prog": "pebble_ws.py", "description": __doc__.partition("\n")[0]}
    parser = ArgumentParser(**about, formatter_class=lambda prog: HelpFormatter(prog, width=100))
    add = parser.add_argument
    add("--port", type=int, default=9912, help="where to listen (default: 9912; 0: any free port)")
    add("--sketch", metavar="APP", help="the Sketch application to use (default: the newest)")
    add("--dry-run", action="store_true", help="run no script; answer which one would run")
    text = "copy the plugin and this file into FOLDER (default: Sketch's plugins folder), then exit"
    add("--install", metavar="FOLDER", nargs="?", const=PLUGINS, help=text)
    add("--version", action="version", version=f"pebble_ws.py {__version__}")
    options = parser.parse_args(argv)
    if not 0 <= options.port <= 65_535:
        parser.error("--port takes a number from 0 to 65535")
    with suppress(AttributeError):  # a stand-in for stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # any text, whatever the locale
    try:
        if not os.path.isdir(BUNDLE):
            raise UserError(f"There is no {BUNDLE}. Keep pebble_ws.py beside the folder plugin/.")
        if options.install is not None:
            install(os.path.expanduser(options.install))
        else:
            serve(options.port, options.sketch, options.dry_run)
    except (UserError, OSError) as error:
        print(f"pebble_ws.py: {error}", file=sys.stderr)
        return 1
    return 0

def serve(port: int, app: str | None, dry_run: bool) -> None:
    """Run until SIGINT or SIGTERM. Raise UserError if the server cannot start."""
    app = app and os.path.abspath(app)
    if app is not None and not (app.endswith(".app") and sketchtool(app)):
        raise UserError(f"{app} is no Sketch application. Name the path of Sketch.app.")
    with ExitStack() as opened:
        servers = []
        try:  # of localhost, a browser tries either address
            for kind, host in ((WebSocketServer, "127.0.0.1"), (WebSocketServerIPv6, "::1")):
                servers.append(opened.enter_context(kind((host, port), DialogueHandler)))
                port = servers[0].server_address[1]
        except OSError as error:
            if not servers or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                remedy = "Stop the other server, or choose another port with --port."
                raise UserError(f"Port {port} cannot be used: {error.strerror}. {remedy}") from None
        signals = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # in all threads: they wait for sigwait
        global json, queue, secrets  # this late, because they take their time
        import json
        import queue
        import secrets
        dry_run = dry_run or not app and sys.platform != "darwin"  # Sketch is for macOS only
        app = app or (None if dry_run else find_sketch())
        DialogueHandler.bridge = bridge = Bridge(port, app, dry_run)
        opened.callback(bridge.stop)
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
            opened.callback(server.server_close)
            opened.callback(server.shutdown)  # at the end, the last callback comes first
        bridge.log("=", f"listening on ws://localhost:{port} (Ctrl-C stops it)")
        while signal.sigwait(signals) not in signals:
            pass  # as macOS may return after Ctrl-Z and fg

def install(folder: str) -> None:
    """Copy the plugin with this file into a folder. Raise UserError if that cannot be done."""
    from shutil import copyfile, copytree, ignore_patterns, rmtree
    if not os.path.isdir(folder):
        raise UserError(f"There is no folder {folder}. Install Sketch first, or name another one.")
    target = os.path.join(os.path.abspath(folder), os.path.basename(BUNDLE))
    new, old, own = f"{target}.new", *(f"{os.path.realpath(path)}/" for path in (target, BUNDLE))
    if old.startswith(own) or own.startswith(old):
        raise UserError(f"{target} is this copy, in it or around it. Name another folder.")
    try:
        rmtree(new, ignore_errors=True)
        copytree(BUNDLE, new, ignore=ignore_patterns("session.js*"), copy_function=copyfile)
        for path, _, _ in os.walk(new):
            os.chmod(path, 0o755)  # also where the original is read-only
        copyfile(__file__, f"{new}/Contents/Sketch/pebble_ws.py")
        rmtree(target, ignore_errors=True)
        os.rename(new, target)
    except OSError as error:
        rmtree(new, ignore_errors=True)
        raise UserError(f"{target} cannot be written: {error}.") from None
    print(f"Copied {BUNDLE}\nwith {os.path.abspath(__file__)}\nto {target}.")
    print("Next, in Sketch: Plugins ▸ websocket ▸ webservice-starting-information.")

if __name__ == "__main__":
    sys.exit(main())
