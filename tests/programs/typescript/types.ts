//: verdict: success
//: argument: x
//: stdout: circle 3.14
//: stdout: square 4.00
//: stdout: x
interface Shape { kind: "circle" | "square"; size: number }
enum Places { Two = 2 }

function area<T extends Shape>(shape: T): string {
    const exact = shape.kind === "circle" ? Math.PI * shape.size ** 2 : shape.size ** 2;
    return exact.toFixed(Places.Two);
}

for (const shape of [{ kind: "circle", size: 1 }, { kind: "square", size: 2 }] as Shape[]) {
    console.log(shape.kind, area(shape));
}
console.log(process.argv[2]);
