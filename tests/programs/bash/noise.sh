#: verdict: output-limit
#: output KiB: 256
# On the other stream as well.
yes >&2
