#!/usr/bin/env bash
# Everything there is to know on one machine, in one command: builds, tests, sanitizes and measures.
#   bench/gpu_check.sh [--device cuda|cpu] [--short] [--only build,tests,...]
# Results land in $OUT, or in bench/results/<device>/. Python is $PYTHON, else .venv's or python3.
# A stage that fails is recorded in summary.json and the rest goes on; the exit status tells.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
exec </dev/null

stages=(build tests sanitizer micro e2e selectors)
# Seconds a stage may take of the 510 that all of them share; fewer stages get more each.
declare -A share=([build]=75 [tests]=95 [sanitizer]=50 [micro]=115 [e2e]=120 [selectors]=55)
total=510
device=cuda short="" only=""

usage() {
  echo "usage: bench/gpu_check.sh [--device cuda|cpu] [--short] [--only ${stages[*]}]" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device="${2:-}"; shift 2 || usage ;;
    --only) only="${2:-}"; shift 2 || usage ;;
    --short) short=--short; shift ;;
    *) usage ;;
  esac
done
case "$device" in cuda|cpu) ;; *) usage ;; esac
chosen=("${stages[@]}")
if [ -n "$only" ]; then
  IFS=, read -ra chosen <<<"$only"
  for stage in "${chosen[@]}"; do
    [ -n "$stage" ] && [ -n "${share[$stage]:-}" ] || usage
  done
fi

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
if [ -z "${OUT:-}" ]; then
  OUT=$("$PYTHON" -c "import torch; from bench.results import default_folder
print(default_folder(torch.device('$device')))") || OUT="bench/results/unknown-$device"
fi
mkdir -p "$OUT" || exit 2

has_modules() {
  "$PYTHON" -c "import $1" 2>/dev/null
}

# Each stage leaves a sentence in $note where there is something to say, 0 in $rc where it passed.
run() {
  timeout -k 5 "$limit" "$@" >>"$log" 2>&1
  rc=$?
  if [ "$rc" -eq 124 ] || [ "$rc" -eq 137 ]; then note="out of time after $limit s"; fi
}

run_pytest() {
  run "$@"
  if [ "$rc" -eq 5 ]; then
    rc=0
    note="no such tests were collected"
  fi
}

build() {
  local missing="" beside
  beside=$(dirname "$(command -v "$PYTHON")")
  for tool in cmake ninja; do
    [ -x "$beside/$tool" ] || command -v "$tool" >/dev/null || missing+=" $tool"
  done
  for module in torch pip; do has_modules "$module" || missing+=" $module"; done
  "$PYTHON" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' \
    2>/dev/null || missing+=" setuptools>=77"
  if [ -n "$missing" ]; then
    note="nothing native was built, for want of:$missing"
    return
  fi
  # For this GPU alone: compiling for every chip takes minutes.
  local chip=""
  if [ "$device" = cuda ]; then
    chip=$("$PYTHON" -c 'import torch
print(".".join(map(str, torch.cuda.get_device_capability())))')
  fi
  OCVTP_NATIVE=1 OCVTP_CUDA_ARCHITECTURES="$chip" run "$PYTHON" -m pip \
    --disable-pip-version-check install --no-build-isolation --no-deps -e .
  if [ "$rc" -eq 0 ] && [ "$device" = cuda ]; then
    note=$("$PYTHON" -c 'from ocvtp_kernels import native; print(native.why_not("cuda") or "")')
  fi
}

pytest_gpu=("$PYTHON" -m pytest -m gpu -q -p no:cacheprovider)
tests() {
  local said=""
  if ! has_modules typer; then
    pytest_gpu+=(--ignore=tests/cli)
    said="without tests/cli, for want of typer"
  fi
  run_pytest "${pytest_gpu[@]}"
  note="${note:-$said}"
}

sanitizer() {
  if [ "$device" = cpu ]; then
    note="compute-sanitizer checks CUDA kernels only"
    return
  fi
  if ! command -v compute-sanitizer >/dev/null; then
    note="there is no compute-sanitizer"
    return
  fi
  has_modules typer || pytest_gpu+=(--ignore=tests/cli)
  local worst=0 said=""
  limit=$((limit / 2))
  for tool in memcheck racecheck; do
    # Without torch's memory cache every tensor is an allocation with edges of its own.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 run_pytest compute-sanitizer --tool "$tool" \
      --target-processes all --error-exitcode 9 "${pytest_gpu[@]}" -k small
    if [ "$rc" -ne 0 ]; then
      worst=$rc
      said+="$tool failed ($rc) $note; "
    fi
  done
  rc=$worst
  note="${said:-$note}"
}

bench() {
  # Leaves time to finish what has begun, and to write it down.
  run "$PYTHON" -m bench.run "$1" --device "$device" ${short:+"$short"} --output "$OUT" \
    --seconds $((limit * 7 / 10))
  cat "$log"
}
micro() { bench micro; }
selectors() { bench selectors; }
e2e() {
  if ! has_modules transformers; then
    note="there is no transformers"
    return
  fi
  bench e2e
}

shared=0
for stage in "${chosen[@]}"; do shared=$((shared + share[$stage])); done

failed=0 records="" table=""
for stage in "${chosen[@]}"; do
  rc=0 note="" log="$OUT/$stage.log"
  limit=$((share[$stage] * total / shared))
  : >"$log"
  echo "== $stage (at most $limit s)"
  start=$SECONDS
  "$stage"
  took=$((SECONDS - start))
  if [ "$rc" -ne 0 ]; then
    failed=1
    # What the bench says has been shown already, to its last line.
    case "$stage" in micro|e2e|selectors) ;; *) tail -n 20 "$log" ;; esac
  fi
  note=$(printf '%s' "$note" | tr -d '[:cntrl:]"' | tr '\134' /)
  records+="${records:+,}"$'\n'
  records+=$(printf '  {"stage": "%s", "rc": %d, "seconds": %d, "log": "%s", "note": "%s"}' \
    "$stage" "$rc" "$took" "$stage.log" "$note")
  table+=$(printf '%-10s %4d %6d s  %s' "$stage" "$rc" "$took" "$note")$'\n'
  printf '{"device": "%s", "short": %s, "stages": [%s\n]}\n' \
    "$device" "$([ -n "$short" ] && echo true || echo false)" "$records" >"$OUT/.summary.json"
  mv "$OUT/.summary.json" "$OUT/summary.json"
done

printf '\n%-10s %4s %8s\n%s' stage rc took "$table"
echo "results: $OUT"
exit "$failed"
