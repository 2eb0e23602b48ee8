#!/bin/sh
# Print the path of a Python that Labline runs on, or say what is missing.
# usage: find_python.sh [COMMAND]   COMMAND must be fit; without it python3, python3.13, python3.12 and python3.11 are tried in turn.

fit='import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else 1)'
tried=""
[ -n "${1:-}" ] || set -- python3 python3.13 python3.12 python3.11
for candidate in "$@"; do
    if "$candidate" -c "$fit" >/dev/null 2>&1; then
        exec "$candidate" -c 'import sys; print(sys.executable)'
    fi
    version="$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" || version="not found"
    tried="$tried $candidate ($version),"
done
echo "Labline needs Python 3.11, 3.12 or 3.13. Tried:${tried%,}." >&2
echo "Install one of them and run \`make PYTHON=/path/to/python3.13\`." >&2
exit 1
