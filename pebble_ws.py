#!/usr/bin/env python3
"""Run a Sketch plugin's CocoaScripts from the buttons of its HTML dialogue.

    python3 pebble_ws.py             start the server; Ctrl-C stops it
    python3 pebble_ws.py --install   copy the plugin and this file into Sketch's plugins folder

The dialogue connects by WebSocket. A click sends one text message; the server runs the script that
SCRIPTS names for it, as the plugin menu would, and answers how it went. Only this computer can
connect, and only with a token from a file that its user alone can read. A message is looked up
whole: nothing from the network is ever a path, an argument or code.

The order is that of a connection's life and of RFC 6455, whose sections stand in brackets. A thread
accepts for each loopback address, one reads each connection, one runs the scripts and waits for no
dialogue. A HandshakeError becomes an HTTP status, a ProtocolError a close code, a UserError its
text, a lost peer a line in the log; a traceback means a bug in this file.
"""

from __future__ import annotations

import codecs
import errno
import io
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
from contextlib import suppress

__version__ = "1.0.0"

# ---- Configuration ------------------------------------------------------------------------------

# Message text: the CocoaScript that it runs. In order to add one, write the script into the
# plugin's Contents/Sketch folder, add it to the commands in manifest.json there, give a button in
# Contents/Resources/pebble-dialogue.html the message as its data-message, and restart the server.
# A path is relative to Contents/Sketch; an absolute one may name a script of any other bundle.
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
SEND_TIMEOUT = 7  # seconds; the kernel lets a send that got half way wait once more
CLOSE_TIMEOUT = 3  # seconds for a peer to answer our Close, and again to see that TCP is dropped
RECEIVE_TIMEOUT = 1  # seconds without data after which a connection looks at its deadline
RECEIVE_SIZE = 65_536  # bytes received at a time, and kept of a script's output
MAX_GATHERED = 1_000  # frames, of up to as many bytes, that wait to leave together

# ---- Opening handshake (4) ----------------------------------------------------------------------

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# No space before a colon, and no line that goes on in the next one (RFC 9112, 5):
HEAD = r"([!-~]+) ([!-~]+) HTTP/1\.[1-9]\r\n((?:[\w!#$%&'*+.^`|~-]+:[\t -~\x80-\xff]*\r\n)*)\r\n"
ONLY_ONCE = ("host", "origin", "sec-websocket-key", "sec-websocket-version")
REQUIRED = {  # a header: the value that asks for WebSocket, the status that refuses all others
    "Upgrade": (r"(.*,[ \t]*)?websocket([ \t]*,.*)?", 426),
    "Connection": (r"(.*,[ \t]*)?upgrade([ \t]*,.*)?", 426),
    "Sec-WebSocket-Version": ("13", 426),
    "Sec-WebSocket-Key": (r"[A-Za-z0-9+/]{22}==", 400),
}
ACCEPTANCE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %s\r\n\r\n"
)
HINTS = {405: "Allow: GET\r\n", 426: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"}
REFUSAL = "This is the WebSocket server of a Sketch plugin's dialogue; its log says more.\n"


class HandshakeError(Exception):
    """An opening handshake to be refused: with an HTTP status, and a reason for the log."""


def read_head(receive) -> tuple[str, dict[str, str], bytes]:
    """Return target and headers of a GET (4.2.1), and what came behind. Raise HandshakeError."""
    data = b""
    while (end := data.find(b"\r\n\r\n") + 4) < 4 and len(data) <= MAX_HEAD:
        data += receive()
    if not 4 <= end <= MAX_HEAD:
        raise HandshakeError(431, f"a head of more than {MAX_HEAD} bytes")
    match = re.fullmatch(HEAD, data[:end].decode("latin-1"), re.A)
    method, target, lines = match.groups() if match else ("GET", "", "")
    headers = {}
    for line in lines.split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers and name in ONLY_ONCE:
            raise HandshakeError(400, f"more than one {name}")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if method != "GET":
        raise HandshakeError(405, "the method is not GET")
    if target[:1] != "/" or "host" not in headers:  # a URL would name a second host
        raise HandshakeError(400, "no request of HTTP/1.1 with a path and a Host")
    return target, headers, data[end:]


def refusal(status: int) -> bytes:
    """Return the HTTP response that refuses a handshake."""
    from http import HTTPStatus

    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{HINTS.get(status, '')}"
    return f"{head}Connection: close\r\nContent-Type: text/plain\r\n\r\n{REFUSAL}".encode()


# ---- Frames (5) ---------------------------------------------------------------------------------
#
#   FIN 1 bit, RSV 3, opcode 4 | MASK 1, length 7: 0 to 125, 126: in 2 bytes that follow, 127: in 8
#   | those | masking-key, 4 bytes, in each frame of a client and none of a server | payload   (5.2)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = OPCODES = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = MASK = 0x80
# No RSV bit, no reserved opcode (5.2), no control frame in fragments (5.5):
FIRST_BYTES = {CONTINUATION, TEXT, BINARY, *(FIN | opcode for opcode in OPCODES)}
ALL_BYTES, ONES = int.from_bytes(range(256), "little"), int.from_bytes(b"\1" * 256, "little")
CLOSE_CODES = {*range(1000, 1015), *range(3000, 5000)} - {1004, 1005, 1006}  # (7.4)


class ProtocolError(Exception):
    """A connection to be failed (7.1.7): with a close code, and a reason for peer and log."""


def read_frames(receive, max_message_size: int, data: bytes = b""):
    """Yield (opcode, payload, end of its message, whether more is here) for what a client sends.

    Of a long frame each part is yielded when it comes, as the fragment that it might have been
    (5.4). Raise ProtocolError as soon as the head of a frame is wrong.
    """
    at, size = 0, None  # where in data the next frame begins; bytes of a message that is not whole
    while True:
        while len(data) < at + 2 or not (head := frame_head(data, at)):
            data, at = data[at:] + receive(), 0
        opcode, fin, length, key, at = head
        if opcode < CLOSE:
            if (opcode == CONTINUATION) is (size is None):
                raise ProtocolError(1002, "a fragment out of order")  # (5.4)
            size = length + (size or 0)
            if size > max_message_size:
                raise ProtocolError(1009, "a message that is too long")
            while len(data) < at + length:
                part = data[at:]
                yield opcode, unmask(part, key), False, False
                opcode, length = CONTINUATION, length - len(part)
                key, data, at = (key * 2)[len(part) % 4 :][:4], receive(), 0
            size = None if fin else size
        while len(data) < at + length:
            data, at = data[at:] + receive(), 0
        payload, at = data[at : at + length], at + length
        yield opcode, unmask(payload, key), fin, at < len(data)


def frame_head(data: bytes, at: int) -> tuple[int, bool, int, bytes, int] | None:
    """Return opcode, FIN, length, masking-key and payload's place, or None if not all is here."""
    first, length, place = data[at], data[at + 1] - MASK, at + 6
    if first not in FIRST_BYTES or length < 0 or length > 125 and first & 0x0F >= CLOSE:
        raise ProtocolError(1002, "no mask, a reserved bit or opcode, or a wrong control frame")
    if length > 125:
        place, shortest = (at + 8, 126) if length == 126 else (at + 14, 65_536)
        length = int.from_bytes(data[at + 2 : place - 4], "big")
        if len(data) >= place and not shortest <= length < 1 << 63:
            raise ProtocolError(1002, "a length in more bytes than it takes, or over 63 bits")
    if len(data) < place:
        return None
    return first & 0x0F, first >= FIN, length, data[place - 4 : place], place


def unmask(payload: bytes, key: bytes) -> bytes:
    """Return the payload without its masking-key (5.3), in the way that is quicker for its size."""
    size = len(payload)
    if size < 8_192:
        mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
        return (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")
    data = bytearray(payload)
    for place, byte in enumerate(key):
        table = (ALL_BYTES ^ byte * ONES).to_bytes(256, "little")  # each byte, unmasked
        data[place::4] = data[place::4].translate(table)
    return bytes(data)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame as a server sends it: final, and without a mask (5.1)."""
    size = len(payload)
    if size < 126:
        return bytes((FIN | opcode, size)) + payload
    code, width = (126, 2) if size < 65_536 else (127, 8)
    return bytes((FIN | opcode, code)) + size.to_bytes(width, "big") + payload


def decode(payload: bytes, decoder=None, final: bool = True) -> str:
    """Return the text of a payload, or of a part of one. Raise ProtocolError 1007 (8.1)."""
    try:
        text = decoder.decode(payload, final) if decoder else str(payload, "utf-8")
    except UnicodeDecodeError:
        text = None
    # Of a surrogate, which is not allowed, a decoder would wait for the third byte.
    if text is None or decoder and b"\xed\xa0" <= decoder.getstate()[0] < b"\xee":
        raise ProtocolError(1007, "text that is not UTF-8")
    return text


# ---- Messages and close (5.4, 5.5, 7) -----------------------------------------------------------


class WebSocketHandler(socketserver.BaseRequestHandler):
    """One connection, in a thread of its own. A subclass says what a message does."""

    max_message_size = 1 << 20  # bytes; a longer one is closed with 1009

    def message_received(self, message: str | bytes) -> None:
        """Do something with a message: str for text, bytes for binary.

        Answers to messages that came together leave together: what takes long belongs in a thread.
        A ConnectionError ends this connection: catch that of a send to another one.
        """
        raise NotImplementedError

    def log(self, direction: str, text: str) -> None:
        """Note what happened: "=" for the connection's life, "!" for what was refused."""

    def send(self, message: str | bytes) -> None:
        """Send a text or a binary message, from any thread. Raise ConnectionError if it is lost."""
        is_text = isinstance(message, str)
        self._write(frame(TEXT, message.encode()) if is_text else frame(BINARY, message))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake (7.1.2), from any thread. Raise as send, or ValueError."""
        if code != 1005 and code not in CLOSE_CODES or len(reason.encode()) > 123:
            raise ValueError(f"not to be sent in a Close: {code} {reason}")
        payload = b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()  # (7.1.5)
        self._write(frame(CLOSE, payload), closing=code)

    def setup(self) -> None:
        self.server.connections.add(self)
        self.number, self.is_open = next(self.server.numbers), False
        self._writing, self._closing = threading.Lock(), None  # the status or code that was sent
        self._gathering, self._gathered = False, []  # frames that leave together, while more come
        self._deadline = time.monotonic() + HEAD_TIMEOUT
        with suppress(OSError):  # macOS: the peer has gone, as will be seen
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            # In the kernel: Python's own limit would slow down each call.
            limits = {socket.SO_SNDTIMEO: SEND_TIMEOUT, socket.SO_RCVTIMEO: RECEIVE_TIMEOUT}
            for option, seconds in limits.items():
                self.request.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))

    def handle(self) -> None:
        """Live the life of the connection; what ends it is decided here."""
        try:
            received = self._open()
            self.log("=", f"open from {self.headers.get('origin', 'a program without Origin')}")
            self.log("=", f"closed {self._exchange_messages(received)}")
        except (HandshakeError, ProtocolError) as error:
            self._end(*error.args)
        except ConnectionError as error:
            self.log("=", f"closed {self._closing or 1006}: {error}")
        except Exception:
            self._end(1011 if self.is_open else 500, "an error in the server")
            raise

    def _end(self, code: int, reason: str) -> None:
        """Refuse the opening handshake with an HTTP status, or fail the connection (7.1.7)."""
        is_status = code < 1000
        self.log("!", f"{'refused' if is_status else 'closed'} {code}: {reason}")
        with suppress(ConnectionError):  # it has gone, or has a Close already
            self._write(refusal(code), closing=code) if is_status else self.close(code, reason)

    def _open(self) -> bytes:
        """Complete the opening handshake; return what came behind it."""
        from hashlib import sha1  # this late, because it takes 3 ms

        if len(self.server.connections) > MAX_CONNECTIONS:
            raise HandshakeError(503, f"{MAX_CONNECTIONS} connections are open already")
        self.target, self.headers, received = read_head(self._receive)
        self.check_handshake()
        self._deadline = None
        accept = sha1(self.headers["sec-websocket-key"].encode() + GUID).digest()
        self._write(ACCEPTANCE % b2a_base64(accept, newline=False))
        self.is_open = True
        return received

    def check_handshake(self) -> None:
        """Raise HandshakeError if it does not ask for WebSocket 13, with a key (4.2.1)."""
        for name, (pattern, status) in REQUIRED.items():
            if not re.fullmatch(pattern, self.headers.get(name.lower(), ""), re.I):
                raise HandshakeError(status, f"its {name} is not that of WebSocket 13")

    def _exchange_messages(self, received: bytes) -> int:
        """Receive messages until the closing handshake is complete; return its code."""
        frames = read_frames(self._receive, self.max_message_size, received)
        for opcode, payload, final, more in frames:
            self._gathering |= more
            if opcode == CLOSE:
                break  # what follows it is not read (5.5.1)
            if self._closing:
                continue  # only the peer's Close counts now
            if opcode == TEXT and final:
                self.message_received(decode(payload))
            elif opcode == BINARY and final:
                self.message_received(payload)
            elif opcode == PING:
                self._write(frame(PONG, payload))  # (5.5.2)
            elif opcode != PONG:  # which nobody asked for (5.5.3)
                self._add_fragment(opcode, payload, final)
        code = int.from_bytes(payload[:2], "big") if payload else 1005
        decode(payload[2:])
        if payload and code not in CLOSE_CODES:
            raise ProtocolError(1002, "a Close with a code that is not allowed")
        if not self._closing:
            self.close(code)
        return self._closing

    def _add_fragment(self, opcode: int, payload: bytes, final: bool) -> None:
        """Add a fragment to its message (5.4). Text fails at the first wrong byte (8.1)."""
        if opcode != CONTINUATION:
            self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None
            self._message = io.StringIO() if opcode == TEXT else io.BytesIO()
        self._message.write(decode(payload, self._decoder, final) if self._decoder else payload)
        if final:
            message, self._message = self._message.getvalue(), None
            self.message_received(message)

    def _receive(self) -> bytes:
        """Return what comes. Raise ConnectionError when nothing will, HandshakeError 408."""
        if self._gathering:
            self._gathering = False
            self._write(b"")  # nothing stays unsent while the peer is waited for
        while self._deadline is None or time.monotonic() < self._deadline:
            try:
                received = self.request.recv(RECEIVE_SIZE)
            except BlockingIOError:
                continue  # after RECEIVE_TIMEOUT: the deadline can change meanwhile
            if received:
                return received
            raise ConnectionError("gone without a Close")
        if self._closing:
            raise ConnectionError("no answer to our Close")
        raise HandshakeError(408, f"no complete head within {HEAD_TIMEOUT} s")

    def _write(self, data: bytes, closing: int | None = None) -> None:
        """Send a frame, or keep it while others may join it; the last one, or nothing, at once."""
        with self._writing:
            if self._closing and data:
                raise ConnectionError("nothing follows a Close")  # (5.5.1)
            if closing:
                self._closing, self._deadline = closing, time.monotonic() + CLOSE_TIMEOUT
            elif self._gathering and len(data) < MAX_GATHERED > len(self._gathered):
                return self._gathered.append(data)
            if self._gathered:
                data, self._gathered = b"".join(self._gathered) + data, []
            try:
                self.request.sendall(data)
            except OSError as error:
                self._drop()
                raise ConnectionError(f"it takes no more: {error.strerror}") from None

    def _drop(self) -> None:
        with suppress(OSError):  # it has ended already
            self.request.shutdown(socket.SHUT_RDWR)  # wakes whoever reads or writes

    def finish(self) -> None:
        """Drop TCP (7.1.1): tell the peer at once, then take in what is still on its way.

        Bytes that nobody reads make the kernel send a reset, which can overtake our Close.
        """
        self._deadline, self._gathering = time.monotonic() + CLOSE_TIMEOUT, False
        with suppress(OSError, HandshakeError):  # it has gone, or sends on when the time is over
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
RESOURCES = f"{BUNDLE}/Contents/Resources"
SESSION = f"{RESOURCES}/session.js"
ENVIRONMENT = dict(os.environb)  # encoded once: that of os.environ is encoded at each use
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

    command = ["mdfind", "kMDItemCFBundleIdentifier == 'com.bohemiancoding.sketch3'"]
    found, versions = "", {}
    with suppress(OSError, subprocess.SubprocessError):
        found = os.fsdecode(subprocess.run(command, capture_output=True, timeout=10).stdout)
    for app in filter(sketchtool, [*found.splitlines(), "/Applications/Sketch.app"]):
        versions[app] = []
        with suppress(Exception), open(f"{app}/Contents/Info.plist", "rb") as file:
            versions[app] = list(map(int, plistlib.load(file)["CFBundleVersion"].split(".")))
    return max(versions, key=versions.get, default=None)


def sketchtool(app: str) -> str | None:
    """Return the path of a Sketch application's command line tool, None if it has none."""
    folders = ("MacOS", "Resources/sketchtool/bin")  # the latter before 2020
    tools = (f"{app}/Contents/{folder}/sketchtool" for folder in folders)
    return next((tool for tool in tools if os.access(tool, os.X_OK)), None)


def run_sketchtool(arguments: list[str], seconds_left) -> tuple[str, str]:
    """Run a command of sketchtool; return status and output of the answer.

    Its last line decides, OK or ERROR, else its exit status. When seconds_left() are none its
    process group is killed. Raise UserError then, and if it cannot be started.
    """
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
    actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    signals = {"setsigmask": (), "setsigdef": (signal.SIGPIPE, signal.SIGXFSZ)}  # as a shell's
    options = {"file_actions": actions, "setpgroup": 0, **signals}
    output, ended, pause = b"", 0, 0
    with open(reader, "rb", 0) as pipe:
        try:
            process = os.posix_spawn(arguments[0], arguments, ENVIRONMENT, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"{arguments[0]} cannot be started: {error}.") from None
        finally:
            os.close(writer)
        while not ended and seconds_left() > 0:
            ended, status = os.waitpid(process, os.WNOHANG)  # what it printed is in the pipe by now
            # Its output ends when it does, unless a child of its own goes on: look now and then.
            if select.select([pipe], [], [], 0 if ended else 0.1)[0]:
                received = pipe.read(RECEIVE_SIZE)
                output = (output + received)[-RECEIVE_SIZE:]
                if not received and not ended:
                    time.sleep(pause)  # it ends any moment
                    pause = min(2 * pause or 0.00005, 0.1)
    if not ended:
        os.kill(process, signal.SIGKILL)
        with suppress(OSError):  # it has left its process group, or ends at this moment
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise UserError("The script did not end in time and was killed. Does it show an alert?")
    text = output.decode("utf-8", "replace").strip()
    word, _, rest = text.rpartition("\n")[2].strip().partition(" ")
    if word in ("OK", "ERROR"):
        return "done" if word == "OK" else "failed", rest.strip()
    if status := os.waitstatus_to_exitcode(status):
        return "failed", text or f"sketchtool ended with {status} and printed nothing."
    return "done", text


# ---- The bridge ---------------------------------------------------------------------------------


class DialogueHandler(WebSocketHandler):
    """The connection of a dialogue: each message is a click, and is answered."""

    def log(self, direction: str, text: str, end: str = "") -> None:
        self.server.bridge.log(f"#{self.number} {direction}", text, end)

    def check_handshake(self) -> None:
        """Raise HandshakeError unless it asks by a local name, from no web page, with the token."""
        host, origin = self.headers["host"], self.headers.get("origin")
        if not re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?", host, re.I):
            raise HandshakeError(403, f"Host {host}")
        if origin not in (None, "null", "file://"):
            raise HandshakeError(403, f"Origin {origin}")
        super().check_handshake()
        if not secrets.compare_digest(self.target, f"/?token={self.server.bridge.token}"):
            raise HandshakeError(403, "a wrong token, or none")

    def message_received(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise ProtocolError(1003, "a binary message")
        self.log("<", message)
        if message not in SCRIPTS:
            self.answer(message, "unknown", "SCRIPTS has no such message. Add it, and start again.")
        elif self.server.bridge.room.acquire(blocking=False):
            self.server.bridge.clicks.put((self, message))
        else:
            self.answer(message, "busy", f"{MAX_WAITING} clicks are waiting. Try again after them.")

    def answer(self, message: str, status: str, output: str, end: str = "") -> None:
        """Answer a message, and log it."""
        self.log(">", f"{status}: {output}", end)
        token = self.server.bridge.token
        message, output = (text.replace(token, "[token]") for text in (message, output))
        answer = {"message": message[:200], "status": status, "output": output[-MAX_OUTPUT:]}
        self.without_waiting(self.send, json.dumps(answer))

    def without_waiting(self, method, argument) -> None:
        """Send or close from any thread. A dialogue that cannot take it is dropped instead."""
        with suppress(OSError, ValueError):  # it has gone, or goes at this moment
            if self.is_open and select.select([], [self.request], [], 0)[1]:
                method(argument)
            else:
                self._drop()


class Bridge:
    """What all dialogues share: the token, the log, and Sketch, which runs one script at a time."""

    def __init__(self, servers: list[WebSocketServer], app: str | None, dry_run: bool) -> None:
        self.servers, self.app, self.dry_run = servers, app, dry_run
        self.token = secrets.token_urlsafe(32)
        self.clicks: queue.SimpleQueue = queue.SimpleQueue()  # (dialogue, message), None at the end
        self.room = threading.Semaphore(1 + MAX_WAITING)
        self.runner = threading.Thread(target=self.run_clicks, daemon=True)
        self.stop_time = float("inf")  # when whatever runs is killed

    def start(self) -> None:
        """Let dialogues in, and say what clicks will do. Raise UserError if they cannot find us."""
        port = self.servers[0].server_address[1]
        session = json.dumps({"port": port, "token": self.token})
        self.session = f"window.pebbleSession = {session};\n"
        partial = f"{SESSION}.{os.getpid()}"
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(self.session)
            os.replace(partial, SESSION)
        except OSError as error:
            with suppress(OSError):
                os.remove(partial)
            remedy = "Make its folder writable, or install the plugin with --install."
            raise UserError(f"{SESSION} cannot be written: {error.strerror}. {remedy}") from None
        if self.dry_run:
            self.print("Dry run: no script runs; a click is answered with what Sketch would run.")
            self.print(f"To try it, open {RESOURCES}/pebble-dialogue.html in a browser.")
        elif self.app:
            self.print(f"Scripts run in {self.app}.")
        else:
            self.log("!", NO_SKETCH)
        for message in SCRIPTS:
            try:
                find_command(message)
            except UserError as error:
                self.log("!", message, f": {error}")
        self.runner.start()
        for server in self.servers:
            server.bridge = self
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        self.print(f"listening on ws://localhost:{port} (Ctrl-C stops it)")

    def log(self, direction: str, text: str, end: str = "") -> None:
        """Print one line, whatever the text is: controls escaped, shortened to 200 characters."""
        text = text.replace(self.token, "[token]")
        text = text if len(text) <= 200 else f"{text[:199]}…"
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        self.print(f"{time.strftime('%H:%M:%S')} {direction} {text}{end}")

    def print(self, line: str) -> None:
        try:
            print(f"{line}\n", end="", flush=True)  # in one piece, whatever other threads print
        except OSError:  # nobody reads it any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def run_clicks(self) -> None:
        """Run scripts in the order of the clicks: Sketch edits one document on one thread."""
        while (click := self.clicks.get()) and self.stop_time == float("inf"):
            (dialogue, message), start = click, time.monotonic()
            try:
                status, output = self.run(message, start + SCRIPT_TIMEOUT)
            except (UserError, OSError) as error:  # the latter for want of descriptors, say
                status, output = "failed", str(error)
            self.room.release()
            took = f" ({(time.monotonic() - start) * 1000:.0f} ms)"
            dialogue.answer(message, status, output, took)

    def run(self, message: str, end: float) -> tuple[str, str]:
        """Run the script of a message; return status and output of the answer. Raise UserError."""
        bundle, identifier = find_command(message)
        if self.dry_run:
            return "dry run", f"Sketch would run {identifier} of {bundle}."
        if not (tool := self.app and sketchtool(self.app)):
            raise UserError(NO_SKETCH)
        arguments = [tool, "run", bundle, identifier, "--without-activating"]
        return run_sketchtool(arguments, lambda: min(end, self.stop_time) - time.monotonic())

    def stop(self) -> None:
        """Close all connections; let the script that is running end, see STOP_TIMEOUT."""
        with suppress(OSError), open(SESSION) as file:
            if file.read() == self.session:  # not another server's
                os.remove(SESSION)
        self.stop_time = time.monotonic() + STOP_TIMEOUT
        self.clicks.put(None)
        for server in self.servers:
            server.shutdown()
        for dialogue in list(WebSocketServer.connections):
            dialogue.without_waiting(dialogue.close, 1001)
        deadline = time.monotonic() + CLOSE_TIMEOUT + RECEIVE_TIMEOUT
        while WebSocketServer.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        self.runner.join(STOP_TIMEOUT + 1)


# ---- Command line -------------------------------------------------------------------------------

PLUGINS = "~/Library/Application Support/com.bohemiancoding.sketch3/Plugins"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status. Bad arguments exit with argparse's usage."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="pebble_ws.py",
        description=__doc__.partition("\n")[0],
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),  # asks no terminal
    )
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
    except UserError as error:
        print(f"pebble_ws.py: {error}", file=sys.stderr)
        return 1
    return 0


def serve(port: int, app: str | None, dry_run: bool) -> None:
    """Run until SIGINT or SIGTERM. Raise UserError if the server cannot start."""
    app = app and os.path.abspath(app)
    if app is not None and not (app.endswith(".app") and sketchtool(app)):
        raise UserError(f"{app} is no Sketch application. Name the path of Sketch.app.")
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # in all threads: they wait for sigwait
    servers: list[WebSocketServer] = []
    try:
        try:  # of localhost, a browser tries either address
            servers.append(WebSocketServer(("127.0.0.1", port), DialogueHandler))
            port = servers[0].server_address[1]
            servers.append(WebSocketServerIPv6(("::1", port), DialogueHandler))
        except OSError as error:
            if not servers or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                remedy = "Stop the other server, or choose another port with --port."
                raise UserError(f"Port {port} cannot be used: {error.strerror}. {remedy}") from None
        global json, queue, secrets  # this late, because they take their time
        import json
        import queue
        import secrets

        for descriptor in range(3, 256):  # a script shall inherit none
            with suppress(OSError):
                os.set_inheritable(descriptor, False)
        dry_run = dry_run or not app and sys.platform != "darwin"  # Sketch is for macOS only
        bridge = Bridge(servers, app or (None if dry_run else find_sketch()), dry_run)
        bridge.start()
        while signal.sigwait(signals) not in signals:
            pass  # macOS: Ctrl-Z and fg
        bridge.stop()
    finally:
        for server in servers:
            server.server_close()


def install(folder: str) -> None:
    """Copy the plugin with this file into a folder. Raise UserError if that cannot be done."""
    from shutil import copyfile, copytree, ignore_patterns, rmtree

    if not os.path.isdir(folder):
        raise UserError(f"There is no folder {folder}. Install Sketch first, or name another one.")
    target = os.path.join(os.path.abspath(folder), os.path.basename(BUNDLE))
    old, own = (f"{os.path.realpath(path)}/" for path in (target, BUNDLE))
    if old.startswith(own) or own.startswith(old):
        raise UserError(f"{target} is this copy itself, or holds it. Name another folder.")
    new = f"{target}.new"
    try:
        rmtree(new, ignore_errors=True)
        copytree(BUNDLE, new, ignore=ignore_patterns("session.js*"), copy_function=copyfile)
        for path, _, _ in os.walk(new):
            os.chmod(path, 0o755)  # also where the original is read-only
        copyfile(__file__, f"{new}/Contents/Sketch/pebble_ws.py")
        if os.path.islink(target):
            os.remove(target)
        elif os.path.exists(target):
            rmtree(target)
        os.rename(new, target)
    except OSError as error:
        rmtree(new, ignore_errors=True)
        raise UserError(f"{target} cannot be written: {error}.") from None
    print(f"Copied {BUNDLE}\nwith {os.path.abspath(__file__)}\nto {target}.")
    print("Next, in Sketch: Plugins ▸ websocket ▸ webservice-starting-information.")


if __name__ == "__main__":
    sys.exit(main())
