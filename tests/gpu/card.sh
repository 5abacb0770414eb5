#!/usr/bin/env bash
# Everything that a card can tell, in one command of under nine minutes; each row is on disk as soon as it is known.
#
#     tests/gpu/card.sh                                  # on a machine with a card
#     tests/gpu/card.sh --budget 300 --out results       # in five minutes, into results/
#     tests/gpu/card.sh --small --device cpu             # small, without a card, to try it
#
# Leaves rows.jsonl (one object a row), table.md and log.txt in the folder --out (default: card_results).
#
# A machine without network needs the libraries that its image lacks as wheels in tests/gpu/wheels (or --wheels DIR). Fill
# it beforehand, where there is a network, for the Python and the system of the machine with the card:
#
#     pip download --only-binary :all: --no-deps --python-version 3.12 --platform manylinux_2_28_x86_64 \
#         --platform manylinux2014_x86_64 --platform manylinux_2_24_x86_64 --dest tests/gpu/wheels \
#         pydantic pydantic-core annotated-types typing-inspection typing-extensions tomli-w bitsandbytes av \
#         optimum-quanto pytest pluggy iniconfig
#
# What can be imported already is left alone, and so is torch. What has no wheel is named in the first row.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
wheels=$here/wheels
out=card_results
rest=()
while [ $# -gt 0 ]; do
    case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) rest+=("$1"); shift ;;
    esac
done
mkdir -p "$out"
site=$out/site-packages
declare -A package=(
    [pydantic]=pydantic [pydantic_core]=pydantic-core [annotated_types]=annotated-types
    [typing_inspection]=typing-inspection [typing_extensions]=typing-extensions [tomli_w]=tomli-w
    [bitsandbytes]=bitsandbytes [av]=av [optimum.quanto]=optimum-quanto [pytest]=pytest [pluggy]=pluggy
    [iniconfig]=iniconfig
)
export PYTHONPATH=$site:$here/..:$here/../..${PYTHONPATH:+:$PYTHONPATH}
for module in "${!package[@]}"; do
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1].split('.')[0]) is None)" \
        "$module" 2>/dev/null && continue
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$site" "${package[$module]}" \
        >>"$out/log.txt" 2>&1 || echo "no wheel of ${package[$module]} in $wheels" | tee -a "$out/log.txt"
done
exec "$python" "$here/card.py" --out "$out" "${rest[@]}"
