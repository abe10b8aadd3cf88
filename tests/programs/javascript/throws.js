//: verdict: runtime error (exit code 1)
//: stdout: before
//: on stderr: throws.js:6
//: on stderr: TypeError: Cannot read properties of undefined
console.log("before");
undefined.x;
