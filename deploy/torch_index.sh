#!/bin/sh
# Prints pip's flags for PyTorch's wheel index, or nothing when pip's own index is to be used.
#
#   sh deploy/torch_index.sh PYTHON [URL]
#
# With URL, prints that index. Without, prints PyTorch's CPU index on a Linux machine that has no NVIDIA driver, if the
# index answers within five seconds: the wheel of the default index brings gigabytes of CUDA libraries along.
set -eu

python=$1
url=${2:-}
cpu=https://download.pytorch.org/whl/cpu
if [ -z "$url" ] && [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && [ ! -e /dev/nvidiactl ]; then
  if "$python" -c "import urllib.request; urllib.request.urlopen('$cpu/torch/', timeout=5)" 2> /dev/null; then
    url=$cpu
  fi
fi
if [ -n "$url" ]; then echo "--index-url $url"; fi
