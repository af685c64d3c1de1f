#!/usr/bin/env bash
# Measure what needs a GPU, from a plain checkout: nothing is installed into it or fetched. `--help` says how.
#
# PYTHON names the interpreter. WHEELS is a folder of wheels to use besides, for a machine without a network;
# .whl beside this checkout's files if it is there. CIFAR10 names the packed CIFAR-10 or its source, for
# instance npz:FILE; without it, digits are taken. WORKERS: processes of the memorization sweep on the GPU.
# COMMIT: what records state where the checkout has no history.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rumfast/gpu/$(cksum <<<"$root" | cut -d ' ' -f 1)

# The package as pyproject.toml lays it out, found before any that is installed.
mkdir -p "$cache/site/rumfast"
ln -sfn "$root"/rumfast/* "$root"/kernels "$root"/cli "$root"/bench "$cache/site/rumfast/"
path=$cache/site

wheels=${WHEELS:-$root/.whl}
if [[ -d $wheels ]]; then
  if [[ $(ls "$wheels") != $(cat "$cache/wheels.txt" 2>/dev/null) ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-cache-dir --no-compile --upgrade \
      --disable-pip-version-check --root-user-action=ignore --target "$cache/wheels" "$wheels"/*.whl >&2
    ls "$wheels" >"$cache/wheels.txt"
  fi
  path=$path:$cache/wheels
fi

export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
exec "$python" -m rumfast.bench.climb --work "$cache/work" "$@"
