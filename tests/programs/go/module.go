//: verdict: success
//: file: shapes.go
//: stdout: 12
package main

import "fmt"

func main() { fmt.Println(area(3, 4)) }
