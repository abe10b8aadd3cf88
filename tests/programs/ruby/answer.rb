#: verdict: success
#: stdout: 42
puts 6 * 7
