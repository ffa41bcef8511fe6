#!/usr/bin/env bash
# Compiles every Coq proof and prints one line per theorem of README.md: ok, or what is wrong. A statement counts only if
# `Print Assumptions` finds it closed: no axioms, nothing admitted. Exits with 1 if any fails, or if there is no Coq.
set -euo pipefail
cd "$(dirname "$0")"
build=../build/proofs

have_coq() {
    command -v coqc >/dev/null && echo 'From mathcomp Require Import all_algebra.' >"$build/probe.v" &&
        (cd "$build" && coqc -w none probe.v) >/dev/null 2>&1
}

install_coq() {
    local as_root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    echo 'installing coq and libcoq-mathcomp-algebra'
    "${as_root[@]}" apt-get -qq update >/dev/null
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y \
        coq libcoq-mathcomp-algebra make >/dev/null
}

mkdir -p "$build"
if ! have_coq && ! { install_coq && have_coq; }; then
    echo 'proofs: no Coq with MathComp here, and no right to install it: apt-get install coq libcoq-mathcomp-algebra' >&2
    exit 1
fi

cp coq/_CoqProject coq/*.v "$build"
cd "$build"
coq_makefile -f _CoqProject -o Makefile >/dev/null
make -s -j2 >/dev/null

failed=0
while IFS="|" read -r _ number title _ _ machine _; do
    number=${number// /}
    statements=$(grep -oE '`[a-z_]+\.[A-Za-z0-9_]+`' <<<"$machine" | tr -d '`' || true)
    if [ -z "$statements" ]; then
        echo "theorem $number:$title- in exact arithmetic, by its test"
        continue
    fi
    check=theorem_$number.v
    for statement in $statements; do
        echo "Require ${statement%%.*}. Print Assumptions $statement."
    done >"$check"
    closed=$({ coqc -w none "$check" 2>&1 || true; } | grep -cFx 'Closed under the global context' || true)
    count=$(wc -w <<<"$statements")
    if [ "$closed" -eq "$count" ]; then
        echo "theorem $number:$title- ok, $count statements"
    else
        echo "theorem $number:$title- FAILED: $closed of $count statements are closed"
        failed=1
    fi
done < <(grep -E '^\| *[0-9]+ *\|' ../../proofs/README.md)
exit $failed
