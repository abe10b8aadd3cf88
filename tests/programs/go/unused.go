//: verdict: compilation-error
//: nothing on stdout
//: on stderr: "os" imported and not used
package main

import "os"

func main() {}
