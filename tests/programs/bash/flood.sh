#: verdict: output-limit
#: output KiB: 256
yes
