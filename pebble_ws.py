#!/usr/bin/env python3
"""Run a Sketch plugin's CocoaScripts from the buttons of its HTML dialogue.

    python3 pebble_ws.py             start the server; Ctrl-C stops it
    python3 pebble_ws.py --install   copy the plugin and this file into Sketch's plugins folder

The dialogue connects by WebSocket; a click sends one text message; the server runs the script that
SCRIPTS, below, names for it, as if it had been chosen from the plugin menu, and answers how it went.

To add a button: a `button` with a data-message in Resources/pebble-dialogue.html, a script with its
command in Sketch/manifest.json, and a line in SCRIPTS.

What keeps others out: only this computer can connect, only with the token that is made anew at each
start and lies in a file that only its user can read, and never from a web page. A message is looked
up whole: nothing that comes from the network is ever a path, an argument or code.

The file reads in the order in which things happen to a connection, which is that of RFC 6455:
configuration, opening handshake (4), frames (5), messages and close (5.4, 5.5, 7), scripts, the
bridge between both, command line. Numbers in brackets are the sections of the RFC. WebSocketHandler
and WebSocketServer know nothing of Sketch and can be used alone.

Threads: one accepts for each loopback address, one reads each connection, one sends each dialogue's
answers, so that a dialogue which does not read holds up only itself, and one runs the scripts. Every
wait has a limit but two: for a dialogue's next message and for the next click.

Four kinds of failure are expected: a HandshakeError gets an HTTP status, a ProtocolError a close
code, a lost peer a line in the log, a ScriptError an answer. A traceback is a bug in this file.
"""

from __future__ import annotations

import binascii
import codecs
import enum
import errno
import functools
import importlib
import itertools
import os
import queue
import re
import select
import socket
import socketserver
import struct
import sys
import threading
import time

# The other modules are imported where they are used: the port is open before they are loaded.

__version__ = "1.0.0"

# ---- Configuration -------------------------------------------------------------------------------

# Message text: the CocoaScript that it runs. In order to add one, write the script into the plugin's
# Contents/Sketch folder, name it in manifest.json (a command with its "script"), give a button in
# pebble-dialogue.html the message as its data-message, and restart the server. A path is relative to
# the Contents/Sketch folder; an absolute one may name a script of any other plugin bundle.
SCRIPTS = {
    "rotate": "rotate.cocoascript",
    "duplicate": "rotate-duplicate.cocoascript",
    "undo": "undo.cocoascript",
    "set-time": "set-time.cocoascript",
}

SCRIPT_TIMEOUT = 60  # seconds; then a script is killed, lest one that hangs holds all that follow
STOP_TIMEOUT = 10  # seconds that a running script has to end when the server is stopped
MAX_WAITING = 16  # clicks behind the one that runs; more would only repeat what nobody waits for
MAX_OUTPUT = 4_000  # characters of a script's output in an answer: what a person may read
OUTPUT_KEPT = 65_536  # bytes of a script's output held in memory, of endless output the last

MAX_CONNECTIONS = 200  # macOS gives a process 256 file descriptors
MAX_LINGERING = 32  # refused connections, beyond MAX_CONNECTIONS, that may still read their refusal
MAX_HEAD = 8_192  # bytes of an opening handshake; a browser's has some 500
HEAD_TIMEOUT = 10  # seconds for a complete opening handshake
SEND_TIMEOUT = 7  # seconds that a send may wait; one that got half way waits twice
CLOSE_TIMEOUT = 5  # seconds for a peer to answer our Close
LINGER_TIMEOUT = 2  # seconds for what is on its way to us when we drop TCP
RECEIVE_SIZE = 65_536  # bytes read at a time, and gathered at most before they are sent

# ---- Opening handshake (4) -----------------------------------------------------------------------

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ONLY_ONCE = {"host", "origin", "sec-websocket-key", "sec-websocket-version"}


class HandshakeError(Exception):
    """An opening handshake to be refused with this HTTP status, and `body` for who asked."""

    def __init__(self, status: int, reason: str, body: str | None = None) -> None:
        super().__init__(reason)
        self.status, self.body = status, body or reason


def read_head(request: socket.socket) -> tuple[bytes, bytes]:
    """Return the head of an HTTP request, in bytes, and what came behind it.

    Raise HandshakeError 431 past MAX_HEAD and 408 past HEAD_TIMEOUT, ConnectionError at the end.
    """
    data, deadline = b"", time.monotonic() + HEAD_TIMEOUT
    while True:
        end = data.find(b"\r\n\r\n")
        if max(end + 4, len(data) if end < 0 else 0) > MAX_HEAD:
            raise HandshakeError(431, f"a head of more than {MAX_HEAD} bytes")
        if end >= 0:
            return data[:end], data[end + 4 :]
        try:
            # At least a moment: with 0 the socket would not wait at all, but raise another error.
            request.settimeout(max(deadline - time.monotonic(), 0.001))
            received = request.recv(RECEIVE_SIZE)
        except socket.timeout:
            raise HandshakeError(408, f"no complete head within {HEAD_TIMEOUT} s") from None
        if not received:
            raise ConnectionError("left before its handshake")
        data += received


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """Return the request's target and its headers by their names in lower case (4.2.1).

    Raise HandshakeError 400 if the head is not HTTP/1.1 or names a header twice that may be there
    but once, 405 if it is no GET. A target that is an absolute URL is refused: it would name a host
    beside Host, and no client of a loopback server needs it.
    """
    if re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n", head):
        raise HandshakeError(400, "a control character in the head")
    request_line, *lines = head.decode("latin-1").split("\r\n")
    parts = re.fullmatch(r"([!-~]+) ([!-~]+) HTTP/1\.[1-9]", request_line)
    if not parts:
        raise HandshakeError(400, "the first line is no request of HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not name or not colon or name.strip(TOKEN_CHARACTERS):
            raise HandshakeError(400, "a line of the head is no header")
        name, value = name.lower(), value.strip(" \t")
        if name in ONLY_ONCE and name in headers:
            raise HandshakeError(400, f"more than one {name}")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    method, target = parts.groups()
    if method != "GET":
        raise HandshakeError(405, "the method is not GET")
    if not target.startswith("/"):
        raise HandshakeError(400, "the target is no path")
    if "host" not in headers:
        raise HandshakeError(400, "no Host")
    return target, headers


def check_websocket(headers: dict[str, str]) -> None:
    """Raise HandshakeError 426 if the request is not for WebSocket 13, 400 if its key is none."""
    upgrade, connection = (
        {item.strip().lower() for item in headers.get(name, "").split(",")}
        for name in ("upgrade", "connection")
    )
    if "websocket" not in upgrade or "upgrade" not in connection:
        raise HandshakeError(
            426, "not a WebSocket request", "This is a WebSocket server for the plugin's dialogue."
        )
    if headers.get("sec-websocket-version") != "13":
        raise HandshakeError(426, "not WebSocket version 13")
    key = headers.get("sec-websocket-key", "")
    try:
        # a2b_base64 passes over what is not base64: of 24 characters, all must count to make 16.
        valid = len(key) == 24 and len(binascii.a2b_base64(key.encode("latin-1"))) == 16
    except binascii.Error:
        valid = False
    if not valid:
        raise HandshakeError(400, "Sec-WebSocket-Key is not 16 bytes in base64")


def accept_key(key: str) -> str:
    """Return Sec-WebSocket-Accept for a Sec-WebSocket-Key (4.2.2)."""
    import hashlib

    return binascii.b2a_base64(hashlib.sha1(key.encode() + GUID).digest(), newline=False).decode()


def refusal(error: HandshakeError) -> bytes:
    """Return the HTTP response that refuses a handshake."""
    from http import HTTPStatus

    extra = {405: "Allow: GET\r\n", 426: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"}
    body = f"{error.body}\n".encode()
    return (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{extra.get(error.status, '')}"
        f"Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


# ---- Frames (5) ----------------------------------------------------------------------------------
#
#     first byte: FIN 1 bit | RSV 3 | opcode 4
#     second byte: MASK 1 bit | length 7: 0 to 125, or 126: it follows in 2 bytes, 127: in 8
#     [length, 2 or 8 bytes] | [masking-key, 4 bytes, from a client always] | payload        (5.2)


class Opcode(enum.IntEnum):
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(enum.IntEnum):
    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never sent: a Close without a code (7.1.5)
    ABNORMAL = 1006  # never sent: a connection lost without a Close
    INVALID_PAYLOAD = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = map(int, Opcode)  # plain: these are compared often
FIN = 0x80
FIRST_BYTES = {CONTINUATION, TEXT, BINARY} | {FIN | opcode for opcode in Opcode}  # no RSV bit (5.2),
# no reserved opcode (5.2), no control frame in fragments (5.5)

WORDS = RECEIVE_SIZE // 2
ONES = int.from_bytes(b"\1\0\0\0" * WORDS, "little")  # times a masking-key: the key, WORDS times


class ProtocolError(Exception):
    """A connection to be failed with this close code (7.1.7)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def read_frames(receive, max_message_size: int, data: bytes = b""):
    """Yield (opcode, payload, end of message, whether more is here) for all that a peer sends.

    `receive` returns some more bytes. A long frame of which only a part is here is yielded as the
    fragments that it might as well have been (5.4), so that whoever reads sees each byte once it is
    here. What is yielded is in order: a continuation always continues something. Raise
    ProtocolError at the first byte that no peer may send, or 1009 once a message gets too long.
    """
    at, size = 0, None  # where the next frame begins in data; of the message so far, None: none yet
    while True:
        head = frame_head(data, at)
        while not head:
            data, at = data[at:] + receive(), 0
            head = frame_head(data, at)
        first, length, key, at = head
        opcode, fin = first & 0x0F, first >= FIN
        if opcode < CLOSE:
            if (opcode == CONTINUATION) is (size is None):
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a fragment out of order")
            size = length + (size or 0)
            if size > max_message_size:
                raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {max_message_size} bytes")
            while at + length > len(data):
                part = data[at:]
                yield opcode, unmask(part, key), False, False
                opcode, length, at = CONTINUATION, length - len(part), 0
                key = (key * 2)[len(part) % 4 :][:4]
                data = receive()
            if fin:
                size = None
        while at + length > len(data):
            data, at = data[at:] + receive(), 0
        payload, at = data[at : at + length], at + length
        yield opcode, unmask(payload, key), fin, at < len(data)


def frame_head(data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    """Return (first byte, payload's length, masking-key, where the payload begins) of the frame.

    None if the head is not all here. Raise ProtocolError if a client may not send it.
    """
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    if first not in FIRST_BYTES:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, f"a reserved bit or opcode, or a control frame in parts: {first:#x}")
    if second < 0x80:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a frame without a mask")  # (5.1)
    length, at = second & 0x7F, at + 6
    if length > 125:
        if first & 0x0F >= CLOSE:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a control frame of more than 125 bytes")  # (5.5)
        size, least = (2, 126) if length == 126 else (8, 65_536)
        length = int.from_bytes(data[at - 4 : at - 4 + size], "big")
        at += size
        if len(data) >= at and not least <= length < 1 << 63:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a length in more bytes than it needs, or over 63 bits")  # (5.2)
    if len(data) < at:
        return None
    return first, length, data[at - 4 : at], at


def unmask(payload: bytes, key: bytes) -> bytes:
    """Return the payload with the masking-key removed, or put on (5.3): as one number, in C."""
    size = len(payload)
    words = (size + 3) // 4
    mask = int.from_bytes(key, "little") * (ONES >> 32 * (WORDS - words))
    return (int.from_bytes(payload, "little") ^ mask).to_bytes(4 * words, "little")[:size]


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole frame as a server sends it: final and without a mask (5.1)."""
    size = len(payload)
    if size < 126:
        return bytes((FIN | opcode, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", FIN | opcode, 126, size) + payload
    return struct.pack("!BBQ", FIN | opcode, 127, size) + payload


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a Close (5.5.1). Raise ValueError if it may not be sent."""
    payload = b"" if code == CloseCode.NO_STATUS else struct.pack("!H", code) + reason.encode()
    if payload and not is_close_code(code) or len(payload) > 125:
        raise ValueError(f"not to be sent in a Close: {code} {reason!r}")
    return payload


def parse_close(payload: bytes) -> int:
    """Return the code of a Close, 1005 if it has none. Raise ProtocolError if it is not in order."""
    if not payload:
        return CloseCode.NO_STATUS
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not is_close_code(code):
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a Close whose code is not allowed")
    decode(payload[2:])
    return code


def is_close_code(code: int) -> bool:
    """Tell whether a Close may carry this code (7.4): registered, or of an application."""
    return 1000 <= code <= 1014 and code not in (1004, 1005, 1006) or 3000 <= code <= 4999


def decode(payload: bytes, decoder=None, final: bool = True) -> str:
    """Return the text of a payload, with a decoder of a part. Raise ProtocolError 1007 (8.1)."""
    try:
        return decoder.decode(payload, final) if decoder else str(payload, "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_PAYLOAD, "text that is not UTF-8") from None


# ---- Messages and close (5.4, 5.5, 7) ------------------------------------------------------------


class WebSocketHandler(socketserver.BaseRequestHandler):
    """One connection of a WebSocketServer. A subclass says what to do with a message."""

    max_message_size = 1 << 20  # bytes; a longer message is closed with 1009

    def message_received(self, message: str | bytes) -> None:
        """Do something with a message: str for text, bytes for binary.

        What is sent here in answer to messages that arrived together leaves together, after the
        last of them: work that takes long belongs into a thread.
        """
        raise NotImplementedError

    def check_handshake(self) -> None:
        """Raise HandshakeError if self.target and self.headers are not welcome."""
        check_websocket(self.headers)

    def opened(self) -> None:
        """Do something once the connection is open."""

    def log(self, direction: str, text: str) -> None:
        """Note what happened: "=" opened or closed, "!" refused or failed."""

    def send(self, message: str | bytes) -> None:
        """Send a text or a binary message, from any thread.

        Raise ConnectionError if the connection is closing or lost. A peer that does not read holds
        the caller for twice SEND_TIMEOUT at most; then the connection is dropped.
        """
        if isinstance(message, str):
            self._write(frame(TEXT, message.encode()))
        else:
            self._write(frame(BINARY, message))

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Start the closing handshake (7.1.2), from any thread, and return at once.

        Raise ValueError for a code or a reason that may not be sent, ConnectionError as send does.
        """
        self._write(frame(CLOSE, close_payload(code, reason)), closing=code)
        self._closing_timer = threading.Timer(CLOSE_TIMEOUT, self._drop)
        self._closing_timer.daemon = True
        self._closing_timer.start()

    def setup(self) -> None:
        self._sending = threading.Lock()  # for these three
        self._outgoing = bytearray()  # frames that wait to leave together
        self._gathering = False  # whether they do
        self._closing: int | None = None  # the code of the Close that we sent
        self._closing_timer: threading.Timer | None = None

    def handle(self) -> None:
        """Live the life of the connection. What can end it is decided here, each kind once."""
        try:
            received = self._open()
            self.opened()
            self.log("=", f"closed {self._exchange_messages(received):d}")
        except HandshakeError as error:
            self._refuse(error)
        except ProtocolError as error:
            self._fail(error.code, str(error))
        except ConnectionError as error:
            self.log("=", f"closed {self._closing or CloseCode.ABNORMAL:d}: {error}")
        except Exception:
            self._fail(CloseCode.INTERNAL_ERROR, "an error in this program")
            raise

    def _open(self) -> bytes:
        """Complete the opening handshake; return what has come behind it."""
        if self.request not in self.server.connections:
            raise HandshakeError(503, f"{self.server.max_connections} connections are open already")
        head, received = read_head(self.request)
        self.target, self.headers = parse_head(head)
        self.check_handshake()
        try:
            self.request.settimeout(None)
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            # No limit in Python: that would be one for receiving too, and slow down each call.
            limit = struct.pack("ll", SEND_TIMEOUT, 0)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        except OSError as error:  # macOS: the peer has gone
            raise ConnectionError(error.strerror) from None
        accept = accept_key(self.headers["sec-websocket-key"])
        self.request.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
        )
        return received

    def _refuse(self, error: HandshakeError) -> None:
        """Answer an opening handshake with its refusal."""
        self.log("!", f"refused {error.status}: {error}")
        try:
            self.request.sendall(refusal(error))
        except OSError:
            pass  # it has gone, without waiting for its refusal

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (7.1.7): all answers up to here, then a Close."""
        self.log("!", f"closed {code:d}: {reason}")
        try:
            self._write(frame(CLOSE, close_payload(code, reason)), closing=code)
        except ConnectionError:
            pass  # it has gone, or has its Close already

    def _exchange_messages(self, received: bytes) -> int:
        """Receive messages until the closing handshake is complete; return its close code."""
        for opcode, payload, final, more in read_frames(
            self._receive, self.max_message_size, received
        ):
            if more:
                self._gathering = True
            if opcode == CLOSE:
                break  # what comes after it is not read (5.5.1)
            if self._closing is not None:
                continue  # nor is anything but a Close, once we have sent ours
            if opcode == TEXT and final:
                self.message_received(decode(payload))
            elif opcode == BINARY and final:
                self.message_received(payload)
            elif opcode == PING:
                self._write(frame(PONG, payload))  # (5.5.2)
            elif opcode != PONG:  # (5.5.3)
                self._add_fragment(opcode, payload, final)
        code = parse_close(payload)
        if self._closing is not None:
            return self._closing
        self._write(frame(CLOSE, close_payload(code)), closing=code)
        return code

    def _add_fragment(self, opcode: int, payload: bytes, final: bool) -> None:
        """Add a fragment to its message (5.4)."""
        if opcode != CONTINUATION:
            self._fragments = bytearray()
            self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None
        self._fragments += payload
        if self._decoder:
            decode(payload, self._decoder, final)  # only to fail at the first wrong byte
        if final:
            message, self._fragments = self._fragments, bytearray()
            self.message_received(decode(message) if self._decoder else bytes(message))

    def _receive(self) -> bytes:
        """Return some more of what the peer sends, waiting for it, with nothing left unsent."""
        if self._gathering:
            with self._sending:
                self._gathering = False
                self._send_all(self._outgoing)
                self._outgoing = bytearray()
        try:
            received = self.request.recv(RECEIVE_SIZE)
        except OSError as error:
            raise ConnectionError(error.strerror) from None
        if not received:
            raise ConnectionError("gone without a Close")
        return received

    def _write(self, frame: bytes, closing: int | None = None) -> None:
        """Send a frame, or have it leave with others; a Close, with the code `closing`, at once."""
        with self._sending:
            if self._closing is not None:
                raise ConnectionError("closing")  # nothing follows a Close (5.5.1)
            self._closing = closing
            if self._gathering:
                self._outgoing += frame
                if len(self._outgoing) < RECEIVE_SIZE and closing is None:
                    return
                frame, self._outgoing = self._outgoing, bytearray()
            self._send_all(frame)

    def _send_all(self, data: bytes) -> None:
        try:
            self.request.sendall(data)
        except OSError as error:
            self._drop()
            timed_out = isinstance(error, BlockingIOError)
            reason = "it does not read what it is sent" if timed_out else error.strerror
            raise ConnectionError(reason) from None

    def _drop(self) -> None:
        """Wake whoever reads or writes: the connection has come to its end."""
        try:
            self.request.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone already

    def finish(self) -> None:
        """Drop TCP (7.1.1): tell the peer at once, then let arrive what is on its way.

        Bytes that nobody reads would make the kernel send a reset, which can overtake our Close.
        """
        if self._closing_timer:
            self._closing_timer.cancel()
        if not self.server.may_linger(self.request):
            return
        deadline = time.monotonic() + LINGER_TIMEOUT
        try:
            self.request.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.request.settimeout(left)
                if not self.request.recv(RECEIVE_SIZE):
                    break
        except OSError:
            pass  # gone, or still sending after all that time


class WebSocketServer(socketserver.ThreadingTCPServer):
    """A server whose connections are WebSocketHandlers, each in a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    max_connections = MAX_CONNECTIONS  # one more is refused with 503

    def __init__(self, server_address, RequestHandlerClass, bind_and_activate=True) -> None:
        self.connections: set[socket.socket] = set()
        self.refused: set[socket.socket] = set()
        if ":" in server_address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)

    def process_request(self, request, client_address) -> None:
        """Start the connection's thread; when too many linger, refuse it without one."""
        if len(self.connections) < self.max_connections:
            self.connections.add(request)
        elif len(self.refused) < MAX_LINGERING:
            self.refused.add(request)
        else:
            return self.process_request_thread(request, client_address)
        return super().process_request(request, client_address)

    def may_linger(self, request) -> bool:
        """Tell whether the connection has a thread of its own to wait in."""
        return request in self.connections or request in self.refused

    def shutdown_request(self, request) -> None:
        super().shutdown_request(request)
        self.connections.discard(request)
        self.refused.discard(request)


# ---- Scripts -------------------------------------------------------------------------------------


class ScriptError(Exception):
    """A script that cannot run, or did not end: the text tells a person what to do."""


class SetupError(Exception):
    """A server that cannot start: the text tells a person what to do."""


def plugin_folder() -> str:
    """Return the plugin's Contents/Sketch folder. Raise SetupError if there is none."""
    here = os.path.dirname(os.path.abspath(__file__))
    checkout = os.path.join(here, "plugin", "pebble.sketchplugin", "Contents", "Sketch")
    for folder in (here, checkout):
        if os.path.isfile(os.path.join(folder, "manifest.json")):
            return folder
    raise SetupError(
        f"No plugin beside {os.path.join(here, 'pebble_ws.py')}: keep the file beside the folder "
        "plugin/, or in the plugin's Contents/Sketch folder."
    )


def find_command(script: str) -> tuple[str, str]:
    """Return the plugin bundle that a CocoaScript lies in, and the identifier of its command.

    Raise ScriptError if there is no such script, bundle or command. The manifest is read each time,
    so that mending it needs no restart.
    """
    import json

    if not os.path.isfile(script):
        raise ScriptError(f"There is no script {script}. Put it there, or mend SCRIPTS.")
    bundle = os.path.dirname(script)
    while not bundle.endswith(".sketchplugin"):
        bundle, inner = os.path.dirname(bundle), bundle
        if bundle == inner:
            raise ScriptError(f"{script} lies in no .sketchplugin bundle. Move it into one.")
    folder = os.path.join(bundle, "Contents", "Sketch")
    manifest = os.path.join(folder, "manifest.json")
    try:
        with open(manifest, encoding="utf-8") as file:
            commands = json.load(file)["commands"]
        for command in commands:
            if os.path.normpath(os.path.join(folder, command.get("script", ""))) == script:
                return bundle, str(command["identifier"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ScriptError(f"Cannot read {manifest}: {error!r}. Mend it.") from None
    raise ScriptError(f"{manifest} has no command with the script {script}. Add one.")


def find_sketch() -> str | None:
    """Return the newest Sketch.app that macOS knows, None if there is none."""
    import plistlib
    import subprocess

    def version(app: str) -> list[int]:
        try:
            with open(os.path.join(app, "Contents", "Info.plist"), "rb") as file:
                return [int(part) for part in plistlib.load(file)["CFBundleVersion"].split(".")]
        except Exception:  # whatever is wrong with a property list, another app is better
            return []

    query = "kMDItemCFBundleIdentifier == 'com.bohemiancoding.sketch3'"
    try:
        found = subprocess.run(
            ["mdfind", query], stdin=subprocess.DEVNULL, capture_output=True, timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        found = b""
    apps = [app for app in os.fsdecode(found).splitlines() if sketchtool(app)]
    default = "/Applications/Sketch.app"
    return max(apps, key=version) if apps else default if sketchtool(default) else None


def sketchtool(app: str) -> str | None:
    """Return the path of a Sketch application's command line tool, None if it has none."""
    for parts in (("MacOS",), ("Resources", "sketchtool", "bin")):  # the latter before 2020
        tool = os.path.join(app, "Contents", *parts, "sketchtool")
        if os.access(tool, os.X_OK) and os.path.isfile(tool):
            return tool
    return None


def run_command(arguments: list[str], seconds_left) -> tuple[int, bytes]:
    """Return a program's exit status, negative for a signal, and the end of what it printed.

    It has no input, none of our files, and a process group of its own, which is killed when
    seconds_left() are none. Raise ScriptError then, and if it cannot be started.
    """
    import signal
    import subprocess

    started = time.monotonic()
    try:
        process = subprocess.Popen(
            arguments,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ScriptError(f"Cannot start {arguments[0]}: {error}.") from None
    output, status = b"", None
    with process.stdout:
        # Its output ends with the program, unless a child of its own goes on: look now and then.
        while status is None and seconds_left() > 0:
            if select.select([process.stdout], [], [], 0.1)[0]:
                received = process.stdout.read(RECEIVE_SIZE)
                output = (output + received)[-OUTPUT_KEPT:]
                if received:
                    continue
                try:
                    status = process.wait(max(seconds_left(), 0))
                except subprocess.TimeoutExpired:
                    break
            else:
                status = process.poll()
    if status is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass  # it ended at this moment
        process.wait()
        seconds = time.monotonic() - started
        raise ScriptError(f"Killed after {seconds:.0f} s: the script did not end. Has it an alert?")
    return status, output


def outcome(status: int, output: bytes) -> tuple[str, str]:
    """Return an answer's status and output for a program's: its last line decides, OK or ERROR."""
    text = output.decode("utf-8", "replace").strip()
    word, _, rest = text.rpartition("\n")[2].strip().partition(" ")
    if word in ("OK", "ERROR"):
        return "done" if word == "OK" else "failed", rest.strip()[:MAX_OUTPUT]
    if status == 0:
        return "done", text[-MAX_OUTPUT:]
    end = f"exit status {status}" if status > 0 else f"signal {-status}"
    return "failed", text[-MAX_OUTPUT:] or f"sketchtool printed nothing and ended with {end}."


# ---- The bridge ----------------------------------------------------------------------------------


class DialogueHandler(WebSocketHandler):
    """The connection of one dialogue: its messages are clicks, and each is answered."""

    def setup(self) -> None:
        super().setup()
        self.bridge: Bridge = self.server.bridge
        self.number = next(self.bridge.numbers)
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()  # what others want done: functions

    def log(self, direction: str, text: str, end: str = "") -> None:
        self.bridge.log(direction, text, end, self.number)

    def check_handshake(self) -> None:
        """Raise HandshakeError unless a page from disk asks, by a name of ours, with the token."""
        host, origin = self.headers["host"], self.headers.get("origin")
        if not re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?", host.lower()):
            raise HandshakeError(403, f"Host {host}", "Not by this name: use localhost.")
        if origin not in (None, "null", "file://"):
            raise HandshakeError(403, f"Origin {origin}", "No web page may connect.")
        super().check_handshake()
        if not self.bridge.is_welcome(self.target):
            raise HandshakeError(403, "no token, or a wrong one", "Not without the right token.")

    def opened(self) -> None:
        origin = self.headers.get("origin")
        self.log("=", f"open from {origin}" if origin else "open, no Origin")
        self.bridge.dialogues.add(self)
        threading.Thread(target=self._empty_outbox, daemon=True).start()

    def message_received(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise ProtocolError(CloseCode.UNSUPPORTED_DATA, "a binary message")
        self.log("<", message)
        if message not in SCRIPTS:
            text = "SCRIPTS in pebble_ws.py has no such message. Add it and restart the server."
            self.send(self.answer(message, "unknown", text))
        elif not self.bridge.run_later(message, self):
            text = f"{MAX_WAITING} clicks are waiting already. Wait for their answers."
            self.send(self.answer(message, "busy", text))

    def answer(self, message: str, status: str, output: str, end: str = "") -> str:
        """Return the answer to a message, as JSON, and log it with `end` behind it."""
        import json

        output = self.bridge.without_token(output)
        self.log(">", f"{status}: {output}", end)
        message = self.bridge.without_token(message)[:200]
        answer = {"message": message, "status": status, "output": output[:MAX_OUTPUT]}
        return json.dumps(answer, ensure_ascii=False)

    def send_later(self, message: str) -> None:
        """Have a message sent by this connection's own thread: the caller never waits."""
        self._outbox.put(functools.partial(self.send, message))

    def close_later(self, code: int) -> None:
        """Have the closing handshake started by this connection's own thread."""
        self._outbox.put(functools.partial(self.close, code))

    def _empty_outbox(self) -> None:
        try:
            for action in iter(self._outbox.get, None):
                action()
        except ConnectionError:
            pass  # the thread that reads notices it too, and logs it

    def finish(self) -> None:
        self.bridge.dialogues.discard(self)
        self._outbox.put(None)
        super().finish()


class Bridge:
    """What all dialogues share: the token, the log, and Sketch, which runs one script at a time."""

    def __init__(self, scripts: str, app: str | None, dry_run: bool) -> None:
        import secrets

        self.scripts, self.app, self.dry_run = scripts, app, dry_run
        self.dialogues: set[DialogueHandler] = set()
        self.numbers = itertools.count(1)
        self._token = secrets.token_urlsafe(32)
        self._printing = threading.Lock()
        self._clicks: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(1 + MAX_WAITING)
        self._deadline = float("inf")  # for whatever runs, once the server stops
        self._worker = threading.Thread(target=self._run_clicks, daemon=True)
        self._servers: list[WebSocketServer] = []

    def is_welcome(self, target: str) -> bool:
        """Tell whether a handshake's target has the token, in constant time."""
        import secrets

        return secrets.compare_digest(target.encode(), f"/?token={self._token}".encode())

    def without_token(self, text: str) -> str:
        """Return the text as anybody may see it."""
        return text.replace(self._token, "[token]")

    def log(self, direction: str, text: str, end: str = "", number: int | None = None) -> None:
        """Print one line, whatever the text: shortened to 200 characters, controls escaped."""
        text = self.without_token(text)
        if len(text) > 200:
            text = text[:199] + "…"
        if not text.isprintable():
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        connection = f"#{number} " if number else ""
        self.print(f"{time.strftime('%H:%M:%S')} {connection}{direction} {text}{end}")

    def print(self, line: str) -> None:
        """Print a line at once. One that nobody reads any more is no reason to stop."""
        with self._printing:
            try:
                print(line, flush=True)
            except (OSError, ValueError):
                pass

    def run_later(self, message: str, dialogue: DialogueHandler) -> bool:
        """Have the message's script run in its turn, and answered; False if too many wait."""
        has_room = self._room.acquire(blocking=False)
        if has_room:
            self._clicks.put((message, dialogue))
        return has_room

    def _run_clicks(self) -> None:
        """Run the scripts in the order of the clicks: Sketch edits one document on one thread."""
        importlib.import_module("subprocess")  # now, so that the first click need not wait for it
        for message, dialogue in iter(self._clicks.get, None):
            if self._deadline < float("inf"):
                dialogue.log("!", f"dropped: {message}")
                continue
            started = time.monotonic()
            status, output = self._run(message)
            milliseconds = (time.monotonic() - started) * 1000
            self._room.release()
            dialogue.send_later(
                dialogue.answer(message, status, output, f" ({milliseconds:.0f} ms)")
            )

    def _run(self, message: str) -> tuple[str, str]:
        """Return the status and the output of the message's script."""
        deadline = time.monotonic() + SCRIPT_TIMEOUT
        try:
            bundle, identifier = find_command(self.script(message))
            if self.dry_run:
                return "dry run", f"Sketch would run {identifier} of {bundle}."
            tool = self.app and sketchtool(self.app)
            if not tool:
                raise ScriptError(NO_SKETCH)
            arguments = [tool, "run", bundle, identifier, "--without-activating"]
            return outcome(
                *run_command(arguments, lambda: min(deadline, self._deadline) - time.monotonic())
            )
        except ScriptError as error:
            return "failed", str(error)

    def script(self, message: str) -> str:
        """Return the path that SCRIPTS has for a message."""
        return os.path.normpath(os.path.join(self.scripts, SCRIPTS[message]))

    def start(self, servers: list[WebSocketServer]) -> None:
        """Let the dialogues in. Raise SetupError if they cannot be told port and token."""
        port = servers[0].server_address[1]
        self._write_session(port)
        self._worker.start()
        self._greet()
        for server in servers:
            server.bridge = self
            server.connections = servers[0].connections  # counted together
            threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True).start()
            self._servers.append(server)
        self.print(f"listening on ws://localhost:{port} (Ctrl-C stops it)")

    def _greet(self) -> None:
        """Say what a click will do, and which cannot do it."""
        if self.dry_run:
            page = os.path.join(self._resources(), "pebble-dialogue.html")
            self.print("Dry run: no script runs; a click is logged, and answered with what would.")
            self.print(f"To try the dialogue here, open {page} in a browser.")
        elif self.app:
            self.print(f"Scripts run in {self.app}.")
        else:
            self.log("!", NO_SKETCH)
        for message in SCRIPTS:
            try:
                find_command(self.script(message))
            except ScriptError as error:
                self.log("!", f"{message}: {error}")

    def stop(self) -> None:
        """Close all connections, and let the script that is running end: see STOP_TIMEOUT."""
        self._remove_session()
        self._deadline = time.monotonic() + STOP_TIMEOUT
        self._clicks.put(None)
        self._close_dialogues()
        for server in self._servers:
            server.shutdown()
        self._close_dialogues()  # those that came meanwhile
        deadline = time.monotonic() + LINGER_TIMEOUT
        while self.dialogues and time.monotonic() < deadline:
            time.sleep(0.01)
        self._worker.join(STOP_TIMEOUT + 1)

    def _close_dialogues(self) -> None:
        for dialogue in list(self.dialogues):
            dialogue.close_later(CloseCode.GOING_AWAY)

    def _resources(self) -> str:
        return os.path.join(os.path.dirname(self.scripts), "Resources")

    def _write_session(self, port: int) -> None:
        """Write session.js, which tells the dialogue where to connect and with which token."""
        import json

        self._session_file = os.path.join(self._resources(), "session.js")
        session = json.dumps({"port": port, "token": self._token})
        self._session = f"window.pebbleSession = {session};\n"
        partial = f"{self._session_file}.{os.getpid()}"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as file:
                file.write(self._session)
            os.replace(partial, self._session_file)
        except OSError as error:
            raise SetupError(
                f"Cannot write {self._session_file}, where the dialogue finds the server: "
                f"{error.strerror}. Make its folder writable."
            ) from None

    def _remove_session(self) -> None:
        """Remove session.js if it is still this server's."""
        try:
            with open(self._session_file) as file:
                if file.read() == self._session:
                    os.remove(self._session_file)
        except OSError:
            pass  # it is gone already


# ---- Command line --------------------------------------------------------------------------------

NO_SKETCH = "Sketch was not found. Install it, or name it with --sketch APP, and start again."
PLUGINS = "~/Library/Application Support/com.bohemiancoding.sketch3/Plugins"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse_arguments(argv)
    try:
        if options.install is not None:
            install(options.install)
        else:
            serve(options.port, options.sketch, options.dry_run)
    except SetupError as error:
        print(f"pebble_ws.py: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(argv: list[str] | None):
    """Return the options. Exit with argparse's usage and status 2 if they are wrong."""
    import argparse

    def port(text: str) -> int:
        if not 0 <= int(text) <= 65_535:
            raise ValueError
        return int(text)

    parser = argparse.ArgumentParser(
        prog="pebble_ws.py",
        description="Run a Sketch plugin's CocoaScripts from the buttons of its HTML dialogue. "
        "Runs until Ctrl-C.",
    )
    parser.add_argument(
        "--port", type=port, default=9912, help="where to listen (default: 9912; 0: any free port)"
    )
    parser.add_argument(
        "--sketch", metavar="APP", help="the Sketch.app that runs the scripts (default: the newest)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="run no script; answer which one would run"
    )
    parser.add_argument(
        "--install",
        metavar="FOLDER",
        nargs="?",
        const=PLUGINS,
        help="copy the plugin and this file into FOLDER (default: Sketch's plugins folder) and exit",
    )
    parser.add_argument("--version", action="version", version=f"pebble_ws.py {__version__}")
    return parser.parse_args(argv)


def serve(port: int, app: str | None, dry_run: bool) -> None:
    """Run the server until SIGINT, SIGTERM or SIGHUP. Raise SetupError if it cannot start."""
    import signal

    if app is not None:
        app = os.path.abspath(app)
        if not (app.endswith(".app") and sketchtool(app)):
            raise SetupError(f"{app} is no Sketch application: name the path of a Sketch.app.")
    scripts = plugin_folder()
    servers = listen(port)
    try:
        dry_run = dry_run or not app and sys.platform != "darwin"  # Sketch exists on macOS only
        bridge = Bridge(scripts, app if app or dry_run else find_sketch(), dry_run)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        try:
            for number in numbers:
                signal.signal(number, signal.default_int_handler)
            bridge.start(servers)
            while True:
                time.sleep(0.2)  # with a limit: a signal does not always wake this thread
        except KeyboardInterrupt:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
            bridge.stop()
    finally:
        for server in servers:
            server.server_close()


def listen(port: int) -> list[WebSocketServer]:
    """Return servers on the port of both loopback addresses: browsers try either for localhost."""
    servers: list[WebSocketServer] = []
    for address in ("127.0.0.1", "::1"):
        try:
            servers.append(WebSocketServer((address, port), DialogueHandler))
            port = servers[0].server_address[1]
        except OSError as error:
            if servers and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # a machine without IPv6
            for server in servers:
                server.server_close()
            raise SetupError(
                f"Cannot listen on port {port}: {error.strerror}. Stop the program that has it, "
                "perhaps another pebble_ws.py, or choose another port with --port."
            ) from None
    return servers


def install(folder: str) -> None:
    """Copy the plugin and this file into the folder. Raise SetupError if that is not possible."""
    import shutil

    folder = os.path.abspath(os.path.expanduser(folder))
    source = os.path.dirname(os.path.dirname(plugin_folder()))
    target = os.path.join(folder, os.path.basename(source))
    if not os.path.isdir(folder):
        raise SetupError(f"There is no folder {folder}. Install Sketch, or name another folder.")
    real = os.path.realpath(source)
    if os.path.commonpath([real, os.path.realpath(target)]) == real:
        raise SetupError(f"{target} is this very copy. Install from another one.")
    partial = f"{target}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("session.js*", "__pycache__"))
        for path, _, _ in os.walk(partial):
            os.chmod(path, 0o755)  # a read-only original makes no read-only copy
        shutil.copy(__file__, os.path.join(partial, "Contents", "Sketch", "pebble_ws.py"))
        if os.path.lexists(target):
            shutil.rmtree(target)
        os.rename(partial, target)
    except OSError as error:
        raise SetupError(f"Cannot install into {folder}: {error}.") from None
    print(f"Copied {source} and {os.path.abspath(__file__)} to {target}.")
    print("Restart Sketch; then Plugins > websocket > webservice-starting-information goes on.")


if __name__ == "__main__":
    sys.exit(main())
