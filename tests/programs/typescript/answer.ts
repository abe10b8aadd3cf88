//: verdict: success
//: stdout: 42
const product = (a: number, b: number): number => a * b;
console.log(product(6, 7));
