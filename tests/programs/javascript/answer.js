//: verdict: success
//: stdout: 42
console.log(6 * 7);
