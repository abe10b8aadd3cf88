//: verdict: success
//: file: shapes.cs
//: stdout: 12
class Program { static void Main() { System.Console.WriteLine(Shapes.Area(3, 4)); } }
