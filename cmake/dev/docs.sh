# The pages and the reference.

no_arguments "$@"
need_compiler doxygen doxygen-awesome-css ccache doctest-dev libeigen3-dev libxtensor-dev \
  libthrust-dev python3
has doxygen || die "please install doxygen"
has python3 || die "please install python3"
style=$(find /usr/share /usr/local/share -name doxygen-awesome.css 2>/dev/null | head -n 1)
[ -n "$style" ] || die "please install doxygen-awesome-css"
make_target default rlhf_snippets >&2 # what the pages show must run
ctest --test-dir "$build/default" -R '^(snippet\.|check\.(docs|readme)_code)' \
  --output-on-failure --no-tests=error
mkdir -p "$build/docs"
rm -rf "$build/docs/html"
(cd "$root" && { cat docs/Doxyfile; say "HTML_EXTRA_STYLESHEET = $style docs/style.css"; } |
  doxygen -)
rm -f "$build/docs/html/hierarchy.html" # written though no page leads there
python3 -B "$root/docs/check_links.py" "$build/docs/html"
say "build/docs/html/index.html"
