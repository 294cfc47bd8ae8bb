#!/usr/bin/env bash
# The tests of vision-language models on several transformers versions, and a table of what passed.
#   scripts/transformers_matrix.sh [VERSION...]
# Each version has a virtual environment and a log in $OUT, or in build/transformers_matrix/, kept
# for the next run. Python is $PYTHON, torch is $TORCH. What a version cannot do, its tests skip and
# say why in the log. The exit status is 0 only where every version passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
exec </dev/null

# The oldest that pyproject.toml allows, the last that vLLM allows, and that of the normal run.
versions=(5.16.1 5.20.0 5.23.0)
[ $# -eq 0 ] || versions=("$@")
for version in "${versions[@]}"; do
  if ! [[ "$version" =~ ^[0-9]+(\.[0-9a-z]+)+$ ]]; then
    echo "usage: scripts/transformers_matrix.sh [VERSION...]; no version: $version" >&2
    exit 2
  fi
done
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
OUT=${OUT:-build/transformers_matrix}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)

# Not editable, and pure, so the native objects of the tree stay as they are; the tests import it.
install() {
  local bin=$1/bin version=$2
  [ -x "$bin/python" ] || "$PYTHON" -m venv "$1" || return
  local pip=("$bin/python" -m pip --disable-pip-version-check --quiet install)
  # shellcheck disable=SC2086 # TORCH may hold options
  "${pip[@]}" $TORCH && "${pip[@]}" 'setuptools>=77' ninja 'cmake>=3.20' &&
    OCVTP_NATIVE=0 "${pip[@]}" --no-build-isolation '.[test]' "transformers==$version"
}

# The counts of a JUnit file, as columns of the table.
count() {
  "$1/bin/python" - "$2" <<'PY'
import sys
import xml.etree.ElementTree as tree

told = tree.parse(sys.argv[1]).getroot().find("testsuite").attrib
total, failed, errors, skipped = (int(told[k]) for k in ("tests", "failures", "errors", "skipped"))
print(f"{total - failed - errors - skipped:>7}{failed + errors:>7}{skipped:>8}")
PY
}

status=0
rows=()
for version in "${versions[@]}"; do
  environment=$OUT/$version log=$OUT/$version.log report=$OUT/$version.xml
  rm -f "$report"
  row="not installed; see $log"
  if install "$environment" "$version" >"$log" 2>&1; then
    "$environment/bin/python" -m pytest -n 2 --dist loadfile -p no:cacheprovider \
      --junitxml "$report" tests/vlm tests/examples >>"$log" 2>&1 || status=1
    row=$(count "$environment" "$report" 2>>"$log") || { status=1; row="no report; see $log"; }
  else
    status=1
  fi
  rows+=("$(printf '%-14s%s' "$version" "$row")")
done
printf '%-14s%7s%7s%8s\n' transformers passed failed skipped
printf '%s\n' "${rows[@]}"
exit "$status"
