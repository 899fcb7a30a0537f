#!/bin/sh
# Runs a compiler, given as the arguments, and leaves what it says beside the object it makes, for
# tests that read it. Notes of ptxas are kept from the screen.
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" 2>"$object.log"
code=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$object.log" >&2
exit $code
