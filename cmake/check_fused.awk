# Reads PTX of the library in strict mode and fails where a product is fused with a sum, or may be when
# it is assembled: a mul without a rounding modifier whose result goes to an add or sub without one.
#
# usage: awk -f check_fused.awk file.ptx ...

function found(what) {
  if (!(what in seen)) print kernel ": " what
  seen[what]
  ++bad
}

/\.entry/ {
  kernel = $0
  sub(/.*\.entry[ \t]+/, "", kernel)
  sub(/\(.*/, "", kernel)
  ours = kernel ~ /^_ZN4rlhf/
  kernels += ours
  split("", product)
  split("", seen)
}

ours {
  gsub(/[,;]/, " ")
  from = $1 ~ /^@/ ? 2 : 1  # behind a predicate
  op = $from
  to = $(from + 1)
  if (op ~ /^fma\./) found("fma into " to)
  else if (op ~ /^mul(\.ftz)?\.f(32|64)$/) product[to]
  else if (op ~ /^(mov|neg|selp|abs)\.[fb](32|64)$/) {
    for (k = from + 2; k <= NF; ++k)
      if ($k in product) product[to]
  } else if (op ~ /^(add|sub)(\.ftz)?\.f(32|64)$/) {
    for (k = from + 2; k <= NF; ++k)
      if ($k in product) found("a product into " to)
  }
}

END {
  print kernels + 0 " kernels of ours"
  exit bad > 0 || kernels == 0
}
