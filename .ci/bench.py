#!/usr/bin/env python3
"""Measure how fast pebble_ws is, beside the limit and the peers that this machine happens to have.

    python3 .ci/bench.py              all figures, five rounds: some minutes
    python3 .ci/bench.py --quick      see that it works: some seconds

The limit is a socketserver handler that sends back what it receives, with no framing at all; a
click's limit is posix_spawn and waitpid of the same program. A peer is measured if its first line
below runs: NODE_PATH says where Node's modules are, --python which interpreter has Python's.

All servers stand at the same time, and a figure is taken of one after the other, so that what else
the machine does hits all alike. A cell is the median of the rounds; in brackets, the median of each
round's ratio to the limit. Servers and client share one core where the system can pin them: on two,
to wake up the other core takes longer than most of what is measured.
"""

import argparse
import contextlib
import glob
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from statistics import median

TIMEOUT = 10  # seconds for a server to start, or to answer: a peer that hangs loses this figure
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ---- What is measured ---------------------------------------------------------------------------

# fmt: off
# Each is a command in which PYTHON, PEERS_PYTHON, PORT and FOLDER are replaced. Messages are text,
# because clicks are. The first line of a peer's program is what may be missing.
SERVERS = {
    "limit": ["PYTHON", "-c", """
import socketserver
class Limit(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(6, 1, True)  # TCP_NODELAY
        data = self.request.recv(16)
        size = int(data)  # of what is received at a time
        while data:
            self.request.sendall(data)
            data = self.request.recv(size)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128
Server(("127.0.0.1", PORT), Limit).serve_forever()
"""],
    "Echo": ["PYTHON", "-c", """
import sys; sys.path.insert(0, "FOLDER/pebble.sketchplugin/Contents/Sketch"); import pebble_ws
class Echo(pebble_ws.WebSocketHandler):
    max_message_size = 64 << 20
    def message_received(self, message):
        self.send(message)
with pebble_ws.WebSocketServer(("127.0.0.1", PORT), Echo) as server:
    server.serve_forever()
"""],
    "bridge": ["PYTHON", "FOLDER/pebble.sketchplugin/Contents/Sketch/pebble_ws.py",
               "--port", "PORT", "--sketch", "FOLDER/Sketch.app"],
    "websockets": ["PEERS_PYTHON", "-c", """
from websockets.sync.server import serve
def echo(connection):
    for message in connection:
        connection.send(message)
serve(echo, "127.0.0.1", PORT, compression=None, max_size=None).serve_forever()
"""],
    "websocket-server": ["PEERS_PYTHON", "-c", """
from websocket_server import WebsocketServer
server = WebsocketServer("127.0.0.1", PORT)
server.set_fn_message_received(lambda client, server, text: server.send_message(client, text))
server.run_forever()
"""],
    "aiohttp": ["PEERS_PYTHON", "-c", """
from aiohttp import web
async def echo(request):
    connection = web.WebSocketResponse(compress=False, max_msg_size=0)
    await connection.prepare(request)
    async for message in connection:
        await connection.send_str(message.data)
    return connection
app = web.Application()
app.router.add_get("/", echo)
web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)
"""],
    "picows": ["PEERS_PYTHON", "-c", """
from picows import WSListener, WSMsgType, ws_create_server
import asyncio
class Echo(WSListener):
    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())
async def serve():
    server = await ws_create_server(lambda request: Echo(), "127.0.0.1", PORT)
    await server.serve_forever()
asyncio.run(serve())
"""],
    "ws": ["node", "-e", """
const { WebSocketServer } = require("ws")
new WebSocketServer({ host: "127.0.0.1", port: PORT, perMessageDeflate: false })
  .on("connection", c => c.on("message", (data, binary) => c.send(data, { binary })))
"""],
    "nodejs-websocket": ["node", "-e", """
const ws = require("nodejs-websocket")
ws.createServer(c => {
  c.socket.setNoDelay()
  c.on("text", text => c.sendText(text)).on("error", () => {})
}).listen(PORT, "127.0.0.1")
"""],
    "websocketd": ["websocketd", "--address", "127.0.0.1", "--port", "PORT", "cat"],
}

# What the client calls, for which servers, and what the results are.
OURS = ["limit", "Echo", "bridge"]
ECHOS = [name for name in SERVERS if name != "bridge"]
FIGURES = [
    (["round_trip", 16], ECHOS, ["round trip, 16 bytes, µs"]),
    (["round_trip", 125], ECHOS, ["round trip, 125 bytes, µs"]),
    (["round_trip", 4 << 10], ECHOS, ["round trip, 4 KiB, µs"]),
    (["flow", 125, 64, "messages"], ECHOS, ["125 bytes, 64 in flight, messages/s"]),
    (["flow", 16 << 10, 8, "MB"], ECHOS, ["16 KiB, 8 in flight, MB/s"]),
    (["flow", 1 << 20, 4, "MB"], ECHOS, ["1 MiB, 4 in flight, MB/s"]),
    (["handshakes"], SERVERS, ["connect, handshake, close, per second"]),
    (["clicks", 1, 0], ["limit", "bridge"], ["a click, µs"]),
    (["clicks", 1, 100], ["limit", "bridge"], ["a click beside 100 connections, µs"]),
    (["clicks", 16, 0], ["limit", "bridge"], ["16 clicks at once, µs each"]),
]
# fmt: on

STAND_IN = r"""
#include <stdio.h>
#include <time.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("OK at %lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
}
"""

# ---- The client, a process of its own -----------------------------------------------------------

# What it calls takes a server's port and path (None: the limit), and for how many seconds to go on.
REQUEST = (
    "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def client():
    """Do what the standard input says, a call in JSON a line; answer with the results, or null."""
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        try:
            results = globals()[function](*arguments)
        except OSError as error:
            print(f"{function}{tuple(arguments)}: {error!r}", file=sys.stderr)
            results = None
        print(json.dumps(results), flush=True)


def connect(port, path, receive_size=65_536):
    """Return a connection after its opening handshake: the limit's is to say how it receives."""
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    connection.settimeout(None)  # but in the kernel, where it costs nothing
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    connection.sendall((REQUEST.format(path) if path else str(receive_size)).encode())
    answer = some(connection.recv(4_096))
    while path and not answer.endswith(b"\r\n\r\n"):
        answer += some(connection.recv(4_096))
    return connection


def some(received):
    """Return what was received. Raise ConnectionError if it is nothing."""
    if not received:
        raise ConnectionError("closed by the server")
    return received


def frame(payload, first=0x81):
    """Return a final frame as a client sends it, masked (RFC 6455, 5.2)."""
    size, key = len(payload), b"\x37\xfa\x21\x3d"
    code, width = (size, 0) if size < 126 else (126, 2) if size < 65_536 else (127, 8)
    length = size.to_bytes(width, "big") if width else b""
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    masked = (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")
    return bytes([first, 0x80 | code]) + length + key + masked


def message(size, path):
    """Return a message's frame, and its echo's size: only the limit's has the masking-key, too."""
    framed = frame(b"x" * size)
    return framed, len(framed) - (4 if path else 0)


def round_trip(port, path, seconds, size, idle=0):
    """Return the µs from a message to its echo, while other connections are idle."""
    if size > 4 << 10:
        return [1e6 / flow(port, path, seconds, size, 1, "messages")[0]]
    connection, *others = [connect(port, path) for _ in range(1 + idle)]
    framed, echo_size = message(size, path)
    send, receive_into, buffer = connection.sendall, connection.recv_into, bytearray(echo_size)
    times = [time.perf_counter()]
    while len(times) == 1 or times[-1] < times[0] + seconds:
        for _ in range(50):
            send(framed)
            left = echo_size - receive_into(buffer)
            while left:
                left -= some(receive_into(buffer))
        times.append(time.perf_counter())
    return [typical(times) / 50 * 1e6]


def flow(port, path, seconds, size, count, unit):
    """Return how many messages, or MB, come back a second.

    `count` are sent at once, when those before are back. The limit receives a short one at a time,
    as what answers each of them does: it could else send all back and never count them.
    """
    framed, echo_size = message(size, path)
    frames, buffer = framed * count, bytearray(min(echo_size * count, 1 << 20))
    turn, times = threading.Semaphore(0), [time.perf_counter()]

    def send():  # in a thread of its own: the limit answers while a long message is still sent
        with contextlib.suppress(OSError):
            while turn.acquire():
                connection.sendall(frames)

    with connect(port, path, min(len(framed), 65_536)) as connection:
        threading.Thread(target=send, daemon=True).start()
        while len(times) == 1 or times[-1] < times[0] + seconds:
            turn.release()
            left = echo_size * count
            while left:  # the kernel gathers: to wake up for each answer would be what is measured
                wanted = min(left, len(buffer))
                left -= some(connection.recv_into(buffer, wanted, socket.MSG_WAITALL))
            times.append(time.perf_counter())
    turn.release()
    return [count / typical(times) * (size / 1e6 if unit == "MB" else 1)]


def typical(times):
    """Return the median of what passes from one time to the next."""
    return median(after - before for before, after in zip(times, times[1:]))


def handshakes(port, path, seconds):
    """Return how many connections a second open, and end with a Close from both."""
    closing, count, begun = frame(b"\x03\xe8", 0x88), 0, time.perf_counter()
    while not count or time.perf_counter() < begun + seconds:
        with connect(port, path) as connection:
            if path:
                connection.sendall(closing)
            else:
                connection.shutdown(socket.SHUT_WR)
            connection.recv(4_096)
        count += 1
    return [count / (time.perf_counter() - begun)]


def clicks(port, path, seconds, count, idle):
    """Return the µs that each of some clicks takes; for one, also to its main(), and from there."""
    connections = [connect(port, path) for _ in range(1 + idle)] if path else [os.pipe()]
    once, times, end = (click if path else spawn), [], clock() + seconds * 1e9
    while not times or clock() < end:
        before = clock()
        output = once(connections[0], count)
        after = clock()
        at = re.search(rb"at (\d+)", output) if count == 1 else None
        parts = [int(at[1]) - before, after - int(at[1])] if at else []
        times.append([after - before, *parts])
    return [median(nanoseconds) / count / 1e3 for nanoseconds in zip(*times)]


def click(connection, count):
    """Send clicks at once; return the answers."""
    answers = b""
    connection.sendall(frame(b"rotate") * count)
    while answers.count(b'"status"') < count:
        answers += some(connection.recv(65_536))
    return answers


def spawn(pipe, count):
    """Run the same program, with nothing around it; return its output."""
    arguments = [os.environ["STAND_IN"], "run", "bundle", "rotate", "--without-activating"]
    for _ in range(count):
        actions = [(os.POSIX_SPAWN_DUP2, pipe[1], 1)]
        os.waitpid(os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions), 0)
    os.write(pipe[1], b"\n")  # so that there is something to read
    return os.read(pipe[0], 65_536)


def clock():
    """Return what the stand-in's clock says, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


# ---- The rounds ---------------------------------------------------------------------------------

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
PORTS = itertools.count(20_000 + os.getpid() % 10_000)  # none that a client's own end may get
processes = []


def start(command, **options):
    """Start a process in a group of its own, on the one core that all of them share."""
    try:
        if CORES:
            os.sched_setaffinity(0, {max(CORES)})  # inherited, so in force from its first step
        processes.append(subprocess.Popen(command, start_new_session=True, **options))
    finally:
        if CORES:
            os.sched_setaffinity(0, CORES)
    return processes[-1]


def stop():
    while processes:
        with contextlib.suppress(OSError):  # it has ended
            os.killpg(processes[-1].pid, signal.SIGKILL)
        processes.pop().wait()


def prepare(folder):
    """Install the plugin in a folder, with a stand-in for Sketch that says when it runs.

    Return the stand-in. Where there is no compiler it is `true`, which says nothing.
    """
    install = [sys.executable, f"{ROOT}/pebble_ws.py", "--install", folder]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    stand_in = f"{folder}/Sketch.app/Contents/MacOS/sketchtool"
    os.makedirs(os.path.dirname(stand_in))
    if shutil.which("cc"):
        compiler = ["cc", "-O", "-x", "c", "-", "-o", stand_in]
        subprocess.run(compiler, input=STAND_IN.encode(), check=True)
    else:
        os.symlink(shutil.which("true"), stand_in)
    return stand_in


def is_here(command):
    """Return whether a server's program is on this machine, and the first line of its code runs."""
    if not shutil.which(command[0]) or command[1] not in ("-c", "-e"):
        return shutil.which(command[0]) is not None
    first = [*command[:2], command[2].strip().partition("\n")[0]]
    return subprocess.run(first, capture_output=True).returncode == 0


def start_server(name, command, folder):
    """Start a server; return its process, its port and path, and the time until both are there."""
    session = f"{folder}/pebble.sketchplugin/Contents/Resources/session.js"
    with contextlib.suppress(FileNotFoundError):
        os.remove(session)  # of a server that was killed
    port, path = next(filter(is_free, PORTS)), None if name == "limit" else "/"
    command = [part.replace("PORT", str(port)) for part in command]
    log = f"{folder}/{name}.log"
    begun = time.perf_counter()
    with open(log, "wb") as output:
        process = start(command, stdout=output, stderr=output)
    while is_free(port):
        if process.poll() is not None or time.perf_counter() > begun + TIMEOUT:
            with open(log) as output:
                sys.exit(f"{name} does not start.\n{output.read()}")
        time.sleep(0.000_2)
    while name == "bridge" and not os.path.exists(session):
        time.sleep(0.000_2)
    ready = time.perf_counter()
    if name == "bridge":
        with open(session) as file:
            path = "/?token=" + re.search(r'"token": "(.*?)"', file.read())[1]
    connect(port, path).close()
    return process, (port, path), ready - begun


def is_free(port):
    """Return whether nothing accepts at a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def measure(commands, folder, stand_in, seconds):
    """Yield figure, server and result for all of them; None for what could not be measured."""
    client = start(
        [sys.executable, os.path.abspath(__file__), "--client"],
        env={**os.environ, "STAND_IN": stand_in},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def ask(*call):
        client.stdin.write(json.dumps(call).encode() + b"\n")
        client.stdin.flush()
        return json.loads(client.stdout.readline())

    ask("clock")  # it has started, and takes nothing from those that start now
    started = {}
    for name, command in commands.items():
        started[name] = process, place, took = start_server(name, command, folder)
        yield "start until a dialogue can connect, ms", name, took * 1e3
    time.sleep(0.5)  # for what they do once the port is open
    for name, (process, _, _) in started.items():
        kilobytes = subprocess.check_output(["ps", "-o", "rss=", "-p", str(process.pid)])
        yield "memory when idle, MB", name, int(kilobytes) * 1_024 / 1e6
    yield from wake_ups(started, 10 * seconds)
    for (function, *arguments), names, figures in FIGURES:
        for name in filter(started.get, names):
            place = started[name][1]
            results = ask(function, *place, seconds, *arguments) or [None] * len(figures)
            for figure, result in zip(figures, results):
                yield figure, name, result


def wake_ups(started, seconds):
    """Yield how often a second a server's threads run while one connection to it is silent."""
    figure = "wake-ups at rest, per second"
    connections = [connect(*place) for _, place, _ in started.values()]
    time.sleep(seconds / 5)
    before = [switches(process.pid) for process, _, _ in started.values()]
    time.sleep(seconds)
    for (name, (process, _, _)), count in zip(started.items(), before):
        yield figure, name, None if count is None else (switches(process.pid) - count) / seconds
    for connection in connections:
        connection.close()


def switches(process):
    """Return how often the threads of a process were switched to, None where nothing tells."""
    count = None
    for status in glob.glob(f"/proc/{process}/task/*/status"):
        with open(status) as file:
            count = (count or 0) + sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", file.read())))
    return count


# ---- The table ----------------------------------------------------------------------------------


def summaries(rounds):
    """Return {figure: {server: {its median, that of its ratios to the limit, its rounds}}}."""
    summary = {}
    for figure, servers in rounds[0].items():
        summary[figure] = {}
        for server in servers:
            values = [measured[figure][server] for measured in rounds]
            pairs = zip(values, (measured[figure]["limit"] for measured in rounds))
            ratios = [value / limit for value, limit in pairs if value is not None and limit]
            summary[figure][server] = {
                "median": median(known)
                if (known := [v for v in values if v is not None])
                else None,
                "ratio": median(ratios) if ratios else None,
                "rounds": values,
            }
    return summary


def table(summary, servers):
    """Yield the lines of a Markdown table."""
    rows = [["", *servers], ["---", *("--:" for _ in servers)]]
    for figure, results in summary.items():
        rows.append([figure, *(cell(**results.get(server, {})) for server in servers)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for figure, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        yield f"| {figure.ljust(widths[0])} | {' | '.join(cells)} |"


def cell(median="", ratio=None, rounds=()):
    if median in ("", None):
        return "failed" if median is None else ""
    return f"{median:,.{0 if median >= 100 else 1}f}" + (
        f" ({ratio:.2f})" if ratio is not None else ""
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="default: 5")
    add("--quick", action="store_true", help="one short round: see that it works")
    add("--json", metavar="FILE", help="write the results of all rounds there, too")
    add("--python", default=sys.executable, help="an interpreter that has Python's peers")
    add("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        return client()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    count, seconds = (1, 0.01) if options.quick else (options.rounds, 0.5)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stand_in = prepare(folder)
        known = {"PYTHON": sys.executable, "PEERS_PYTHON": options.python}
        commands = {
            name: [known.get(part, part).replace("FOLDER", folder) for part in command]
            for name, command in SERVERS.items()
        }
        missing = [name for name, command in commands.items() if not is_here(command)]
        here = {name: command for name, command in commands.items() if name not in missing}
        rounds = [{} for _ in range(count)]
        for measured in rounds:
            try:
                for figure, server, result in measure(here, folder, stand_in, seconds):
                    measured.setdefault(figure, {})[server] = result
            finally:
                stop()
    summary = summaries(rounds)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {platform.system()} {platform.machine()}, rounds: {count}.", end=" ")
    print(f"Not here: {', '.join(missing) or 'none'}.\n")
    print(*table(summary, here), sep="\n")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"missing": missing, "figures": summary}, file, indent=1, ensure_ascii=False)
    ours = [results[name] for results in summary.values() for name in OURS if name in results]
    return 0 if all(result["median"] is not None for result in ours) else 1


if __name__ == "__main__":
    sys.exit(main())
