#: verdict: success
#: file: shapes.rb
#: stdout: 12
require_relative "shapes"

puts area(3, 4)
