//! What a registry asks for before it answers: `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// One challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user's name and password with each request.
    Basic,
    /// A token, which is to be had at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The first challenge of `header` that can be answered; a token is better than a password.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let mut found = None;
    let mut rest = header.get(..header.len().min(4096))?;
    while !rest.trim_start().is_empty() {
        let (scheme, after) = token(rest.trim_start_matches([' ', '\t', ',']))?;
        let (parameters, after) = parameters(after);
        rest = after;
        let get = |name: &str| {
            let mut all = parameters.iter();
            all.find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            return Some(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope"),
            });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// The `name=value` pairs at the beginning of `text`, and what follows them: another challenge.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = text.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = token(start) else {
            // Nothing that could be read on.
            return (found, "");
        };
        let Some(value) = after.trim_start().strip_prefix('=') else {
            return (found, start);
        };
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        found.push((name.to_owned(), value));
        text = after;
    }
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}
