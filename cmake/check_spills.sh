#!/bin/sh
# check_spills.sh FOLDER...: fails where what ptxas has said below a folder tells of a spill, or where
# it has said nothing.
set -eu
for folder; do
  [ -n "$(find "$folder" -name '*.o.log')" ] ||
    { echo "no compiler output was found in $folder"; exit 1; }
done
find "$@" -name '*.o.log' -exec awk -f "${0%.sh}.awk" {} +
