//: verdict: memory-exceeded
//: memory MiB: 96
const hoard = [];
for (;;) hoard.push(Buffer.alloc(1 << 20, 1));
