#!/usr/bin/env bash
# Run what needs a GPU, and write bench/results/<gpu>/. A plain checkout is enough: nothing is installed or fetched.
#
#   bench/gpu.sh [--dry-run] [--out FOLDER] [PART ...]
#
# Parts: builds tests kernels loader train sweep unlearn accuracy memorization; all if none is named. Each gets ten
# minutes (LIMIT, in seconds), and one that fails does not stop the others; the exit status is 1 then. PYTHON names
# the interpreter. CIFAR10 names the packed CIFAR-10 or its source, for instance npz:FILE: without it the last two
# parts take digits. The memorization sweep is resumed where it ended (in runs/gpu, or SWEEP).
# --dry-run takes small shapes on any machine, and a temporary folder unless told otherwise.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
limit=${LIMIT:-600}
dry='' out='' parts=() failed=()

usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit "$1"; }
while (($#)); do
  case $1 in
    --dry-run) dry=yes ;;
    --out) out=${2:?--out: a folder expected}; shift ;;
    builds | tests | kernels | loader | train | sweep | unlearn | accuracy | memorization) parts+=("$1") ;;
    -h | --help) usage 0 ;;
    *) echo "gpu.sh: got $1" >&2; usage 2 >&2 ;;
  esac
  shift
done
((${#parts[@]})) || parts=(builds tests kernels loader train sweep unlearn accuracy memorization)

# The package as pyproject.toml lays it out, found before any that is installed.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir "$site/rumfast"
ln -s "$root"/rumfast/* "$root"/kernels "$root"/cli "$root"/bench "$site/rumfast/"
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
cd "$root" || exit

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")') || exit
if [[ -z $gpu && -z $dry ]]; then
  echo "gpu.sh: torch sees no GPU; --dry-run tries everything on the CPU" >&2
  exit 1
fi
slug=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
[[ -n $out ]] || if [[ -n $dry ]]; then out=$(mktemp -d); else out=$root/bench/results/$slug; fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit
echo "gpu.sh: ${gpu:-no GPU}, $("$python" --version), results in $out"

builds() {
  "$python" -m rumfast.bench.builds ${dry:+--kernel "margins C=10"} --save "$out/builds.json"
}

tests() {
  if ! "$python" -c 'import pytest' 2>/dev/null; then
    echo "gpu.sh: pytest is not installed: no test was run" >&2
    return 1
  fi
  # Without pytest-timeout, its setting in pyproject.toml is unknown.
  local chosen=(-m gpu tests/kernels tests/loaders tests/test_stepping.py)
  [[ -z $dry ]] || chosen=(tests/kernels/test_backend.py)
  "$python" -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestConfigWarning "${chosen[@]}" | tee "$out/tests.txt"
}

suite() {
  # An earlier record stays until this one is there.
  "$python" -m rumfast.cli bench "$1" ${dry:+--quick} --save "$out/$1.json" | tee "$site/$1.md" &&
    mv "$site/$1.md" "$out"
}

accuracy() {
  if ! "$python" -c 'import torchvision' 2>/dev/null; then
    echo "gpu.sh: torchvision, which the plain loop needs, is not installed: accuracy is not compared" >&2
    return
  fi
  local chosen=(--recipe digits.toml)
  # Half of the recipe's epochs, since the plain loop has to end in time too.
  [[ -z ${CIFAR10:-} ]] || chosen=(--recipe cifar10-resnet18.toml --data "$CIFAR10" --epochs 15)
  "$python" -m rumfast.bench.accuracy "${chosen[@]}" ${dry:+--quick} --save "$out/accuracy.json"
}

memorization() {
  local recipe=digits.toml data=digits most=()
  [[ -z ${CIFAR10:-} ]] || recipe=cifar10-resnet18.toml data=$CIFAR10
  [[ -z $dry ]] || most=(--members 4)
  local folder=${SWEEP:-$root/runs/gpu/${recipe%.toml}}
  [[ -z $dry ]] || folder=$out/sweep
  # Two minutes are left for the round that has begun.
  "$python" -m rumfast.bench.memorization "$recipe" --data "$data" --out "$folder" "${most[@]}" \
    --seconds $((limit > 240 ? limit - 120 : limit / 2)) --save "$out/memorization.json"
}
export -f builds tests suite accuracy memorization
export python dry out root limit site

for part in "${parts[@]}"; do
  echo "gpu.sh: $part"
  case $part in kernels | loader | train | sweep | unlearn) call=(suite "$part") ;; *) call=("$part") ;; esac
  before=$SECONDS
  timeout "$limit" bash -c 'set -o pipefail; "$@"' part "${call[@]}"
  status=$?
  ((status == 0)) || failed+=("$part (exit status $status)")
  echo "gpu.sh: $part took $((SECONDS - before)) s, exit status $status"
done
((${#failed[@]} == 0)) || { printf 'gpu.sh: failed: %s\n' "${failed[@]}" >&2; exit 1; }
