use serde_json::json;

use super::*;

#[test]
fn figures_are_found_between_other_lines() {
    let mut collected = Collected::default();
    // In pieces that do not end where lines do.
    for piece in [
        "warming up\n{\"name\":\"boot.ag",
        "ent\",\"p50\":1.5}\n{\"x\":1}\n",
    ] {
        collected.bytes.extend_from_slice(piece.as_bytes());
    }
    assert_eq!(
        collected.figures(),
        [json!({"name": "boot.agent", "p50": 1.5})]
    );
}

#[test]
fn new_figures_replace_old_ones_of_the_same_name() {
    let old = vec![
        json!({"name": "a", "kind": "reply", "p50": 1}),
        json!({"name": "b", "p50": 2}),
    ];
    let new = [json!({"name": "a", "kind": "reply", "p50": 3})];
    assert_eq!(
        merge(old, &new),
        [json!({"name": "b", "p50": 2}), new[0].clone()]
    );
}

#[test]
fn the_table_has_a_row_a_figure() {
    let figures = [
        json!({"name": "boot.agent", "kind": "reply", "unit": "ms", "p50": 93.25,
        "p99": 94, "goal": 150, "conditions": "1 vCPU"}),
    ];
    let text = table(&figures);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], COLUMNS);
    assert_eq!(
        rows[1],
        [
            "boot.agent",
            "reply",
            "93.250",
            "94",
            "ms",
            "150",
            "1",
            "vCPU"
        ]
    );
}

#[test]
fn groups_are_measured_whole_and_large_ones_when_they_are_named() {
    let group = |line: &str| Group::parse(line).unwrap();
    let groups = [
        group("true false boot.agent"),
        group("true false fork.object.cold fork.reply.cold"),
        group("false true language.go.cold"),
    ];
    assert_eq!(groups[1].names, ["fork.object.cold", "fork.reply.cold"]);
    assert!(groups[2].is_guarded && !groups[2].is_usual);
    assert_eq!(Group::parse("true false"), None);
    assert_eq!(Group::parse("boot.agent"), None);
    let names = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        chosen(&groups, &names)
    };
    assert_eq!(names(&[]).unwrap(), groups[..2]);
    assert_eq!(names(&["fork.reply.cold"]).unwrap(), groups[1..2]);
    assert_eq!(names(&["language.go.cold"]).unwrap(), groups[2..]);
    let error = names(&["fork.lukewarm"]).unwrap_err().to_string();
    assert!(
        error.contains("fork.lukewarm") && error.contains("boot.agent"),
        "{error}"
    );
}
