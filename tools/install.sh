#!/bin/sh
# Installs the package into a virtual environment with the versions of constraints.txt.
#
#     tools/install.sh .venv '.[dev]'
#
# uv is several times faster than pip, so it is tried first; pip finishes the work where uv is not to be had.
# A folder of wheels named in PIP_FIND_LINKS (a CPU build of torch, for example) is honoured by both.
set -eu

venv=$1
target=$2

if "$venv/bin/python" -m pip install --quiet uv 2>/dev/null; then
    UV_FIND_LINKS=$(printf '%s' "${PIP_FIND_LINKS:-}" | tr -s ' ' ',')
    export UV_FIND_LINKS
    if "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --compile-bytecode \
        -c constraints.txt -e "$target"; then
        exit 0
    fi
    echo "uv could not install $target; trying pip" >&2
fi
exec "$venv/bin/python" -m pip install --quiet -c constraints.txt -e "$target"
