//: verdict: success
//: argument: one
//: argument: --two
//: variable: COLOUR=red
//: stdin: first
//: stdin: second
//: stdout: one,--two red
//: stdout: 2 second
const lines = require("node:fs").readFileSync(0, "utf8").trim().split("\n");
console.log(process.argv.slice(2).join(), process.env.COLOUR);
console.log(lines.length, lines[1]);
