#!/usr/bin/env python3
"""Run a Sketch plugin's CocoaScripts from the buttons of its HTML panel.

    python3 pebble_ws.py             start the server; Ctrl-C stops it
    python3 pebble_ws.py --install   copy the plugin and this file into Sketch's plugins folder

A click in the panel sends one text message by WebSocket. The server looks the whole message up in
SCRIPTS, runs the script that it finds there just as the plugin's menu would, and answers how it
went. Nothing from the network is ever used as a path, an argument or code. Only this computer can
connect, and only with a token from a file that its user alone can read.

The file follows a click on its way:

    Configuration       what you may change: SCRIPTS, limits
    Opening handshake   an HTTP request becomes a WebSocket, or is refused
    Frames              bytes become messages, messages become bytes
    Connections         WebSocketHandler, the life of one connection; WebSocketServer
    Scripts             from a message to a plugin's command; running that; how it went
    The bridge          DialogueHandler takes clicks, Bridge runs their scripts one at a time
    Command line        main, serve and install

Threads: one accepts, one for each connection reads, one runs scripts, one writes the log, and the
main thread waits for a signal. None of them wakes up while nothing happens.

Errors: a ProtocolError is a peer's fault and ends its connection, with an HTTP status or a close
code; a ConnectionError says that a connection has ended; a UserError is something that a person can
fix, and says how. Any other exception is a bug in this file, and is shown with its traceback.

A number in parentheses, as in (5.2), is a section of RFC 6455.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import functools
import io
import itertools
import json
import os
import queue
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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

__version__ = "1.0.0"

# ---- Configuration ------------------------------------------------------------------------------

# Which script a message runs: its path from Contents/Sketch or, in another bundle, an absolute one.
# The README says how to add one, under "Add a button".
SCRIPTS = {
    "rotate": "rotate.cocoascript",
    "duplicate": "rotate-duplicate.cocoascript",
    "undo": "undo.cocoascript",
    "set-time": "set-time.cocoascript",
}

DEFAULT_PORT = 9912  # any free port if this one is taken: the panel finds out
SCRIPT_TIMEOUT = 60  # seconds; then a script is given up, because it holds up all that follow
STOP_TIMEOUT = 10  # seconds that the running script may still take when the server is stopped
MAX_WAITING = 16  # clicks that wait for the one that runs; the next is answered "busy"
MAX_OUTPUT = 4_000  # characters of a script's output in an answer
MAX_LOGGED = 200  # characters of a text in the log, and of a message in an answer
MAX_LOGGED_LINES = 20  # of what a script printed besides its answer
MAX_UNWRITTEN = 1_000  # lines that wait to be written to the log; more are dropped

MAX_CONNECTIONS = 200  # macOS gives a process 256 file descriptors
MAX_HEAD = 65_536  # bytes of an opening handshake: browsers send a host's cookies to all its ports
HEAD_TIMEOUT = 10  # seconds until all of it must be there
CLOSE_TIMEOUT = 3  # seconds that a peer has to answer our Close, and to drop TCP after it
BUFFER_SIZE = 20_000  # bytes to receive ahead: a head, or a message as they mostly are
RECEIVE_SIZE = 65_536  # bytes to receive at once of a payload that is longer
PIPE_SIZE = 65_536  # bytes that a pipe can hold, on Linux and macOS


# ---- Opening handshake (4) ----------------------------------------------------------------------

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# Regular expressions are compiled when they are first used, so that the server starts sooner.
# RFC 9112: there is no blank before the colon of a header, and no line that goes on in the next.
REQUEST_LINE = r"([!-~]+) ([!-~]+) HTTP/1\.[1-9]"
HEADER_LINE = r"([0-9A-Za-z!#$%&'*+.^_`|~-]+):([\t -~\x80-\xff]*)"

# The extra headers of a refusal, by its status:
HINTS = {405: ["Allow: GET"], 426: ["Upgrade: websocket", "Sec-WebSocket-Version: 13"]}


class ProtocolError(Exception):
    """What a peer does wrong. `code` is an HTTP status, or from 1000 on a close code (7.4)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def require(condition: object, code: int, reason: str) -> None:
    """Raise ProtocolError unless a condition holds."""
    if not condition:
        raise ProtocolError(code, reason)


def read_head(reader: io.BufferedReader) -> tuple[str, dict[str, str]]:
    """Return target and headers of a GET request (4.2.1). Raise ProtocolError 400, 405 or 431."""
    first = reader.peek()[:1]
    require(first.isalpha() or first == b"\r", 400, "this is not HTTP")  # TLS, say: it has no lines
    lines: list[str] = []
    size = 0
    while len(lines) < 2 or lines[-1]:  # up to an empty line that is not the first one
        line = reader.readline(MAX_HEAD - size + 1)
        size += len(line)
        require(size <= MAX_HEAD, 431, f"a head of more than {MAX_HEAD} bytes")
        require(line.endswith(b"\r\n"), 400, "a line does not end with CR LF")
        lines.append(line[:-2].decode("latin-1"))
    if not lines[0]:  # an empty line before the request is skipped (RFC 9112, 2.2)
        del lines[0]
    return parse_head(lines)


def parse_head(lines: list[str]) -> tuple[str, dict[str, str]]:
    """Return target and headers: by their names in lower case, repeated ones joined to a list."""
    request = re.fullmatch(REQUEST_LINE, lines[0])
    require(request, 400, "the first line is no request of HTTP/1.1")
    method, target = request.groups()

    headers: dict[str, str] = {}
    for line in lines[1:-1]:
        header = re.fullmatch(HEADER_LINE, line)
        require(header, 400, "a line is no header")
        name = header[1].lower()
        value = header[2].strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value

    require(method == "GET", 405, "the method is not GET")
    require(target.startswith("/"), 400, "the target is no path")  # a URL would name a second host
    has_one_host = "host" in headers and "," not in headers["host"]
    require(has_one_host, 400, "there must be one Host")
    return target, headers


def listed(value: str) -> list[str]:
    """Return the words of a header whose value is a list: those of "a, B" are "a" and "b"."""
    return [word.strip(" \t").lower() for word in value.split(",")]


def response(status: str, headers: list[str], body: str = "") -> bytes:
    """Return an HTTP response. One with a body closes the connection."""
    if body:
        form = f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body.encode())}"
        headers = ["Connection: close", form, *headers]
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", body]).encode()


# ---- Frames (5) ---------------------------------------------------------------------------------

# A frame (5.2):
#   byte 0     FIN (1 bit), reserved (3), opcode (4)
#   byte 1     MASK (1 bit), length (7): 0 to 125, or 126: see the next 2 bytes, or 127: the next 8
#   2 or 8 bytes of length, if so
#   4 bytes of masking-key, in each frame of a client and in none of a server
#   the payload

OPCODES = CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = MASK = 0x80

# All valid first bytes: no reserved bit or opcode, no control frame in fragments (5.5).
FIRST_BYTES = {FIN | opcode for opcode in OPCODES} | {CONTINUATION, TEXT, BINARY}

MAX_CONTROL = 125  # bytes in the payload of a control frame (5.5)
MAX_REASON = MAX_CONTROL - 2  # bytes of a Close's reason, after its code

NO_CODE = 1005  # stands for a Close without a code, and is never sent itself
ABNORMAL = 1006  # stands for an end without a Close, and is never sent either
# The codes that a Close may carry (7.4); 3000 to 4999 are free to use.
CLOSE_CODES = ({*range(1000, 1015)} - {1004, NO_CODE, ABNORMAL}) | {*range(3000, 5000)}

SHORT = 500  # bytes; up to this size a payload is unmasked faster as one integer


def read_messages(reader: io.BufferedReader, max_size: int) -> Iterator[tuple[int, str | bytes]]:
    """Yield (opcode, payload) of each message and each control frame that comes, without end.

    The payload of a TEXT is a str. Raise ProtocolError 1002, 1007 or 1009.
    """
    kind = None  # TEXT or BINARY, from the first fragment of a message to the last
    while True:
        opcode, is_final, length = read_frame_head(reader)
        if opcode >= CLOSE:  # a control frame: it may come between the fragments of a message
            key = reader.read(4)
            yield opcode, bytes(unmask(reader.read(length), key))
            continue

        if opcode == CONTINUATION:
            require(kind is not None, 1002, "a continuation of nothing")  # (5.4)
        else:
            require(kind is None, 1002, "a message inside another")  # (5.4)
            kind = opcode
            message = bytearray()
            checked = 0
        require(len(message) + length <= max_size, 1009, "a message that is too long")

        key = reader.read(4)
        while length:  # a long frame comes in parts
            part = reader.read1(min(length, RECEIVE_SIZE))
            if message:
                message += unmask(part, key)
            else:
                message = unmask(part, key)  # most often it is all, and is not copied
            length -= len(part)
            if length:  # the key is turned, for the rest of it
                key = key[len(part) % 4 :] + key[: len(part) % 4]
            if kind == TEXT and (length or not is_final):  # at its end all of it is decoded
                checked = check_text(message, checked)
        if is_final:
            yield kind, decode(message) if kind == TEXT else bytes(message)
            kind = None


def read_frame_head(reader: io.BufferedReader) -> tuple[int, bool, int]:
    """Return opcode, FIN and length of the next frame. Raise ProtocolError 1002."""
    first, second = reader.read(2)
    require(first in FIRST_BYTES, 1002, "a reserved bit or opcode, or a control frame in fragments")
    require(second >= MASK, 1002, "a frame without a mask")  # (5.1)

    opcode = first & 0x0F
    length = second - MASK
    if length > MAX_CONTROL:
        require(opcode < CLOSE, 1002, "a control frame that is too long")  # (5.5)
        width, shortest = (2, 126) if length == 126 else (8, 65_536)
        length = int.from_bytes(reader.read(width), "big")
        is_right = shortest <= length < 1 << 63
        require(is_right, 1002, "a length in more bytes than it takes, or over 63 bits")
    return opcode, first >= FIN, length


def unmask(payload: bytes, key: bytes) -> bytearray:
    """Return the payload without its mask (5.3)."""
    size = len(payload)
    if size <= SHORT:
        mask = (key * (size // 4 + 1))[:size]
        unmasked = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
        return bytearray(unmasked.to_bytes(size, "little"))

    # A long one in four parts: the bytes that are masked with the same byte of the key.
    result = bytearray(payload)
    for i in range(4):
        result[i::4] = result[i::4].translate(XOR_TABLES[key[i]])
    return result


# What becomes of each byte that is masked with this one.
XOR_TABLES = [unmask(bytes(range(256)), bytes([mask]) * 4) for mask in range(256)]


def check_text(text: bytearray, checked: int) -> int:
    """Check a text from this byte on; return up to which byte it is whole characters.

    The last character may go on in the next part. Raise ProtocolError 1007 at the first byte that
    cannot be right (8.1). The incremental decoder of codecs would not do: after ED it takes A0 for
    the middle of a character.
    """
    try:
        text[checked:].decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise ProtocolError(1007, "text that is not UTF-8") from None
        return checked + error.start
    return len(text)


def decode(text: bytes | bytearray) -> str:
    """Return a complete text. Raise ProtocolError 1007 (8.1)."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise ProtocolError(1007, "text that is not UTF-8") from None


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame as a server sends it: final, and without a mask (5.1)."""
    size = len(payload)
    if size <= MAX_CONTROL:
        return bytes((FIN | opcode, size)) + payload
    code, width = (126, 2) if size < 65_536 else (127, 8)
    return bytes((FIN | opcode, code)) + size.to_bytes(width, "big") + payload


def close_payload(code: int, reason: str) -> bytes:
    """Return the payload of a Close (5.5.1). Raise ValueError for what it cannot have."""
    if code == NO_CODE:
        return b""
    if code not in CLOSE_CODES or len(reason.encode()) > MAX_REASON:
        raise ValueError(f"no Close can have this code and reason: {code} {reason}")
    return code.to_bytes(2, "big") + reason.encode()


def close_code(payload: bytes) -> int:
    """Return the code of a peer's Close, or NO_CODE. Raise ProtocolError 1002 or 1007."""
    if not payload:
        return NO_CODE
    code = int.from_bytes(payload[:2], "big")
    require(code in CLOSE_CODES, 1002, "a Close with a code that is not allowed")
    decode(payload[2:])
    return code


# ---- Connections (5.4, 5.5, 7) ------------------------------------------------------------------

# The states of a connection. Nothing is sent to one that is CLOSING: it has our Close, or refusal.
CONNECTING, OPEN, CLOSING, CLOSED = "connecting", "open", "closing", "closed"


class WebSocketHandler(socketserver.BaseRequestHandler):
    """One connection, in a thread of its own. A subclass says what is done with a message.

    `number` tells it from others in a log. `target` and `headers` are those of the opening
    handshake. `state` is CONNECTING, OPEN, CLOSING or CLOSED.
    """

    max_message_size = 1 << 20  # bytes; a longer message is closed with 1009
    send_timeout = 7.0  # seconds; a peer that takes nothing for so long is dropped
    refusal = "This is a WebSocket server, not a web page."

    # -- for subclasses

    def message_received(self, message: str | bytes) -> None:
        """Do something with a message. Nothing else is received meanwhile.

        A ProtocolError, or a ConnectionError as send raises it, ends the connection.
        """
        raise NotImplementedError

    def check_handshake(self) -> None:
        """Raise ProtocolError unless the request is for a WebSocket of version 13 (4.2.1)."""
        names = ("upgrade", "connection", "sec-websocket-version", "sec-websocket-key")
        upgrade, connection, version, key = (self.headers.get(name, "(missing)") for name in names)
        require("websocket" in listed(upgrade), 426, f"Upgrade {upgrade}")
        require("upgrade" in listed(connection), 426, f"Connection {connection}")
        require(version == "13", 426, f"Sec-WebSocket-Version {version}")
        require(re.fullmatch("[A-Za-z0-9+/]{22}==", key), 400, f"Sec-WebSocket-Key {key}")

    def log(self, sign: str, text: str) -> None:
        """Override this to log: "=" is a sign for the whole connection, "!" for a refusal."""

    # -- for everybody, from any thread

    def send(self, message: str | bytes) -> None:
        """Send a text or a binary message. Raise ConnectionError unless the state is OPEN."""
        if isinstance(message, str):
            self._send(frame(TEXT, message.encode()))
        else:
            self._send(frame(BINARY, message))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake (7.1.2); drop a connection that is not open yet.

        If message_received calls it, the peer has CLOSE_TIMEOUT to answer; else as long as the
        server is there. Raise ConnectionError if it is closing already, ValueError for what no
        Close can have.
        """
        self._end(code, frame(CLOSE, close_payload(code, reason)))

    def drop(self, reason: str) -> None:
        """End it at once, without a Close: the receiving thread wakes up and logs the reason.

        This takes no lock: whoever holds it may be waiting for the peer.
        """
        self.state = CLOSED
        self._end_reason = reason
        with suppress(OSError):  # it has ended already
            self.request.shutdown(socket.SHUT_RDWR)

    # -- the life of the connection: socketserver calls setup, handle, finish

    def setup(self) -> None:
        self.state = CONNECTING
        self.is_silent = True  # the peer has not said anything
        self._deadline: float | None = time.monotonic() + HEAD_TIMEOUT  # for what is expected
        # Held while bytes are sent, so that frames do not mix and none follows a Close. Without it
        # the state changes only to CLOSED.
        self._lock = threading.Lock()
        self._end_code = 0  # the status or close code that we ended it with
        self._end_reason = "ended without a Close"
        with suppress(OSError):  # on macOS, if the peer has gone; recv will find that out
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            # The kernel keeps this time: with settimeout, each recv and send would take longer.
            timeval = struct.pack("ll", *divmod(round(self.send_timeout * 1_000_000), 1_000_000))
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def handle(self) -> None:
        """Open the connection and exchange messages. All that can end it ends here."""
        self._has_place = self.server.add(self)
        try:
            reader = io.BufferedReader(Receiver(self), BUFFER_SIZE)
            self._open(reader)
            self.log("=", f"open from {self.headers.get('origin', 'a program without Origin')}")
            self._exchange_messages(reader)
            self.log("=", f"closed {self._end_code}")
        except ProtocolError as error:
            self._fail(error.code, error.reason)
        except ConnectionError as error:
            if self.state == OPEN:  # message_received raised it
                self._fail(1011, str(error))
            else:
                self.log("=", f"closed {self._end_code or ABNORMAL}: {error}")
        except Exception:
            self._fail(500 if self.state == CONNECTING else 1011, "an error in the server")
            raise

    def _open(self, reader: io.BufferedReader) -> None:
        """Make the opening handshake (4.2.2)."""
        import hashlib  # here, because it takes milliseconds that the start can do without

        require(self._has_place, 503, "no room for another connection")
        self.target, self.headers = read_head(reader)
        self.check_handshake()
        digest = hashlib.sha1(self.headers["sec-websocket-key"].encode() + GUID).digest()
        accept = b2a_base64(digest, newline=False).decode()
        headers = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
        with self._lock:
            self._send_now(response("101 Switching Protocols", headers))
            self.state = OPEN
            self._deadline = None
        self.request.settimeout(None)

    def _exchange_messages(self, reader: io.BufferedReader) -> None:
        """Receive messages until the closing handshake is complete."""
        for opcode, payload in read_messages(reader, self.max_message_size):
            if opcode == CLOSE:
                code = close_code(payload)
                with suppress(ConnectionError):  # it is the answer to ours
                    self.close(code)  # (5.5.1)
                break  # what follows it is discarded (1.4)
            if self.state != OPEN:
                continue  # we have sent a Close: only the peer's counts now
            if opcode == PING:
                self._send(frame(PONG, payload))  # (5.5.2)
            elif opcode != PONG:
                self.message_received(payload)

    def _fail(self, code: int, reason: str) -> None:
        """Refuse the handshake with an HTTP status, or fail the open connection (7.1.7)."""
        if self.state == CONNECTING:
            code = code if 400 <= code < 600 else 400
            self.log("!", f"refused {code}: {reason}")
            data = response(f"{code} Refused", HINTS.get(code, []), f"{self.refusal}\n")
        else:
            code = code if code in CLOSE_CODES else 1008
            self.log("!", f"closed {self._end_code or code}: {reason}")
            reason = reason.encode()[:MAX_REASON].decode(errors="ignore")
            data = frame(CLOSE, close_payload(code, reason))
        with suppress(ConnectionError):  # it has gone, or was sent a Close before
            self._end(code, data)

    def finish(self) -> None:
        """Drop TCP (7.1.1), but read first: unread bytes reset it, and our Close may be lost."""
        with suppress(OSError, ProtocolError):  # raised when the peer has gone, or at the deadline
            self.request.shutdown(socket.SHUT_WR)
            while self._has_place:  # one that was refused for want of a place must not stay
                self.receive_into(bytearray(BUFFER_SIZE))
        self.server.places.pop(self, None)

    # -- bytes from and to the peer

    def receive_into(self, buffer: bytearray) -> int:
        """Wait for bytes; return how many there are.

        Raise ConnectionError if none will come, ProtocolError 408 if they should be here already.
        """
        try:
            if self._deadline is not None:
                self.request.settimeout(self._deadline - time.monotonic())
            size = self.request.recv_into(buffer)
        except (socket.timeout, ValueError):  # the latter for a negative time
            if self.state == CONNECTING:
                raise ProtocolError(408, f"no complete head within {HEAD_TIMEOUT} s") from None
            raise ConnectionError("no answer to our Close") from None
        except OSError as error:
            self.drop(error.strerror)
            size = 0
        if not size:
            self.state = CLOSED
            raise ConnectionError(self._end_reason)
        self.is_silent = False
        return size

    def _send(self, data: bytes) -> None:
        """Send a frame. Raise ConnectionError."""
        with self._lock:
            if self.state != OPEN:
                raise ConnectionError(f"the connection is {self.state}")
            self._send_now(data)

    def _end(self, code: int, data: bytes) -> None:
        """Send our last bytes, a refusal or a Close. The peer then has CLOSE_TIMEOUT to answer.

        Raise ConnectionError if they were sent before, or cannot be.
        """
        with self._lock:
            if self.state not in (CONNECTING, OPEN):
                raise ConnectionError(f"the connection is {self.state}")  # (5.5.1)
            self._end_code = code
            if self.state == CONNECTING and code >= 1000:
                return self.drop("it was never open")
            self.state = CLOSING
            self._deadline = time.monotonic() + CLOSE_TIMEOUT
            self._send_now(data)

    def _send_now(self, data: bytes) -> None:
        """Send bytes. The caller holds the lock. Raise ConnectionError."""
        try:
            self.request.sendall(data)
        except OSError as error:
            self.drop(f"it takes no more: {error.strerror or error}")
            raise ConnectionError(self._end_reason) from None


class Receiver(io.RawIOBase):
    """The bytes that a connection receives, for a BufferedReader, which reads them in any size."""

    def __init__(self, connection: WebSocketHandler) -> None:
        self.readinto = connection.receive_into

    def readable(self) -> bool:
        return True


class WebSocketServer(socketserver.ThreadingTCPServer):
    """A server that gives each connection a WebSocketHandler.

    It serves once: from serve_forever to shutdown, which another thread calls.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[WebSocketHandler]) -> None:
        """Listen at an address; other sockets may be added to `other_sockets`. Raise OSError."""
        self._numbers = itertools.count(1)
        self.places: dict[WebSocketHandler, None] = {}  # of the connections, the oldest first
        self._lock = threading.RLock()  # held while a place is given
        self._alarm, self._bell = socket.socketpair()  # closing the bell makes the alarm readable
        self._has_stopped = threading.Event()
        self.other_sockets: list[socket.socket] = []  # more that listen
        super().__init__(address, handler)

    @property
    def connections(self) -> list[WebSocketHandler]:
        """A snapshot of the connections, which come and go meanwhile."""
        return list(self.places)

    def serve_forever(self, poll_interval: float = 0) -> None:
        """Accept connections until shutdown. Nothing is polled: the interval does not matter."""
        ready: list[socket.socket] = []
        try:
            while self._alarm not in ready:
                for listener in ready:
                    self._accept(listener)
                ready = select.select([self._alarm, self.socket, *self.other_sockets], [], [])[0]
        finally:
            self._has_stopped.set()

    def _accept(self, listener: socket.socket) -> None:
        """Start the thread of a connection."""
        try:
            listener.setblocking(False)  # what is ready may have gone
            self.process_request(*listener.accept())
        except BlockingIOError:
            pass
        except (OSError, RuntimeError):  # there is no file descriptor or no thread for it
            if not self.make_room():
                time.sleep(0.1)  # else this would be tried again and again

    def add(self, connection: WebSocketHandler) -> bool:
        """Give a connection its number, and a place if there is one; return whether there is."""
        with self._lock:
            connection.number = next(self._numbers)
            has_room = len(self.places) < MAX_CONNECTIONS or self.make_room()
            has_place = has_room and self._bell.fileno() >= 0  # else the server goes away
            if has_place:
                self.places[connection] = None
            return has_place

    def make_room(self) -> bool:
        """Drop the oldest connection that has not said anything; return whether there was one."""
        with self._lock:
            silent = next((each for each in self.connections if each.is_silent), None)
            if silent:
                silent.drop("it said nothing, and another needs its place")
                self.places.pop(silent, None)
        return silent is not None

    def shutdown(self) -> None:
        """Stop serve_forever, and wait until it has stopped."""
        self._bell.close()
        self._has_stopped.wait()

    def go_away(self) -> None:
        """Stop listening, and close all connections with 1001 (7.4.1)."""
        with self._lock:
            for each in (self._bell, self._alarm, self.socket, *self.other_sockets):
                each.close()
        for connection in self.connections:
            with suppress(ConnectionError):  # it has gone, or is closing
                connection.close(1001)

    def server_close(self) -> None:
        """Go away, and wait until nobody is left: whoever does not answer our Close is dropped."""
        self.go_away()
        deadline = time.monotonic() + CLOSE_TIMEOUT
        while self.connections and time.monotonic() < deadline + 1:
            if time.monotonic() > deadline:
                for connection in self.connections:
                    connection.drop("no answer to our Close")
            time.sleep(0.01)


# ---- Scripts ------------------------------------------------------------------------------------

HERE = os.path.dirname(os.path.abspath(__file__))
IS_INSTALLED = HERE.endswith(".sketchplugin/Contents/Sketch")  # in the bundle, beside the scripts
BUNDLE = os.path.abspath(f"{HERE}/../.." if IS_INSTALLED else f"{HERE}/plugin/pebble.sketchplugin")

ENVIRONMENT = dict(os.environb)  # of the scripts; encoded here, and not for each of them
NO_SKETCH = "There is no Sketch. Install it, or start the server with --sketch /path/to/Sketch.app."
TOO_LATE = "Sketch did not answer in time. The script may still run in it, or is showing an alert."

# A comma that Sketch ignores, outside of a string, which is kept.
TRAILING_COMMA = r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])'

# The line that tells how a script went, and one in which Sketch reports an error.
OUTCOME = r"(OK|ERROR)(?:[\s:]\s*(.*))?"
SKETCH_ERROR = r"(.*\] |\W*)(Uncaught .*)?(Error in command |([A-Z]\w*)?Error:)"

# A line that is a JavaScript string, as console.log prints it in Sketch. It may be cut.
QUOTED = r"'((?:[^'\\]|\\[^u]|\\u.{4})*)('$)?"
LINE_SIZE = 5 * MAX_OUTPUT  # bytes of a line that are read: a character has four at most


class UserError(Exception):
    """Something that a person can fix: the text says what happened, and what to do."""


def find_command(message: str) -> tuple[str, str]:
    """Return where the script of a message is: its bundle, and the command's identifier there.

    The manifest is read each time, so that a change to it needs no restart. Raise UserError.
    """
    if message in doubled_messages():
        raise UserError(f'SCRIPTS in pebble_ws.py lists "{message}" twice. Change or delete one.')
    script = os.path.normpath(os.path.join(BUNDLE, "Contents/Sketch", str(SCRIPTS[message])))
    name = os.path.basename(script)
    parent, extension, path_in_bundle = script.rpartition(".sketchplugin/")
    if not extension:
        raise UserError(f"{name} is in no .sketchplugin. Move it into one, or fix SCRIPTS.")
    if not os.path.isfile(script):
        folder = os.path.dirname(path_in_bundle)
        raise UserError(f"{name} is missing from {folder}. Put it there, or fix SCRIPTS.")

    bundle = f"{parent}.sketchplugin"
    commands = read_commands(bundle)
    file = os.stat(script)
    # The one that is called like the message comes first, and the others in their order.
    commands.sort(key=lambda command: command.get("identifier") != message)
    own = (each["identifier"] for each in commands if is_command_for(file, each, bundle))
    identifier = next(own, None)
    if identifier is None:
        raise UserError(f"manifest.json has no command, with an identifier, for {name}. Add it.")
    if [command.get("identifier") for command in commands].count(identifier) > 1:
        both = f'Two commands in manifest.json have the identifier "{identifier}"'
        raise UserError(f"{both}, and Sketch would run the first. Change one.")
    return bundle, identifier


@functools.lru_cache(maxsize=1)
def doubled_messages() -> list[str]:
    """Return the messages that stand twice in SCRIPTS: Python keeps the last, without a word."""
    with open(__file__, encoding="utf-8") as file:
        entries = re.search(r"(?ms)^SCRIPTS = \{(.*?)^\}", file.read())
    messages = re.findall(r'(?m)^ *"(.*?)" *:', entries[1]) if entries else []
    return [message for message in messages if messages.count(message) > 1]


def read_commands(bundle: str) -> list[dict]:
    """Return the commands in a bundle's manifest. Raise UserError."""
    try:
        with open(f"{bundle}/Contents/Sketch/manifest.json", "rb") as file:
            text = file.read().decode("utf-8-sig")
        if re.search(r",\s*[\]}]", text):
            text = re.sub(TRAILING_COMMA, r"\1", text)
        return [dict(command) for command in json.loads(text)["commands"]]
    except json.JSONDecodeError as error:
        problem = f"{error.msg}. Fix that line, or the one before it."
        raise UserError(f"manifest.json, line {error.lineno}: {problem}") from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError("manifest.json is missing, or has no list of commands.") from None


def is_command_for(file: os.stat_result, command: dict, bundle: str) -> bool:
    """Return whether Sketch can be told to run a command, and its script is this file.

    A file may have several names: macOS minds neither case nor the form of Unicode.
    """
    handlers = command.get("handlers")
    can_run = "handler" in command or not isinstance(handlers, dict) or "run" in handlers
    identifier = command.get("identifier")
    if not (can_run and isinstance(identifier, str) and identifier.strip()):
        return False
    with suppress(OSError, ValueError):  # there is no such file
        named = os.stat(f"{bundle}/Contents/Sketch/{command.get('script')}")
        return os.path.samestat(named, file)
    return False


def find_mistakes() -> list[str]:
    """Return what is wrong with SCRIPTS or the manifest, a text each."""
    mistakes: dict[str, None] = {}  # each of them once
    for message in SCRIPTS:
        try:
            find_command(message)
        except UserError as error:
            mistakes[str(error)] = None
    return list(mistakes)


def find_sketch() -> str | None:
    """Return the newest Sketch application that macOS knows, None if there is none."""
    import subprocess

    command = ["mdfind", "kMDItemCFBundleIdentifier == 'com.bohemiancoding.sketch3'"]
    found = b""
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, stdout=subprocess.PIPE, timeout=3).stdout
    apps = [*os.fsdecode(found).splitlines(), "/Applications/Sketch.app"]
    return max(filter(sketchtool, apps), key=sketch_version, default=None)


def sketch_version(app: str) -> list[int]:
    """Return the version of a Sketch application, [] if it does not say."""
    import plistlib

    with suppress(Exception), open(f"{app}/Contents/Info.plist", "rb") as file:
        return [int(part) for part in plistlib.load(file)["CFBundleVersion"].split(".")]
    return []


def sketchtool(app: str) -> str | None:
    """Return the path of a Sketch application's command line tool, None if it has none."""
    folders = ("MacOS", "Resources/sketchtool/bin")  # the second one before 2020
    tools = (f"{app}/Contents/{folder}/sketchtool" for folder in folders)
    return next((tool for tool in tools if os.access(tool, os.X_OK)), None)


def run_script(arguments: list[str], output: Output, is_late: Callable[[], bool]) -> int | None:
    """Run a program that prints into `output`; return its exit status, None if it was late.

    Then it is killed. Mostly the pipe ends when the program does. But a program may close its
    output and go on, or leave a child that holds the pipe open: so pipe and process are watched.
    Raise OSError if it cannot be started.
    """
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        with open(writer, "wb"):  # and no longer: else the pipe would not end when the script does
            process = spawn(arguments, output=writer)
        pause = 0.00001  # seconds to look again, of a program that has closed its output
        ended = 0
        while not ended and not is_late():
            ended, wait_status = os.waitpid(process, os.WNOHANG)
            if select.select([pipe], [], [], 0 if ended else 0.1)[0]:
                received = pipe.read(PIPE_SIZE)  # all that is in it
                output.add(received)
                if not received and not ended:
                    pause = min(2 * pause, 0.1)
                    time.sleep(pause)
    output.add(b"\n")  # which the last line may not have
    if ended:
        return os.waitstatus_to_exitcode(wait_status)
    kill(process)
    return None


def spawn(arguments: list[str], output: int) -> int:
    """Start a program that prints into a file descriptor; return its process id.

    It leads a process group, so that it can be killed with all that it started, and it has the
    signals that a shell would give it: this process blocks some, and Python ignores two.
    """
    actions = [(os.POSIX_SPAWN_DUP2, output, number) for number in (1, 2)]
    actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    signals = {"setsigmask": (), "setsigdef": (signal.SIGPIPE, signal.SIGXFSZ)}
    options = {"file_actions": actions, "setpgroup": 0, **signals}
    return os.posix_spawn(arguments[0], arguments, ENVIRONMENT, **options)


def kill(process: int) -> None:
    """Kill a process that was spawned, and all in its process group."""
    os.kill(process, signal.SIGKILL)
    with suppress(OSError):  # it has left its process group, or ends at this moment
        os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


class Output:
    """What a script prints: the last lines of it, and the beginning of each."""

    def __init__(self, public: Callable[[str], str]) -> None:
        """`public` returns a text without what nobody shall read."""
        self.public = public
        self.lines: deque[str] = deque(maxlen=MAX_OUTPUT // 2)
        self.outcome: re.Match | None = None  # the last line that tells how it went
        self.has_error = False  # Sketch has reported one
        self._rest = b""  # a line that has not ended

    def add(self, received: bytes) -> None:
        """Take what comes next."""
        *lines, rest = (self._rest + received).split(b"\n")
        self._rest = rest[:LINE_SIZE]
        for line in lines:
            for part in unquoted(line[:LINE_SIZE]).split("\n"):
                part = self.public(part)[:MAX_OUTPUT]
                self.lines.append(part)
                self.outcome = re.fullmatch(OUTCOME, part) or self.outcome
                self.has_error = self.has_error or bool(re.match(SKETCH_ERROR, part))

    def text(self) -> str:
        """Return the end of all that was printed."""
        return "\n".join(self.lines).strip()[-MAX_OUTPUT:]

    def answer(self, exit_status: int) -> tuple[str, str]:
        """Return status and output of an answer, when it has ended.

        A failure's exit status may well be 0, so that a line that tells how it went counts more.
        """
        if self.outcome:
            status = "done" if self.outcome[1] == "OK" else "failed"
            return status, self.outcome[2] or ""
        if exit_status == 0 and not self.has_error:
            return "done", self.text() or "The script ran, and did not say what it did."
        silent = f"sketchtool ended with {exit_status} and said nothing. Try it from Sketch's menu."
        return "failed", self.text() or silent


def unquoted(line: bytes) -> str:
    """Return a line as text, and of one that is a JavaScript string what is in its quotes."""
    text = line.decode("utf-8", "replace").rstrip()
    quoted = re.match(QUOTED, text)
    if quoted and (quoted[2] or len(line) == LINE_SIZE):
        # It is written as JSON is, except for the two kinds of quotes.
        string = quoted[1].replace("\\'", "'").replace('"', '\\"')
        try:
            return json.loads(f'"{string}"', strict=False)
        except ValueError:  # it has an escape that only JavaScript knows
            return quoted[1]
    return text


# ---- The bridge ---------------------------------------------------------------------------------

LOCAL_HOST = r"(?i)(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?"


class DialogueHandler(WebSocketHandler):
    """The connection of a dialogue: each message is a click, and each is answered."""

    send_timeout = 0.000001  # seconds: nobody waits for a dialogue that does not read
    refusal = "This is the WebSocket server of a Sketch plugin. Its log says why it refuses this."

    def log(self, sign: str, text: str, suffix: str = "") -> None:
        self.server.log(f"#{self.number} {sign}", text, suffix)

    def check_handshake(self) -> None:
        """Raise ProtocolError unless this can be our dialogue, and has the token.

        A web page has another Origin, except in a sandboxed frame, which has null as a page from
        disk has. One that was made to resolve to this computer (DNS rebinding) has another Host.
        """
        import hmac  # as hashlib is, in the handshake

        host = self.headers["host"]
        origin = self.headers.get("origin")
        require(re.fullmatch(LOCAL_HOST, host), 403, f"Host {host}")
        require(origin in (None, "null", "file://"), 403, f"Origin {origin}")
        super().check_handshake()
        has_token = hmac.compare_digest(self.target, f"/?token={self.server.token}")
        require(has_token, 403, "a wrong token, or none")

    def message_received(self, message: str | bytes) -> None:
        require(isinstance(message, str), 1003, "a binary message")
        message = self.server.public(message)
        self.log("<", message)
        if message not in SCRIPTS:
            sends = f'This button sends "{message[:MAX_LOGGED]}"; SCRIPTS in pebble_ws.py lists no'
            self.answer(
                message, "unknown", f"{sends} such message. Fix one of the two and restart."
            )
        elif not self.server.take(self, message):
            self.answer(message, "busy", f"{MAX_WAITING} clicks are waiting. Try again soon.")

    def answer(self, message: str, status: str, output: str, suffix: str = "") -> None:
        """Tell the log and the dialogue, if it is still there, how a click went."""
        self.log(">", f"{status}: {output}", suffix)
        answer = {"message": message[:MAX_LOGGED], "status": status, "output": output[-MAX_OUTPUT:]}
        with suppress(ConnectionError):  # it has gone
            self.send(json.dumps(answer))


class Bridge(WebSocketServer):
    """What all dialogues share: the token, the log, and Sketch, which runs one script at a time."""

    def __init__(self, port: int, app: str | None, dry_run: bool) -> None:
        """Listen, and run clicks in a Sketch application, if there is one. Raise OSError."""
        super().__init__(("127.0.0.1", port), DialogueHandler)
        self.port = self.server_address[1]
        self.listen_at_ipv6()
        self.app = app
        self.dry_run = dry_run
        self.token = os.urandom(32).hex()
        self.clicks: deque[tuple[DialogueHandler, str]] = deque()  # the first of them is running
        self.stop_time = float("inf")  # by time.monotonic(): whatever still runs then is killed
        self.clicked = threading.Condition()  # held while clicks change
        self.log_file = LogFile()
        self.runner = threading.Thread(target=self.run_clicks, daemon=True)
        self.runner.start()

    def listen_at_ipv6(self) -> None:
        """Listen at ::1 too, if this machine has it: a browser may try either for localhost."""
        try:
            address = ("::1", self.port)
            listener = socket.create_server(address, family=socket.AF_INET6, backlog=128)
            self.other_sockets.append(listener)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                self.server_close()
                raise

    def public(self, text: str) -> str:
        """Return the text without the token."""
        return text.replace(self.token, "[token]")

    def log(self, sign: str, text: str, suffix: str = "") -> None:
        """Write a line to the log, the text shortened: it may come from anywhere."""
        text = self.public(text)
        text = text if len(text) <= MAX_LOGGED else f"{text[: MAX_LOGGED - 1]}…"
        self.log_file.write(sign, f"{text}{suffix}")

    def take(self, dialogue: DialogueHandler, message: str) -> bool:
        """Let a click wait for its turn; return False if too many do."""
        with self.clicked:
            if len(self.clicks) > MAX_WAITING:
                return False
            self.clicks.append((dialogue, message))
            self.clicked.notify()
            return True

    def run_clicks(self) -> None:
        """Run scripts in the order of the clicks: Sketch edits one document on one thread."""
        while True:
            with self.clicked:
                self.clicked.wait_for(lambda: self.clicks or self.is_stopping())
                if not self.clicks:
                    return
                dialogue, message = self.clicks[0]
            if self.is_stopping() or dialogue.state != OPEN:
                dialogue.log("=", f"dropped {message}: nobody is waiting for it any more")
            else:
                self.run_click(dialogue, message)
            with self.clicked:
                self.clicks.popleft()

    def run_click(self, dialogue: DialogueHandler, message: str) -> None:
        """Run the script of a click, and answer it, whatever happens."""
        start = time.monotonic()
        try:
            status, output = self.run(dialogue, message)
        except UserError as error:
            status, output = "failed", str(error)
        except (OSError, ValueError) as error:
            status, output = "failed", f"sketchtool does not start: {error}."
        except Exception:
            status, output = "failed", "An error in pebble_ws.py; the server's window shows it."
            sys.excepthook(*sys.exc_info())
        seconds = time.monotonic() - start
        dialogue.answer(message, status, output, f" ({seconds * 1000:.0f} ms)")

    def run(self, dialogue: DialogueHandler, message: str) -> tuple[str, str]:
        """Run the script of a click; return status and output. Raise UserError or OSError."""
        bundle, identifier = find_command(message)
        if self.dry_run:
            return "dry run", f"Sketch would run {identifier} of {os.path.basename(bundle)}."
        tool = sketchtool(self.app) if self.app else None
        if not tool:
            raise UserError(NO_SKETCH)

        arguments = [tool, "run", bundle, identifier, "--without-activating"]
        deadline = time.monotonic() + SCRIPT_TIMEOUT
        is_late = lambda: time.monotonic() > min(deadline, self.stop_time)  # noqa: E731
        output = Output(self.public)
        exit_status = run_script(arguments, output, is_late)
        if exit_status is None:
            return "failed", f"{output.text()}\n{TOO_LATE}".strip()
        for line in list(output.lines)[-MAX_LOGGED_LINES:]:
            if line and output.outcome and line is not output.outcome.string:
                dialogue.log("|", line)
        return output.answer(exit_status)

    def is_stopping(self) -> bool:
        """Return whether no more clicks are run."""
        return self.stop_time < float("inf")

    def stop(self) -> str:
        """Run no more clicks; return a text that tells what is running, if something is."""
        with self.clicked:
            self.stop_time = time.monotonic() + STOP_TIMEOUT
            self.clicked.notify()
            if not self.clicks:
                return ""
            message = self.clicks[0][1]
            return f": {message} may run for {STOP_TIMEOUT} s more; Ctrl-C again ends at once"


class LogFile:
    """The log on standard output. Nothing waits for its reader.

    A thread of its own writes it, the only one that a terminal (Ctrl-S) or a full pipe can hold up.
    Meanwhile the lines wait; those for which there is no room are dropped.
    """

    def __init__(self) -> None:
        self.has_colour = os.isatty(1) and not os.environ.get("NO_COLOR")
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.writer = threading.Thread(target=self.write_lines, daemon=True)
        self.writer.start()

    def write(self, sign: str, text: str) -> None:
        """Add a line, with the time before it, and with what is not printable escaped."""
        line = f"{time.strftime('%H:%M:%S')} {sign} {printable(text)}"
        if self.has_colour and sign.endswith("!"):
            line = f"\x1b[1;31m{line}\x1b[0m"
        if self.lines.qsize() < MAX_UNWRITTEN:
            self.lines.put(f"{line}\n".encode(errors="backslashreplace"))

    def write_lines(self) -> None:
        """Write what is added, until b"" is. What cannot be written is lost, but not the rest."""
        while line := self.lines.get():
            with suppress(OSError):
                while line:
                    select.select([], [1], [])  # it may be nonblocking
                    line = line[os.write(1, line) :]

    def close(self) -> None:
        """Give what was added a second to be written."""
        self.lines.put(b"")
        self.writer.join(1)


def printable(text: str) -> str:
    """Return the text in one line, with what is not printable escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# ---- Command line -------------------------------------------------------------------------------

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
SESSION = f"{BUNDLE}/Contents/Resources/session.js"
PLUGINS = "~/Library/Application Support/com.bohemiancoding.sketch3/Plugins"

EXAMPLES = """
Without arguments it starts the server of the plugin that it belongs to. Where there can be no
Sketch, because this is not macOS, that is a dry run: it answers which script would run.

examples:  python3 pebble_ws.py --dry-run
           python3 pebble_ws.py --sketch "$HOME/Applications/Sketch Beta.app"
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status. Bad arguments exit with argparse's usage."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until serve waits for them
    try:
        if not hasattr(os, "waitstatus_to_exitcode"):
            version = sys.version.split()[0]
            raise UserError(f"This is Python {version}. Start pebble_ws.py with 3.9 or newer.")
        options = parse_arguments(argv)
        if not os.path.isdir(BUNDLE):
            raise UserError("Keep pebble_ws.py in a plugin's Contents/Sketch, or beside plugin/.")
        if options.install is None:
            app = options.sketch and os.path.abspath(options.sketch)
            serve(options.port, app, options.dry_run)
        else:
            install(os.path.expanduser(options.install))
        return 0
    except (UserError, OSError) as error:
        print(f"pebble_ws.py: {printable(str(error))}", file=sys.stderr)
        return 1
    finally:
        for number in signal.sigpending() & STOP_SIGNALS:
            signal.sigwait({number})  # it came when this was about to end anyway
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the options: port, sketch, dry_run, install."""
    about = "Run a Sketch plugin's CocoaScripts from the buttons of its HTML panel."
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("pebble_ws.py", None, about, EXAMPLES, formatter_class=layout)
    add = parser.add_argument
    add("--port", type=int, help=f"where to listen (default: {DEFAULT_PORT}, else any free port)")
    add("--sketch", metavar="APP", help="the Sketch application to use (default: the newest)")
    add("--dry-run", action="store_true", help="run no script; answer which one would run")
    text = "copy the plugin and this file into FOLDER (default: Sketch's plugins folder), then exit"
    add("--install", metavar="FOLDER", nargs="?", const=PLUGINS, help=text)
    add("--version", action="version", version=f"pebble_ws.py {__version__}")
    options = parser.parse_args(argv)
    if not 0 <= (options.port or 0) <= 65_535:
        parser.error("--port takes a number from 0 to 65535")
    return options


def serve(port: int | None, app: str | None, dry_run: bool) -> None:
    """Run until a signal stops it. Raise UserError if it cannot start."""
    if app is not None and not (app.endswith(".app") and sketchtool(app)):
        raise UserError(f"{app} is not a Sketch app. Give --sketch the path of Sketch.app.")
    dry_run = dry_run or (app is None and sys.platform != "darwin")  # Sketch is for macOS only
    app = app if app or dry_run else find_sketch()
    fill_standard_streams()
    with ExitStack() as at_end:  # what is put on it is done at the end, the last first
        set_signal(signal.SIGCHLD, signal.SIG_DFL, at_end)  # ignored, it hides how a script ends
        lock(BUNDLE, at_end)
        bridge = at_end.enter_context(listen(port, app, dry_run))
        at_end.callback(bridge.log_file.close)
        at_end.callback(bridge.stop)
        session = write_session(bridge)
        at_end.callback(remove_session, session)
        log_what_clicks_will_do(bridge)
        threading.Thread(target=bridge.serve_forever, daemon=True).start()
        bridge.log("=", f"listening on ws://localhost:{bridge.port} (Ctrl-C stops it)")

        signals = {each for each in STOP_SIGNALS if signal.getsignal(each) != signal.SIG_IGN}
        while signal.sigwait(signals) not in signals:
            pass  # on macOS it can return after Ctrl-Z and fg
        remove_session(session)  # first of all, so that no dialogue comes back
        bridge.log("=", f"stopping{bridge.stop()}")
        bridge.shutdown()
        bridge.go_away()
        for each in signals:
            set_signal(each, signal.SIG_DFL, at_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)  # a second one ends this at once
        bridge.runner.join(STOP_TIMEOUT + 1)
        bridge.server_close()
        bridge.log("=", "stopped")
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # what is left takes a second at most


def fill_standard_streams() -> None:
    """Open /dev/null for those that are closed: otherwise a socket would get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def set_signal(number: int, action: object, at_end: ExitStack) -> None:
    """Set what a signal does, until `at_end` is done."""
    at_end.callback(signal.signal, number, signal.signal(number, action))


def lock(bundle: str, at_end: ExitStack) -> None:
    """Hold a bundle's lock until `at_end` is done; the system drops it with the process.

    Raise UserError if a server has it.
    """
    try:
        descriptor = os.open(f"{bundle}/Contents/Resources", os.O_RDONLY)
        at_end.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError("The plugin's server is running already. Stop it with Ctrl-C.") from None
    except OSError:
        pass  # there is nothing to lock, or the file system knows no locks


def listen(port: int | None, app: str | None, dry_run: bool) -> Bridge:
    """Return a bridge at a port: with 0, or where the default is taken, any. Raise UserError."""
    # Twice any: one that is free at 127.0.0.1 may be taken at ::1.
    for candidate in [DEFAULT_PORT, 0, 0] if port is None else [port]:
        try:
            return Bridge(candidate, app, dry_run)
        except OSError as error:
            problem = error.strerror
    raise UserError(f"Port {candidate} cannot be used: {problem}. Leave out --port for another.")


def log_what_clicks_will_do(bridge: Bridge) -> None:
    """Tell of a dry run, a missing Sketch, and what is wrong with the plugin."""
    if bridge.dry_run:
        from pathlib import Path

        bridge.log("=", "dry run: no script runs; a click is answered with what Sketch would run")
        for page in Path(BUNDLE).glob("Contents/Resources/*.html"):
            bridge.log("=", "to try it, open", f" {page.as_uri()}")
    elif not bridge.app:
        bridge.log("!", NO_SKETCH)
    if not IS_INSTALLED and os.path.isdir(os.path.expanduser(f"{PLUGINS}/pebble.sketchplugin")):
        bridge.log("!", "Sketch uses the installed copy, not this: choose start-webservice there.")
    for mistake in find_mistakes():
        bridge.log("!", mistake)


def write_session(bridge: Bridge) -> str:
    """Write the file that tells dialogues port and token: in one step, for its user only.

    Return its text. Raise UserError.
    """
    session = {"port": bridge.port, "token": bridge.token, "dryRun": bridge.dry_run}
    text = f"window.pebbleSession = {json.dumps(session)};\n"
    new = f"{SESSION}.{os.getpid()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        os.replace(new, SESSION)
    except OSError as error:
        with suppress(OSError):
            os.remove(new)
        problem = f"Contents/Resources/session.js cannot be written: {error.strerror}"
        raise UserError(f"{problem}. Fix that, or install a copy with --install.") from None
    return text


def remove_session(text: str) -> None:
    """Remove the session file, if it is still the one with this text."""
    with suppress(OSError, ValueError), open(SESSION) as file:
        if file.read() == text:
            os.remove(SESSION)


def install(folder: str) -> None:
    """Copy the plugin with this file into a folder; move an earlier copy aside. Raise UserError."""
    import shutil

    if not os.path.isdir(folder):
        raise UserError(f"There is no folder {folder}. Install Sketch first, or name another one.")
    target = os.path.join(os.path.abspath(folder), os.path.basename(BUNDLE))
    paths = [os.path.realpath(path) for path in (target, BUNDLE)]
    if os.path.commonpath(paths) in paths:  # they are one, or one lies in the other
        raise UserError(f"{target} is this very copy. Name another folder.")
    with ExitStack() as at_end:
        lock(target, at_end)

    before = target[: -len("sketchplugin")] + "before"  # a name that Sketch does not load
    is_update = os.path.lexists(target)
    new = f"{target}.new"
    try:
        copy_plugin(new)
        if is_update:
            shutil.rmtree(before, ignore_errors=True)
            os.rename(target, before)
        os.rename(new, target)
    except OSError as error:
        if is_update and not os.path.lexists(target):
            os.rename(before, target)
        shutil.rmtree(new, ignore_errors=True)
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise UserError(f"{target} cannot be written: {reason}. Fix that.") from None

    with suppress(AttributeError):  # a stand-in for stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # any name, whatever the locale
    print(printable(f"Copied the plugin, with pebble_ws.py, to {target}."))
    if is_update:
        print(printable(f"The earlier copy, with everything you changed in it, is now {before}."))
    print("Next: restart Sketch and, in the plugin's menu, choose start-webservice.")


def copy_plugin(target: str) -> None:
    """Copy the bundle and this file, so that their user can change them. Raise OSError."""
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("session.js*", "pebble_ws.py", "__pycache__", ".DS_Store")
    shutil.copytree(BUNDLE, target, ignore=ignored, copy_function=shutil.copyfile)
    for folder, _, names in os.walk(target):
        os.chmod(folder, 0o755)
        for name in names:
            if name.endswith(".command"):
                os.chmod(f"{folder}/{name}", 0o755)
    shutil.copyfile(__file__, f"{target}/Contents/Sketch/pebble_ws.py")


if __name__ == "__main__":
    # Whoever presses Ctrl-C once more, when main has ended, shall see no traceback.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
