//: verdict: success
//: file: shapes.mjs
//: stdout: 12 rectangles
import { area, NAME } from "./shapes.mjs";

const later = await Promise.resolve(area(3, 4));
console.log(later, NAME);
