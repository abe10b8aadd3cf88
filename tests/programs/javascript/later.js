//: verdict: success
//: stdout: first
//: stdout: second
//: stdout: third
setTimeout(() => console.log("third"), 20);
Promise.resolve().then(() => console.log("second"));
console.log("first");
