#!/usr/bin/env bash
# Measure what needs a GPU, from a plain checkout: nothing is installed into it or fetched.
#
#   bench/gpu.sh next --seconds 420 --out FOLDER     `--help` says more
#
# PYTHON   the interpreter (python3); it needs torch, triton, numpy, scipy, scikit-learn, safetensors, typer, rich,
#          matplotlib, pydantic and tomli-w; for the tests pytest, for plain loops as peers torchvision
# WHEELS   a folder of wheels of what it lacks, for a machine without a network; `.whl` beside this checkout's files
# CIFAR10  the packed CIFAR-10 or its source, for instance npz:FILE; without it, digits are taken
# WORKERS  processes of the memorization sweep on the GPU
# COMMIT   what records state where the checkout has no history
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
fail() { echo "gpu.sh: $*" >&2; exit 1; }
which=$("$python" -c 'import sys; print(sys.executable, *sys.version_info[:2])') || fail "PYTHON: $python does not run"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rumfast/gpu/$(cksum <<<"$root $which" | cut -d ' ' -f 1)

# The package as pyproject.toml lays it out, found before any that is installed, and its version for the records.
mkdir -p "$cache/site/rumfast"
ln -sfn "$root"/rumfast/* "$root"/kernels "$root"/cli "$root"/bench "$cache/site/rumfast/"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
mkdir -p "$cache/site/rumfast.dist-info"
printf 'Metadata-Version: 2.1\nName: rumfast\nVersion: %s\n' "$version" >"$cache/site/rumfast.dist-info/METADATA"
path=$cache/site

wheels=${WHEELS:-$root/.whl}
if [[ -n ${WHEELS:-} || -d $wheels ]]; then
  found=$(ls "$wheels"/*.whl 2>/dev/null) || fail "WHEELS: $wheels holds no wheels"
  if [[ $found != $(cat "$cache/wheels.txt" 2>/dev/null) ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-cache-dir --no-compile --upgrade \
      --disable-pip-version-check --root-user-action=ignore --target "$cache/wheels" "$wheels"/*.whl >&2
    echo "$found" >"$cache/wheels.txt"
  fi
  path=$path:$cache/wheels
fi

export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
lacking=$("$python" - <<'PYTHON'
from importlib.util import find_spec
needed = "torch triton numpy scipy sklearn safetensors typer rich matplotlib pydantic tomli_w"
print(*(name for name in needed.split() if find_spec(name) is None))
PYTHON
)
[[ -z $lacking ]] || fail "$python lacks $lacking; install them, or let WHEELS name a folder of their wheels"
exec "$python" -m rumfast.bench.climb --work "$cache/work" "$@"
