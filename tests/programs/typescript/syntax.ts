//: verdict: compilation-error
//: nothing on stdout
//: on stderr: syntax.ts:5:13: ERROR
let n: = 1;
