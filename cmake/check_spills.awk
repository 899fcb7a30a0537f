# Reads what `nvcc -Xptxas -v` said of CUDA kernels and fails if one of ours spills registers, or has
# a stack frame that is not explained here:
#
#     moment_pass, fold_moment_*    the open levels of a tree over moments, picked by a running count
#     logit_pass                    16 bytes of logits, of which one is picked by its place
#
# usage: awk -f check_spills.awk object.log ...

function explained(name) {
  return name ~ /11moment_pass|fold_moment_|10logit_pass/
}

/^ptxas info *: Compiling entry function/ {
  split($0, part, "'")
  name = part[2]
  arch = part[4]
  ours = name ~ /^_ZN4rlhf/
}

/bytes stack frame/ && ours {
  ++kernels[arch]
  split($0, number, /[^0-9]+/)
  n = number[1] == "" ? 2 : 1
  if (number[n + 1] + number[n + 2] > 0) {
    print arch ": spills " number[n + 1] " + " number[n + 2] " bytes: " name
    ++bad
  }
  if (number[n] > 0 && !explained(name)) {
    print arch ": a stack frame of " number[n] " bytes: " name
    ++bad
  }
}

END {
  for (arch in kernels) {
    print arch ": " kernels[arch] " kernels of ours"
    ++archs
  }
  if (archs == 0) {
    print "no compiler output was found"
    ++bad
  }
  exit bad > 0
}
