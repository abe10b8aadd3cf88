//: verdict: compilation-error
//: on stderr: Could not resolve "./nothing"
import { x } from "./nothing";
console.log(x);
