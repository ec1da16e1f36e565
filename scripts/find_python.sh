#!/bin/sh
# Print the first Python of at least 3.11 among the one asked for ($1) and the usual names; say what is missing if none.
set -u

asked=${1:-python3}
for python in "$asked" python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        command -v "$python"
        exit 0
    fi
done

found=$("$asked" --version 2>&1) || found="no $asked"
echo "Polynya needs Python 3.11 or newer; found: $found. Install one, or name it: make PYTHON=/path/to/python3.11" >&2
exit 1
