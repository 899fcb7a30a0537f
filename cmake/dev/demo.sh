# Supervised fine-tuning, a reward model and PPO.

# shellcheck disable=SC2086
need_compiler $for_examples >&2
make_target native rlhf_pipeline >&2
exec "$build/native/examples/rlhf_pipeline" "$@"
