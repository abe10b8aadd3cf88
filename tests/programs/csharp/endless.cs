//: verdict: timeout
//: seconds: 3
class Program { static void Main() { for (;;); } }
