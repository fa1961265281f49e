#!/bin/sh
# Installs the server, bulk jobs or a node of a Ray cluster, with HTTP, for production. Every file from a package index is
# verified against its hash.
#
#   sh deploy/install.sh LOCK DESTINATION      # LOCK: server, server-gpu, bulk or ray
#
# Requires Python 3.11 or newer, as ${PYTHON} or `python3`, and the source tree that contains this file. DESTINATION
# becomes a virtual environment without pip, which may be copied to the same path on another machine. Both the Dockerfile
# and `make package` call this script, so that the tests cover the installation in the image.
set -eu

lock=$1
mkdir -p "$2"
destination=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The lock file pins the build backend; pip's isolated build would download one without checking its hash.
"${PYTHON:-python3}" -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement locks/build.txt
"$work/build/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$work" .

"${PYTHON:-python3}" -m venv --without-pip "$destination"
pip() { "$work/build/bin/pip" --python "$destination/bin/python" --quiet --disable-pip-version-check "$@"; }
pip install --require-hashes --only-binary :all: --requirement "locks/$lock.txt"
pip install --no-deps --no-index "$work"/polyhead-*.whl
# Fails if lock file and wheel disagree about versions. Not for the GPU, whose onnxruntime package has another name.
if [ "$lock" != server-gpu ]; then pip check; fi
