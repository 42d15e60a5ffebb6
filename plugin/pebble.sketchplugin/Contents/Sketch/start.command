#!/bin/sh
# Starts the plugin's server in Terminal: double-click this file in Finder, or choose
# start-webservice in Sketch. Close the window, or press Ctrl-C, to stop the server.

fail() {
  echo "$1" >&2
  exit 1
}

case $0 in
  */*) CDPATH= cd -P -- "${0%/*}" ;;
esac || fail "The folder of start.command cannot be opened. Move the plugin where you may read it."

# The server lies beside this file, or in a checkout beside plugin/: that one serves this bundle,
# and no other that lies there.
server=$PWD/pebble_ws.py
case $PWD in
  */plugin/pebble.sketchplugin/Contents/Sketch)
    [ -f "$server" ] || server=${PWD%/*/*/*/*}/pebble_ws.py ;;
esac
[ -f "$server" ] ||
  fail "pebble_ws.py is missing from Contents/Sketch. Copy it there, and start this file again."

# Without Apple's command line tools /usr/bin/python3 is there, but is none.
python=$(command -v python3)
if [ "$python" = /usr/bin/python3 ] && command -v xcode-select >/dev/null; then
  xcode-select -p >/dev/null 2>&1 || python=
fi
[ -n "$python" ] ||
  fail "python3 is missing. Run xcode-select --install, and start this file again after that."

exec "$python" "$server" "$@"
