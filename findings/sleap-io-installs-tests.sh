#!/usr/bin/env bash
# sleap-io 0.9.5, its wheel.
#
# The wheel installs a second top-level package beside sleap_io, named `tests`, into site-packages. A project whose own
# folder of tests is a package without __init__.py (a namespace package, as pytest's import mode `importlib` suggests)
# loses it: Python prefers a regular package anywhere on the path to a namespace package in the current folder, so that
# `from tests import helper` finds sleap-io's `tests` as soon as sleap-io is installed.
#
# Seen: in a folder with tests/helper.py, `from tests import helper` works before `pip install sleap-io`, and fails after
# it with an ImportError that names site-packages.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
mkdir -p "$folder/project/tests"
echo "answer = 42" > "$folder/project/tests/helper.py"
cd "$folder/project"
try='from tests import helper; print(helper.answer)'
before=$("$folder/venv/bin/python" -c "$try")
echo "before: $before"
[ "$before" = 42 ]
"$folder/venv/bin/pip" install -q --no-deps sleap-io==0.9.5
if "$folder/venv/bin/python" -c "$try" 2> error.txt; then
  echo "after: found as before; this has changed"
  exit 1
fi
echo "after: $(tail -n 1 error.txt | sed "s|$folder|FOLDER|g")"
grep -q "cannot import name 'helper' from 'tests' (.*site-packages/tests/__init__.py)" error.txt
