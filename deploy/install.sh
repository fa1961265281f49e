#!/bin/sh
# Installs the server as it runs in production: every file that comes from an index is held against its hash.
#
#   sh deploy/install.sh LOCK DESTINATION      # LOCK: server, or server-gpu
#
# Needs Python 3.11 or newer, as ${PYTHON} or `python3`, and the sources around this file. DESTINATION becomes a virtual
# environment without pip and may be copied to the same path of another machine. The container file calls this, and so
# does `make package`, so that what goes into the image is tried wherever the tests run.
set -eu

lock=$1
mkdir -p "$2"
destination=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The wheel is built by a locked build backend; pip's own isolated build would fetch one without hashes.
"${PYTHON:-python3}" -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement locks/build.txt
"$work/build/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$work" .

"${PYTHON:-python3}" -m venv --without-pip "$destination"
pip() { "$work/build/bin/pip" --python "$destination/bin/python" --quiet --disable-pip-version-check "$@"; }
pip install --require-hashes --only-binary :all: --requirement "locks/$lock.txt"
pip install --no-deps --no-index "$work"/polyhead-*.whl
# The lock and the wheel name the same versions, or this says which do not. The GPU's onnxruntime has another name.
if [ "$lock" = server ]; then pip check; fi
