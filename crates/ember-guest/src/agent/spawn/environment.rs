//! A command's environment, and where its program may be.

use std::collections::BTreeMap;

use crate::agent::users::User;
use crate::protocol::{MAX_PATH, Spawn};

/// What Debian gives root.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What most terminals of today can do.
const DEFAULT_TERM: &[u8] = b"xterm-256color";
/// More directories of a `PATH` are not looked at.
const MAX_DIRECTORIES: usize = 256;

/// `NAME=value` strings. What the guest was `given` replaces what the agent gives to everybody, and
/// what the request sets replaces both.
pub(crate) fn build<'a>(
    request: &'a Spawn,
    user: &'a User,
    given: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Vec<Vec<u8>> {
    let mut variables: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    if !request.clear_env {
        variables.insert(b"PATH", DEFAULT_PATH);
        variables.insert(b"HOME", &user.home);
        variables.insert(b"USER", &user.name);
        variables.insert(b"LOGNAME", &user.name);
        if request.pty.is_some() {
            variables.insert(b"TERM", DEFAULT_TERM);
        }
        variables.extend(given);
    }
    variables.extend(
        request
            .env
            .iter()
            .map(|(name, value)| (&name[..], &value[..])),
    );
    variables
        .into_iter()
        .map(|(name, value)| [name, b"=", value].concat())
        .collect()
}

/// The paths to try for a program, in order, as execvp(3) does: a name without a slash is looked
/// for in the command's own `PATH`, or the default one if it has none.
pub(super) fn candidates(program: &[u8], environment: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let path = environment
        .iter()
        .find_map(|variable| variable.strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|&byte| byte == b':')
        .map(|directory| match directory {
            b"" => [b"./", program].concat(),
            directory => [directory, b"/", program].concat(),
        })
        .filter(|candidate| candidate.len() <= MAX_PATH)
        .take(MAX_DIRECTORIES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PtySize;

    fn texts(list: Vec<Vec<u8>>) -> Vec<String> {
        list.into_iter()
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect()
    }

    fn with(env: &[(&str, &str)]) -> Spawn {
        let pair = |(name, value): &(&str, &str)| (name.as_bytes().into(), value.as_bytes().into());
        Spawn {
            env: env.iter().map(pair).collect(),
            ..Spawn::default()
        }
    }

    #[test]
    fn the_last_setting_of_a_name_counts() {
        let request = with(&[("A", "1"), ("HOME", "/h"), ("A", "2")]);
        assert_eq!(
            texts(build(&request, &User::root(), [].into_iter())),
            [
                "A=2",
                "HOME=/h",
                "LOGNAME=root",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "USER=root",
            ]
        );
        let request = Spawn {
            clear_env: true,
            ..request
        };
        assert_eq!(
            texts(build(&request, &User::root(), [].into_iter())),
            ["A=2", "HOME=/h"]
        );
        // What an identity gave stands between.
        let given = [(&b"HOME"[..], &b"/given"[..]), (b"B", b"given")];
        let built = |request: &Spawn| texts(build(request, &User::root(), given.into_iter()));
        assert_eq!(
            built(&request),
            ["A=2", "HOME=/h"],
            "an environment of one's own"
        );
        let request = Spawn {
            clear_env: false,
            ..request
        };
        assert!(built(&request).contains(&"HOME=/h".to_owned()));
        assert!(built(&request).contains(&"B=given".to_owned()));
        assert!(built(&with(&[])).contains(&"HOME=/given".to_owned()));
        let pty = Some(PtySize {
            rows: 1,
            columns: 1,
        });
        let request = Spawn { pty, ..with(&[]) };
        let built = texts(build(&request, &User::root(), [].into_iter()));
        assert!(built.contains(&"TERM=xterm-256color".to_owned()));
    }

    #[test]
    fn programs_are_looked_for_where_the_command_would() {
        let of = |program: &str, environment: &[&str]| {
            let environment: Vec<_> = environment.iter().map(|it| it.as_bytes().into()).collect();
            texts(candidates(program.as_bytes(), &environment))
        };
        assert_eq!(of("./x", &["PATH=/bin"]), ["./x"]);
        assert_eq!(of("/bin/x", &[]), ["/bin/x"]);
        assert_eq!(of("x", &["PATH=/a::/b"]), ["/a/x", "./x", "/b/x"]);
        assert_eq!(of("x", &["XPATH=/a"])[0], "/usr/local/sbin/x");
        assert_eq!(
            of("x", &[&format!("PATH={}", "/a:".repeat(5000))]).len(),
            MAX_DIRECTORIES
        );
        assert!(of(&"x".repeat(5000), &["PATH=/a"]).is_empty());
    }
}
