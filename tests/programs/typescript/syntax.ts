//: verdict: compilation-error
//: nothing on stdout
//: on stderr: syntax.ts:4:7
let n: = 1;
