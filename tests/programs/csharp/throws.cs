//: verdict: runtime error (exit code 1)
//: stdout: before
//: on stderr: System.InvalidOperationException: on purpose
using System;

class Program {
    static void Main() {
        Console.WriteLine("before");
        throw new InvalidOperationException("on purpose");
    }
}
