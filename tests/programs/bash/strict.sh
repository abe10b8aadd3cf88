#: verdict: runtime error (exit code 1)
#: nothing on stdout
set -e
false
echo never
