//: verdict: runtime error (exit code 2)
//: on stderr: all goroutines are asleep - deadlock!
package main

func main() { <-make(chan int) }
