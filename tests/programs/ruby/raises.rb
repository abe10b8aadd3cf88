#: verdict: runtime error (exit code 1)
#: stdout: before
#: on stderr: raises.rb:5:in `/': divided by 0 (ZeroDivisionError)
puts "before"
1 / 0
