//: verdict: compilation-error
//: nothing on stdout
//: on stderr: imported and not used
package main

import "os"

func main() {}
