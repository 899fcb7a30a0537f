#!/bin/sh
# check_spills.sh FOLDER: fails where what ptxas has said below FOLDER tells of a spill, or where it
# has said nothing.
set -eu
[ -n "$(find "$1" -name '*.o.log')" ] || { echo "no compiler output was found in $1"; exit 1; }
find "$1" -name '*.o.log' -exec awk -f "${0%.sh}.awk" {} +
