//! The table of languages in the README, which `cargo xtask bench` writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::dirs;

const BEGIN: &str = "<!-- languages: written by cargo xtask bench -->";
const END: &str = "<!-- languages end -->";
const HEAD: &str = "| language | version | cold | fork → result |\n| --- | --- | --- | --- |\n";
const FIGURES: [&str; 2] = ["cold", "result"];

/// Puts the languages among `figures` into the table, and leaves its other rows as they are. Says the
/// file, if there was something to write. The two figures of a language are measured together.
pub(crate) fn write(figures: &[Value]) -> Result<Option<PathBuf>> {
    let rows = rows(figures);
    if rows.is_empty() {
        return Ok(None);
    }
    let path = dirs::workspace().join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let text =
        replaced(&text, rows).context("the README has no place for the table of languages")?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(Some(path))
}

/// A row for each language of which both figures were measured, by its name.
fn rows(figures: &[Value]) -> BTreeMap<String, String> {
    let find = |language: &str, kind: &str| {
        let name = format!("language.{language}.{kind}");
        figures.iter().find(|figure| figure["name"] == name)
    };
    let names = figures.iter().filter_map(|figure| {
        let name = figure["name"].as_str()?.strip_prefix("language.")?;
        name.strip_suffix(".cold")
    });
    let row = |language: &str| {
        let [cold, result] = FIGURES.map(|kind| find(language, kind));
        let conditions = cold?["conditions"].as_str()?;
        // `python 3.11.2, tuned kernel, …`
        let (_, version) = conditions.split_once(',')?.0.split_once(' ')?;
        let milliseconds = |figure: &Value| Some(format!("{:.1} ms", figure["p50"].as_f64()?));
        let (cold, result) = (milliseconds(cold?)?, milliseconds(result?)?);
        Some(format!("| {language} | {version} | {cold} | {result} |"))
    };
    names
        .filter_map(|name| Some((name.to_owned(), row(name)?)))
        .collect()
}

/// The text with these rows in its table; none if it has no table.
fn replaced(text: &str, rows: BTreeMap<String, String>) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (table, after) = rest.split_once(END)?;
    let old = table
        .lines()
        .skip_while(|line| !line.contains("---"))
        .skip(1);
    let mut all: BTreeMap<String, String> = old
        .filter_map(|line| {
            let name = line.strip_prefix("| ")?.split(' ').next()?;
            Some((name.to_owned(), line.to_owned()))
        })
        .collect();
    all.extend(rows);
    let lines: String = all.values().map(|line| format!("{line}\n")).collect();
    Some(format!("{before}{BEGIN}\n{HEAD}{lines}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figure(name: &str, p50: f64) -> Value {
        json!({"name": name, "p50": p50, "conditions": "python 3.11.2, tuned kernel, 1 vCPU"})
    }

    #[test]
    fn measured_languages_replace_their_rows_and_no_others() {
        let measured = rows(&[
            figure("language.python.cold", 490.459),
            figure("language.python.result", 31.17),
            figure("language.ruby.cold", 1.0),
            figure("boot.agent", 2.0),
        ]);
        let row = "| python | 3.11.2 | 490.5 ms | 31.2 ms |";
        assert_eq!(
            measured,
            BTreeMap::from([("python".to_owned(), row.to_owned())])
        );

        let old = "| go | 1.19 | 1 ms | 2 ms |\n| python | 3 | 1 ms | 2 ms |\n";
        let text = format!("a\n{BEGIN}\n{HEAD}{old}{END}\nb\n");
        let go = "| go | 1.19 | 1 ms | 2 ms |\n";
        let expected = format!("a\n{BEGIN}\n{HEAD}{go}{row}\n{END}\nb\n");
        assert_eq!(replaced(&text, measured.clone()).unwrap(), expected);
        assert_eq!(replaced(&expected, measured.clone()).unwrap(), expected);
        assert_eq!(replaced("no table", measured), None);
    }
}
