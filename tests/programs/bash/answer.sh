#: verdict: success
#: stdout: 42
echo $((6 * 7))
