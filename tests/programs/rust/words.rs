//: verdict: success
//: argument: 2
//: stdin: a b a c b a
//: stdout: a 3
//: stdout: b 2
use std::collections::BTreeMap;
use std::io::Read;

fn main() {
    let least: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_insert(0) += 1;
    }
    for (word, count) in counts.into_iter().filter(|(_, count)| *count >= least) {
        println!("{word} {count}");
    }
}
