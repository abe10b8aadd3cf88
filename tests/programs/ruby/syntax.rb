#: verdict: runtime error (exit code 1)
#: nothing on stdout
#: on stderr: syntax error
puts "never
