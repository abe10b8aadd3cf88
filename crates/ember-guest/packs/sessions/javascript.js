// The JavaScript driver of Ember's sessions: what python.py beside it says holds here, too.
//
// Cells are scripts of one global scope, so `let`, `const`, `function` and `class` stay. A value that is a
// promise is waited for.

"use strict";

const fs = require("node:fs");
const net = require("node:net");
const util = require("node:util");
const vm = require("node:vm");

const MAX_TEXT = 1 << 20;
const MAX_TRACEBACK = 64 << 10;
const MAX_FRAMES = 64;

const channel = Number(process.argv[2]);
const socket = new net.Socket({ fd: channel, readable: true, writable: true });
process.argv.length = 1;

// Written before anything else is done, so that what comes of a cell comes in its order.
function say(line) {
  let data = Buffer.from(line + "\n");
  while (data.length > 0) {
    try {
      data = data.subarray(fs.writeSync(channel, data));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

function tell(type, content) {
  say(JSON.stringify({ type, ...content }));
}

function representations(value) {
  const data = {};
  const shown = value?.[Symbol.for("Jupyter.display")];
  if (typeof shown === "function") {
    for (const [kind, content] of Object.entries(shown.call(value))) {
      data[kind] = typeof content === "string" ? content : JSON.stringify(content);
    }
  }
  data["text/plain"] ??= util.inspect(value).slice(0, MAX_TEXT);
  return data;
}

// An error's frames, the outermost first, without what is Node's and this file's.
function frames(stack) {
  const found = [];
  for (const line of stack.split("\n")) {
    const parts = /^ {4}at (?:(.*) \()?(<cell \d+>|\/.*):(\d+):\d+\)?$/.exec(line);
    if (parts && parts[2] !== __filename) {
      found.push({ file: parts[2], line: Number(parts[3]), function: parts[1] ?? "", text: "" });
    }
  }
  return found.slice(0, MAX_FRAMES).reverse();
}

function report(error) {
  const is_error = util.types.isNativeError(error);
  const name = is_error ? String(error.name) : "Uncaught";
  const message = is_error ? String(error.message) : util.inspect(error);
  const stack = is_error ? String(error.stack) : `Uncaught ${message}`;
  const is_own = (line) => line.includes(__filename) || /(\(|at )node:/.test(line);
  const own = stack.split("\n").filter((line) => !is_own(line));
  tell("error", {
    name: name.slice(0, 1000),
    message: message.slice(0, MAX_TRACEBACK),
    traceback: own.join("\n").slice(0, MAX_TRACEBACK),
    frames: frames(stack),
  });
}

let interrupt = null;
process.on("SIGINT", () => interrupt?.());

async function cell(number, code) {
  try {
    let value = vm.runInThisContext(code, { filename: `<cell ${number}>`, breakOnSigint: true });
    if (util.types.isPromise(value)) {
      const interrupted = new Promise((_, reject) => {
        interrupt = () => reject(new Error("the cell was interrupted"));
      });
      value = await Promise.race([value, interrupted]);
    }
    if (value !== undefined) tell("value", { data: representations(value) });
  } catch (error) {
    report(error);
  } finally {
    interrupt = null;
  }
}

globalThis.require = require("node:module").createRequire(process.cwd() + "/");
globalThis.display = (...values) => {
  for (const value of values) tell("display", { data: representations(value) });
};
// What a cell has left running and fails is its own matter.
process.on("uncaughtException", (error) => console.error(error));
process.on("unhandledRejection", (error) => console.error(error));

let bytes = Buffer.alloc(0);
let working = Promise.resolve();
socket.on("data", (part) => {
  bytes = Buffer.concat([bytes, part]);
  for (;;) {
    const end = bytes.indexOf(10);
    if (end < 0) return;
    const [verb, number, length] = bytes.subarray(0, end).toString().split(" ");
    // Node's generators cannot be seeded from JavaScript.
    const size = verb === "run" ? Number(length) : 0;
    if (bytes.length < end + 1 + size) return;
    const code = bytes.subarray(end + 1, end + 1 + size).toString();
    bytes = bytes.subarray(end + 1 + size);
    if (verb === "run") {
      working = working.then(() => cell(number, code)).then(() => say(`done ${number}`));
    }
  }
});
say("done 0");
