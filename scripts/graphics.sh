#!/bin/sh
# Headless OpenGL needs two system libraries. Usage: graphics.sh PYTHON
set -eu
python=$1
command="apt-get install -y --no-install-recommends libegl1 libgl1"
found() { "$python" -c 'import ctypes; [ctypes.CDLL(name) for name in ("libEGL.so.1", "libGL.so.1")]' 2>/dev/null; }
if found; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "Installing libEGL and libGL (headless OpenGL): $command"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive $command -qq >/dev/null
  found && exit 0
fi
echo "Headless OpenGL is missing (libEGL.so.1, libGL.so.1). Install it with:  sudo $command" >&2
exit 1
