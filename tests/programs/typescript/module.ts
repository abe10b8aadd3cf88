//: verdict: success
//: file: shapes.ts
//: stdout: 12 rectangles
import { area, NAME } from "./shapes";
import { EOL } from "node:os";

const later: number = await Promise.resolve(area(3, 4));
process.stdout.write(`${later} ${NAME}${EOL}`);
