#: verdict: runtime error (exit code 1)
#: nothing on stdout
#: on stderr: syntax.rb:4: unterminated string
puts "never
