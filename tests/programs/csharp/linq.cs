//: verdict: success
//: argument: 3
//: stdin: pear apple
//: stdin: plum
//: stdout: apple, pear, plum
//: stdout: 3
//: stdout: 2432902008176640000
using System;
using System.Linq;
using System.Numerics;

class Program {
    static void Main(string[] args) {
        var words = Console.In.ReadToEnd().Split((char[])null, StringSplitOptions.RemoveEmptyEntries);
        Console.WriteLine(string.Join(", ", words.OrderBy(word => word)));
        Console.WriteLine(args[0]);
        Console.WriteLine(Enumerable.Range(1, 20).Aggregate(BigInteger.One, (all, n) => all * n));
    }
}
