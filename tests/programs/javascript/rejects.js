//: verdict: runtime error (exit code 1)
//: on stderr: Error: nobody caught it
Promise.reject(new Error("nobody caught it"));
