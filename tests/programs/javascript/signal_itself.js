//: verdict: killed (signal 9)
process.kill(process.pid, "SIGKILL");
setTimeout(() => {}, 10000);
