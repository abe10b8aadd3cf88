#: verdict: success
#: argument: x
#: stdin: b a b
#: stdout: {"b":2,"a":1} ["x"]
require "json"

puts "#{$stdin.read.split.tally.to_json} #{ARGV}"
