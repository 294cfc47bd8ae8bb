#!/usr/bin/env bash
# Everything there is to know on one machine, in one command: docs/gpu.md says how to read it.
# Python is $PYTHON, else .venv's or python3.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
exec "$PYTHON" -m bench.gpu_check "$@" </dev/null
