//: verdict: success
//: argument: 4
//: stdout: 30
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	count, _ := strconv.Atoi(os.Args[1])
	squares := make(chan int)
	for n := 1; n <= count; n++ {
		go func(n int) { squares <- n * n }(n)
	}
	sum := 0
	for n := 1; n <= count; n++ {
		sum += <-squares
	}
	fmt.Println(sum)
}
