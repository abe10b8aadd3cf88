#: verdict: success
#: argument: one
#: argument: two words
#: stdin: b
#: stdin: a
#: file: list.txt
#: stdout: 2 two words
#: stdout: a b listed
echo $# "$2"
echo $(sort) "$(cat list.txt)"
