#!/bin/sh
# Make a virtual environment and install into it: venv.sh PYTHON FOLDER PIP-ARGUMENTS...
# Works without Debian's python3-venv too, as long as the Python has pip of its own.
set -eu

python=$1
folder=$2
shift 2

if ! "$folder/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    echo "making $folder with $("$python" --version)"
    rm -rf "$folder"
    "$python" -m venv "$folder" >/dev/null 2>&1 || "$python" -m venv --clear --without-pip "$folder"
fi

echo "installing into $folder: $*"
if "$folder/bin/python" -c 'import pip' >/dev/null 2>&1; then
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
else
    "$python" -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check "$@"
fi
