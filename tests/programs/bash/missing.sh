#: verdict: runtime error (exit code 127)
#: on stderr: no-such-command: command not found
no-such-command
