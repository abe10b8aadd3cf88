#: verdict: killed (signal 15)
#: stdout: before
echo before
kill -TERM $$
sleep 100
