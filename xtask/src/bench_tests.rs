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
