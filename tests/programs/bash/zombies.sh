#: verdict: success
#: stdout: 100 started
# Children that nobody waits for, and that are gone before it is.
for n in $(seq 100); do (:) & done
echo "$n started"
