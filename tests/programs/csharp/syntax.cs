//: verdict: compilation-error
//: nothing on stdout
//: on stderr: syntax.cs(4,66): error CS
class Program { static void Main() { System.Console.WriteLine(6 * ); } }
