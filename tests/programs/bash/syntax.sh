#: verdict: runtime error (exit code 2)
#: on stderr: syntax error
if true; then echo never
