//: verdict: runtime error (exit code 2)
//: on stderr: panic: assignment to entry in nil map
package main

func main() {
	var nothing map[string]int
	nothing["x"] = 1
}
