#!/usr/bin/env bash
# Assembles our PTX for every generation that it is for: tests/cuda/ptxas.sh DIR (where the .ptx are). Prints registers, spills and shared memory of
# each kernel at their largest, and fails where one spills, or has more than 48 KiB of shared memory, which is what a launch may take unasked.
set -euo pipefail
for ptx in "$1"/*.ptx; do
    for architecture in 80 86 89 90 100 120; do
        "$CUDA_HOME/bin/ptxas" -arch "sm_$architecture" -v -o /dev/null "$ptx" 2>&1
    done | awk -v name="$(basename "$ptx" .ptx)" '
        /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2] }
        /spill/ { if ($5 > spilled[kernel]) spilled[kernel] = $5 }
        /Used [0-9]+ registers/ {
            for (i = 1; i <= NF; i++) {
                if ($i == "registers,") { if ($(i - 1) > registers[kernel]) registers[kernel] = $(i - 1) }
                if ($i ~ /^smem/) { if ($(i - 2) > shared[kernel]) shared[kernel] = $(i - 2) }
            }
        }
        /error|fatal/ { print; bad = 1 }
        END {
            for (kernel in registers) {
                printf "%-12s %-24s %3d registers  %d bytes spilled  %5d bytes shared\n", name, kernel, registers[kernel], spilled[kernel], shared[kernel]
                if (spilled[kernel] > 0 || shared[kernel] > 49152) bad = 1
            }
            exit bad
        }' | sort
done
