#!/bin/sh
# Resolves every extra anew and writes constraints.txt, which holds `name==version` lines and nothing else.
#
#     tools/constraints.sh .venv
#
# torch is held at the version already pinned: to move it, edit its line in constraints.txt first.
# The build tag of torch (`+cpu`) is dropped, so that each machine takes the build that fits it.
set -eu

venv=$1
held=$(mktemp)
fresh=$(mktemp)
trap 'rm -f "$held" "$fresh"' EXIT

"$venv/bin/python" -m pip install --quiet uv
UV_FIND_LINKS=$(printf '%s' "${PIP_FIND_LINKS:-}" | tr -s ' ' ',')
export UV_FIND_LINKS

grep '^torch==' constraints.txt >"$held"
"$venv/bin/uv" pip compile --quiet --no-header --no-annotate --python-version 3.11 --upgrade -c "$held" \
    --extra dev --extra lora --extra diffusers --extra rewards --extra rl --extra tracking \
    pyproject.toml -o "$fresh" >/dev/null
sed 's/+[A-Za-z0-9.]*$//' "$fresh" >constraints.txt
