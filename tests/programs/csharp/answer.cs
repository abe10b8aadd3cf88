//: verdict: success
//: stdout: 42
class Program { static void Main() { System.Console.WriteLine(6 * 7); } }
