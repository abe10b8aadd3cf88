#: verdict: runtime error (exit code 3)
#: stdout: at exit
at_exit { puts "at exit" }
exit 3
